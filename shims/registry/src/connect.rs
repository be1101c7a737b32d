//! A client for one registry: certificates, credentials, TLS or not.

use crate::{Place, Result, credentials};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use std::error::Error as _;
use std::path::Path;
use std::time::Duration;

/// A registry that was reached, and an image there.
pub struct Connection {
    pub client: Client,
    pub image: Reference,
    pub auth: RegistryAuth,
}

/// Reaches a registry and asks for leave. Loopback may do without TLS, as with Docker.
pub async fn connect(place: &Place, operation: RegistryOperation) -> Result<Connection> {
    let registry = if place.registry == "docker.io" { "index.docker.io" } else { &place.registry };
    let auth = credentials::of(&place.registry)?;
    let secure = ask(place, registry, &auth, ClientProtocol::Https, operation);
    if place.plain_http {
        return ask(place, registry, &auth, ClientProtocol::Http, operation).await.map_err(|e| words(&e));
    }
    match secure.await {
        // Only what does not speak TLS at all: a wrong certificate is no reason to do without.
        Err(first) if is_loopback(registry) && words(&first).contains("InvalidContentType") => {
            let plain = ask(place, registry, &auth, ClientProtocol::Http, operation).await;
            plain.map_err(|error| words(&error))
        }
        outcome => outcome.map_err(|error| words(&error)),
    }
}

async fn ask(
    place: &Place,
    registry: &str,
    auth: &RegistryAuth,
    protocol: ClientProtocol,
    operation: RegistryOperation,
) -> Result<Connection, OciDistributionError> {
    let config = ClientConfig {
        protocol,
        extra_root_certificates: certificates(place, registry)?,
        connect_timeout: Some(Duration::from_secs(30)),
        read_timeout: Some(Duration::from_secs(60)),
        use_monolithic_push: true,
        platform_resolver: None,
        user_agent: concat!("dhow/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    };
    let client = Client::try_from(config)?;
    let reference = place.reference.clone();
    let (registry, repository) = (registry.to_owned(), place.repository.clone());
    let image = match reference.contains(':') {
        true => Reference::with_digest(registry, repository, reference),
        false => Reference::with_tag(registry, repository, reference),
    };
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

/// An error with all its reasons, in one line.
pub fn words(error: &OciDistributionError) -> String {
    match error {
        OciDistributionError::UnauthorizedError { .. } => CREDENTIALS.into(),
        OciDistributionError::RequestError(error)
            if error.status().is_some_and(|status| matches!(status.as_u16(), 401 | 403)) =>
        {
            CREDENTIALS.into()
        }
        OciDistributionError::AuthenticationFailure(reason) => {
            format!("the registry refuses the credentials: {reason}")
        }
        OciDistributionError::RegistryError { envelope, .. } => {
            let all: Vec<String> =
                envelope.errors.iter().map(|one| format!("{} ({:?})", one.message, one.code)).collect();
            format!("the registry says: {}", all.join(", "))
        }
        OciDistributionError::GenericError(Some(reason)) => reason.clone(),
        other => {
            let mut text = other.to_string();
            let mut source = other.source();
            while let Some(reason) = source {
                let reason_text = reason.to_string();
                if !text.contains(&reason_text) {
                    text = format!("{text}: {reason_text}");
                }
                source = reason.source();
            }
            text
        }
    }
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
