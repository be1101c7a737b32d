//! config.json: its types, and what must hold before anything is done.
//!
//! The types are our own and not oci-spec's: `docs/dependencies.md` has the reasons and the
//! figures. They know every field of runtime-spec 1.3 for Linux; a value is parsed as it stands,
//! and [`validate`] says what is wrong with it. Unknown properties are ignored, as the
//! specification demands.

pub mod annotations;
mod default_seccomp;
pub mod defaults;
mod hooks;
mod inherited;
mod linux;
pub mod load;
mod process;
mod resources;
mod scheduling;
mod seccomp;
mod state;
mod validate;

pub use hooks::{Hook, HookPoint, Hooks};
pub use inherited::Inherited;
pub use linux::{
    Device, IdMapping, IntelRdt, Linux, MemoryPolicy, Namespace, NamespaceKind, NetDevice, Personality,
    TimeOffset,
};
pub use process::{Capabilities, ConsoleSize, ExecCpuAffinity, IoPriority, Process, Rlimit, Scheduler, User};
pub use resources::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, InterfacePriority, Memory, NetworkResources, Pids, Rdma,
    Resources, ThrottleDevice, WeightDevice,
};
pub use scheduling::{MEMORY_FLAGS, MEMORY_MODES};
pub use seccomp::{Seccomp, SeccompArg, SeccompRule};
pub use state::State;
pub use validate::{validate, validate_process};

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// The whole of config.json (runtime-spec `config.md`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// The version of the specification that the bundle follows, `1.0.0` to `1.3.x`.
    pub oci_version: String,
    /// The process to run; absent in bundles that are only created and never started.
    pub process: Option<Process>,
    /// The container's root filesystem.
    pub root: Option<Root>,
    /// The UTS hostname.
    pub hostname: Option<String>,
    /// The UTS (NIS) domain name.
    pub domainname: Option<String>,
    /// Mounts besides the root, in the order in which they are made.
    #[serde(deserialize_with = "nullable")]
    pub mounts: Vec<Mount>,
    /// Programs run at points of the container's life.
    #[serde(deserialize_with = "nullable")]
    pub hooks: Hooks,
    /// Free-form metadata, shown by `dhow state`.
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
    /// What concerns Linux alone.
    #[serde(deserialize_with = "nullable")]
    pub linux: Linux,
    /// For other kernels; whether it is there.
    pub solaris: Option<IgnoredAny>,
    /// For another kernel; whether it is there.
    pub windows: Option<IgnoredAny>,
    /// For runtimes that start virtual machines; whether it is there.
    pub vm: Option<IgnoredAny>,
    /// For another kernel; whether it is there.
    pub zos: Option<IgnoredAny>,
    /// For another kernel; whether it is there.
    pub freebsd: Option<IgnoredAny>,
}

/// `root`: the container's root filesystem.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Root {
    /// The directory, absolute or relative to the bundle.
    pub path: String,
    /// Whether the container sees it read-only.
    pub readonly: bool,
}

/// One of `mounts`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Mount {
    /// Where in the container; a relative path is taken from `/`, as runc does.
    pub destination: String,
    /// The filesystem's type; empty or `none` for a bind mount.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// A device, a name, or the path to bind, relative to the bundle.
    #[serde(deserialize_with = "nullable")]
    pub source: String,
    /// Options of mount(8) and of the filesystem.
    #[serde(deserialize_with = "nullable")]
    pub options: Vec<String>,
    /// For an idmapped mount: how uids of the filesystem map to the mount's.
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// For an idmapped mount: how gids of the filesystem map to the mount's.
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
}

/// Go writes an absent list or map as `null`: both mean empty.
pub(crate) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The name of a kernel parameter with dots: the specification allows `net/ipv4/x` too, and in
/// that form a dot belongs to a name, as in `net/ipv4/conf/eth0.1/forwarding` (sysctl(8)).
pub(crate) fn dotted_sysctl(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key.as_bytes()[first] == b'/' => key.replace('/', "."),
        _ => key.to_owned(),
    }
}

/// The path of a kernel parameter below `/proc/sys`, in either form of its name.
pub fn sysctl_path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key.as_bytes()[first] == b'/' => key.to_owned(),
        // In the dotted form, a slash stands for a dot within a name.
        _ => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    }
}
