//! Cgroups that systemd makes: the container is a scope (or a slice) of its own.
//!
//! A scope cannot be empty, so it is made around the container's init after that was started:
//! [`super::Manager::adopt`]. From then on the cgroup is used like any other; systemd is told of
//! limits, and asked to stop the unit in the end.

mod dbus;
mod properties;
mod variant;

use super::devices::{Exceptions, Policy};
use super::layout::{Layout, own_path, read_proc};
use super::place::{Place, UnitPlace};
use super::{Manager, Record, default_device_rules, v1, v2};
use crate::error::{Class, Error, Result};
use crate::spec::Resources;
use dbus::{CallError, Connection, MANAGER, Property, Writer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A container's unit.
#[derive(Debug)]
pub struct Unit {
    place: UnitPlace,
    /// The user's systemd, not the system's.
    user: bool,
    /// A cgroup inside the unit that the container gets in place of the unit's own.
    subgroup: Option<String>,
    /// Properties that annotations ask for, set when the unit is made.
    asked: Vec<(String, dbus::Value)>,
    /// The cgroup; before the unit is started, where it will probably be.
    inner: Box<Manager>,
    started: bool,
}

/// What is stored of a [`Unit`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UnitRecord {
    unit: String,
    slice: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    user: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subgroup: Option<String>,
    inner: Box<Record>,
}

impl UnitRecord {
    /// The directories of the unit's cgroup, as far as they are known.
    pub(super) fn directories(&self) -> Vec<String> {
        self.inner.directories()
    }
}

impl Unit {
    pub(super) fn plan(cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<Unit> {
        let place = UnitPlace::read(cgroups_path, id, rootless)?;
        // As sd_booted(3) finds out.
        if rustix::fs::access("/run/systemd/system", rustix::fs::Access::EXISTS).is_err() {
            return Err(Error::new(Class::Unsupported, "plan the container's cgroup")
                .on(place.unit)
                .because("systemd does not run this host")
                .hint("use --cgroup-manager cgroupfs"));
        }
        let inner = match Layout::of_host(false)? {
            Layout::V1(_) if rootless => {
                return Err(Error::new(Class::Unsupported, "plan the container's cgroup")
                    .on(place.unit)
                    .because("on cgroup v1 a user's systemd has no controllers")
                    .hint("use cgroup v2, or --cgroup-manager cgroupfs or disabled"));
            }
            Layout::V1(mounts) => {
                Manager::V1(v1::Hierarchies::plan(&mounts, &Place::FromRoot(place.directory()), "", false))
            }
            // Where the user's systemd really has its own root is known once it has made the unit.
            Layout::V2(mount) => {
                let root = if rootless { usual_root_of_user() } else { String::new() };
                Manager::V2(v2::Unified::existing(mount.at, root + &place.directory()))
            }
        };
        inner.refuse_occupied()?;
        Ok(Unit {
            place,
            user: rootless,
            subgroup: None,
            asked: Vec::new(),
            inner: Box::new(inner),
            started: false,
        })
    }

    pub(super) fn set_subgroup(&mut self, name: &str) -> Result<()> {
        let name = super::place::inside(name)?;
        self.subgroup = Some(name).filter(|name| !name.is_empty());
        Ok(())
    }

    pub(super) fn set_properties(&mut self, annotations: &BTreeMap<String, String>) -> Result<()> {
        self.asked = variant::of_annotations(annotations)?;
        Ok(())
    }

    pub(super) fn record(&self) -> UnitRecord {
        UnitRecord {
            unit: self.place.unit.clone(),
            slice: self.place.slice.clone(),
            user: self.user,
            subgroup: self.subgroup.clone(),
            inner: Box::new(self.inner.record()),
        }
    }

    pub(super) fn from_record(record: &UnitRecord) -> Unit {
        Unit {
            place: UnitPlace { unit: record.unit.clone(), slice: record.slice.clone() },
            user: record.user,
            subgroup: record.subgroup.clone(),
            asked: Vec::new(),
            inner: Box::new(Manager::from_record(&record.inner)),
            started: true,
        }
    }

    /// The cgroup itself.
    pub(super) fn inner(&self) -> &Manager {
        &self.inner
    }

    /// Whether the unit exists, as far as this command knows.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    fn is_v2(&self) -> bool {
        matches!(*self.inner, Manager::V2(_))
    }

