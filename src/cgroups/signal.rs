//! Signals for every process of a cgroup, for kernels and hierarchies without `cgroup.kill`.

use super::dir::Dir;
use super::node::pids_below;
use crate::error::{Context, Result};
use rustix::fd::AsFd;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

/// How often the cgroup is looked through for processes that were forked meanwhile.
const ROUNDS: usize = 20;

/// Sends `signal` to every process in the cgroup and below, each once. Returns whether a round
/// was reached that found no new process; if not, they fork faster than they can be listed.
///
/// # Errors
/// The system's. A process that has ended meanwhile is no error.
pub(super) fn signal_all(dir: &Dir, signal: i32) -> Result<bool> {
    let mut done: Vec<i32> = Vec::new();
    for _ in 0..ROUNDS {
        let fresh = fresh_pids(dir, &done)?;
        if fresh.is_empty() {
            return Ok(true);
        }
        let opened: rustix::io::Result<Vec<(i32, OwnedFd)>> =
            fresh.iter().filter_map(|pid| open(*pid).transpose()).collect();
        let opened = opened.doing_on("open a process of cgroup", || dir.path())?;
        // Between list and pidfd a pid may have passed to a stranger. One that is listed still
        // is ours, or the stranger's pidfd is dead already.
        let listed = pids_below(dir)?;
        for (pid, fd) in &opened {
            if listed.binary_search(pid).is_err() {
                continue;
            }
            match crate::sys::pidfd::send_signal(fd.as_fd(), signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => done.push(*pid),
                Err(errno) => return Err(errno).doing_on("signal process", || pid.to_string()),
            }
        }
        done.sort_unstable();
    }
    Ok(false)
}

fn fresh_pids(dir: &Dir, done: &[i32]) -> Result<Vec<i32>> {
    let mut pids = pids_below(dir)?;
    pids.retain(|pid| *pid > 0 && done.binary_search(pid).is_err());
    Ok(pids)
}

/// A pidfd, or `None` where the process has ended.
fn open(pid: i32) -> rustix::io::Result<Option<(i32, OwnedFd)>> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
    match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some((pid, fd))),
        // EINVAL: the id of a thread, whose leader is listed too.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}
