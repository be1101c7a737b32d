//! The record of a container: what is on disk.

use super::supervision::{Exit, Supervision};
use crate::error::{Class, Context, Error, Result};
use crate::spec::{Hooks, Inherited};
use crate::sys::pidfd::{self, Stat};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// The version of the record's form. A record of a later one is refused, not guessed at.
pub const VERSION: u32 = 1;

/// How far a container has come, as far as dhow itself brought it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// `create` has begun.
    Creating,
    /// The init waits for `start`.
    Created,
    /// The payload was started.
    Started,
    /// The payload has ended, and the monitor is to start it anew.
    Restarting,
    /// `delete` has begun.
    Removing,
    /// `delete` could not take something back.
    Dead,
}

/// The init process: a pid is only meant together with its start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// In the runtime's pid namespace.
    pub pid: i32,
    /// proc_pid_stat(5) field 22, clock ticks since boot.
    pub start_time: u64,
}

impl Init {
    /// What /proc tells of this very process; `None` when it is gone and reaped.
    ///
    /// # Errors
    /// When /proc cannot be read: it may live or not.
    pub fn stat(self) -> Result<Option<Stat>> {
        let stat = pidfd::stat(Pid::from_raw(self.pid))
            .doing_on("look at the container's init", || self.pid.to_string())?;
        Ok(stat.filter(|stat| stat.start_time == self.start_time))
    }

    /// Whether this very process still lives; a zombie does not.
    ///
    /// # Errors
    /// Those of [`Init::stat`].
    pub fn is_alive(self) -> Result<bool> {
        Ok(self.stat()?.is_some_and(|stat| !stat.has_ended()))
    }
}

/// How to take back one resource outside the state directory. It is in the record before the
/// resource exists.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Undo {
    /// Remove the cgroup. The cgroups room knows what the text means.
    Cgroup(Box<RawValue>),
    /// Detach the rootfs, and all that is mounted in it: of a container that has no mount namespace
    /// that would take it along.
    Mount {
        /// Where it is attached.
        at: PathBuf,
        /// The mount that the path led to before: it is somebody else's, and stays.
        below: u64,
    },
    /// Remove a container's directory in the image store, its writable layer with it.
    Directory(PathBuf),
    /// Remove its monitoring group, and its class of service where that is its own, from resctrl.
    Service {
        /// Where resctrl is mounted.
        at: PathBuf,
        /// The class; empty is the default one.
        class: String,
        /// Whether the class is the container's alone.
        own: bool,
        /// The monitoring group in it.
        monitor: Option<String>,
    },
    /// Take the container from a network. The runtime knows what the text means.
    Network(Box<RawValue>),
}

/// What dhow knows of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the dhow that wrote it.
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// How far it has come.
    pub phase: Phase,
    /// Its init process, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Init>,
    /// The boot of the host in which it was created: pids of another boot mean nothing.
    pub boot: String,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The rootfs, absolute.
    pub rootfs: PathBuf,
    /// `ociVersion` of its configuration.
    pub oci_version: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The uid that created it.
    pub owner: u32,
    /// The kinds of namespaces that it has of its own, or joined, by their words in config.json.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Whether its pid namespace was made for it: then nothing outlives its init.
    #[serde(default)]
    pub private_pids: bool,
    /// Whether criu has made its processes: they have never called execve(2).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
    /// What processes that join it have as its init has it.
    #[serde(default, skip_serializing_if = "Inherited::is_nothing")]
    pub inherited: Inherited,
    /// Its annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The hooks that are still to run: poststart and poststop.
    #[serde(default, skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
    /// What delete has to take back, in the order in which it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Undo>,
    /// How the payload ended, where somebody waited for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Who stays with it, and what they are to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervision: Option<Box<Supervision>>,
    /// What could not be taken back, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// When it was last written: since when the container is what it is. Told by the filesystem.
    #[serde(skip)]
    pub changed: Option<SystemTime>,
    /// Whether it was created with `--no-pivot`, for a restart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_pivot: bool,
    /// Whether it was created with `--no-new-keyring`, likewise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_new_keyring: bool,
}

/// The first thing that is read of a record: whether the rest can be understood.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Record {
    /// A record of a container of which nothing exists yet.
    pub fn new(id: &str) -> Record {
        Record {
            version: VERSION,
            id: id.to_owned(),
            phase: Phase::Creating,
            init: None,
            boot: String::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            oci_version: String::new(),
            created: String::new(),
            owner: 0,
            namespaces: Vec::new(),
            private_pids: false,
            restored: false,
            inherited: Inherited::default(),
            annotations: BTreeMap::new(),
            hooks: Hooks::default(),
            undo: Vec::new(),
            exit: None,
            supervision: None,
            left: Vec::new(),
            changed: None,
            no_pivot: false,
            no_new_keyring: false,
        }
    }

    /// The bytes for the disk.
    ///
    /// # Errors
    /// [`Class::Internal`] when a path is not UTF-8.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|error| Error::new(Class::Internal, "write the state record").because(error.to_string()))
    }

    /// The record of the container `id` from its bytes.
    ///
    /// # Errors
    /// [`Class::Corrupt`] when they are no record, one of a later dhow, or another container's.
    pub fn from_json(text: &[u8], id: &str) -> Result<Record> {
        let corrupt = |cause: String| Error::new(Class::Corrupt, "read the state record").because(cause);
        let record: Record = serde_json::from_slice(text).map_err(|error| {
            match serde_json::from_slice::<Versioned>(text) {
                Ok(Versioned { version }) if version > VERSION => {
                    corrupt(format!("it has version {version}, and this dhow knows {VERSION}"))
                        .hint("use the dhow that made the container")
                }
                _ => corrupt(error.to_string()).hint("`dhow delete --force` removes it"),
            }
        })?;
        if record.version != VERSION {
            return Err(corrupt(format!("it has version {}, and this dhow knows {VERSION}", record.version))
                .hint("use the dhow that made the container"));
        }
        if record.id != id {
            return Err(corrupt(format!("it is that of container {:?}", record.id)));
        }
        Ok(record)
    }

    /// The cgroup's part of the journal, if the container has one.
    pub fn cgroup(&self) -> Option<&RawValue> {
        self.undo.iter().find_map(|undo| match undo {
            Undo::Cgroup(cgroup) => Some(cgroup.as_ref()),
            _ => None,
        })
    }

    /// Writes down what has become of a resource that is in the journal already.
    pub fn replace_undo(&mut self, new: Undo) {
        let kind = std::mem::discriminant(&new);
        match self.undo.iter_mut().find(|undo| std::mem::discriminant(*undo) == kind) {
            Some(undo) => *undo = new,
            None => self.undo.push(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_disk() {
        let mut record = Record::new("a");
        record.init = Some(Init { pid: 42, start_time: 7 });
        record.undo.push(Undo::Cgroup(RawValue::from_string("{\"v1\":[]}".into()).unwrap()));
        let text = record.to_json().unwrap();
        let back = Record::from_json(&text, "a").unwrap();
        assert_eq!(back.init, record.init);
        assert_eq!(back.cgroup().unwrap().get(), "{\"v1\":[]}");
        assert!(Record::from_json(&text, "b").unwrap_err().to_string().contains("container \"a\""));
    }

    #[test]
    fn a_later_version_is_refused_by_number() {
        let error = Record::from_json(br#"{"version":2,"something":"new"}"#, "a").unwrap_err();
        assert!(error.to_string().contains("it has version 2, and this dhow knows 1"), "{error}");
    }
}
