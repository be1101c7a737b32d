//! An image's layer that is not unpacked: EROFS metadata beside the archive that it points into.

use crate::sys::fd::proc_path;
use crate::sys::mount::{Attributes, Filesystem};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags, open};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How the file of the metadata ends.
pub const SUFFIX: &str = "erofs";

/// The archive that belongs to the metadata.
pub fn archive_of(metadata: &Path) -> PathBuf {
    metadata.with_extension("tar")
}

/// A detached mount of metadata and its archive, both by fd: no path is too long for fsconfig(2).
/// It needs Linux 6.12 and CAP_SYS_ADMIN over the host.
///
/// # Errors
/// open(2)'s; EPERM, ENODEV or ENOTBLK where such a mount is not possible.
pub fn mount(metadata: &Path) -> nix::Result<OwnedFd> {
    let of = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        open(path, flags, Mode::empty()).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    };
    let (metadata, archive) = (of(metadata)?, of(&archive_of(metadata))?);
    let filesystem = Filesystem::open("erofs")?;
    filesystem.set("source", &proc_path(metadata.as_fd()))?;
    filesystem.set("device", &proc_path(archive.as_fd()))?;
    filesystem.mount(Attributes::MOUNT_ATTR_RDONLY)
}
