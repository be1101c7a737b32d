//! Making the rootfs the root.

use super::masks;
use super::mounts::Building;
use crate::error::{Context, Error, Result};
use crate::sys::mount::{self, Attributes, Change, Propagation};
use crate::sys::path::Root;
use crate::sys::procfs::Proc;
use nix::errno::Errno;
use nix::unistd::{chroot, fchdir, pivot_root};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How the rootfs becomes the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pivot {
    /// pivot_root(2): the host's mounts are gone afterwards.
    Root,
    /// chroot(2) alone: the container has no mount namespace of its own, so the host's mounts are
    /// everybody's.
    Chroot,
    /// `--no-pivot`: MS_MOVE and chroot(2), for a rootfs on an initramfs, which cannot be pivoted.
    Move,
}

/// The container's root, entered.
#[derive(Debug)]
pub struct Entered {
    /// Every path of the container is resolved through it.
    pub root: Root,
    proc: Option<Proc>,
    null: Option<OwnedFd>,
}

impl Building<'_> {
    /// Enters the rootfs.
    ///
    /// # Errors
    /// pivot_root(2)'s, with what it means.
    pub fn enter(mut self, pivot: Pivot, masks_paths: bool) -> Result<Entered> {
        // From here the host's /dev/null can no longer be reached by a path.
        let null = if masks_paths { Some(masks::null_device()?) } else { None };
        let proc = self.take_proc();
        match pivot {
            Pivot::Root => self.pivot()?,
            Pivot::Move => self.move_root()?,
            Pivot::Chroot => {
                fchdir(self.root.as_fd()).doing("chroot into the rootfs")?;
                chroot(".").doing("chroot into the rootfs")?;
            }
        }
        nix::unistd::chdir("/").doing("enter the rootfs")?;
        Ok(Entered { root: self.root, proc, null })
    }

    /// New root and old root are the same directory, so that the rootfs needs no place to put the
    /// old one: afterwards the old one lies on top of it, and is detached (pivot_root(2), NOTES).
    fn pivot(&self) -> Result<()> {
        let doing = "pivot_root into the rootfs";
        let reaches_host = self.plan.reaches_host();
        let host = if reaches_host { Some(Root::at(Path::new("/")).doing(doing)?) } else { None };
        fchdir(self.root.as_fd()).doing(doing)?;
        pivot_root(".", ".").map_err(|errno| {
            let error = Error::system(doing, errno).on(self.plan.rootfs.display().to_string());
            match errno {
                Errno::EINVAL => error.hint("a rootfs on an initramfs needs --no-pivot"),
                _ => error,
            }
        })?;
        if let Some(host) = host {
            // By its fd: a path leads to the new root, which lies below. Where the host's mounts are
            // shared, as systemd makes them, the unmount would otherwise be the host's too.
            let change = Change { propagation: Some(Propagation::Slave), ..Change::none() };
            mount::change(host.as_fd(), change, true).doing(doing)?;
        }
        mount::detach_working_directory().doing("detach the host's mounts")
    }

    /// Without pivot_root the host's mounts stay in the namespace, out of reach below the new
    /// root. A full procfs or sysfs among them would let a user namespace mount another, so they
    /// go first.
    fn move_root(&self) -> Result<()> {
        let doing = "move the rootfs to /";
        let outside = mounts_outside(&self.plan.rootfs)?;
        if self.plan.reaches_host() {
            for (point, _) in &outside {
                // What another covers cannot be reached, nor be unmounted by its path.
                let _ = mount::set_propagation(point, Propagation::Slave, false);
            }
        }
        let is_kernels = |kind: &str| matches!(kind, "proc" | "sysfs");
        for (point, _) in outside.iter().filter(|(_, kind)| is_kernels(kind)) {
            let _ = mount::set_propagation(point, Propagation::Private, true);
            let _ = mount::detach(point);
        }
        fchdir(self.root.as_fd()).doing(doing)?;
        rustix::mount::mount_move(c".", c"/").doing(doing)?;
        chroot(".").doing(doing)
    }
}

/// What is mounted outside the rootfs, and of which kind it is, the deepest first.
fn mounts_outside(rootfs: &Path) -> Result<Vec<(PathBuf, String)>> {
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo()).map_err(|error| {
        Error::new(crate::error::Class::System, "read mountinfo").because(error.to_string())
    })?;
    let outside = mounts.into_iter().filter(|mount| !mount.mount_point.starts_with(rootfs));
    let mut points: Vec<_> = outside.map(|mount| (mount.mount_point, mount.fs_type)).collect();
    points.reverse();
    Ok(points)
}

impl Entered {
    /// A procfs that is safe to write to: the one that config.json mounted, else a private one.
    ///
    /// # Errors
    /// When there is none and none can be made.
    pub fn proc(&mut self) -> Result<&Proc> {
        if self.proc.is_none() {
            self.proc = Some(Proc::mount().doing("mount a private procfs")?);
        }
        self.proc.as_ref().ok_or_else(|| Error::system("mount a private procfs", Errno::ENODEV))
    }

    /// Whether there is a procfs already, so that asking for one costs nothing.
    pub fn has_proc(&self) -> bool {
        self.proc.is_some()
    }

    /// Covers masked paths, and makes paths read-only.
    ///
    /// # Errors
    /// With the path.
    pub fn protect(&self, masked: &[String], readonly: &[String]) -> Result<()> {
        masks::make_readonly(&self.root, readonly)?;
        match &self.null {
            Some(null) => masks::mask(&self.root, masked, null.as_fd()),
            None => Ok(()),
        }
    }

    /// Makes the root itself read-only.
    ///
    /// # Errors
    /// mount_setattr(2)'s.
    pub fn make_readonly(&self) -> Result<()> {
        let change = Change { set: Attributes::MOUNT_ATTR_RDONLY, ..Change::none() };
        mount::change(self.root.as_fd(), change, false).doing("make the rootfs read-only")
    }

    /// Gives the root the propagation that config.json asks for.
    ///
    /// # Errors
    /// mount_setattr(2)'s.
    pub fn set_propagation(&self, (propagation, recursive): (Propagation, bool)) -> Result<()> {
        let change = Change { propagation: Some(propagation), ..Change::none() };
        mount::change(self.root.as_fd(), change, recursive).doing_on("set", || "linux.rootfsPropagation")
    }
}
