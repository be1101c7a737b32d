//! `doctor`: what is left of containers that are no more.
//!
//! It knows dhow's own by what dhow wrote: a directory below `--root` with a record or none, a cgroup
//! with a mark that names such a directory (cgroups/leftover.rs), a monitor whose arguments do, a
//! mount below `--root`. A container in whose directory a command works, or whose record says that
//! it is whole, is left alone, and so is everything without a sign of this `--root`.

use super::container::{Container, Context};
use super::delete::delete;
use super::supervise::MONITOR;
use crate::cgroups;
use crate::error::{Class, Context as _, Error, Result};
use crate::image::container;
use crate::rootfs::Overlay;
use crate::state::{Phase, Status, check_id};
use crate::sys::pidfd;
use nix::unistd::Pid;
use serde::Serialize;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Something that is left.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// `state`, `cgroup`, `process`, `mount` or `overlay`.
    pub kind: &'static str,
    /// Which.
    pub what: String,
    /// Why it belongs to nobody.
    pub why: String,
    /// What became of it: `found`, `removed`, or why it could not be removed.
    pub outcome: String,
    /// What a person can do, where `--fix` does nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Looks for what is left, and with `fix` removes it.
///
/// # Errors
/// When it cannot look.
pub fn doctor(context: &Context, fix: bool) -> Result<Vec<Finding>> {
    let mut doctor = Doctor { context, fix, findings: Vec::new() };
    // Containers first: a delete takes their cgroups, processes and all.
    doctor.containers()?;
    doctor.monitors()?;
    doctor.cgroups()?;
    doctor.mounts()?;
    doctor.overlays();
    Ok(doctor.findings)
}

struct Doctor<'a> {
    context: &'a Context,
    fix: bool,
    findings: Vec<Finding>,
}

