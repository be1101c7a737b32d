//! The systemd driver against a real systemd: the system's as root, the user's otherwise. Where
//! there is none, the tests say so and do nothing (integration/vm.sh has one).
#![allow(clippy::unwrap_used, missing_docs, clippy::cast_possible_wrap)]

mod cgroups_common;

use cgroups_common::{BUSY, Test, name, resources, ticks, wait_for};
use dhow::cgroups::{Driver, Manager};
use dhow::spec::Resources;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn rootless() -> bool {
    !nix::unistd::geteuid().is_root()
}

/// A process in a new scope; `prefix` goes before the resources' own unit name.
fn scope(
    path: Option<&str>,
    limits: &Resources,
    subgroup: Option<&str>,
    script: &str,
) -> Option<(Test, String, u32)> {
    if !Path::new("/run/systemd/system").exists() {
        let error = Manager::plan(Driver::Systemd, None, "x", rootless()).unwrap_err().to_string();
        assert!(error.contains("systemd does not run this host"), "{error}");
        eprintln!("skipped: no systemd");
        return None;
    }
    if rootless() && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let error = Manager::plan(Driver::Systemd, None, "x", true).unwrap_err().to_string();
        assert!(error.contains("a user's systemd has no controllers"), "{error}");
        eprintln!("skipped: cgroup v1");
        return None;
    }
    let id = name();
    let path = path.map(|path| path.replace("ID", &id));
    let mut manager = Manager::plan(Driver::Systemd, path.as_deref(), &id, rootless()).unwrap();
    if let Some(subgroup) = subgroup {
        manager.set_subgroup(subgroup).unwrap();
    }
    manager.create().unwrap();
    manager.apply(limits).unwrap();
    assert!(manager.needs_adopt());
    let mut test = Test { manager, children: Vec::new() };
    let pid = test.spawn(script).id();
    test.manager.adopt(pid as i32, limits, rootless()).unwrap();
    // A later command knows only the record.
    let record = serde_json::to_string(&test.manager.record()).unwrap();
    test.manager = Manager::from_record(&serde_json::from_str(&record).unwrap());
    assert!(!test.manager.needs_adopt());
    Some((test, id, pid))
}

fn systemctl(arguments: &[&str]) -> String {
    let mut command = Command::new("systemctl");
    if rootless() {
        command.arg("--user");
    }
    let output = command.args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", "--value", "-p", property, unit])
}

fn cgroup_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

const LIMITS: &str = r#"{"memory":{"limit":67108864,"swap":67108864,"reservation":33554432},"pids":{"limit":20},
    "cpu":{"shares":512,"quota":20000,"period":100000,"cpus":"0"}}"#;

#[test]
fn a_scope_with_every_property_and_its_end() {
    let Some((mut test, id, pid)) = scope(None, &resources(LIMITS), None, BUSY) else { return };
    let unit = format!("dhow-{id}.scope");
    assert!(cgroup_of(pid).contains(&format!("/{unit}")), "{}", cgroup_of(pid));
    assert_eq!(show(&unit, "ActiveState"), "active");
    assert_eq!(show(&unit, "Delegate"), "yes");
    assert_eq!(show(&unit, "Slice"), if rootless() { "user.slice" } else { "system.slice" });
    assert_eq!(show(&unit, "TasksMax"), "20");
    assert_eq!(show(&unit, "CPUQuotaPerSecUSec"), "200ms");
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if is_v2 {
        assert_eq!(show(&unit, "MemoryMax"), "67108864");
        assert_eq!(show(&unit, "MemorySwapMax"), "0");
        assert_eq!(show(&unit, "MemoryLow"), "33554432");
        assert_eq!(show(&unit, "CPUWeight"), "59");
        assert_eq!(show(&unit, "AllowedCPUs"), "0");
    } else {
        assert_eq!(show(&unit, "MemoryLimit"), "67108864");
        assert_eq!(show(&unit, "CPUShares"), "512");
    }
    assert_eq!(test.manager.pids().unwrap(), [pid as i32]);
    let before = ticks(pid);
    std::thread::sleep(Duration::from_millis(1000));
    assert!(ticks(pid) - before < 45, "a fifth of the time: {}", ticks(pid) - before);
    test.manager.freeze().unwrap();
    assert!(test.manager.is_frozen().unwrap());
    test.manager.thaw().unwrap();
    test.manager.kill_all(9).unwrap();
    test.children.pop().unwrap().wait().unwrap();
    test.manager.destroy().unwrap();
    assert_eq!(show(&unit, "LoadState"), "not-found");
    let mounts = test.manager.mounts();
    assert!(!mounts.is_empty());
    for mount in mounts {
        assert!(!Path::new(&format!("{}{}", mount.at, mount.path)).exists(), "{mount:?}");
    }
    test.manager.destroy().unwrap();
}

