//! The init that `--init` puts before the payload: PID 1 of the container, which passes signals on,
//! waits for whatever is left without a parent, and ends as the payload does.
//!
//! It is this very program, run anew under another name from the read-only mount that dhow runs from
//! (`src/sys/selfexe.rs`): nothing has to be in the image, nothing is mounted into the container, and nothing
//! of what dhow knew of the host is in its memory, as would be in a fork's that never execs. It runs as
//! the payload's user, with the payload's rights and under its seccomp filter.

use crate::log;
use crate::sys::clone::{self, exit_now};
use crate::sys::{fd, prctl, signal};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, execv, getpgrp, getpid, getppid, setpgid, tcsetpgrp};
use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStringExt;

/// The name under which it runs.
pub const NAME: &CStr = c"dhow-init";

/// What it is told: its name, the program's path, and the program's own arguments.
pub fn arguments(program: &CString, arguments: &[CString]) -> Vec<CString> {
    [NAME.to_owned(), program.clone()].into_iter().chain(arguments.iter().cloned()).collect()
}

/// Is the init, and never returns, when this process was started as such.
pub fn be_it_if_asked() {
    let mut words = std::env::args_os();
    if words.next().is_none_or(|name| name.as_encoded_bytes() != NAME.to_bytes()) {
        return;
    }
    let _ = nix::sys::prctl::set_name(NAME);
    let words: Vec<CString> = words.filter_map(|word| CString::new(word.into_vec()).ok()).collect();
    exit_now(match words.split_first() {
        Some((program, arguments)) if !arguments.is_empty() => stand_before(program, arguments),
        _ => {
            log::error("dhow-init is started by dhow in a container, not by hand");
            1
        }
    })
}

/// Starts the program and stays until it ends; its exit code.
fn stand_before(program: &CString, arguments: &[CString]) -> i32 {
    let failed = |doing: &str, errno: Errno| {
        log::error(&format!("dhow-init: {doing}: {}", errno.desc()));
        255
    };
    if let Err(errno) = signal::block_all() {
        return failed("block signals", errno);
    }
    // In another's pid namespace orphans would go to that one's init, and the payload outlive this one.
    let alone = getpid() == Pid::from_raw(1);
    if !alone && let Err(errno) = nix::sys::prctl::set_child_subreaper(true) {
        return failed("become a subreaper", errno);
    }
    match clone::fork() {
        Err(errno) => failed("fork", errno),
        Ok(Some(child)) => {
            // Whoever reads what the payload writes is to see the end when the payload closes it.
            fd::close_all_but(0, &[]);
            watch(child)
        }
        Ok(None) => {
            let Err(errno) = become_program(program, arguments, alone);
            let text = program.to_string_lossy();
            log::error(&format!("dhow-init: run {text:?}: {}", errno.desc()));
            exit_now(if errno == Errno::ENOENT { 127 } else { 126 })
        }
    }
}

/// The program gets a process group of its own, in the terminal's foreground: what is typed there reaches
/// it once, not once more through its parent.
fn become_program(program: &CString, arguments: &[CString], alone: bool) -> nix::Result<Infallible> {
    if !alone {
        prctl::die_with_parent(true)?;
        if getppid() == Pid::from_raw(0) {
            return Err(Errno::ESRCH);
        }
    }
    setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
    // Where standard input is no terminal, or not this session's, there is nothing to take.
    let _ = tcsetpgrp(std::io::stdin(), getpgrp());
    signal::reset_for_payload()?;
    execv(program, arguments)
}

/// Passes signals on and takes in orphans until the payload has ended.
fn watch(payload: Pid) -> i32 {
    loop {
        match signal::wait_any() {
            Ok(libc::SIGCHLD) => {
                if let Some(code) = reap(payload) {
                    return code;
                }
            }
            // The payload may be gone already; then SIGCHLD is next.
            Ok(number) => drop(signal::send_to(payload, number)),
            Err(Errno::EINTR) => {}
            Err(_) => return 255,
        }
    }
}

/// Waits for everybody who has ended; the payload's exit code if it was among them.
fn reap(payload: Pid) -> Option<i32> {
    let mut code = None;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == payload => code = Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == payload => code = Some(128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            // A number that has no name, from a real-time signal.
            Err(Errno::EINVAL) => {}
            Err(_) => return code.or(Some(255)),
        }
    }
}
