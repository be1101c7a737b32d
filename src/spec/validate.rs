//! What must hold of a config.json before anything is done with it.
//!
//! Each check names the field and says what would be right. What this version does not carry out
//! yet is refused by name: a limit or a filter that is silently not there would be worse than a
//! container that does not start.

use super::{Linux, NamespaceKind, Process, Spec};
use crate::error::{Class, Error, Result};

/// The first and the last minor version of the specification that is understood.
const MINORS: std::ops::RangeInclusive<u64> = 0..=3;

/// Checks a whole configuration.
///
/// # Errors
/// [`Class::Config`] for a wrong value, [`Class::Unsupported`] for one that cannot be carried out.
pub fn validate(spec: &Spec) -> Result<()> {
    version(&spec.oci_version)?;
    if let Some(process) = &spec.process {
        validate_process(process)?;
    }
    let root =
        spec.root.as_ref().ok_or_else(|| Error::config("root", "is missing: it must name the rootfs"))?;
    if root.path.is_empty() {
        return Err(Error::config("root.path", "is empty: it must name the rootfs"));
    }
    no_nul("root.path", &root.path)?;
    let linux = &spec.linux;
    namespaces(linux)?;
    if spec.hostname.as_ref().is_some_and(|name| !name.is_empty()) && !linux.has(NamespaceKind::Uts) {
        return Err(Error::config("hostname", "needs a uts namespace: it would rename the host"));
    }
    if spec.domainname.as_ref().is_some_and(|name| !name.is_empty()) && !linux.has(NamespaceKind::Uts) {
        return Err(Error::config("domainname", "needs a uts namespace: it would rename the host"));
    }
    mounts(spec)?;
    hooks(spec)?;
    mappings(linux)?;
    sysctl(linux)?;
    paths(linux)?;
    devices(linux)?;
    time_offsets(linux)?;
    net_devices(linux)?;
    if let Some(asked) = &linux.intel_rdt {
        asked.check()?;
    }
    if let Some(policy) = &linux.memory_policy {
        policy.mode_and_nodes()?;
    }
    deadline(spec)?;
    not_yet(spec)
}

/// sched(7): a task with a deadline must be free to run on all CPUs of its domain.
fn deadline(spec: &Spec) -> Result<()> {
    let scheduler = spec.process.as_ref().and_then(|process| process.scheduler.as_ref());
    let cpus = spec.linux.resources.as_ref().and_then(|resources| resources.cpu.as_ref());
    let has_cpus = cpus.is_some_and(|cpu| !cpu.cpus.is_empty());
    if has_cpus && scheduler.is_some_and(|scheduler| scheduler.policy == "SCHED_DEADLINE") {
        return Err(Error::config(
            "process.scheduler SCHED_DEADLINE",
            "process scheduler can't be used together with AllowedCPUs: leave out linux.resources.cpu.cpus",
        ));
    }
    Ok(())
}

/// Checks a process: the container's, or that of `exec`.
///
/// # Errors
/// As for [`validate`].
pub fn validate_process(process: &Process) -> Result<()> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Error::config("process.args", "is empty: it must name the program to run"));
    }
    if !process.cwd.starts_with('/') {
        let cause = format!("{:?} is not an absolute path", process.cwd);
        return Err(Error::config("process.cwd", cause));
    }
    no_nul("process.cwd", &process.cwd)?;
    for (index, text) in process.args.iter().enumerate() {
        no_nul(&format!("process.args[{index}]"), text)?;
    }
    for (index, text) in process.env.iter().enumerate() {
        no_nul(&format!("process.env[{index}]"), text)?;
    }
    let user = &process.user;
    for (field, id) in [("process.user.uid", user.uid), ("process.user.gid", user.gid)]
        .into_iter()
        .chain(user.additional_gids.iter().map(|&gid| ("process.user.additionalGids", gid)))
    {
        // CVE-2024-40635: an id beyond int32 must never wrap to another user's.
        if i32::try_from(id).is_err() {
            return Err(Error::config(field, format!("{id} is beyond {}", i32::MAX)));
        }
    }
    if user.umask.is_some_and(|umask| umask > 0o777) {
        return Err(Error::config("process.user.umask", "is beyond 0777 (511)"));
    }
    if let Some(adjust) = process.oom_score_adj.filter(|adjust| !(-1000..=1000).contains(adjust)) {
        return Err(Error::config("process.oomScoreAdj", format!("{adjust} is not within -1000 and 1000")));
    }
    let mut seen = Vec::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let field = format!("process.rlimits[{index}]");
        if limit.soft > limit.hard {
            let cause = format!("soft limit {} is above hard limit {}", limit.soft, limit.hard);
            return Err(Error::config(field, cause));
        }
        if seen.contains(&&limit.kind) {
            return Err(Error::config(field, format!("{} is there twice", limit.kind)));
        }
        seen.push(&limit.kind);
    }
    if let Some(scheduler) = &process.scheduler {
        scheduler.attributes()?;
    }
    if let Some(priority) = &process.io_priority {
        priority.value()?;
    }
    if let Some(affinity) = &process.exec_cpu_affinity {
        affinity.masks()?;
    }
    Ok(())
}

