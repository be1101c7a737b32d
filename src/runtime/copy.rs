//! `cp`: files between the host and a container, which may run meanwhile.
//!
//! Every path of the container is resolved in its root, by openat2(2) with RESOLVE_IN_ROOT, to an fd;
//! from there on only fds and single names are used (CVE-2018-15664 was a second look at a path).

use super::container::Context;
use super::inside::{Inside, within};
use crate::error::{Context as _, Error, Result};
use crate::image::archive::Found;
use crate::image::tar::Reader;
use crate::image::tree::{self, Owner};
use crate::sys::path::Root;
use nix::errno::Errno;
use nix::unistd::{getegid, geteuid};
use rustix::fs::{FileType, OFlags};
use std::ffi::{CString, OsStr};
use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is copied where.
#[derive(Debug, Clone)]
pub enum Copy {
    /// From a path of a container to one of the host; `-` is an archive on standard output.
    Out(String, PathBuf, PathBuf),
    /// From a path of the host to one of a container; `-` is an archive on standard input.
    In(PathBuf, String, PathBuf),
}

/// How it is copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Owners, set-id bits and extended attributes are kept.
    pub archive: bool,
    /// A symlink at the end of the source is followed.
    pub follow: bool,
}

/// Copies.
///
/// # Errors
/// [`Class::NoContainer`]; ENOENT and its like with the path.
pub fn copy(context: &Context, what: &Copy, options: CopyOptions) -> Result<()> {
    // The host's own paths mean what they mean to every other program.
    let host = |path: &Path| match path == Path::new("-") {
        true => Ok(path.to_owned()),
        false => absolute(path),
    };
    match what {
        Copy::Out(id, from, to) => {
            let to_path = host(to)?;
            within(context, id, |container| out(container, from, &to_path, ends_in_slash(to), options))
        }
        Copy::In(from, id, to) => {
            let from_path = host(from)?;
            within(context, id, |container| into(container, from, &from_path, to, options))
        }
    }
}

/// Whether a path says that it means a directory itself, or what is in it.
fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn means_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).doing_on("find", || path.display().to_string())
}

fn out(
    container: &Inside,
    from: &Path,
    to: &Path,
    wants_directory: bool,
    options: CopyOptions,
) -> Result<()> {
    let at = || from.display().to_string();
    let follow = options.follow || ends_in_slash(from) || means_content(from);
    let fd = if follow { container.root.resolve(from) } else { container.root.resolve_nofollow(from) };
    let found = fd.and_then(Found::of).doing_on("find in the container", at)?;
    let name = last_name(from).unwrap_or_else(|| OsStr::new("root")).to_owned();
    let ids = |uid, gid| container.maps.inside(uid, gid);
    if to == Path::new("-") {
        let name: &[u8] = if means_content(from) { b"." } else { name.as_bytes() };
        return tree::archive(found, name, std::io::stdout().lock(), &ids);
    }
    let owner = match options.archive {
        true => Owner::Mapped(&ids),
        false => Owner::Set(geteuid().as_raw(), getegid().as_raw()),
    };
    put(&Host, &found, &name, to, owner, means_content(from), wants_directory)
}

fn into(container: &Inside, from: &Path, host: &Path, to: &Path, options: CopyOptions) -> Result<()> {
    let ids = |uid, gid| container.maps.outside(uid, gid);
    let (root, group) = ids(0, 0);
    let owner = match options.archive {
        true => Owner::Mapped(&ids),
        false => Owner::Set(root, group),
    };
    if from == Path::new("-") {
        return container.as_its_root(|| unpack(container, to, owner));
    }
    let follow = options.follow || ends_in_slash(from) || means_content(from);
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let fd = rustix::fs::open(host, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .doing_on("find", || from.display().to_string())?;
    let found = Found::of(fd).doing("copy")?;
    let name = last_name(host).unwrap_or_else(|| OsStr::new("root")).to_owned();
    let content = means_content(from);
    container.as_its_root(|| put(&container.root, &found, &name, to, owner, content, ends_in_slash(to)))
}

/// What standard input brings, into a directory of the container.
fn unpack(container: &Inside, to: &Path, owner: Owner<'_>) -> Result<()> {
    let directory = container.root.open(to, OFlags::RDONLY | OFlags::DIRECTORY);
    let directory = directory.doing_on("find in the container", || to.display().to_string())?;
    // Standard input stays open: it is somebody else's.
    let input = rustix::stdio::stdin().try_clone_to_owned().doing("read standard input")?;
    let reader = Reader::new(Input(BufReader::new(std::fs::File::from(input))));
    tree::extract(reader, directory.as_fd(), owner)
        .map_err(|error| Error { doing: "unpack standard input".into(), ..error })
}

/// An input that knows no faster way forward than reading.
struct Input(BufReader<std::fs::File>);

impl std::io::Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl std::io::BufRead for Input {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        self.0.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.0.consume(count);
    }
}

impl crate::image::tar::Stream for Input {}

fn last_name(path: &Path) -> Option<&OsStr> {
    path.file_name()
}

/// Where things are put: a container's root, or the host.
trait Place {
    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd>;
}

impl Place for Root {
    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        Root::resolve(self, path)
    }
}

struct Host;

impl Place for Host {
    fn resolve(&self, path: &Path) -> nix::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty()).map_err(crate::sys::errno)
    }
}

/// Puts a tree where a path says, as cp(1) and `docker cp` do: into a directory that is there, in
/// place of a file, or under a new name.
fn put(
    place: &impl Place,
    found: &Found,
    name: &OsStr,
    to: &Path,
    owner: Owner<'_>,
    content: bool,
    wants_directory: bool,
) -> Result<()> {
    let at = || to.display().to_string();
    let doing = "copy";
    match place.resolve(to).and_then(Found::of) {
        Ok(there) if there.kind() == FileType::Directory => {
            let directory = there.open_directory().doing_on(doing, at)?;
            match content && found.kind() == FileType::Directory {
                true => tree::copy_into(found, directory.as_fd(), owner),
                false => tree::copy(found, directory.as_fd(), &c_name(name)?, owner),
            }
        }
        Ok(there) => match wants_directory {
            true => Err(Error::system(doing, Errno::ENOTDIR).on(at())),
            false => tree::overwrite(found, &there).map_err(|error| error.on(at())),
        },
        Err(Errno::ENOENT) => {
            if wants_directory && found.kind() != FileType::Directory {
                return Err(Error::system(doing, Errno::ENOENT)
                    .on(at())
                    .because("there is no such directory"));
            }
            let new = last_name(to).ok_or_else(|| Error::system(doing, Errno::EINVAL).on(at()))?;
            let parent = to.parent().unwrap_or_else(|| Path::new(""));
            let parent = place.resolve(parent).and_then(Found::of).doing_on(doing, at)?;
            let directory = parent.open_directory().doing_on(doing, at)?;
            // What is there under this name leads nowhere: a dangling link, which is replaced.
            tree::copy(found, directory.as_fd(), &c_name(new)?, owner)
        }
        Err(errno) => Err(errno).doing_on(doing, at),
    }
}

fn c_name(name: &OsStr) -> Result<CString> {
    CString::new(name.as_bytes()).map_err(|_| Error::system("copy", Errno::EINVAL))
}
