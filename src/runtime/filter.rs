//! The seccomp filter of a container: compiled at create, stored, installed again at exec, and its
//! listener sent to whom it is for.

use super::container::Context;
use super::create::FILTER;
use crate::error::{Class, Error, Result};
use crate::log;
use crate::process;
use crate::seccomp::{self, Options, ProcessState, Program, report};
use crate::spec::annotations::FAIL_UNKNOWN;
use crate::spec::{Seccomp, Spec, State};
use crate::state::{Init, Locked};
use crate::sys::pidfd;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// How a configuration wants its profile compiled.
pub(super) fn options(spec: &Spec) -> Options {
    let fails = spec.annotations.get(FAIL_UNKNOWN).is_some_and(|value| value != "0" && value != "false");
    Options { unknown_syscall_fails: fails, ..Options::default() }
}

/// Compiles the profile of a configuration, if it has one that means anything.
pub(super) fn compile(spec: &Spec) -> Result<Option<Program>> {
    let Some(profile) = &spec.linux.seccomp else { return Ok(None) };
    let program = seccomp::compile(profile, &options(spec))?;
    log::debug(|| {
        let unknown: Vec<&str> = report::unknown_names(profile).collect();
        format!("seccomp: {} instructions; unknown names, ignored: {unknown:?}", program.code().len())
    });
    log::debug(|| format!("seccomp filter flags: {}", program.flags() & !seccomp::flag::NEW_LISTENER));
    Ok(Some(program).filter(|program| !program.is_empty()))
}

/// The stored filter of a container.
pub(super) fn stored(context: &Context, id: &str) -> Result<Option<Program>> {
    match context.store.read_file(id, FILTER) {
        Ok(bytes) => Program::from_bytes(&bytes).map(Some).map_err(|error| error.on(id)),
        // The container is there, so it is only the filter that is not.
        Err(error) if error.class == Class::NoContainer => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sends a listener on to where the configuration says.
pub(super) fn send_listener(spec: &Spec, listener: &OwnedFd, pid: i32, state: &State<'_>) -> Result<()> {
    let absent = Seccomp::default();
    let profile = spec.linux.seccomp.as_ref().unwrap_or(&absent);
    let state = ProcessState::new(&spec.oci_version, pid, &profile.listener_metadata, state);
    seccomp::send_listener(Path::new(&profile.listener_path), listener.as_fd(), &state)
}

/// Whether an init that has closed its socket lives on as the payload. One that a filter killed for
/// calling execve never became it.
///
/// # Errors
/// [`Class::CommandDenied`] for such an init.
pub(super) fn lives_on(locked: &Locked, init: Init, process: Option<&OwnedFd>) -> Result<bool> {
    let stat = init.stat()?;
    let end_signal = match stat {
        Some(stat) => stat.end_signal,
        // Reaped already.
        None => process.and_then(|pidfd| pidfd::exit_status(pidfd.as_fd())).map_or(0, |code| code - 128),
    };
    if end_signal == libc::SIGSYS {
        // Only in this case is the filter looked at: under one that kills for execve, no payload
        // has ever run. The kernel's log cannot tell it for sure; it drops lines under load.
        let stored = std::fs::read(locked.path().join(FILTER)).unwrap_or_default();
        if Program::from_bytes(&stored).is_ok_and(|program| program.kills("execve")) {
            return Err(Error::new(Class::CommandDenied, "start the payload")
                .because("the seccomp profile killed it for calling execve")
                .hint(
                    "linux.seccomp must allow what the payload needs; `dhow seccomp explain` shows the rule",
                ));
        }
    }
    Ok(stat.is_some_and(|stat| !stat.has_ended()))
}

/// Says why a payload ended, when a filter ended it.
pub(super) fn tell(pid: i32) {
    log::warn(&format!("the payload has ended: {}", process::filter::blame(pid)));
}
