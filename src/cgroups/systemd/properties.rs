//! `linux.resources` as properties of a systemd unit (systemd.resource-control(5)). Pure.
//!
//! dhow writes the limits itself too, since units do not know all of them; the properties are
//! there so that systemd keeps them when it looks after its units again.

use super::super::devices::{Exceptions, Kind, MKNOD, READ, WRITE};
use super::super::limits::{set, swap_alone, weight_of_shares};
use super::dbus::{Property, Value};
use crate::spec::{BlockIo, Cpu, Resources};

/// What stands for "unlimited".
const INFINITY: u64 = u64::MAX;

/// The properties for a unit on cgroup v1 or v2. `current_period` is the CPU quota's period where
/// an update brings none.
pub(super) fn of_limits(resources: &Resources, is_v2: bool) -> Vec<Property> {
    let mut out = Vec::with_capacity(12);
    if let Some(memory) = &resources.memory {
        let limit = set(memory.limit);
        if let Some(limit) = limit {
            out.push((if is_v2 { "MemoryMax" } else { "MemoryLimit" }, bytes(limit)));
        }
        if is_v2 {
            if let Some(low) = set(memory.reservation) {
                out.push(("MemoryLow", bytes(low)));
            }
            match set(memory.swap).map(|swap| swap_alone(swap, limit)) {
                Some(Ok(swap)) => out.push(("MemorySwapMax", bytes(swap.unwrap_or(-1)))),
                None if limit == Some(-1) => out.push(("MemorySwapMax", bytes(-1))),
                // One that depends on the limit in force is left to the file.
                Some(Err(_)) | None => {}
            }
        }
    }
    if let Some(cpu) = &resources.cpu {
        of_cpu(cpu, is_v2, &mut out);
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        // 0 cannot be expressed; the container's init is one.
        out.push(("TasksMax", if limit == 0 { Value::U64(1) } else { bytes(limit) }));
    }
    if let Some(io) = &resources.block_io {
        of_io(io, is_v2, &mut out);
    }
    out
}

fn bytes(value: i64) -> Value {
    Value::U64(u64::try_from(value).unwrap_or(INFINITY))
}

fn of_cpu(cpu: &Cpu, is_v2: bool, out: &mut Vec<Property>) {
    if let Some(shares) = set(cpu.shares).filter(|_| cpu.idle != Some(1)) {
        if is_v2 {
            out.push(("CPUWeight", Value::U64(weight_of_shares(shares))));
        } else {
            out.push(("CPUShares", Value::U64(shares)));
        }
    }
    // The kernel's default period, where a quota comes alone.
    let period = set(cpu.period).unwrap_or(100_000);
    if set(cpu.period).is_some() {
        out.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }
    if let Some(quota) = set(cpu.quota) {
        let per_second = match u64::try_from(quota) {
            // systemd counts in hundredths of a CPU, and must not allow less than was asked for.
            Ok(quota) => quota.saturating_mul(1_000_000).div_ceil(period).next_multiple_of(10_000),
            Err(_) => INFINITY,
        };
        out.push(("CPUQuotaPerSecUSec", Value::U64(per_second)));
    }
    if is_v2 {
        for (name, list) in [("AllowedCPUs", &cpu.cpus), ("AllowedMemoryNodes", &cpu.mems)] {
            if let Some(mask) = mask(list).filter(|mask| !mask.is_empty()) {
                out.push((name, Value::Bytes(mask)));
            }
        }
    }
}

