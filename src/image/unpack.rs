//! Writes a layer's entries to disk, in overlayfs's form.
//!
//! No path of a layer is ever given to the kernel whole: its parent is opened by openat2(2) inside
//! the layer's own directory and kept while entries of the same directory follow, and the last
//! name is made with `O_EXCL` and `O_NOFOLLOW` (or their like). What a layer says of its
//! directories is carried out at the end, so that a setgid bit or a date does not suffer.

use super::layer::{Pieces, Sink};
use super::owners;
use super::refused;
use super::tar::{Entry, Kind, Reader};
use crate::error::{Context as _, Error, Result};
use crate::log;
use crate::sys::fd::proc_path;
use crate::sys::path::{self, Root};
use nix::errno::Errno;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod,
    fchown, futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const OPAQUE: &str = "trusted.overlay.opaque";
/// The mark of overlayfs mounted with `userxattr`, which is the one that a user may set.
const USER_OPAQUE: &str = "user.overlay.opaque";
const MOST_NAME: usize = 255;
const MOST_PATH: usize = 4095;
const MOST_DEPTH: usize = 256;

/// What a directory gets when everything in it is written.
#[derive(Debug, Clone)]
struct Finish {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

/// A layer that is being written.
#[derive(Debug)]
pub struct Unpacker<'a> {
    root: Root,
    /// The layers below, the topmost first; `None` while they are not there yet.
    lowers: Option<&'a [Root]>,
    used_lower: bool,
    /// The directory in which the last entry was.
    parent: Option<(Vec<u8>, OwnedFd)>,
    directories: BTreeMap<Vec<u8>, Finish>,
    umask: u32,
    /// A user without rights and other ids: every file becomes their own, and a directory stays one that
    /// its owner can enter and empty.
    alone: bool,
}

impl Sink for Unpacker<'_> {
    fn take(&mut self, entry: &Entry, content: &mut Reader<Pieces<'_>>) -> Result<()> {
        let path = clean(&entry.path)?;
        check_xattrs(entry)?;
        let Some((parent, name)) = split(&path) else {
            if entry.kind != Kind::Directory {
                return Err(refused("the root of a layer must be a directory"));
            }
            self.directories.insert(Vec::new(), finish_of(entry));
            return set_xattrs(self.root.as_fd(), entry);
        };
        check_parent(parent)?;
        self.enter(parent)?;
        if let Some(whiteout) = whiteout_of(name)? {
            return self.whiteout(parent, whiteout);
        }
        if matches!(entry.kind, Kind::CharDevice) && entry.device == (0, 0) {
            return Err(refused("a character device 0:0 is overlayfs's own mark"));
        }
        if !owners::is_root() && matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            // As podman: a user's container has the devices that the runtime gives it.
            return Ok(());
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, &path, name);
        }
        let hides_lower = self.make_room(entry, &path, name)?;
        match entry.kind {
            Kind::File => self.file(entry, name, content),
            Kind::Directory => self.directory(entry, &path, name, hides_lower),
            _ => self.special(entry, name),
        }
    }

    /// Gives directories their owners, modes and dates, the deepest first.
    fn finish(&mut self) -> Result<()> {
        self.parent = None;
        for (path, finish) in std::mem::take(&mut self.directories).into_iter().rev() {
            let doing = "set the owner and mode of a directory";
            let directory = self.open_directory(&path).doing(doing)?;
            if self.owns(finish.uid, finish.gid) {
                let (uid, gid) = (Uid::from_raw(finish.uid), Gid::from_raw(finish.gid));
                fchown(&directory, Some(uid), Some(gid))
                    .map_err(|errno| owners::refused(errno, finish.uid, finish.gid))?;
            }
            let mode = if self.alone { finish.mode | 0o700 } else { finish.mode };
            fchmod(&directory, Mode::from_raw_mode(mode)).doing(doing)?;
            futimens(&directory, &times(finish.mtime)).doing(doing)?;
        }
        Ok(())
    }
}

