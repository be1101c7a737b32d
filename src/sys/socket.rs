//! Messages with file descriptors, unix(7) SCM_RIGHTS.

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, accept4, recvmsg, sendmsg};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most fds that [`receive`] takes from one message.
const MOST_FDS: usize = 32;

/// Sends the parts as one message, with fds.
///
/// # Errors
/// sendmsg(2)'s: EPIPE when the other end is gone (without SIGPIPE), EMSGSIZE.
pub fn send(socket: BorrowedFd<'_>, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let data: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(Errno::EINTR) => {}
            result => return result.map(drop),
        }
    }
}

/// Waits for one message: how long it is in `buffer`, and its fds, which are close-on-exec.
/// Length 0 means that the other end is gone.
///
/// # Errors
/// recvmsg(2)'s; ENOBUFS when there were more fds than are taken.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([RawFd; MOST_FDS]);
    let mut data = [IoSliceMut::new(buffer)];
    let received = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(Errno::EINTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            // SAFETY: the kernel has just installed these fds for this process; nobody else
            // knows of them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((received.bytes, fds))
}

/// Waits for the next connection to a listening socket.
///
/// # Errors
/// accept4(2)'s.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Err(Errno::EINTR | Errno::ECONNABORTED) => {}
            // SAFETY: the kernel has just installed this fd for this process; nobody else knows
            // of it.
            accepted => return accepted.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
        }
    }
}
