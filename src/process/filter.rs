//! The seccomp filter comes over the process.
//!
//! A filter without a listener is installed right before execve(2), whether `noNewPrivileges` is set
//! or not: what dhow itself has to do is then no concern of the profile's. Without
//! `noNewPrivileges` seccomp(2) asks for CAP_SYS_ADMIN, so that one capability is kept until then
//! ([`super::credentials`]); execve(2) takes it.
//!
//! A listener has to be handed over while the creating command is there to take it on, so a filter
//! that has one comes earlier, before the init says that it is ready.

use super::protocol::{Channel, Message};
use crate::error::{Class, Context, Error, Result};
use crate::seccomp::{self, Program};
use crate::sys::clone::{Forked, clone3, exit_now};
use crate::sys::seccomp::Mailbox;
use crate::sys::{fd, prctl, signal};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use std::os::fd::{IntoRawFd, RawFd};
use std::time::{Duration, Instant};

/// What the mailbox holds besides a descriptor's number.
const NOT_YET: i32 = -1;
const GIVEN_UP: i32 = -2;
const SENT: i32 = -3;
const NOT_SENT: i32 = -4;

/// How long a helper is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Installs a filter that has a listener, and sends the listener to the parent. Any other filter is
/// given back, for [`install`].
///
/// # Errors
/// seccomp(2)'s; when the listener could not be sent.
pub fn hand_over<'a>(filter: Option<&'a Program>, channel: &Channel) -> Result<Option<&'a Program>> {
    let Some(program) = filter.filter(|program| program.needs_listener()) else { return Ok(filter) };
    let doing = "hand over the seccomp listener";
    let mailbox = Mailbox::new(NOT_YET).doing(doing)?;
    signal::forget_children().doing(doing)?;
    // From the filter's installation on, sendmsg(2) may be denied, or wait for the very listener
    // that it is to send. A helper without a filter, which shares the descriptors, sends it.
    match clone3(CloneFlags::CLONE_FILES, 0, None).doing(doing)? {
        Forked::Child => help(&mailbox, channel),
        Forked::Parent(_) => {}
    }
    let installed = program.install();
    // No syscall between here and the helper's word.
    let listener = match installed {
        Ok(Some(listener)) => listener,
        Ok(None) => return Err(Error::new(Class::Internal, doing).because("there is none")),
        Err(error) => {
            mailbox.put(GIVEN_UP);
            return Err(error);
        }
    };
    // The helper closes it: here close(2) may be under the filter.
    mailbox.put(listener.into_raw_fd());
    let begin = Instant::now();
    loop {
        match mailbox.get() {
            SENT => return Ok(None),
            NOT_SENT => break,
            _ if begin.elapsed() > PATIENCE => break,
            _ => std::hint::spin_loop(),
        }
    }
    Err(Error::new(Class::System, doing).because("the parent did not take it"))
}

/// The helper's life: waits for the listener's number, sends it, ends.
fn help(mailbox: &Mailbox, channel: &Channel) -> ! {
    if prctl::die_with_parent(true).is_err() {
        mailbox.put(NOT_SENT);
        exit_now(1);
    }
    let begin = Instant::now();
    let fd: RawFd = loop {
        match mailbox.get() {
            NOT_YET if begin.elapsed() < PATIENCE => std::thread::sleep(Duration::from_micros(20)),
            fd if fd >= 0 => break fd,
            _ => exit_now(1),
        }
    };
    // The table of descriptors is shared: once sent, this closes the init's.
    let sent = fd::adopt(fd).is_some_and(|listener| channel.send(&Message::Listener(listener)).is_ok());
    mailbox.put(if sent { SENT } else { NOT_SENT });
    exit_now(0)
}

/// Installs a filter, if there is one, as the last step before execve(2).
///
/// # Errors
/// seccomp(2)'s.
pub fn install(filter: Option<&Program>) -> Result<()> {
    match filter {
        Some(program) => program.install().map(drop),
        None => Ok(()),
    }
}

/// Says so when it was the filter that answered execve(2).
pub fn explain_exec(error: Error, errno: Errno, filter: Option<&Program>) -> Error {
    match filter.and_then(|program| program.errno_of("execve")) {
        Some(answer) if answer == errno as i32 => error
            .because("the seccomp profile denies execve")
            .hint("linux.seccomp must allow what the payload needs; `dhow seccomp explain` shows the rule"),
        _ => error,
    }
}

/// What the kernel's log tells of a process that SIGSYS ended.
pub fn blame(pid: i32) -> String {
    match seccomp::killed(pid) {
        Some(killed) => format!("the seccomp profile killed it for calling {}", killed.describe()),
        None => "the seccomp profile killed it; the kernel's log does not say for which syscall".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::{Options, compile};
    use crate::sys::seccomp::probe;
    use nix::sys::wait::{WaitStatus, waitpid};
    use std::os::fd::AsFd;

    fn program(names: &str) -> Program {
        let profile = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/agent",
                "syscalls":[{{"names":[{names}],"action":"SCMP_ACT_NOTIFY"}}]}}"#
        );
        compile(&serde_json::from_str(&profile).unwrap(), &Options::default()).unwrap()
    }

    /// The parent's side: takes the listener, lets everything go on, and hears the last word.
    fn child_under(program: &Program) -> WaitStatus {
        let (ours, theirs) = Channel::pair().unwrap();
        let child = match clone3(CloneFlags::empty(), 0, None).unwrap() {
            Forked::Child => {
                drop(ours);
                let well = nix::sys::prctl::set_no_new_privs().is_ok()
                    && matches!(hand_over(Some(program), &theirs), Ok(None))
                    && theirs.send(&Message::Ready).is_ok();
                exit_now(i32::from(!well))
            }
            Forked::Parent(child) => child,
        };
        drop(theirs);
        let Message::Listener(listener) = ours.expect().unwrap() else { panic!("the listener comes first") };
        std::thread::scope(|scope| {
            scope.spawn(|| probe::let_all_go_on(listener.as_fd()));
            assert!(matches!(ours.expect(), Ok(Message::Ready)));
            waitpid(child.pid, None).unwrap()
        })
    }

    #[test]
    fn a_listener_for_what_dhow_itself_needs_is_handed_over() {
        // With a listener on each of these, the process could not hand it over itself.
        let all =
            r#""sendmsg","sendto","close","clone3","wait4","waitid","clock_nanosleep","exit_group","mmap""#;
        assert!(matches!(child_under(&program(all)), WaitStatus::Exited(_, 0)));
    }

    #[test]
    fn a_filter_without_listener_is_given_back() {
        let (ours, _theirs) = Channel::pair().unwrap();
        let profile = serde_json::from_str(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
        let program = compile(&profile, &Options::default()).unwrap();
        assert_eq!(hand_over(Some(&program), &ours).unwrap(), Some(&program));
        assert_eq!(hand_over(None, &ours).unwrap(), None);
    }

    #[test]
    fn a_denied_exec_is_explained() {
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["execve"],"action":"SCMP_ACT_ERRNO"}]}"#;
        let program = compile(&serde_json::from_str(profile).unwrap(), &Options::default()).unwrap();
        let error = |errno| explain_exec(Error::system("execute", errno), errno, Some(&program)).to_string();
        assert!(error(Errno::EPERM).contains("the seccomp profile denies execve"));
        assert!(!error(Errno::EACCES).contains("seccomp"));
    }
}