impl<'a> Unpacker<'a> {
    /// An unpacker into an empty directory. Without `lowers`, a layer that needs something of
    /// the layers below is an error, of which [`Unpacker::used_lower`] then tells.
    ///
    /// # Errors
    /// When the directory cannot be opened.
    pub fn new(directory: &Path, lowers: Option<&'a [Root]>) -> Result<Unpacker<'a>> {
        let root = Root::at(directory).doing_on("open", || directory.display().to_string())?;
        let directories = BTreeMap::new();
        let alone = owners::is_alone();
        Ok(Unpacker { root, lowers, used_lower: false, parent: None, directories, umask: umask(), alone })
    }

    /// Whether the layer needed something of the layers below: then it fits on these alone.
    pub fn used_lower(&self) -> bool {
        self.used_lower
    }

    /// Whether an owner has to be set: what is made belongs to who makes it, and a user without
    /// rights cannot give it away.
    fn owns(&self, uid: u32, gid: u32) -> bool {
        !(self.alone || uid == 0 && gid == 0)
    }

    fn open_directory(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.root.open_without_symlinks(Path::new(OsStr::from_bytes(path)), flags)
    }

    fn parent(&self) -> BorrowedFd<'_> {
        self.parent.as_ref().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    /// Opens the directory that the next entry is in, making what is missing of it.
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        if self.parent.as_ref().is_some_and(|(open, _)| open == path) {
            return Ok(());
        }
        let opened = match self.open_parent(path) {
            Err(Errno::ENOENT) => {
                self.make_parents(path)?;
                self.open_parent(path)
            }
            opened => opened,
        };
        let fd = opened.map_err(|errno| match errno {
            Errno::ENOTDIR => refused("what should be its directory is a file"),
            Errno::ENOENT => refused("its directory is a symlink that leads nowhere inside the layer"),
            Errno::ELOOP => refused("its directory is a symlink in a circle"),
            errno => Error::system("open its directory", errno),
        })?;
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    /// Symlinks of the same layer are followed, inside the layer.
    fn open_parent(&self, path: &[u8]) -> nix::Result<OwnedFd> {
        self.root.open(Path::new(OsStr::from_bytes(path)), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Directories that the layer leaves out are the lower layers', and look as there.
    fn make_parents(&mut self, path: &[u8]) -> Result<()> {
        let doing = "make its directory";
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in ends.chain([path.len()]).collect::<Vec<_>>() {
            let part = &path[..end];
            match self.open_parent(part) {
                Err(Errno::ENOENT) => {}
                Ok(_) => continue,
                Err(_) => return Ok(()),
            }
            let (above, name) = split(part).unwrap_or_default();
            let above = self.open_parent(above).doing(doing)?;
            if is_there(above.as_fd(), name)?.is_some_and(|stat| !is_whiteout(&stat)) {
                // A symlink to nothing: the caller says so.
                return Ok(());
            }
            let was_whiteout = remove(above.as_fd(), name)?;
            mkdirat(&above, name, Mode::from_raw_mode(0o700)).doing(doing)?;
            // The way to it may have led through a symlink of the same layer.
            let real = self.real_path(part, above.as_fd(), name)?;
            let (finish, lower) = match was_whiteout {
                true => (Finish { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) }, None),
                false => self.as_below(&real)?,
            };
            let made = self.open_directory(&real).doing(doing)?;
            if was_whiteout {
                make_opaque(made.as_fd())?;
            }
            if let Some(lower) = lower {
                copy_xattrs(lower.as_fd(), made.as_fd())?;
            }
            self.directories.insert(real, finish);
        }
        Ok(())
    }

    fn as_below(&mut self, path: &[u8]) -> Result<(Finish, Option<OwnedFd>)> {
        let found = self.find_below(path)?.filter(|(_, stat)| path::file_type(stat) == FileType::Directory);
        Ok(match found {
            Some((fd, stat)) => (
                Finish {
                    mode: stat.st_mode & 0o7777,
                    uid: stat.st_uid,
                    gid: stat.st_gid,
                    mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
                },
                Some(fd),
            ),
            None => (Finish { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) }, None),
        })
    }

    /// What a path is in the layers below, as overlayfs would show it.
    fn find_below(&mut self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
        // That the layer depends on what is below is so even when there is nothing.
        self.used_lower = true;
        let lowers = self.lowers.ok_or_else(|| refused("it needs the layers below"))?;
        for lower in lowers {
            let mut last = None;
            let mut hides_rest = false;
            let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
            for end in ends.chain([path.len()]) {
                let part = Path::new(OsStr::from_bytes(&path[..end]));
                last = lower
                    .open_without_symlinks(part, OFlags::PATH | OFlags::NOFOLLOW)
                    .ok()
                    .and_then(|fd| path::stat(fd.as_fd()).ok().map(|stat| (fd, stat)));
                match &last {
                    None => break,
                    Some((_, stat)) if path::file_type(stat) != FileType::Directory => {
                        hides_rest = true;
                        if end != path.len() {
                            last = None;
                        }
                        break;
                    }
                    Some((fd, _)) => hides_rest |= is_opaque(fd.as_fd()),
                }
            }
            match last {
                Some((_, stat)) if is_whiteout(&stat) => return Ok(None),
                Some(found) => return Ok(Some(found)),
                None if hides_rest => return Ok(None),
                None => {}
            }
        }
        Ok(None)
    }

    fn whiteout(&mut self, parent: &[u8], whiteout: Whiteout<'_>) -> Result<()> {
        let hidden = match whiteout {
            Whiteout::Siblings if parent.is_empty() => {
                // overlayfs does not look for the mark on the root of a layer.
                return Err(refused("the root of a layer cannot be opaque"));
            }
            Whiteout::Siblings => return make_opaque(self.open_directory_of_parent()?.as_fd()),
            Whiteout::Name(hidden) => hidden,
        };
        match is_there(self.parent(), hidden)? {
            // Whiteouts are about the layers below: what this layer has itself stays, in either order.
            Some(stat) if path::file_type(&stat) == FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let doing = "open the directory that a whiteout hides";
                let directory = openat(self.parent(), hidden, flags, Mode::empty()).doing(doing)?;
                make_opaque(directory.as_fd())
            }
            Some(_) => Ok(()),
            None => mknodat(self.parent(), hidden, FileType::CharacterDevice, Mode::empty(), 0)
                .doing("make a whiteout"),
        }
    }

