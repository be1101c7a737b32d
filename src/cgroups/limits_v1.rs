//! `linux.resources` as writes to cgroup v1's files (kernel: admin-guide/cgroup-v1). Pure.

use super::controller::Controller;
use super::limits::{Mode, or_unlimited, set};
use super::write::Write;
use crate::error::{Error, Result};
use crate::spec::{BlockIo, Cpu, Memory, NetworkResources, Resources, ThrottleDevice};

/// Groups of values that depend on each other.
const MEMORY: u8 = 1;
const BANDWIDTH: u8 = 2;
const REALTIME: u8 = 3;

/// The writes for every limit but devices. `resources` passed [`super::limits::check`].
///
/// # Errors
/// A field that cgroup v1 cannot carry out.
pub(super) fn plan(resources: &Resources, mode: Mode) -> Result<Vec<Write>> {
    if let Some(file) = resources.unified.keys().next() {
        return Err(Error::config(
            "linux.resources.unified",
            format!("{file}: this container is on cgroup v1, which has no such files"),
        ));
    }
    let mut out = Vec::with_capacity(12);
    if let Some(cpu) = &resources.cpu {
        plan_cpu(cpu, mode, &mut out);
    }
    if let Some(memory) = &resources.memory {
        plan_memory(memory, mode, &mut out);
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        out.extend(pids_max(limit, mode));
    }
    if let Some(io) = &resources.block_io {
        plan_io(io, &mut out);
    }
    for huge in &resources.hugepage_limits {
        let field = "linux.resources.hugepageLimits";
        let (size, limit) = (&huge.page_size, huge.limit.to_string());
        out.push(Write::new(
            Controller::Hugetlb,
            field,
            format!("hugetlb.{size}.limit_in_bytes"),
            limit.clone(),
        ));
        // Reserved pages have a limit of their own since Linux 5.7.
        let reserved = format!("hugetlb.{size}.rsvd.limit_in_bytes");
        out.push(Write::new(Controller::Hugetlb, field, reserved, limit).optional_if(true));
    }
    if let Some(network) = &resources.network {
        plan_network(network, &mut out);
    }
    out.extend(rdma(resources));
    Ok(out)
}

/// pids.max, the same on both versions.
pub(super) fn pids_max(limit: i64, mode: Mode) -> Option<Write> {
    let value = match (limit, mode) {
        // What a new cgroup has anyway; and what engines send for "unchanged".
        (..0, Mode::Create) | (0, Mode::Update) => return None,
        // The container's init is a process itself. systemd cannot express 0, and runc does the same.
        (0, Mode::Create) => "1".into(),
        (limit, _) => or_unlimited(limit, "max"),
    };
    let write = Write::new(Controller::Pids, "linux.resources.pids.limit", "pids.max", value);
    Some(write.range("1 to 4194304, or -1 for unlimited,"))
}

/// rdma.max, the same on both versions.
pub(super) fn rdma(resources: &Resources) -> impl Iterator<Item = Write> {
    resources.rdma.iter().map(|(device, limit)| {
        let mut line = device.clone();
        for (key, value) in [("hca_handle", limit.hca_handles), ("hca_object", limit.hca_objects)] {
            if let Some(value) = value {
                line.push_str(&format!(" {key}={value}"));
            }
        }
        Write::new(Controller::Rdma, "linux.resources.rdma", "rdma.max", line)
            .keyed("hca_handle=max hca_object=max")
    })
}

/// The cpuset's two files, the same on both versions.
pub(super) fn plan_cpuset(cpu: &Cpu, out: &mut Vec<Write>) {
    let lists = [
        ("linux.resources.cpu.cpus", "cpuset.cpus", &cpu.cpus),
        ("linux.resources.cpu.mems", "cpuset.mems", &cpu.mems),
    ];
    for (field, file, list) in lists {
        if !list.is_empty() {
            out.push(Write::new(Controller::Cpuset, field, file, list.clone()));
        }
    }
}

