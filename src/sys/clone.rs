//! clone3(2), the one way in which dhow makes a process.

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Which side of [`clone3`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The caller, with the child's pid and a pidfd of it.
    Parent(Child),
    /// The new process.
    Child,
}

/// A child process. Its pidfd names it even after its pid was given to another.
#[derive(Debug)]
pub struct Child {
    /// The pid, in the caller's pid namespace.
    pub pid: Pid,
    /// The pidfd, pidfd_open(2).
    pub pidfd: OwnedFd,
}

/// Has `work` done in the child of a [`Command`](std::process::Command), right before its execve(2).
/// It may make syscalls, and must neither allocate nor take locks: only this thread is in the child.
/// An error is an errno.
pub fn before_exec(
    command: &mut std::process::Command,
    work: impl Fn() -> Result<(), i32> + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt;
    let work = move || work().map_err(std::io::Error::from_raw_os_error);
    // SAFETY: either this process has one thread, so that no lock can be held by a thread that the child
    // has not, or `work` keeps to what is said above.
    unsafe { command.pre_exec(work) };
}

/// `CLONE_NEWTIME`, which nix does not have because clone(2) cannot express it: only clone3(2)
/// and unshare(2) can.
pub const CLONE_NEWTIME: u64 = 0x80;

/// `struct clone_args`, up to and including `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks. The child is in the new namespaces of `flags` and, with `cgroup`, already in that
/// cgroup v2 directory (CLONE_INTO_CGROUP), which costs neither a lock nor a race.
///
/// With `CLONE_PARENT` the child is the caller's sibling; its exit is then told to the caller's
/// parent.
///
/// The caller must have one thread only, as after any fork(2) without exec: the child has no
/// other threads, and locks that they held stay locked. The dhow binary never starts one before
/// the payload runs.
///
/// # Errors
/// clone3(2)'s: EPERM without the privilege, ENOSPC at a limit of namespaces, EUSERS, ENOMEM;
/// EAGAIN at a limit of processes; EBUSY when the cgroup holds none because it has children.
pub fn clone3(flags: CloneFlags, more_flags: u64, cgroup: Option<BorrowedFd<'_>>) -> nix::Result<Forked> {
    const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: libc::c_int = -1;
    let sibling = flags.contains(CloneFlags::CLONE_PARENT);
    let mut args = CloneArgs {
        flags: u64::from(flags.bits().cast_unsigned()) | more_flags | CLONE_PIDFD,
        pidfd: &raw mut pidfd as u64,
        // The kernel takes the caller's own exit signal for a sibling, and refuses another.
        exit_signal: if sibling { 0 } else { libc::SIGCHLD as u64 },
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` has the size that is passed and outlives the call; a zero stack gives the
    // child a copy of the caller's memory, so that it goes on here as fork(2)'s does.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match Errno::result(result)? {
        0 => Ok(Forked::Child),
        pid => {
            // SAFETY: with CLONE_PIDFD the kernel stored a new fd, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(i32::try_from(pid).unwrap_or(-1));
            Ok(Forked::Parent(Child { pid, pidfd }))
        }
    }
}

/// fork(2), for a process under a seccomp filter that knows no clone3(2). `None` in the child; the caller has
/// one thread only, as for [`clone3`].
///
/// # Errors
/// fork(2)'s.
pub fn fork() -> nix::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so that no lock is held by one that the child has not.
    match unsafe { nix::unistd::fork()? } {
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child)),
        nix::unistd::ForkResult::Child => Ok(None),
    }
}

/// Ends this process at once: no destructors, no buffers flushed. A forked child leaves so.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Which kind of namespace an fd is, as a `CLONE_NEW*` flag: ioctl_ns(2) NS_GET_NSTYPE.
///
/// # Errors
/// ENOTTY when it is no namespace.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> nix::Result<CloneFlags> {
    const NS_GET_NSTYPE: libc::c_int = 0xb703;
    // SAFETY: takes nothing and answers a number.
    let kind = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) })?;
    Ok(CloneFlags::from_bits_retain(kind))
}
