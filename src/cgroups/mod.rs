//! The container's cgroup: where it is, its limits, who is in it, and what it has used.
//!
//! [`Manager::plan`] decides where it goes; nothing is made before [`Manager::create`]. In between
//! the caller writes [`Manager::record`] into its journal, from which [`Manager::from_record`]
//! has the same manager again in a later command, without looking at anything.

mod controller;
mod delegate;
mod device_program;
mod devices;
mod dir;
mod layout;
mod leftover;
mod limits;
mod limits_v1;
mod limits_v2;
mod node;
mod oom;
mod place;
pub mod resctrl;
mod signal;
mod stats;
pub mod systemd;
pub mod v1;
pub mod v2;
mod write;

pub use devices::default_device_rules;
pub use leftover::{Marked, marked};
pub use oom::{Oom, OomEvent, OomWatch};
pub use stats::{
    Blkio, BlkioEntry, Cpu, CpuUsage, Hugetlb, Memory, MemoryEntry, Pids, Psi, PsiData, Stats, Throttling,
};

use crate::error::{Class, Context, Error, Result};
use crate::spec::{DeviceRule, Resources};
use layout::Layout;
use node::Node;
use place::Place;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who makes the cgroup: `--cgroup-manager`, `--systemd-cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// dhow, by mkdir(2).
    Cgroupfs,
    /// systemd, as a scope.
    Systemd,
    /// Nobody: the container stays in the caller's cgroup.
    Disabled,
}

/// A container's cgroup.
#[derive(Debug)]
pub enum Manager {
    /// On cgroup v1, also of a hybrid host.
    V1(v1::Hierarchies),
    /// On cgroup v2.
    V2(v2::Unified),
    /// Made by systemd, on either.
    Systemd(systemd::Unit),
    /// It has none.
    Disabled,
}

/// What is stored of a [`Manager`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which kind.
    kind: RecordKind,
    /// The container's cgroup in each hierarchy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeRecord>,
    /// systemd's unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<systemd::UnitRecord>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RecordKind {
    V1,
    V2,
    Systemd,
    #[default]
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NodeRecord {
    /// Where the hierarchy is mounted.
    #[serde(rename = "m")]
    mount: String,
    /// Its name as in `/proc/self/cgroup`; empty for cgroup2.
    #[serde(rename = "h", default, skip_serializing_if = "String::is_empty")]
    hierarchy: String,
    /// The cgroup below the mount.
    #[serde(rename = "p")]
    path: String,
    /// How many directories above it are the container's own.
    #[serde(rename = "u", default, skip_serializing_if = "is_zero")]
    parents: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl NodeRecord {
    fn of(hierarchy: &str, node: &Node) -> NodeRecord {
        let (mount, path) = (node.mount.clone(), node.path.clone());
        NodeRecord { mount, hierarchy: hierarchy.to_owned(), path, parents: node.parents }
    }

    fn node(&self) -> Node {
        Node::new(self.mount.clone(), self.path.clone(), self.parents)
    }
}

impl Record {
    /// The directories that `create` makes, in every hierarchy with the deepest last.
    pub fn directories(&self) -> Vec<String> {
        let all = self.nodes.iter().map(NodeRecord::node);
        let all = all.collect::<Vec<_>>();
        if let Some(unit) = &self.unit {
            return unit.directories();
        }
        all.into_iter()
            .flat_map(|node| node.own_directories().into_iter().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

/// How a process gets into the container's cgroup.
#[derive(Debug)]
pub enum Placement {
    /// It stays where it is.
    None,
    /// clone3(2) with `CLONE_INTO_CGROUP` and this directory.
    IntoCgroup(OwnedFd),
    /// The child itself, single-threaded, writes `0` into each: [`Placement::enter_self`].
    Tasks(Vec<OwnedFd>),
    /// Both, on a hybrid host.
    Hybrid(OwnedFd, Vec<OwnedFd>),
}

impl Placement {
    /// The directory for `CLONE_INTO_CGROUP`, where there is one.
    pub fn cgroup_fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Placement::IntoCgroup(fd) | Placement::Hybrid(fd, _) => Some(fd.as_fd()),
            Placement::None | Placement::Tasks(_) => None,
        }
    }

    /// The files that the child writes into by [`Placement::enter_self`].
    pub fn task_fds(&self) -> &[OwnedFd] {
        match self {
            Placement::Tasks(fds) | Placement::Hybrid(_, fds) => fds,
            Placement::None | Placement::IntoCgroup(_) => &[],
        }
    }

    /// Moves the calling thread through the `tasks` files; to be called by a process with one
    /// thread. It takes no lock that all processes share, as a write to `cgroup.procs` does.
    ///
    /// # Errors
    /// The system's: ENOSPC for an empty cpuset, EAGAIN or EBUSY for what limits refuse.
    pub fn enter_self(&self) -> Result<()> {
        for fd in self.task_fds() {
            rustix::io::write(fd, b"0").doing("enter the container's cgroup")?;
        }
        Ok(())
    }

    /// [`Placement::enter_self`] for a process that was not started by clone3 with
    /// [`Placement::cgroup_fd`].
    ///
    /// # Errors
    /// As [`Placement::enter_self`].
    pub fn enter_self_fully(&self) -> Result<()> {
        if let Some(fd) = self.cgroup_fd() {
            let procs =
                rustix::fs::openat(fd, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
            let procs = procs.doing("enter the container's cgroup")?;
            rustix::io::write(&procs, b"0").doing("enter the container's cgroup")?;
        }
        self.enter_self()
    }
}

/// A hierarchy that the container has a cgroup in; what a `cgroup` mount of the container is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// Where it is mounted on the host; the last name of it is customary inside too.
    pub at: String,
    /// `cpu,cpuacct`, `name=systemd` as the options of a v1 mount; empty for cgroup2.
    pub hierarchy: String,
    /// The container's cgroup below `at`: `/docker/abc`.
    pub path: String,
}

impl Manager {
    /// Decides where the container's cgroup is. Reads how the host has its cgroups mounted;
    /// makes nothing.
    ///
    /// `cgroups_path` is `linux.cgroupsPath`: an absolute path counts from the root of each
    /// hierarchy, a relative one from the runtime's own cgroup (on v2 from its parent, because a
    /// cgroup with processes cannot give controllers to children). Absent it is `/<id>`.
    ///
    /// # Errors
    /// A path that climbs out or is none; a host without cgroups.
    pub fn plan(driver: Driver, cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<Manager> {
        match driver {
            Driver::Disabled => return Ok(Manager::Disabled),
            Driver::Systemd => {
                return Ok(Manager::Systemd(systemd::Unit::plan(cgroups_path, id, rootless)?));
            }
            Driver::Cgroupfs => {}
        }
        let place = Place::read(cgroups_path, id, rootless)?;
        let is_below_own = matches!(place, Place::BelowOwn(_));
        let layout = Layout::of_host(is_below_own)?;
        let own = if is_below_own { layout::read_proc("/proc/self/cgroup")? } else { String::new() };
        let forgiving = rootless && cgroups_path.is_none_or(str::is_empty);
        let manager = match layout {
            Layout::V1(mounts) => Manager::V1(v1::Hierarchies::plan(&mounts, &place, &own, forgiving)),
            Layout::V2(mount) => Manager::V2(v2::Unified::plan(&mount, &place, &own, forgiving)),
        };
        manager.refuse_occupied()?;
        Ok(manager)
    }

    /// Refuses a cgroup with processes before anything is written down about it, so that no journal
    /// ever names a stranger's. Cgroups are made in one order, so the first one tells.
    fn refuse_occupied(&self) -> Result<()> {
        let first = match self {
            Manager::V1(v1) => v1.first(),
            Manager::V2(v2) => v2.dir(),
            Manager::Systemd(_) | Manager::Disabled => None,
        };
        match first {
            Some(dir) if rustix::fs::access(dir.path(), rustix::fs::Access::EXISTS).is_ok() => {
                node::refuse_occupied(dir, &self.pids()?)
            }
            _ => Ok(()),
        }
    }

    /// What to store. Again after [`Manager::create`], which may have left out hierarchies.
    pub fn record(&self) -> Record {
        match self {
            Manager::V1(v1) => Record { kind: RecordKind::V1, nodes: v1.record(), unit: None },
            Manager::V2(v2) => Record { kind: RecordKind::V2, nodes: v2.record(), unit: None },
            Manager::Systemd(unit) => {
                Record { kind: RecordKind::Systemd, nodes: Vec::new(), unit: Some(unit.record()) }
            }
            Manager::Disabled => Record::default(),
        }
    }

    /// The manager that was stored. Opens nothing.
    pub fn from_record(record: &Record) -> Manager {
        match record.kind {
            RecordKind::V1 => Manager::V1(v1::Hierarchies::from_record(&record.nodes)),
            RecordKind::V2 => Manager::V2(v2::Unified::from_record(&record.nodes)),
            RecordKind::Systemd => match &record.unit {
                Some(unit) => Manager::Systemd(systemd::Unit::from_record(unit)),
                None => Manager::Disabled,
            },
            RecordKind::Disabled => Manager::Disabled,
        }
    }

    /// Makes the cgroup. On failure it takes back what it has made, and only that; what was there
    /// before is a stranger's, so the manager has none then and [`Manager::destroy`] does nothing.
    ///
    /// # Errors
    /// A cgroup that is there already and holds processes or is frozen; the system's.
    pub fn create(&mut self) -> Result<()> {
        let result = match self {
            Manager::V1(v1) => v1.create(),
            Manager::V2(v2) => v2.create(),
            // It cannot be empty: adopt() makes it.
            Manager::Systemd(_) => Ok(()),
            Manager::Disabled => Ok(()),
        };
        if result.is_err() {
            *self = Manager::Disabled;
        }
        result
    }

    /// Sets the limits of the cgroup that was just made: `linux.resources`. Devices are denied but
    /// for `resources.devices` and [`default_device_rules`], which are added to them here.
    ///
    /// # Errors
    /// One that names field, value and range, or the controller that is missing.
    pub fn apply(&self, resources: &Resources) -> Result<()> {
        let mut devices = resources.devices.clone();
        devices.extend(default_device_rules());
        self.apply_with(resources, Some(&devices), false)
    }

    /// [`Manager::apply`] in a user namespace or without privileges, where device rules cannot be
    /// set (and a process could not make or open devices that its user may not).
    ///
    /// # Errors
    /// As [`Manager::apply`].
    pub fn apply_rootless(&self, resources: &Resources) -> Result<()> {
        self.apply_with(resources, None, true)
    }

    fn apply_with(
        &self,
        resources: &Resources,
        devices: Option<&[DeviceRule]>,
        rootless: bool,
    ) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.apply(resources, devices),
            Manager::V2(v2) => v2.apply(resources, devices, rootless),
            Manager::Systemd(unit) if unit.is_started() => {
                unit.inner().apply_with(resources, devices, rootless)
            }
            // What is wrong is better found out before a process is started.
            Manager::Systemd(_) => limits::check(resources),
            Manager::Disabled => refuse_limits(resources),
        }
    }

    /// Changes limits while the container runs. 0 leaves a limit as it is, -1 lifts it, no
    /// `devices` leave the device rules alone. If one value is not taken, all keep the old ones.
    ///
    /// # Errors
    /// As [`Manager::apply`].
    pub fn update(&self, resources: &Resources) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.update(resources, || Ok(())),
            Manager::V2(v2) => v2.update(resources, || Ok(())),
            Manager::Systemd(unit) => unit.update(resources),
            Manager::Disabled => refuse_limits(resources),
        }
    }

    /// Whether the cgroup is made around the container's init, by [`Manager::adopt`], and not
    /// before it by [`Manager::create`].
    pub fn needs_adopt(&self) -> bool {
        matches!(self, Manager::Systemd(unit) if !unit.is_started())
    }

    /// Makes the unit around the container's init, which waits meanwhile and has not yet unshared
    /// its cgroup namespace, and sets the limits. To be called after the process was started, where
    /// [`Manager::needs_adopt`]; [`Manager::record`] is to be stored again afterwards. Otherwise it
    /// does nothing.
    ///
    /// # Errors
    /// No systemd; what systemd says; as [`Manager::apply`].
    pub fn adopt(&mut self, pid: i32, resources: &Resources, rootless: bool) -> Result<()> {
        match self {
            Manager::Systemd(unit) if !unit.is_started() => unit.adopt(pid, resources, rootless),
            _ => Ok(()),
        }
    }

    /// Gives the container a cgroup inside systemd's unit (annotation `run.oci.systemd.subgroup`),
    /// whose own files systemd then has for itself. Before [`Manager::adopt`].
    ///
    /// # Errors
    /// A name that climbs out.
    pub fn set_subgroup(&mut self, name: &str) -> Result<()> {
        match self {
            Manager::Systemd(unit) => unit.set_subgroup(name),
            _ => Ok(()),
        }
    }

    /// Properties for systemd's unit (annotations `org.systemd.property.NAME`, as of runc). Before
    /// [`Manager::adopt`]; other drivers have no use for them.
    ///
    /// # Errors
    /// A name or value that cannot be read.
    pub fn set_properties(&mut self, annotations: &BTreeMap<String, String>) -> Result<()> {
        match self {
            Manager::Systemd(unit) => unit.set_properties(annotations),
            _ => Ok(()),
        }
    }

    /// How the container's init gets in; after [`Manager::create`].
    ///
    /// # Errors
    /// The system's.
    pub fn placement(&self) -> Result<Placement> {
        match self {
            Manager::V1(v1) => v1.placement(),
            Manager::V2(v2) => v2.placement(),
            Manager::Systemd(unit) if unit.is_started() => unit.inner().placement(),
            Manager::Systemd(_) => Ok(Placement::None),
            Manager::Disabled => Ok(Placement::None),
        }
    }

    /// How a further process gets in. `subs` are the values of `exec --cgroup`: a path inside the
    /// container's cgroup, on v1 also `controller[,controller]:path`. Without any it is the
    /// container's cgroup, or on v2, where that one can hold no process any more, the one of `init`.
    ///
    /// # Errors
    /// A path that climbs out, a controller that the container has not; the system's.
    pub fn placement_for_exec(&self, subs: &[String], init: Option<i32>) -> Result<Placement> {
        match self {
            Manager::V1(v1) => v1.placement_for_exec(subs),
            Manager::V2(v2) => v2.placement_for_exec(subs, init),
            Manager::Systemd(unit) => unit.inner().placement_for_exec(subs, init),
            Manager::Disabled => Ok(Placement::None),
        }
    }

    /// Stops every process, and those that are forked meanwhile; returns when all stand still.
    ///
    /// # Errors
    /// No cgroup or freezer; a process that does not stop within ten seconds (all run on then).
    pub fn freeze(&self) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.freeze(),
            Manager::V2(v2) => v2.freeze(),
            Manager::Systemd(unit) => unit.inner().freeze(),
            Manager::Disabled => Err(no_cgroup("pause the container")),
        }
    }

    /// Lets them run again.
    ///
    /// # Errors
    /// No cgroup or freezer; the system's.
    pub fn thaw(&self) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.thaw(),
            Manager::V2(v2) => v2.thaw(),
            Manager::Systemd(unit) => unit.inner().thaw(),
            Manager::Disabled => Err(no_cgroup("resume the container")),
        }
    }

    /// Whether the container is frozen or about to be.
    ///
    /// # Errors
    /// The system's; a cgroup that is gone is not frozen.
    pub fn is_frozen(&self) -> Result<bool> {
        match self {
            Manager::V1(v1) => v1.is_frozen(),
            Manager::V2(v2) => v2.is_frozen(),
            Manager::Systemd(unit) => unit.inner().is_frozen(),
            Manager::Disabled => Ok(false),
        }
    }

    /// The pids of the container's processes, also in cgroups made inside it, in ascending order.
    ///
    /// # Errors
    /// No cgroup; the system's. A cgroup that is gone has no processes.
    pub fn pids(&self) -> Result<Vec<i32>> {
        match self {
            Manager::V1(v1) => v1.pids(),
            Manager::V2(v2) => v2.pids(),
            Manager::Systemd(unit) => unit.inner().pids(),
            Manager::Disabled => Err(no_cgroup("list the container's processes")),
        }
    }

    /// Sends a signal to every process. After SIGKILL none is left that would survive it, frozen
    /// or forking, but they may still be dying.
    ///
    /// # Errors
    /// No cgroup; the system's. A cgroup that is gone or empty is no error.
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.kill_all(signal),
            Manager::V2(v2) => v2.kill_all(signal),
            Manager::Systemd(unit) => unit.inner().kill_all(signal),
            Manager::Disabled => Err(no_cgroup("signal the container's processes")),
        }
    }

    /// Removes the cgroup, those made inside it, and the parents made for it; waits for processes
    /// that are dying. Kills and moves nobody. What is gone already is fine.
    ///
    /// # Errors
    /// Processes that are still there after ten seconds, by pid; the system's.
    pub fn destroy(&mut self) -> Result<()> {
        match self {
            Manager::V1(v1) => v1.destroy(),
            Manager::V2(v2) => v2.destroy(),
            Manager::Systemd(unit) => unit.destroy(),
            Manager::Disabled => Ok(()),
        }
    }

    /// The hierarchies that the container has a cgroup in, and where.
    pub fn mounts(&self) -> Vec<CgroupMount> {
        match self {
            Manager::V1(v1) => v1.mounts(),
            Manager::V2(v2) => v2.mounts(),
            Manager::Systemd(unit) => unit.inner().mounts(),
            Manager::Disabled => Vec::new(),
        }
    }
}

fn no_cgroup(doing: &str) -> Error {
    Error::new(Class::Unsupported, doing)
        .because("it has no cgroup")
        .hint("it was created with --cgroup-manager disabled")
}

/// Without a cgroup a limit cannot hold, and pretending would be worse than an error.
fn refuse_limits(resources: &Resources) -> Result<()> {
    let without_devices = Resources { devices: Vec::new(), ..resources.clone() };
    let writes = limits_v2::plan(&without_devices, limits::Mode::Create, limits_v2::Current::default());
    match writes.ok().as_deref() {
        Some([]) => Ok(()),
        Some([write, ..]) => {
            Err(no_cgroup("set a cgroup limit").on(format!("{} {}", write.field, write.value)))
        }
        None => Err(no_cgroup("set cgroup limits").on("linux.resources")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_the_same_manager_again() {
        let json = r#"{"kind":"v1","nodes":[{"m":"/cg/cpu,cpuacct","h":"cpu,cpuacct","p":"/a/b","u":1},
            {"m":"/cg/unified","p":"/a/b"}]}"#;
        let record: Record = serde_json::from_str(json).unwrap();
        let manager = Manager::from_record(&record);
        assert_eq!(manager.record(), record);
        assert_eq!(record.directories(), ["/cg/cpu,cpuacct/a", "/cg/cpu,cpuacct/a/b", "/cg/unified/a/b"]);
        assert_eq!(manager.mounts()[0].hierarchy, "cpu,cpuacct");
        assert_eq!(Manager::from_record(&Record::default()).record(), Record::default());
    }

    #[test]
    fn without_a_cgroup_limits_are_refused_and_nothing_else() {
        let nothing = Resources::default();
        Manager::Disabled.apply(&nothing).unwrap();
        let limits: Resources = serde_json::from_str(r#"{"pids":{"limit":5}}"#).unwrap();
        let error = Manager::Disabled.apply(&limits).unwrap_err().to_string();
        assert!(error.contains("linux.resources.pids.limit 5"), "{error}");
        assert!(Manager::Disabled.freeze().is_err());
    }
}
