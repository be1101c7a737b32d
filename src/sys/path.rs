//! Paths in a root that is not trusted.
//!
//! Every path inside a rootfs is resolved here, by openat2(2) with RESOLVE_IN_ROOT: symlinks
//! and `..` stay below the root whatever the image, or a process that changes it meanwhile,
//! makes of them, and magic links are refused. What comes back is an `O_PATH` fd, and callers
//! act on that fd, never again on the path.

use super::errno;
use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Symlinks followed while missing directories are made, as the kernel's own limit (MAXSYMLINKS).
const MOST_SYMLINKS: usize = 40;

/// What [`Root::make`] makes when the last component is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    /// A directory, mode 0755.
    Directory,
    /// An empty file, mode 0644.
    File,
}

/// A directory that is the root of every path resolved through it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for Root {
    fn from(fd: OwnedFd) -> Self {
        Root { fd }
    }
}

impl Root {
    /// A directory of the host as a root.
    ///
    /// # Errors
    /// openat(2)'s; ENOTDIR when it is no directory.
    pub fn at(path: &Path) -> nix::Result<Root> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Root::from).map_err(errno)
    }

    /// The `O_PATH` fd of what `path` leads to.
    ///
    /// # Errors
    /// openat2(2)'s: ENOENT; ELOOP for a magic link or too many symlinks.
    pub fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH, ResolveFlags::IN_ROOT)
    }

    /// As [`Root::resolve`], but a symlink anywhere on the way is refused: for `/proc` and
    /// `/sys`, which an image must not redirect (CVE-2019-19921).
    ///
    /// # Errors
    /// ELOOP for a symlink.
    pub fn resolve_without_symlinks(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    /// As [`Root::resolve`], but a symlink at the end is what is opened.
    ///
    /// # Errors
    /// openat2(2)'s.
    pub fn resolve_nofollow(&self, path: &Path) -> nix::Result<OwnedFd> {
        self.open_in(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::IN_ROOT)
    }

    /// Opens what `path` leads to, for reading or writing. Callers look at the type of what they
    /// got before they trust it.
    ///
    /// # Errors
    /// openat2(2)'s.
    pub fn open(&self, path: &Path, flags: OFlags) -> nix::Result<OwnedFd> {
        self.open_in(path, flags, ResolveFlags::IN_ROOT)
    }

    /// As [`Root::open`], but a symlink anywhere on the way is refused, and one at the end too
    /// (unless `flags` has `O_PATH | O_NOFOLLOW`: then it is what is opened).
    ///
    /// # Errors
    /// ELOOP for a symlink.
    pub fn open_without_symlinks(&self, path: &Path, flags: OFlags) -> nix::Result<OwnedFd> {
        self.open_in(path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
    }

    fn open_in(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        loop {
            let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // The kernel could not be sure that a rename elsewhere left `..` inside.
                Err(rustix::io::Errno::AGAIN) => {}
                result => return result.map_err(errno),
            }
        }
    }

    /// Opens what `path` leads to, making what is missing of it: directories on the way, and
    /// `leaf` at its end. Symlinks are followed inside the root, dangling ones too.
    ///
    /// # Errors
    /// openat2(2)'s and mkdirat(2)'s; ELOOP for too many symlinks.
    pub fn make(&self, path: &Path, leaf: Leaf) -> nix::Result<OwnedFd> {
        match self.resolve(path) {
            Err(Errno::ENOENT) => self.make_missing(path, leaf),
            found => found,
        }
    }

    /// Makes a symlink at `path`, and directories on the way that are missing. One that is there
    /// already and leads to the same is as good.
    ///
    /// # Errors
    /// EEXIST when something else is there.
    pub fn make_symlink(&self, path: &Path, target: &Path) -> nix::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EEXIST) };
        let parent = self.make(parent, Leaf::Directory)?;
        match rustix::fs::symlinkat(target, &parent, name).map_err(errno) {
            Err(Errno::EEXIST) => match read_link(parent.as_fd(), &name.to_owned()) {
                Ok(there) if there == target => Ok(()),
                _ => Err(Errno::EEXIST),
            },
            result => result,
        }
    }

    fn make_missing(&self, path: &Path, leaf: Leaf) -> nix::Result<OwnedFd> {
        let mut todo: VecDeque<OsString> = names(path).collect();
        let mut done = PathBuf::new();
        let mut symlinks = 0;
        while let Some(name) = todo.pop_front() {
            let next = done.join(&name);
            match self.resolve(&next) {
                Ok(_) => done = next,
                Err(Errno::ENOENT) => {
                    let parent = self.resolve(&done)?;
                    let made = if todo.is_empty() && leaf == Leaf::File {
                        make_file(parent.as_fd(), &name)
                    } else {
                        make_directory(parent.as_fd(), &name)
                    };
                    match made {
                        Ok(()) => done = next,
                        Err(Errno::EEXIST) => {
                            // It is there and leads nowhere: a dangling symlink. Go on with its target.
                            symlinks += 1;
                            if symlinks > MOST_SYMLINKS {
                                return Err(Errno::ELOOP);
                            }
                            let target = match read_link(parent.as_fd(), &name) {
                                // No symlink: another container on this rootfs has made it just now.
                                Err(Errno::EINVAL) => {
                                    done = next;
                                    continue;
                                }
                                target => target?,
                            };
                            if target.is_absolute() {
                                done = PathBuf::new();
                            }
                            for part in names(&target).collect::<Vec<_>>().into_iter().rev() {
                                todo.push_front(part);
                            }
                        }
                        Err(other) => return Err(other),
                    }
                }
                Err(other) => return Err(other),
            }
        }
        self.resolve(&done)
    }
}

