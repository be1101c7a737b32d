//! The only room with `unsafe`: thin, safe wrappers of the syscalls that neither nix nor
//! rustix has, and the two ways to open a path that is not trusted ([`path`], [`procfs`]).
//!
//! Everything here takes and returns owned or borrowed fds, answers `nix::Result`, and knows
//! nothing of containers.
#![allow(unsafe_code)]

pub mod alloc;
pub mod bpf;
pub mod clone;
pub mod cred;
pub mod fd;
pub mod mount;
pub mod net;
pub mod netlink;
pub mod path;
pub mod pidfd;
pub mod prctl;
pub mod procfs;
pub mod sched;
pub mod seccomp;
pub mod selfexe;
pub mod signal;
pub mod socket;
pub mod time;
pub mod timing;
pub mod tty;

use nix::errno::Errno;

/// rustix's errno as nix's, which is the one that dhow speaks.
pub(crate) fn errno(from: rustix::io::Errno) -> Errno {
    Errno::from_raw(from.raw_os_error())
}

/// An I/O error as an errno; EIO for the few that carry none.
pub(crate) fn io_errno(from: &std::io::Error) -> Errno {
    from.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
