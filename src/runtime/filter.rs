//! The seccomp filter of a container: compiled at create, stored, installed again at exec, and its
//! listener sent to whom it is for.

use super::container::Context;
use super::create::FILTER;
use crate::error::{Class, Error, Result};
use crate::log;
use crate::process;
use crate::seccomp::{self, Options, ProcessState, Program, report};
use crate::spec::{Seccomp, Spec, State};
use crate::state::Init;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// crun's: whether a syscall's name that nobody knows is an error.
const FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";

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

/// The error for an init that a filter killed before it had become the payload; a warning for one
/// that it killed afterwards. Called for an init that has ended: the kernel's log is read only when
/// SIGSYS ended it.
pub(super) fn check_killed(init: Init) -> Result<()> {
    if exit_signal(init.pid) != Some(libc::SIGSYS) {
        return Ok(());
    }
    let words = process::filter::blame(init.pid);
    if words.ends_with("calling execve") {
        return Err(Error::new(Class::CommandDenied, "start the payload").because(words));
    }
    log::warn(&format!("the payload has ended: {words}"));
    Ok(())
}

/// The signal that ended a process for which nobody has waited yet: the last field of
/// proc_pid_stat(5), as far as the kernel shows it.
fn exit_signal(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status: i32 = stat.trim_end().rsplit(' ').next()?.parse().ok()?;
    Some(status & 0x7f)
}

/// Says why a payload ended, when a filter ended it.
pub(super) fn tell(pid: i32) {
    log::warn(&format!("the payload has ended: {}", process::filter::blame(pid)));
}
