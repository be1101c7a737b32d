//! When and where a process runs: what config.json says of it, told to the kernel. Nothing is
//! asked of the kernel for a process whose configuration says nothing.

use crate::error::{Class, Context, Error, Result};
use crate::spec::{MemoryPolicy, Process};
use crate::sys::sched;
use nix::errno::Errno;

/// Sets `process.scheduler` and `process.ioPriority` of a process; 0 is this one.
///
/// Only once it is in its cgroup: where realtime time is given out by cgroup, a process that is
/// realtime already cannot be moved. And by a process with the caller's rights: a user namespace's
/// root has CAP_SYS_NICE over nobody's priority, capabilities(7).
///
/// # Errors
/// The kernel's refusal, with the field.
pub fn apply(pid: i32, process: &Process) -> Result<()> {
    if let Some(priority) = &process.io_priority {
        sched::set_io_priority(pid, priority.value()?)
            .doing_on("set the I/O priority", || format!("process.ioPriority {}", priority.class))?;
    }
    let Some(scheduler) = &process.scheduler else { return Ok(()) };
    sched::set_attr(pid, &scheduler.attributes()?).map_err(|errno| {
        let error = Error::system("set the scheduler", errno)
            .on(format!("process.scheduler {}", scheduler.policy));
        match errno {
            Errno::EINVAL => error
                .class(Class::Unsupported)
                .because("the kernel does not know the policy, or not these flags with it"),
            Errno::EPERM => error.hint(
                "it takes CAP_SYS_NICE, on cgroup v1 a cpu.rt_runtime_us, and for a deadline all CPUs of its domain",
            ),
            _ => error,
        }
    })
}

/// Sets `linux.memoryPolicy` for this process and all that come from it.
///
/// # Errors
/// EINVAL when the cpuset allows none of the nodes, or the kernel is too old for the mode.
pub fn set_memory_policy(policy: &MemoryPolicy) -> Result<()> {
    let (mode, nodes) = policy.mode_and_nodes()?;
    sched::set_memory_policy(mode, &nodes).map_err(|errno| {
        let error = Error::system("set the memory policy", errno)
            .on(format!("linux.memoryPolicy {} {}", policy.mode, policy.nodes));
        match errno {
            Errno::EINVAL => {
                error.because("none of the nodes is there and in the cpuset, or the kernel lacks the mode")
            }
            Errno::ENOSYS => error.class(Class::Unsupported).because("the kernel is built without NUMA"),
            _ => error,
        }
    })
}

/// Lets this process run on every CPU that its cpuset has: what the caller of dhow is bound to is
/// no concern of the container's. Best effort, as with runc: a kernel that refuses leaves it as it is.
pub fn unbind() {
    // More than any kernel is built for (NR_CPUS); it drops what it has not.
    let _ = sched::set_affinity(0, &[u64::MAX; 128]);
}

/// Binds this process to the CPUs of one of the masks of `process.execCPUAffinity`.
///
/// # Errors
/// EINVAL when none of them is there and in the cpuset.
pub fn bind_to(name: &str, cpus: Option<&[u64]>) -> Result<()> {
    let Some(cpus) = cpus else { return Ok(()) };
    sched::set_affinity(0, cpus).map_err(|errno| {
        let error =
            Error::system("set the CPU affinity", errno).on(format!("process.execCPUAffinity.{name}"));
        match errno {
            Errno::EINVAL => error.because("none of these CPUs is there and in the cpuset"),
            _ => error,
        }
    })
}
