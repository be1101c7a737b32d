//! A container's files with its volumes, whether it runs or not.

use super::container::{Container, Context, boot_id};
use crate::error::{Class, Context as _, Error, Result};
use crate::image::owners;
use crate::log;
use crate::namespaces::Maps;
use crate::process::user_namespace;
use crate::rootfs::plan::{Source, Step};
use crate::rootfs::{self, Building, CgroupView, Overlay, Plan};
use crate::spec::{NamespaceKind, Spec, load};
use crate::state::{Init, Status};
use crate::sys::cred::as_owner;
use crate::sys::mount::{self, Attributes, Change};
use crate::sys::path::Root;
use crate::sys::pidfd;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, geteuid};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// What is answered in place of work that came too late for a container's processes.
const ENDED: &str = "ended";

/// How long a container that is ending is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container's root, open: every path that is resolved in it is as the container's processes see it.
pub(super) struct Inside {
    /// The root.
    pub root: Root,
    /// The ids of the container's user namespace, as this process has to map them.
    pub maps: Maps,
}

impl Inside {
    /// Makes files as the container's root does, with this process's rights: on an idmapped mount the host's
    /// root, who has no id there, can make none (EOVERFLOW).
    pub fn as_its_root<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.maps.outside(0, 0) {
            (0, 0) => work(),
            (uid, gid) => as_owner(uid, gid, work).doing("act as the container's root")?,
        }
    }
}

/// Does work with the files of a container. One that does not run is locked meanwhile, and has its
/// volumes in their places, in a mount namespace that only the work sees. Without root's rights the
/// work is done where the container's root is root.
///
/// # Errors
/// [`Class::NoContainer`]; the work's own.
pub(super) fn within(context: &Context, id: &str, work: impl Fn(&Inside) -> Result<()>) -> Result<()> {
    let container = Container::open(context, id)?;
    let text = context.store.read_file(id, super::create::CONFIG)?;
    let spec = load::parse::<Spec>(&text, Path::new("config.json"))?;
    // Where this process has become the container's root, it has the container's ids.
    let maps = if geteuid().is_root() { Maps::of(&spec.linux) } else { Maps::default() };
    let is_hosts = geteuid().is_root() && maps == Maps::default();
    let inside = |root| Inside { root, maps: maps.clone() };
    if let Some(init) = running(&container)? {
        let look = || match root_of(&container, init)? {
            Some(root) => work(&inside(root)).map(|()| String::new()),
            None => Ok(ENDED.to_owned()),
        };
        let as_its_root = || {
            let joins = !geteuid().is_root() && spec.linux.has(NamespaceKind::User);
            if joins && !join_user_namespace(init)? {
                return Ok(ENDED.to_owned());
            }
            look()
        };
        let done = match is_hosts {
            true => look()?,
            false => owners::in_child(CloneFlags::empty(), None, as_its_root)?,
        };
        if done != ENDED {
            return Ok(());
        }
        wait_until_ended(id, init)?;
    }
    let (_lock, container) = Container::lock(context, id)?;
    if container.pid() != 0 {
        return Err(Error::new(Class::WrongState, "copy").on(id).because("it has just been started"));
    }
    let with_mounts = || work(&inside(put_together(&container, &spec)?)).map(|()| String::new());
    owners::in_mount_namespace(with_mounts).map(drop)
}

/// The init of a container that has processes.
fn running(container: &Container) -> Result<Option<Init>> {
    let runs = matches!(container.status, Status::Created | Status::Running | Status::Paused);
    let boot = boot_id()?;
    Ok(container.record.init.filter(|_| runs && container.record.boot == boot))
}

/// The root of a container's processes; `None` when they are ending.
fn root_of(container: &Container, init: Init) -> Result<Option<Root>> {
    let root = Root::at(Path::new(&format!("/proc/{}/root", init.pid)));
    // Another process may have got the pid: then this was its root. One that ends gives up its root before
    // all else, and may then wait for the other processes of its namespace.
    if !init.is_alive()? || matches!(root, Err(Errno::ENOENT | Errno::ESRCH)) {
        return Ok(None);
    }
    root.doing_on("open the container's root", || container.record.id.clone()).map(Some)
}

/// Whether the container's user namespace could be joined: its init may have ended.
fn join_user_namespace(init: Init) -> Result<bool> {
    let doing = "enter the container's user namespace";
    let process = pidfd::open(Pid::from_raw(init.pid));
    if !init.is_alive()? || matches!(process, Err(Errno::ESRCH)) {
        return Ok(false);
    }
    match setns(process.doing(doing)?.as_fd(), CloneFlags::CLONE_NEWUSER) {
        Err(Errno::ESRCH) => Ok(false),
        joined => joined.doing(doing).map(|()| true),
    }
}

/// Waits for a container that is ending, until it is as any stopped one.
fn wait_until_ended(id: &str, init: Init) -> Result<()> {
    let doing = "wait for the container's end";
    match pidfd::open(Pid::from_raw(init.pid)) {
        Ok(process)
            if init.is_alive()? && !pidfd::wait_ended(process.as_fd(), Some(PATIENCE)).doing(doing)? =>
        {
            Err(Error::new(Class::WrongState, doing)
                .on(id)
                .because(format!("after {} s some of its processes are not gone yet", PATIENCE.as_secs())))
        }
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).doing(doing),
    }
}

/// Mounts what a container that has ended had: its root and its volumes, as its init did.
fn put_together(container: &Container, spec: &Spec) -> Result<Root> {
    let record = &container.record;
    let mut plan = Plan::new(spec, &record.bundle)?;
    plan.rootfs.clone_from(&record.rootfs);
    plan.overlay = Overlay::load(&record.bundle)?;
    (plan.own_namespace, plan.propagation) = (true, None);
    if let Some(overlay) = plan.overlay.as_ref().filter(|_| boot_id().is_ok_and(|boot| boot == record.boot)) {
        overlay.allow_again();
    }
    plan.steps.retain(is_volume);
    let steps = &plan.steps;
    let map_owners = |index: usize, tree: std::os::fd::OwnedFd| {
        let step = &steps[index];
        let own = step.idmap.as_ref().and_then(|map| map.own.as_ref());
        let maps = own.map(|(uids, gids)| Maps { uids: uids.clone(), gids: gids.clone() });
        let namespace = user_namespace(&maps.unwrap_or_else(|| Maps::of(&spec.linux)))?;
        rootfs::map_owners(step, tree.as_fd(), namespace.as_fd())
    };
    let mut building = Building::begin(&plan, None, !geteuid().is_root())?;
    building.mount_all(&CgroupView::None, &[], &map_owners)?;
    let doing = "open the container's root";
    let root = building.root().as_fd().try_clone_to_owned().doing(doing)?;
    if plan.readonly {
        let change = Change { set: Attributes::MOUNT_ATTR_RDONLY, ..Change::none() };
        mount::change(root.as_fd(), change, false).doing(doing)?;
    }
    Ok(Root::from(root))
}

/// Whether a mount keeps files when nothing runs: a bind of something that is still there, and of no
/// device or kernel's file.
fn is_volume(step: &Step) -> bool {
    let Source::Bind { source, .. } = &step.source else { return false };
    if ["/dev", "/proc", "/sys"].iter().any(|place| step.target.starts_with(place)) {
        return false;
    }
    let is_there = source.symlink_metadata().is_ok();
    if !is_there {
        log::warn(&format!("{}: {} is not there any more", step.field, source.display()));
    }
    is_there
}
