//! A user namespace that nobody lives in, for the sake of its maps.

use super::spawn::spawn;
use crate::error::{Context, Result};
use crate::namespaces::{Maps, write_maps};
use crate::sys::clone::exit_now;
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;

/// Makes a user namespace with these maps. A short-lived child is its first process, because a
/// namespace is only to be had from a process in it; the fd keeps it alone alive afterwards.
///
/// # Errors
/// Those of making a user namespace and of writing its maps.
pub fn user_namespace(maps: &Maps) -> Result<OwnedFd> {
    let child = spawn((CloneFlags::CLONE_NEWUSER, 0), None, |channel| {
        // Until the parent closes its end, and if it is killed, its death ends this process.
        let _ = channel.receive();
        exit_now(0)
    })?;
    let pid = child.child.pid;
    let namespace = write_maps(pid, maps).and_then(|()| {
        rustix::fs::open(format!("/proc/{pid}/ns/user"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .doing("open a user namespace")
    });
    drop(child.channel);
    let _ = nix::sys::wait::waitpid(pid, None);
    namespace
}