/// cpu.idle, the same on both versions. A group that is idle has a fixed weight, so it goes before
/// the weight when it is switched off.
pub(super) fn cpu_idle(cpu: &Cpu, mode: Mode) -> Option<Write> {
    let idle = cpu.idle.filter(|idle| *idle != 0 || mode == Mode::Update)?;
    let write = Write::new(Controller::Cpu, "linux.resources.cpu.idle", "cpu.idle", idle.to_string());
    Some(write.range("0 or 1").optional_if(idle == 0))
}

/// The burst, by its file's name on either version. Before Linux 5.14 there is none.
pub(super) fn cpu_burst(cpu: &Cpu, mode: Mode, file: &'static str) -> Option<Write> {
    let burst = cpu.burst.filter(|burst| *burst != 0 || mode == Mode::Update)?;
    let write = Write::new(Controller::Cpu, "linux.resources.cpu.burst", file, burst.to_string());
    Some(write.range("0 up to the quota").optional_if(burst == 0))
}

fn plan_cpu(cpu: &Cpu, mode: Mode, out: &mut Vec<Write>) {
    let new = |field, file: &'static str, value: String| Write::new(Controller::Cpu, field, file, value);
    plan_cpuset(cpu, out);
    out.extend(cpu_idle(cpu, mode));
    if let Some(shares) = set(cpu.shares).filter(|_| cpu.idle != Some(1)) {
        let write = new("linux.resources.cpu.shares", "cpu.shares", shares.to_string());
        out.push(write.range("2 to 262144"));
    }
    if let Some(period) = set(cpu.period) {
        let write = new("linux.resources.cpu.period", "cpu.cfs_period_us", period.to_string());
        out.push(write.group(BANDWIDTH).range("1000 to 1000000, with the quota within what the parent has,"));
    }
    if let Some(quota) = set(cpu.quota).filter(|quota| *quota > 0 || mode == Mode::Update) {
        let range = "-1 or at least 1000, not less than the burst and within what the parent has,";
        let write = new("linux.resources.cpu.quota", "cpu.cfs_quota_us", quota.max(-1).to_string());
        out.push(write.group(BANDWIDTH).range(range));
    }
    out.extend(cpu_burst(cpu, mode, "cpu.cfs_burst_us").map(|write| write.group(BANDWIDTH)));
    if let Some(period) = set(cpu.realtime_period) {
        let write = new("linux.resources.cpu.realtimePeriod", "cpu.rt_period_us", period.to_string());
        out.push(write.group(REALTIME).range("1 or more"));
    }
    if let Some(runtime) = set(cpu.realtime_runtime) {
        let write = new("linux.resources.cpu.realtimeRuntime", "cpu.rt_runtime_us", runtime.to_string());
        out.push(write.group(REALTIME).range("at most the period, and what the parent cgroup has left,"));
    }
}

fn plan_memory(memory: &Memory, mode: Mode, out: &mut Vec<Write>) {
    let new = |field, file: &'static str, value| Write::new(Controller::Memory, field, file, value);
    let is_meant = |v: &i64| *v > 0 || mode == Mode::Update;
    let limit = set(memory.limit).filter(is_meant);
    // Without a limit of memory none of memory and swap together can hold.
    let swap = set(memory.swap).or(limit.filter(|limit| *limit < 0)).filter(is_meant);
    if let Some(limit) = limit {
        let value = or_unlimited(limit, "-1");
        let range = "at most what swap and memory together may be";
        let write = new("linux.resources.memory.limit", "memory.limit_in_bytes", value);
        out.push(write.group(MEMORY).range(range));
    }
    if let Some(swap) = swap {
        let range = "-1 or at least the memory limit";
        let write =
            new("linux.resources.memory.swap", "memory.memsw.limit_in_bytes", or_unlimited(swap, "-1"));
        out.push(write.group(MEMORY).range(range).optional_if(swap < 0));
    }
    if let Some(reservation) = set(memory.reservation).filter(is_meant) {
        let value = or_unlimited(reservation, "-1");
        out.push(new("linux.resources.memory.reservation", "memory.soft_limit_in_bytes", value));
    }
    if let Some(tcp) = set(memory.kernel_tcp).filter(is_meant) {
        let value = or_unlimited(tcp, "-1");
        out.push(new("linux.resources.memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", value));
    }
    if let Some(swappiness) = memory.swappiness.filter(|s| *s != 0 || mode == Mode::Create) {
        let write =
            new("linux.resources.memory.swappiness", "memory.swappiness", swappiness.to_string().into());
        out.push(write.range("0 to 100"));
    }
    if let Some(disable) = memory.disable_oom_killer.filter(|disable| *disable || mode == Mode::Update) {
        let value = if disable { "1" } else { "0" };
        let mut write = new("linux.resources.memory.disableOOMKiller", "memory.oom_control", value.into());
        // The file reads `oom_kill_disable 0`, and takes `0`.
        write.undo = super::write::Undo::Field;
        out.push(write);
    }
    if let Some(hierarchy) = memory.use_hierarchy {
        let value = if hierarchy { "1" } else { "0" };
        let write = new("linux.resources.memory.useHierarchy", "memory.use_hierarchy", value.into());
        out.push(write.optional_if(hierarchy).range("only true (memory is always counted hierarchically)"));
    }
}

