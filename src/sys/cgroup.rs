//! What cgroups need of the kernel and neither nix nor rustix offers.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};

/// pidfd_send_signal(2); unlike rustix's also for real-time signals.
///
/// # Errors
/// ESRCH when the process has ended, EPERM, EINVAL for an unknown signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo makes the kernel fill in its own; nothing else is pointed to.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    Errno::result(result).map(drop)
}
