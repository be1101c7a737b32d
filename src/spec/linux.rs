//! `linux`: namespaces, devices, and what else only this kernel has.

use super::{Resources, Seccomp, nullable};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `linux` object (config-linux.md).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    /// The user namespace's uid map.
    #[serde(deserialize_with = "nullable")]
    pub uid_mappings: Vec<IdMapping>,
    /// The user namespace's gid map.
    #[serde(deserialize_with = "nullable")]
    pub gid_mappings: Vec<IdMapping>,
    /// Kernel parameters, `kernel.domainname` or `net/ipv4/ip_forward`, written before the payload.
    #[serde(deserialize_with = "nullable")]
    pub sysctl: BTreeMap<String, String>,
    /// Limits of the cgroup.
    pub resources: Option<Resources>,
    /// The cgroup: absolute, relative, or `slice:prefix:name` for systemd.
    pub cgroups_path: Option<String>,
    /// The namespaces to create or to join; a type that is absent is shared with the runtime.
    #[serde(deserialize_with = "nullable")]
    pub namespaces: Vec<Namespace>,
    /// Device nodes to make.
    #[serde(deserialize_with = "nullable")]
    pub devices: Vec<Device>,
    /// Network devices to move into the container, by their name outside.
    #[serde(deserialize_with = "nullable")]
    pub net_devices: BTreeMap<String, NetDevice>,
    /// The syscall filter.
    pub seccomp: Option<Seccomp>,
    /// `shared`, `slave`, `private`, `unbindable`, each also with an `r` before it.
    #[serde(deserialize_with = "nullable")]
    pub rootfs_propagation: String,
    /// Paths that the container must not read.
    #[serde(deserialize_with = "nullable")]
    pub masked_paths: Vec<String>,
    /// Paths that the container must not write.
    #[serde(deserialize_with = "nullable")]
    pub readonly_paths: Vec<String>,
    /// The SELinux label of the mounts.
    #[serde(deserialize_with = "nullable")]
    pub mount_label: String,
    /// Cache and memory bandwidth allocation.
    pub intel_rdt: Option<IntelRdt>,
    /// set_mempolicy(2).
    pub memory_policy: Option<MemoryPolicy>,
    /// personality(2).
    pub personality: Option<Personality>,
    /// Offsets of the time namespace, by clock: `monotonic`, `boottime`.
    #[serde(deserialize_with = "nullable")]
    pub time_offsets: BTreeMap<String, TimeOffset>,
}

/// A range of ids: `container_id..+size` inside is `host_id..+size` outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// The first id inside.
    #[serde(rename = "containerID", default)]
    pub container_id: u32,
    /// The first id outside.
    #[serde(rename = "hostID", default)]
    pub host_id: u32,
    /// How many.
    #[serde(default)]
    pub size: u32,
}

/// One of `linux.namespaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The namespace to join; absent or empty to create one.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub path: String,
}

/// One of `linux.devices`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Device {
    /// Where in the container.
    pub path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The major number.
    pub major: i64,
    /// The minor number.
    pub minor: i64,
    /// Permissions; 0666 when absent.
    pub file_mode: Option<u32>,
    /// The owner, in the container.
    pub uid: Option<u32>,
    /// The group, in the container.
    pub gid: Option<u32>,
}

/// One of `linux.netDevices`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NetDevice {
    /// Its name inside; empty keeps the name.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

/// `linux.intelRdt`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IntelRdt {
    /// The class of service's directory in resctrl.
    #[serde(rename = "closID", deserialize_with = "nullable")]
    pub clos_id: String,
    /// Lines for `schemata`.
    #[serde(deserialize_with = "nullable")]
    pub schemata: Vec<String>,
    /// The L3 line.
    #[serde(deserialize_with = "nullable")]
    pub l3_cache_schema: String,
    /// The MB line.
    #[serde(deserialize_with = "nullable")]
    pub mem_bw_schema: String,
    /// Cache monitoring; replaced by `enable_monitoring` in 1.3.
    #[serde(rename = "enableCMT")]
    pub enable_cmt: bool,
    /// Bandwidth monitoring; replaced by `enable_monitoring` in 1.3.
    #[serde(rename = "enableMBM")]
    pub enable_mbm: bool,
    /// Makes a monitoring group of the container's own.
    pub enable_monitoring: bool,
}

