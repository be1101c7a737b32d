//! What a container has used, in the structure that `runc events` prints and go-runc reads.

use super::Manager;
use super::controller::Controller;
use super::dir::{Dir, pairs};
use super::v1::Hierarchies;
use crate::error::{Context, Result};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a container has used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// CPU time.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub blkio: Blkio,
    /// Huge pages, by size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    /// How much.
    pub usage: CpuUsage,
    /// How often the quota ran out.
    pub throttling: Throttling,
    /// How long processes waited for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// CPU time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// In all.
    pub total: u64,
    /// By CPU; cgroup v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside it.
    pub user: u64,
}

/// The CPU quota.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Throttling {
    /// Periods in which something ran.
    pub periods: u64,
    /// Those in which the quota ran out.
    pub throttled_periods: u64,
    /// How long nothing could run for that, in nanoseconds.
    pub throttled_time: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The page cache.
    pub cache: u64,
    /// Memory.
    pub usage: MemoryEntry,
    /// Memory and swap together, on both versions of cgroups.
    pub swap: MemoryEntry,
    /// Kernel memory; cgroup v1 only.
    pub kernel: MemoryEntry,
    /// TCP buffers; cgroup v1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// memory.stat as the kernel has it.
    pub raw: BTreeMap<String, u64>,
    /// How long processes waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// A kind of memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryEntry {
    /// The limit; without one, the greatest number that the kernel has for it.
    pub limit: u64,
    /// In use.
    pub usage: u64,
    /// The most that was in use.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; 0 without a limit.
    pub limit: u64,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes by device and operation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Operations by device and kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// How long processes waited for I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// A figure of a block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioEntry {
    /// The device's major number.
    pub major: u64,
    /// The device's minor number.
    pub minor: u64,
    /// `Read`, `Write`, `Sync`, `Async`, `Discard`, `Total`.
    pub op: String,
    /// The figure.
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hugetlb {
    /// Bytes in use.
    pub usage: u64,
    /// The most that were in use.
    pub max: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// Pressure stall information (kernel: accounting/psi).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Psi {
    /// At least one process waited.
    pub some: PsiData,
    /// All of them did.
    pub full: PsiData,
}

/// Shares of time in percent, over 10, 60 and 300 seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PsiData {
    /// Over ten seconds.
    pub avg10: f64,
    /// Over a minute.
    pub avg60: f64,
    /// Over five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total: u64,
}

impl Manager {
    /// What the container has used so far. Controllers that it has not leave zeros.
    ///
    /// # Errors
    /// The system's, such as a cgroup that is gone.
    pub fn stats(&self) -> Result<Stats> {
        match self {
            Manager::V1(v1) => of_v1(v1),
            Manager::V2(v2) => v2.dir().map_or_else(|| Ok(Stats::default()), of_v2),
            Manager::Systemd(unit) => unit.inner().stats(),
            Manager::Disabled => Ok(Stats::default()),
        }
    }
}

/// A file that this kernel, or a cgroup without the controller, does not have leaves the default.
fn some<T: Default>(result: rustix::io::Result<T>) -> rustix::io::Result<T> {
    match result {
        // PSI is EOPNOTSUPP where it is switched off.
        Err(Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL) => Ok(T::default()),
        other => other,
    }
}

/// Reads one controller's figures.
type Step = fn(&Dir, &mut Stats) -> rustix::io::Result<()>;

fn of_v1(v1: &Hierarchies) -> Result<Stats> {
    let mut stats = Stats::default();
    let steps: [(Controller, Step); 6] = [
        (Controller::Cpu, v1_throttling),
        (Controller::Cpuacct, v1_cpu),
        (Controller::Memory, v1_memory),
        (Controller::Pids, pids),
        (Controller::Io, v1_io),
        (Controller::Hugetlb, v1_hugetlb),
    ];
    for (controller, read) in steps {
        if let Some(dir) = v1.dir(controller) {
            read(dir, &mut stats).doing_on("read the use of cgroup", || dir.path())?;
        }
    }
    if let Some(dir) = v1.unified_dir() {
        pressure(dir, &mut stats).doing_on("read the use of cgroup", || dir.path())?;
    }
    Ok(stats)
}

fn of_v2(dir: &Dir) -> Result<Stats> {
    let mut stats = Stats::default();
    for read in [v2_cpu, v2_memory, pids, v2_io, v2_hugetlb, pressure] {
        read(dir, &mut stats).doing_on("read the use of cgroup", || dir.path())?;
    }
    Ok(stats)
}

