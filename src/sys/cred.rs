//! Credentials: what nix and caps do with many syscalls, or not at all.

use nix::errno::Errno;

/// A set of capabilities(7): bit `n` is capability number `n`.
pub type CapBits = u64;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION_3: u32 = 0x2008_0522;

fn low(bits: CapBits) -> u32 {
    let [a, b, c, d, ..] = bits.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn high(bits: CapBits) -> u32 {
    low(bits >> 32)
}

/// Sets the three sets of this thread in one capset(2); caps would take two calls for each.
///
/// # Errors
/// EPERM when a set asks for more than may be had.
pub fn capset(effective: CapBits, permitted: CapBits, inheritable: CapBits) -> nix::Result<()> {
    let mut header = CapHeader { version: VERSION_3, pid: 0 };
    let data = [
        CapData { effective: low(effective), permitted: low(permitted), inheritable: low(inheritable) },
        CapData { effective: high(effective), permitted: high(permitted), inheritable: high(inheritable) },
    ];
    // SAFETY: version 3 takes a header and two data structures, and only reads them.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    Errno::result(result).map(drop)
}

/// The (effective, permitted, inheritable) sets of this thread, capget(2).
///
/// # Errors
/// None that the kernel documents for one's own thread.
pub fn capget() -> nix::Result<(CapBits, CapBits, CapBits)> {
    let mut header = CapHeader { version: VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 writes two data structures, and there is room for two.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    Errno::result(result)?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok((
        join(data[0].effective, data[1].effective),
        join(data[0].permitted, data[1].permitted),
        join(data[0].inheritable, data[1].inheritable),
    ))
}

/// prctl(PR_CAPBSET_DROP): EINVAL when the kernel does not know the capability.
///
/// # Errors
/// EPERM without CAP_SETPCAP, EINVAL for an unknown capability.
pub fn drop_from_bounding_set(capability: u8) -> nix::Result<()> {
    // SAFETY: takes a number, touches no memory.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    Errno::result(result).map(drop)
}

/// Whether a capability is in the bounding set; EINVAL when the kernel does not know it.
///
/// # Errors
/// EINVAL for an unknown capability.
pub fn is_in_bounding_set(capability: u8) -> nix::Result<bool> {
    // SAFETY: takes a number, touches no memory.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability), 0, 0, 0) };
    Errno::result(result).map(|answer| answer == 1)
}

/// prctl(PR_CAP_AMBIENT_CLEAR_ALL)
///
/// # Errors
/// EINVAL on kernels before 4.3.
pub fn clear_ambient() -> nix::Result<()> {
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)
}

/// prctl(PR_CAP_AMBIENT_RAISE): the capability must be permitted and inheritable.
///
/// # Errors
/// EPERM when it is not both.
pub fn raise_ambient(capability: u8) -> nix::Result<()> {
    ambient(libc::PR_CAP_AMBIENT_RAISE, capability)
}

fn ambient(operation: libc::c_int, capability: u8) -> nix::Result<()> {
    let operation = libc::c_ulong::from(operation.cast_unsigned());
    // SAFETY: takes numbers, touches no memory.
    let result =
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, libc::c_ulong::from(capability), 0, 0) };
    Errno::result(result).map(drop)
}

/// setresuid(2) for this thread alone, by the raw syscall: the C library's would signal every
/// thread, and a forked child has but one.
///
/// # Errors
/// EPERM, EAGAIN, or EINVAL when the id is not mapped in the user namespace.
pub fn set_uid(uid: u32) -> nix::Result<()> {
    // SAFETY: takes numbers, touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
    Errno::result(result).map(drop)
}

/// setresgid(2) for this thread alone.
///
/// # Errors
/// EPERM, or EINVAL when the id is not mapped in the user namespace.
pub fn set_gid(gid: u32) -> nix::Result<()> {
    // SAFETY: takes numbers, touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) };
    Errno::result(result).map(drop)
}

/// Does work as the owner of what it makes in filesystems, setfsuid(2), with all the rights that this thread
/// has.
///
/// # Errors
/// Those of capget(2) and capset(2).
pub fn as_owner<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> nix::Result<T> {
    use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
    let (effective, permitted, inheritable) = capget()?;
    let group = setfsgid(Gid::from_raw(gid));
    let user = setfsuid(Uid::from_raw(uid));
    // The change has taken the rights over others' files away.
    let raised = capset(effective, permitted, inheritable);
    let done = raised.map(|()| work());
    setfsuid(user);
    setfsgid(group);
    capset(effective, permitted, inheritable)?;
    done
}

/// setgroups(2) for this thread alone.
///
/// # Errors
/// EPERM where setgroups is denied, EINVAL for too many or for an unmapped id.
pub fn set_groups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: the kernel reads as many ids as the slice has.
    let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Joins a new session keyring of this name, keyctl(KEYCTL_JOIN_SESSION_KEYRING).
///
/// # Errors
/// ENOSYS where the kernel has no keyrings, EDQUOT at the user's limit, EACCES.
pub fn join_session_keyring(name: &std::ffi::CStr) -> nix::Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    // SAFETY: the kernel reads a NUL-terminated name.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Errno::result(result).map(|key| i32::try_from(key).unwrap_or(0))
}

/// Gives the possessor and the owner of a keyring permission to search it (runc does so, that a
/// process which changes its uid keeps access): keyctl(KEYCTL_SETPERM).
///
/// # Errors
/// EACCES, ENOSYS.
pub fn let_owner_search_keyring(key: i32) -> nix::Result<()> {
    const KEYCTL_SETPERM: libc::c_ulong = 5;
    const POSSESSOR_ALL_USER_VIEW_READ_SEARCH: libc::c_ulong = 0x3f0b_0000;
    // SAFETY: takes numbers, touches no memory.
    let result =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, POSSESSOR_ALL_USER_VIEW_READ_SEARCH) };
    Errno::result(result).map(drop)
}
