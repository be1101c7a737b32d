//! cgroup v1: a directory in each mounted hierarchy, co-mounted or not, named ones included. On a
//! hybrid host the container has a directory in the cgroup2 mount too: it holds no limits there,
//! but gives `cgroup.kill`, an announcement of the last exit, and pressure figures.

use super::controller::{Controller, Set};
use super::devices::{Exceptions, Policy};
use super::dir::{Dir, write_once};
use super::layout::Mount;
use super::limits::Mode;
use super::node::{Made, Node, pids_below, refuse_occupied};
use super::place::Place;
use super::write::{self, Write};
use super::{CgroupMount, NodeRecord, Placement, limits, limits_v1, place};
use crate::error::{Class, Context, Error, Result};
use crate::spec::{DeviceRule, Resources};
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long freezing may take while processes are in the middle of something.
const FREEZING: Duration = Duration::from_secs(10);

/// A container's cgroups on a host with cgroup v1.
#[derive(Debug)]
pub struct Hierarchies {
    list: Vec<Hierarchy>,
    /// The hybrid host's cgroup2 directory.
    unified: Option<Node>,
    /// Rootless without a path of its own: does without the hierarchies where it may not make one.
    forgiving: bool,
}

#[derive(Debug)]
struct Hierarchy {
    /// As in `/proc/self/cgroup`: `cpu,cpuacct`, `name=systemd`.
    name: String,
    controllers: Set,
    node: Node,
}

impl Hierarchies {
    pub(super) fn plan(mounts: &[Mount], place: &Place, own: &str, forgiving: bool) -> Hierarchies {
        let mut out = Hierarchies { list: Vec::with_capacity(mounts.len()), unified: None, forgiving };
        for mount in mounts {
            if mount.hierarchy.is_empty() {
                out.unified = Some(Node::plan(mount, place, own, 0));
            } else {
                let node = Node::plan(mount, place, own, 0);
                out.list.push(Hierarchy {
                    name: mount.hierarchy.clone(),
                    controllers: mount.controllers,
                    node,
                });
            }
        }
        out
    }

    pub(super) fn record(&self) -> Vec<NodeRecord> {
        let named = self.list.iter().map(|h| (h.name.as_str(), &h.node));
        let all = named.chain(self.unified.as_ref().map(|node| ("", node)));
        all.map(|(name, node)| NodeRecord::of(name, node)).collect()
    }

    pub(super) fn from_record(records: &[NodeRecord]) -> Hierarchies {
        let mut out =
            Hierarchies { list: Vec::with_capacity(records.len()), unified: None, forgiving: false };
        for record in records {
            if record.hierarchy.is_empty() {
                out.unified = Some(record.node());
            } else {
                let controllers = Set::parse(&record.hierarchy, ',');
                out.list.push(Hierarchy { name: record.hierarchy.clone(), controllers, node: record.node() });
            }
        }
        out
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.list.iter().map(|h| &h.node).chain(self.unified.as_ref())
    }

    /// The cgroup that answers questions about the container's processes: every one of them is in
    /// every hierarchy, but processes may move themselves in named ones and in those delegated.
    fn main(&self) -> Option<&Node> {
        self.with(Controller::Devices).or_else(|| self.with(Controller::Pids)).or_else(|| self.nodes().next())
    }

    fn with(&self, controller: Controller) -> Option<&Node> {
        self.list.iter().find(|h| h.controllers.has(controller)).map(|h| &h.node)
    }

    /// The directory of a controller's files.
    pub(super) fn dir(&self, controller: Controller) -> Option<&Dir> {
        self.with(controller).map(|node| &node.dir)
    }

    /// The directory that is made first.
    pub(super) fn first(&self) -> Option<&Dir> {
        self.list.first().map(|h| &h.node.dir)
    }

    /// The directory on the cgroup2 mount of a hybrid host.
    pub(super) fn unified_dir(&self) -> Option<&Dir> {
        self.unified.as_ref().map(|node| &node.dir)
    }

    pub(super) fn create(&mut self) -> Result<()> {
        // A bit for each hierarchy in which the cgroup is new.
        let mut made = 0_u64;
        let result = self.make_all(&mut made);
        if result.is_err() {
            let is_new = |index: &usize| made & (1 << index) != 0;
            (0..self.list.len()).filter(is_new).for_each(|index| self.list[index].node.unmake());
        }
        result
    }

