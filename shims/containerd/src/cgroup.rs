//! Where a process stands in the cgroup hierarchies.

use std::fs;
use std::path::{Path, PathBuf};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// The cgroup that is seen at the mount point.
    root: String,
    /// The controllers of a v1 hierarchy; none for cgroup2.
    controllers: Vec<String>,
    pub is_v2: bool,
}

/// The hierarchies of proc_pid_mountinfo(5).
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let line = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let fields: Vec<&str> = before.split(' ').collect();
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let is_v2 = kind == "cgroup2";
        (is_v2 || kind == "cgroup").then(|| Hierarchy {
            mount: PathBuf::from(fields[4]),
            root: fields[3].to_owned(),
            controllers: if is_v2 { Vec::new() } else { options.split(',').map(str::to_owned).collect() },
            is_v2,
        })
    };
    mountinfo.lines().filter_map(line).collect()
}

/// The cgroups of one process.
#[derive(Debug, Clone, Default)]
pub struct Cgroups {
    places: Vec<(Hierarchy, PathBuf)>,
}

impl Cgroups {
    /// Those of a process.
    pub fn of(pid: i32) -> Cgroups {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        Cgroups::from(&mountinfo, &own)
    }

    fn from(mountinfo: &str, own: &str) -> Cgroups {
        let mut places = Vec::new();
        for hierarchy in hierarchies(mountinfo) {
            let path = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let is_it = match hierarchy.is_v2 {
                    true => controllers.is_empty(),
                    false => controllers.split(',').any(|one| {
                        let one = one.strip_prefix("name=").map_or(one, |_| one);
                        hierarchy.controllers.iter().any(|controller| controller == one)
                    }),
                };
                is_it.then_some(path)
            });
            let Some(path) = path else { continue };
            let Some(below) = path.strip_prefix(hierarchy.root.trim_end_matches('/')) else { continue };
            let directory = hierarchy.mount.join(below.trim_start_matches('/'));
            places.push((hierarchy, directory));
        }
        Cgroups { places }
    }

    /// The directory of a controller's v1 hierarchy.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        let is_it = |hierarchy: &Hierarchy| hierarchy.controllers.iter().any(|one| one == controller);
        self.places.iter().find(|(hierarchy, _)| is_it(hierarchy)).map(|(_, path)| path.as_path())
    }

    /// The directory of the cgroup2 hierarchy.
    pub fn v2(&self) -> Option<&Path> {
        self.places.iter().find(|(hierarchy, _)| hierarchy.is_v2).map(|(_, path)| path.as_path())
    }
}

/// Whether any mounted hierarchy has a controller.
pub fn has(controller: &str) -> bool {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    hierarchies(&mountinfo).iter().any(|one| match one.is_v2 {
        true => fs::read_to_string(one.mount.join("cgroup.controllers"))
            .is_ok_and(|text| text.split_whitespace().any(|name| name == controller)),
        false => one.controllers.iter().any(|name| name == controller),
    })
}

/// Puts this process into a cgroup of every hierarchy, which is made where it is not there.
pub fn join(path: &str) {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for hierarchy in hierarchies(&mountinfo) {
        let directory = hierarchy.mount.join(path.trim_start_matches('/'));
        let _ = fs::create_dir_all(&directory);
        let _ = fs::write(directory.join("cgroup.procs"), "0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "30 24 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
        31 24 0:27 /outer /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 24 0:28 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 none rw\n33 24 0:29 / /proc rw - proc proc rw\n";

    #[test]
    fn places_are_below_the_mounts() {
        let found = Cgroups::from(MOUNTS, "5:memory:/a/b\n4:cpu,cpuacct:/outer/b\n0::/c\n");
        assert_eq!(found.v1("memory"), Some(Path::new("/sys/fs/cgroup/memory/a/b")));
        assert_eq!(found.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/b")));
        assert_eq!(found.v2(), Some(Path::new("/sys/fs/cgroup/unified/c")));
        assert_eq!(found.v1("pids"), None);
    }

    #[test]
    fn what_is_not_below_the_mount_is_not_seen() {
        let found = Cgroups::from(MOUNTS, "4:cpu,cpuacct:/other/b\n");
        assert_eq!(found.v1("cpu"), None);
    }
}