/// `1.0.0`, `1.0.2-dev`, `1.2.1+dev`.
fn version(text: &str) -> Result<()> {
    let unknown = |cause: String| {
        Err(Error::config("ociVersion", cause)
            .hint("dhow carries out versions 1.0 to 1.3 of the runtime specification"))
    };
    if text.is_empty() {
        return unknown("is missing".into());
    }
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u64>> = core.split('.').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(1), Some(minor), Some(_)] if MINORS.contains(&minor) => Ok(()),
        [Some(_), Some(_), Some(_)] => unknown(format!("unknown version {text:?}")),
        _ => unknown(format!("{text:?} is not a version")),
    }
}

fn namespaces(linux: &Linux) -> Result<()> {
    let mut seen = Vec::new();
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let Some(kind) = NamespaceKind::from_name(&namespace.kind) else {
            let known = NamespaceKind::ALL.map(NamespaceKind::name).join(", ");
            let cause = format!("unknown type {:?}; known are {known}", namespace.kind);
            return Err(Error::config(format!("{field}.type"), cause));
        };
        if seen.contains(&kind) {
            return Err(Error::config(field, format!("a {} namespace is there twice", kind.name())));
        }
        seen.push(kind);
        if !namespace.path.is_empty() && !namespace.path.starts_with('/') {
            return Err(Error::config(
                format!("{field}.path"),
                format!("{:?} is not absolute", namespace.path),
            ));
        }
        no_nul(&format!("{field}.path"), &namespace.path)?;
    }
    if !linux.has(NamespaceKind::Mount) {
        // Such a mask would cover the host's own files.
        let masks = !linux.masked_paths.is_empty() || !linux.readonly_paths.is_empty();
        if masks || !linux.rootfs_propagation.is_empty() {
            return Err(Error::config(
                "linux.namespaces",
                "has no mount namespace, without which maskedPaths, readonlyPaths and rootfsPropagation cannot be had",
            ));
        }
    }
    Ok(())
}

fn mounts(spec: &Spec) -> Result<()> {
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        if mount.destination.is_empty() {
            return Err(Error::config(format!("{field}.destination"), "is empty"));
        }
        for text in [&mount.destination, &mount.source, &mount.kind].into_iter().chain(&mount.options) {
            no_nul(&field, text)?;
        }
        ranges(&format!("{field}.uidMappings"), &mount.uid_mappings)?;
        ranges(&format!("{field}.gidMappings"), &mount.gid_mappings)?;
    }
    Ok(())
}

fn hooks(spec: &Spec) -> Result<()> {
    for point in super::HookPoint::ALL {
        for (index, hook) in spec.hooks.at(point).iter().enumerate() {
            let field = format!("hooks.{}[{index}]", point.name());
            if !hook.path.starts_with('/') {
                return Err(Error::config(
                    format!("{field}.path"),
                    format!("{:?} is not absolute", hook.path),
                ));
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return Err(Error::config(format!("{field}.timeout"), "is not above 0 seconds"));
            }
            for text in hook.args.iter().chain(&hook.env).chain([&hook.path]) {
                no_nul(&field, text)?;
            }
        }
    }
    Ok(())
}

