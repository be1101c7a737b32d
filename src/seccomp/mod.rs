//! `linux.seccomp`: a profile becomes a BPF program, the program is installed, and what it decides
//! can be explained.
//!
//! A profile means what runc and crun make of it by way of libseccomp; `docs/seccomp.md` lists the
//! rules. [`compile`] is pure; [`explain`] reads the same profile a second time, independently and
//! simply, and the tests compare the two.

pub mod arch;
mod blame;
mod chain;
mod dump;
mod emit;
pub mod explain;
mod lower;
pub mod names;
mod notify;
mod profile;
mod program;
pub mod report;
mod table;
mod tree;
pub mod vm;

#[cfg(test)]
mod kernel_test;
#[cfg(test)]
mod model_test;
#[cfg(test)]
mod peer_test;
#[cfg(test)]
mod sample;

pub use arch::{Abi, Native};
pub use blame::{Killed, killed};
pub use dump::{action, dump};
pub use notify::{ProcessState, send_listener};
pub use program::Program;

use crate::error::Result;
use crate::spec::Seccomp;

/// `SECCOMP_RET_*`: what a filter returns.
pub(crate) mod ret {
    pub const KILL_PROCESS: u32 = 0x8000_0000;
    pub const KILL_THREAD: u32 = 0;
    pub const TRAP: u32 = 0x0003_0000;
    pub const ERRNO: u32 = 0x0005_0000;
    pub const USER_NOTIF: u32 = 0x7fc0_0000;
    pub const TRACE: u32 = 0x7ff0_0000;
    pub const LOG: u32 = 0x7ffc_0000;
    pub const ALLOW: u32 = 0x7fff_0000;
    /// The part that says what to do.
    pub const ACTION: u32 = 0xffff_0000;
    /// The part that goes with it.
    pub const DATA: u32 = 0xffff;
}

/// `SECCOMP_FILTER_FLAG_*`: how a filter is installed.
pub(crate) mod flag {
    pub const TSYNC: u32 = 1 << 0;
    pub const LOG: u32 = 1 << 1;
    pub const SPEC_ALLOW: u32 = 1 << 2;
    pub const NEW_LISTENER: u32 = 1 << 3;
    pub const TSYNC_ESRCH: u32 = 1 << 4;
    pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;
    /// Not the kernel's: nobody asked for these flags, so a kernel without them is no failure.
    pub const DEFAULTED: u32 = 1 << 31;
}

/// How to compile a profile.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The kernel's architecture.
    pub native: Native,
    /// Whether a name that no architecture has is an error (crun's annotation
    /// `run.oci.seccomp_fail_unknown_syscall`); otherwise it is ignored.
    pub unknown_syscall_fails: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { native: Native::HOST, unknown_syscall_fails: false }
    }
}

/// Compiles a profile for a kernel. An empty object means no filter, as for runc.
pub fn compile(profile: &Seccomp, options: &Options) -> Result<Program> {
    if is_absent(profile) {
        return Ok(Program::default());
    }
    let profile = profile::parse(profile, options)?;
    Ok(Program::new(lower::program(&profile)?, profile.flags))
}

/// `linux.seccomp` of the specification's features document.
pub fn features() -> serde_json::Value {
    let flags: Vec<&str> = profile::FLAGS.iter().map(|(name, _)| *name).collect();
    let supported = |flag: u32| {
        // Says how a listener is waited for, so it goes with one.
        let with = if flag == flag::WAIT_KILLABLE_RECV { flag::NEW_LISTENER } else { 0 };
        crate::sys::seccomp::knows_flags(flag | with)
    };
    let supported: Vec<&str> =
        profile::FLAGS.iter().filter(|(_, flag)| supported(*flag)).map(|(name, _)| *name).collect();
    serde_json::json!({
        "enabled": true,
        "actions": profile::ACTIONS,
        "operators": profile::OPERATORS,
        "archs": arch::spec_names().collect::<Vec<_>>(),
        "knownFlags": flags,
        "supportedFlags": supported,
    })
}

/// Whether the object stands for no filter at all: no default action and no rules.
pub fn is_absent(profile: &Seccomp) -> bool {
    profile.default_action.is_empty() && profile.syscalls.is_empty()
}