    fn open_directory_of_parent(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(self.parent(), c".", flags, Mode::empty()).doing("open its directory")
    }

    /// Removes what an earlier entry of the same name made, unless both are directories. Answers
    /// whether it was a whiteout, which now becomes something that hides what is below.
    fn make_room(&mut self, entry: &Entry, path: &[u8], name: &[u8]) -> Result<bool> {
        if entry.kind == Kind::File {
            // The usual case, a new name, is found out by making it.
            return Ok(false);
        }
        match is_there(self.parent(), name)? {
            None => Ok(false),
            Some(stat) if path::file_type(&stat) == FileType::Directory && entry.kind == Kind::Directory => {
                Ok(false)
            }
            Some(_) => self.replace(path, name),
        }
    }

    fn replace(&mut self, path: &[u8], name: &[u8]) -> Result<bool> {
        let path = self.real_path(path, self.parent(), name)?;
        let below = [&path, &b"/"[..]].concat();
        self.directories.retain(|other, _| *other != path && !other.starts_with(&below));
        remove(self.parent(), name)
    }

    fn file(&mut self, entry: &Entry, name: &[u8], content: &mut Reader<Pieces<'_>>) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let wanted = Mode::from_raw_mode(entry.mode & 0o777);
        let opened = match openat(self.parent(), name, flags, wanted) {
            Err(rustix::io::Errno::EXIST) => {
                let path = clean(&entry.path)?;
                self.replace(&path, name)?;
                openat(self.parent(), name, flags, wanted)
            }
            opened => opened,
        };
        let file = opened.doing("make the file")?;
        loop {
            let piece = content.content()?;
            if piece.is_empty() {
                break;
            }
            let length = match rustix::io::write(&file, piece) {
                Err(rustix::io::Errno::INTR) => 0,
                written => written.doing("write the file")?,
            };
            content.consume(length);
        }
        if self.owns(entry.uid, entry.gid) {
            fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
                .map_err(|errno| owners::refused(errno, entry.uid, entry.gid))?;
        }
        if entry.mode & (0o7000 | self.umask) != 0 {
            fchmod(&file, Mode::from_raw_mode(entry.mode)).doing("set the mode")?;
        }
        set_xattrs(file.as_fd(), entry)?;
        futimens(&file, &times(entry.mtime)).doing("set the date")
    }

