//! What a container uses, in the messages that containerd's clients know: `io.containerd.cgroups.v1`
//! and `.v2`. The numbers are the fields' numbers in their `metrics.proto`.

use crate::cgroup::Cgroups;
use dhow_shim_common::wire::Writer;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The fields of v1's MemoryStat, in order from 1, as memory.stat names them.
const V1_MEMORY: [&str; 32] = [
    "cache",
    "rss",
    "rss_huge",
    "mapped_file",
    "dirty",
    "writeback",
    "pgpgin",
    "pgpgout",
    "pgfault",
    "pgmajfault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "hierarchical_memory_limit",
    "hierarchical_memsw_limit",
    "total_cache",
    "total_rss",
    "total_rss_huge",
    "total_mapped_file",
    "total_dirty",
    "total_writeback",
    "total_pgpgin",
    "total_pgpgout",
    "total_pgfault",
    "total_pgmajfault",
    "total_inactive_anon",
    "total_active_anon",
    "total_inactive_file",
    "total_active_file",
    "total_unevictable",
];

/// The fields of v2's MemoryStat, likewise.
const V2_MEMORY: [&str; 31] = [
    "anon",
    "file",
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "anon_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
];

/// A limit that is none: what containerd's own shim says for "max".
const NO_LIMIT: u64 = u64::MAX;

/// The metrics: their type and the message. The layout is v1 as soon as memory is there.
pub fn read(cgroups: &Cgroups) -> (&'static str, Vec<u8>) {
    let is_v1 = ["memory", "cpuacct", "pids"].iter().any(|controller| cgroups.v1(controller).is_some());
    match (is_v1, cgroups.v2()) {
        (false, Some(directory)) => ("io.containerd.cgroups.v2.Metrics", v2(directory).finish()),
        _ => ("io.containerd.cgroups.v1.Metrics", v1(cgroups).finish()),
    }
}

fn text(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default()
}

fn number(directory: &Path, file: &str) -> u64 {
    match text(directory, file).trim() {
        "max" => NO_LIMIT,
        text => text.parse().unwrap_or(0),
    }
}

/// A file of lines `NAME NUMBER`.
fn table(directory: &Path, file: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text(directory, file).lines().filter_map(line).collect()
}

fn pick(table: &BTreeMap<String, u64>, name: &str) -> u64 {
    table.get(name).copied().unwrap_or(0)
}

fn in_order(table: &BTreeMap<String, u64>, names: &[&str]) -> Writer {
    let tags = 1u64..;
    tags.zip(names).fold(Writer::new(), |writer, (tag, name)| writer.number(tag, pick(table, name)))
}

fn v1(cgroups: &Cgroups) -> Writer {
    let mut metrics = Writer::new();
    if let Some(directory) = cgroups.v1("hugetlb") {
        for size in huge_sizes(directory) {
            let value = |what| number(directory, &format!("hugetlb.{size}.{what}"));
            let (usage, max, failed) =
                (value("usage_in_bytes"), value("max_usage_in_bytes"), value("failcnt"));
            metrics = metrics
                .message(1, &Writer::new().number(1, usage).number(2, max).number(3, failed).bytes(4, &size));
        }
    }
    if let Some(directory) = cgroups.v1("pids") {
        metrics = metrics.message(2, &pids(directory));
    }
    if let Some(directory) = cgroups.v1("cpuacct") {
        metrics = metrics.message(3, &v1_cpu(directory, cgroups.v1("cpu").unwrap_or(directory)));
    }
    if let Some(directory) = cgroups.v1("memory") {
        let mut memory = in_order(&table(directory, "memory.stat"), &V1_MEMORY);
        for (tag, kind) in [(33, ""), (34, ".memsw"), (35, ".kmem"), (36, ".kmem.tcp")] {
            let value = |what| number(directory, &format!("memory{kind}.{what}"));
            let entry = Writer::new()
                .number(1, value("limit_in_bytes"))
                .number(2, value("usage_in_bytes"))
                .number(3, value("max_usage_in_bytes"))
                .number(4, value("failcnt"));
            memory = memory.message(tag, &entry);
        }
        let oom = table(directory, "memory.oom_control");
        let oom = in_order(&oom, &["oom_kill_disable", "under_oom", "oom_kill"]);
        metrics = metrics.message(4, &memory).message(9, &oom);
    }
    if let Some(directory) = cgroups.v1("blkio") {
        metrics = metrics.message(5, &v1_blkio(directory));
    }
    metrics
}

fn pids(directory: &Path) -> Writer {
    let limit = number(directory, "pids.max");
    // What containerd's own shim has for "no limit" is 0.
    let limit = if limit == NO_LIMIT { 0 } else { limit };
    Writer::new().number(1, number(directory, "pids.current")).number(2, limit)
}

