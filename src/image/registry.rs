//! Images from and to registries, by way of the program `dhow-registry`: HTTP, TLS and an async
//! runtime are three times the size of dhow itself, and have no place in a runtime's process.

use super::import::{ImportRequest, Imported, import};
use super::layers::Progress;
use super::reference::Reference;
use super::store::{Image, Store};
use crate::error::{Class, Context as _, Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

/// The program that talks to registries.
const PROGRAM: &str = "dhow-registry";

/// How a registry is reached.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Access {
    /// For each registry, those that are asked first: hosts, or URLs.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries without TLS; those on loopback need not be told.
    pub plain_http: Vec<String>,
    /// Certificates that are trusted beside the system's.
    pub ca_file: Option<PathBuf>,
}

impl Access {
    /// The file that an administrator writes.
    pub const FILE: &str = "/etc/dhow/registries.json";

    /// Reads it; nothing is there by default.
    ///
    /// # Errors
    /// [`Class::Config`] when it cannot be read.
    pub fn load(path: &Path) -> Result<Access> {
        let shown = || path.display().to_string();
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Access::default()),
            text => text.doing_on("read", shown)?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::new(Class::Config, "read").on(shown()).because(error.to_string()))
    }

    fn command(&self, verb: &str, name: &Reference) -> Command {
        let (registry, repository) = name.repository.split_once('/').unwrap_or(("docker.io", ""));
        let mut command = Command::new(program());
        command.args([verb, "--registry", registry, "--repository", repository, "--reference"]);
        command.arg(name.digest.map_or_else(|| name.tag.clone(), |digest| digest.to_string()));
        if self.plain_http.iter().any(|one| one == registry) {
            command.arg("--plain-http");
        }
        if let Some(file) = &self.ca_file {
            command.arg("--ca-file").arg(file);
        }
        if verb == "pull" {
            for mirror in self.mirrors.get(registry).into_iter().flatten() {
                command.arg("--mirror").arg(mirror);
            }
        }
        command
    }
}

/// Beside dhow itself, or wherever PATH has it.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|own| own.with_file_name(PROGRAM));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PROGRAM.into())
}

/// Fetches an image and imports it. What the registry sends is checked as any import is.
///
/// # Errors
/// When the registry does not give it, or it is refused.
pub fn pull(store: &Store, name: &Reference, access: &Access, request: &ImportRequest) -> Result<Imported> {
    let workplace = store.workplace()?;
    let layout = workplace.fresh();
    std::fs::create_dir(&layout).doing("make a directory in the image store")?;
    let mut command = access.command("pull", name);
    command.arg("--platform").arg(request.platform.to_string()).arg("--to").arg(&layout);
    command.arg("--have").arg(store.root().join("blobs/sha256"));
    run(command, "pull", name, &request.progress)?;
    let request = ImportRequest {
        from: layout,
        name: Some(request.name.clone().unwrap_or_else(|| name.kept_as())),
        ..request.clone()
    };
    let mut imported = import(store, &request)?;
    imported.pop().ok_or_else(|| Error::new(Class::Internal, "pull").on(name.to_string()))
}

/// Sends an image to a registry.
///
/// # Errors
/// When the registry does not take it.
pub fn push(
    store: &Store,
    image: &Image,
    name: &Reference,
    access: &Access,
    progress: &Progress,
) -> Result<()> {
    let mut command = access.command("push", name);
    command.arg("--blobs").arg(store.root().join("blobs/sha256")).arg("--manifest").arg(image.digest.hex());
    run(command, "push", name, progress)
}

/// Runs the program, passes on how far it is, and makes an error of its last words.
fn run(mut command: Command, doing: &'static str, name: &Reference, progress: &Progress) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::new(Class::Config, "start").on(PROGRAM).because(error.to_string());
        if missing { error.hint("it is built and installed beside dhow") } else { error }
    })?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            if let [read, total] = numbers[..] {
                progress.expect(total);
                progress.read.store(read, Ordering::Relaxed);
            }
        }
    }
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(64 * 1024).read_to_string(&mut words);
    }
    let status = child.wait().doing("wait for dhow-registry")?;
    progress.read.store(0, Ordering::Relaxed);
    match status.success() {
        true => Ok(()),
        false => {
            let cause = match status.signal() {
                // It has a limit to its memory, which only a document without end can reach.
                Some(libc::SIGABRT) => "the registry sends more than a document may have".to_owned(),
                Some(signal) => format!("{PROGRAM} was ended by signal {signal}"),
                None => words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
            };
            // It tells what it has to tell in words.
            let full = cause.contains(&format!("(os error {})", libc::ENOSPC));
            let error = Error::new(Class::Config, doing).on(name.to_string()).because(cause);
            Err(if full { error.hint(super::MAKE_ROOM) } else { error })
        }
    }
}
