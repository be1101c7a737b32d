//! One cgroup directory: its files read and written.
//!
//! Opening the directory costs as much as two and a half walks along its path (2.4 and 0.6 µs for
//! open and close, against 1.3 saved per file), so it is opened only when several have been walked.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, Result};
use std::cell::{Cell, OnceCell};

/// After how many files, opened by their whole path, the directory is opened: more than most
/// containers have limits of one controller.
const WALKS: u8 = 5;

/// A cgroup directory. The path is kept for messages and for the first opening.
#[derive(Debug)]
pub(super) struct Dir {
    path: String,
    fd: OnceCell<OwnedFd>,
    files_opened: Cell<u8>,
}

impl Dir {
    /// The directory at an absolute path; nothing is opened yet.
    pub(super) fn new(path: String) -> Dir {
        Dir { path, fd: OnceCell::new(), files_opened: Cell::new(0) }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// The open directory.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        // Not O_PATH: clone3 and bpf(2) of older kernels take only a really opened directory.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&self.path, flags, Mode::empty())?;
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }

    /// A second descriptor of the open directory, for the caller to keep.
    pub(super) fn reopen(&self) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(self.fd()?, 0)
    }

    /// Gives up the descriptor, before the directory is removed.
    pub(super) fn close(&mut self) {
        self.fd.take();
    }

    /// Opens one of its files.
    pub(super) fn open(&self, file: &str, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        let before = self.files_opened.replace(self.files_opened.get().saturating_add(1));
        if self.fd.get().is_some() || before >= WALKS {
            return rustix::fs::openat(self.fd()?, file, flags, Mode::empty());
        }
        rustix::fs::open([&self.path, "/", file].concat(), flags, Mode::empty())
    }

    /// Writes a control file, in one write(2) as the kernel demands.
    pub(super) fn write(&self, file: &str, value: &str) -> Result<()> {
        write_once(self.open(file, OFlags::WRONLY)?.as_fd(), value)
    }

    /// Reads a control file whole.
    pub(super) fn read(&self, file: &str) -> Result<String> {
        read_all(self.open(file, OFlags::RDONLY)?.as_fd())
    }

    /// Reads a file that holds one number; `max` is `u64::MAX`.
    pub(super) fn number(&self, file: &str) -> Result<u64> {
        let text = self.read(file)?;
        match text.trim_end() {
            "max" => Ok(u64::MAX),
            digits => digits.parse().map_err(|_| Errno::INVAL),
        }
    }

    /// Reads a file of `key value` lines and gives the value of one key.
    pub(super) fn keyed(&self, file: &str, key: &str) -> Result<Option<u64>> {
        let text = self.read(file)?;
        Ok(pairs(&text).find(|(k, _)| *k == key).map(|(_, v)| v))
    }

    /// How many directories it has, without listing it: kernfs counts them as links.
    pub(super) fn has_children(&self) -> Result<bool> {
        let stat = match self.fd.get() {
            Some(fd) => rustix::fs::fstat(fd)?,
            None => rustix::fs::stat(&self.path)?,
        };
        Ok(stat.st_nlink > 2)
    }

    /// The names of the directories in it.
    pub(super) fn children(&self) -> Result<Vec<String>> {
        if !self.has_children()? {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.fd()?)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == rustix::fs::FileType::Directory && name != b"." && name != b".." {
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        Ok(names)
    }

    /// The directory of that name in it.
    pub(super) fn child(&self, name: &str) -> Dir {
        Dir::new(format!("{}/{name}", self.path))
    }
}

/// Writes a value with one write(2).
pub(super) fn write_once(fd: BorrowedFd<'_>, value: &str) -> Result<()> {
    loop {
        match rustix::io::write(fd, value.as_bytes()) {
            // The memory controller reclaims while it is written to, and may be interrupted.
            Err(Errno::INTR) => {}
            Ok(n) if n < value.len() => return Err(Errno::IO),
            Ok(_) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads to the end.
pub(super) fn read_all(fd: BorrowedFd<'_>) -> Result<String> {
    let mut text = Vec::with_capacity(4096);
    loop {
        text.reserve(2048);
        let got =
            rustix::io::retry_on_intr(|| rustix::io::read(fd, rustix::buffer::spare_capacity(&mut text)))?;
        // The kernel fills a page, or what is left of it after a line that does not fit: far less
        // is the end, and asking again would only cost another system call.
        if got < 2048 {
            break;
        }
    }
    String::from_utf8(text).map_err(|_| Errno::ILSEQ)
}

/// The `key number` lines of a control file; other lines are passed over.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}
