//! What is known of containers between two commands.
//!
//! Each container has a directory below `--root`, mode 0700, and in it one [`Record`] that is
//! only ever replaced whole, by rename(2). The directory itself carries the lock: a command that
//! changes the container holds an exclusive flock(2) on it, a reader takes none.

mod record;
mod status;
mod supervision;

pub use record::{Init, Phase, Record, Undo, VERSION};
pub use status::{Facts, Operation, Status};
pub use supervision::{Exit, Intent, Log, Next, Restart, Supervision};

use crate::error::{Class, Context, Error, Result};
use crate::sys;
use nix::errno::Errno;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// The directory in a container's state for sockets that are its own.
pub const SOCKETS: &str = "notify";
/// The name of the record in a container's directory.
const RECORD: &str = "record.json";

/// Where a new record is written before it takes the old one's place.
const RECORD_NEW: &str = "record.json.new";

/// The most that a record may have, in bytes.
const MOST_BYTES: usize = 1024 * 1024;

/// How long a command waits for another one on the same container.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// All containers below one `--root`.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store below this directory, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into() }
    }

    /// The directory of all containers.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a container.
    pub fn directory(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes the directory of a new container and locks it.
    ///
    /// # Errors
    /// [`Class::ContainerExists`] when there is one; [`Class::Usage`] for an id that is no name.
    pub fn create(&self, id: &str) -> Result<Locked> {
        check_id(id)?;
        let path = self.directory(id);
        match make_directory(&path) {
            Err(Errno::ENOENT) => {
                self.make_root()?;
                make_directory(&path)
            }
            made => made,
        }
        .map_err(|errno| match errno {
            Errno::EEXIST => taken(id),
            _ => Error::system("make the state directory", errno).on(path.display().to_string()),
        })?;
        // Until the lock is held, a `delete --force` may take the new directory for an abandoned one.
        Locked::acquire(&path, id).inspect_err(|_| {
            // Empty, so nobody else's.
            let _ = std::fs::remove_dir(&path);
        })
    }

    /// Looks whether an id is free, before anything else is looked at: the container that has it
    /// is the better explanation of what else is taken. [`Store::create`] decides.
    ///
    /// # Errors
    /// [`Class::ContainerExists`], [`Class::Usage`].
    pub fn check_free(&self, id: &str) -> Result<()> {
        check_id(id)?;
        match rustix::fs::access(self.directory(id), rustix::fs::Access::EXISTS) {
            Ok(()) => Err(taken(id)),
            Err(_) => Ok(()),
        }
    }

    /// Locks a container that exists.
    ///
    /// # Errors
    /// [`Class::NoContainer`]; [`Class::WrongState`] when another command keeps the lock.
    pub fn lock(&self, id: &str) -> Result<Locked> {
        check_id(id)?;
        Locked::acquire(&self.directory(id), id)
    }

    /// Locks a container, unless another command has it.
    ///
    /// # Errors
    /// [`Class::NoContainer`].
    pub fn try_lock(&self, id: &str) -> Result<Option<Locked>> {
        check_id(id)?;
        match Locked::acquire_within(&self.directory(id), id, Duration::ZERO) {
            Err(error) if error.class == Class::WrongState => Ok(None),
            locked => locked.map(Some),
        }
    }

    /// Reads a container's record, without any lock.
    ///
    /// # Errors
    /// [`Class::NoContainer`]; [`Class::Corrupt`] when the record is not one of dhow's.
    pub fn read(&self, id: &str) -> Result<Record> {
        check_id(id)?;
        let path = self.directory(id);
        let directory = open_directory(&path).map_err(|errno| missing(id, &path, errno))?;
        read_record(directory.as_fd(), RECORD, &path, id)
    }

    /// Reads the records of all containers, by id, without any lock.
    ///
    /// # Errors
    /// When the directory is there and cannot be read; for each record, those of [`Store::read`].
    pub fn read_all(&self) -> Result<Vec<(String, Result<Record>)>> {
        let ids = self.ids()?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // This one may be reached by a link, as /var/run is.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.root, flags, Mode::empty())
            .doing_on("read the state directory", || self.root.display().to_string())?;
        let read = |id: String| {
            let record = read_record(root.as_fd(), &format!("{id}/{RECORD}"), &self.directory(&id), &id);
            (id, record)
        };
        Ok(ids.into_iter().map(read).collect())
    }

    /// Reads a file that a command keeps beside the record.
    ///
    /// # Errors
    /// [`Class::NoContainer`] when it is not there.
    pub fn read_file(&self, id: &str, name: &str) -> Result<Vec<u8>> {
        let path = self.directory(id).join(name);
        std::fs::read(&path).map_err(|error| missing(id, &path, sys::io_errno(&error)))
    }

    /// The ids of all containers, sorted.
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn ids(&self) -> Result<Vec<String>> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.doing_on("read the state directory", || self.root.display().to_string())?,
        };
        let mut ids: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| check_id(name).is_ok())
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Anyone may pass through to a container that they know of; nobody else may list or write.
    fn make_root(&self) -> Result<()> {
        let failed =
            |errno| Error::system("make the state directory", errno).on(self.root.display().to_string());
        std::fs::create_dir_all(&self.root).map_err(|e| failed(sys::io_errno(&e)))?;
        rustix::fs::chmod(&self.root, Mode::from_raw_mode(0o711)).map_err(|e| failed(sys::errno(e)))
    }
}