fn v1_cpu(accounts: &Path, limits: &Path) -> Writer {
    // cpuacct.stat counts in clock ticks, of which Linux shows 100 a second.
    const TICK: u64 = 10_000_000;
    let ticks = table(accounts, "cpuacct.stat");
    let mut usage = Writer::new()
        .number(1, number(accounts, "cpuacct.usage"))
        .number(2, pick(&ticks, "system") * TICK)
        .number(3, pick(&ticks, "user") * TICK);
    for each in text(accounts, "cpuacct.usage_percpu").split_whitespace() {
        // One value per processor, of which a zero counts as well: it is not left out.
        let value = each.parse::<u64>().unwrap_or(0);
        usage = if value == 0 { usage.bytes(4, [0]) } else { usage.number(4, value) };
    }
    let throttled = in_order(&table(limits, "cpu.stat"), &["nr_periods", "nr_throttled", "throttled_time"]);
    Writer::new().message(1, &usage).message(2, &throttled)
}

fn v1_blkio(directory: &Path) -> Writer {
    const FILES: [(u64, [&str; 2]); 2] = [
        (1, ["blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"]),
        (2, ["blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"]),
    ];
    let mut blkio = Writer::new();
    for (tag, files) in FILES {
        let content = files.map(|file| text(directory, file)).into_iter().find(|text| !text.is_empty());
        for line in content.unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [device, operation, value] = fields[..] else { continue };
            let Some((major, minor)) = device.split_once(':') else { continue };
            let number = |text: &str| text.parse::<u64>().unwrap_or(0);
            let entry = Writer::new()
                .bytes(1, operation)
                .number(3, number(major))
                .number(4, number(minor))
                .number(5, number(value));
            blkio = blkio.message(tag, &entry);
        }
    }
    blkio
}

fn huge_sizes(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let size = |name: std::ffi::OsString| {
        let name = name.to_str()?.strip_prefix("hugetlb.")?;
        let end = [".usage_in_bytes", ".current"].into_iter().find_map(|end| name.strip_suffix(end))?;
        (!end.contains('.')).then(|| end.to_owned())
    };
    names.filter_map(size).collect()
}

fn v2(directory: &Path) -> Writer {
    let cpu = table(directory, "cpu.stat");
    let cpu = in_order(
        &cpu,
        &["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"],
    );
    let memory = in_order(&table(directory, "memory.stat"), &V2_MEMORY)
        .number(32, number(directory, "memory.current"))
        .number(33, number(directory, "memory.max"))
        .number(34, number(directory, "memory.swap.current"))
        .number(35, number(directory, "memory.swap.max"))
        .number(36, number(directory, "memory.peak"));
    let events = table(directory, "memory.events");
    let events = in_order(&events, &["low", "high", "max", "oom", "oom_kill", "oom_group_kill"]);
    let mut metrics = Writer::new().message(1, &pids(directory)).message(2, &cpu).message(4, &memory);
    let mut io = Writer::new();
    for line in text(directory, "io.stat").lines() {
        io = io.message(1, &v2_io(line));
    }
    metrics = metrics.message(6, &io);
    for size in huge_sizes(directory) {
        let value = |what| number(directory, &format!("hugetlb.{size}.{what}"));
        let entry = Writer::new().number(1, value("current")).number(2, value("max")).bytes(3, &size);
        metrics = metrics.message(7, &entry);
    }
    metrics.message(8, &events)
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
fn v2_io(line: &str) -> Writer {
    let (device, rest) = line.split_once(' ').unwrap_or_default();
    let (major, minor) = device.split_once(':').unwrap_or_default();
    let number = |text: &str| text.parse::<u64>().unwrap_or(0);
    let value = |name: &str| {
        rest.split(' ').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map_or(0, number)
    };
    Writer::new()
        .number(1, number(major))
        .number(2, number(minor))
        .number(3, value("rbytes"))
        .number(4, value("wbytes"))
        .number(5, value("rios"))
        .number(6, value("wios"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_shim_common::wire::Message;

    #[test]
    fn v2_is_read_from_its_files() {
        let dir = std::env::temp_dir().join(format!("dhow-shim-metrics-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for (file, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 70\nuser_usec 40\n"),
            ("memory.stat", "anon 4096\nfile 1\npgfault 9\n"),
            ("memory.current", "5000\n"),
            ("memory.max", "max\n"),
            ("io.stat", "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n"),
            ("memory.events", "low 0\noom 2\noom_kill 1\n"),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
        let bytes = v2(&dir).finish();
        fs::remove_dir_all(&dir).unwrap();
        let metrics = Message::read(&bytes).unwrap();
        let part = |tag| Message::read(metrics.bytes(tag)).unwrap();
        assert_eq!((part(1).number(1), part(1).number(2)), (3, 0));
        assert_eq!((part(2).number(1), part(2).number(2)), (70, 40));
        assert_eq!((part(4).number(1), part(4).number(18), part(4).number(32)), (4096, 9, 5000));
        assert_eq!(part(4).number(33), u64::MAX);
        let io = Message::read(part(6).bytes(1)).unwrap();
        assert_eq!((io.number(1), io.number(2), io.number(6)), (8, 16, 4));
        assert_eq!((part(8).number(4), part(8).number(5)), (2, 1));
    }
}
