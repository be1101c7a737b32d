//! Making a child that the caller talks to.

use super::protocol::{Channel, Message, out_of_turn};
use crate::error::{Error, Result};
use crate::namespaces::create_failed;
use crate::sys::clone::{Child, Forked, clone3, exit_now};
use crate::sys::prctl;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use std::convert::Infallible;
use std::os::fd::BorrowedFd;

/// A child and the socket to it.
#[derive(Debug)]
pub struct Spawned {
    /// Pid and pidfd.
    pub child: Child,
    /// The parent's end.
    pub channel: Channel,
}

/// Forks a child in new namespaces. It runs `body`, which ends in execve(2) or answers the error
/// that is then sent to the parent. Should the parent end first, the child is killed, until
/// `body` says otherwise.
///
/// # Errors
/// clone3(2)'s, with the limit or the privilege that is the usual cause.
pub fn spawn(
    flags: (CloneFlags, u64),
    cgroup: Option<BorrowedFd<'_>>,
    body: impl FnOnce(&Channel) -> Result<Infallible>,
) -> Result<Spawned> {
    let (ours, theirs) = Channel::pair()?;
    match clone3(flags.0, flags.1, cgroup).map_err(clone_failed)? {
        Forked::Parent(child) => Ok(Spawned { child, channel: ours }),
        Forked::Child => {
            drop(ours);
            run(&theirs, body)
        }
    }
}

/// As [`spawn`], with a short-lived process between, which runs `enter` first: for namespaces
/// that only its children are in, and for those that must be joined before the child's own user
/// namespace is made. The child is the caller's all the same (CLONE_PARENT).
///
/// # Errors
/// Those of [`spawn`], and what `enter` answers.
pub fn spawn_staged(
    flags: (CloneFlags, u64),
    cgroup: Option<BorrowedFd<'_>>,
    enter: impl FnOnce() -> Result<()>,
    body: impl FnOnce(&Channel) -> Result<Infallible>,
) -> Result<Spawned> {
    let (ours, theirs) = Channel::pair()?;
    let mut ours = Some(ours);
    let stage = spawn((CloneFlags::empty(), 0), cgroup, |stage| {
        // The caller's alone, or nobody would see it close.
        ours = None;
        enter()?;
        match clone3(flags.0 | CloneFlags::CLONE_PARENT, flags.1, None).map_err(clone_failed)? {
            Forked::Parent(child) => {
                stage.send(&Message::Init(child.pid.as_raw(), child.pidfd))?;
                exit_now(0)
            }
            Forked::Child => run(&theirs, body),
        }
    })?;
    drop(theirs);
    let message = stage.channel.expect();
    // It has nothing more to do; it is waited for so that it does not stay a zombie of ours.
    let _ = nix::sys::wait::waitpid(stage.child.pid, None);
    match (message?, ours) {
        (Message::Init(pid, pidfd), Some(channel)) => {
            Ok(Spawned { child: Child { pid: Pid::from_raw(pid), pidfd }, channel })
        }
        (other, _) => Err(out_of_turn(&other)),
    }
}

/// The child's life: `body`, or the error that it answers on the channel.
fn run(channel: &Channel, body: impl FnOnce(&Channel) -> Result<Infallible>) -> ! {
    let outcome = prctl::die_with_parent(true)
        .map_err(|errno| Error::system("tie the child to its parent", errno))
        .and_then(|()| match channel.is_deserted() {
            // The parent had ended before that, whatever it has sent until then.
            true => exit_now(1),
            false => body(channel),
        });
    let Err(error) = outcome;
    // Nobody may be listening any more; then nobody needs to know.
    let _ = channel.send(&Message::Failed(error));
    exit_now(1)
}

fn clone_failed(errno: Errno) -> Error {
    match errno {
        Errno::EAGAIN => Error::system("create the process", errno)
            .because("a limit of processes is reached")
            .hint("see pids.max of the cgroup, `ulimit -u` and /proc/sys/kernel/pid_max"),
        _ => create_failed("create the process", errno),
    }
}
