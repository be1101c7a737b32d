//! `tmpcopyup`: a tmpfs that begins with what the image has in its place.

use crate::sys;
use nix::errno::Errno;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The deepest tree that is copied: a limit for what an image can make the runtime do.
const DEEPEST: usize = 128;

/// Copies a tree below `from` into `to`, with modes and owners. Nothing is followed.
///
/// # Errors
/// What openat(2), read(2) or write(2) answer: ENOSPC when the tmpfs is too small.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    directory(from, to, 0)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> nix::Result<()> {
    if depth > DEEPEST {
        return Err(Errno::ELOOP);
    }
    let listed = open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    for entry in Dir::read_from(&listed).map_err(sys::errno)? {
        let entry = entry.map_err(sys::errno)?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            copy_entry(listed.as_fd(), to, entry.file_name(), depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> nix::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(sys::errno)?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode).map_err(sys::errno)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            directory(open(from, name, flags)?.as_fd(), open(to, name, flags)?.as_fd(), depth + 1)?;
        }
        FileType::RegularFile => file(from, to, name, mode)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(sys::errno)?;
            rustix::fs::symlinkat(target.as_c_str(), to, name).map_err(sys::errno)?;
        }
        // Devices, fifos and sockets of an image have no place in a scratch filesystem.
        _ => return Ok(()),
    }
    let (uid, gid) = (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)));
    rustix::fs::chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(sys::errno)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // chown(2) cleared the set-id bits, and the umask may have taken some.
        rustix::fs::chmodat(to, name, mode, AtFlags::empty()).map_err(sys::errno)?;
    }
    Ok(())
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, mode: Mode) -> nix::Result<()> {
    let source = open(from, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to, name, flags, mode).map_err(sys::errno)?;
    let (mut source, mut copy) = (std::fs::File::from(source), std::fs::File::from(copy));
    std::io::copy(&mut source, &mut copy).map(drop).map_err(|error| sys::io_errno(&error))
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> nix::Result<OwnedFd> {
    rustix::fs::openat(directory, name, flags | OFlags::CLOEXEC, Mode::empty()).map_err(sys::errno)
}