fn mappings(linux: &Linux) -> Result<()> {
    for (field, maps) in
        [("linux.uidMappings", &linux.uid_mappings), ("linux.gidMappings", &linux.gid_mappings)]
    {
        if maps.is_empty() {
            if linux.creates(NamespaceKind::User) {
                return Err(Error::config(field, "is empty, and a new user namespace needs it"));
            }
            continue;
        }
        if !linux.has(NamespaceKind::User) {
            return Err(Error::config(field, "needs a user namespace, and linux.namespaces has none"));
        }
        ranges(field, maps)?;
    }
    Ok(())
}

/// Ranges of ids that a user namespace can have.
fn ranges(field: &str, maps: &[super::IdMapping]) -> Result<()> {
    for (index, map) in maps.iter().enumerate() {
        let entry = format!("{field}[{index}]");
        let ends = [map.container_id.checked_add(map.size), map.host_id.checked_add(map.size)];
        if map.size == 0 || ends.contains(&None) {
            return Err(Error::config(entry, format!("a range of {} ids is not possible", map.size)));
        }
        let overlaps = |a: u32, b: u32, other: &super::IdMapping| {
            u64::from(a) < u64::from(b) + u64::from(other.size)
                && u64::from(b) < u64::from(a) + u64::from(map.size)
        };
        if maps[..index].iter().any(|other| {
            overlaps(map.container_id, other.container_id, other)
                || overlaps(map.host_id, other.host_id, other)
        }) {
            return Err(Error::config(entry, "overlaps a range before it"));
        }
    }
    Ok(())
}

/// Only what a namespace of the container's own holds may be set: all else is the host's.
fn sysctl(linux: &Linux) -> Result<()> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for key in linux.sysctl.keys() {
        let field = format!("linux.sysctl.{key}");
        let dotted = crate::spec::dotted_sysctl(key);
        if key.split(['.', '/']).any(|part| part.is_empty() || part == "..") {
            return Err(Error::config(field, "is not the name of a kernel parameter"));
        }
        let kind = match dotted.as_str() {
            "kernel.domainname" | "kernel.hostname" => NamespaceKind::Uts,
            name if IPC.contains(&name) || name.starts_with("fs.mqueue.") => NamespaceKind::Ipc,
            name if name.starts_with("net.") => NamespaceKind::Network,
            name if name.starts_with("user.") => NamespaceKind::User,
            _ => return Err(Error::config(field, "belongs to no namespace: it would change the host")),
        };
        if !linux.has(kind) {
            let cause = format!("needs a {} namespace: it would change the host", kind.name());
            return Err(Error::config(field, cause));
        }
    }
    Ok(())
}

fn paths(linux: &Linux) -> Result<()> {
    for (field, paths) in
        [("linux.maskedPaths", &linux.masked_paths), ("linux.readonlyPaths", &linux.readonly_paths)]
    {
        for (index, path) in paths.iter().enumerate() {
            if !path.starts_with('/') {
                return Err(Error::config(format!("{field}[{index}]"), format!("{path:?} is not absolute")));
            }
            no_nul(field, path)?;
        }
    }
    Ok(())
}

fn devices(linux: &Linux) -> Result<()> {
    for (index, device) in linux.devices.iter().enumerate() {
        let field = format!("linux.devices[{index}] ({})", device.path);
        if !device.path.starts_with('/') {
            return Err(Error::config(format!("{field}.path"), format!("{:?} is not absolute", device.path)));
        }
        no_nul(&field, &device.path)?;
        match device.kind.as_str() {
            "p" => {}
            "c" | "u" | "b" => {
                for (name, number) in [("major", device.major), ("minor", device.minor)] {
                    if u32::try_from(number).is_err() {
                        return Err(Error::config(
                            format!("{field}.{name}"),
                            format!("{number} is no device number"),
                        ));
                    }
                }
            }
            other => {
                return Err(Error::config(
                    format!("{field}.type"),
                    format!("{other:?} is none of c, u, b, p"),
                ));
            }
        }
    }
    Ok(())
}

fn time_offsets(linux: &Linux) -> Result<()> {
    for (clock, offset) in &linux.time_offsets {
        let field = format!("linux.timeOffsets.{clock}");
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            return Err(Error::config(field, "unknown clock; known are monotonic and boottime"));
        }
        if offset.nanosecs >= 1_000_000_000 {
            return Err(Error::config(format!("{field}.nanosecs"), "is a second or more"));
        }
        if !linux.creates(NamespaceKind::Time) {
            return Err(Error::config(
                field,
                "needs a new time namespace, and linux.namespaces asks for none",
            ));
        }
    }
    Ok(())
}