    fn directory(&mut self, entry: &Entry, path: &[u8], name: &[u8], hides_lower: bool) -> Result<()> {
        match mkdirat(self.parent(), name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            failed => failed.doing("make the directory")?,
        }
        if hides_lower || !entry.xattrs.is_empty() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(self.parent(), name, flags, Mode::empty()).doing("open the directory")?;
            if hides_lower {
                make_opaque(made.as_fd())?;
            }
            set_xattrs(made.as_fd(), entry)?;
        }
        self.directories.insert(self.real_path(path, self.parent(), name)?, finish_of(entry));
        Ok(())
    }

    /// The path of a directory without symlinks, for the end, when it is opened again.
    fn real_path(&self, path: &[u8], parent: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
        if self.open_directory(path).is_ok() {
            return Ok(path.to_vec());
        }
        let doing = "find the directory's place";
        let place = |fd: BorrowedFd<'_>| std::fs::read_link(proc_path(fd)).doing(doing);
        let (root, parent) = (place(self.root.as_fd())?, place(parent)?);
        let inside = parent.strip_prefix(&root).map_err(|_| refused("its directory is outside the layer"))?;
        Ok(inside.join(OsStr::from_bytes(name)).as_os_str().as_bytes().to_vec())
    }

    fn special(&self, entry: &Entry, name: &[u8]) -> Result<()> {
        let parent = self.parent();
        let kind = match entry.kind {
            Kind::CharDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            Kind::Fifo => FileType::Fifo,
            _ => FileType::Symlink,
        };
        if kind == FileType::Symlink {
            if entry.link.is_empty() || entry.link.len() > MOST_PATH {
                return Err(refused("a symlink to nothing, or one that is too long"));
            }
            symlinkat(entry.link.as_slice(), parent, name).doing("make the symlink")?;
        } else {
            let device = rustix::fs::makedev(entry.device.0, entry.device.1);
            mknodat(parent, name, kind, Mode::from_raw_mode(entry.mode & 0o777), device)
                .doing("make the device")?;
        }
        if self.owns(entry.uid, entry.gid) {
            let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| owners::refused(errno, entry.uid, entry.gid))?;
        }
        if kind != FileType::Symlink && entry.mode & (0o7000 | self.umask) != 0 {
            // Just made, and nobody else writes here: it is no symlink.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .doing("set the mode")?;
        }
        for (key, value) in &entry.xattrs {
            let key = c_string(key)?;
            let place = Path::new(&proc_path(parent)).join(OsStr::from_bytes(name));
            tolerate(rustix::fs::lsetxattr(&place, key, value, XattrFlags::empty()))?;
        }
        utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).doing("set the date")
    }

    fn hard_link(&mut self, entry: &Entry, path: &[u8], name: &[u8]) -> Result<()> {
        let target = clean(&entry.link).map_err(|error| super::within("link target", error))?;
        if target == path {
            return Err(refused("a hard link to itself"));
        }
        let Some((directory, last)) = split(&target) else {
            return Err(refused("a hard link to the root"));
        };
        let from = match self.open_parent(directory) {
            Ok(from) if is_there(from.as_fd(), last)?.is_some() => from,
            Ok(_) | Err(_) => {
                self.copy_from_below(&target)?;
                self.open_parent(directory).doing("open the directory of the hard link's target")?
            }
        };
        match is_there(from.as_fd(), last)? {
            Some(stat) if is_whiteout(&stat) => return Err(refused("a hard link to a whiteout")),
            Some(stat) if path::file_type(&stat) == FileType::Directory => {
                return Err(refused("a hard link to a directory"));
            }
            Some(_) => {}
            None => return Err(refused(missing_target(entry))),
        }
        if is_there(self.parent(), name)?.is_some() {
            self.replace(path, name)?;
        }
        linkat(from, last, self.parent(), name, AtFlags::empty()).map_err(|errno| match errno {
            rustix::io::Errno::NOENT => refused(missing_target(entry)),
            errno => Error::system("make the hard link", crate::sys::errno(errno)),
        })
    }

    /// A hard link to a file of a lower layer: the file comes up first, as overlayfs does it.
    fn copy_from_below(&mut self, target: &[u8]) -> Result<()> {
        let doing = "copy a hard link's target from the layer below";
        let Some((below, stat)) = self.find_below(target)? else {
            let target = String::from_utf8_lossy(target).into_owned();
            return Err(refused(format!("a hard link to {target:?}, which is not there")));
        };
        if path::file_type(&stat) != FileType::RegularFile {
            return Err(refused("a hard link to something of a lower layer that is no file"));
        }
        let (directory, name) = split(target).unwrap_or_default();
        let before = self.parent.take();
        self.enter(directory)?;
        let mut from = std::fs::File::open(proc_path(below.as_fd())).doing(doing)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.parent(), name, flags, Mode::from_raw_mode(0o600)).doing(doing)?;
        let mut file = std::fs::File::from(file);
        std::io::copy(&mut from, &mut file).doing(doing)?;
        if self.owns(stat.st_uid, stat.st_gid) {
            fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid))).doing(doing)?;
        }
        fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777)).doing(doing)?;
        copy_xattrs(from.as_fd(), file.as_fd())?;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        futimens(&file, &times(mtime)).doing(doing)?;
        self.parent = before;
        Ok(())
    }
}

