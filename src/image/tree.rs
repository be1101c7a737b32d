//! Trees of files copied between the host and a container, as files or as an archive.
//!
//! The container's side may be changed by its payload at any moment. So every step goes from a
//! directory that is open to a name in it; no symlink is ever followed, and what is written to was
//! made or looked at by its fd.

use super::archive::{Found, Writer};
use super::tar::{Entry, Kind, Reader, Stream};
use super::unpack::clean;
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::sys::{self, fd::proc_path, path};
use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The deepest tree that is copied.
const DEEPEST: usize = 2048;

/// What a user and a group are elsewhere.
pub type Ids<'a> = &'a dyn Fn(u32, u32) -> (u32, u32);

/// Whose the copies are.
#[derive(Clone, Copy)]
pub enum Owner<'a> {
    /// As in the source, with set-id bits and extended attributes.
    Kept,
    /// As [`Owner::Kept`], where user and group have other ids: what they are there.
    Mapped(Ids<'a>),
    /// This user and group; a set-id bit would make a program theirs, so there is none.
    Set(u32, u32),
}

impl Owner<'_> {
    fn is_kept(self) -> bool {
        !matches!(self, Owner::Set(..))
    }
}

/// A name that is shown in messages.
fn shown(name: &[u8]) -> String {
    super::changes::shown(name)
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::system("copy", Errno::EINVAL).on(shown(name)))
}

/// Copies a file, or a directory with all that is in it, to a name in a directory. A directory that is
/// there is merged into, a file replaced.
///
/// # Errors
/// With the name at which it failed.
pub fn copy(from: &Found, to: BorrowedFd<'_>, name: &CStr, owner: Owner<'_>) -> Result<()> {
    copy_at(from, to, name, owner, 0)
}

fn copy_at(from: &Found, to: BorrowedFd<'_>, name: &CStr, owner: Owner<'_>, depth: usize) -> Result<()> {
    let doing = "copy";
    let at = || shown(name.to_bytes());
    if depth > DEEPEST {
        return Err(Error::system(doing, Errno::ELOOP).on(at()));
    }
    match from.kind() {
        FileType::Directory => {
            let made = directory(to, name)?;
            copy_content(from, made.as_fd(), owner, depth)?;
            finish(&made, &Wanted::of(from), owner).doing_on(doing, at)?;
            set_xattrs(made.as_fd(), &from.xattrs()?, owner)
        }
        FileType::RegularFile => {
            let source = File::from(from.open(OFlags::RDONLY).doing_on(doing, at)?);
            let made = new_file(to, name)?;
            write_all(source, &made).doing_on(doing, at)?;
            finish(&made, &Wanted::of(from), owner).doing_on(doing, at)?;
            set_xattrs(made.as_fd(), &from.xattrs()?, owner)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&from.fd, c"", Vec::new()).doing_on(doing, at)?;
            symlink(to, name, &target, &Wanted::of(from), owner)
        }
        _ => {
            log::warn(&format!("{}: a device, pipe or socket is not copied", at()));
            Ok(())
        }
    }
}

/// Copies what is in a directory into another.
///
/// # Errors
/// As for [`copy`].
pub fn copy_into(from: &Found, to: BorrowedFd<'_>, owner: Owner<'_>) -> Result<()> {
    copy_content(from, to, owner, 0)
}

fn copy_content(from: &Found, to: BorrowedFd<'_>, owner: Owner<'_>, depth: usize) -> Result<()> {
    let listed = from.open_directory().doing("copy")?;
    for name in names(&listed)? {
        // A payload may have removed it since.
        let Ok(found) = Found::at(listed.as_fd(), &name) else { continue };
        copy_at(&found, to, &name, owner, depth + 1)?;
    }
    Ok(())
}

