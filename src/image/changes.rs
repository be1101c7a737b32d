//! What a container has changed of its image: its writable layer, read beside the layers below.
//!
//! The payload may be running, and change all of it meanwhile: every file is opened once, by its
//! name in a directory that is open, and no symlink is followed.

use super::archive::Found;
use super::owners;
use crate::error::{Class, Context as _, Error, Result};
use crate::rootfs::Overlay;
use crate::spec::load;
use crate::sys::path::Root;
use nix::errno::Errno;
use rustix::fs::{FileType, OFlags, Stat};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The deepest tree that is looked at: as deep as a path can be.
const DEEPEST: usize = 2048;

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It was not there.
    Added,
    /// It, or for a directory something in it, is another.
    Changed,
    /// It is there no more.
    Deleted,
}

impl Kind {
    /// Docker's letter.
    pub fn letter(self) -> char {
        match self {
            Kind::Added => 'A',
            Kind::Changed => 'C',
            Kind::Deleted => 'D',
        }
    }
}

/// One change.
#[derive(Debug)]
pub struct Change {
    /// The path, without a slash in front, byte for byte.
    pub path: Vec<u8>,
    /// What happened to it.
    pub kind: Kind,
    /// What is there now; `None` for what was deleted.
    pub found: Option<Found>,
    /// Whether a directory hides all that lower layers have in it.
    pub opaque: bool,
    /// Whether a deletion follows from its directory's being opaque.
    pub implied: bool,
}

/// Visits every change of a container, in the order of a layer's archive: a directory before what is
/// in it. What dhow itself made, the places of mounts, is none.
///
/// # Errors
/// [`Class::Config`] for a bundle that was not made of an image; the visitor's own.
pub fn visit(bundle: &Path, visitor: &mut dyn FnMut(Change) -> Result<()>) -> Result<()> {
    let overlay = Overlay::load(bundle)?.ok_or_else(|| {
        Error::new(Class::Config, "compare with the image")
            .on(bundle.display().to_string())
            .because("the container was not made from an image")
    })?;
    let mounts = load::load(bundle)?.spec.mounts;
    let mut scaffold = BTreeSet::new();
    for mount in mounts {
        let place = mount.destination.trim_matches('/').to_owned();
        for (at, _) in place.match_indices('/') {
            scaffold.insert(place.as_bytes()[..at].to_vec());
        }
        scaffold.insert(place.into_bytes());
    }
    let lower = Lower::open(&overlay)?;
    let mut walk = Walk { lower, scaffold, pending: Vec::new(), visitor, mark: mark(&overlay) };
    let upper = Root::at(&overlay.upper).doing("open the writable layer")?;
    let upper = Found::of(upper.resolve(Path::new("")).doing("open the writable layer")?)
        .doing("open the writable layer")?;
    walk.directory(&upper, &[], false, 0)
}

fn mark(overlay: &Overlay) -> &'static str {
    if overlay.userxattr { "user.overlay.opaque" } else { "trusted.overlay.opaque" }
}

struct Walk<'a> {
    lower: Lower,
    /// Places of mounts, and directories on the way to them.
    scaffold: BTreeSet<Vec<u8>>,
    /// Directories on the way that are a change only if something in them is.
    pending: Vec<Change>,
    visitor: &'a mut dyn FnMut(Change) -> Result<()>,
    mark: &'static str,
}

