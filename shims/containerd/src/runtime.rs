//! The dhow binary, as the shim calls it.

use crate::options::Options;
use dhow_shim_common::sys;
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::Deserialize;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Where `--root` is, unless the options say so.
const ROOT: &str = "/run/containerd/dhow";
/// What the shim writes into a bundle, so that `delete` knows how to call dhow.
const NOTE: &str = "dhow-shim";

/// How one container's dhow is called.
#[derive(Debug, Clone)]
pub struct Runtime {
    pub binary: String,
    root: String,
    systemd_cgroup: bool,
    bundle: PathBuf,
}

/// How a command of dhow's ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    /// The error that it logged last.
    pub message: String,
    /// What it printed, where that was asked for.
    pub stdout: Vec<u8>,
}

#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl Runtime {
    pub fn new(options: &Options, own: &str, namespace: &str, bundle: &Path) -> Runtime {
        let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
        Runtime {
            binary: or(&options.binary, own),
            root: format!("{}/{namespace}", or(&options.root, ROOT)),
            systemd_cgroup: options.systemd_cgroup,
            bundle: bundle.to_owned(),
        }
    }

    /// Leaves in the bundle what `delete` needs to know.
    ///
    /// # Errors
    /// Why it cannot be written.
    pub fn note(&self) -> Result<(), String> {
        let text = format!("{}\n{}\n{}\n", self.binary, self.root, self.systemd_cgroup);
        let path = self.bundle.join(NOTE);
        fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))
    }

    /// Takes it back: dhow has nothing of the container any more.
    pub fn forget(&self) {
        let _ = fs::remove_file(self.bundle.join(NOTE));
    }

    /// What was left there; `None` when nothing was made, or all is gone.
    pub fn noted(bundle: &Path) -> Option<Runtime> {
        let text = fs::read_to_string(bundle.join(NOTE)).ok()?;
        let mut lines = text.lines();
        let (binary, root) = (lines.next()?.to_owned(), lines.next()?.to_owned());
        Some(Runtime {
            binary,
            root,
            systemd_cgroup: lines.next() == Some("true"),
            bundle: bundle.to_owned(),
        })
    }

    /// `dhow delete --force`, by a process that has nothing else to do meanwhile.
    ///
    /// # Errors
    /// What could not be taken back.
    pub fn delete(&self, id: &str) -> Result<(), String> {
        let log = self.bundle.join("delete.json");
        let command = self.words(&log, &["delete", "--force", id])?;
        let null = sys::null().map_err(|errno| format!("open /dev/null: errno {errno}"))?;
        let child = sys::spawn(&command, [null.as_raw_fd(); 3], false)
            .map_err(|errno| format!("fork: errno {errno}"))?;
        let status =
            Pid::from_raw(child).and_then(|child| waitpid(Some(child), WaitOptions::empty()).ok().flatten());
        match status.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            _ => {
                let said = last_error(&fs::read(&log).unwrap_or_default());
                Err(format!("dhow delete --force {id}: {said}"))
            }
        }
    }

    /// A command with the global options before it.
    ///
    /// # Errors
    /// A word that no program can be given.
    pub fn words(&self, log: &Path, command: &[&str]) -> Result<Vec<CString>, String> {
        let log = log.display().to_string();
        let mut words =
            vec![self.binary.as_str(), "--root", &self.root, "--log", &log, "--log-format", "json"];
        words.extend(self.systemd_cgroup.then_some("--systemd-cgroup"));
        words.extend(command);
        let word = |word: &&str| CString::new(*word).map_err(|_| format!("{word:?}: a NUL byte"));
        words.iter().map(word).collect()
    }
}

/// The error that a command logged last.
pub fn last_error(log: &[u8]) -> String {
    let lines = log.rsplit(|byte| *byte == b'\n');
    let mut lines = lines.filter_map(|line| serde_json::from_slice::<LogLine>(line).ok());
    lines.find(|line| line.level == "error").map(|line| line.msg).unwrap_or_default()
}

/// What the shim wants to know of a bundle's config.json.
#[derive(Debug, Default, Deserialize)]
pub struct Config {
    #[serde(default)]
    annotations: Option<Annotations>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    sandbox: Option<String>,
    #[serde(rename = "io.containerd.runc.v2.group")]
    group: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Config {
    /// Reads it; an empty one when it cannot be read, which dhow will tell.
    pub fn read(bundle: &Path) -> Config {
        let text = fs::read(bundle.join("config.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// The name that containers of one pod share.
    pub fn group(self) -> Option<String> {
        let annotations = self.annotations?;
        annotations.group.or(annotations.sandbox)
    }

    /// Whether the kernel ends all processes of the container with its init.
    pub fn has_own_pids(&self) -> bool {
        let namespaces = self.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
        namespaces.is_some_and(|all| all.iter().any(|one| one.kind == "pid" && one.path.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_named_by_its_annotations() {
        let config = |text: &str| serde_json::from_str::<Config>(text).unwrap();
        let pod = r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"p","x":"y"},"linux":{"namespaces":[{"type":"pid"}]}}"#;
        assert!(config(pod).has_own_pids());
        assert_eq!(config(pod).group().as_deref(), Some("p"));
        assert_eq!(config(r#"{"annotations":null}"#).group(), None);
        let shared = r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"},{"type":"mount"}]}}"#;
        assert!(!config(shared).has_own_pids());
    }
}
