//! `events` and `stats`: what a container uses, and when its memory runs out.

use super::container::{Container, Context};
use crate::cgroups::{Manager, OomEvent, OomWatch, Stats};
use crate::error::{Context as _, Result};
use crate::state::{Init, Operation};
use crate::sys::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use serde::Serialize;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// A line of `events`, in go-runc's form.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// `stats` or `oom`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The container.
    pub id: String,
    /// What it uses, for `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Stats>,
}

/// Bytes that a container's network interfaces have moved, without the loopback.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Received.
    pub received: u64,
    /// Sent.
    pub sent: u64,
}

/// What a container uses now.
///
/// # Errors
/// [`crate::error::Class::WrongState`] when it does not run.
pub fn stats(context: &Context, id: &str) -> Result<Event> {
    let container = Container::open(context, id)?;
    container.allow(Operation::Update)?;
    Ok(Event { kind: "stats", id: id.to_owned(), data: Some(container.cgroup()?.stats()?) })
}

/// What a container's network interfaces have moved so far, as proc_pid_net(5) `dev` tells.
pub fn network(context: &Context, id: &str) -> Network {
    let pid = Container::open(context, id).map_or(0, |container| container.pid());
    std::fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .map_or_else(|_| Network::default(), |text| moved(&text))
}

fn moved(text: &str) -> Network {
    let mut all = Network::default();
    for line in text.lines() {
        let Some((name, figures)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let figures: Vec<u64> = figures.split_whitespace().filter_map(|figure| figure.parse().ok()).collect();
        all.received += figures.first().copied().unwrap_or(0);
        all.sent += figures.get(8).copied().unwrap_or(0);
    }
    all
}

/// Tells of a container until it ends: every `interval` what it uses, and at once when its memory
/// ran out.
///
/// # Errors
/// [`crate::error::Class::WrongState`] when it does not run; what `tell` answers.
pub fn events(
    context: &Context,
    id: &str,
    interval: Duration,
    tell: &mut dyn FnMut(&Event) -> Result<()>,
) -> Result<()> {
    let container = Container::open(context, id)?;
    container.allow(Operation::Update)?;
    let Some(init) = container.record.init.filter(|_| container.pid() != 0) else { return Ok(()) };
    let cgroup = container.cgroup()?;
    let mut watcher = Watcher { id, cgroup, init, oom: None };
    watcher.oom = watcher.cgroup.oom_watch().ok();
    watcher.watch(interval, tell)
}

struct Watcher<'a> {
    id: &'a str,
    cgroup: Manager,
    init: Init,
    /// Without a memory controller nothing can be told.
    oom: Option<OomWatch>,
}

impl Watcher<'_> {
    fn watch(&mut self, interval: Duration, tell: &mut dyn FnMut(&Event) -> Result<()>) -> Result<()> {
        let Ok(process) = pidfd::open(Pid::from_raw(self.init.pid)) else { return Ok(()) };
        let mut next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let oom = self.oom.as_ref().map(|oom| PollFd::new(oom.as_fd(), PollFlags::POLLIN));
            let mut fds: Vec<PollFd<'_>> =
                std::iter::once(PollFd::new(process.as_fd(), PollFlags::POLLIN)).chain(oom).collect();
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).doing("wait for events of the container"),
            }
            let ended = fds[0].any().unwrap_or(false);
            let ran_out = fds.get(1).is_some_and(|fd| fd.any().unwrap_or(false));
            drop(fds);
            if ran_out {
                self.tell_of_oom(tell)?;
            }
            if ended {
                // What ended it may have been the lack of memory, told in the same moment.
                return self.tell_of_oom(tell);
            }
            if Instant::now() >= next {
                next += interval;
                let data = Some(self.cgroup.stats()?);
                tell(&Event { kind: "stats", id: self.id.to_owned(), data })?;
            }
        }
    }

    fn tell_of_oom(&mut self, tell: &mut dyn FnMut(&Event) -> Result<()>) -> Result<()> {
        while let Some(oom) = &mut self.oom {
            match oom.read()? {
                OomEvent::Oom => tell(&Event { kind: "oom", id: self.id.to_owned(), data: None })?,
                OomEvent::Gone => self.oom = None,
                OomEvent::Nothing => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_moves_nothing() {
        let text = "Inter-|   Receive |  Transmit\n face |bytes packets\n    lo: 100 1 0 0 0 0 0 0 100 1\n  eth0: 7 1 0 0 0 0 0 0 9 1 0\n eth1:1 1 0 0 0 0 0 0 2 1\n";
        assert_eq!(moved(text), Network { received: 8, sent: 11 });
    }
}
