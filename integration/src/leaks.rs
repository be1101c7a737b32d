//! What a test left behind, found by the tag that all its names carry.

use crate::cgroup;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What to look for.
#[derive(Debug, Clone)]
pub struct Marks {
    /// Part of the name of everything that belongs to the test.
    pub tag: String,
    /// The runtime's state directory.
    pub state: PathBuf,
    /// The payload's file: a process that runs it belongs to the test.
    pub payload: PathBuf,
}

impl Marks {
    /// Everything that is left, in words; empty when the test was clean.
    pub fn leaks(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (pid, why) in self.processes() {
            found.push(format!("process {pid}: {why}"));
        }
        found.extend(cgroup::named_after(&self.tag).iter().map(|dir| format!("cgroup {}", dir.display())));
        found.extend(self.mounts().iter().map(|mount| format!("mount {}", mount.display())));
        found.extend(self.state_entries(&self.state).iter().map(|path| format!("state {}", path.display())));
        found
    }

    /// Processes, zombies excepted: those are their parent's to reap.
    fn processes(&self) -> Vec<(i32, String)> {
        let payload = fs::metadata(&self.payload).map(|m| (m.dev(), m.ino())).ok();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            if pid == std::process::id().cast_signed() {
                continue;
            }
            if let Some(why) = self.claims(&entry.path(), payload).filter(|_| !is_zombie(pid)) {
                found.push((pid, why));
            }
        }
        found
    }

    /// Why the process at `proc` is the test's; `None` when it is not.
    fn claims(&self, proc: &Path, payload: Option<(u64, u64)>) -> Option<String> {
        let exe = fs::metadata(proc.join("exe")).map(|m| (m.dev(), m.ino())).ok();
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        let ours = command.contains(&self.tag) || cgroups.contains(&self.tag);
        (ours || (exe.is_some() && exe == payload)).then(|| command.trim_end().to_owned())
    }

    /// Mount points on the host that carry the tag, the last mounted first.
    fn mounts(&self) -> Vec<PathBuf> {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = text.lines().rev().filter_map(|line| line.split(' ').nth(4));
        points.filter(|point| point.contains(&self.tag)).map(PathBuf::from).collect()
    }

    fn state_entries(&self, dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(&self.tag) {
                found.push(entry.path());
            } else if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.extend(self.state_entries(&entry.path()));
            }
        }
        found
    }

    /// Removes what is left, so that one failed test does not make others fail.
    pub fn clear(&self) {
        let deadline = std::time::Instant::now() + crate::wait::PATIENCE;
        loop {
            let left = self.processes();
            let pids: HashSet<i32> = left.iter().map(|(pid, _)| *pid).collect();
            for pid in &pids {
                // Gone already is as good. A frozen cgroup would keep the killed process: thaw below.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            self.thaw();
            if pids.is_empty() || std::time::Instant::now() > deadline {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        self.reap();
        for dir in cgroup::named_after(&self.tag) {
            let _ = fs::remove_dir(dir);
        }
        for mount in self.mounts() {
            let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }

    fn thaw(&self) {
        for dir in cgroup::named_after(&self.tag) {
            for (file, text) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                if dir.join(file).exists() {
                    let _ = fs::write(dir.join(file), text);
                }
            }
        }
    }

    /// Takes the exit status of orphans that fell to this process and are the test's.
    fn reap(&self) {
        let me = std::process::id().to_string();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let parent = status.lines().find_map(|l| l.strip_prefix("PPid:")).unwrap_or_default().trim();
            if parent == me && cgroups.contains(&self.tag) {
                let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
            }
        }
    }

    /// Whether a mount point still carries the tag: then no folder may be removed.
    pub fn has_mounts(&self) -> bool {
        !self.mounts().is_empty()
    }
}

/// Whether the process has ended and waits for its parent, or is gone.
pub fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}
