//! `NOTIFY_SOCKET`, sd_notify(3): a payload tells the service manager that it is ready, through a
//! socket of its own that dhow reads and passes on. The manager's own socket stays outside.

use crate::error::{Context as _, Error, Result};
use crate::log;
use crate::rootfs::plan::Step;
use crate::spec::Process;
use crate::state::{Locked, SOCKETS as DIRECTORY};
use crate::sys::clone::{Child, Forked, clone3, exit_now};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, recv, sendto, socket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The same in the container.
const INSIDE: &str = "/run/notify";
const SOCKET: &str = "notify.sock";

/// The longest message that is read: systemd's own limit for what it takes.
const MOST_BYTES: usize = 4096;

/// Whether dhow itself was given a socket to report to.
pub(super) fn is_wanted() -> bool {
    manager().is_some()
}

/// The service manager's socket; a name that begins with `@` is an abstract one.
fn manager() -> Option<UnixAddr> {
    let name = std::env::var("NOTIFY_SOCKET").ok()?;
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()).ok(),
        None if name.starts_with('/') => UnixAddr::new(name.as_str()).ok(),
        None => None,
    }
}

/// Tells the payload where its socket will be.
pub(super) fn announce(process: &mut Process) {
    process.env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
    process.env.push(format!("NOTIFY_SOCKET={INSIDE}/{SOCKET}"));
}

/// The mount that brings the socket's directory into the container, where nothing else can be made
/// in it.
pub(super) fn mount(state: &Path) -> Step {
    Step::read_only_bind("NOTIFY_SOCKET", &state.join(DIRECTORY), Path::new(INSIDE))
}

/// Makes the directory, before the mount needs it.
///
/// # Errors
/// mkdir(2)'s.
pub(super) fn make_directory(locked: &Locked) -> Result<()> {
    let path = locked.path().join(DIRECTORY);
    let made = std::fs::create_dir(&path)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)));
    made.doing_on("make a place for NOTIFY_SOCKET", || path.display().to_string())
}

/// A container's socket, and the manager's to which its messages go.
pub(super) struct Relay {
    socket: OwnedFd,
    manager: UnixAddr,
}

impl Relay {
    /// Binds the socket, if the container was made for one and there is a manager now. Before the
    /// payload starts.
    ///
    /// # Errors
    /// bind(2)'s.
    pub(super) fn open(locked: &Locked) -> Result<Option<Relay>> {
        let directory = locked.path().join(DIRECTORY);
        let Some(manager) = manager().filter(|_| directory.is_dir()) else { return Ok(None) };
        let path = directory.join(SOCKET);
        let failed = |errno| Error::system("open NOTIFY_SOCKET", errno).on(path.display().to_string());
        let socket =
            socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
        // The state directory's own path may be longer than a socket's address can be.
        let directory = std::fs::File::open(&directory).doing("open NOTIFY_SOCKET")?;
        let short = format!("{}/{SOCKET}", crate::sys::fd::proc_path(directory.as_fd()));
        bind(socket.as_raw_fd(), &UnixAddr::new(short.as_str()).map_err(failed)?).map_err(failed)?;
        // Whoever runs in the container may write to it.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
            .doing("open NOTIFY_SOCKET")?;
        Ok(Some(Relay { socket, manager }))
    }

    /// Passes messages on until the payload is ready, or has ended. The manager gets to know its
    /// pid, since dhow itself ends now.
    ///
    /// # Errors
    /// poll(2)'s.
    pub(super) fn until_ready(&self, process: BorrowedFd<'_>, pid: i32) -> Result<()> {
        self.pass_on(process, Some(pid))
    }

    /// Passes messages on as long as the payload lives, in a process of its own.
    ///
    /// # Errors
    /// clone3(2)'s.
    pub(super) fn in_background(self, child: &Child) -> Result<()> {
        if let Forked::Child = clone3(CloneFlags::empty(), 0, None).doing("pass on NOTIFY_SOCKET")? {
            exit_now(i32::from(self.pass_on(child.pidfd.as_fd(), None).is_err()));
        }
        Ok(())
    }

    fn pass_on(&self, process: BorrowedFd<'_>, main_pid: Option<i32>) -> Result<()> {
        let doing = "pass on NOTIFY_SOCKET";
        let mut buffer = [0; MOST_BYTES];
        loop {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(process, PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result.doing(doing)?,
            };
            if fds[0].any().unwrap_or(false) {
                let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
                let (mut text, is_ready) = trusted(&buffer[..length]);
                if let (true, Some(pid)) = (is_ready, main_pid) {
                    text.push_str(&format!("MAINPID={pid}\n"));
                }
                self.tell(&text);
                if is_ready && main_pid.is_some() {
                    return Ok(());
                }
            } else if fds[1].any().unwrap_or(false) {
                return Ok(());
            }
        }
    }

    fn tell(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        let flags = MsgFlags::MSG_NOSIGNAL;
        let told = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .and_then(|socket| sendto(socket.as_raw_fd(), text.as_bytes(), &self.manager, flags));
        if let Err(errno) = told {
            log::warn(&Error::system("tell the service manager", errno).to_string());
        }
    }
}

/// What of a message is passed on, and whether it says that the payload is ready. A payload may say
/// how it is; it may not name pids, of which it knows none that mean something outside, nor hand
/// over file descriptors.
fn trusted(message: &[u8]) -> (String, bool) {
    const KNOWN: [&str; 6] =
        ["READY=", "RELOADING=", "STOPPING=", "STATUS=", "ERRNO=", "EXTEND_TIMEOUT_USEC="];
    let text = String::from_utf8_lossy(message);
    let lines = text.lines().filter(|line| KNOWN.iter().any(|known| line.starts_with(known)));
    let kept: String = lines.flat_map(|line| [line, "\n"]).collect();
    let is_ready = kept.lines().any(|line| line == "READY=1");
    (kept, is_ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_payload_may_say_is_passed_on() {
        assert_eq!(trusted(b"READY=1\nMAINPID=1\nSTATUS=up"), ("READY=1\nSTATUS=up\n".into(), true));
        assert_eq!(trusted(b"FDSTORE=1\nBARRIER=1"), (String::new(), false));
        assert_eq!(trusted(b"STATUS=READY=1"), ("STATUS=READY=1\n".into(), false));
        assert_eq!(trusted(b"\xff\n"), (String::new(), false));
    }
}
