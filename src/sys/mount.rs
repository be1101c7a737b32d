//! The mount API of Linux 5.2 and later: mounts as fds, attached last.
//!
//! A mount made by [`Filesystem`] or [`open_tree`] belongs to nobody until [`attach`] puts it
//! onto an fd that [`super::path`] resolved. No path is looked up twice, and a mount that is
//! never attached is gone with its fd.

use super::errno;
use nix::errno::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub use rustix::mount::MountAttrFlags as Attributes;

/// A filesystem that is being configured, fsopen(2).
#[derive(Debug)]
pub struct Filesystem {
    context: OwnedFd,
}

impl Filesystem {
    /// Begins a filesystem of this type.
    ///
    /// # Errors
    /// ENODEV for an unknown type, EPERM.
    pub fn open(kind: &str) -> nix::Result<Filesystem> {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(errno)?;
        Ok(Filesystem { context })
    }

    /// Sets `key=value`.
    ///
    /// # Errors
    /// EINVAL for a key or a value that the filesystem does not know; see [`Filesystem::complaint`].
    pub fn set(&self, key: &str, value: &str) -> nix::Result<()> {
        rustix::mount::fsconfig_set_string(self.context.as_fd(), key, value).map_err(errno)
    }

    /// Sets a key to an fd, as overlayfs's `lowerdir+` takes.
    ///
    /// # Errors
    /// EINVAL.
    pub fn set_fd(&self, key: &str, value: BorrowedFd<'_>) -> nix::Result<()> {
        rustix::mount::fsconfig_set_fd(self.context.as_fd(), key, value).map_err(errno)
    }

    /// Sets a key that has no value.
    ///
    /// # Errors
    /// EINVAL for a key that the filesystem does not know.
    pub fn set_flag(&self, key: &str) -> nix::Result<()> {
        rustix::mount::fsconfig_set_flag(self.context.as_fd(), key).map_err(errno)
    }

    /// Makes the superblock and a detached mount of it.
    ///
    /// # Errors
    /// What mount(2) of the filesystem would answer.
    pub fn mount(&self, attributes: Attributes) -> nix::Result<OwnedFd> {
        rustix::mount::fsconfig_create(self.context.as_fd()).map_err(errno)?;
        rustix::mount::fsmount(self.context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(errno)
    }

    /// What the filesystem itself said about the last failure, `tmpfs: Bad value for 'size'`;
    /// `None` when it said nothing.
    pub fn complaint(&self) -> Option<String> {
        let mut buffer = [0_u8; 512];
        let mut last = None;
        while let Ok(length @ 1..) = rustix::io::read(&self.context, &mut buffer) {
            let line = String::from_utf8_lossy(&buffer[..length]);
            // Lines begin with their severity: `e `, `w `, `i `.
            last = Some(line.trim_end().trim_start_matches(|c| "ewi ".contains(c)).to_owned());
        }
        last
    }
}

/// A detached copy of the mount at `path` below `directory` (an empty path means `directory`
/// itself), with the mounts below it when `recursive`: what a bind mount attaches.
///
/// # Errors
/// open_tree(2)'s: ENOENT; EINVAL when the mount belongs to another mount namespace or, without
/// `recursive`, covers what a user namespace must not uncover.
pub fn open_tree(
    directory: BorrowedFd<'_>,
    path: &Path,
    recursive: bool,
    follow: bool,
) -> nix::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_os_str().is_empty());
    flags.set(OpenTreeFlags::AT_SYMLINK_NOFOLLOW, !follow);
    rustix::mount::open_tree(directory, path, flags).map_err(errno)
}

/// Attaches a detached mount, or moves an attached one, onto the directory or file of `target`.
///
/// # Errors
/// move_mount(2)'s: ENOTDIR when one is a directory and the other is not.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags).map_err(errno)
}

/// How mounts and unmounts spread between a mount and its copies, mount_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// To peers, and from them.
    Shared,
    /// From a master only.
    Slave,
    /// Not at all.
    Private,
    /// Not at all, and the mount cannot be bound.
    Unbindable,
}

impl Propagation {
    fn flag(self) -> MountPropagationFlags {
        match self {
            Propagation::Shared => MountPropagationFlags::SHARED,
            Propagation::Slave => MountPropagationFlags::DOWNSTREAM,
            Propagation::Private => MountPropagationFlags::PRIVATE,
            Propagation::Unbindable => MountPropagationFlags::UNBINDABLE,
        }
    }
}

/// Sets the propagation of the mount at a path of this process, and of all below it.
///
/// # Errors
/// mount(2)'s: EINVAL when the path is no mount point.
pub fn set_propagation(path: &Path, propagation: Propagation, recursive: bool) -> nix::Result<()> {
    let mut flags = propagation.flag();
    flags.set(MountPropagationFlags::REC, recursive);
    rustix::mount::mount_change(path, flags).map_err(errno)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A change to a mount's attributes, mount_setattr(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Attributes to set.
    pub set: Attributes,
    /// Attributes to clear.
    pub clear: Attributes,
    /// The propagation to give it.
    pub propagation: Option<Propagation>,
}

impl Change {
    /// No change yet.
    pub fn none() -> Change {
        Change { set: Attributes::empty(), clear: Attributes::empty(), propagation: None }
    }

    /// Whether there is nothing to do.
    pub fn is_none(&self) -> bool {
        *self == Change::none()
    }
}

/// Changes the mount that `mount` is in, and with `recursive` all below it, all or nothing.
///
/// # Errors
/// EPERM when an attribute is locked by a more privileged user namespace; EINVAL when the fd is
/// not the root of its mount; ENOSYS before Linux 5.12.
pub fn change(mount: BorrowedFd<'_>, change: Change, recursive: bool) -> nix::Result<()> {
    let mut set = u64::from(change.set.bits());
    let mut clear = u64::from(change.clear.bits());
    // The atime settings are one field, not bits: the kernel wants all of it cleared to set it.
    let atime = u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits());
    if (set | clear) & atime != 0 || change.set.contains(MountAttrFlags::MOUNT_ATTR_NOATIME) {
        set &= !(clear & atime);
        clear |= atime;
    }
    let attr = MountAttr {
        attr_set: set,
        attr_clr: clear,
        propagation: change.propagation.map_or(0, |propagation| u64::from(propagation.flag().bits())),
        userns_fd: 0,
    };
    setattr(mount, &attr, recursive)
}

/// Makes a detached mount show its files with the ids that a user namespace maps them to.
///
/// # Errors
/// EINVAL when the filesystem cannot be idmapped, EPERM.
pub fn idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> nix::Result<()> {
    let idmap = u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).map_err(|_| Errno::EBADF)?;
    setattr(mount, &MountAttr { attr_set: idmap, userns_fd, ..MountAttr::default() }, recursive)
}

fn setattr(mount: BorrowedFd<'_>, attr: &MountAttr, recursive: bool) -> nix::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    let (fd, path) = (mount.as_raw_fd(), c"".as_ptr());
    // SAFETY: the kernel reads an empty C string and one structure of the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path,
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Detaches the mount that is on top of this process's working directory.
///
/// # Errors
/// umount2(2)'s.
pub fn detach_working_directory() -> nix::Result<()> {
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(errno)
}

/// Detaches the mount at a path.
///
/// # Errors
/// umount2(2)'s: EINVAL when it is no mount point.
pub fn detach(path: &Path) -> nix::Result<()> {
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(errno)
}
