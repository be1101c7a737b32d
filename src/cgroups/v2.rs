//! cgroup v2: one directory, with the controllers enabled down the path.

use super::controller::{Controller, Set};
use super::devices::Policy;
use super::dir::Dir;
use super::layout::Mount;
use super::limits::Mode;
use super::limits_v2::{self, Current};
use super::node::{Made, Node, pids_below, refuse_occupied, wait_for_change};
use super::place::Place;
use super::write::{self, Write};
use super::{CgroupMount, NodeRecord, Placement, device_program, limits, place};
use crate::error::{Class, Context, Error, Result};
use crate::spec::{DeviceRule, Resources};
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long freezing may take while processes are in the middle of something.
const FREEZING: Duration = Duration::from_secs(10);

/// A container's cgroup on a host with cgroup v2.
#[derive(Debug)]
pub struct Unified {
    node: Node,
    /// Rootless without a path of its own: does without a cgroup where it may not make one.
    forgiving: bool,
    /// There is none, for that reason.
    absent: bool,
    /// It has a controller that threaded cgroups cannot have.
    is_domain: Cell<bool>,
}

impl Unified {
    pub(super) fn plan(mount: &Mount, place: &Place, own: &str, forgiving: bool) -> Unified {
        // The runtime's own cgroup has processes in it, so it cannot have controllers enabled for
        // children: the container goes beside it.
        Unified {
            node: Node::plan(mount, place, own, 1),
            forgiving,
            absent: false,
            is_domain: Cell::new(false),
        }
    }

    pub(super) fn record(&self) -> Vec<NodeRecord> {
        if self.absent { Vec::new() } else { vec![NodeRecord::of("", &self.node)] }
    }

    pub(super) fn from_record(records: &[NodeRecord]) -> Unified {
        let node =
            records.first().map_or_else(|| Node::new(String::new(), String::new(), 0), NodeRecord::node);
        Unified { node, forgiving: false, absent: records.is_empty(), is_domain: Cell::new(false) }
    }

    /// One that systemd has made.
    pub(super) fn existing(mount: String, path: String) -> Unified {
        Unified {
            node: Node::new(mount, path, 0),
            forgiving: false,
            absent: false,
            is_domain: Cell::new(false),
        }
    }

    pub(super) fn dir(&self) -> Option<&Dir> {
        (!self.absent).then_some(&self.node.dir)
    }

    pub(super) fn create(&mut self) -> Result<()> {
        match self.node.make() {
            Ok(Made::Fresh) => {}
            Ok(Made::Found) => {
                refuse_occupied(&self.node.dir, &pids_below(&self.node.dir)?)?;
                self.refuse_frozen()?;
            }
            Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if self.forgiving => {
                self.absent = true;
                return Ok(());
            }
            Err(errno) => {
                self.node.unmake();
                return Err(errno).doing_on("create cgroup", || self.node.dir.path());
            }
        }
        let result = self.enable(Set::USUAL);
        if result.is_err() {
            self.node.unmake();
        }
        result
    }

    fn refuse_frozen(&self) -> Result<()> {
        if !self.is_frozen()? {
            return Ok(());
        }
        Err(Error::new(Class::Config, "create the container's cgroup")
            .on(self.node.dir.path())
            .because("container's cgroup unexpectedly frozen: nothing could start in it"))
    }

    /// Enables those controllers of `wanted` that the host has, in one write per level, in every
    /// cgroup from the root to the container's parent. What cannot be enabled is left out here: the
    /// limit that needs it says so.
    fn enable(&self, wanted: Set) -> Result<()> {
        let path = || self.node.dir.path();
        let have = controllers(&self.node.dir).doing_on("read the controllers of cgroup", path)?;
        self.is_domain.set(have.has(Controller::Memory));
        if wanted.without(have).is_empty() {
            return Ok(());
        }
        let mut level = Dir::new(self.node.mount.clone());
        let offered = controllers(&level).doing_on("read the controllers of cgroup", || level.path())?;
        let wanted = wanted.and(offered);
        if wanted.without(have).is_empty() {
            return Ok(());
        }
        for name in self.node.path.split('/').filter(|name| !name.is_empty()) {
            enable_at(&level, wanted);
            level = level.child(name);
        }
        self.join_threaded_domain()
    }

