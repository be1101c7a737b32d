//! Network interfaces: the one thing that every new network namespace needs.

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

/// `struct ifreq` of netdevice(7), as far as flags go.
#[repr(C)]
struct FlagsRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    /// The kernel copies the whole union.
    rest: [u8; 22],
}

/// Switches the loopback interface of this network namespace on: two ioctls, where netlink would
/// take a message, an answer and a crate.
///
/// # Errors
/// netdevice(7)'s: EPERM without CAP_NET_ADMIN over the namespace.
pub fn loopback_up() -> nix::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = FlagsRequest { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(|_| Errno::EINVAL)?;
    request.flags = up;
    // SAFETY: the kernel reads one ifreq, which `FlagsRequest` is as long as.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) };
    Errno::result(result).map(drop)
}