/// The names of a path, `..` among them; the kernel keeps that one inside the root.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn make_directory(parent: BorrowedFd<'_>, name: &OsString) -> nix::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(errno)
}

fn make_file(parent: BorrowedFd<'_>, name: &OsString) -> nix::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop).map_err(errno)
}

fn read_link(parent: BorrowedFd<'_>, name: &OsString) -> nix::Result<PathBuf> {
    let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(errno)?;
    Ok(OsString::from_vec(target.into_bytes()).into())
}

/// fstat(2) of an fd, `O_PATH` ones included.
///
/// # Errors
/// fstat(2)'s.
pub fn stat(fd: BorrowedFd<'_>) -> nix::Result<Stat> {
    rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH).map_err(errno)
}

/// The number of the mount that a path leads into, statx(2) `STATX_MNT_ID`: no two that are there at
/// a time have the same.
///
/// # Errors
/// statx(2)'s; EOPNOTSUPP before Linux 5.8.
pub fn mount_id(path: &Path) -> nix::Result<u64> {
    let found =
        rustix::fs::statx(rustix::fs::CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(errno)?;
    match found.stx_mask & StatxFlags::MNT_ID.bits() {
        0 => Err(Errno::EOPNOTSUPP),
        _ => Ok(found.stx_mnt_id),
    }
}

/// Whether an fd is a directory.
///
/// # Errors
/// fstat(2)'s.
pub fn is_directory(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(file_type(&stat(fd)?) == FileType::Directory)
}

/// The type of what was stat'ed.
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root with a directory beside it that nothing may reach.
    fn scratch(name: &str) -> (PathBuf, Root) {
        let base = std::env::temp_dir().join(format!("dhow-path-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("root/a")).unwrap();
        std::fs::create_dir_all(base.join("outside")).unwrap();
        let root = Root::at(&base.join("root")).unwrap();
        (base, root)
    }

    #[test]
    fn links_and_dots_stay_inside() {
        let (base, root) = scratch("inside");
        symlink("../../outside", base.join("root/up")).unwrap();
        symlink("/outside", base.join("root/absolute")).unwrap();
        assert_eq!(root.resolve(Path::new("up")).err(), Some(Errno::ENOENT));
        assert_eq!(root.resolve(Path::new("absolute/x")).err(), Some(Errno::ENOENT));
        root.make(Path::new("/up/new"), Leaf::Directory).unwrap();
        root.make(Path::new("absolute/file"), Leaf::File).unwrap();
        assert!(base.join("root/outside/new").is_dir());
        assert!(base.join("root/outside/file").is_file());
        assert_eq!(std::fs::read_dir(base.join("outside")).unwrap().count(), 0);
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn makes_what_is_missing_through_dangling_links() {
        let (base, root) = scratch("dangling");
        symlink("/run", base.join("root/a/run")).unwrap();
        root.make(Path::new("a/run/../run/lock/x"), Leaf::File).unwrap();
        assert!(base.join("root/run/lock/x").is_file());
        symlink("loop", base.join("root/loop")).unwrap();
        assert_eq!(root.make(Path::new("loop/x"), Leaf::Directory).err(), Some(Errno::ELOOP));
        std::fs::remove_dir_all(base).unwrap();
    }

    /// Containers that share a rootfs, and are created at the same time.
    #[test]
    fn several_may_make_the_same_path() {
        let (base, root) = scratch("several");
        for round in 0..200 {
            let path = PathBuf::from(format!("{round}/deep/er"));
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| root.make(&path, Leaf::Directory).unwrap());
                }
            });
        }
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn magic_links_and_symlinked_proc_are_refused() {
        let (base, root) = scratch("magic");
        symlink("a", base.join("root/proc")).unwrap();
        assert_eq!(root.resolve_without_symlinks(Path::new("/proc")).err(), Some(Errno::ELOOP));
        assert!(root.resolve_without_symlinks(Path::new("/a")).is_ok());
        let host = Root::at(Path::new("/")).unwrap();
        assert_eq!(host.resolve(Path::new("/proc/self/exe")).err(), Some(Errno::ELOOP));
        std::fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn a_file_on_the_way_is_an_error() {
        let (base, root) = scratch("file");
        std::fs::write(base.join("root/f"), "").unwrap();
        assert_eq!(root.make(Path::new("f/x"), Leaf::Directory).err(), Some(Errno::ENOTDIR));
        std::fs::remove_dir_all(base).unwrap();
    }
}