    /// Below a threaded cgroup a new one is invalid until it is made threaded too.
    fn join_threaded_domain(&self) -> Result<()> {
        let dir = &self.node.dir;
        let kind = dir.read("cgroup.type").doing_on("read the type of cgroup", || dir.path())?;
        if kind.trim_end() == "domain invalid" {
            dir.write("cgroup.type", "threaded").doing_on("make cgroup threaded", || dir.path())?;
        }
        Ok(())
    }

    /// Sets limits and devices of a cgroup that was just made.
    pub(super) fn apply(
        &self,
        resources: &Resources,
        devices: Option<&[DeviceRule]>,
        rootless: bool,
    ) -> Result<()> {
        limits::check(resources)?;
        let writes = limits_v2::plan(resources, Mode::Create, Current::default())?;
        let program =
            devices.map(|rules| Ok(device_program::of_policy(&Policy::read(rules)?))).transpose()?;
        if self.absent {
            return self.refuse_without_cgroup(&writes);
        }
        self.enable_for(&writes)?;
        write::refuse_foreign_cpusets(&writes, &self.node.dir)?;
        write::apply(&writes, &|_| Some(&self.node.dir))?;
        match program {
            Some(program) => device_program::install(&self.node.dir, &program, Mode::Create, rootless),
            None => Ok(()),
        }
    }

    /// Changes limits of a cgroup in use and does what is to be done `then`; all or nothing.
    pub(super) fn update(&self, resources: &Resources, then: impl FnOnce() -> Result<()>) -> Result<()> {
        limits::check(resources)?;
        let current = if self.absent { Current::default() } else { self.current(resources)? };
        let mut writes = limits_v2::plan(resources, Mode::Update, current)?;
        if self.absent {
            return self.refuse_without_cgroup(&writes);
        }
        let dir = &self.node.dir;
        limits_v2::fill_quota(&mut writes, || dir.read("cpu.max").ok());
        let program = Policy::of_update(&resources.devices)?.map(|policy| device_program::of_policy(&policy));
        self.enable_for(&writes)?;
        write::refuse_foreign_cpusets(&writes, &self.node.dir)?;
        write::apply_or_restore(&writes, &|_| Some(dir), || {
            then()?;
            // Last, because it changes at once or not at all.
            match &program {
                Some(program) => device_program::install(dir, program, Mode::Update, false),
                None => Ok(()),
            }
        })
    }

    /// Enables the usual controllers down to a cgroup that systemd has made.
    pub(super) fn enable_usual(&self) -> Result<()> {
        self.enable(Set::USUAL)
    }

