//! Making the mounts: each is made detached, changed, and attached to an fd in the rootfs.

use super::cgroup_view::{self, CgroupView};
use super::copy_up;
use super::overlay::Overlay;
use super::plan::{Plan, Source, Step};
use crate::error::{Class, Context, Error, Result};
use crate::sys::mount::{self, Attributes, Change, Filesystem, Propagation};
use crate::sys::path::{self, Leaf, Root};
use crate::sys::procfs::Proc;
use nix::errno::Errno;
use rustix::fs::{CWD, Mode, OFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A rootfs that is being put together, not yet entered.
#[derive(Debug)]
pub struct Building<'a> {
    pub(super) plan: &'a Plan,
    pub(super) root: Root,
    /// The procfs that config.json mounted, for writes that must really reach procfs.
    pub(super) proc: Option<Proc>,
    /// Whether this process is in a user namespace of the container's.
    pub(super) in_user_namespace: bool,
    /// The trees of steps that dhow itself has made, by their place in the plan.
    prepared: &'a [(usize, OwnedFd)],
}

impl<'a> Building<'a> {
    /// Cuts the mount namespace off from the host's and binds the rootfs, so that it is a mount
    /// of its own, as pivot_root(2) asks.
    ///
    /// # Errors
    /// [`Class::Config`] when the rootfs is not there or is no directory.
    pub fn begin(
        plan: &'a Plan,
        in_user_namespace: bool,
        prepared: &'a [(usize, OwnedFd)],
    ) -> Result<Building<'a>> {
        // Mounts of the host made later still arrive (slave) unless the configuration says otherwise.
        let (propagation, recursive) = plan.propagation.unwrap_or((Propagation::Slave, true));
        mount::set_propagation(Path::new("/"), propagation, recursive)
            .doing("set the propagation of the host's mounts")?;
        let spreads = propagation == Propagation::Shared;
        let rootfs = || plan.rootfs.display().to_string();
        let bound = || {
            mount::open_tree(CWD, &plan.rootfs, true, true)
                .map_err(|errno| Error::system("bind the rootfs", errno).on(rootfs()).class(Class::Config))
        };
        let copy = plan.overlay.as_ref().map_or_else(bound, Overlay::mount)?;
        if !path::is_directory(copy.as_fd()).doing_on("look at the rootfs", rootfs)? {
            return Err(Error::new(Class::Config, "bind the rootfs").on(rootfs()).errno(Errno::ENOTDIR));
        }
        if propagation != Propagation::Slave || !recursive {
            make_parent_private(&plan.rootfs)?;
        }
        let target =
            rustix::fs::open(&plan.rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .doing_on("open the rootfs", rootfs)?;
        if spreads {
            // pivot_root(2) takes no shared root either; it becomes shared once it is entered.
            let change = Change { propagation: Some(Propagation::Private), ..Change::none() };
            mount::change(copy.as_fd(), change, false).doing_on("make the rootfs private", rootfs)?;
        }
        mount::attach(copy.as_fd(), target.as_fd()).doing_on("bind the rootfs", rootfs)?;
        Ok(Building { plan, root: Root::from(copy), proc: None, in_user_namespace, prepared })
    }

    /// Makes the mounts of config.json, in order.
    ///
    /// # Errors
    /// The first that fails, with its place in config.json.
    pub fn mount_all(&mut self, cgroups: &CgroupView) -> Result<()> {
        let plan = self.plan;
        plan.steps.iter().enumerate().try_for_each(|(index, step)| {
            match self.prepared.iter().find(|(place, _)| *place == index) {
                Some((_, tree)) => self.attach_tree(step, tree.as_fd()),
                None => self.mount_one(step, cgroups),
            }
        })
    }

    /// Makes a directory unless it is there: an image's working directory need not be in the image.
    ///
    /// # Errors
    /// mkdirat(2)'s: ENOTDIR for what is something else.
    pub fn make_directory(&self, path: &str) -> Result<()> {
        let made = self.root.make(Path::new(path), Leaf::Directory);
        made.map(drop).doing_on("make the working directory", || path)
    }

    /// Every path of the container is resolved through it.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The procfs of the container, if config.json mounts one.
    pub fn take_proc(&mut self) -> Option<Proc> {
        self.proc.take()
    }

    fn mount_one(&mut self, step: &Step, cgroups: &CgroupView) -> Result<()> {
        match &step.source {
            Source::Bind { source, recursive } => self.bind(step, source, *recursive),
            Source::Cgroup => cgroup_view::mount(self, step, cgroups),
            Source::Filesystem { kind, source, data } => self.filesystem(step, kind, source, data),
        }
    }

    fn bind(&self, step: &Step, source: &Path, recursive: bool) -> Result<()> {
        self.attach_tree(step, open_source(step, source, recursive)?.as_fd())
    }

    fn attach_tree(&self, step: &Step, tree: BorrowedFd<'_>) -> Result<()> {
        let leaf = if path::is_directory(tree).doing_on("look at the source of", || &*step.field)? {
            Leaf::Directory
        } else {
            Leaf::File
        };
        let target = self.target(step, leaf)?;
        self.finish(step, tree, target.as_fd())
    }

