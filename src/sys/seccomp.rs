//! seccomp(2), which neither nix nor rustix has.

use nix::errno::Errno;
use nix::libc;
use seccompiler::sock_filter;
use std::os::fd::{FromRawFd, OwnedFd};

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
const NEW_LISTENER: u32 = 1 << 3;

/// Puts the calling thread under a filter. Returns the listener if the flags ask for one; it is
/// close-on-exec.
pub fn set_filter(flags: u32, filter: &[sock_filter]) -> nix::Result<Option<OwnedFd>> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::EINVAL)?,
        // The kernel only reads; the struct's pointer is mutable for setsockopt's sake. The
        // instruction is seccompiler's twin of libc's type: `repr(C)`, the same four fields.
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `program` and the instructions that it points to outlive the call, and the length is
    // theirs. A filter changes what later syscalls do, not this process's memory.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    match i32::try_from(done) {
        Ok(-1) => Err(Errno::last()),
        // SAFETY: with this flag the kernel answers a new descriptor, which nobody else knows of.
        Ok(fd) if flags & NEW_LISTENER != 0 => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        Ok(0) => Ok(None),
        // A thread's id: it could not be brought under the filter.
        _ => Err(Errno::ESRCH),
    }
}