    /// Makes the cgroup, where it is missing, around a process, which is moved there.
    pub(super) fn create_around(&mut self, pid: i32) -> Result<()> {
        let dir = &self.node.dir;
        // First the process: its present cgroup can have no controllers for children while it is in.
        match rustix::fs::mkdir(dir.path(), rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).doing_on("create cgroup", || dir.path()),
        }
        dir.write("cgroup.procs", &pid.to_string()).doing_on("enter cgroup", || dir.path())?;
        self.enable(Set::USUAL)
    }

    fn refuse_without_cgroup(&self, writes: &[Write]) -> Result<()> {
        let Some(write) = writes.first() else { return Ok(()) };
        Err(Error::new(Class::Unsupported, "set a cgroup limit")
            .on(format!("{} {}", write.field, write.value))
            .because(format!("no permission to make a cgroup at {}", self.node.dir.path()))
            .hint("set linux.cgroupsPath below a delegated cgroup, or use --systemd-cgroup"))
    }

    /// Controllers that only few containers use are enabled when a limit asks for them.
    fn enable_for(&self, writes: &[Write]) -> Result<()> {
        let asked = writes.iter().filter_map(|w| w.controller).fold(Set::EMPTY, Set::with);
        if asked.without(Set::USUAL).is_empty() { Ok(()) } else { self.enable(asked) }
    }

    /// What a partial configuration has to be completed with.
    fn current(&self, resources: &Resources) -> Result<Current> {
        let mut current = Current::default();
        let Some(memory) = &resources.memory else { return Ok(current) };
        let dir = &self.node.dir;
        if limits::set(memory.swap).is_some() && limits::set(memory.limit).is_none() {
            let limit = dir.number("memory.max").doing_on("read the memory limit of", || dir.path())?;
            current.memory_limit = i64::try_from(limit).ok();
        }
        // Otherwise the kernel would kill processes until the limit holds.
        if let Some(limit) = limits::to_check_before_update(resources) {
            limits::refuse_below_use(limit, dir, "memory.current")?;
        }
        Ok(current)
    }

    pub(super) fn placement(&self) -> Result<Placement> {
        if self.absent {
            return Ok(Placement::None);
        }
        if self.is_domain.get() {
            let fd = self.node.dir.reopen().doing_on("open cgroup", || self.node.dir.path())?;
            return Ok(Placement::IntoCgroup(fd));
        }
        place_into(&self.node.dir)
    }

    /// Where a further process goes. A container that has made cgroups of its own and enabled
    /// controllers for them can hold no process at the top: then it is where its init is.
    pub(super) fn placement_for_exec(&self, subs: &[String], init: Option<i32>) -> Result<Placement> {
        if self.absent {
            return Ok(Placement::None);
        }
        let dir = &self.node.dir;
        match subs {
            [] => {
                let enabled = dir.read("cgroup.subtree_control").doing_on("enter cgroup", || dir.path())?;
                match init.filter(|_| !enabled.trim_end().is_empty()) {
                    Some(init) => place_into(&self.dir_of_process(init)?),
                    None => place_into(dir),
                }
            }
            [sub] if !sub.contains(':') => match place::inside(sub)? {
                inside if inside.is_empty() => place_into(dir),
                inside => place_into(&dir.child(&inside[1..])),
            },
            _ => Err(Error::new(Class::Usage, "exec --cgroup")
                .on(subs.join(" "))
                .because("cgroup v2 has one hierarchy: give one path, without controllers")),
        }
    }

    /// The cgroup that a process of the container is in.
    fn dir_of_process(&self, pid: i32) -> Result<Dir> {
        let text = super::layout::read_proc(&format!("/proc/{pid}/cgroup"))?;
        let path = super::layout::own_path(&text, "").unwrap_or("/");
        let inside = path.find(&self.node.path).map_or("", |start| &path[start + self.node.path.len()..]);
        Ok(Dir::new(format!("{}{inside}", self.node.dir.path())))
    }

    pub(super) fn freeze(&self) -> Result<()> {
        self.set_frozen(true)
    }

    pub(super) fn thaw(&self) -> Result<()> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<()> {
        let dir = self.existing_dir("freeze the container")?;
        let doing = if frozen { "freeze cgroup" } else { "thaw cgroup" };
        let (value, sign) = if frozen { ("1", "frozen 1") } else { ("0", "frozen 0") };
        dir.write("cgroup.freeze", value).doing_on(doing, || dir.path())?;
        let events = dir.open("cgroup.events", OFlags::RDONLY).doing_on(doing, || dir.path())?;
        let deadline = Instant::now() + FREEZING;
        let mut pause = Duration::from_micros(20);
        loop {
            rustix::fs::seek(&events, rustix::fs::SeekFrom::Start(0)).doing_on(doing, || dir.path())?;
            let text = super::dir::read_all(events.as_fd()).doing_on(doing, || dir.path())?;
            // An ancestor that is frozen keeps this one frozen: nothing to wait for.
            if text.contains(sign) || !frozen {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let _ = dir.write("cgroup.freeze", "0");
                return Err(Error::new(Class::System, doing)
                    .on(dir.path())
                    .because(format!("still not frozen after {} s", FREEZING.as_secs()))
                    .hint("a process is waiting in the kernel; the container runs on"));
            }
            // The kernel announces changes of this file at most every ten milliseconds, and most
            // processes stand still in one: so it is looked at first, and waited for afterwards.
            if pause < Duration::from_millis(2) {
                std::thread::sleep(pause);
                pause *= 2;
            } else {
                wait_for_change(&events, Duration::from_millis(100));
            }
        }
    }

    pub(super) fn is_frozen(&self) -> Result<bool> {
        let Some(dir) = self.dir() else { return Ok(false) };
        match dir.read("cgroup.freeze") {
            Ok(state) => Ok(state.trim_end() == "1"),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(errno) => Err(errno).doing_on("read the freezer of cgroup", || dir.path()),
        }
    }

    fn existing_dir(&self, doing: &str) -> Result<&Dir> {
        self.dir().ok_or_else(|| Error::new(Class::Unsupported, doing).because("it has no cgroup of its own"))
    }

    pub(super) fn pids(&self) -> Result<Vec<i32>> {
        pids_below(self.existing_dir("list the container's processes")?)
    }

    pub(super) fn kill_all(&self, signal: i32) -> Result<()> {
        let dir = self.existing_dir("signal the container's processes")?;
        if signal == libc::SIGKILL {
            match dir.write("cgroup.kill", "1") {
                Ok(()) => return Ok(()),
                Err(Errno::NODEV) => return Ok(()),
                // Before Linux 5.14, or in a threaded cgroup; no cgroup at all is found out below.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno).doing_on("kill cgroup", || dir.path()),
            }
        }
        if !super::signal::signal_all(dir, signal)? && signal == libc::SIGKILL {
            self.freeze()?;
            super::signal::signal_all(dir, signal)?;
            self.thaw()?;
        }
        Ok(())
    }

    pub(super) fn destroy(&mut self) -> Result<()> {
        if self.absent { Ok(()) } else { self.node.remove() }
    }

    pub(super) fn mounts(&self) -> Vec<CgroupMount> {
        if self.absent {
            return Vec::new();
        }
        let (at, path) = (self.node.mount.clone(), self.node.path.clone());
        vec![CgroupMount { at, hierarchy: String::new(), path }]
    }
}

