//! Cgroups that a container has left behind, told from those of strangers by a mark.
//!
//! The mark is an extended attribute on one of a container's cgroup directories, with the place of
//! the container's state as its value: `trusted.dhow`, which only root can set, or on cgroup2 for
//! other users `user.dhow`. What carries no mark is never touched.

use super::dir::Dir;
use super::layout::Layout;
use super::node;
use super::signal::signal_all;
use super::{CgroupMount, Manager};
use crate::error::Result;
use rustix::fs::XattrFlags;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The marks, root's first.
const MARKS: [&str; 2] = ["trusted.dhow", "user.dhow"];

/// A cgroup with a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its directories, in every hierarchy that has them.
    pub directories: Vec<PathBuf>,
    /// What the mark says.
    pub mark: String,
}

impl Manager {
    /// Marks the cgroup. Where the filesystem has no such attributes it stays without: only a search
    /// for what is left misses it then.
    pub fn mark(&self, value: &str) {
        let mounts = self.mounts();
        let Some(CgroupMount { at, path, .. }) = mounts.first() else { return };
        let name = if rustix::process::geteuid().is_root() { MARKS[0] } else { MARKS[1] };
        let _ = rustix::fs::setxattr(format!("{at}{path}"), name, value.as_bytes(), XattrFlags::empty());
    }
}

fn mark_of(directory: &Path) -> Option<String> {
    let mut value = [0_u8; 4096];
    let read = |name: &&str| rustix::fs::getxattr(directory, *name, &mut value[..]).ok();
    let length = MARKS.iter().find_map(read)?;
    String::from_utf8(value[..length].to_vec()).ok()
}

/// Every cgroup with a mark, on all hierarchies of this host.
///
/// # Errors
/// When no cgroups are mounted.
pub fn marked() -> Result<Vec<Marked>> {
    let mounts: Vec<PathBuf> = match Layout::of_host(false)? {
        Layout::V1(mounts) => mounts.into_iter().map(|mount| PathBuf::from(mount.at)).collect(),
        Layout::V2(mount) => vec![PathBuf::from(mount.at)],
    };
    let mut places: BTreeSet<(PathBuf, String)> = BTreeSet::new();
    for mount in &mounts {
        walk(mount, mount, &mut places);
    }
    let found = places.into_iter().map(|(path, mark)| {
        let all = mounts.iter().map(|mount| mount.join(&path)).filter(|directory| directory.is_dir());
        Marked { directories: all.collect(), mark }
    });
    Ok(found.collect())
}

fn walk(mount: &Path, directory: &Path, found: &mut BTreeSet<(PathBuf, String)>) {
    // One that goes while it is looked at is no finding.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        if let (Some(mark), Ok(relative)) = (mark_of(&path), path.strip_prefix(mount)) {
            found.insert((relative.to_owned(), mark));
        }
        walk(mount, &path, found);
    }
}

impl Marked {
    /// The processes in it.
    ///
    /// # Errors
    /// The system's.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = BTreeSet::new();
        for directory in &self.directories {
            pids.extend(node::pids_below(&dir(directory))?);
        }
        Ok(pids.into_iter().collect())
    }

    /// Kills what is in it, and removes it.
    ///
    /// # Errors
    /// What cannot be killed or removed.
    pub fn remove(&self) -> Result<()> {
        for directory in &self.directories {
            for (file, text) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                let _ = std::fs::write(directory.join(file), text);
            }
            signal_all(&dir(directory), libc::SIGKILL)?;
        }
        self.directories.iter().try_for_each(|directory| node::remove_abandoned(&directory.to_string_lossy()))
    }
}

fn dir(path: &Path) -> Dir {
    Dir::new(path.to_string_lossy().into_owned())
}
