//! `cp`: files between the host and a container, which may run meanwhile.
//!
//! Every path of the container is resolved in its root, by openat2(2) with RESOLVE_IN_ROOT, to an fd;
//! from there on only fds and single names are used (CVE-2018-15664 was a second look at a path).

use super::container::{Container, Context, boot_id};
use crate::error::{Class, Context as _, Error, Result};
use crate::image::archive::Found;
use crate::image::tar::Reader;
use crate::image::tree::{self, Owner};
use crate::rootfs::Overlay;
use crate::spec::load;
use crate::state::{Locked, Status};
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
    match what {
        Copy::Out(id, from, to) => out(&Opened::new(context, id)?, from, to, options),
        Copy::In(from, id, to) => into(&Opened::new(context, id)?, from, to, options),
    }
}

/// A container's root, open.
struct Opened {
    root: Root,
    /// Who root is in the container, to the host.
    owner: (u32, u32),
    /// Of one that does not run: nobody may start or delete it meanwhile.
    _lock: Option<Locked>,
}

impl Opened {
    fn new(context: &Context, id: &str) -> Result<Opened> {
        let container = Container::open(context, id)?;
        let owner = owner(context, id)?;
        if let Some(root) = running_root(&container)? {
            return Ok(Opened { root, owner, _lock: None });
        }
        let (lock, container) = Container::lock(context, id)?;
        if container.pid() != 0 {
            return Err(Error::new(Class::WrongState, "copy").on(id).because("it has just been started"));
        }
        let root = match Overlay::load(&container.record.bundle)? {
            Some(overlay) => Root::from(overlay.mount_again(container.record.boot == boot_id()?)?),
            None => Root::at(&container.record.rootfs)
                .doing_on("open the rootfs", || container.record.rootfs.display().to_string())?,
        };
        Ok(Opened { root, owner, _lock: Some(lock) })
    }
}

/// The root of a container that has processes: with all its mounts, as they see it.
fn running_root(container: &Container) -> Result<Option<Root>> {
    let boot = boot_id()?;
    let Some(init) = container.record.init.filter(|_| container.record.boot == boot) else {
        return Ok(None);
    };
    if !matches!(container.status, Status::Created | Status::Running | Status::Paused) {
        return Ok(None);
    }
    let root = Root::at(Path::new(&format!("/proc/{}/root", init.pid)));
    // Another process may have got the pid: then this was its root.
    match (root, init.is_alive()?) {
        (Ok(root), true) => Ok(Some(root)),
        (Err(errno), true) => {
            Err(errno).doing_on("open the container's root", || container.record.id.clone())
        }
        (_, false) => Ok(None),
    }
}

/// The ids that the container's root has on the host.
fn owner(context: &Context, id: &str) -> Result<(u32, u32)> {
    let spec = load::parse::<crate::spec::Spec>(
        &context.store.read_file(id, super::create::CONFIG)?,
        Path::new("config.json"),
    )?;
    let host = |maps: &[crate::spec::IdMapping]| {
        maps.iter().find(|map| map.container_id == 0).map_or(0, |map| map.host_id)
    };
    Ok((host(&spec.linux.uid_mappings), host(&spec.linux.gid_mappings)))
}

/// Whether a path says that it means a directory itself, or what is in it.
fn ends_in_slash(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/")
}

fn means_content(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.")
}

fn out(container: &Opened, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
    let at = || from.display().to_string();
    let follow = options.follow || ends_in_slash(from) || means_content(from);
    let fd = if follow { container.root.resolve(from) } else { container.root.resolve_nofollow(from) };
    let found = fd.and_then(Found::of).doing_on("find in the container", at)?;
    let name = last_name(from).unwrap_or_else(|| OsStr::new("root")).to_owned();
    if to == Path::new("-") {
        let name: &[u8] = if means_content(from) { b"." } else { name.as_bytes() };
        return tree::archive(&found, name, std::io::stdout().lock());
    }
    let owner = match options.archive {
        true => Owner::Kept,
        false => Owner::Set(geteuid().as_raw(), getegid().as_raw()),
    };
    // The host's own paths mean what they mean to every other program.
    let host = |path: &Path| std::path::absolute(path).doing_on("find", || path.display().to_string());
    let to_path = host(to)?;
    put(&Host, &found, &name, &to_path, owner, means_content(from), ends_in_slash(to))
}

fn into(container: &Opened, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
    let owner = match options.archive {
        true => Owner::Kept,
        false => Owner::Set(container.owner.0, container.owner.1),
    };
    if from == Path::new("-") {
        let directory = container.root.open(to, OFlags::RDONLY | OFlags::DIRECTORY);
        let directory = directory.doing_on("find in the container", || to.display().to_string())?;
        // Standard input stays open: it is somebody else's.
        let input = rustix::stdio::stdin().try_clone_to_owned().doing("read standard input")?;
        let reader = Reader::new(Input(BufReader::new(std::fs::File::from(input))));
        return tree::extract(reader, directory.as_fd(), owner);
    }
    let host = std::path::absolute(from).doing_on("find", || from.display().to_string())?;
    let follow = options.follow || ends_in_slash(from) || means_content(from);
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let fd = rustix::fs::open(&host, flags | OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .doing_on("find", || from.display().to_string())?;
    let found = Found::of(fd).doing("copy")?;
    let name = last_name(&host).unwrap_or_else(|| OsStr::new("root")).to_owned();
    put(&container.root, &found, &name, to, owner, means_content(from), ends_in_slash(to))
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
    owner: Owner,
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
