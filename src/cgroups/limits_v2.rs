//! `linux.resources` as writes to cgroup v2's files (kernel: admin-guide/cgroup-v2). Pure.

use super::controller::Controller;
use super::limits::{Mode, io_weight, or_unlimited, set, swap_alone, weight_of_shares};
use super::limits_v1::{cpu_burst, cpu_idle, pids_max, plan_cpuset, rdma};
use super::write::{Undo, Write};
use crate::error::{Class, Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, Resources};

const BANDWIDTH: u8 = 1;

/// What an update must know of the cgroup as it is, because the configuration names only a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Current {
    /// memory.max, where `memory.swap` comes without `memory.limit`.
    pub memory_limit: Option<i64>,
}

/// The writes for every limit but devices. `resources` passed [`super::limits::check`].
///
/// # Errors
/// A field that cgroup v2 cannot carry out.
pub(super) fn plan(resources: &Resources, mode: Mode, current: Current) -> Result<Vec<Write>> {
    let mut out = Vec::with_capacity(12);
    if let Some(cpu) = &resources.cpu {
        plan_cpu(cpu, mode, &mut out)?;
    }
    if let Some(memory) = &resources.memory {
        plan_memory(memory, mode, current, &mut out)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        out.extend(pids_max(limit, mode));
    }
    if let Some(io) = &resources.block_io {
        plan_io(io, &mut out)?;
    }
    for huge in &resources.hugepage_limits {
        let field = "linux.resources.hugepageLimits";
        let (size, limit) = (&huge.page_size, huge.limit.to_string());
        out.push(Write::new(Controller::Hugetlb, field, format!("hugetlb.{size}.max"), limit.clone()));
        // Reserved pages have a limit of their own since Linux 5.7.
        let reserved = format!("hugetlb.{size}.rsvd.max");
        out.push(Write::new(Controller::Hugetlb, field, reserved, limit).optional_if(true));
    }
    if let Some(network) = &resources.network {
        let class = set(network.class_id).map(|class| ("network.classID", class.to_string()));
        let priority = network.priorities.first().map(|p| ("network.priorities", p.name.clone()));
        if let Some((field, value)) = class.or(priority) {
            return Err(unsupported(field, &value, "cgroup v2 has no network controllers"));
        }
    }
    out.extend(rdma(resources));
    plan_unified(resources, &mut out);
    Ok(out)
}

fn unsupported(field: &str, value: &str, why: &str) -> Error {
    Error::new(Class::Unsupported, "set a cgroup limit")
        .on(format!("linux.resources.{field} {value}"))
        .because(why)
}

fn plan_cpu(cpu: &Cpu, mode: Mode, out: &mut Vec<Write>) -> Result<()> {
    let realtime = [
        ("cpu.realtimeRuntime", cpu.realtime_runtime.map(|v| v.to_string())),
        ("cpu.realtimePeriod", cpu.realtime_period.map(|v| v.to_string())),
    ];
    for (field, value) in realtime {
        if let Some(value) = value.filter(|value| value != "0") {
            return Err(unsupported(field, &value, "cgroup v2 does not divide realtime"));
        }
    }
    plan_cpuset(cpu, out);
    out.extend(cpu_idle(cpu, mode));
    let new = |field, file: &'static str, value: String| Write::new(Controller::Cpu, field, file, value);
    if let Some(shares) = set(cpu.shares).filter(|_| cpu.idle != Some(1)) {
        let weight = weight_of_shares(shares).to_string();
        out.push(new("linux.resources.cpu.shares", "cpu.weight", weight).range("1 to 10000"));
    }
    // cpu.max takes both; a quota alone keeps the period, but not the other way round.
    let quota = set(cpu.quota).filter(|quota| *quota > 0 || mode == Mode::Update);
    let quota = quota.map(|quota| or_unlimited(quota, "max"));
    let value = match (quota, set(cpu.period)) {
        (Some(quota), Some(period)) => Some(format!("{quota} {period}")),
        (Some(quota), None) => Some(quota.into_owned()),
        (None, Some(period)) if mode == Mode::Create => Some(format!("max {period}")),
        (None, Some(period)) => Some(format!("{KEEP_QUOTA} {period}")),
        (None, None) => None,
    };
    if let Some(value) = value {
        let is_quota = set(cpu.quota).is_some();
        let field = if is_quota { "linux.resources.cpu.quota" } else { "linux.resources.cpu.period" };
        let write = new(field, "cpu.max", value);
        out.push(write.group(BANDWIDTH).range("a quota of 1000 or more, not less than the burst,"));
    }
    out.extend(cpu_burst(cpu, mode, "cpu.max.burst").map(|write| write.group(BANDWIDTH)));
    Ok(())
}

/// Stands for the quota that cpu.max has already; [`fill_quota`] puts it in.
const KEEP_QUOTA: &str = "?";

