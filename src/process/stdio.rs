//! The payload's standard input, output and error.

use crate::error::{Error, Result};
use crate::sys::path::Root;
use crate::sys::{self, fd};
use nix::errno::Errno;
use rustix::fs::{FileType, OFlags, Uid, makedev};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

fn standard() -> [(i32, BorrowedFd<'static>); 3] {
    [(0, rustix::stdio::stdin()), (1, rustix::stdio::stdout()), (2, rustix::stdio::stderr())]
}

fn is_null_device(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3)
}

/// Where a standard fd is the host's /dev/null, opens the container's own instead: the host's
/// node would stay reachable by /proc/self/fd, with the host's labels.
///
/// # Errors
/// When the container has a /dev/null that cannot be opened.
pub fn reopen_null(root: &Root) -> Result<()> {
    let mut own: Option<OwnedFd> = None;
    for (number, standard) in standard() {
        if !rustix::fs::fstat(standard).is_ok_and(|stat| is_null_device(&stat)) {
            continue;
        }
        if own.is_none() {
            match open_null(root) {
                Ok(opened) => own = Some(opened),
                // A container without /dev/null keeps what it was given.
                Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
                Err(errno) => return Err(Error::system("open the container's /dev/null", errno)),
            }
        }
        if let Some(own) = &own {
            fd::install_as(own.as_fd(), number).map_err(|errno| Error::system("replace /dev/null", errno))?;
        }
    }
    Ok(())
}

fn open_null(root: &Root) -> nix::Result<OwnedFd> {
    let found = root.resolve(Path::new("/dev/null"))?;
    if !is_null_device(&sys::path::stat(found.as_fd())?) {
        return Err(Errno::ENODEV);
    }
    // Something else may have taken its place since; O_RDWR waits for nobody.
    let opened = root.open(Path::new("/dev/null"), OFlags::RDWR | OFlags::NOCTTY)?;
    if is_null_device(&sys::path::stat(opened.as_fd())?) { Ok(opened) } else { Err(Errno::ENODEV) }
}

/// Gives the standard fds to the payload's user, that it can open them again by
/// /proc/self/fd/1, as programs that log to /dev/stderr do.
pub fn give_to(uid: u32) {
    for (_, standard) in standard() {
        let Ok(stat) = rustix::fs::fstat(standard) else { continue };
        if stat.st_uid != uid && !is_null_device(&stat) {
            // What cannot be given (a file of the host in a user namespace, a read-only
            // filesystem) can still be used.
            let _ = rustix::fs::fchown(standard, Some(Uid::from_raw(uid)), None);
        }
    }
}
