//! What a container uses, and may use.

use crate::cgroups;
use crate::runtime::Network;
use crate::spec::{Cpu, Memory, Pids, Resources};
use std::time::Duration;

/// What a container uses, by its cgroup. 0 where the host lacks the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// CPU time so far, of all its processes on all CPUs.
    pub cpu: Duration,
    /// The part of it in the kernel.
    pub cpu_kernel: Duration,
    /// How long its processes could have run, but its quota had run out.
    pub throttled: Duration,
    /// Memory in use, in bytes, the page cache that it can give back included.
    pub memory: u64,
    /// The most that was in use, in bytes.
    pub memory_peak: u64,
    /// The limit of its memory, in bytes; `None` without one.
    pub memory_limit: Option<u64>,
    /// Memory and swap together, in bytes.
    pub memory_and_swap: u64,
    /// Processes and threads.
    pub processes: u64,
    /// How many there may be; `None` without a limit.
    pub process_limit: Option<u64>,
    /// Bytes read from block devices.
    pub read: u64,
    /// Bytes written to block devices.
    pub written: u64,
    /// Bytes received by its network interfaces, without the loopback.
    pub received: u64,
    /// Bytes sent by its network interfaces, without the loopback.
    pub sent: u64,
}

impl Stats {
    pub(super) fn of(stats: &cgroups::Stats, network: Network) -> Stats {
        let moved = |op: &str| -> u64 {
            let entries = &stats.blkio.io_service_bytes_recursive;
            entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum()
        };
        let memory = &stats.memory.usage;
        Stats {
            cpu: Duration::from_nanos(stats.cpu.usage.total),
            cpu_kernel: Duration::from_nanos(stats.cpu.usage.kernel),
            throttled: Duration::from_nanos(stats.cpu.throttling.throttled_time),
            memory: memory.usage,
            memory_peak: memory.max,
            // Without a limit, the greatest number that the kernel has stands there.
            memory_limit: Some(memory.limit).filter(|limit| (1..1 << 60).contains(limit)),
            memory_and_swap: stats.memory.swap.usage,
            processes: stats.pids.current,
            process_limit: Some(stats.pids.limit).filter(|limit| *limit != 0),
            read: moved("read"),
            written: moved("write"),
            received: network.received,
            sent: network.sent,
        }
    }
}

/// What [`Container::events`](super::Container::events) tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// What it uses now.
    Stats(Box<Stats>),
    /// Its memory has run out, and the kernel has killed a process of it.
    OutOfMemory,
}

/// Other limits for a container that runs. `None` leaves a limit as it is, -1 lifts it.
///
/// ```
/// use dhow::Limits;
///
/// let half_a_cpu = Limits { cpu_quota: Some(50_000), cpu_period: Some(100_000), ..Limits::default() };
/// assert_eq!(half_a_cpu.memory, None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<i64>,
    /// Memory and swap together, in bytes.
    pub memory_and_swap: Option<i64>,
    /// The memory that it can keep when the host runs short, in bytes.
    pub memory_reservation: Option<i64>,
    /// CPU time per period, in µs; for two whole CPUs it is twice the period.
    pub cpu_quota: Option<i64>,
    /// The period of the quota, in µs: 1000 to 1000000.
    pub cpu_period: Option<u64>,
    /// Its weight among other containers on busy CPUs, 2 to 262144; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// The CPUs that it may use, as `0-3,7`.
    pub cpus: Option<String>,
    /// The memory nodes that it may use, as `0-1`.
    pub memory_nodes: Option<String>,
    /// Processes and threads.
    pub processes: Option<i64>,
}

impl Limits {
    /// The same as `linux.resources` has it.
    pub(super) fn resources(&self) -> Resources {
        let cpu = Cpu {
            shares: self.cpu_shares,
            quota: self.cpu_quota,
            period: self.cpu_period,
            cpus: self.cpus.clone().unwrap_or_default(),
            mems: self.memory_nodes.clone().unwrap_or_default(),
            ..Cpu::default()
        };
        let memory = Memory {
            limit: self.memory,
            reservation: self.memory_reservation,
            swap: self.memory_and_swap,
            ..Memory::default()
        };
        let pids = Pids { limit: self.processes };
        Resources {
            cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
            memory: Some(memory).filter(|memory| *memory != Memory::default()),
            pids: Some(pids).filter(|pids| *pids != Pids::default()),
            ..Resources::default()
        }
    }
}