/// A container's directory with its lock held, until this value is dropped.
#[derive(Debug)]
pub struct Locked {
    directory: OwnedFd,
    path: PathBuf,
    id: String,
    device: u64,
}

impl Drop for Locked {
    /// A container's init is forked while the lock is held and has a copy of its fd, which alone
    /// would keep the lock: flock(2) belongs to the open file, not to the process.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

impl Locked {
    fn acquire(path: &Path, id: &str) -> Result<Locked> {
        Locked::acquire_within(path, id, LOCK_PATIENCE)
    }

    fn acquire_within(path: &Path, id: &str, patience: Duration) -> Result<Locked> {
        let directory = open_directory(path).map_err(|errno| missing(id, path, errno))?;
        wait_for_lock(directory.as_fd(), id, patience)?;
        // Whoever held the lock before may have deleted the container.
        let stat = rustix::fs::fstat(&directory).doing_on("look at", || path.display().to_string())?;
        if stat.st_nlink == 0 {
            return Err(no_container(id));
        }
        Ok(Locked { directory, path: path.to_owned(), id: id.to_owned(), device: stat.st_dev })
    }

    /// What marks the things of this container: the directory, and the device that it is on, by which
    /// it is told from one of the same name in another mount namespace.
    pub fn mark(&self) -> String {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        format!("{} {}", self.device, path.display())
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The container's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the record; `None` when its create was killed before it wrote one.
    ///
    /// # Errors
    /// [`Class::Corrupt`].
    pub fn read(&self) -> Result<Option<Record>> {
        match read_record(self.as_fd(), RECORD, &self.path, &self.id) {
            Err(error) if error.class == Class::NoContainer => Ok(None),
            result => result.map(Some),
        }
    }

    /// Replaces the record, so that a reader sees the old one or the new one.
    ///
    /// # Errors
    /// ENOSPC and their like.
    pub fn write(&self, record: &Record) -> Result<()> {
        let text = record.to_json()?;
        if text.len() > MOST_BYTES {
            // No later command would read it, and the container could not be deleted.
            return Err(Error::config(
                "annotations",
                "are too large: the state record would be more than 1 MiB",
            ));
        }
        self.write_file(RECORD_NEW, &text).inspect_err(|_| drop(self.remove_file(RECORD_NEW)))?;
        rustix::fs::renameat(&self.directory, RECORD_NEW, &self.directory, RECORD)
            .doing_on("replace the state record", || self.path.display().to_string())
    }

    /// Writes a file beside the record.
    ///
    /// # Errors
    /// ENOSPC and their like.
    pub fn write_file(&self, name: &str, content: &[u8]) -> Result<()> {
        let doing = "write the state";
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::from_raw_mode(0o600))
            .doing_on(doing, || self.path.join(name).display().to_string())?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)
                .doing_on(doing, || self.path.join(name).display().to_string())?;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// Notes that the container has become something else now, in a way that its record does not
    /// show.
    ///
    /// # Errors
    /// utimensat(2)'s.
    pub fn touch(&self) -> Result<()> {
        use rustix::fs::{Timespec, Timestamps, UTIME_NOW, utimensat};
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        utimensat(&self.directory, RECORD, &times, AtFlags::empty())
            .doing_on("note the time in the state record", || self.path.display().to_string())
    }

