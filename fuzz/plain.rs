// The bodies of the targets for what is read as text, for the fuzzer and for the test that replays the seeds.
// Each user of this file calls some of them.
#![allow(dead_code)]

use dhow::namespaces;
use dhow::rootfs::Plan;
use dhow::rootfs::plan::{Source, Step};
use dhow::seccomp;
use dhow::spec::load::parse;
use dhow::spec::{
    IdMapping, Linux, Mount, Namespace, Process, Resources, Root, Spec, sysctl_path, validate,
    validate_process,
};
use dhow::state::Record;
use std::path::Path;

/// Warnings are for people.
fn be_silent() {
    dhow::log::init(dhow::log::Sink { file: None, format: None, level: dhow::log::Level::Error });
}

/// A whole config.json: read, checked, and made into plans. What passes the checks keeps their promises.
pub fn config(data: &[u8]) {
    be_silent();
    let path = Path::new("config.json");
    let _ = parse::<Process>(data, path).map(|process| validate_process(&process));
    let _ = parse::<Resources>(data, path);
    let Ok(spec) = parse::<Spec>(data, path) else { return };
    let is_valid = validate(&spec).is_ok();
    if let Ok(plan) = Plan::new(&spec, Path::new("/bundle")) {
        assert_eq!(plan.steps.len(), spec.mounts.len());
        for step in &plan.steps {
            check_step(step, is_valid);
            assert!(!is_valid || step.target.is_absolute(), "{step:?}");
        }
    }
    let _ = namespaces::Plan::new(&spec.linux);
    if let Some(profile) = &spec.linux.seccomp {
        let _ = seccomp::compile(profile, &seccomp::Options::default());
    }
    if !is_valid {
        return;
    }
    for key in spec.linux.sysctl.keys() {
        let path = sysctl_path(key);
        assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."), "{key:?}");
    }
    for maps in [&spec.linux.uid_mappings, &spec.linux.gid_mappings] {
        check_ranges(maps);
    }
    for path in spec.linux.masked_paths.iter().chain(&spec.linux.readonly_paths) {
        assert!(path.starts_with('/') && !path.contains('\0'), "{path:?}");
    }
    for device in &spec.linux.devices {
        assert!(device.path.starts_with('/'), "{device:?}");
    }
}

fn check_step(step: &Step, is_valid: bool) {
    for change in [&step.change, &step.recursive] {
        // The field for times of access is cleared as a whole before a value is set.
        let atime = dhow::sys::mount::Attributes::MOUNT_ATTR__ATIME;
        assert!(!(change.set - atime).intersects(change.clear - atime), "{step:?}");
    }
    if let Some((uids, gids)) = step.idmap.as_ref().and_then(|map| map.own.as_ref()) {
        for one in uids.iter().chain(gids) {
            assert!(!is_valid || one.size > 0, "{step:?}");
        }
    }
}

fn check_ranges(maps: &[IdMapping]) {
    let end = |begin: u32, size: u32| u64::from(begin) + u64::from(size);
    let meets = |a: u32, b: u32, one: &IdMapping, other: &IdMapping| {
        u64::from(a) < end(b, other.size) && u64::from(b) < end(a, one.size)
    };
    for (index, one) in maps.iter().enumerate() {
        assert!(
            one.size > 0
                && end(one.container_id, one.size) <= 1 << 32
                && end(one.host_id, one.size) <= 1 << 32
        );
        for other in &maps[index + 1..] {
            assert!(!meets(one.container_id, other.container_id, one, other), "{maps:?}");
            assert!(!meets(one.host_id, other.host_id, one, other), "{maps:?}");
        }
    }
}

/// The record of a container: what is read is written the same, and read again.
pub fn record(data: &[u8]) {
    be_silent();
    let Ok(record) = Record::from_json(data, "x") else { return };
    assert_eq!(record.id, "x");
    let text = record.to_json().expect("what was read can be written");
    let again = Record::from_json(&text, "x").expect("what was written can be read");
    assert_eq!(again.to_json().expect("likewise"), text);
    let _ = dhow::runtime::Container::from_record(record);
}

fn with_mount(mount: Mount, linux: Linux) -> Spec {
    let root = Some(Root { path: "rootfs".into(), readonly: true });
    Spec { root, mounts: vec![mount], linux, ..Spec::default() }
}

/// Options of one mount, a word on each line; the first byte chooses its kind.
pub fn mount_options(data: &[u8]) {
    be_silent();
    let Some((first, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let options: Vec<String> = text.lines().map(str::to_owned).collect();
    let kind = ["tmpfs", "bind", "proc", "cgroup", "none"][usize::from(first % 5)].to_owned();
    let mount = Mount { destination: "/x".into(), kind, source: "/y".into(), options, ..Mount::default() };
    let spec = with_mount(mount, Linux::default());
    let Ok(plan) = Plan::new(&spec, Path::new("/bundle")) else { return };
    for step in &plan.steps {
        check_step(step, true);
        if let Source::Filesystem { data, .. } = &step.source {
            // What is no filesystem's is not left to it, and nothing is said twice as often as it was given.
            let known = dhow::rootfs::known_words();
            let flags = ["sync", "dirsync", "lazytime"];
            let is_own = |key: &str| known.iter().any(|word| word == key) && !flags.contains(&key);
            assert!(data.iter().all(|(key, value)| value.is_some() || !is_own(key)), "{data:?}");
            assert!(data.len() <= text.lines().count());
        }
    }
}

/// Maps of ids: the option `idmap=…`, and the lists of config.json. Lines with three numbers are entries; the
/// last line is the option's text.
pub fn idmaps(data: &[u8]) {
    be_silent();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let entry = |line: &str| {
        let mut numbers = line.split(' ').map(|word| word.parse::<u32>().ok());
        let (container_id, host_id, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(IdMapping { container_id, host_id, size })
    };
    let maps: Vec<IdMapping> = text.lines().filter_map(entry).take(20).collect();
    let option = format!("idmap={}", text.lines().last().unwrap_or_default());
    let namespaces = vec![
        Namespace { kind: "user".into(), ..Namespace::default() },
        Namespace { kind: "mount".into(), ..Namespace::default() },
    ];
    let linux = Linux { uid_mappings: maps.clone(), gid_mappings: maps, namespaces, ..Linux::default() };
    let options = vec!["bind".to_owned(), option];
    let mount = Mount { destination: "/x".into(), source: "/y".into(), options, ..Mount::default() };
    let spec = Spec { oci_version: "1.2.0".into(), ..with_mount(mount, linux) };
    let is_valid = validate(&spec).is_ok();
    if is_valid {
        check_ranges(&spec.linux.uid_mappings);
    }
    let Ok(plan) = Plan::new(&spec, Path::new("/bundle")) else { return };
    let Some((uids, gids)) = plan.steps[0].idmap.as_ref().and_then(|map| map.own.as_ref()) else { return };
    for one in uids.iter().chain(gids) {
        let end = |begin: u32| u64::from(begin) + u64::from(one.size);
        assert!(one.size > 0 && end(one.container_id) <= 1 << 32, "{one:?}");
        assert!(!is_valid || end(one.host_id) <= 1 << 32, "{one:?}");
    }
}
