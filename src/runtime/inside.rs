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
use crate::sys::mount::{self, Attributes, Change};
use crate::sys::path::Root;
use crate::sys::pidfd;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Pid, geteuid};
use std::os::fd::AsFd;
use std::path::Path;

/// A container's root, open: every path that is resolved in it is as the container's processes see it.
pub(super) struct Inside {
    /// The root.
    pub root: Root,
    /// Who root is in the container, to this process.
    pub owner: (u32, u32),
}

/// Does work with the files of a container. One that does not run is locked meanwhile, and has its
/// volumes in their places, in a mount namespace that only the work sees. Without root's rights the
/// work is done where the container's root is root.
///
/// # Errors
/// [`Class::NoContainer`]; the work's own.
pub(super) fn within(context: &Context, id: &str, work: impl FnOnce(&Inside) -> Result<()>) -> Result<()> {
    let container = Container::open(context, id)?;
    let text = context.store.read_file(id, super::create::CONFIG)?;
    let spec = load::parse::<Spec>(&text, Path::new("config.json"))?;
    // Where this process has become the container's root, that is its own id.
    let owner = if geteuid().is_root() { owner(&spec) } else { (0, 0) };
    if let Some(init) = running(&container)? {
        let look = || work(&Inside { root: root_of(&container, init)?, owner });
        if geteuid().is_root() {
            return look();
        }
        let as_its_root = || {
            if spec.linux.has(NamespaceKind::User) {
                join_user_namespace(init)?;
            }
            look().map(|()| String::new())
        };
        return owners::in_child(CloneFlags::empty(), None, as_its_root).map(drop);
    }
    let (_lock, container) = Container::lock(context, id)?;
    if container.pid() != 0 {
        return Err(Error::new(Class::WrongState, "copy").on(id).because("it has just been started"));
    }
    let with_mounts =
        || work(&Inside { root: put_together(&container, &spec)?, owner }).map(|()| String::new());
    owners::in_mount_namespace(with_mounts).map(drop)
}

/// The init of a container that has processes.
fn running(container: &Container) -> Result<Option<Init>> {
    let runs = matches!(container.status, Status::Created | Status::Running | Status::Paused);
    let boot = boot_id()?;
    Ok(container.record.init.filter(|_| runs && container.record.boot == boot))
}

/// The root of a container's processes.
fn root_of(container: &Container, init: Init) -> Result<Root> {
    let doing = "open the container's root";
    let root = Root::at(Path::new(&format!("/proc/{}/root", init.pid)));
    // Another process may have got the pid: then this was its root.
    match init.is_alive()? {
        true => root.doing_on(doing, || container.record.id.clone()),
        false => Err(Error::new(Class::WrongState, doing)
            .on(container.record.id.clone())
            .because("it has just ended")),
    }
}

fn join_user_namespace(init: Init) -> Result<()> {
    let doing = "enter the container's user namespace";
    let process = pidfd::open(Pid::from_raw(init.pid)).doing(doing)?;
    match init.is_alive()? {
        true => setns(process.as_fd(), CloneFlags::CLONE_NEWUSER).doing(doing),
        false => Err(Error::new(Class::WrongState, doing).because("the container has just ended")),
    }
}

/// The ids that the container's root has on the host.
fn owner(spec: &Spec) -> (u32, u32) {
    let host = |maps: &[crate::spec::IdMapping]| {
        maps.iter().find(|map| map.container_id == 0).map_or(0, |map| map.host_id)
    };
    (host(&spec.linux.uid_mappings), host(&spec.linux.gid_mappings))
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