impl IntelRdt {
    /// Checks what resctrl's files would misunderstand.
    ///
    /// # Errors
    /// [`crate::error::Class::Config`], which names the field.
    pub fn check(&self) -> Result<()> {
        let wrong = |field: &str, cause: String| Err(Error::config(format!("linux.intelRdt.{field}"), cause));
        let id = self.clos_id.as_str();
        let is_kernels = matches!(id, "." | ".." | "info" | "mon_groups" | "mon_data");
        if id != "/" && (is_kernels || id.contains(['/', '\n', '\0'])) {
            return wrong("closID", format!("{id:?} is no name of a class"));
        }
        let (cache, bandwidth) = (self.l3_cache_schema.as_str(), self.mem_bw_schema.as_str());
        // With code and data prioritization the lines are L3CODE: and L3DATA:.
        if !(cache.is_empty() || cache.starts_with("L3") || cache.starts_with("MB:")) {
            return wrong("l3CacheSchema", "does not start with L3".to_owned());
        }
        if bandwidth.trim_end().contains('\n') {
            return wrong("memBwSchema", "is more than one line".to_owned());
        }
        if !(bandwidth.is_empty() || bandwidth.starts_with("MB:")) {
            return wrong("memBwSchema", "does not start with MB:".to_owned());
        }
        let is_line = |line: &String| line.contains(':') && !line.trim_end().contains('\n');
        match self.schemata.iter().position(|line| !is_line(line)) {
            Some(at) => {
                wrong(&format!("schemata[{at}]"), format!("{:?} is no line of a schemata", self.schemata[at]))
            }
            None => Ok(()),
        }
    }
}

/// `linux.memoryPolicy`, set_mempolicy(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    /// `MPOL_DEFAULT`, `MPOL_BIND`, `MPOL_INTERLEAVE`, …
    pub mode: String,
    /// The nodes, as `0-3,7`.
    #[serde(deserialize_with = "nullable")]
    pub nodes: String,
    /// `MPOL_F_NUMA_BALANCING`, `MPOL_F_RELATIVE_NODES`, `MPOL_F_STATIC_NODES`.
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// `linux.personality`, personality(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// None are defined yet.
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
}

/// One of `linux.timeOffsets`: what is added to the clock inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanosecs: u32,
}

/// The kinds of namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespaceKind {
    /// user_namespaces(7)
    User,
    /// pid_namespaces(7)
    Pid,
    /// network_namespaces(7)
    Network,
    /// ipc_namespaces(7)
    Ipc,
    /// uts_namespaces(7)
    Uts,
    /// mount_namespaces(7)
    Mount,
    /// cgroup_namespaces(7)
    Cgroup,
    /// time_namespaces(7)
    Time,
}

impl NamespaceKind {
    /// Every kind.
    pub const ALL: [NamespaceKind; 8] = [
        NamespaceKind::User,
        NamespaceKind::Pid,
        NamespaceKind::Network,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Mount,
        NamespaceKind::Cgroup,
        NamespaceKind::Time,
    ];

    /// The word in config.json.
    pub fn name(self) -> &'static str {
        match self {
            NamespaceKind::User => "user",
            NamespaceKind::Pid => "pid",
            NamespaceKind::Network => "network",
            NamespaceKind::Ipc => "ipc",
            NamespaceKind::Uts => "uts",
            NamespaceKind::Mount => "mount",
            NamespaceKind::Cgroup => "cgroup",
            NamespaceKind::Time => "time",
        }
    }

    /// The file under `/proc/PID/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            NamespaceKind::Network => "net",
            NamespaceKind::Mount => "mnt",
            other => other.name(),
        }
    }

    /// The kind of a word in config.json.
    pub fn from_name(name: &str) -> Option<NamespaceKind> {
        NamespaceKind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl Linux {
    /// The entry for a kind of namespace; `None` when the container shares the runtime's.
    pub fn namespace(&self, kind: NamespaceKind) -> Option<&Namespace> {
        self.namespaces.iter().find(|namespace| namespace.kind == kind.name())
    }

    /// Whether the container has a namespace of this kind other than the runtime's.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some()
    }

    /// Whether a namespace of this kind is to be created, not joined.
    pub fn creates(&self, kind: NamespaceKind) -> bool {
        self.namespace(kind).is_some_and(|namespace| namespace.path.is_empty())
    }
}