    /// Removes a file beside the record, if it is there.
    ///
    /// # Errors
    /// unlinkat(2)'s.
    pub fn remove_file(&self, name: &str) -> Result<()> {
        unlink(self.as_fd(), name.as_ref())
            .doing_on("remove from the state directory", || self.path.display().to_string())
    }

    /// Removes the directory and all that dhow keeps in it, the record last: a delete that is
    /// killed halfway finds the container again.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn remove(self) -> Result<()> {
        let subject = || self.path.display().to_string();
        let entries = std::fs::read_dir(&self.path).doing_on("read the state directory", subject)?;
        for entry in entries {
            let name = entry.doing_on("read the state directory", subject)?.file_name();
            if name != RECORD {
                match unlink(self.as_fd(), &name) {
                    // The place of NOTIFY_SOCKET, or where a restore has had its root mounted.
                    Err(Errno::EISDIR) => {
                        remove_flat(&self.path.join(&name))
                            .doing_on("remove from the state directory", subject)?;
                    }
                    removed => removed.doing_on("remove from the state directory", subject)?,
                }
            }
        }
        unlink(self.as_fd(), RECORD.as_ref()).doing_on("remove the state record", subject)?;
        std::fs::remove_dir(&self.path).doing_on("remove the state directory", subject)
    }
}

/// Removes a directory and, in that of sockets, the files in it. Never what is further below: were
/// something mounted there, it would be somebody's files.
fn remove_flat(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) && path.ends_with(SOCKETS) => {
            for entry in std::fs::read_dir(path)? {
                std::fs::remove_file(entry?.path())?;
            }
            std::fs::remove_dir(path)
        }
        result => result,
    }
}

/// An id names a directory: letters, digits, `_`, `+`, `-` and `.`, as runc takes them.
///
/// # Errors
/// [`Class::Usage`].
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
    if id.is_empty() || id == "." || id == ".." || id.len() > 255 || !id.chars().all(allowed) {
        return Err(Error::new(Class::Usage, "invalid container ID format")
            .on(format!("{id:?}"))
            .hint("letters, digits, and the characters _+-. are allowed, 255 at most"));
    }
    Ok(())
}

/// The error for a container that is not there, in the words that engines look for.
pub fn no_container(id: &str) -> Error {
    Error::new(Class::NoContainer, format!("container {id:?} does not exist"))
}

fn taken(id: &str) -> Error {
    Error::new(Class::ContainerExists, "container with given ID already exists")
        .on(id)
        .hint("`dhow delete` removes a stopped one")
}

fn missing(id: &str, path: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => no_container(id),
        _ => Error::system("open the container's state", errno).on(path.display().to_string()),
    }
}

fn make_directory(path: &Path) -> nix::Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)).map_err(sys::errno)
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(sys::errno)
}

fn unlink(directory: BorrowedFd<'_>, name: &std::ffi::OsStr) -> nix::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        result => result.map_err(sys::errno),
    }
}