    /// Makes what is missing around a process that systemd has put into its unit's cgroup already,
    /// and moves the process there.
    pub(super) fn create_around(&mut self, pid: i32) -> Result<()> {
        for hierarchy in &mut self.list {
            let node = &mut hierarchy.node;
            let made = node.make().doing_on("create cgroup", || node.dir.path())?;
            if hierarchy.controllers.has(Controller::Cpuset) {
                inherit_cpuset(node, made == Made::Fresh)?;
            }
            let pid = pid.to_string();
            node.dir.write("cgroup.procs", &pid).doing_on("enter cgroup", || node.dir.path())?;
        }
        // systemd has the process in its own cgroup2 hierarchy as well, at the same path.
        if self.unified.as_ref().is_some_and(|node| !std::path::Path::new(node.dir.path()).exists()) {
            self.unified = None;
        }
        Ok(())
    }

    fn make_all(&mut self, made: &mut u64) -> Result<()> {
        let mut index = 0;
        while let Some(hierarchy) = self.list.get_mut(index) {
            match hierarchy.node.make() {
                Ok(Made::Fresh) => *made |= 1 << index,
                Ok(Made::Found) => {
                    let dir = &hierarchy.node.dir;
                    refuse_occupied(dir, &pids_below(dir)?)?;
                    refuse_frozen(hierarchy)?;
                }
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if self.forgiving => {
                    self.list.remove(index);
                    continue;
                }
                Err(errno) => return Err(errno).doing_on("create cgroup", || hierarchy.node.dir.path()),
            }
            if hierarchy.controllers.has(Controller::Cpuset) {
                inherit_cpuset(&hierarchy.node, *made & (1 << index) != 0)?;
            }
            index += 1;
        }
        // Its advantages are not worth a failure.
        if let Some(node) = &mut self.unified {
            match node.make() {
                Ok(Made::Fresh) => {}
                Ok(Made::Found) => refuse_occupied(&node.dir, &pids_below(&node.dir)?)?,
                Err(_) => self.unified = None,
            }
        }
        Ok(())
    }

    /// Sets limits and devices of a cgroup that was just made.
    pub(super) fn apply(&self, resources: &Resources, devices: Option<&[DeviceRule]>) -> Result<()> {
        let writes = self.plan_writes(resources, Mode::Create)?;
        write::apply(&writes, &|c| self.dir(c?))?;
        let Some(rules) = devices else { return Ok(()) };
        let target = Exceptions::of(&Policy::read(rules)?)?;
        // A new cgroup may do what its parent may. That it may do everything is the usual case, and
        // denying everything first is right in the other one too.
        let writes = target.transition(&Exceptions::everything());
        if writes.is_empty() { Ok(()) } else { write_devices(self.devices_dir()?, &writes) }
    }

    /// Changes limits of a cgroup in use and does what is to be done `then`; all or nothing.
    pub(super) fn update(&self, resources: &Resources, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let writes = self.plan_writes(resources, Mode::Update)?;
        self.refuse_below_use(resources)?;
        // What cannot be expressed is found out before anything is written.
        let policy = Policy::of_update(&resources.devices)?;
        let target = policy.map(|policy| Exceptions::of(&policy)).transpose()?;
        write::apply_or_restore(&writes, &|c| self.dir(c?), || match &target {
            Some(target) => self.change_devices(target, then),
            None => then(),
        })
    }

    /// `checkBeforeUpdate`: otherwise the kernel reclaims and swaps before it refuses.
    fn refuse_below_use(&self, resources: &Resources) -> Result<()> {
        let limit = limits::to_check_before_update(resources);
        match (limit, self.dir(Controller::Memory)) {
            (Some(limit), Some(dir)) => limits::refuse_below_use(limit, dir, "memory.usage_in_bytes"),
            _ => Ok(()),
        }
    }

    fn plan_writes(&self, resources: &Resources, mode: Mode) -> Result<Vec<Write>> {
        limits::check(resources)?;
        limits_v1::plan(resources, mode)
    }

    fn devices_dir(&self) -> Result<&Dir> {
        self.dir(Controller::Devices).ok_or_else(|| {
            Error::new(Class::Unsupported, "set device rules")
                .on("linux.resources.devices")
                .because("the container has no cgroup with the devices controller")
        })
    }

    /// Gives running processes other devices; if that or what is done `then` fails, the former ones.
    fn change_devices(&self, target: &Exceptions, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let dir = self.devices_dir()?;
        let read = || dir.read("devices.list").doing_on("read the device rules of", || dir.path());
        let before = Exceptions::parse(&read()?);
        let result = write_devices(dir, &target.transition(&before)).and_then(|()| then());
        if result.is_err() {
            let half_way = Exceptions::parse(&read()?);
            // The failure is reported already; more than trying to go back cannot be done.
            let _ = write_devices(dir, &before.transition(&half_way));
        }
        result
    }

    pub(super) fn placement(&self) -> Result<Placement> {
        self.placement_of(&|_| Some(String::new()))
    }