#[test]
fn slices_with_dashes_and_a_subgroup() {
    let path = "dhowtest-inner.slice:prefix:ID";
    let none = Resources::default();
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let subgroup = is_v2.then_some("container");
    let Some((mut test, id, pid)) = scope(Some(path), &none, subgroup, "exec sleep 100") else { return };
    let expected = format!("/dhowtest.slice/dhowtest-inner.slice/prefix-{id}.scope");
    let expected = if is_v2 { expected + "/container" } else { expected };
    assert!(cgroup_of(pid).contains(&expected), "{}", cgroup_of(pid));
    // Destroying stops what is still in it.
    test.manager.destroy().unwrap();
    assert!(!test.children.pop().unwrap().wait().unwrap().success());
    assert_eq!(show(&format!("prefix-{id}.scope"), "LoadState"), "not-found");
    systemctl(&["stop", "dhowtest.slice"]);
}

#[test]
fn an_update_reaches_systemd_too_and_survives_a_reload() {
    let Some((test, id, pid)) = scope(None, &resources(LIMITS), None, "exec sleep 100") else { return };
    let unit = format!("dhow-{id}.scope");
    let update = r#"{"pids":{"limit":30},"cpu":{"quota":50000,"period":100000},"memory":{"limit":134217728,"swap":134217728}}"#;
    test.manager.update(&resources(update)).unwrap();
    assert_eq!(show(&unit, "TasksMax"), "30");
    assert_eq!(show(&unit, "CPUQuotaPerSecUSec"), "500ms");
    systemctl(&["daemon-reload"]);
    let dir =
        test.manager.mounts().into_iter().find(|m| m.hierarchy.is_empty() || m.hierarchy == "pids").unwrap();
    let max = std::fs::read_to_string(format!("{}{}/pids.max", dir.at, dir.path)).unwrap();
    assert_eq!(max.trim(), "30");
    let error = test.manager.update(&resources(r#"{"pids":{"limit":40},"cpu":{"cpus":"999"}}"#)).unwrap_err();
    assert!(error.to_string().contains("linux.resources.cpu.cpus 999"), "{error}");
    assert_eq!(show(&unit, "TasksMax"), "30");
    assert!(cgroup_of(pid).contains(&unit));
}

#[test]
fn annotations_set_properties_of_the_unit() {
    if !Path::new("/run/systemd/system").exists() {
        eprintln!("skipped: no systemd");
        return;
    }
    if rootless() && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        eprintln!("skipped: on cgroup v1 a user's systemd has no controllers");
        return;
    }
    let started = |property: &str, value: &str| {
        let id = name();
        let mut manager = Manager::plan(Driver::Systemd, None, &id, rootless()).unwrap();
        let key = |name: &str| format!("org.systemd.property.{name}");
        let annotations = [
            (key("TimeoutStopSec"), "7"),
            (key("CollectMode"), "'inactive-or-failed'"),
            (key("Description"), "\"asked for\""),
            (key(property), value),
        ];
        let annotations = annotations.map(|(key, value)| (key, value.to_owned())).into();
        manager.set_properties(&annotations).unwrap();
        manager.create().unwrap();
        let mut test = Test { manager, children: Vec::new() };
        let pid = test.spawn("exec sleep 100").id();
        let result = test.manager.adopt(pid as i32, &Resources::default(), rootless());
        (test, format!("dhow-{id}.scope"), result)
    };
    let (_test, unit, result) = started("Documentation", "['man:dhow(8)']");
    result.unwrap();
    assert_eq!(show(&unit, "TimeoutStopUSec"), "7s");
    assert_eq!(show(&unit, "CollectMode"), "inactive-or-failed");
    assert_eq!(show(&unit, "Description"), "asked for");
    // Of a list, each is quoted from systemd 252 on.
    assert_eq!(show(&unit, "Documentation").trim_matches('"'), "man:dhow(8)");
    // What systemd does not know was asked for all the same: an error, unlike dhow's own.
    let (mut test, unit, result) = started("NoSuchThing", "true");
    let error = result.unwrap_err().to_string();
    assert!(error.contains("NoSuchThing"), "{error}");
    test.manager.destroy().unwrap();
    assert_eq!(show(&unit, "LoadState"), "not-found");
}

#[test]
fn devices_are_controlled_in_a_scope() {
    if rootless() {
        eprintln!("skipped: device rules need root");
        return;
    }
    let Some((mut test, _, _)) = scope(None, &Resources::default(), None, "exec sleep 100") else { return };
    assert!(test.run(": > /dev/null").0);
    let (ok, text) = test.run(": < /dev/kmsg");
    assert!(!ok && text.contains("not permitted"), "{text}");
    systemctl(&["daemon-reload"]);
    assert!(test.run(": > /dev/null").0, "after a reload");
    assert!(!test.run(": < /dev/kmsg").0, "after a reload");
    let rule = r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    test.manager.update(&resources(rule)).unwrap();
    assert!(test.run(": < /dev/kmsg").0, "after the update");
}

#[test]
fn a_second_scope_of_the_name_is_refused_and_the_first_lives() {
    let Some((test, id, pid)) = scope(None, &Resources::default(), None, "exec sleep 100") else { return };
    let error = Manager::plan(Driver::Systemd, None, &id, rootless()).unwrap_err().to_string();
    assert!(error.contains(&id) && error.contains("already holds 1 process"), "{error}");
    let path = format!("dhowtest.slice:dhow:{id}");
    let mut second = Manager::plan(Driver::Systemd, Some(&path), &id, rootless()).unwrap();
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    let error = second.adopt(child.id() as i32, &Resources::default(), rootless()).unwrap_err().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(error.contains(&id) && error.contains("UnitExists"), "{error}");
    second.destroy().unwrap();
    assert_eq!(test.manager.pids().unwrap(), [pid as i32]);
}

#[test]
fn what_ends_by_itself_leaves_nothing() {
    let Some((mut test, id, _)) = scope(None, &Resources::default(), None, "sleep 1; exit 3") else { return };
    test.children.pop().unwrap().wait().unwrap();
    wait_for("systemd collects the scope", || show(&format!("dhow-{id}.scope"), "ActiveState") != "active");
    test.manager.destroy().unwrap();
    assert_eq!(show(&format!("dhow-{id}.scope"), "LoadState"), "not-found");
}

#[test]
fn without_permission_a_rootless_container_does_without_a_cgroup() {
    if !rootless() {
        eprintln!("skipped: only for users");
        return;
    }
    let mut manager = Manager::plan(Driver::Cgroupfs, None, &name(), true).unwrap();
    manager.create().unwrap();
    manager.apply_rootless(&Resources::default()).unwrap();
    let error = manager.apply_rootless(&resources(r#"{"pids":{"limit":5}}"#)).unwrap_err().to_string();
    assert!(error.contains("linux.resources.pids.limit 5"), "{error}");
    let record = serde_json::to_string(&manager.record()).unwrap();
    let mut later = Manager::from_record(&serde_json::from_str(&record).unwrap());
    later.destroy().unwrap();
    // Where it was asked for, it is an error.
    let mut manager = Manager::plan(Driver::Cgroupfs, Some("/dhow-test-asked-for"), "x", true).unwrap();
    let error = manager.create().unwrap_err().to_string();
    assert!(error.contains("permission denied"), "{error}");
}
