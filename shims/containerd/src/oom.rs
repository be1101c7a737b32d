//! Tells when a container's memory ran out.

use crate::cgroup::Cgroups;
use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A watch over one cgroup: a file that can be read when there may be news.
#[derive(Debug)]
pub struct Watch {
    pub file: OwnedFd,
    /// Where the kernel counts: memory.oom_control of v1, memory.events of v2.
    counts: PathBuf,
    seen: u64,
}

impl Watch {
    /// Begins to watch; `None` where there is no memory controller.
    pub fn new(cgroups: &Cgroups) -> Option<Watch> {
        let (file, counts) = match (cgroups.v1("memory"), cgroups.v2()) {
            (Some(directory), _) => (v1(directory)?, directory.join("memory.oom_control")),
            (None, Some(directory)) => {
                let counts = directory.join("memory.events");
                let file =
                    inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
                inotify::add_watch(&file, &counts, inotify::WatchFlags::MODIFY).ok()?;
                (file, counts)
            }
            (None, None) => return None,
        };
        Some(Watch { file, counts, seen: 0 })
    }

    /// Whether processes were killed for want of memory since the last time.
    pub fn news(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while rustix::io::read(&self.file, &mut buffer).is_ok_and(|length| length > 0) {}
        let count = count(&fs::read_to_string(&self.counts).unwrap_or_default());
        let is_news = count > self.seen;
        self.seen = count.max(self.seen);
        is_news
    }

    /// Whether the cgroup is gone, so that nothing more can come.
    pub fn is_over(&self) -> bool {
        !self.counts.exists()
    }
}

/// cgroup v1 signals an eventfd(2) that is written into cgroup.event_control beside the file's number.
fn v1(directory: &Path) -> Option<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
    let control = fs::File::open(directory.join("memory.oom_control")).ok()?;
    let line = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    fs::write(directory.join("cgroup.event_control"), line).ok()?;
    Some(event)
}

fn count(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn kills_are_counted_in_both_layouts() {
        assert_eq!(super::count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(super::count("low 0\noom 5\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(super::count(""), 0);
    }
}
