//! prctl(2) and its neighbours, for the calling process.

use nix::errno::Errno;

/// Whether other processes of the same user may ptrace this one and open its /proc files.
///
/// # Errors
/// None for these two values.
pub fn set_dumpable(dumpable: bool) -> nix::Result<()> {
    nix::sys::prctl::set_dumpable(dumpable)
}

/// Makes the kernel send `SIGKILL` to this process when its parent ends, or takes that back.
///
/// # Errors
/// None for these values.
pub fn die_with_parent(die: bool) -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(die.then_some(nix::sys::signal::Signal::SIGKILL))
}

/// personality(2).
///
/// # Errors
/// EINVAL when the kernel does not have the execution domain.
pub fn set_personality(persona: libc::c_ulong) -> nix::Result<()> {
    // SAFETY: takes a number, touches no memory.
    Errno::result(unsafe { libc::personality(persona) }).map(drop)
}

/// prlimit(2) on this process, for a resource by number: newer ones have no name in nix.
///
/// # Errors
/// EPERM to raise a hard limit without CAP_SYS_RESOURCE, EINVAL when soft is above hard.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    let no_old = std::ptr::null_mut::<libc::rlimit64>();
    // SAFETY: the kernel reads one structure and, given a null pointer, writes none.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, no_old) };
    Errno::result(result).map(drop)
}

/// prlimit(2): this process's (soft, hard) limit.
///
/// # Errors
/// EINVAL for an unknown resource.
pub fn get_rlimit(resource: u32) -> nix::Result<(u64, u64)> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let no_new = std::ptr::null::<libc::rlimit64>();
    // SAFETY: the kernel writes one structure and, given a null pointer, reads none.
    let result = unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, no_new, &raw mut limit) };
    Errno::result(result)?;
    Ok((limit.rlim_cur, limit.rlim_max))
}
