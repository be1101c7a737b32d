//! Where an image comes from: a directory, or an archive of which only the headers are read first.

use super::documents::MOST_DOCUMENT;
use super::tar::{Kind, Reader};
use super::{refused, unpack};
use crate::error::{Context as _, Result};
use crate::sys::path::{self, Root};
use rustix::fs::{FileType, OFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The most entries that the archive around an image may have.
const MOST_MEMBERS: usize = 100_000;

/// What holds an image's files.
#[derive(Debug)]
pub enum Source {
    /// A layout directory.
    Directory(Root),
    /// A tar archive, with where each file begins and how long it is.
    Archive(File, HashMap<Vec<u8>, Member>),
}

/// One member of an archive.
#[derive(Debug, Clone, Copy)]
pub enum Member {
    /// A file: where it begins, and its length.
    File(u64, u64),
    /// Anything else.
    Other,
}

impl Source {
    /// Opens a directory or an archive; `scratch` makes a file for what must be unpacked first.
    ///
    /// # Errors
    /// When it is neither.
    pub fn open(path: &Path, scratch: impl Fn() -> Result<File>) -> Result<Source> {
        if path.as_os_str() == "-" {
            let mut file = scratch()?;
            io::copy(&mut io::stdin().lock(), &mut file).doing("read standard input")?;
            return Source::archive(file, &scratch);
        }
        let metadata = std::fs::metadata(path).doing("open the image")?;
        if metadata.is_dir() {
            return Ok(Source::Directory(Root::at(path).doing("open the image")?));
        }
        Source::archive(File::open(path).doing("open the image")?, &scratch)
    }

    fn archive(mut file: File, scratch: &impl Fn() -> Result<File>) -> Result<Source> {
        let doing = "read the archive";
        let mut first = [0; 4];
        let length = file.read_at(&mut first, 0).doing(doing)?;
        file.rewind().doing(doing)?;
        let mut decoder: Box<dyn Read> = match &first[..length] {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file).doing(doing)?),
            _ => return Source::plain(file),
        };
        let mut plain = scratch()?;
        let most = super::Limits::default().layer;
        let copied = io::copy(&mut decoder.by_ref().take(most), &mut plain).doing(doing)?;
        if copied == most {
            return Err(refused(format!("the archive unpacks to more than {most} bytes")));
        }
        Source::plain(plain)
    }

    fn plain(mut file: File) -> Result<Source> {
        let doing = "read the archive";
        file.seek(SeekFrom::Start(0)).doing(doing)?;
        let length = file.metadata().doing(doing)?.len();
        let mut members = HashMap::new();
        let mut reader = Reader::new(BufReader::with_capacity(4096, file.try_clone().doing(doing)?));
        while let Some(entry) = reader.next()? {
            if members.len() >= MOST_MEMBERS {
                return Err(refused(format!("the archive has more than {MOST_MEMBERS} entries")));
            }
            let Ok(path) = unpack::clean(&entry.path) else {
                return Err(refused("the archive has an entry whose path leaves it"));
            };
            let member = match entry.kind {
                Kind::File if reader.position() + entry.size > length => {
                    return Err(refused("the archive is cut off"));
                }
                Kind::File => Member::File(reader.position(), entry.size),
                _ => Member::Other,
            };
            members.insert(path, member);
        }
        Ok(Source::Archive(file, members))
    }

    /// Whether there is a file of this path.
    pub fn has(&self, path: &str) -> bool {
        self.open_file(path).is_ok()
    }

    /// A file of the image.
    ///
    /// # Errors
    /// When it is missing, or is no file.
    pub fn open_file(&self, path: &str) -> Result<Section> {
        let clean = unpack::clean(path.as_bytes()).map_err(|error| super::within(path, error))?;
        let no_file = || refused(format!("{path:?} is no file of its own"));
        match self {
            Source::Directory(root) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let place = Path::new(std::ffi::OsStr::from_bytes(&clean));
                let fd =
                    root.open_without_symlinks(place, flags).doing_on("open a file of the image", || path)?;
                let stat = path::stat(fd.as_fd()).doing("look at a file of the image")?;
                if path::file_type(&stat) != FileType::RegularFile {
                    return Err(no_file());
                }
                let left = u64::try_from(stat.st_size).unwrap_or(0);
                Ok(Section { file: File::from(fd), at: 0, left })
            }
            Source::Archive(file, members) => match members.get(&clean) {
                Some(Member::File(at, left)) => {
                    let file = file.try_clone().doing("copy a file descriptor")?;
                    Ok(Section { file, at: *at, left: *left })
                }
                Some(Member::Other) => Err(no_file()),
                None => Err(refused(format!("it lacks the file {path:?}"))),
            },
        }
    }

    /// A document of the image, which is not large.
    ///
    /// # Errors
    /// As [`Source::open_file`]; when it is too large.
    pub fn document(&self, path: &str) -> Result<Vec<u8>> {
        let mut section = self.open_file(path)?;
        if section.left > MOST_DOCUMENT {
            return Err(refused(format!("{path:?} is larger than {MOST_DOCUMENT} bytes")));
        }
        let mut text = Vec::new();
        section.read_to_end(&mut text).doing_on("read", || path)?;
        Ok(text)
    }
}

/// A part of a file.
#[derive(Debug)]
pub struct Section {
    file: File,
    at: u64,
    /// Bytes that are left of it.
    pub left: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}
