//! What an engine is handed of a new process: its terminal, a pidfd, its pid in a file.

use crate::error::{Context as _, Error, Result};
use crate::sys::clone::Child;
use crate::sys::socket;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Connects to an engine's console socket, before anything is made.
pub(super) fn connect_console_socket(path: &Path) -> Result<OwnedFd> {
    connect_socket("connect to the console socket", path)
}

/// Connects to the socket of somebody who wants a pidfd, before anything is made.
pub(super) fn connect_pidfd_socket(path: &Path) -> Result<OwnedFd> {
    connect_socket("connect to the pidfd socket", path)
}

/// Sends the pidfd of a payload: who has it can watch and end the payload without a race for the
/// number. The data says what it is, as it does for a terminal.
pub(super) fn send_pidfd(socket: &OwnedFd, child: &Child) -> Result<()> {
    socket::send(socket.as_fd(), &[b"pidfd"], &[child.pidfd.as_fd()])
        .doing("send the pidfd to the pidfd socket")
}

fn connect_socket(doing: &str, path: &Path) -> Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let failed = |errno| Error::system(doing, errno).on(path.display().to_string());
    let address = UnixAddr::new(path).map_err(failed)?;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    connect(fd.as_raw_fd(), &address).map_err(failed)?;
    Ok(fd)
}

/// Sends the master of a terminal to an engine, with a name as its data, as runc does.
pub(super) fn send_console(socket: &OwnedFd, master: &OwnedFd) -> Result<()> {
    socket::send(socket.as_fd(), &[b"/dev/ptmx"], &[master.as_fd()])
        .doing("send the terminal to the console socket")
}

/// Writes a pid where an engine looks for it, whole or not at all. What is no file, such as /dev/null, stays and
/// is written to.
pub(super) fn write_pid_file(path: &Path, pid: i32) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::system("write the pid file", crate::sys::io_errno(&error)).on(path.display().to_string())
    };
    let name = path.file_name().ok_or_else(|| failed(std::io::Error::from_raw_os_error(libc::EISDIR)))?;
    if write_nameless(path, pid).is_ok() {
        return Ok(());
    }
    if is_special(path) {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let mut opened = OpenOptions::new().write(true).custom_flags(flags).open(path).map_err(failed)?;
        return opened.write_all(pid.to_string().as_bytes()).map_err(failed);
    }
    let new = path.with_file_name(format!(".{}", name.to_string_lossy()));
    std::fs::write(&new, pid.to_string()).and_then(|()| std::fs::rename(&new, path)).map_err(|error| {
        let _ = std::fs::remove_file(&new);
        failed(error)
    })
}

/// Whether there is something at a path that a rename must not take the place of.
fn is_special(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|there| !there.is_file() && !there.is_symlink())
}

/// Writes the pid into a file that gets its name when it is whole: a runtime that is killed in
/// between leaves nothing. Not every filesystem can, nor is the name always free.
fn write_nameless(path: &Path, pid: i32) -> rustix::io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags};
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(directory, flags, Mode::from_raw_mode(0o644))?;
    rustix::io::write(&file, pid.to_string().as_bytes())?;
    let nameless = crate::sys::fd::proc_path(file.as_fd());
    rustix::fs::linkat(CWD, nameless.as_str(), CWD, path, AtFlags::SYMLINK_FOLLOW)
}
