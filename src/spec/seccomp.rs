//! `linux.seccomp`: the profile as it is written; `crate::seccomp` gives it meaning.

use super::nullable;
use serde::Deserialize;

/// The `linux.seccomp` object. Names are kept as strings so that the error for an unknown one
/// can say in which rule it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Seccomp {
    /// What happens to a syscall that no rule names: `SCMP_ACT_*`.
    pub default_action: String,
    /// The errno of the default action; EPERM when absent.
    pub default_errno_ret: Option<u32>,
    /// `SCMP_ARCH_*`; the native one is always included.
    #[serde(deserialize_with = "nullable")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*`; absent is not the same as empty: it means the default flags.
    pub flags: Option<Vec<String>>,
    /// The socket that gets the listener of `SCMP_ACT_NOTIFY`.
    #[serde(deserialize_with = "nullable")]
    pub listener_path: String,
    /// Opaque text for the listener.
    #[serde(deserialize_with = "nullable")]
    pub listener_metadata: String,
    /// The rules.
    #[serde(deserialize_with = "nullable")]
    pub syscalls: Vec<SeccompRule>,
}

/// One of `seccomp.syscalls`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SeccompRule {
    /// Syscalls by name.
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    /// What happens to them.
    pub action: String,
    /// The errno, or the tracer's message.
    pub errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(deserialize_with = "nullable")]
    pub args: Vec<SeccompArg>,
}

/// One condition on a syscall's argument.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SeccompArg {
    /// 0 to 5.
    pub index: u32,
    /// What to compare with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What the masked argument must equal.
    pub value_two: u64,
    /// `SCMP_CMP_*`.
    pub op: String,
}
