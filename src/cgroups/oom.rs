//! When memory runs out: how often it did, and a descriptor that tells when it does.

use super::Manager;
use super::controller::Controller;
use super::dir::Dir;
use crate::error::{Class, Context, Error, Result};
use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{OFlags, inotify};
use rustix::io::Errno;

/// How often the kernel killed for want of memory, and under which limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Oom {
    /// Processes that were killed.
    pub kills: u64,
    /// The memory limit in bytes, where there is one.
    pub limit: Option<u64>,
}

/// What an [`OomWatch`] has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OomEvent {
    /// Memory ran out.
    Oom,
    /// The cgroup is gone: there is nothing more to watch.
    Gone,
    /// Nothing of interest; wait again.
    Nothing,
}

/// A descriptor that becomes readable when memory runs out, or when the cgroup goes.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    path: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// An eventfd that `cgroup.event_control` was told of.
    V1,
    /// An inotify watch: the count of memory.events so far, and whether the last process has ended.
    V2 { seen: u64, ended: bool },
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Manager {
    /// How often memory ran out so far; `None` without a memory controller.
    ///
    /// # Errors
    /// The system's. A cgroup that is gone tells nothing.
    pub fn oom(&self) -> Result<Option<Oom>> {
        let Some((dir, is_v2)) = self.memory_dir() else { return Ok(None) };
        let (events, limit) = if is_v2 {
            ("memory.events", "memory.max")
        } else {
            ("memory.oom_control", "memory.limit_in_bytes")
        };
        let read = || -> rustix::io::Result<Oom> {
            let kills = dir.keyed(events, "oom_kill")?.unwrap_or(0);
            // "No limit" of v1 is the greatest number of whole pages, whatever their size.
            let limit = Some(dir.number(limit)?).filter(|bytes| *bytes < 1 << 62);
            Ok(Oom { kills, limit })
        };
        match read() {
            Ok(oom) => Ok(Some(oom)),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno).doing_on("read the oom count of cgroup", || dir.path()),
        }
    }

    /// Starts to watch for memory running out. It is non-blocking: poll it.
    ///
    /// # Errors
    /// No memory controller; the system's.
    pub fn oom_watch(&self) -> Result<OomWatch> {
        let Some((dir, is_v2)) = self.memory_dir() else {
            return Err(Error::new(Class::Unsupported, "watch for out-of-memory")
                .because("memory controller not enabled for this container"));
        };
        let watch = if is_v2 { watch_v2(dir) } else { watch_v1(dir) };
        watch.doing_on("watch for out-of-memory in cgroup", || dir.path())
    }

    fn memory_dir(&self) -> Option<(&Dir, bool)> {
        match self {
            Manager::V1(v1) => v1.dir(Controller::Memory).map(|dir| (dir, false)),
            Manager::V2(v2) => v2.dir().map(|dir| (dir, true)),
            Manager::Systemd(unit) => unit.inner().memory_dir(),
            Manager::Disabled => None,
        }
    }
}

fn watch_v1(dir: &Dir) -> rustix::io::Result<OomWatch> {
    let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = dir.open("memory.oom_control", OFlags::RDONLY)?;
    dir.write("cgroup.event_control", &format!("{} {}", fd.as_raw_fd(), control.as_raw_fd()))?;
    Ok(OomWatch { fd, path: dir.path().to_owned(), kind: Kind::V1 })
}

fn watch_v2(dir: &Dir) -> rustix::io::Result<OomWatch> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let file = format!("{}/memory.events", dir.path());
    inotify::add_watch(&fd, file, inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE_SELF)?;
    // kernfs does not announce its removal to inotify; the last exit it does.
    let file = format!("{}/cgroup.events", dir.path());
    inotify::add_watch(&fd, file, inotify::WatchFlags::MODIFY)?;
    let seen = dir.keyed("memory.events", "oom")?.unwrap_or(0);
    Ok(OomWatch { fd, path: dir.path().to_owned(), kind: Kind::V2 { seen, ended: false } })
}

impl OomWatch {
    /// What has happened. To be called until it says [`OomEvent::Nothing`], and again whenever the
    /// descriptor became readable.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&mut self) -> Result<OomEvent> {
        let mut buffer = [0_u8; 4096];
        let got = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut buffer));
        let is_new = match got {
            Err(Errno::AGAIN) => false,
            other => other.doing_on("watch for out-of-memory in cgroup", || self.path.as_str())? > 0,
        };
        // The removal of the cgroup wakes the eventfd too, and does not wake inotify.
        if rustix::fs::stat(&self.path).is_err() {
            return Ok(OomEvent::Gone);
        }
        match &mut self.kind {
            Kind::V1 => Ok(if is_new { OomEvent::Oom } else { OomEvent::Nothing }),
            Kind::V2 { seen, ended } => {
                let dir = Dir::new(self.path.clone());
                let Ok(count) = dir.keyed("memory.events", "oom") else { return Ok(OomEvent::Gone) };
                let count = count.unwrap_or(0);
                // A cgroup may be empty in the beginning; that it has become so is an event.
                *ended |= is_new && dir.keyed("cgroup.events", "populated").ok().flatten() == Some(0);
                if count > *seen {
                    *seen = count;
                    return Ok(OomEvent::Oom);
                }
                Ok(if *ended { OomEvent::Gone } else { OomEvent::Nothing })
            }
        }
    }
}