/// Completes a write of a period alone with the quota from the text of cpu.max.
pub(super) fn fill_quota(writes: &mut [Write], cpu_max: impl FnOnce() -> Option<String>) {
    let Some(write) = writes.iter_mut().find(|w| w.file == "cpu.max" && w.value.starts_with(KEEP_QUOTA))
    else {
        return;
    };
    let text = cpu_max().unwrap_or_default();
    let quota = text.split_whitespace().next().unwrap_or("max").to_owned();
    write.value = write.value.replace(KEEP_QUOTA, &quota).into();
}

fn plan_memory(memory: &Memory, mode: Mode, current: Current, out: &mut Vec<Write>) -> Result<()> {
    let new = |field, file: &'static str, value| Write::new(Controller::Memory, field, file, value);
    let is_meant = |v: &i64| *v > 0 || mode == Mode::Update;
    if let Some(tcp) = set(memory.kernel_tcp).filter(|tcp| *tcp > 0) {
        return Err(unsupported("memory.kernelTCP", &tcp.to_string(), "cgroup v2 counts it as memory"));
    }
    if let Some(swappiness) = set(memory.swappiness) {
        return Err(unsupported(
            "memory.swappiness",
            &swappiness.to_string(),
            "cgroup v2 has none per cgroup",
        ));
    }
    if memory.disable_oom_killer == Some(true) {
        return Err(unsupported("memory.disableOOMKiller", "true", "cgroup v2 cannot switch it off"));
    }
    let limit = set(memory.limit).filter(is_meant);
    if let Some(limit) = limit {
        let value = or_unlimited(limit, "max");
        out.push(new("linux.resources.memory.limit", "memory.max", value).range("a number of bytes"));
    }
    let swap = match set(memory.swap) {
        Some(swap) => Some(swap_alone(swap, set(memory.limit).or(current.memory_limit))?),
        None if memory.limit == Some(-1) => Some(None),
        None => None,
    };
    if let Some(swap) = swap.filter(|swap| swap.is_some() || mode == Mode::Update) {
        let value = swap.map_or("max".into(), |bytes| bytes.to_string().into());
        // A kernel without swap accounting gives none to limit, and "none" and "unlimited" need no file.
        let optional = matches!(swap, None | Some(0));
        out.push(new("linux.resources.memory.swap", "memory.swap.max", value).optional_if(optional));
    }
    if let Some(reservation) = set(memory.reservation).filter(is_meant) {
        let value = or_unlimited(reservation, "max");
        out.push(new("linux.resources.memory.reservation", "memory.low", value));
    }
    Ok(())
}

fn plan_io(io: &BlockIo, out: &mut Vec<Write>) -> Result<()> {
    let new = |field, file: &'static str, value: String| Write::new(Controller::Io, field, file, value);
    let leaf = io.leaf_weight.into_iter().chain(io.weight_device.iter().filter_map(|d| d.leaf_weight));
    if let Some(weight) = leaf.into_iter().find(|w| *w != 0) {
        return Err(unsupported("blockIO.leafWeight", &weight.to_string(), "cgroup v2 has none"));
    }
    // BFQ, where it is the scheduler, has its own scale; other kernels have io.cost's weight.
    if let Some(weight) = set(io.weight) {
        let write = new("linux.resources.blockIO.weight", "io.bfq.weight", format!("default {weight}"));
        let write = write.or("io.weight", format!("default {}", io_weight(weight))).range("10 to 1000");
        out.push(write.keyed("100"));
    }
    for device in &io.weight_device {
        if let Some(weight) = set(device.weight) {
            let id = format!("{}:{}", device.major, device.minor);
            let write =
                new("linux.resources.blockIO.weightDevice", "io.bfq.weight", format!("{id} {weight}"));
            out.push(write.or("io.weight", format!("{id} {}", io_weight(weight))).keyed("default"));
        }
    }
    let throttles = [
        ("throttleReadBpsDevice", "rbps", &io.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "wbps", &io.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "riops", &io.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "wiops", &io.throttle_write_iops_device),
    ];
    for (name, key, devices) in throttles {
        for device in devices {
            let rate = if device.rate == 0 { "max".into() } else { device.rate.to_string() };
            let line = format!("{}:{} {key}={rate}", device.major, device.minor);
            let mut write = new("", "io.max", line).keyed("rbps=max wbps=max riops=max wiops=max");
            write.field = format!("linux.resources.blockIO.{name}").into();
            out.push(write.range("the number of an existing block device, and a rate,"));
        }
    }
    Ok(())
}