fn v1_throttling(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let text = dir.read("cpu.stat")?;
    for (key, value) in pairs(&text) {
        match key {
            "nr_periods" => stats.cpu.throttling.periods = value,
            "nr_throttled" => stats.cpu.throttling.throttled_periods = value,
            "throttled_time" => stats.cpu.throttling.throttled_time = value,
            _ => {}
        }
    }
    Ok(())
}

fn v1_cpu(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let usage = &mut stats.cpu.usage;
    usage.total = dir.number("cpuacct.usage")?;
    usage.user = some(dir.number("cpuacct.usage_user"))?;
    usage.kernel = some(dir.number("cpuacct.usage_sys"))?;
    let percpu = some(dir.read("cpuacct.usage_percpu"))?;
    usage.percpu = percpu.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    Ok(())
}

fn v1_memory(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let memory = &mut stats.memory;
    let text = dir.read("memory.stat")?;
    memory.raw = pairs(&text).map(|(key, value)| (key.to_owned(), value)).collect();
    memory.cache = memory.raw.get("cache").copied().unwrap_or(0);
    let entry = |prefix: &str| -> rustix::io::Result<MemoryEntry> {
        let number = |name: &str| some(dir.number(&format!("{prefix}.{name}")));
        Ok(MemoryEntry {
            limit: number("limit_in_bytes")?,
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        })
    };
    memory.usage = entry("memory")?;
    memory.swap = entry("memory.memsw")?;
    memory.kernel = entry("memory.kmem")?;
    memory.kernel_tcp = entry("memory.kmem.tcp")?;
    Ok(())
}

/// The same on both versions.
fn pids(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    stats.pids.current = some(dir.number("pids.current"))?;
    let limit = some(dir.number("pids.max"))?;
    stats.pids.limit = if limit == u64::MAX { 0 } else { limit };
    Ok(())
}

fn v1_io(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let read = |name: &str| -> rustix::io::Result<Vec<BlkioEntry>> {
        // Where BFQ is the scheduler it counts; the throttling layer counts on every device.
        let bfq = blkio_lines(&some(dir.read(&format!("blkio.bfq.{name}")))?);
        if bfq.is_empty() {
            Ok(blkio_lines(&some(dir.read(&format!("blkio.throttle.{name}")))?))
        } else {
            Ok(bfq)
        }
    };
    stats.blkio.io_service_bytes_recursive = read("io_service_bytes_recursive")?;
    stats.blkio.io_serviced_recursive = read("io_serviced_recursive")?;
    Ok(())
}

/// `8:0 Read 4096` lines.
fn blkio_lines(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let (op, value) = (fields.next()?, fields.next()?);
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn v1_hugetlb(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    for size in page_sizes() {
        let number = |name: &str| some(dir.number(&format!("hugetlb.{size}.{name}")));
        let entry = Hugetlb {
            usage: number("usage_in_bytes")?,
            max: number("max_usage_in_bytes")?,
            failcnt: number("failcnt")?,
        };
        stats.hugetlb.insert(size, entry);
    }
    Ok(())
}

fn v2_hugetlb(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    for size in page_sizes() {
        let usage = match dir.number(&format!("hugetlb.{size}.current")) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        let failcnt = some(dir.keyed(&format!("hugetlb.{size}.events"), "max"))?.unwrap_or(0);
        stats.hugetlb.insert(size, Hugetlb { usage, max: 0, failcnt });
    }
    Ok(())
}

/// The sizes of huge pages that this machine has, as cgroup files name them: `2MB`.
pub(super) fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok().map(size_name))
        .collect()
}

fn size_name(kib: u64) -> String {
    match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    }
}

fn v2_cpu(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let text = dir.read("cpu.stat")?;
    let cpu = &mut stats.cpu;
    for (key, value) in pairs(&text) {
        match key {
            "usage_usec" => cpu.usage.total = value * 1000,
            "user_usec" => cpu.usage.user = value * 1000,
            "system_usec" => cpu.usage.kernel = value * 1000,
            "nr_periods" => cpu.throttling.periods = value,
            "nr_throttled" => cpu.throttling.throttled_periods = value,
            "throttled_usec" => cpu.throttling.throttled_time = value * 1000,
            _ => {}
        }
    }
    Ok(())
}

