//! What `docker login` and `podman login` have stored.

use crate::Result;
use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A credentials file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Stored {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// The credentials for a registry; none when nothing is stored.
pub fn of(registry: &str) -> Result<RegistryAuth> {
    for path in places() {
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let stored: Stored =
            serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if let Some(auth) = stored.find(registry).map_err(|error| format!("{}: {error}", path.display()))? {
            return Ok(auth);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

/// Where credentials may be: podman's files, then Docker's.
fn places() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Under which keys a registry may be: Docker Hub has one of its own, others may have a scheme.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    if registry == "docker.io" {
        keys.splice(0..0, ["https://index.docker.io/v1/".into(), "index.docker.io".into()]);
    }
    keys
}

impl Stored {
    fn find(&self, registry: &str) -> Result<Option<RegistryAuth>> {
        let keys = keys(registry);
        // As Docker: a helper of the registry's own, then the one for all, then the file itself.
        if let Some((key, helper)) = keys.iter().find_map(|key| Some((key, self.cred_helpers.get(key)?))) {
            return from_helper(helper, key);
        }
        if let Some(helper) = &self.creds_store {
            for key in &keys {
                if let Some(auth) = from_helper(helper, key)? {
                    return Ok(Some(auth));
                }
            }
        }
        keys.iter().find_map(|key| self.auths.get(key)).map_or(Ok(None), Entry::auth)
    }
}

impl Entry {
    fn auth(&self) -> Result<Option<RegistryAuth>> {
        if let Some(token) = self.registrytoken.as_ref().filter(|token| !token.is_empty()) {
            return Ok(Some(RegistryAuth::Bearer(token.clone())));
        }
        if self.identitytoken.as_ref().is_some_and(|token| !token.is_empty()) {
            return Err("identity tokens are not supported: log in with a password or an access token".into());
        }
        if let (Some(name), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(RegistryAuth::Basic(name.clone(), password.clone())));
        }
        let Some(auth) = self.auth.as_ref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let wrong = || "an entry is not base64 of NAME:PASSWORD".to_owned();
        let plain = base64::engine::general_purpose::STANDARD.decode(auth).map_err(|_| wrong())?;
        let plain = String::from_utf8(plain).map_err(|_| wrong())?;
        let (name, password) = plain.split_once(':').ok_or_else(wrong)?;
        Ok(Some(RegistryAuth::Basic(name.into(), password.trim_end_matches('\0').into())))
    }
}

/// Asks `docker-credential-NAME get`.
fn from_helper(name: &str, key: &str) -> Result<Option<RegistryAuth>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Said {
        username: String,
        secret: String,
    }
    if name.contains('/') {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says more by its status.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        // Helpers have one way to say that they have nothing.
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err(format!("{program}: {said}")),
        };
    }
    let said: Said = serde_json::from_slice(&output.stdout).map_err(|error| format!("{program}: {error}"))?;
    if said.username == "<token>" {
        return Err(format!("{program}: identity tokens are not supported"));
    }
    Ok(Some(RegistryAuth::Basic(said.username, said.secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str, registry: &str) -> Result<Option<RegistryAuth>> {
        serde_json::from_str::<Stored>(text).unwrap().find(registry)
    }

    #[test]
    fn entries_of_the_file() {
        let hub = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "bmFtZTpwYTpzcw=="}, "r:5000": {}}}"#;
        let basic = RegistryAuth::Basic("name".into(), "pa:ss".into());
        assert_eq!(find(hub, "docker.io"), Ok(Some(basic)));
        assert_eq!(find(hub, "r:5000"), Ok(None));
        assert_eq!(find(hub, "other"), Ok(None));
        assert!(find(r#"{"auths": {"r": {"auth": "?"}}}"#, "r").is_err());
        assert!(find(r#"{"auths": {"r": {"identitytoken": "t"}}}"#, "r").is_err());
        let token = r#"{"auths": {"https://r": {"registrytoken": "t"}}}"#;
        assert_eq!(find(token, "r"), Ok(Some(RegistryAuth::Bearer("t".into()))));
    }

    #[test]
    fn a_helper_that_is_missing_is_an_error() {
        assert!(find(r#"{"credHelpers": {"r": "of-nobody"}}"#, "r").unwrap_err().contains("of-nobody"));
        assert!(find(r#"{"credsStore": "../evil"}"#, "r").unwrap_err().contains("no name"));
    }
}