fn plan_io(io: &BlockIo, out: &mut Vec<Write>) {
    let new = |field, file: &'static str, value: String| Write::new(Controller::Io, field, file, value);
    if let Some(weight) = set(io.weight) {
        let write = new("linux.resources.blockIO.weight", "blkio.weight", weight.to_string());
        out.push(write.or("blkio.bfq.weight", weight.to_string()));
    }
    if let Some(weight) = set(io.leaf_weight) {
        out.push(new("linux.resources.blockIO.leafWeight", "blkio.leaf_weight", weight.to_string()));
    }
    for device in &io.weight_device {
        let id = format!("{}:{}", device.major, device.minor);
        if let Some(weight) = set(device.weight) {
            let line = format!("{id} {weight}");
            let write = new("linux.resources.blockIO.weightDevice", "blkio.weight_device", line.clone());
            out.push(write.or("blkio.bfq.weight_device", line).keyed("0"));
        }
        if let Some(weight) = set(device.leaf_weight) {
            let (field, line) = ("linux.resources.blockIO.weightDevice", format!("{id} {weight}"));
            out.push(new(field, "blkio.leaf_weight_device", line).keyed("0"));
        }
    }
    let throttles: [(&'static str, &'static str, &[ThrottleDevice]); 4] = [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", &io.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", &io.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", &io.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", &io.throttle_write_iops_device),
    ];
    for (name, file, devices) in throttles {
        for device in devices {
            let line = format!("{}:{} {}", device.major, device.minor, device.rate);
            let mut write =
                new("", file, line).keyed("0").range("the number of an existing block device, and a rate,");
            write.field = format!("linux.resources.blockIO.{name}").into();
            out.push(write);
        }
    }
}

