//! `process`: what runs in the container, and with which rights.

use super::nullable;
use serde::Deserialize;

/// The process of a container, or the one that `exec --process` describes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    /// Whether it gets a terminal.
    pub terminal: bool,
    /// The terminal's initial size, in characters.
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as.
    #[serde(deserialize_with = "nullable")]
    pub user: User,
    /// argv; the first is looked up in the container's PATH when it has no slash.
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<String>,
    /// `NAME=value` pairs.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// The working directory, absolute in the container.
    pub cwd: String,
    /// The capability sets; absent means none.
    pub capabilities: Option<Capabilities>,
    /// Resource limits, setrlimit(2).
    #[serde(deserialize_with = "nullable")]
    pub rlimits: Vec<Rlimit>,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privileges: bool,
    /// The AppArmor profile to enter at exec.
    #[serde(deserialize_with = "nullable")]
    pub apparmor_profile: String,
    /// /proc/self/oom_score_adj, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// sched_setattr(2).
    pub scheduler: Option<Scheduler>,
    /// The SELinux label of the process.
    #[serde(deserialize_with = "nullable")]
    pub selinux_label: String,
    /// ioprio_set(2).
    pub io_priority: Option<IoPriority>,
    /// The CPUs of an exec'ed process, before and after it enters the cgroup.
    #[serde(rename = "execCPUAffinity")]
    pub exec_cpu_affinity: Option<ExecCpuAffinity>,
}

/// `process.consoleSize`, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// `process.user`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    /// The user id, in the container.
    pub uid: u32,
    /// The group id, in the container.
    pub gid: u32,
    /// The file mode creation mask; `None` leaves 0022.
    pub umask: Option<u32>,
    /// Supplementary groups.
    #[serde(deserialize_with = "nullable")]
    pub additional_gids: Vec<u32>,
    /// Windows only; parsed and ignored, as the specification says.
    #[serde(deserialize_with = "nullable")]
    pub username: String,
}

/// `process.capabilities`: names of capabilities(7), by set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Capabilities {
    /// The bounding set.
    #[serde(deserialize_with = "nullable")]
    pub bounding: Vec<String>,
    /// The effective set.
    #[serde(deserialize_with = "nullable")]
    pub effective: Vec<String>,
    /// The inheritable set.
    #[serde(deserialize_with = "nullable")]
    pub inheritable: Vec<String>,
    /// The permitted set.
    #[serde(deserialize_with = "nullable")]
    pub permitted: Vec<String>,
    /// The ambient set.
    #[serde(deserialize_with = "nullable")]
    pub ambient: Vec<String>,
}

/// One of `process.rlimits`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The hard limit; `u64::MAX` is unlimited.
    pub hard: u64,
    /// The soft limit; `u64::MAX` is unlimited.
    pub soft: u64,
}

/// `process.scheduler`, sched_setattr(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER`, `SCHED_FIFO`, `SCHED_RR`, `SCHED_BATCH`, `SCHED_ISO`, `SCHED_IDLE`,
    /// `SCHED_DEADLINE`.
    pub policy: String,
    /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: i32,
    /// `SCHED_FLAG_*`.
    #[serde(deserialize_with = "nullable")]
    pub flags: Vec<String>,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// `process.ioPriority`, ioprio_set(2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 (first) to 7 within the class.
    pub priority: i32,
}

/// `process.execCPUAffinity`: CPU lists such as `0-3,7`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExecCpuAffinity {
    /// While the process is still the runtime's.
    #[serde(deserialize_with = "nullable")]
    pub initial: String,
    /// Once it is in the container's cgroup.
    #[serde(rename = "final", deserialize_with = "nullable")]
    pub last: String,
}