    fn filesystem(
        &mut self,
        step: &Step,
        kind: &str,
        source: &str,
        data: &[(String, Option<String>)],
    ) -> Result<()> {
        // Looked up first: a place that is made here has no mode of its own to pass on.
        let covers = self.root.resolve(&step.target).is_ok();
        let target = self.target(step, Leaf::Directory)?;
        let filesystem = Filesystem::open(kind).map_err(|errno| {
            let error = Error::system("mount", errno).on(&step.field);
            if errno == Errno::ENODEV {
                error.because(format!("the kernel has no filesystem {kind:?}"))
            } else {
                error
            }
        })?;
        self.configure(&filesystem, kind, source, data, covers.then_some(&target)).map_err(|errno| {
            let error = Error::system("mount", errno).on(&step.field);
            match filesystem.complaint() {
                Some(complaint) => error.because(complaint),
                None => error,
            }
        })?;
        let mounted = filesystem.mount(new_mount_attributes(step)).map_err(|errno| {
            let error = Error::system("mount", errno).on(&step.field);
            match filesystem.complaint() {
                Some(complaint) => error.because(complaint),
                None => error,
            }
        })?;
        if step.copy_up && kind == "tmpfs" {
            copy_up::copy(target.as_fd(), mounted.as_fd())
                .doing_on("copy the image's files into", || &*step.field)?;
        }
        self.finish(step, mounted.as_fd(), target.as_fd())?;
        if kind == "proc" && step.target == Path::new("/proc") {
            self.proc = Proc::verified(mounted).ok();
        }
        Ok(())
    }

    fn configure(
        &self,
        filesystem: &Filesystem,
        kind: &str,
        source: &str,
        data: &[(String, Option<String>)],
        covered: Option<&OwnedFd>,
    ) -> nix::Result<()> {
        if !source.is_empty() {
            filesystem.set("source", source)?;
        }
        // A tmpfs takes the mode of the directory that it covers, as runc does; an explicit mode,
        // coming later, wins.
        if let (Some(covered), "tmpfs", false) = (covered, kind, data.iter().any(|(key, _)| key == "mode")) {
            let mode = path::stat(covered.as_fd())?.st_mode & 0o7777;
            filesystem.set("mode", &format!("{mode:o}"))?;
        }
        for (key, value) in data {
            match value {
                Some(value) => filesystem.set(key, value)?,
                None => filesystem.set_flag(key)?,
            }
        }
        Ok(())
    }

    /// The place of a mount, made when it is missing.
    pub(super) fn target(&self, step: &Step, leaf: Leaf) -> Result<OwnedFd> {
        let failed = |errno| {
            Error::system("make the mount point", errno)
                .on(&step.field)
                .class(Class::Config)
                .hint("the path is resolved inside the rootfs")
        };
        if step.needs_real_directory() {
            match self.root.resolve_without_symlinks(&step.target) {
                Ok(found) => return Ok(found),
                Err(Errno::ENOENT) => {}
                Err(Errno::ELOOP) => {
                    return Err(Error::config(
                        &step.field,
                        "must be mounted on ordinary directory, but its place in the rootfs is reached through a \
                         symlink",
                    )
                    .hint("an image could point it at files that only look like the kernel's"));
                }
                Err(errno) => return Err(failed(errno)),
            }
        }
        self.root.make(&step.target, leaf).map_err(failed)
    }

    /// Changes a detached mount as the options say, and attaches it.
    pub(super) fn finish(&self, step: &Step, mounted: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
        let doing_on = |errno| Error::system("set the mount's options", errno).on(&step.field);
        if matches!(step.source, Source::Bind { .. }) && !step.change.is_none() {
            mount::change(mounted, step.change, false).map_err(doing_on)?;
        }
        if !step.recursive.is_none() {
            mount::change(mounted, step.recursive, true).map_err(doing_on)?;
        }
        mount::attach(mounted, target).map_err(|errno| match errno {
            Errno::ENOTDIR => Error::system("mount", errno)
                .on(&step.field)
                .because("a directory cannot be mounted onto a file, nor a file onto a directory"),
            _ => Error::system("mount", errno).on(&step.field),
        })?;
        // Propagation is a matter of where it is attached: a parent that is shared would make it so.
        for &(propagation, recursive) in &step.propagation {
            let change = Change { propagation: Some(propagation), ..Change::none() };
            mount::change(mounted, change, recursive).map_err(doing_on)?;
        }
        Ok(())
    }
}

/// A detached copy of what a bind mount shows.
pub(super) fn open_source(step: &Step, source: &Path, recursive: bool) -> Result<OwnedFd> {
    mount::open_tree(CWD, source, recursive, true).map_err(|errno| {
        let error = Error::system("mount", errno).on(&step.field).class(Class::Config);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => error.because(format!("bind source {}", source.display())),
            _ => error,
        }
    })
}

/// The attributes of a mount that is new, and so has nothing to clear.
fn new_mount_attributes(step: &Step) -> Attributes {
    step.change.set
}

/// pivot_root(2) refuses a new root whose parent mount is shared, and the bind would spread.
fn make_parent_private(rootfs: &Path) -> Result<()> {
    let doing = "make the rootfs's parent mount private";
    let mut directory = rootfs;
    loop {
        match mount::set_propagation(directory, Propagation::Private, false) {
            // Not a mount point: the mount is that of a directory further up.
            Err(Errno::EINVAL) => match directory.parent() {
                Some(parent) => directory = parent,
                None => return Err(Error::system(doing, Errno::EINVAL)),
            },
            result => return result.doing(doing),
        }
    }
}