fn names(directory: &OwnedFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).doing("copy")? {
        let name = entry.doing("copy")?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Writes a file, or a directory with all that is in it, as an archive in which it has this name.
///
/// # Errors
/// read(2)'s and write(2)'s.
pub fn archive(from: Found, name: &[u8], out: impl Write, ids: Ids<'_>) -> Result<()> {
    let mut writer = Writer::new(out);
    archive_at(&mut writer, from, name, ids, 0)?;
    writer.finish().map(drop)
}

fn archive_at<W: Write>(
    writer: &mut Writer<W>,
    mut from: Found,
    name: &[u8],
    ids: Ids<'_>,
    depth: usize,
) -> Result<()> {
    if depth > DEEPEST {
        return Err(Error::system("write the archive", Errno::ELOOP).on(shown(name)));
    }
    (from.stat.st_uid, from.stat.st_gid) = ids(from.stat.st_uid, from.stat.st_gid);
    writer.add(&from, name)?;
    if from.kind() != FileType::Directory {
        return Ok(());
    }
    let listed = from.open_directory().doing_on("write the archive", || shown(name))?;
    for child in names(&listed)? {
        let Ok(found) = Found::at(listed.as_fd(), &child) else { continue };
        archive_at(writer, found, &[name, b"/", child.to_bytes()].concat(), ids, depth + 1)?;
    }
    Ok(())
}

/// Unpacks an archive into a directory.
///
/// # Errors
/// For a path with `..`, and one that leads through a symlink: with the entry's name.
pub fn extract<R: Stream>(mut reader: Reader<R>, to: BorrowedFd<'_>, owner: Owner<'_>) -> Result<()> {
    while let Some(entry) = reader.next()? {
        extract_one(&mut reader, &entry, to, owner)
            .map_err(|error| super::tar::in_entry(&entry.path, error))?;
    }
    Ok(())
}

fn extract_one<R: Stream>(
    reader: &mut Reader<R>,
    entry: &Entry,
    to: BorrowedFd<'_>,
    owner: Owner<'_>,
) -> Result<()> {
    let path = clean(&entry.path)?;
    if path.is_empty() {
        return Ok(());
    }
    let (parent, name) = parent_of(to, &path)?;
    let parent = parent.as_fd();
    let wanted = Wanted { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime };
    let doing = "unpack";
    match entry.kind {
        Kind::Directory => finish(&directory(parent, &name)?, &wanted, owner).doing(doing),
        Kind::File => {
            let mut made = File::from(new_file(parent, &name)?);
            loop {
                let piece = reader.content()?;
                if piece.is_empty() {
                    break;
                }
                let length = piece.len();
                made.write_all(piece).doing(doing)?;
                reader.consume(length);
            }
            let made = OwnedFd::from(made);
            finish(&made, &wanted, owner).doing(doing)?;
            set_xattrs(made.as_fd(), &entry.xattrs, owner)
        }
        Kind::Symlink => symlink(parent, &name, &c_name(&entry.link)?, &wanted, owner),
        Kind::HardLink => {
            let (source, source_name) = parent_of(to, &clean(&entry.link)?)?;
            let found = Found::at(source.as_fd(), &source_name).doing(doing)?;
            if found.kind() != FileType::RegularFile {
                return Err(Error::system(doing, Errno::EPERM).because("a hard link to what is no file"));
            }
            clear(parent, &name)?;
            // The very file that was looked at.
            let place = proc_path(found.fd.as_fd());
            rustix::fs::linkat(rustix::fs::CWD, place, parent, &*name, AtFlags::SYMLINK_FOLLOW).doing(doing)
        }
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
            log::warn(&format!("{}: a device or pipe is not copied", shown(&path)));
            Ok(())
        }
    }
}

/// The directory of a clean path below another, made where it is missing, and the last name.
fn parent_of(to: BorrowedFd<'_>, path: &[u8]) -> Result<(OwnedFd, CString)> {
    let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
    let last = c_name(names.pop().unwrap_or_default())?;
    let mut at = to.try_clone_to_owned().doing("unpack")?;
    for name in names {
        at = directory(at.as_fd(), &c_name(name)?)?;
    }
    Ok((at, last))
}