    /// `tasks` of each hierarchy, below the container's cgroup as `sub` says for the hierarchy.
    fn placement_of(&self, sub: &dyn Fn(&Hierarchy) -> Option<String>) -> Result<Placement> {
        let mut tasks = Vec::with_capacity(self.list.len());
        for hierarchy in &self.list {
            let Some(sub) = sub(hierarchy) else { continue };
            let file = if sub.is_empty() { "tasks".to_owned() } else { format!("{}/tasks", &sub[1..]) };
            let dir = &hierarchy.node.dir;
            let fd = dir.open(&file, OFlags::WRONLY);
            tasks.push(fd.doing_on("adding pid to cgroup", || format!("{}{sub}", dir.path()))?);
        }
        match &self.unified {
            Some(node) => {
                let fd = node.dir.reopen().doing_on("open cgroup", || node.dir.path())?;
                Ok(Placement::Hybrid(fd, tasks))
            }
            None => Ok(Placement::Tasks(tasks)),
        }
    }

    /// For `exec --cgroup`: `PATH`, or `controller[,controller]:PATH` for some hierarchies alone.
    pub(super) fn placement_for_exec(&self, subs: &[String]) -> Result<Placement> {
        let mut wanted: Vec<(Option<Set>, String)> = Vec::with_capacity(subs.len());
        for sub in subs {
            match sub.split_once(':') {
                Some((names, path)) => wanted.push((Some(self.known(names, sub)?), place::inside(path)?)),
                None => wanted.push((None, place::inside(sub)?)),
            }
        }
        self.placement_of(&|hierarchy| {
            let of_its_own =
                |set: &Option<Set>| set.is_some_and(|set| !set.and(hierarchy.controllers).is_empty());
            let found = wanted.iter().find(|(set, _)| of_its_own(set));
            let found = found.or_else(|| wanted.iter().find(|(set, _)| set.is_none()));
            Some(found.map_or_else(String::new, |(_, path)| path.clone()))
        })
    }

    fn known(&self, names: &str, argument: &str) -> Result<Set> {
        let set = Set::parse(names, ',');
        let known = self.list.iter().fold(Set::EMPTY, |all, h| {
            h.controllers
                .names()
                .fold(all, |all, name| Controller::from_name(name).map_or(all, |c| all.with(c)))
        });
        if set.names().count() != names.split(',').count() || !set.without(known).is_empty() {
            return Err(Error::new(Class::Usage, "exec --cgroup")
                .on(argument)
                .because("unknown controller for this container"));
        }
        Ok(set)
    }