/// What an entry hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whiteout<'a> {
    /// A name of the layers below.
    Name(&'a [u8]),
    /// All that the layers below have in its directory.
    Siblings,
}

/// What an entry of this name hides; `None` when it is no whiteout.
///
/// # Errors
/// For a whiteout that no layer has.
pub(super) fn whiteout_of(name: &[u8]) -> Result<Option<Whiteout<'_>>> {
    let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(None) };
    match hidden {
        b".wh..opq" => Ok(Some(Whiteout::Siblings)),
        b"" | b"." | b".." => Err(refused("a whiteout that names nothing")),
        _ if hidden.starts_with(b".wh.") => Err(refused("a whiteout of a kind that is not known")),
        _ => Ok(Some(Whiteout::Name(hidden))),
    }
}

/// Refuses a directory whose name is that of a whiteout: tools differ in what it means.
pub(super) fn check_parent(path: &[u8]) -> Result<()> {
    match path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh.")) {
        true => Err(refused("a whiteout that is a directory")),
        false => Ok(()),
    }
}

pub(super) fn missing_target(entry: &Entry) -> String {
    format!("a hard link to {:?}, which is not there", String::from_utf8_lossy(&entry.link))
}

/// A path in its only form: no slashes around it, no dots in it. Empty for the root.
///
/// # Errors
/// For `..`, and for what no path of Linux can be. A slash in front is taken as the layer's root,
/// as kaniko and bazel write it.
pub fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.is_empty() {
        return Err(refused("an empty name"));
    }
    if path.contains(&0) {
        return Err(refused("a name with a NUL in it"));
    }
    if path.len() > MOST_PATH {
        return Err(refused(format!("a path of more than {MOST_PATH} bytes")));
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut depth = 0;
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => continue,
            b".." => return Err(refused("a path with `..` in it")),
            _ if name.len() > MOST_NAME => {
                return Err(refused(format!("a name of more than {MOST_NAME} bytes")));
            }
            _ => {}
        }
        depth += 1;
        if depth > MOST_DEPTH {
            return Err(refused(format!("a path of more than {MOST_DEPTH} names")));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(name);
    }
    Ok(clean)
}