impl Walk<'_> {
    fn tell(&mut self, change: Change) -> Result<()> {
        for directory in std::mem::take(&mut self.pending) {
            (self.visitor)(directory)?;
        }
        (self.visitor)(change)
    }

    fn tell_deleted(&mut self, path: Vec<u8>, implied: bool) -> Result<()> {
        self.tell(Change { path, kind: Kind::Deleted, found: None, opaque: false, implied })
    }

    /// Looks at what a directory of the writable layer has; `hides` when nothing of the lower ones
    /// shows through.
    fn directory(&mut self, directory: &Found, at: &[u8], hides: bool, depth: usize) -> Result<()> {
        let doing = "read the writable layer";
        if depth > DEEPEST {
            return Err(Error::system(doing, Errno::ELOOP));
        }
        let listed = directory.open_directory().doing(doing)?;
        let names = names(&listed).doing(doing)?;
        if hides {
            for gone in self.lower.names(at)?.difference(&names) {
                self.tell_deleted(joined(at, gone.as_bytes()), true)?;
            }
        }
        for name in names {
            // A running payload may have removed it since.
            let Ok(found) = Found::at(listed.as_fd(), &name) else { continue };
            self.entry(found, joined(at, name.as_bytes()), hides, depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, found: Found, path: Vec<u8>, hides: bool, depth: usize) -> Result<()> {
        let below = self.lower.stat(&path)?;
        if is_whiteout(&found) {
            if below.is_some() {
                self.tell_deleted(path, hides)?;
            }
            return Ok(());
        }
        let kind = if below.is_some() { Kind::Changed } else { Kind::Added };
        if found.kind() != FileType::Directory {
            let is_place = kind == Kind::Added
                && found.stat.st_size == 0
                && found.kind() == FileType::RegularFile
                && self.scaffold.contains(&path);
            if !is_place {
                self.tell(Change { path, kind, found: Some(found), opaque: false, implied: false })?;
            }
            return Ok(());
        }
        let opaque = below.is_some() && self.is_opaque(&found);
        let same = below.is_some_and(|below| looks_same(&below, &found.stat)) && !opaque;
        let is_place = kind == Kind::Added && self.scaffold.contains(&path);
        let again = Found { fd: found.fd.try_clone().doing("read the writable layer")?, stat: found.stat };
        let change = Change { path: path.clone(), kind, found: Some(found), opaque, implied: false };
        if !same && !is_place {
            self.tell(change)?;
            return self.directory(&again, &path, hides || opaque, depth + 1);
        }
        // Copied up on the way to something, or made for a mount.
        self.pending.push(change);
        self.directory(&again, &path, hides || opaque, depth + 1)?;
        if self.pending.last().is_some_and(|last| last.path == path) {
            self.pending.pop();
        }
        Ok(())
    }

    fn is_opaque(&self, directory: &Found) -> bool {
        let mut value = [0_u8; 2];
        let place = crate::sys::fd::proc_path(directory.fd.as_fd());
        matches!(rustix::fs::getxattr(place, self.mark, &mut value[..]), Ok(1)) && value[0] == b'y'
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// Times of a directory change with every entry that comes and goes; who may do what in it does not.
fn looks_same(below: &Stat, now: &Stat) -> bool {
    (below.st_mode, below.st_uid, below.st_gid) == (now.st_mode, now.st_uid, now.st_gid)
}

fn is_whiteout(found: &Found) -> bool {
    found.kind() == FileType::CharacterDevice && found.stat.st_rdev == 0
}

fn names(directory: &OwnedFd) -> nix::Result<BTreeSet<CString>> {
    let mut names = BTreeSet::new();
    for entry in rustix::fs::Dir::read_from(directory).map_err(crate::sys::errno)? {
        let name = entry.map_err(crate::sys::errno)?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The layers below the writable one.
enum Lower {
    /// As the kernel puts them together.
    Whole(Root),
    /// One by one, the topmost first, for a user who cannot mount them.
    Layers(Vec<Root>, &'static str),
}

impl Lower {
    fn open(overlay: &Overlay) -> Result<Lower> {
        if owners::is_root() {
            return Ok(Lower::Whole(overlay.view()?));
        }
        let open = |path: &PathBuf| Root::at(path).doing_on("open a layer", || path.display().to_string());
        Ok(Lower::Layers(overlay.lower.iter().map(open).collect::<Result<_>>()?, mark(overlay)))
    }

    /// What was at a path, a symlink taken for itself.
    fn stat(&self, path: &[u8]) -> Result<Option<Stat>> {
        Ok(self.find(path)?.pop().map(|found| found.stat))
    }

    /// The names that were in a directory.
    fn names(&self, path: &[u8]) -> Result<BTreeSet<CString>> {
        let doing = "read a layer";
        let mut all = BTreeSet::new();
        for found in self.find(path)?.iter().filter(|found| found.kind() == FileType::Directory) {
            all.extend(names(&found.open_directory().doing(doing)?).doing(doing)?);
        }
        // What a layer hides of those below it is not there either.
        let mut seen = BTreeSet::new();
        for name in all {
            if self.stat(&joined(path, name.as_bytes()))?.is_some() {
                seen.insert(name);
            }
        }
        Ok(seen)
    }

    /// What a path is in each layer where it shows, the topmost last.
    fn find(&self, path: &[u8]) -> Result<Vec<Found>> {
        let doing = "look at a layer";
        let place = Path::new(OsStr::from_bytes(path));
        let open = |root: &Root, path: &Path| {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            root.open_without_symlinks(path, flags).and_then(Found::of)
        };
        let (layers, mark) = match self {
            Lower::Whole(root) => {
                return match open(root, place) {
                    Ok(found) => Ok(vec![found]),
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Vec::new()),
                    Err(errno) => Err(errno).doing(doing),
                };
            }
            Lower::Layers(layers, mark) => (layers, *mark),
        };
        let mut all = Vec::new();
        for root in layers {
            match open(root, place) {
                Ok(found) if is_whiteout(&found) => break,
                Ok(found) => {
                    let goes_on = found.kind() == FileType::Directory;
                    all.insert(0, found);
                    if !goes_on {
                        break;
                    }
                }
                Err(Errno::ENOENT) => {}
                Err(Errno::ENOTDIR | Errno::ELOOP) => break,
                Err(errno) => return Err(errno).doing(doing),
            }
            // A directory on the way, or the path itself, may hide what is below.
            let hides = place.ancestors().any(|one| match open(root, one) {
                Ok(found) if found.kind() == FileType::Directory => {
                    let place = crate::sys::fd::proc_path(found.fd.as_fd());
                    rustix::fs::getxattr(place, mark, &mut [0_u8; 2][..]).is_ok_and(|length| length == 1)
                }
                Ok(_) => true,
                Err(_) => false,
            });
            if hides {
                break;
            }
        }
        // One of another kind hides what is below it.
        let top_is_directory = all.last().is_some_and(|found| found.kind() == FileType::Directory);
        if !top_is_directory {
            all = all.pop().into_iter().collect();
        }
        Ok(all)
    }
}

/// Whether a path is one that a payload, and not this host, has shaped: what may be shown of it.
pub fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