    pub(super) fn freeze(&self) -> Result<()> {
        let dir = self.freezer()?;
        let path = || dir.path();
        let fd = dir.open("freezer.state", OFlags::RDWR).doing_on("freeze cgroup", path)?;
        let deadline = Instant::now() + FREEZING;
        let mut pause = Duration::from_micros(20);
        loop {
            // Written again each time: processes that were forked meanwhile are caught by it.
            write_once(fd.as_fd(), "FROZEN").doing_on("freeze cgroup", path)?;
            let state = dir.read("freezer.state").doing_on("freeze cgroup", path)?;
            if state.trim_end() == "FROZEN" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let _ = write_once(fd.as_fd(), "THAWED");
                return Err(Error::new(Class::System, "freeze cgroup")
                    .on(path())
                    .because(format!("still {} after {} s", state.trim_end(), FREEZING.as_secs()))
                    .hint("a process is waiting in the kernel; the container runs on"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    pub(super) fn thaw(&self) -> Result<()> {
        let dir = self.freezer()?;
        dir.write("freezer.state", "THAWED").doing_on("thaw cgroup", || dir.path())
    }

    pub(super) fn is_frozen(&self) -> Result<bool> {
        let Some(dir) = self.dir(Controller::Freezer) else { return Ok(false) };
        match dir.read("freezer.state") {
            Ok(state) => Ok(state.trim_end() != "THAWED"),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(errno) => Err(errno).doing_on("read the freezer of cgroup", || dir.path()),
        }
    }

    fn freezer(&self) -> Result<&Dir> {
        self.dir(Controller::Freezer).ok_or_else(|| {
            Error::new(Class::Unsupported, "freeze the container")
                .because("the container has no cgroup with the freezer controller")
        })
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        self.main().map_or_else(|| Ok(Vec::new()), |node| pids_below(&node.dir))
    }

    pub(super) fn kill_all(&self, signal: i32) -> Result<()> {
        let Some(main) = self.main() else { return Ok(()) };
        let is_kill = signal == libc::SIGKILL;
        if is_kill && self.kill_by_unified(main)? {
            return Ok(());
        }
        if !super::signal::signal_all(&main.dir, signal)? && is_kill {
            // They fork faster than they are killed. Without a freezer a second try is all there is.
            let _ = self.freeze();
            super::signal::signal_all(&main.dir, signal)?;
        }
        // What is frozen dies only when it is thawed.
        if is_kill && self.is_frozen()? {
            self.thaw()?;
        }
        Ok(())
    }

    /// `cgroup.kill` on the cgroup2 mount; whether it was there and reached every process.
    fn kill_by_unified(&self, main: &Node) -> Result<bool> {
        let Some(node) = &self.unified else { return Ok(false) };
        if node.dir.write("cgroup.kill", "1").is_err() {
            return Ok(false);
        }
        if self.is_frozen()? {
            self.thaw()?;
        }
        // A process that was moved in by someone else may be in the hierarchies alone.
        let inside = pids_below(&node.dir)?;
        Ok(pids_below(&main.dir)?.iter().all(|pid| inside.binary_search(pid).is_ok()))
    }

    pub(super) fn destroy(&mut self) -> Result<()> {
        // The cgroup2 directory first: it tells when the last process is gone.
        let unified = self.unified.as_mut().map_or(Ok(()), Node::remove);
        let mut result = unified;
        for hierarchy in &mut self.list {
            let removed = hierarchy.node.remove();
            result = result.and(removed);
        }
        result
    }

    pub(super) fn mounts(&self) -> Vec<CgroupMount> {
        let named = self.list.iter().map(|h| (h.name.as_str(), &h.node));
        let all = named.chain(self.unified.as_ref().map(|node| ("", node)));
        all.map(|(hierarchy, node)| CgroupMount {
            at: node.mount.clone(),
            hierarchy: hierarchy.to_owned(),
            path: node.path.clone(),
        })
        .collect()
    }
}

/// What a cgroup above the container's has in its cpuset. Somebody may have made it and left it
/// empty, as with mkdir: it then takes over its parent's, up to the root, which has everything.
fn filled_cpuset(dir: &Dir, file: &str) -> Result<String> {
    let path = dir.path();
    let list = dir.read(file).doing_on("read", || format!("{path}/{file}"))?;
    let list = list.trim_end();
    if !list.is_empty() {
        return Ok(list.to_owned());
    }
    let empty = || {
        Error::new(Class::System, "create cgroup")
            .on(path)
            .because(format!("{file} is empty, so no process could enter"))
    };
    let (above, _) = path.rsplit_once('/').ok_or_else(empty)?;
    // The directory above the hierarchy's root has no such file.
    let above = Dir::new(above.to_owned());
    above.read(file).map_err(|_| empty())?;
    let inherited = filled_cpuset(&above, file)?;
    dir.write(file, &inherited).doing_on("write", || format!("{path}/{file}"))?;
    Ok(inherited)
}

/// cpusets are born empty, and nothing may enter an empty one: takes over what the parent has,
/// from the highest cgroup that was made for the container downwards. One that was there before
/// keeps what it has.
fn inherit_cpuset(node: &Node, is_new: bool) -> Result<()> {
    for directory in node.own_directories() {
        let parent = directory.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let parent = Dir::new(parent.to_owned());
        let whole;
        let dir = if directory == node.dir.path() {
            &node.dir
        } else {
            whole = Dir::new(directory.to_owned());
            &whole
        };
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if !is_new && dir.read(file).is_ok_and(|list| !list.trim_end().is_empty()) {
                continue;
            }
            let inherited = filled_cpuset(&parent, file)?;
            dir.write(file, &inherited).doing_on("write", || format!("{directory}/{file}"))?;
        }
    }
    Ok(())
}

fn refuse_frozen(hierarchy: &Hierarchy) -> Result<()> {
    if !hierarchy.controllers.has(Controller::Freezer) {
        return Ok(());
    }
    let dir = &hierarchy.node.dir;
    match dir.read("freezer.state").doing_on("read the freezer of cgroup", || dir.path())?.trim_end() {
        "THAWED" => Ok(()),
        state => Err(Error::new(Class::Config, "create the container's cgroup").on(dir.path()).because(
            format!("container's cgroup unexpectedly frozen: it is {state}, so nothing could start"),
        )),
    }
}

/// Writes device rules line by line, opening each of the two files once.
fn write_devices(dir: &Dir, lines: &[(&'static str, String)]) -> Result<()> {
    for chunk in lines.chunk_by(|a, b| a.0 == b.0) {
        let file = chunk[0].0;
        let fd = dir
            .open(file, OFlags::WRONLY)
            .doing_on("set device rules", || format!("{}/{file}", dir.path()))?;
        for (_, line) in chunk {
            write_once(fd.as_fd(), line)
                .doing_on("set device rules", || format!("{line:?} in {}/{file}", dir.path()))?;
        }
    }
    Ok(())
}
