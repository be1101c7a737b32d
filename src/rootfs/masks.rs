//! Paths that the container must not read, or not write.

use crate::error::{Class, Error, Result};
use crate::sys::mount::{self, Attributes, Change, Filesystem};
use crate::sys::path::{self, Root};
use nix::errno::Errno;
use rustix::fs::{CWD, FileType, makedev};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

/// The host's /dev/null, as a mount that can be copied, and looked at before it is trusted.
///
/// # Errors
/// [`Class::System`] when /dev/null of the host is not the null device.
pub fn null_device() -> Result<OwnedFd> {
    let doing = "open /dev/null of the host";
    let tree =
        mount::open_tree(CWD, Path::new("/dev/null"), false, false).map_err(|e| Error::system(doing, e))?;
    let stat = path::stat(tree.as_fd()).map_err(|e| Error::system(doing, e))?;
    if path::file_type(&stat) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3) {
        return Ok(tree);
    }
    Err(Error::new(Class::System, doing).because("it is not the null device"))
}

/// Covers paths: a directory with an empty read-only tmpfs, anything else with the null device.
/// A path that is not there needs no mask.
///
/// # Errors
/// With the path.
pub fn mask(root: &Root, paths: &[String], null: BorrowedFd<'_>) -> Result<()> {
    let (mut null, mut empty) = (Cover { tree: null, is_attached: false }, None);
    for path in paths {
        let failed = |errno| Error::system("mask", errno).on(format!("linux.maskedPaths: {path}"));
        let target = match root.resolve(Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            target => target.map_err(failed)?,
        };
        if !path::is_directory(target.as_fd()).map_err(failed)? {
            null.put(target.as_fd()).map_err(failed)?;
            continue;
        }
        // One filesystem serves all directories: it is empty and nobody can write to it.
        if empty.is_none() {
            empty = Some(Cover { tree: empty_directory().map_err(failed)?, is_attached: false });
        }
        if let Some(empty) = &mut empty {
            empty.put(target.as_fd()).map_err(failed)?;
        }
    }
    Ok(())
}

/// A mount that covers one path, and with copies of itself more.
struct Cover<T> {
    tree: T,
    /// Only what is attached can be copied: of a detached mount that is EINVAL before Linux 6.15.
    is_attached: bool,
}

impl<T: AsFd> Cover<T> {
    fn put(&mut self, target: BorrowedFd<'_>) -> nix::Result<()> {
        if self.is_attached {
            let copy = mount::open_tree(self.tree.as_fd(), Path::new(""), false, false)?;
            return mount::attach(copy.as_fd(), target);
        }
        mount::attach(self.tree.as_fd(), target)?;
        self.is_attached = true;
        Ok(())
    }
}

fn empty_directory() -> nix::Result<OwnedFd> {
    let filesystem = Filesystem::open("tmpfs")?;
    filesystem.set("source", "tmpfs")?;
    filesystem.set("mode", "755")?;
    filesystem.set("nr_inodes", "1")?;
    let attributes = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOEXEC;
    filesystem.mount(attributes)
}

/// Makes paths read-only by binding each onto itself. A path that is not there is left out.
///
/// # Errors
/// With the path.
pub fn make_readonly(root: &Root, paths: &[String]) -> Result<()> {
    for path in paths {
        let failed =
            |errno| Error::system("make read-only", errno).on(format!("linux.readonlyPaths: {path}"));
        let target = match root.resolve(Path::new(path)) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            target => target.map_err(failed)?,
        };
        let change = Change { set: Attributes::MOUNT_ATTR_RDONLY, ..Change::none() };
        if !Path::new(path).components().any(|part| matches!(part, Component::Normal(_))) {
            // What is attached to the root lies on top of it, where nobody in the container looks.
            mount::change(root.as_fd(), change, false).map_err(failed)?;
            continue;
        }
        let copy = mount::open_tree(target.as_fd(), Path::new(""), true, false).map_err(failed)?;
        mount::change(copy.as_fd(), change, false).map_err(failed)?;
        mount::attach(copy.as_fd(), target.as_fd()).map_err(failed)?;
    }
    Ok(())
}
