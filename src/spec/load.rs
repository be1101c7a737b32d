//! Reading config.json and `process` documents from disk.

use super::{Process, Spec};
use crate::error::{Class, Error, Result};
use serde::de::DeserializeOwned;
use std::io::Read;
use std::path::Path;

/// The most that a config.json may have, in bytes: thousands of mounts fit, a runaway file does
/// not fill the memory.
pub const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A parsed config.json and the text that it was parsed from.
#[derive(Debug)]
pub struct Loaded {
    /// What it says.
    pub spec: Spec,
    /// Its bytes, which the state directory keeps for later commands.
    pub text: Vec<u8>,
}

/// Reads a bundle's config.json.
///
/// # Errors
/// [`Class::Config`] when it is missing, too large, or not what it should be; a syntax or type
/// error is named with line and column.
pub fn load(bundle: &Path) -> Result<Loaded> {
    let path = bundle.join("config.json");
    let text = read(&path)?;
    let spec = parse(&text, &path)?;
    Ok(Loaded { spec, text })
}

/// Reads the document of `exec --process`.
///
/// # Errors
/// As for [`load`].
pub fn load_process(path: &Path) -> Result<Process> {
    parse(&read(path)?, path)
}

/// Reads a file that holds one JSON document.
///
/// # Errors
/// As for [`load`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let errno = crate::sys::io_errno(&error);
        let hint = match errno {
            nix::errno::Errno::ENOENT if path.ends_with("config.json") => {
                "is this a bundle? `dhow spec` writes a config.json to start from"
            }
            _ => return Error::system("read", errno).class(Class::Config).on(path.display().to_string()),
        };
        Error::system("read", errno).class(Class::Config).on(path.display().to_string()).hint(hint)
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = Vec::with_capacity(16 * 1024);
    file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MOST_BYTES {
        let cause = format!("is larger than {} MiB", MOST_BYTES >> 20);
        return Err(Error::new(Class::Config, "read").on(path.display().to_string()).because(cause));
    }
    Ok(text)
}

/// Parses one JSON document; the error names the file, line and column.
///
/// # Errors
/// [`Class::Config`].
pub fn parse<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<T> {
    // serde takes a list for a structure, field by field; a configuration is never meant so.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
        return Err(Error::new(Class::Config, "parse")
            .on(path.display().to_string())
            .because("it holds a list, where an object is expected at line 1 column 1"));
    }
    serde_json::from_slice(text).map_err(|error| {
        // serde_json ends its messages with "at line L column C".
        Error::new(Class::Config, "parse").on(path.display().to_string()).because(error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_line_and_column() {
        let error = parse::<Spec>(b"{\n \"ociVersion\": 1\n}", Path::new("/b/config.json")).unwrap_err();
        assert_eq!(error.class, Class::Config);
        assert!(error.to_string().starts_with("parse: /b/config.json: invalid type"), "{error}");
        assert!(error.to_string().contains("line 2 column 16"), "{error}");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_crash() {
        let text = "{\"a\":".repeat(100_000);
        assert!(parse::<Spec>(text.as_bytes(), Path::new("x")).is_err());
        assert!(parse::<Spec>(b" []", Path::new("x")).unwrap_err().to_string().contains("a list"));
    }

    #[test]
    fn a_missing_file_says_what_to_do() {
        let error = load(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/config.json: no such file or directory"), "{error}");
        assert!(error.contains("dhow spec"), "{error}");
    }

    #[test]
    fn go_writes_null_for_empty() {
        let text = br#"{"ociVersion":"1.2.0","mounts":null,"hooks":null,"linux":{"devices":null,
            "namespaces":null,"seccomp":null,"resources":{"devices":null,"memory":null}},
            "process":{"args":["a"],"env":null,"cwd":"/","rlimits":null,"capabilities":null,
            "user":{"additionalGids":null}}}"#;
        let spec: Spec = parse(text, Path::new("config.json")).unwrap();
        assert_eq!(spec.process.unwrap().args, ["a"]);
        assert!(spec.linux.seccomp.is_none());
    }
}
