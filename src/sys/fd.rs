//! File descriptors: what is closed before the payload runs.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// Marks every fd from `first` on close-on-exec, so that none reaches the payload whatever
/// opened it (CVE-2024-21626), while this process can still use them.
///
/// # Errors
/// ENOSYS before Linux 5.9, EINVAL before 5.11.
pub fn cloexec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: only sets a flag on fds.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, first.cast_unsigned(), libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC)
    };
    Errno::result(result).map(drop)
}

/// Closes every fd from `first` on but those `kept`. For a process that was forked and will end in
/// execve(2): what its parent's values own is closed under them, so none of them may be used or
/// dropped here any more.
pub fn close_all_but(first: u32, kept: &[BorrowedFd<'_>]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    kept.sort_unstable();
    kept.dedup();
    let mut first = first;
    for fd in kept.into_iter().filter(|fd| *fd >= first).collect::<Vec<_>>() {
        close_range(first, fd.wrapping_sub(1));
        first = fd + 1;
    }
    close_range(first, libc::c_uint::MAX);
}

fn close_range(first: u32, last: u32) {
    if first <= last {
        // SAFETY: the caller gives up whatever is in this range. An error closes nothing.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Clears close-on-exec on one fd that the payload is meant to have.
///
/// # Errors
/// EBADF when there is no such fd.
pub fn keep_on_exec(fd: RawFd) -> nix::Result<()> {
    // SAFETY: only clears a flag.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// Whether this number is an open fd.
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: only reads a flag.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Takes over an fd that another program left open for this one, such as `LISTEN_FDS`'.
/// `None` when there is no such fd, or when it is standard input, output or error.
pub fn adopt(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the fd is open, and above the standard three no part of dhow owns a number that
    // it was not given; the caller asks once, before it opens anything itself.
    (fd > 2 && is_open(fd)).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `fd` the process's fd number `number` as well, dup2(2): the copy is kept on exec.
///
/// # Errors
/// EBADF, EMFILE.
pub fn install_as(fd: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    // SAFETY: replaces a number in this process's table; callers do this for 0, 1 and 2 alone.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// The path under which /proc shows an fd of this process.
pub fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