fn net_devices(linux: &Linux) -> Result<()> {
    /// IFNAMSIZ, with its NUL.
    const MOST: usize = 15;
    let mut seen = Vec::new();
    for (outside, device) in &linux.net_devices {
        let field = format!("linux.netDevices.{outside}");
        if !linux.has(NamespaceKind::Network) {
            return Err(Error::config(field, "needs a network namespace, and linux.namespaces has none"));
        }
        let inside = if device.name.is_empty() { outside } else { &device.name };
        for name in [outside, inside] {
            // What the kernel takes for a name (dev_valid_name), and % is its pattern for a free one.
            let odd = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_ascii_whitespace();
            let fits = (1..=MOST).contains(&name.len()) && name != "." && name != "..";
            if !fits || name.contains(odd) {
                let cause = format!(
                    "{name:?} is no name of a network device: 1 to {MOST} bytes without /, :, % or space"
                );
                return Err(Error::config(field, cause));
            }
        }
        if seen.contains(&inside) {
            return Err(Error::config(field, format!("a device {inside:?} is there twice")));
        }
        seen.push(inside);
    }
    Ok(())
}

/// What this version does not carry out: an error that names the field, never silence.
fn not_yet(spec: &Spec) -> Result<()> {
    let asked = [
        (spec.solaris.is_some(), "solaris"),
        (spec.windows.is_some(), "windows"),
        (spec.vm.is_some(), "vm"),
        (spec.zos.is_some(), "zos"),
        (spec.freebsd.is_some(), "freebsd"),
    ];
    match asked.into_iter().find(|(asked, _)| *asked) {
        Some((_, field)) => Err(Error::new(Class::Unsupported, "invalid configuration")
            .on(field)
            .because("is not carried out by this version of dhow")
            .hint("remove it from config.json, or switch it off in the engine")),
        None => Ok(()),
    }
}

