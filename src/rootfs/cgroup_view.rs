//! The `cgroup` mount: what a container sees of its cgroups.
//!
//! With a cgroup namespace it is a mount of the cgroup filesystem, whose root is the container's
//! cgroup; without one, the container's own directory is bound. On v1 it is a tmpfs with a
//! directory for each hierarchy.

use super::mounts::Building;
use super::plan::Step;
use crate::error::{Error, Result};
use crate::sys::mount::{self, Attributes, Change, Filesystem};
use crate::sys::path::Leaf;
use nix::errno::Errno;
use rustix::fs::{CWD, Mode};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// One v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The directory below /sys/fs/cgroup: `memory`, `cpu,cpuacct`, `systemd`.
    pub name: String,
    /// Mount options that choose it: `memory`, or `none` and `name=systemd`.
    pub options: Vec<String>,
    /// The container's directory in it, on the host.
    pub directory: PathBuf,
}

/// What is there to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupView {
    /// Nothing: cgroups are not used.
    None,
    /// cgroup v2.
    Unified {
        /// The container's directory, on the host.
        directory: PathBuf,
        /// Whether the container has a cgroup namespace of its own.
        namespaced: bool,
    },
    /// cgroup v1.
    Legacy {
        /// The hierarchies.
        hierarchies: Vec<Hierarchy>,
        /// Whether the container has a cgroup namespace of its own.
        namespaced: bool,
    },
}

/// Carries out a step whose source is the cgroup filesystem.
pub(super) fn mount(building: &Building<'_>, step: &Step, view: &CgroupView) -> Result<()> {
    let failed = |errno| Error::system("mount cgroups", errno).on(&step.field);
    let target = building.target(step, Leaf::Directory)?;
    match view {
        // With cgroups switched off there is nothing of the container's own to show, and the
        // host's are not its business: an empty directory.
        CgroupView::None => building.finish(step, legacy_top().map_err(failed)?.as_fd(), target.as_fd()),
        CgroupView::Unified { directory, namespaced } => {
            let mounted = unified(directory, *namespaced, step.change.set).map_err(failed)?;
            let change = Change { set: step.change.set, ..Change::none() };
            mount::change(mounted.as_fd(), change, false).map_err(failed)?;
            building.finish(step, mounted.as_fd(), target.as_fd())
        }
        CgroupView::Legacy { hierarchies, namespaced } => {
            let top = legacy_top().map_err(failed)?;
            building.finish(step, top.as_fd(), target.as_fd())?;
            for hierarchy in hierarchies {
                legacy(top.as_fd(), hierarchy, *namespaced, step.change.set)
                    .map_err(|errno| failed(errno).because(hierarchy.name.clone()))?;
            }
            // Only now: the directories had to be made first.
            let change = Change { set: step.change.set, ..Change::none() };
            mount::change(top.as_fd(), change, false).map_err(failed)
        }
    }
}

fn unified(directory: &Path, namespaced: bool, attributes: Attributes) -> nix::Result<OwnedFd> {
    if namespaced {
        let filesystem = Filesystem::open("cgroup2")?;
        filesystem.set("source", "cgroup")?;
        match filesystem.mount(attributes) {
            // A user namespace that shares the host's view may not mount it anew.
            Err(Errno::EPERM | Errno::EBUSY) => {}
            mounted => return mounted,
        }
    }
    mount::open_tree(CWD, directory, true, true)
}

fn legacy_top() -> nix::Result<OwnedFd> {
    let filesystem = Filesystem::open("tmpfs")?;
    filesystem.set("source", "tmpfs")?;
    filesystem.set("mode", "755")?;
    filesystem
        .mount(Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC)
}

fn legacy(
    top: BorrowedFd<'_>,
    hierarchy: &Hierarchy,
    namespaced: bool,
    attributes: Attributes,
) -> nix::Result<()> {
    rustix::fs::mkdirat(top, &hierarchy.name, Mode::from_raw_mode(0o755)).map_err(crate::sys::errno)?;
    let mounted = if namespaced {
        let filesystem = Filesystem::open("cgroup")?;
        filesystem.set("source", "cgroup")?;
        for option in &hierarchy.options {
            match option.split_once('=') {
                Some((key, value)) => filesystem.set(key, value)?,
                None => filesystem.set_flag(option)?,
            }
        }
        filesystem.mount(attributes)?
    } else {
        let bound = mount::open_tree(CWD, &hierarchy.directory, true, true)?;
        mount::change(bound.as_fd(), Change { set: attributes, ..Change::none() }, false)?;
        bound
    };
    let target = rustix::fs::openat(
        top,
        &hierarchy.name,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(crate::sys::errno)?;
    mount::attach(mounted.as_fd(), target.as_fd())?;
    // cpu and cpuacct in one hierarchy are also found by the name of each.
    for alias in hierarchy.name.split(',').filter(|alias| *alias != hierarchy.name) {
        rustix::fs::symlinkat(&hierarchy.name, top, alias).map_err(crate::sys::errno)?;
    }
    Ok(())
}