fn plan_unified(resources: &Resources, out: &mut Vec<Write>) {
    for (file, value) in &resources.unified {
        // Files with a line per device take one at a time.
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            let is_keyed =
                matches!(file.as_str(), "io.max" | "io.weight" | "io.bfq.weight" | "io.latency" | "rdma.max");
            out.push(Write {
                controller: Controller::of_file(file),
                field: format!("linux.resources.unified.{file}").into(),
                file: file.clone().into(),
                value: line.to_owned().into(),
                or: None,
                optional: false,
                group: 0,
                undo: if is_keyed { Undo::Key("max") } else { Undo::Whole },
                range: "",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_lines(json: &str, mode: Mode, current: Current) -> Result<Vec<String>> {
        let resources = serde_json::from_str(json).unwrap();
        super::super::limits::check(&resources).unwrap();
        let writes = plan(&resources, mode, current)?;
        Ok(writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect())
    }

    fn lines(json: &str, mode: Mode) -> Vec<String> {
        try_lines(json, mode, Current::default()).unwrap()
    }

    #[test]
    fn only_what_is_given_is_written() {
        let docker = r#"{"memory":{"limit":0,"swap":0,"disableOOMKiller":false,"swappiness":0},
            "cpu":{"shares":0,"realtimeRuntime":0},"pids":{"limit":-1},"network":{"classID":0}}"#;
        assert!(lines(docker, Mode::Create).is_empty());
    }

    #[test]
    fn memory_and_swap() {
        let json = r#"{"memory":{"limit":100,"swap":300,"reservation":50}}"#;
        assert_eq!(lines(json, Mode::Create), ["memory.max=100", "memory.swap.max=200", "memory.low=50"]);
        assert_eq!(lines(r#"{"memory":{"limit":100,"swap":100}}"#, Mode::Create)[1], "memory.swap.max=0");
        assert_eq!(
            lines(r#"{"memory":{"limit":-1}}"#, Mode::Update),
            ["memory.max=max", "memory.swap.max=max"]
        );
        let current = Current { memory_limit: Some(100) };
        let update = try_lines(r#"{"memory":{"swap":150}}"#, Mode::Update, current).unwrap();
        assert_eq!(update, ["memory.swap.max=50"]);
    }

    #[test]
    fn cpu() {
        let json = r#"{"cpu":{"shares":1024,"quota":5000,"period":10000,"burst":100,"cpus":"0","mems":"0"}}"#;
        let expected =
            ["cpuset.cpus=0", "cpuset.mems=0", "cpu.weight=100", "cpu.max=5000 10000", "cpu.max.burst=100"];
        assert_eq!(lines(json, Mode::Create), expected);
        assert_eq!(lines(r#"{"cpu":{"quota":5000}}"#, Mode::Create), ["cpu.max=5000"]);
        assert_eq!(lines(r#"{"cpu":{"quota":-1}}"#, Mode::Update), ["cpu.max=max"]);
        assert_eq!(lines(r#"{"cpu":{"shares":512,"idle":1}}"#, Mode::Create), ["cpu.idle=1"]);
    }

    #[test]
    fn a_new_period_keeps_the_quota() {
        let resources = serde_json::from_str(r#"{"cpu":{"period":20000}}"#).unwrap();
        let mut writes = plan(&resources, Mode::Update, Current::default()).unwrap();
        fill_quota(&mut writes, || Some("7000 100000\n".into()));
        assert_eq!(writes[0].value, "7000 20000");
        assert_eq!(lines(r#"{"cpu":{"period":20000}}"#, Mode::Create), ["cpu.max=max 20000"]);
    }

    #[test]
    fn io_with_both_kinds_of_weight() {
        let json = r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#;
        let resources = serde_json::from_str(json).unwrap();
        let writes = plan(&resources, Mode::Create, Current::default()).unwrap();
        let text: Vec<String> = writes.iter().map(|w| format!("{}={}", w.file, w.value)).collect();
        let expected = [
            "io.bfq.weight=default 500",
            "io.bfq.weight=8:0 10",
            "io.max=8:0 rbps=600",
            "io.max=8:0 wiops=max",
        ];
        assert_eq!(text, expected);
        assert_eq!(writes[0].or, Some(("io.weight", "default 4950".into())));
        assert_eq!(writes[1].or, Some(("io.weight", "8:0 1".into())));
    }

    #[test]
    fn the_rest() {
        let json = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":9}],"rdma":{"d":{"hcaObjects":1}},
            "unified":{"memory.high":"5","io.max":"8:0 rbps=1\n8:16 rbps=2\n"},"pids":{"limit":0}}"#;
        let expected = [
            "pids.max=1",
            "hugetlb.2MB.max=9",
            "hugetlb.2MB.rsvd.max=9",
            "rdma.max=d hca_object=1",
            "io.max=8:0 rbps=1",
            "io.max=8:16 rbps=2",
            "memory.high=5",
        ];
        assert_eq!(lines(json, Mode::Create), expected);
    }

    #[test]
    fn what_v2_cannot_do_is_named() {
        for (json, field) in [
            (r#"{"memory":{"swappiness":60}}"#, "memory.swappiness 60"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller true"),
            (r#"{"memory":{"kernelTCP":1}}"#, "memory.kernelTCP 1"),
            (r#"{"cpu":{"realtimeRuntime":5}}"#, "cpu.realtimeRuntime 5"),
            (r#"{"network":{"classID":1}}"#, "network.classID 1"),
            (r#"{"blockIO":{"leafWeight":10}}"#, "blockIO.leafWeight 10"),
        ] {
            let error = try_lines(json, Mode::Create, Current::default()).unwrap_err();
            assert_eq!(error.class, Class::Unsupported);
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