    /// Makes the unit around a process and sets its limits.
    pub(super) fn adopt(&mut self, pid: i32, resources: &Resources, rootless: bool) -> Result<()> {
        let mut connection = Connection::open(self.user)?;
        self.start(&mut connection, pid, resources)?;
        self.started = true;
        self.find(pid)?;
        self.enter(pid)?;
        if rootless { self.inner.apply_rootless(resources) } else { self.inner.apply(resources) }
    }

    fn start(&self, connection: &mut Connection, pid: i32, resources: &Resources) -> Result<()> {
        let is_slice = self.place.unit.ends_with(".slice");
        let pid = u32::try_from(pid).unwrap_or(0);
        let description = format!("dhow container {}", self.place.unit);
        let mut list = properties::of_scope(description, &self.place.slice, is_slice, pid);
        list.extend(self.properties(resources)?);
        let mut retried = false;
        loop {
            let mut body = Writer::default();
            body.text(&self.place.unit);
            body.text("replace");
            body.properties(&list, &self.asked);
            body.no_units();
            match connection.call(&MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body) {
                Ok(job) => return self.finish(connection, &job, "start the unit"),
                Err(CallError::Refused(_, words)) if drop_unknown(&mut list, &words) => {}
                // A unit of that name that failed is kept until it is reset.
                Err(CallError::Refused(name, _)) if name.ends_with(".UnitExists") && !retried => {
                    retried = true;
                    self.reset(connection);
                }
                Err(error) => return Err(self.refused("start the unit", error)),
            }
        }
    }

    fn properties(&self, resources: &Resources) -> Result<Vec<Property>> {
        let mut list = properties::of_limits(resources, self.is_v2());
        if !self.is_v2() {
            let mut rules = resources.devices.clone();
            rules.extend(default_device_rules());
            let exceptions = Exceptions::of(&Policy::read(&rules)?)?;
            list.extend(properties::of_devices(&exceptions, &read_proc("/proc/devices")?));
        }
        Ok(list)
    }

    fn finish(&self, connection: &mut Connection, job: &str, doing: &str) -> Result<()> {
        match connection.wait_for(job)?.as_str() {
            "done" => Ok(()),
            result => Err(Error::new(Class::System, doing)
                .on(&*self.place.unit)
                .because(format!("systemd's job ended with {result:?}"))),
        }
    }

    fn refused(&self, doing: &str, error: CallError) -> Error {
        match error {
            CallError::Refused(name, words) => Error::new(Class::System, doing)
                .on(&*self.place.unit)
                .because(format!("systemd says: {words} ({name})")),
            CallError::Broken(error) => error.on(&*self.place.unit),
        }
    }

    /// Sees where systemd has put the process: below the user manager's root, for instance.
    fn find(&mut self, pid: i32) -> Result<()> {
        let Manager::V2(_) = *self.inner else { return Ok(()) };
        let Layout::V2(mount) = Layout::of_host(true)? else { return Ok(()) };
        let text = read_proc(&format!("/proc/{pid}/cgroup"))?;
        let path = own_path(&text, "").unwrap_or("/");
        let mut path = path.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(path).to_owned();
        if self.place.unit.ends_with(".slice") {
            path = self.place.directory();
        }
        path.push_str(self.subgroup.as_deref().unwrap_or_default());
        *self.inner = Manager::V2(v2::Unified::existing(mount.at, path));
        Ok(())
    }

    /// Makes what systemd does not, and moves the process there: the other hierarchies of v1, a
    /// subgroup, or a slice.
    fn enter(&mut self, pid: i32) -> Result<()> {
        let is_whole = self.is_v2() && self.subgroup.is_none() && !self.place.unit.ends_with(".slice");
        match &mut *self.inner {
            Manager::V2(v2) if is_whole => v2.enable_usual(),
            Manager::V2(v2) => v2.create_around(pid),
            Manager::V1(v1) => v1.create_around(pid),
            Manager::Systemd(_) | Manager::Disabled => Ok(()),
        }
    }

    pub(super) fn update(&self, resources: &Resources) -> Result<()> {
        let tell = || self.tell(resources);
        match &*self.inner {
            Manager::V1(v1) => v1.update(resources, tell),
            Manager::V2(v2) => v2.update(resources, tell),
            Manager::Systemd(_) | Manager::Disabled => Ok(()),
        }
    }

