//! Writing tar archives: ustar headers, and PAX ones for what does not fit into them.

use super::tar::{Entry, Kind};
use crate::error::{Context as _, Result};
use crate::sys::{self, fd::proc_path, path};
use rustix::fs::{FileType, Mode, OFlags, Stat, openat};
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The most that the value of an extended attribute has: the kernel's XATTR_SIZE_MAX.
const MOST_XATTR: usize = 65536;

/// What the ustar field of an owner can hold.
const MOST_ID: u32 = 0o777_7777;
/// What that of a size can.
const MOST_SIZE: u64 = 0o777_7777_7777;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Files with several names, by where they were first.
    linked: BTreeMap<(u64, u64), Vec<u8>>,
}

/// A file of a tree: its place there, and what it is.
#[derive(Debug)]
pub struct Found {
    /// An `O_PATH` fd of itself.
    pub fd: OwnedFd,
    /// fstat(2)'s answer.
    pub stat: Stat,
}

impl Found {
    /// Looks at a name in a directory. A symlink is looked at itself.
    ///
    /// # Errors
    /// openat(2)'s.
    pub fn at(directory: BorrowedFd<'_>, name: &CStr) -> nix::Result<Found> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Found::of(openat(directory, name, flags, Mode::empty()).map_err(sys::errno)?)
    }

    /// Looks at what is open.
    ///
    /// # Errors
    /// fstat(2)'s.
    pub fn of(fd: OwnedFd) -> nix::Result<Found> {
        let stat = path::stat(fd.as_fd())?;
        Ok(Found { fd, stat })
    }

    /// Its type.
    pub fn kind(&self) -> FileType {
        path::file_type(&self.stat)
    }

    /// Opens the very file that was looked at: what has its name by now does not matter.
    ///
    /// # Errors
    /// openat(2)'s.
    pub fn open(&self, flags: OFlags) -> nix::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::open(proc_path(self.fd.as_fd()), flags, Mode::empty()).map_err(sys::errno)
    }

    /// Opens a directory to be listed.
    ///
    /// # Errors
    /// openat(2)'s.
    pub fn open_directory(&self) -> nix::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.fd, c".", flags, Mode::empty()).map_err(sys::errno)
    }

    /// Its entry in an archive; `None` for a socket, which has none.
    ///
    /// # Errors
    /// readlinkat(2)'s and getxattr(2)'s.
    pub fn entry(&self, path: Vec<u8>) -> Result<Option<Entry>> {
        let mut link = Vec::new();
        let kind = match self.kind() {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => {
                link = rustix::fs::readlinkat(&self.fd, c"", Vec::new()).doing("read a link")?.into_bytes();
                Kind::Symlink
            }
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            _ => return Ok(None),
        };
        let stat = &self.stat;
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Ok(Some(Entry {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, nanoseconds),
            size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            link,
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            xattrs: if matches!(kind, Kind::File | Kind::Directory) { self.xattrs()? } else { Vec::new() },
        }))
    }

    /// Its extended attributes, but for overlayfs's own and labels, which belong to this host.
    ///
    /// # Errors
    /// listxattr(2)'s.
    pub fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let doing = "read extended attributes";
        let place = proc_path(self.fd.as_fd());
        let mut names = vec![0_u8; MOST_XATTR];
        let length = match rustix::fs::listxattr(&place, &mut names[..]) {
            Err(rustix::io::Errno::OPNOTSUPP) => 0,
            length => length.doing(doing)?,
        };
        let mut all = Vec::new();
        for name in names[..length].split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let bytes = name.to_bytes();
            let own = bytes.starts_with(b"trusted.overlay.") || bytes.starts_with(b"user.overlay.");
            if own || bytes == b"security.selinux" || bytes.starts_with(b"system.") {
                continue;
            }
            let mut value = vec![0_u8; MOST_XATTR];
            let length = match rustix::fs::getxattr(&place, name, &mut value[..]) {
                // It has gone meanwhile.
                Err(rustix::io::Errno::NODATA) => continue,
                length => length.doing(doing)?,
            };
            value.truncate(length);
            all.push((bytes.to_vec(), value));
        }
        all.sort_unstable();
        Ok(all)
    }
}

impl<W: Write> Writer<W> {
    /// A writer at the beginning of an archive.
    pub fn new(out: W) -> Writer<W> {
        Writer { out, linked: BTreeMap::new() }
    }

    /// Adds a file as it was found, without what is in it if it is a directory. A second name of the
    /// same file becomes a link to the first.
    ///
    /// # Errors
    /// read(2)'s and write(2)'s.
    pub fn add(&mut self, found: &Found, path: &[u8]) -> Result<()> {
        let mut name = path.to_vec();
        if found.kind() == FileType::Directory {
            name.push(b'/');
        }
        let Some(mut entry) = found.entry(name)? else { return Ok(()) };
        if found.kind() != FileType::Directory && found.stat.st_nlink > 1 {
            let place = (found.stat.st_dev, found.stat.st_ino);
            if let Some(first) = self.linked.get(&place) {
                let link = first.clone();
                return self.header(&Entry {
                    kind: Kind::HardLink,
                    link,
                    size: 0,
                    xattrs: Vec::new(),
                    ..entry
                });
            }
            self.linked.insert(place, path.to_vec());
        }
        if entry.kind != Kind::File {
            return self.header(&entry);
        }
        let file = File::from(found.open(OFlags::RDONLY).doing("read a file")?);
        entry.size = file.metadata().doing("read a file")?.len();
        self.file(&entry, file)
    }