/// Opens a directory by its name in another, making it when it is missing. A symlink is refused.
fn directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let failed = |errno| {
        let error = Error::system("make a directory", errno).on(shown(name.to_bytes()));
        match errno {
            Errno::ENOTDIR | Errno::ELOOP => error.because("a file or a symlink is in its place"),
            _ => error,
        }
    };
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(sys::errno) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|errno| failed(sys::errno(errno)))
}

/// Removes what is in the way of a file: anything but a directory.
fn clear(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        failed => failed.doing_on("replace", || shown(name.to_bytes())),
    }
}

fn new_file(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    clear(parent, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
        .doing_on("make a file", || shown(name.to_bytes()))
}

fn symlink(
    parent: BorrowedFd<'_>,
    name: &CStr,
    target: &CStr,
    wanted: &Wanted,
    owner: Owner<'_>,
) -> Result<()> {
    let at = || shown(name.to_bytes());
    clear(parent, name)?;
    rustix::fs::symlinkat(target, parent, name).doing_on("make a symlink", at)?;
    let (uid, gid) = wanted.owner(owner);
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .doing_on("make a symlink", at)
}

/// Copies a file's content.
///
/// # Errors
/// read(2)'s and write(2)'s.
fn write_all(mut source: impl Read, to: &OwnedFd) -> io::Result<()> {
    let mut copy = File::from(to.try_clone()?);
    io::copy(&mut source, &mut copy).map(drop)
}

/// Overwrites a file that is there, whatever its name is by now.
///
/// # Errors
/// When it is no regular file; open(2)'s: ETXTBSY for a program that runs.
pub fn overwrite(from: &Found, to: &Found) -> Result<()> {
    if path::file_type(&to.stat) != FileType::RegularFile || from.kind() != FileType::RegularFile {
        return Err(Error::new(Class::Usage, "copy").because("only a file can take the place of a file"));
    }
    let source = File::from(from.open(OFlags::RDONLY).doing("copy")?);
    write_all(source, &to.open(OFlags::WRONLY | OFlags::TRUNC).doing("copy")?).doing("copy")
}

/// What a copy is to be like.
struct Wanted {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

impl Wanted {
    fn of(found: &Found) -> Wanted {
        let stat = &found.stat;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Wanted { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime }
    }

    fn owner(&self, owner: Owner<'_>) -> (Uid, Gid) {
        let (uid, gid) = match owner {
            Owner::Kept => (self.uid, self.gid),
            Owner::Mapped(there) => there(self.uid, self.gid),
            Owner::Set(uid, gid) => (uid, gid),
        };
        (Uid::from_raw(uid), Gid::from_raw(gid))
    }
}

/// Owner, then mode: chown(2) clears set-id bits.
fn finish(made: &OwnedFd, wanted: &Wanted, owner: Owner<'_>) -> nix::Result<()> {
    let (uid, gid) = wanted.owner(owner);
    rustix::fs::fchown(made, Some(uid), Some(gid)).map_err(sys::errno)?;
    let mode = if owner.is_kept() { wanted.mode } else { wanted.mode & 0o1777 };
    rustix::fs::fchmod(made, Mode::from_raw_mode(mode)).map_err(sys::errno)?;
    let time = Timespec { tv_sec: wanted.mtime.0, tv_nsec: i64::from(wanted.mtime.1) };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::futimens(made, &times).map_err(sys::errno)
}

/// The last of all: chown(2) takes a file's capabilities away.
fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)], owner: Owner<'_>) -> Result<()> {
    for (key, value) in xattrs.iter().filter(|_| owner.is_kept()) {
        match rustix::fs::fsetxattr(file, c_name(key)?, value, XattrFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            failed => failed.doing("set an extended attribute")?,
        }
    }
    Ok(())
}
