//! When and where a process runs, and where its memory comes from: sched(7), ioprio_set(2),
//! set_mempolicy(2). nix and rustix have none of them but the affinity, and that for 1024 CPUs only.

use nix::errno::Errno;

/// `struct sched_attr` of sched_setattr(2), as it was at first (SCHED_ATTR_SIZE_VER0): all that a
/// configuration can tell is in it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attr {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// 1 to 99 for the realtime policies, else 0.
    pub priority: u32,
    /// Nanoseconds, as the next two; for deadlines only.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// Sets the policy of a thread; 0 is the caller's.
///
/// # Errors
/// EPERM, EINVAL, EBUSY when the CPUs cannot keep another deadline, ESRCH.
pub fn set_attr(pid: i32, attr: &Attr) -> nix::Result<()> {
    // Fits: it is 48.
    let size = u32::try_from(size_of::<Attr>()).unwrap_or(0);
    let attr = Attr { size, ..*attr };
    // SAFETY: the kernel reads as many bytes as the structure says that it has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, pid, &raw const attr, 0) };
    Errno::result(result).map(drop)
}

/// Sets the I/O priority of a thread; 0 is the caller's. The value is `class << 13 | level`.
///
/// # Errors
/// EPERM for the realtime class without CAP_SYS_ADMIN or CAP_SYS_NICE, EINVAL, ESRCH.
pub fn set_io_priority(pid: i32, value: i32) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: takes numbers, touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid, value) };
    Errno::result(result).map(drop)
}

/// Sets the memory policy of this thread, which its children and execve(2) keep. `nodes` has one
/// bit per node, the lowest first.
///
/// # Errors
/// EINVAL when no node is there or allowed by the cpuset, or the kernel does not know the mode.
pub fn set_memory_policy(mode: i32, nodes: &[u64]) -> nix::Result<()> {
    // The kernel takes one off the number of bits before it counts words (get_nodes, and "BUGS" of
    // set_mempolicy(2)).
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads as many words as the slice has, and none for no bits.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    Errno::result(result).map(drop)
}

/// Binds a thread to CPUs, one bit each; 0 is the caller.
///
/// # Errors
/// EINVAL when none of them is there or allowed by the cpuset.
pub fn set_affinity(pid: i32, cpus: &[u64]) -> nix::Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told, which the slice has.
    let result = unsafe { libc::syscall(libc::SYS_sched_setaffinity, pid, size_of_val(cpus), cpus.as_ptr()) };
    Errno::result(result).map(drop)
}