    /// Adds a file with its content. One that has become shorter is filled up, as tar(1) does: the
    /// header is out by then.
    ///
    /// # Errors
    /// read(2)'s and write(2)'s.
    pub fn file(&mut self, entry: &Entry, content: impl Read) -> Result<()> {
        let doing = "write the archive";
        self.header(entry)?;
        let copied = io::copy(&mut content.take(entry.size), &mut self.out).doing(doing)?;
        let padding = entry.size.next_multiple_of(512) - copied;
        io::copy(&mut io::repeat(0).take(padding), &mut self.out).map(drop).doing(doing)
    }

    /// Adds what has no content.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn header(&mut self, entry: &Entry) -> Result<()> {
        let doing = "write the archive";
        let records = records(entry);
        if !records.is_empty() {
            let extended = Entry { path: b"pax".to_vec(), size: records.len() as u64, ..plain() };
            self.out.write_all(&block(&extended, b'x')).doing(doing)?;
            self.out.write_all(&records).doing(doing)?;
            let padding = records.len().next_multiple_of(512) - records.len();
            self.out.write_all(&[0; 512][..padding]).doing(doing)?;
        }
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::CharDevice => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        self.out.write_all(&block(entry, kind)).doing(doing)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn finish(mut self) -> Result<W> {
        let doing = "write the archive";
        self.out.write_all(&[0; 1024]).doing(doing)?;
        self.out.flush().doing(doing)?;
        Ok(self.out)
    }
}

/// An empty file that is root's.
pub fn plain() -> Entry {
    Entry {
        path: Vec::new(),
        kind: Kind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        size: 0,
        link: Vec::new(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// The PAX records that an entry needs: `LENGTH KEY=VALUE\n`, the length its own digits included.
fn records(entry: &Entry) -> Vec<u8> {
    let mut all = Vec::new();
    let mut put = |key: &[u8], value: &[u8]| {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        all.extend_from_slice(format!("{length} ").as_bytes());
        all.extend_from_slice(key);
        all.push(b'=');
        all.extend_from_slice(value);
        all.push(b'\n');
    };
    if entry.path.len() > 100 {
        put(b"path", &entry.path);
    }
    if entry.link.len() > 100 {
        put(b"linkpath", &entry.link);
    }
    if entry.size > MOST_SIZE {
        put(b"size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id > MOST_ID {
            put(key, id.to_string().as_bytes());
        }
    }
    // Before 1970 there is nothing that a layer could say.
    let (seconds, nanoseconds) = (entry.mtime.0.max(0), entry.mtime.1);
    if nanoseconds > 0 || seconds > MOST_SIZE.cast_signed() {
        put(b"mtime", format!("{seconds}.{nanoseconds:09}").as_bytes());
    }
    for (key, value) in &entry.xattrs {
        put(&[b"SCHILY.xattr.", &key[..]].concat(), value);
    }
    all
}

fn block(entry: &Entry, kind: u8) -> [u8; 512] {
    fn octal(field: &mut [u8], number: u64) {
        let width = field.len() - 1;
        field[..width].copy_from_slice(format!("{number:0width$o}").as_bytes());
    }
    let mut block = [0_u8; 512];
    let short = |text: &[u8]| text.len().min(100);
    block[..short(&entry.path)].copy_from_slice(&entry.path[..short(&entry.path)]);
    octal(&mut block[100..108], u64::from(entry.mode));
    octal(&mut block[108..116], u64::from(entry.uid.min(MOST_ID)));
    octal(&mut block[116..124], u64::from(entry.gid.min(MOST_ID)));
    octal(&mut block[124..136], entry.size.min(MOST_SIZE));
    octal(&mut block[136..148], entry.mtime.0.max(0).cast_unsigned().min(MOST_SIZE));
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + short(&entry.link)].copy_from_slice(&entry.link[..short(&entry.link)]);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tar::Reader;

    /// What is written is read back by dhow's own reader and by the crate `tar`.
    #[test]
    fn what_does_not_fit_goes_into_pax() {
        let long = [b'a'; 150].to_vec();
        let entries = [
            Entry { path: b"short".to_vec(), size: 3, ..plain() },
            Entry { path: [b"d/", &long[..]].concat(), uid: 3_000_000, mtime: (1_700_000_000, 5), ..plain() },
            Entry {
                path: b"link".to_vec(),
                kind: Kind::Symlink,
                link: long.clone(),
                gid: u32::MAX - 1,
                ..plain()
            },
            Entry {
                path: b"x".to_vec(),
                xattrs: vec![(b"user.a".to_vec(), b"1\n\0=2".to_vec())],
                mode: 0o4755,
                ..plain()
            },
            Entry { path: b"dev".to_vec(), kind: Kind::CharDevice, device: (1, 3), ..plain() },
        ];
        let mut writer = Writer::new(Vec::new());
        for entry in &entries {
            if entry.kind == Kind::File {
                writer.file(entry, &b"abcdef"[..]).unwrap();
            } else {
                writer.header(entry).unwrap();
            }
        }
        let text = writer.finish().unwrap();
        assert_eq!(text.len() % 512, 0);
        let mut reader = Reader::new(&text[..]);
        for entry in &entries {
            assert_eq!(reader.next().unwrap().as_ref(), Some(entry));
        }
        assert_eq!(reader.next().unwrap(), None);
        let mut oracle = tar::Archive::new(&text[..]);
        let paths: Vec<_> =
            oracle.entries().unwrap().map(|one| one.unwrap().path_bytes().into_owned()).collect();
        assert_eq!(paths, entries.map(|entry| entry.path));
    }
}
