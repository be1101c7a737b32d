//! /proc of the container, through an fd that is known to be procfs.
//!
//! An image can put anything at `/proc`: a symlink, a file that looks like `attr/exec`, a mount
//! of another procfs file over the one that is wanted (CVE-2019-16884, CVE-2025-52881). So dhow
//! never writes to a path below /proc there. It keeps the fd of a procfs mount that it made
//! itself, and opens below it with RESOLVE_BENEATH, no symlinks, and no crossing into another
//! mount.

use super::errno;
use super::mount::{Attributes, Filesystem};
use nix::errno::Errno;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// `PROC_SUPER_MAGIC`, statfs(2).
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// A procfs that is safe to write to.
#[derive(Debug)]
pub struct Proc {
    fd: OwnedFd,
}

impl Proc {
    /// Makes a private, detached procfs of the caller's pid namespace.
    ///
    /// # Errors
    /// EPERM in a user namespace that may not mount a full procfs.
    pub fn mount() -> nix::Result<Proc> {
        let filesystem = Filesystem::open("proc")?;
        let attributes =
            Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
        filesystem.mount(attributes).map(|fd| Proc { fd })
    }

    /// Takes the root of a procfs mount, after a look whether it is one.
    ///
    /// # Errors
    /// EINVAL when the fd is not procfs.
    pub fn verified(fd: OwnedFd) -> nix::Result<Proc> {
        let magic = fstatfs(&fd).map_err(errno)?.f_type;
        if u64::try_from(magic) != Ok(PROC_SUPER_MAGIC) {
            return Err(Errno::EINVAL);
        }
        Ok(Proc { fd })
    }

    /// The host's /proc, as the runtime sees it before it enters anything.
    ///
    /// # Errors
    /// ENOENT, or EINVAL when something else is mounted there.
    pub fn of_host() -> nix::Result<Proc> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Proc::verified(rustix::fs::open(c"/proc", flags, Mode::empty()).map_err(errno)?)
    }

    /// Another fd of the same mount.
    ///
    /// # Errors
    /// EMFILE.
    pub fn try_clone(&self) -> nix::Result<Proc> {
        self.fd.try_clone().map(|fd| Proc { fd }).map_err(|e| super::io_errno(&e))
    }

    /// Opens a file below it, such as `sys/net/ipv4/ip_forward` or `thread-self/attr/exec`.
    ///
    /// # Errors
    /// ENOENT; EXDEV when something is mounted over it; ELOOP when a symlink is in the way.
    pub fn open(&self, path: &Path, flags: OFlags) -> nix::Result<OwnedFd> {
        // self and thread-self are symlinks; they are followed by hand, being procfs's own.
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat2(&self.fd, path, flags, Mode::empty(), resolve).map_err(errno)
    }

    /// Writes a file below it, in one write(2).
    ///
    /// # Errors
    /// Those of [`Proc::open`], and what the file answers.
    pub fn write(&self, path: &Path, text: &[u8]) -> nix::Result<()> {
        let file = self.open(path, OFlags::WRONLY)?;
        rustix::io::write(&file, text).map(drop).map_err(errno)
    }
}

impl AsFd for Proc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_procfs_is_taken_for_procfs() {
        let tmp = OwnedFd::from(std::fs::File::open("/tmp").unwrap());
        assert_eq!(Proc::verified(tmp).err(), Some(Errno::EINVAL));
        let proc = Proc::of_host().unwrap();
        assert!(proc.open(Path::new("self/stat"), OFlags::RDONLY).is_ok());
        assert!(proc.open(Path::new("thread-self/attr"), OFlags::PATH).is_ok());
        assert_eq!(proc.open(Path::new("../etc/passwd"), OFlags::RDONLY).err(), Some(Errno::EXDEV));
        assert_eq!(proc.open(Path::new("self/exe"), OFlags::RDONLY).err(), Some(Errno::ELOOP));
    }
}
