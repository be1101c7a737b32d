//! A client for one registry: certificates, credentials, TLS or not.

use crate::{Place, Result, credentials};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use std::path::Path;
use std::time::Duration;

/// A registry that was reached, and an image there.
pub struct Connection {
    pub client: Client,
    pub image: Reference,
    pub auth: RegistryAuth,
}

/// How often in a row something is tried that brings nothing new.
const ATTEMPTS: u32 = 5;

/// Why something was not done, in words, and whether there is a use in trying again.
pub struct Failure {
    pub again: Again,
    pub words: String,
}

/// Whether something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It would fail as it did.
    Never,
    /// What it failed of may pass: a registry that is busy, or is being restarted.
    Later,
    /// It came further than before.
    AtOnce,
}

impl From<String> for Failure {
    fn from(words: String) -> Failure {
        Failure { again: Again::Never, words }
    }
}

impl From<OciDistributionError> for Failure {
    fn from(error: OciDistributionError) -> Failure {
        let busy = |code: u16| code == 429 || code >= 500;
        let may_pass = match &error {
            OciDistributionError::ServerError { code, .. } => busy(*code),
            OciDistributionError::RegistryError { envelope, .. } => {
                envelope.errors.iter().any(|one| matches!(one.code, OciErrorCode::Toomanyrequests))
            }
            // Who does not listen, or has a wrong certificate, is asked once: there may be a mirror.
            OciDistributionError::RequestError(error) => match error.status() {
                Some(status) => busy(status.as_u16()),
                None => !error.is_connect() && !error.is_redirect() && !error.is_builder(),
            },
            _ => false,
        };
        Failure { again: if may_pass { Again::Later } else { Again::Never }, words: words(&error) }
    }
}

/// Does something, and does it again while what it fails of may pass.
pub async fn patiently<T>(mut what: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T> {
    let mut attempt = 0;
    loop {
        match what().await {
            Ok(done) => return Ok(done),
            Err(Failure { again: Again::AtOnce, .. }) => attempt = 0,
            Err(Failure { again: Again::Later, .. }) if attempt + 1 < ATTEMPTS => attempt += 1,
            Err(Failure { words, .. }) => return Err(words),
        }
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
        }
    }
}

/// Reaches a registry and asks for leave. Loopback may do without TLS, as with Docker.
pub async fn connect(place: &Place, operation: RegistryOperation) -> Result<Connection, Failure> {
    let registry = if place.registry == "docker.io" { "index.docker.io" } else { &place.registry };
    let auth = credentials::of(&place.registry)?;
    let secure = ask(place, registry, &auth, ClientProtocol::Https, operation);
    if place.plain_http {
        return Ok(ask(place, registry, &auth, ClientProtocol::Http, operation).await?);
    }
    match secure.await {
        // Only what does not speak TLS at all: a wrong certificate is no reason to do without.
        Err(first) if is_loopback(registry) && words(&first).contains("InvalidContentType") => {
            Ok(ask(place, registry, &auth, ClientProtocol::Http, operation).await?)
        }
        outcome => Ok(outcome?),
    }
}

async fn ask(
    place: &Place,
    registry: &str,
    auth: &RegistryAuth,
    protocol: ClientProtocol,
    operation: RegistryOperation,
) -> Result<Connection, OciDistributionError> {
    let certificates = certificates(place, registry)?;
    let config = || ClientConfig {
        protocol: protocol.clone(),
        extra_root_certificates: certificates.clone(),
        connect_timeout: Some(Duration::from_secs(30)),
        read_timeout: Some(Duration::from_secs(60)),
        use_monolithic_push: true,
        platform_resolver: None,
        user_agent: concat!("dhow/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let client = Client::try_from(config())?;
    let reference = place.reference.clone();
    let (registry, repository) = (registry.to_owned(), place.repository.clone());
    let image = match reference.contains(':') {
        true => Reference::with_digest(registry, repository, reference),
        false => Reference::with_tag(registry, repository, reference),
    };
    if let RegistryAuth::Bearer(_) = auth {
        // With a token nothing is asked yet: this tells whether the registry is there, and speaks TLS.
        let asked = Client::try_from(config())?.auth(&image, &RegistryAuth::Anonymous, operation).await;
        if let Err(error @ OciDistributionError::RequestError(_)) = asked {
            return Err(error);
        }
    }
    client.auth(&image, auth, operation).await?;
    Ok(Connection { client, image, auth: auth.clone() })
}

/// The certificates of `--ca-file`, and those that Docker has for this registry.
fn certificates(place: &Place, registry: &str) -> Result<Vec<Certificate>, OciDistributionError> {
    let mut files: Vec<_> = place.ca_file.iter().cloned().collect();
    let dockers = Path::new("/etc/docker/certs.d").join(registry);
    for entry in std::fs::read_dir(dockers).into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "crt") {
            files.push(entry.path());
        }
    }
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| {
            OciDistributionError::GenericError(Some(format!("{}: {error}", file.display())))
        })?;
        const END: &str = "-----END CERTIFICATE-----";
        let before = found.len();
        for one in text.split_inclusive(END).filter(|one| one.contains(END)) {
            found.push(Certificate { encoding: CertificateEncoding::Pem, data: one.as_bytes().to_vec() });
        }
        if found.len() == before {
            let cause = format!("{} has no certificate", file.display());
            return Err(OciDistributionError::GenericError(Some(cause)));
        }
    }
    Ok(found)
}

/// Docker takes all of 127.0.0.0/8 and ::1 for a machine's own.
fn is_loopback(registry: &str) -> bool {
    let host =
        registry.rsplit_once(':').filter(|_| !registry.ends_with(']')).map_or(registry, |(host, _)| host);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

const CREDENTIALS: &str =
    "the registry wants other credentials: `docker login` and `podman login` store them";

/// The beginning of what a registry says, which may be a page for a browser.
fn brief(text: &str) -> String {
    text.chars().take(300).collect()
}

/// An error with all its reasons, in one line.
pub fn words(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. } => CREDENTIALS.into(),
        OciDistributionError::RequestError(error)
            if error.status().is_some_and(|status| matches!(status.as_u16(), 401 | 403)) =>
        {
            CREDENTIALS.into()
        }
        OciDistributionError::RequestError(error) if error.is_builder() => {
            format!("the registry sends to a place that is no URL: {}", reasons(error))
        }
        OciDistributionError::AuthenticationFailure(reason) => {
            format!(
                "the registry gives no token, `docker login` and `podman login` store credentials: {}",
                brief(reason)
            )
        }
        OciDistributionError::ServerError { code, message, .. } => {
            format!("the registry answers {code} {}", brief(message))
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let all: Vec<String> =
                envelope.errors.iter().map(|one| format!("{} ({:?})", one.message, one.code)).collect();
            format!("the registry says: {}", all.join(", "))
        }
        OciDistributionError::GenericError(Some(reason)) => reason.clone(),
        other => reasons(other),
    }
}

fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        let reason_text = reason.to_string();
        if !text.contains(&reason_text) {
            text = format!("{text}: {reason_text}");
        }
        source = reason.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_loopback() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in
            ["localhost.example:5000", "10.0.0.1:5000", "docker.io", "[fe80::1]:5000", "127.0.0.1.example"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
