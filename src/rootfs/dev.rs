//! /dev: the devices that every container has, and those of config.json.

use super::mounts::Building;
use crate::error::{Context, Error, Result};
use crate::spec::Device;
use crate::sys::mount;
use crate::sys::path::{self, Leaf};
use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid, makedev};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A device node to make.
#[derive(Debug, Clone, Copy)]
struct Node<'a> {
    path: &'a str,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// The devices of "Default Devices" (config-linux.md); the terminal ones are made elsewhere.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The symlinks of "Default Filesystems", and `core` as every engine expects it.
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

impl<'a> From<&'a Device> for Node<'a> {
    fn from(device: &'a Device) -> Self {
        Node {
            path: &device.path,
            kind: match device.kind.as_str() {
                "b" => FileType::BlockDevice,
                "p" => FileType::Fifo,
                _ => FileType::CharacterDevice,
            },
            major: u32::try_from(device.major).unwrap_or(0),
            minor: u32::try_from(device.minor).unwrap_or(0),
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        }
    }
}

impl Building<'_> {
    /// Makes the devices and symlinks below /dev.
    ///
    /// # Errors
    /// With the device's path.
    pub fn fill_dev(&self, devices: &[Device]) -> Result<()> {
        if !self.plan.fill_dev {
            return Ok(());
        }
        let dev = self.root.make(Path::new("/dev"), Leaf::Directory).doing_on("open", || "/dev")?;
        for (path, major, minor) in DEFAULT {
            let asked_for = devices.iter().any(|device| device.path == path);
            if !asked_for {
                let kind = FileType::CharacterDevice;
                self.make_node(dev.as_fd(), Node { path, kind, major, minor, mode: 0o666, uid: 0, gid: 0 })?;
            }
        }
        for device in devices {
            self.make_node(dev.as_fd(), Node::from(device))?;
        }
        self.link_dev(dev.as_fd())
    }

    fn link_dev(&self, dev: BorrowedFd<'_>) -> Result<()> {
        // An image's own ptmx would reach the host's terminals; it gives way to the container's.
        let _ = rustix::fs::unlinkat(dev, "ptmx", AtFlags::empty());
        let core = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "core"));
        for (target, name) in LINKS.into_iter().chain(core) {
            match rustix::fs::symlinkat(target, dev, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => {
                    return Err(Error::system("make the symlink", crate::sys::errno(errno))
                        .on(format!("/dev/{name}")));
                }
            }
        }
        Ok(())
    }

    fn make_node(&self, dev: BorrowedFd<'_>, node: Node<'_>) -> Result<()> {
        let failed = |errno| Error::system("make the device", errno).on(node.path);
        let made = match node.path.strip_prefix("/dev/").filter(|rest| !rest.contains('/')) {
            Some(name) => self.make_node_in(dev, name, node),
            None => {
                let path = Path::new(node.path);
                let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(failed(Errno::EINVAL));
                };
                let parent = self.root.make(parent, Leaf::Directory).map_err(failed)?;
                self.make_node_in(parent.as_fd(), &name.to_string_lossy(), node)
            }
        };
        made.map_err(failed)
    }

    fn make_node_in(&self, directory: BorrowedFd<'_>, name: &str, node: Node<'_>) -> nix::Result<()> {
        if self.in_user_namespace && node.kind != FileType::Fifo {
            return self.bind_node(directory, name, node);
        }
        let mode = Mode::from_raw_mode(node.mode);
        let number = makedev(node.major, node.minor);
        match rustix::fs::mknodat(directory, name, node.kind, mode, number) {
            Ok(()) => {}
            // mknod(2) is not allowed here, or the image has something of that name: the host's
            // own device is bound over it.
            Err(rustix::io::Errno::PERM) => return self.bind_node(directory, name, node),
            Err(rustix::io::Errno::EXIST) => {
                return match self.bind_node(directory, name, node) {
                    // What stands in the way is the news, not that the host has no such device.
                    Err(Errno::ENOENT) => Err(Errno::EEXIST),
                    bound => bound,
                };
            }
            Err(errno) => return Err(crate::sys::errno(errno)),
        }
        if (node.uid, node.gid) != (0, 0) {
            let (uid, gid) = (Some(Uid::from_raw(node.uid)), Some(Gid::from_raw(node.gid)));
            rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(crate::sys::errno)?;
        }
        Ok(())
    }

    /// Binds the host's device node, after a look that it is the device that was asked for
    /// (CVE-2025-31133): what is bound is the very fd that was looked at.
    fn bind_node(&self, directory: BorrowedFd<'_>, name: &str, node: Node<'_>) -> nix::Result<()> {
        if let Ok(existing) = path_nofollow(directory, name)
            && is_device(existing.as_fd(), node)?
        {
            return Ok(());
        }
        let host = mount::open_tree(CWD, Path::new(node.path), false, true)?;
        if !is_device(host.as_fd(), node)? {
            return Err(Errno::ENODEV);
        }
        let target = match path_nofollow(directory, name) {
            Err(Errno::ENOENT) => {
                rustix::fs::mknodat(directory, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
                    .map_err(crate::sys::errno)?;
                path_nofollow(directory, name)?
            }
            found => found?,
        };
        mount::attach(host.as_fd(), target.as_fd())
    }
}

fn path_nofollow(directory: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    use rustix::fs::OFlags;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(crate::sys::errno)
}

fn is_device(fd: BorrowedFd<'_>, node: Node<'_>) -> nix::Result<bool> {
    let stat = path::stat(fd)?;
    Ok(path::file_type(&stat) == node.kind && stat.st_rdev == makedev(node.major, node.minor))
}