/// How a process gets into a cgroup: by clone3, or, where that is a threaded one, which clone3
/// refuses, by a write of its own.
fn place_into(dir: &Dir) -> Result<Placement> {
    let fd = dir.reopen().doing_on("open cgroup", || dir.path())?;
    if dir.read("cgroup.type").is_ok_and(|kind| kind.trim_end() == "threaded") {
        let procs = dir.open("cgroup.procs", OFlags::WRONLY).doing_on("enter cgroup", || dir.path())?;
        return Ok(Placement::Tasks(vec![procs]));
    }
    Ok(Placement::IntoCgroup(fd))
}

fn controllers(dir: &Dir) -> rustix::io::Result<Set> {
    Ok(Set::parse(&dir.read("cgroup.controllers")?, ' '))
}

/// Enables controllers for the children of a cgroup, all in one write; where one of them is
/// refused, each by itself.
fn enable_at(level: &Dir, wanted: Set) {
    let mut line = String::with_capacity(40);
    for name in wanted.names() {
        line.push_str(if line.is_empty() { "+" } else { " +" });
        line.push_str(name);
    }
    if level.write("cgroup.subtree_control", &line).is_ok() {
        return;
    }
    for name in wanted.names() {
        // What is missing in the end is reported by the limit that needs it.
        let _ = level.write("cgroup.subtree_control", &format!("+{name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_controllers_are_those_that_limits_need() {
        for controller in
            [Controller::Cpu, Controller::Memory, Controller::Io, Controller::Pids, Controller::Cpuset]
        {
            assert!(Set::USUAL.has(controller));
        }
    }
}