fn v2_memory(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let text = match dir.read("memory.stat") {
        // The controller is not enabled for this cgroup.
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let memory = &mut stats.memory;
    memory.raw = pairs(&text).map(|(key, value)| (key.to_owned(), value)).collect();
    memory.cache = memory.raw.get("file").copied().unwrap_or(0);
    memory.usage = MemoryEntry {
        limit: dir.number("memory.max")?,
        usage: dir.number("memory.current")?,
        max: some(dir.number("memory.peak"))?,
        failcnt: some(dir.keyed("memory.events", "max"))?.unwrap_or(0),
    };
    // Readers of v1's figures expect memory and swap together.
    let usage = &memory.usage;
    memory.swap = MemoryEntry {
        limit: usage.limit.saturating_add(some(dir.number("memory.swap.max"))?),
        usage: usage.usage.saturating_add(some(dir.number("memory.swap.current"))?),
        max: usage.max.saturating_add(some(dir.number("memory.swap.peak"))?),
        failcnt: some(dir.keyed("memory.swap.events", "fail"))?.unwrap_or(0),
    };
    Ok(())
}

fn v2_io(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    (stats.blkio.io_service_bytes_recursive, stats.blkio.io_serviced_recursive) =
        io_stat(&some(dir.read("io.stat"))?);
    Ok(())
}

/// io.stat's `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` as bytes and operations.
fn io_stat(text: &str) -> (Vec<BlkioEntry>, Vec<BlkioEntry>) {
    let (mut bytes, mut operations) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let Some((major, minor)) = fields.next().and_then(|id| id.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            let (list, op) = match key {
                "rbytes" => (&mut bytes, "Read"),
                "wbytes" => (&mut bytes, "Write"),
                "dbytes" => (&mut bytes, "Discard"),
                "rios" => (&mut operations, "Read"),
                "wios" => (&mut operations, "Write"),
                "dios" => (&mut operations, "Discard"),
                _ => continue,
            };
            let value = value.parse().unwrap_or(0);
            list.push(BlkioEntry { major, minor, op: op.to_owned(), value });
        }
    }
    (bytes, operations)
}

fn pressure(dir: &Dir, stats: &mut Stats) -> rustix::io::Result<()> {
    let read = |file: &str| Ok(psi(&some(dir.read(file))?));
    stats.cpu.psi = read("cpu.pressure")?;
    stats.memory.psi = read("memory.pressure")?;
    stats.blkio.psi = read("io.pressure")?;
    Ok(())
}

/// The two lines of a pressure file.
fn psi(text: &str) -> Option<Psi> {
    let mut out = Psi::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let data = match fields.next()? {
            "some" => &mut out.some,
            "full" => &mut out.full,
            _ => continue,
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            match key {
                "avg10" => data.avg10 = value.parse().ok()?,
                "avg60" => data.avg60 = value.parse().ok()?,
                "avg300" => data.avg300 = value.parse().ok()?,
                "total" => data.total = value.parse().ok()?,
                _ => {}
            }
        }
    }
    (!text.is_empty()).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_versions() {
        let lines = blkio_lines("8:0 Read 4096\n8:0 Write 0\nTotal 4096\n");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], BlkioEntry { major: 8, minor: 0, op: "Read".into(), value: 4096 });
        let (bytes, operations) = io_stat("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:0 \n");
        assert_eq!((bytes.len(), operations.len()), (3, 3));
        assert_eq!(operations[1], BlkioEntry { major: 8, minor: 16, op: "Write".into(), value: 4 });
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let psi = psi(text).unwrap();
        assert_eq!((psi.some.avg10, psi.some.total, psi.full.total), (1.5, 77, 5));
        assert_eq!(super::psi(""), None);
    }

    #[test]
    fn names_of_go_runc() {
        let text = serde_json::to_string(&Stats::default()).unwrap();
        for name in
            ["\"throttledPeriods\":0", "\"kernelTCP\":", "\"failcnt\":0", "\"hugetlb\":{}", "\"limit\":0"]
        {
            assert!(text.contains(name), "{name} in {text}");
        }
        assert!(!text.contains("psi"));
    }

    #[test]
    fn page_sizes_have_the_files_names() {
        assert_eq!([64, 2048, 1 << 20].map(size_name), ["64KB", "2MB", "1GB"]);
    }
}