/// A NUL would cut the string short in the kernel, and what was checked would not be what is used.
fn no_nul(field: &str, text: &str) -> Result<()> {
    if text.contains('\0') { Err(Error::config(field, "contains a NUL character")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["true"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
        })
    }

    /// The error of the minimal configuration with one value changed; `None` when it is valid.
    fn with(pointer: &str, value: Value) -> Option<String> {
        let mut config = minimal();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        validate(&serde_json::from_value(config).unwrap()).err().map(|error| error.to_string())
    }

    #[test]
    fn the_minimum_is_enough() {
        assert_eq!(with("/hostname", json!("x")), None);
        for version in ["1.0.0", "1.0.2-dev", "1.1.0+dev", "1.2.1", "1.3.0", "1.0.0-rc5"] {
            assert_eq!(with("/ociVersion", json!(version)), None, "{version}");
        }
    }

    #[test]
    fn each_wrong_value_is_named() {
        for (pointer, value, words) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion: unknown version \"2.0.0\""),
            ("/ociVersion", json!("1.4.0"), "ociVersion: unknown version"),
            ("/ociVersion", json!("latest"), "ociVersion: \"latest\" is not a version"),
            ("/ociVersion", json!(""), "ociVersion: is missing"),
            ("/root", json!(null), "root: is missing"),
            ("/root", json!({"path": ""}), "root.path: is empty"),
            ("/process/args", json!([]), "process.args: is empty"),
            ("/process/cwd", json!("tmp"), "process.cwd: \"tmp\" is not an absolute path"),
            ("/process/env", json!(["A=\0"]), "process.env[0]: contains a NUL"),
            ("/process/oomScoreAdj", json!(1001), "process.oomScoreAdj: 1001 is not within"),
            ("/process/user", json!({"uid": 4_294_967_295_u32}), "process.user.uid: 4294967295 is beyond"),
            ("/process/user", json!({"umask": 4096}), "process.user.umask: is beyond 0777"),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
                "soft limit 2 is above",
            ),
            ("/linux/namespaces", json!([{"type": "net"}]), "linux.namespaces[0].type: unknown type \"net\""),
            ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "is there twice"),
            ("/linux", json!({"namespaces": [{"type": "pid"}], "maskedPaths": ["/x"]}), "no mount namespace"),
            ("/linux/namespaces", json!([{"type": "mount", "path": "x"}]), "\"x\" is not absolute"),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "user"}]),
                "linux.uidMappings: is empty",
            ),
            (
                "/linux/uidMappings",
                json!([{"containerID": 0, "hostID": 0, "size": 1}]),
                "needs a user namespace",
            ),
            ("/linux/sysctl", json!({"vm.swappiness": "1"}), "belongs to no namespace"),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}), "needs a network namespace"),
            ("/linux/sysctl", json!({"kernel/../vm/x": "1"}), "is not the name of a kernel parameter"),
            ("/linux/maskedPaths", json!(["proc"]), "linux.maskedPaths[0]: \"proc\" is not absolute"),
            (
                "/linux/devices",
                json!([{"path": "/dev/x", "type": "x"}]),
                "linux.devices[0] (/dev/x).type: \"x\" is none",
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/x", "type": "c", "major": -1}]),
                "-1 is no device number",
            ),
            ("/linux/timeOffsets", json!({"real": {}}), "unknown clock"),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "needs a new time namespace"),
            ("/hooks", json!({"poststop": [{"path": "x"}]}), "hooks.poststop[0].path: \"x\" is not absolute"),
            ("/hooks", json!({"prestart": [{"path": "/x", "timeout": 0}]}), "hooks.prestart[0].timeout"),
            ("/mounts", json!([{"destination": ""}]), "mounts[0].destination: is empty"),
            ("/linux/netDevices", json!({"e0": {}}), "linux.netDevices.e0: needs a network namespace"),
            ("/linux/intelRdt", json!({"closID": "a/b"}), "linux.intelRdt.closID: \"a/b\" is no name"),
            (
                "/linux/intelRdt",
                json!({"closID": "mon_groups"}),
                "linux.intelRdt.closID: \"mon_groups\" is no name",
            ),
            (
                "/linux/intelRdt",
                json!({"memBwSchema": "MB:0=1\nL3:0=f"}),
                "memBwSchema: is more than one line",
            ),
            ("/linux/intelRdt", json!({"memBwSchema": "L3:0=f"}), "memBwSchema: does not start with MB:"),
            ("/linux/intelRdt", json!({"l3CacheSchema": "L2:0=f"}), "l3CacheSchema: does not start with L3"),
            ("/linux/intelRdt", json!({"schemata": ["L3:0=f", "x"]}), "schemata[1]: \"x\" is no"),
        ] {
            let error = with(pointer, value.clone());
            assert!(error.as_ref().is_some_and(|e| e.contains(words)), "{pointer} {value}: {error:?}");
        }
    }

    #[test]
    fn names_of_network_devices_are_the_kernels() {
        let with = |devices: Value| {
            let mut config = minimal();
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "network"}));
            config["linux"]["netDevices"] = devices;
            validate(&serde_json::from_value(config).unwrap()).err().map(|error| error.to_string())
        };
        assert_eq!(with(json!({"eth0": {}, "eth1": {"name": "lan"}})), None);
        assert!(with(json!({"a": {"name": "x"}, "b": {"name": "x"}})).unwrap().contains("there twice"));
        for name in ["sixteen-bytes-xx", "a/b", "a b", "..", "eth%d", "a:1"] {
            let error = with(json!({"e": {"name": name}})).unwrap();
            assert!(error.contains("linux.netDevices.e: ") && error.contains("no name"), "{error}");
        }
    }

    #[test]
    fn overlapping_id_ranges_are_refused() {
        let map = |ranges: &[(u32, u32, u32)]| {
            let entries: Vec<Value> =
                ranges.iter().map(|(c, h, s)| json!({"containerID": c, "hostID": h, "size": s})).collect();
            let mut config = minimal();
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            config["linux"]["uidMappings"] = json!(entries);
            config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
            validate(&serde_json::from_value(config).unwrap()).err().map(|error| error.to_string())
        };
        assert_eq!(map(&[(0, 1000, 10), (10, 2000, 10)]), None);
        assert!(map(&[(0, 1000, 10), (9, 2000, 10)]).unwrap().contains("overlaps"));
        assert!(map(&[(0, 1000, 10), (10, 1009, 10)]).unwrap().contains("overlaps"));
        assert!(map(&[(0, u32::MAX, 10)]).unwrap().contains("not possible"));
        assert!(map(&[(0, 0, 0)]).unwrap().contains("not possible"));
    }
}
