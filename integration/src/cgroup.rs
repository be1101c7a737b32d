//! The cgroup file systems, seen from outside, in whatever layout this machine has.

use std::fs;
use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers: v1 from the mount options (`name=systemd` included), v2 from cgroup.controllers.
    pub controllers: Vec<String>,
    /// Whether it is the unified one.
    pub v2: bool,
}

/// The mounted hierarchies. One that is mounted twice is listed once.
pub fn hierarchies() -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines() {
        let (left, right) = line.split_once(" - ").expect("mountinfo has a separator");
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next().unwrap(), PathBuf::from(left.next().unwrap()));
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap(), right.nth(1).unwrap_or_default());
        if root != "/" || !mount.starts_with("/sys/fs/cgroup") || !matches!(kind, "cgroup" | "cgroup2") {
            continue;
        }
        let v2 = kind == "cgroup2";
        let controllers: Vec<String> = if v2 {
            let list = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
            list.split_whitespace().map(str::to_owned).collect()
        } else {
            options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(str::to_owned).collect()
        };
        found.retain(|h| h.mount != mount);
        found.push(Hierarchy { mount, controllers, v2 });
    }
    found
}

/// The directory of `cgroup` in the hierarchy that has `controller`, and whether that is v2.
/// `None` when no mounted hierarchy has the controller.
pub fn directory(controller: &str, cgroup: &str) -> Option<(PathBuf, bool)> {
    let hierarchy = hierarchies().into_iter().find(|h| h.controllers.iter().any(|c| c == controller))?;
    Some((hierarchy.mount.join(cgroup.trim_start_matches('/')), hierarchy.v2))
}

/// Every cgroup directory whose own name contains `tag`, deepest first.
pub fn named_after(tag: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        walk(&hierarchy.mount, tag, false, &mut found);
    }
    found
}

fn walk(dir: &Path, tag: &str, inside: bool, found: &mut Vec<PathBuf>) {
    // A directory that goes while we look is no finding.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            let matches = inside || entry.file_name().to_string_lossy().contains(tag);
            walk(&path, tag, matches, found);
            if matches {
                found.push(path);
            }
        }
    }
}

/// The cgroups of a process: `(controllers, path)` of every line of /proc/PID/cgroup.
pub fn of(pid: i32) -> Vec<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let fields = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    fields.map(|(controllers, path)| (controllers.to_owned(), path.to_owned())).collect()
}