fn wait_for_lock(directory: BorrowedFd<'_>, id: &str, patience: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match rustix::fs::flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(other) => return Err(Error::system("lock the container", sys::errno(other)).on(id)),
        }
        if begun.elapsed() >= patience {
            return Err(Error::new(Class::WrongState, "another command is working on the container")
                .on(id)
                .because(format!("it has not finished in {} seconds", patience.as_secs()))
                .hint("a hook that hangs can be the reason; `dhow kill` does not wait for it"));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Reads the record `place` below a directory, following no link.
fn read_record(directory: BorrowedFd<'_>, place: &str, path: &Path, id: &str) -> Result<Record> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(directory, place, flags, Mode::empty(), resolve)
        .map_err(|errno| missing(id, path, sys::errno(errno)))?;
    let shown = || path.join(RECORD).display().to_string();
    let corrupt =
        |cause: String| Error::new(Class::Corrupt, "read the state record").on(shown()).because(cause);
    let stat = rustix::fs::fstat(&file).doing_on("look at the state record", shown)?;
    // Who can write the record decides whom root signals and what it removes.
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(corrupt(format!("it belongs to uid {}", stat.st_uid)));
    }
    let size = usize::try_from(stat.st_size).ok().filter(|size| *size <= MOST_BYTES);
    let size = size.ok_or_else(|| corrupt("it is far too large".into()))?;
    // A record is replaced and never changed: it has the size that it has.
    let mut text = vec![0; size];
    let mut length = 0;
    while length < size {
        match rustix::io::read(&file, &mut text[length..]).doing_on("read the state record", shown)? {
            0 => break,
            read => length += read,
        }
    }
    let mut record = Record::from_json(&text[..length], id).map_err(|error| error.on(shown()))?;
    let since =
        Duration::new(stat.st_mtime.try_into().unwrap_or(0), stat.st_mtime_nsec.try_into().unwrap_or(0));
    record.changed = SystemTime::UNIX_EPOCH.checked_add(since);
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> Store {
        let root = std::env::temp_dir().join(format!("dhow-state-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        Store::new(root)
    }

    #[test]
    fn a_record_is_written_read_and_removed() {
        let store = scratch("life");
        assert_eq!(store.read("a").unwrap_err().class, Class::NoContainer);
        let locked = store.create("a").unwrap();
        assert!(locked.read().unwrap().is_none());
        locked.write(&Record::new("a")).unwrap();
        locked.write_file("config.json", b"{}").unwrap();
        assert_eq!(store.read("a").unwrap().id, "a");
        assert_eq!(store.ids().unwrap(), ["a"]);
        assert_eq!(store.create("a").unwrap_err().class, Class::ContainerExists);
        locked.remove().unwrap();
        assert!(store.ids().unwrap().is_empty());
        assert_eq!(store.lock("a").unwrap_err().class, Class::NoContainer);
        std::fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn a_lock_is_waited_for_and_a_deleted_container_is_gone() {
        let store = scratch("lock");
        let first = store.create("a").unwrap();
        first.write(&Record::new("a")).unwrap();
        let other = store.clone();
        let waiting = std::thread::spawn(move || other.lock("a").map(drop));
        std::thread::sleep(Duration::from_millis(50));
        first.remove().unwrap();
        assert_eq!(waiting.join().unwrap().unwrap_err().class, Class::NoContainer);
        std::fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        let store = scratch("garbage");
        let locked = store.create("a").unwrap();
        for garbage in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"version\":99}", b"null"] {
            locked.write_file(RECORD, garbage).unwrap();
            let error = store.read("a").unwrap_err();
            assert_eq!(error.class, Class::Corrupt, "{garbage:?}: {error}");
        }
        locked.remove().unwrap();
        std::fs::remove_dir_all(store.root).unwrap();
    }

    #[test]
    fn ids_are_names() {
        for id in ["a", "A_b+c-d.e", "0", "..."] {
            assert!(check_id(id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "../a", "a b", "ä", "a\0", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id}");
        }
    }
}