/// A list like `0-3,7` as bits, the lowest number first; `None` for lists with strides.
fn mask(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.parse().ok()?, high.parse().ok()?);
        // Numbers beyond what any kernel has would only make the mask long.
        if high > 65_535 {
            return None;
        }
        mask.resize(mask.len().max(high / 8 + 1), 0);
        for bit in low..=high {
            mask[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(mask)
}

fn of_io(io: &BlockIo, is_v2: bool, out: &mut Vec<Property>) {
    if let Some(weight) = set(io.weight) {
        // IOWeight goes to io.weight and, scaled, to io.bfq.weight.
        let name = if is_v2 { "IOWeight" } else { "BlockIOWeight" };
        out.push((
            name,
            Value::U64(if is_v2 { super::super::limits::io_weight(weight) } else { weight.into() }),
        ));
    }
    if !is_v2 {
        return;
    }
    let throttles = [
        ("IOReadBandwidthMax", &io.throttle_read_bps_device),
        ("IOWriteBandwidthMax", &io.throttle_write_bps_device),
        ("IOReadIOPSMax", &io.throttle_read_iops_device),
        ("IOWriteIOPSMax", &io.throttle_write_iops_device),
    ];
    for (name, devices) in throttles {
        let list: Vec<(String, u64)> = devices
            .iter()
            .map(|d| {
                (format!("/dev/block/{}:{}", d.major, d.minor), if d.rate == 0 { INFINITY } else { d.rate })
            })
            .collect();
        if !list.is_empty() {
            out.push((name, Value::TextNumbers(list)));
        }
    }
}

/// The device rules, for cgroup v1: there systemd writes the unit's own rules over dhow's whenever
/// it reloads. `proc_devices` is the text of `/proc/devices`, which names the majors.
pub(super) fn of_devices(exceptions: &Exceptions, proc_devices: &str) -> Vec<Property> {
    if exceptions.default_allow {
        // systemd can only list what is allowed.
        return vec![
            ("DevicePolicy", Value::Text("auto".into())),
            ("DeviceAllow", Value::TextPairs(Vec::new())),
        ];
    }
    let mut list = Vec::with_capacity(exceptions.list.len());
    for (devices, access) in &exceptions.list {
        let kind = if devices.kind == Kind::Block { "block" } else { "char" };
        let node = match (devices.major, devices.minor) {
            (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
            (Some(major), None) => match group(proc_devices, devices.kind, major) {
                Some(group) => format!("{kind}-{group}"),
                None => continue,
            },
            (None, None) => format!("{kind}-*"),
            // All majors with one minor: systemd has no words for it.
            (None, Some(_)) => continue,
        };
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        list.push((node, letters.iter().filter(|(bit, _)| access & bit != 0).map(|(_, c)| *c).collect()));
    }
    vec![("DevicePolicy", Value::Text("strict".into())), ("DeviceAllow", Value::TextPairs(list))]
}

/// The name of a major number in `/proc/devices`.
fn group(proc_devices: &str, kind: Kind, major: u32) -> Option<&str> {
    let mut section = Kind::Char;
    for line in proc_devices.lines() {
        match line {
            "Character devices:" => section = Kind::Char,
            "Block devices:" => section = Kind::Block,
            _ => {
                let Some((number, name)) = line.trim_start().split_once(' ') else { continue };
                if section == kind && number.parse() == Ok(major) {
                    return Some(name);
                }
            }
        }
    }
    None
}

/// The properties that make it a scope for a container with this process.
pub(super) fn of_scope(description: String, slice: &str, is_slice: bool, pid: u32) -> Vec<Property> {
    let mut out =
        vec![("Description", Value::Text(description)), ("DefaultDependencies", Value::Bool(false))];
    if is_slice {
        out.push(("Wants", Value::Texts(vec![slice.to_owned()])));
    } else {
        out.push(("Slice", Value::Text(slice.to_owned())));
        out.push(("Delegate", Value::Bool(true)));
        out.push(("PIDs", Value::U32s(vec![pid])));
    }
    for name in ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"] {
        out.push((name, Value::Bool(true)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::devices::{Policy, default_device_rules};
    use super::*;

    fn of(json: &str, is_v2: bool) -> Vec<Property> {
        of_limits(&serde_json::from_str(json).unwrap(), is_v2)
    }

    #[test]
    fn limits_of_v2() {
        let json = r#"{"memory":{"limit":100,"swap":300,"reservation":50},"pids":{"limit":-1},
            "cpu":{"shares":1024,"quota":25000,"period":50000,"cpus":"0-1,9","mems":"0"},
            "blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}]}}"#;
        let expected = vec![
            ("MemoryMax", Value::U64(100)),
            ("MemoryLow", Value::U64(50)),
            ("MemorySwapMax", Value::U64(200)),
            ("CPUWeight", Value::U64(100)),
            ("CPUQuotaPeriodUSec", Value::U64(50_000)),
            ("CPUQuotaPerSecUSec", Value::U64(500_000)),
            ("AllowedCPUs", Value::Bytes(vec![3, 2])),
            ("AllowedMemoryNodes", Value::Bytes(vec![1])),
            ("TasksMax", Value::U64(INFINITY)),
            ("IOWeight", Value::U64(1)),
            ("IOReadBandwidthMax", Value::TextNumbers(vec![("/dev/block/8:0".into(), 5)])),
        ];
        assert_eq!(of(json, true), expected);
        assert_eq!(of(r#"{"cpu":{"quota":33333}}"#, true), [("CPUQuotaPerSecUSec", Value::U64(340_000))]);
        assert_eq!(of(r#"{"cpu":{"quota":-1}}"#, true), [("CPUQuotaPerSecUSec", Value::U64(INFINITY))]);
        assert!(of(r#"{"memory":{"limit":0},"cpu":{"shares":0}}"#, true).is_empty());
    }

    #[test]
    fn limits_of_v1() {
        let json = r#"{"memory":{"limit":100,"swap":300},"cpu":{"shares":512},"pids":{"limit":0}}"#;
        let expected =
            [("MemoryLimit", Value::U64(100)), ("CPUShares", Value::U64(512)), ("TasksMax", Value::U64(1))];
        assert_eq!(of(json, false), expected);
    }

    #[test]
    fn masks() {
        assert_eq!(mask("0,2-3"), Some(vec![0b1101]));
        assert_eq!(mask("15"), Some(vec![0, 0x80]));
        assert_eq!(mask(""), Some(vec![]));
        assert_eq!(mask("0-7:2"), None);
    }

    #[test]
    fn devices_by_node_and_by_group() {
        let exceptions = Exceptions::of(&Policy::read(&default_device_rules()).unwrap()).unwrap();
        let text = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  8 sd\n";
        let properties = of_devices(&exceptions, text);
        let Value::TextPairs(list) = &properties[1].1 else { panic!("{properties:?}") };
        assert!(list.contains(&("char-*".into(), "m".into())));
        assert!(list.contains(&("/dev/char/1:3".into(), "rwm".into())));
        assert!(list.contains(&("char-pts".into(), "rwm".into())));
        assert_eq!(group(text, Kind::Block, 8), Some("sd"));
        assert_eq!(group(text, Kind::Char, 8), None);
    }
}