fn plan_network(network: &NetworkResources, out: &mut Vec<Write>) {
    if let Some(class) = set(network.class_id) {
        let field = "linux.resources.network.classID";
        out.push(Write::new(Controller::NetCls, field, "net_cls.classid", class.to_string()));
    }
    for priority in &network.priorities {
        let line = format!("{} {}", priority.name, priority.priority);
        let field = "linux.resources.network.priorities";
        let write = Write::new(Controller::NetPrio, field, "net_prio.ifpriomap", line);
        out.push(write.keyed("0").range("an existing interface and a priority"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: &str, mode: Mode) -> Vec<String> {
        let resources = serde_json::from_str(json).unwrap();
        super::super::limits::check(&resources).unwrap();
        plan(&resources, mode).unwrap().iter().map(|w| format!("{}={}", w.file, w.value)).collect()
    }

    #[test]
    fn only_what_is_given_is_written() {
        assert!(lines("{}", Mode::Create).is_empty());
        let docker =
            r#"{"memory":{"disableOOMKiller":false},"cpu":{"shares":0},"pids":{},"blockIO":{"weight":0}}"#;
        assert!(lines(docker, Mode::Create).is_empty());
        assert!(lines(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#, Mode::Create).is_empty());
    }

    #[test]
    fn memory_of_both_kinds() {
        let json = r#"{"memory":{"limit":100,"swap":200,"reservation":50,"swappiness":0,"kernelTCP":9,
            "kernel":7,"disableOOMKiller":true,"useHierarchy":true}}"#;
        let expected = [
            "memory.limit_in_bytes=100",
            "memory.memsw.limit_in_bytes=200",
            "memory.soft_limit_in_bytes=50",
            "memory.kmem.tcp.limit_in_bytes=9",
            "memory.swappiness=0",
            "memory.oom_control=1",
            "memory.use_hierarchy=1",
        ];
        assert_eq!(lines(json, Mode::Create), expected);
    }

    #[test]
    fn an_update_to_unlimited_lifts_swap_too() {
        let json = r#"{"memory":{"limit":-1}}"#;
        assert_eq!(lines(json, Mode::Update), ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]);
    }

    #[test]
    fn cpu_of_every_kind() {
        let json = r#"{"cpu":{"shares":512,"quota":5000,"period":10000,"burst":100,"realtimeRuntime":900,
            "realtimePeriod":1000,"cpus":"0-1","mems":"0"}}"#;
        let expected = [
            "cpuset.cpus=0-1",
            "cpuset.mems=0",
            "cpu.shares=512",
            "cpu.cfs_period_us=10000",
            "cpu.cfs_quota_us=5000",
            "cpu.cfs_burst_us=100",
            "cpu.rt_period_us=1000",
            "cpu.rt_runtime_us=900",
        ];
        assert_eq!(lines(json, Mode::Create), expected);
        // The kernel refuses shares for an idle group.
        assert_eq!(lines(r#"{"cpu":{"shares":512,"idle":1}}"#, Mode::Create), ["cpu.idle=1"]);
    }

    #[test]
    fn pids_zero_and_unlimited() {
        assert_eq!(lines(r#"{"pids":{"limit":0}}"#, Mode::Create), ["pids.max=1"]);
        assert!(lines(r#"{"pids":{"limit":0}}"#, Mode::Update).is_empty());
        assert_eq!(lines(r#"{"pids":{"limit":-1}}"#, Mode::Update), ["pids.max=max"]);
        assert_eq!(lines(r#"{"pids":{"limit":32}}"#, Mode::Update), ["pids.max=32"]);
    }

    #[test]
    fn the_rest() {
        let json = r#"{"blockIO":{"weight":500,"leafWeight":300,"weightDevice":[{"major":8,"minor":0,"weight":100,
            "leafWeight":50}],"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":600}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]},
            "hugepageLimits":[{"pageSize":"2MB","limit":4096}],
            "network":{"classID":1048577,"priorities":[{"name":"lo","priority":5}]},
            "rdma":{"mlx5_1":{"hcaHandles":3,"hcaObjects":10000}}}"#;
        let expected = [
            "blkio.weight=500",
            "blkio.leaf_weight=300",
            "blkio.weight_device=8:0 100",
            "blkio.leaf_weight_device=8:0 50",
            "blkio.throttle.read_bps_device=8:0 600",
            "blkio.throttle.write_iops_device=8:16 0",
            "hugetlb.2MB.limit_in_bytes=4096",
            "hugetlb.2MB.rsvd.limit_in_bytes=4096",
            "net_cls.classid=1048577",
            "net_prio.ifpriomap=lo 5",
            "rdma.max=mlx5_1 hca_handle=3 hca_object=10000",
        ];
        assert_eq!(lines(json, Mode::Create), expected);
    }

    #[test]
    fn unified_is_refused_by_name() {
        let resources = serde_json::from_str(r#"{"unified":{"memory.high":"1"}}"#).unwrap();
        let error = plan(&resources, Mode::Create).unwrap_err().to_string();
        assert!(error.contains("linux.resources.unified") && error.contains("memory.high"), "{error}");
    }
}