    /// Tells systemd of new limits, which it would undo otherwise.
    fn tell(&self, resources: &Resources) -> Result<()> {
        let mut list = properties::of_limits(resources, self.is_v2());
        if !resources.devices.is_empty() && !self.is_v2() {
            list = self.properties(resources)?;
        }
        // 0 is "unchanged" in an update.
        if resources.pids.as_ref().and_then(|pids| pids.limit) == Some(0) {
            list.retain(|(name, _)| *name != "TasksMax");
        }
        if list.is_empty() {
            return Ok(());
        }
        let mut connection = Connection::open(self.user)?;
        while !list.is_empty() {
            let mut body = Writer::default();
            body.text(&self.place.unit);
            // Only until the next boot, as the unit itself.
            body.bool(true);
            body.properties(&list, &[]);
            match connection.call(&MANAGER, "SetUnitProperties", "sba(sv)", &body) {
                Ok(_) => return Ok(()),
                Err(CallError::Refused(_, words)) if drop_unknown(&mut list, &words) => {}
                Err(error) => return Err(self.refused("update the unit", error)),
            }
        }
        Ok(())
    }

    /// Stops the unit, which ends what is still in it, and removes what systemd has not made.
    pub(super) fn destroy(&mut self) -> Result<()> {
        // A unit of that name that this command could not start is a stranger's.
        if !self.started {
            return Ok(());
        }
        let mut connection = Connection::open(self.user)?;
        let mut body = Writer::default();
        body.text(&self.place.unit);
        body.text("replace");
        match connection.call(&MANAGER, "StopUnit", "ss", &body) {
            // However the job ended: what is left over is found out by removing it.
            Ok(job) => drop(connection.wait_for(&job)?),
            Err(CallError::Refused(name, _)) if name.ends_with(".NoSuchUnit") => {}
            Err(error) => return Err(self.refused("stop the unit", error)),
        }
        self.reset(&mut connection);
        self.inner.destroy()
    }

    /// Makes systemd forget a unit that failed; most have not.
    fn reset(&self, connection: &mut Connection) {
        let mut body = Writer::default();
        body.text(&self.place.unit);
        let _ = connection.call(&MANAGER, "ResetFailedUnit", "s", &body);
    }
}

/// Where the user's systemd usually has its root; the user is the one of `XDG_RUNTIME_DIR`, because
/// in a user namespace the own uid says nothing.
fn usual_root_of_user() -> String {
    let directory = std::env::var("XDG_RUNTIME_DIR").unwrap_or_default();
    let uid =
        directory.rsplit('/').next().filter(|uid| !uid.is_empty() && uid.bytes().all(|b| b.is_ascii_digit()));
    uid.map(|uid| format!("/user.slice/user-{uid}.slice/user@{uid}.service")).unwrap_or_default()
}

/// Takes out the property that systemd says it does not know; whether there was one. An older
/// systemd may lack some, and the limit itself is written to the file anyway.
fn drop_unknown(list: &mut Vec<Property>, words: &str) -> bool {
    let before = list.len();
    if words.contains("unknown property") || words.contains("Unknown property") {
        let named = |name: &str| words.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == name);
        list.retain(|(name, _)| !named(name));
    }
    list.len() < before
}

#[cfg(test)]
mod tests {
    use super::dbus::Value;
    use super::*;

    #[test]
    fn unknown_properties_are_left_out() {
        let mut list = vec![("AllowedCPUs", Value::U64(1)), ("TasksMax", Value::U64(1))];
        assert!(drop_unknown(&mut list, "Cannot set property AllowedCPUs, or unknown property."));
        assert_eq!(list.len(), 1);
        assert!(!drop_unknown(&mut list, "Cannot set property AllowedCPUs, or unknown property."));
        assert!(!drop_unknown(&mut list, "TasksMax is out of range"));
    }

    #[test]
    fn a_record_gives_the_same_unit_again() {
        let json = r#"{"unit":"a-b.scope","slice":"x.slice","user":true,"inner":{"kind":"v2"}}"#;
        let record: UnitRecord = serde_json::from_str(json).unwrap();
        assert_eq!(Unit::from_record(&record).record(), record);
    }
}
