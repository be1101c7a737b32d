//! `seccomp explain`: what the profile of a configuration does.

use super::filter;
use crate::error::{Class, Error, Result};
use crate::seccomp::{self, Native, Options, is_absent, report};
use crate::spec::{self, Seccomp, Spec};
use std::path::{Path, PathBuf};

/// What is asked of `seccomp explain`.
#[derive(Debug, Clone, Default)]
pub struct ExplainRequest {
    /// config.json, a bundle's directory, or a file that holds the profile alone.
    pub config: PathBuf,
    /// A syscall's name or number; without it, the whole profile.
    pub syscall: Option<String>,
    /// Its arguments: numbers, decimal or hexadecimal.
    pub arguments: Vec<String>,
    /// Which architecture's syscall; the machine's own when absent.
    pub arch: Option<String>,
    /// The filter's instructions instead.
    pub dump: bool,
}

/// Explains a profile.
///
/// # Errors
/// When there is none, or something is wrong with it; [`Class::Usage`] for an unknown syscall.
pub fn explain_seccomp(request: &ExplainRequest) -> Result<String> {
    let (profile, options) = load(&request.config)?;
    if request.dump {
        return Ok(seccomp::dump(&seccomp::compile(&profile, &options)?));
    }
    let Some(syscall) = &request.syscall else { return report::overview(&profile, &options) };
    let abi = match &request.arch {
        Some(name) => report::abi_by_name(name)?,
        None => Native::HOST.abi(),
    };
    let arguments = match request.arguments.len() {
        0 => None,
        1..=6 => Some(numbers(&request.arguments)?),
        _ => return Err(usage("arguments", "a syscall has six at most")),
    };
    report::of_syscall(&profile, &options, abi, syscall, arguments.as_ref())
}

fn usage(what: &str, cause: impl Into<String>) -> Error {
    Error::new(Class::Usage, "explain the syscall").on(what).because(cause)
}

/// Reads the profile of a config.json, or a profile that stands alone.
fn load(path: &Path) -> Result<(Seccomp, Options)> {
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let on = || path.display().to_string();
    let text = spec::load::read(&path)?;
    let value: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|e| Error::new(Class::Config, "read the configuration").on(on()).because(e.to_string()))?;
    if value.get("defaultAction").is_some() {
        let profile = serde_json::from_value(value)
            .map_err(|e| Error::new(Class::Config, "read the profile").on(on()).because(e.to_string()))?;
        return Ok((profile, Options::default()));
    }
    let spec: Spec = spec::load::parse(&text, &path)?;
    let options = filter::options(&spec);
    match spec.linux.seccomp {
        Some(profile) if !is_absent(&profile) => Ok((profile, options)),
        _ => Err(Error::new(Class::Config, "read the configuration")
            .on(on())
            .because("it has no linux.seccomp: every syscall is allowed")),
    }
}

fn numbers(words: &[String]) -> Result<[u64; 6]> {
    let mut numbers = [0; 6];
    for (number, word) in numbers.iter_mut().zip(words) {
        let parsed = match word.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => word.parse().ok().or_else(|| word.parse::<i64>().ok().map(i64::cast_unsigned)),
        };
        *number = parsed.ok_or_else(|| usage(word, "an argument is a number, decimal or 0x…"))?;
    }
    Ok(numbers)
}