/// The directory and the last name of a clean path.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}

fn finish_of(entry: &Entry) -> Finish {
    Finish { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

/// This process's umask, without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|value| u32::from_str_radix(value.trim(), 8).ok()).unwrap_or(0o777)
}

fn is_there(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        failed => failed.map(Some).doing("look for the name"),
    }
}

/// overlayfs's mark for what is deleted.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    path::file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes a name, and all below it. Answers whether it was a whiteout.
fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    let Some(stat) = is_there(parent, name)? else { return Ok(false) };
    let doing = "remove an earlier entry of the same name";
    if path::file_type(&stat) == FileType::Directory {
        // It opens every directory relative to the one above, and follows no symlink.
        let place = Path::new(&proc_path(parent)).join(OsStr::from_bytes(name));
        std::fs::remove_dir_all(place).doing(doing)?;
        return Ok(false);
    }
    unlinkat(parent, name, AtFlags::empty()).doing(doing)?;
    Ok(is_whiteout(&stat))
}

fn make_opaque(directory: BorrowedFd<'_>) -> Result<()> {
    let mark = if owners::is_root() { OPAQUE } else { USER_OPAQUE };
    match rustix::fs::fsetxattr(directory, mark, b"y", XattrFlags::empty()) {
        Err(rustix::io::Errno::OPNOTSUPP) => Err(Error::system("make a directory opaque", Errno::EOPNOTSUPP)
            .because("the image store's filesystem has no extended attributes")
            .hint("--root DIR has the store in DIR: ext4, xfs, btrfs and tmpfs have them")),
        marked => marked.doing("make a directory opaque"),
    }
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0; 4];
    [OPAQUE, USER_OPAQUE].iter().any(|mark| {
        let length = rustix::fs::getxattr(proc_path(directory), *mark, &mut value[..]);
        length.is_ok_and(|length| value[..length] == *b"y")
    })
}

/// Refuses overlayfs's own marks.
pub(super) fn check_xattrs(entry: &Entry) -> Result<()> {
    let own = entry
        .xattrs
        .iter()
        .find(|(key, _)| key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay."));
    match own {
        Some((key, _)) => {
            let key = String::from_utf8_lossy(key).into_owned();
            Err(refused(format!("the extended attribute {key} is overlayfs's own mark")))
        }
        None => Ok(()),
    }
}

fn set_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
    for (key, value) in &entry.xattrs {
        tolerate(rustix::fs::setxattr(proc_path(fd), c_string(key)?, value, XattrFlags::empty()))?;
    }
    Ok(())
}

/// A filesystem without this kind of attribute is no reason to refuse an image (containerd), and
/// neither is a user who may not set it.
fn tolerate(result: rustix::io::Result<()>) -> Result<()> {
    match result {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            static SAID: std::sync::Once = std::sync::Once::new();
            SAID.call_once(|| {
                log::warn(
                    "the image store's filesystem has no extended attributes of some kind: those of the image \
                     (capabilities of files, say) are left out",
                );
            });
            Ok(())
        }
        Err(rustix::io::Errno::PERM) if !owners::is_root() => Ok(()),
        result => result.doing("set an extended attribute"),
    }
}

fn c_string(text: &[u8]) -> Result<CString> {
    CString::new(text).map_err(|_| refused("a name with a NUL in it"))
}

/// Copies extended attributes, except overlayfs's own.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let doing = "copy extended attributes";
    let place = proc_path(from);
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::listxattr(&place, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.doing(doing)?,
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let name = c_string(name)?;
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::getxattr(&place, &name, &mut value[..]).doing(doing)?;
        tolerate(rustix::fs::fsetxattr(to, &name, &value[..length], XattrFlags::empty()))?;
    }
    Ok(())
}
