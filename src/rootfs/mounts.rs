//! Making the mounts: each is made detached, changed, and attached to an fd in the rootfs.

use super::cgroup_view::{self, CgroupView};
use super::copy_up;
use super::plan::{Plan, Source, Step};
use crate::error::{Class, Context, Error, Result};
use crate::sys::io_errno;
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
    /// What becomes read-only when everything is in its place.
    late_readonly: Vec<(&'a Step, OwnedFd)>,
}

/// Maps the owners of a tree for the step of a number, which takes more rights than the init may
/// have: asked of the parent.
pub type MapOwners<'a> = dyn Fn(usize, OwnedFd) -> Result<()> + 'a;

impl<'a> Building<'a> {
    /// Cuts the mount namespace off from the host's and binds the rootfs, so that it is a mount
    /// of its own, as pivot_root(2) asks. `root` is the overlay of the plan, where it is mounted already.
    ///
    /// # Errors
    /// [`Class::Config`] when the rootfs is not there or is no directory.
    pub fn begin(plan: &'a Plan, root: Option<OwnedFd>, in_user_namespace: bool) -> Result<Building<'a>> {
        // Mounts of the host made later still arrive (slave) unless the configuration says otherwise.
        let (propagation, recursive) = plan.propagation.unwrap_or((Propagation::Slave, true));
        if plan.own_namespace {
            // What is unbindable could not even be bound here; the root becomes so once it is entered.
            let of_host =
                if propagation == Propagation::Unbindable { Propagation::Private } else { propagation };
            mount::set_propagation(Path::new("/"), of_host, recursive)
                .doing("set the propagation of the host's mounts")?;
        }
        let rootfs = || plan.rootfs.display().to_string();
        let bound = || {
            mount::open_tree(CWD, &plan.rootfs, true, true)
                .map_err(|errno| Error::system("bind the rootfs", errno).on(rootfs()).class(Class::Config))
        };
        let copy = match (root, &plan.overlay) {
            (Some(root), _) => root,
            (None, Some(overlay)) => overlay.mount()?,
            (None, None) => bound()?,
        };
        if !path::is_directory(copy.as_fd()).doing_on("look at the rootfs", rootfs)? {
            return Err(Error::new(Class::Config, "bind the rootfs").on(rootfs()).errno(Errno::ENOTDIR));
        }
        if plan.own_namespace && (propagation != Propagation::Slave || !recursive) {
            make_parent_private(&plan.rootfs)?;
        }
        let open = |path: &Path| {
            rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        let target = match open(&plan.rootfs) {
            // Root of a user namespace cannot search the image store: it was made in this directory.
            Err(rustix::io::Errno::ACCESS) if plan.overlay.is_some() => open(Path::new(".")),
            opened => opened,
        };
        let target = target.doing_on("open the rootfs", rootfs)?;
        if plan.reaches_host() || !plan.own_namespace {
            // What is mounted in it must not be so on the host; pivot_root(2) takes no shared root
            // either. It becomes what was asked for once it is entered.
            let change = Change { propagation: Some(Propagation::Private), ..Change::none() };
            mount::change(copy.as_fd(), change, !plan.own_namespace)
                .doing_on("make the rootfs private", rootfs)?;
        }
        mount::attach(copy.as_fd(), target.as_fd()).doing_on("bind the rootfs", rootfs)?;
        Ok(Building {
            plan,
            root: Root::from(copy),
            proc: None,
            in_user_namespace,
            late_readonly: Vec::new(),
        })
    }

    /// Makes the mounts of config.json, in order. `trees` are those that dhow itself has opened, by
    /// their place in the plan.
    ///
    /// # Errors
    /// The first that fails, with its place in config.json.
    pub fn mount_all(
        &mut self,
        cgroups: &CgroupView,
        trees: &[(usize, OwnedFd)],
        map_owners: &MapOwners<'_>,
    ) -> Result<()> {
        let plan = self.plan;
        plan.steps.iter().enumerate().try_for_each(|(index, step)| {
            match (trees.iter().find(|(place, _)| *place == index), &step.source) {
                (Some((_, tree)), _) => self.attach_tree(step, tree.as_fd()),
                (None, Source::Bind { .. }) => self.bind(index, step, map_owners),
                (None, Source::Cgroup) => cgroup_view::mount(self, step, cgroups),
                (None, Source::Filesystem { kind, source, data }) => {
                    self.filesystem(step, kind, source, data)
                }
            }
        })
    }

    /// Makes read-only what had to stay writable until now.
    ///
    /// # Errors
    /// mount_setattr(2)'s.
    pub fn settle(&mut self) -> Result<()> {
        let change = Change { set: Attributes::MOUNT_ATTR_RDONLY, ..Change::none() };
        self.late_readonly.drain(..).try_for_each(|(step, mounted)| {
            mount::change(mounted.as_fd(), change, false).doing_on("make read-only", || &*step.field)
        })
    }

    /// Makes the working directory unless it is there, as runc and crun do: that of an image need not be in the
    /// image. Where it cannot be made, entering it says why.
    pub fn make_working_directory(&self, path: &str) {
        if path != "/" {
            let _ = self.root.make(Path::new(path), Leaf::Directory);
        }
    }

    /// Every path of the container is resolved through it.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The procfs of the container, if config.json mounts one.
    pub fn take_proc(&mut self) -> Option<Proc> {
        self.proc.take()
    }

    fn bind(&self, index: usize, step: &Step, map_owners: &MapOwners<'_>) -> Result<()> {
        let tree = match step.source_inside(&self.plan.rootfs) {
            Some(path) => {
                let found = match step.symlinks.source_stays {
                    true => self.root.resolve_nofollow(path),
                    false => self.root.resolve(path),
                };
                let source = found.map_err(|errno| source_failed(step, errno))?;
                tree_of(step, source.as_fd(), Path::new(""))?
            }
            None if step.symlinks.copy && self.copy_symlink(step)? => return Ok(()),
            None => source_tree(step)?,
        };
        if step.idmap.is_some() {
            map_owners(index, tree.try_clone().map_err(|error| source_failed(step, io_errno(&error)))?)?;
        }
        self.attach_tree(step, tree.as_fd())
    }

    /// Makes a source that is a symlink again in the container; whether it was one.
    fn copy_symlink(&self, step: &Step) -> Result<bool> {
        let Source::Bind { source, .. } = &step.source else { return Ok(false) };
        let Ok(target) = std::fs::read_link(source) else { return Ok(false) };
        let failed = |errno| Error::system("copy the symlink to", errno).on(&step.field);
        match self.root.make_symlink(&step.target, &target) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Err(failed(Errno::EEXIST)
                .because(format!("there is something else than a symlink to {}", target.display()))),
            Err(errno) => Err(failed(errno)),
        }
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
        step: &'a Step,
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
        if step.is_late_readonly() {
            let kept = mounted.try_clone().map_err(|error| io_errno(&error));
            self.late_readonly.push((step, kept.doing_on("keep", || &*step.field)?));
        }
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
            Error::system("make the mount point", errno).on(&step.field).class(Class::Config).hint(
                match errno {
                    Errno::EROFS => "the rootfs is read-only and does not have it: make it in the image",
                    _ => "the path is resolved inside the rootfs",
                },
            )
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
        if step.symlinks.target_stays
            && let Ok(found) = self.root.resolve_nofollow(&step.target)
        {
            return Ok(found);
        }
        self.root.make(&step.target, leaf).map_err(failed)
    }

    /// Changes a detached mount as the options say, and attaches it.
    pub(super) fn finish(&self, step: &Step, mounted: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
        let doing_on = |errno| Error::system("set the mount's options", errno).on(&step.field);
        if matches!(step.source, Source::Bind { .. }) && !step.change.is_none() {
            change_bind(mounted, step.change).map_err(doing_on)?;
        }
        if !step.recursive.is_none() {
            mount::change(mounted, step.recursive, true).map_err(doing_on)?;
        }
        if !self.plan.own_namespace && matches!(step.source, Source::Bind { recursive: true, .. }) {
            // Delete unmounts them: what is shared with the host's would go from there too.
            let change = Change { propagation: Some(Propagation::Slave), ..Change::none() };
            mount::change(mounted, change, true).map_err(doing_on)?;
        }
        mount::attach(mounted, target).map_err(|errno| attach_failed(step, mounted, target, errno))?;
        // Propagation is a matter of where it is attached: a parent that is shared would make it so.
        for &(propagation, recursive) in &step.propagation {
            let change = Change { propagation: Some(propagation), ..Change::none() };
            mount::change(mounted, change, recursive).map_err(doing_on)?;
        }
        Ok(())
    }
}

/// A detached copy of what a bind mount of the host's shows. To be called in the mount namespace of
/// the container, also by one that has more rights than its init: there the attributes are locked
/// that a user namespace must not change, and propagation is as it should be.
///
/// # Errors
/// [`Class::Config`] when the source is not there.
pub fn source_tree(step: &Step) -> Result<OwnedFd> {
    match &step.source {
        Source::Bind { source, .. } => tree_of(step, CWD, source),
        _ => Err(Error::new(Class::Internal, "bind a mount that is no bind mount").on(&step.field)),
    }
}

fn tree_of(step: &Step, directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let recursive = matches!(&step.source, Source::Bind { recursive: true, .. });
    mount::open_tree(directory, path, recursive, !step.symlinks.source_stays)
        .map_err(|errno| source_failed(step, errno))
}

/// The kernel says EINVAL, for much else too, when one of both is a directory and the other is not.
fn attach_failed(step: &Step, mounted: BorrowedFd<'_>, target: BorrowedFd<'_>, errno: Errno) -> Error {
    let (cause, hint) = match (path::is_directory(mounted), path::is_directory(target)) {
        (Ok(true), Ok(false)) => {
            ("a directory cannot be mounted onto a file", "mount it onto a directory, or a file of it")
        }
        (Ok(false), Ok(true)) => (
            "a file cannot be mounted onto a directory",
            "name the file in the destination too: /etc/app.conf, not /etc",
        ),
        _ => return Error::system("mount", errno).on(&step.field),
    };
    Error::system("mount", Errno::ENOTDIR).class(Class::Config).on(&step.field).because(cause).hint(hint)
}

fn source_failed(step: &Step, errno: Errno) -> Error {
    let error = Error::system("mount", errno).on(&step.field).class(Class::Config);
    match (errno, &step.source) {
        (Errno::ENOENT | Errno::ENOTDIR, Source::Bind { source, .. }) => {
            let error = error.because(format!("bind source {}", source.display()));
            match source.starts_with("/dev") {
                true => {
                    error.hint("the host has no such device: load its driver, or take it out of the mounts")
                }
                false => error.hint("it is a path of the host: make it first, or mend mounts[].source"),
            }
        }
        _ => error,
    }
}

/// The attributes of a mount that is new, and so has nothing to clear.
fn new_mount_attributes(step: &Step) -> Attributes {
    match step.is_late_readonly() {
        true => step.change.set.difference(Attributes::MOUNT_ATTR_RDONLY),
        false => step.change.set,
    }
}

/// Gives a bind mount the attributes that were asked for, and no others of its source's, as
/// mount(2) does with `MS_REMOUNT | MS_BIND`, and so runc: engines rely on it. In a user namespace
/// the source's are locked (mount_namespaces(7)) and stay, unless they were to be cleared: then it
/// is an error.
fn change_bind(mounted: BorrowedFd<'_>, asked: Change) -> nix::Result<()> {
    let lockable = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOEXEC;
    let times = Attributes::MOUNT_ATTR__ATIME | Attributes::MOUNT_ATTR_NODIRATIME;
    let mut least = asked;
    least.clear |= Attributes::MOUNT_ATTR_NOSYMFOLLOW.difference(asked.set);
    if (asked.set | asked.clear).intersects(times) {
        // One word about times of access decides about all of them.
        least.clear |= times.difference(asked.set);
    }
    let all = Change { clear: least.clear | lockable.difference(asked.set), ..least };
    match mount::change(mounted, all, false) {
        Err(Errno::EPERM) => mount::change(mounted, least, false),
        result => result,
    }
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