impl Doctor<'_> {
    fn find(&mut self, kind: &'static str, what: String, why: String, remove: impl FnOnce() -> Result<()>) {
        let outcome = match self.fix.then(remove) {
            None => "found".to_owned(),
            Some(Ok(())) => "removed".to_owned(),
            Some(Err(error)) => error.to_string(),
        };
        self.findings.push(Finding { kind, what, why, outcome, hint: None });
    }

    fn tell(&mut self, kind: &'static str, what: String, why: String, hint: &str) {
        let (outcome, hint) = ("found".to_owned(), Some(hint.to_owned()));
        self.findings.push(Finding { kind, what, why, outcome, hint });
    }

    fn containers(&mut self) -> Result<()> {
        let context = self.context;
        for id in context.store.ids()? {
            let what = context.store.directory(&id).display().to_string();
            let held = match context.store.try_lock(&id) {
                // A command works on it, or it has just gone.
                Ok(None) | Err(Error { class: Class::NoContainer, .. }) => continue,
                Ok(Some(locked)) => locked.read(),
                Err(error) => Err(error),
            };
            let remove = || delete(context, &id, true);
            let container = match held {
                Ok(None) => {
                    self.find("state", what, "its create was killed before it wrote a record".into(), remove);
                    continue;
                }
                Ok(Some(record)) => Container::from_record(record)?,
                Err(error) => {
                    self.tell("state", what, error.to_string(), "`dhow delete --force` removes it");
                    continue;
                }
            };
            match (container.status, container.record.phase) {
                (Status::Removing, _) => {
                    self.find("state", what, "its delete was killed halfway".into(), remove);
                }
                (Status::Dead, Phase::Dead) => {
                    let why = format!("its delete failed: {}", container.record.left.join("; "));
                    self.find("state", what, why, remove);
                }
                (Status::Dead, Phase::Creating) => {
                    self.find("state", what, "its create was killed halfway".into(), remove);
                }
                (Status::Dead, _) => {
                    let why = "the host was rebooted under it".into();
                    self.tell("state", what, why, "`dhow restart` runs it again, `dhow delete` removes it");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Monitors whose container is gone. Its arguments name the root and the container.
    fn monitors(&mut self) -> Result<()> {
        let root = format!("--root={}", absolute(self.context.store.root())?.display());
        for entry in std::fs::read_dir("/proc").doing("look through the processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(process) = pidfd::open(Pid::from_raw(pid)) else { continue };
            // Of the process that the pidfd names, if it is there still when all has been read.
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<&str> =
                line.split(|&byte| byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
            let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
            let is_monitor = exe.file_name().and_then(|name| name.to_str()) == Some(MONITOR);
            let Some(id) = words.get(5).filter(|_| is_monitor && words.contains(&root.as_str())) else {
                continue;
            };
            // It is there before its container's first record is, by a moment.
            if self.context.store.directory(id).exists() || is_creating(pid) {
                continue;
            }
            if pidfd::send_signal(process.as_fd(), 0).is_ok() {
                let why = format!("it is the monitor of {id}, which is gone");
                self.find("process", format!("{pid} {}", words[0]), why, || {
                    pidfd::send_signal(process.as_fd(), libc::SIGKILL).doing("end the monitor")
                });
            }
        }
        Ok(())
    }

    fn cgroups(&mut self) -> Result<()> {
        let Ok(device) = std::fs::metadata(self.context.store.root()).map(|root| root.dev()) else {
            return Ok(());
        };
        let root = absolute(self.context.store.root())?;
        for marked in cgroups::marked().unwrap_or_default() {
            let Some((marked_device, path)) = marked.mark.split_once(' ') else { continue };
            let path = PathBuf::from(path);
            // Another mount namespace may have another directory of the same name.
            if marked_device != device.to_string() || path.parent() != Some(&root) || path.exists() {
                continue;
            }
            let pids = marked.pids()?;
            let list: Vec<String> = pids.iter().map(ToString::to_string).collect();
            let inside = if list.is_empty() { String::new() } else { format!("; in it: {}", list.join(" ")) };
            let why = format!("it was made for {}, which is gone{inside}", path.display());
            let what: Vec<String> =
                marked.directories.iter().map(|directory| directory.display().to_string()).collect();
            self.find("cgroup", what.join(" "), why, || marked.remove());
        }
        Ok(())
    }

    /// dhow mounts nothing below `--root`; whatever is mounted there keeps its directory.
    fn mounts(&mut self) -> Result<()> {
        let root = absolute(self.context.store.root())?;
        let table = std::fs::read_to_string("/proc/self/mountinfo").doing("read the mount table")?;
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from) {
            let Ok(below) = point.strip_prefix(&root) else { continue };
            let Some(id) = below.components().next() else { continue };
            if root.join(id).join("record.json").exists() {
                continue;
            }
            let why = "it is mounted where a container's state was".into();
            self.find("mount", point.display().to_string(), why, || {
                nix::mount::umount2(&point, nix::mount::MntFlags::MNT_DETACH).doing("unmount")
            });
        }
        Ok(())
    }

    /// Writable layers whose container is gone. Those of bundles are only told of: they are in a
    /// directory of the user's.
    fn overlays(&mut self) {
        let images = &self.context.images;
        for directory in std::fs::read_dir(container::place(images)).into_iter().flatten().flatten() {
            let (id, what) = (directory.file_name(), directory.path().display().to_string());
            let Some(id) = id.to_str().filter(|id| check_id(id).is_ok()) else { continue };
            if self.context.store.directory(id).exists() {
                continue;
            }
            let why = "no container of its name is there".to_owned();
            // A create has no record yet when the bundle is whole; it then takes some milliseconds.
            let is_new = directory.metadata().and_then(|data| data.modified()).is_ok_and(|made| {
                // Not yet made: the clock was set back in between.
                !SystemTime::now().duration_since(made).is_ok_and(|age| age >= A_CREATE_TAKES)
            });
            let is_used = || {
                Overlay::load(&directory.path())
                    .is_ok_and(|overlay| overlay.is_some_and(|it| it.is_mounted()))
            };
            if is_new {
                let hint = format!("`dhow delete {id}` removes it; --fix does when it is a minute old");
                self.tell("overlay", what, why, &hint);
            } else if is_used() {
                let why = "no container of its name is there, but it is mounted".into();
                self.tell("overlay", what, why, "a container of another --root or mount namespace has it");
            } else {
                self.find("overlay", what, why, || container::remove_left(images, id).map(drop));
            }
        }
        let notes = std::fs::read_dir(self.context.images.join("bundles"));
        for note in notes.into_iter().flatten().flatten() {
            let text = std::fs::read(note.path()).unwrap_or_default();
            let bundle = serde_json::from_slice::<serde_json::Value>(&text).ok();
            let bundle = bundle.as_ref().and_then(|note| note["bundle"].as_str()).map(PathBuf::from);
            let Some(bundle) = bundle.filter(|bundle| !bundle.join("config.json").exists()) else { continue };
            let left = ["upper", "work"].map(|part| bundle.join(part));
            for directory in left.iter().filter(|directory| directory.is_dir()) {
                let why = format!("its bundle {} has no config.json any more", bundle.display());
                let hint = "remove the directory if nothing in it is wanted";
                self.tell("overlay", directory.display().to_string(), why, hint);
            }
        }
    }
}

/// For so long a directory without a record may be that of a create at work.
const A_CREATE_TAKES: Duration = Duration::from_secs(60);

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).doing_on("find", || path.display().to_string())
}

/// Whether a monitor's `create` is at work.
fn is_creating(pid: i32) -> bool {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().any(|child| {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).any(|word| word == b"create")
    })
}
