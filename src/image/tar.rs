//! A reader of tar archives: ustar, GNU's long names, and PAX.
//!
//! It takes what Docker, BuildKit, podman, Go's archive/tar, GNU tar and bsdtar write, and refuses
//! what two readers could understand in two ways.

use super::refused;
use crate::error::{Context as _, Error, Result};
use std::io::{BufRead, Read as _};

const BLOCK: usize = 512;

/// The most that one extended header or long name may have.
const MOST_EXTENDED: u64 = 1024 * 1024;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file; its content follows.
    File,
    /// Another name for an earlier entry.
    HardLink,
    /// A symlink.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, as it stands.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// The length of a file's content.
    pub size: u64,
    /// The target of a link.
    pub link: Vec<u8>,
    /// A device's numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extended headers say about the entry that follows them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stream that may know a faster way forward than reading.
pub trait Stream: BufRead {
    /// Passes over some bytes.
    ///
    /// # Errors
    /// read(2)'s; UnexpectedEof.
    fn pass(&mut self, mut count: u64) -> std::io::Result<()> {
        while count > 0 {
            let have = self.fill_buf()?.len();
            if have == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let step = usize::try_from(count).unwrap_or(usize::MAX).min(have);
            self.consume(step);
            count -= step as u64;
        }
        Ok(())
    }
}

impl Stream for &[u8] {}

impl Stream for std::io::BufReader<std::fs::File> {
    fn pass(&mut self, count: u64) -> std::io::Result<()> {
        self.seek_relative(i64::try_from(count).map_err(std::io::Error::other)?)
    }
}

/// Reads an archive from its beginning to its end.
#[derive(Debug)]
pub struct Reader<R> {
    stream: R,
    /// Bytes of the current entry's content that were not taken yet.
    left: u64,
    /// Bytes after it, up to the next block.
    padding: u64,
    /// Bytes passed so far, content included.
    position: u64,
}

impl<R: Stream> Reader<R> {
    /// A reader at the beginning of an archive.
    pub fn new(stream: R) -> Reader<R> {
        Reader { stream, left: 0, padding: 0, position: 0 }
    }

    /// Where the content of the entry that [`Reader::next`] answered begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` at the end of the archive.
    ///
    /// # Errors
    /// For what is no tar, is cut off, or is of a kind that no layer has.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry>> {
        self.finish_entry()?;
        let mut extended = Extended::default();
        let mut pending = 0;
        loop {
            let Some(block) = self.header()? else {
                if pending > 0 {
                    return Err(refused("the archive ends after an extended header"));
                }
                return Ok(None);
            };
            pending += 1;
            if pending > 8 {
                return Err(refused("more than 8 extended headers before one entry"));
            }
            match block[156] {
                b'x' => {
                    let records = self.extended_content(&block)?;
                    parse_pax(&records, &mut extended)?;
                }
                // Docker and containerd pass over global headers too: git archive's comment.
                b'g' => drop(self.extended_content(&block)?),
                b'L' => extended.path = Some(until_nul(&self.extended_content(&block)?).to_vec()),
                b'K' => extended.link = Some(until_nul(&self.extended_content(&block)?).to_vec()),
                _ => {
                    let entry = entry(&block, extended)?;
                    self.left = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next piece of the current entry's content; empty at its end. Says with
    /// [`Reader::consume`] how much of it was used.
    ///
    /// # Errors
    /// When the stream ends or fails first.
    pub fn content(&mut self) -> Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let have = self.stream.fill_buf().doing("read the archive")?;
        if have.is_empty() {
            return Err(cut_off());
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(have.len());
        Ok(&have[..most])
    }

    /// Marks content as used.
    pub fn consume(&mut self, count: usize) {
        self.stream.consume(count);
        self.left -= count as u64;
        self.position += count as u64;
    }

    /// Reads to the end of the stream, which may have nothing but zeros.
    ///
    /// # Errors
    /// For data after the archive's end.
    pub fn drain(mut self) -> Result<R> {
        loop {
            let have = self.stream.fill_buf().doing("read the archive")?;
            if have.is_empty() {
                return Ok(self.stream);
            }
            if have.iter().any(|byte| *byte != 0) {
                return Err(refused("there is data after the end of the archive"));
            }
            let length = have.len();
            self.stream.consume(length);
        }
    }

    fn finish_entry(&mut self) -> Result<()> {
        let rest = self.left + self.padding;
        if rest > 0 {
            self.stream.pass(rest).map_err(read_error)?;
            self.position += rest;
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header; `None` at a block of zeros or where the stream ends between entries.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        if self.stream.fill_buf().doing("read the archive")?.is_empty() {
            return Ok(None);
        }
        self.stream.read_exact(&mut block).map_err(read_error)?;
        self.position += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block[..148].iter().chain(&block[156..]).map(|byte| u64::from(*byte)).sum();
        if octal(&block[148..156]) != Some(sum + 8 * u64::from(b' ')) {
            return Err(refused("this is no tar archive: the checksum of a header is wrong"));
        }
        Ok(Some(block))
    }

    fn extended_content(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>> {
        let size = number(&block[124..136], "size")?;
        if size > MOST_EXTENDED {
            return Err(refused(format!("an extended header of {size} bytes")));
        }
        let mut content = Vec::new();
        self.stream.by_ref().take(size).read_to_end(&mut content).map_err(read_error)?;
        if content.len() as u64 != size {
            return Err(cut_off());
        }
        self.stream.pass(padding(size)).map_err(read_error)?;
        self.position += size + padding(size);
        Ok(content)
    }
}

fn cut_off() -> Error {
    refused("the archive is cut off")
}

fn read_error(error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => cut_off(),
        _ => Err::<(), _>(error).doing("read the archive").err().unwrap_or_else(cut_off),
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// The entry that a header and the extended headers before it describe.
fn entry(block: &[u8; BLOCK], extended: Extended) -> Result<Entry> {
    let path = extended.path.unwrap_or_else(|| plain_path(block));
    let size = match extended.size {
        Some(size) => size,
        None => number(&block[124..136], "size")?,
    };
    let kind = match block[156] {
        // V7 knew no directories: a slash at the end makes one.
        0 | b'0' if path.ends_with(b"/") && size == 0 => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(in_entry(&path, refused("sparse files are not taken"))),
        other => {
            let cause = format!("an entry of unknown type {:?}", char::from(other));
            return Err(in_entry(&path, refused(cause)));
        }
    };
    let small = |value: u64, name: &str| {
        u32::try_from(value).map_err(|_| refused(format!("its {name} {value} is beyond 32 bits")))
    };
    let fields = || -> Result<Entry> {
        let uid = extended.uid.map_or_else(|| small(number(&block[108..116], "uid")?, "uid"), Ok)?;
        let gid = extended.gid.map_or_else(|| small(number(&block[116..124], "gid")?, "gid"), Ok)?;
        if uid == u32::MAX || gid == u32::MAX {
            return Err(refused("its owner is the id that means none"));
        }
        let mtime = match extended.mtime {
            Some(mtime) => mtime,
            None => (signed(number(&block[136..148], "mtime")?)?, 0),
        };
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let device = match is_device {
            true => (
                small(number(&block[329..337], "device")?, "device")?,
                small(number(&block[337..345], "device")?, "device")?,
            ),
            false => (0, 0),
        };
        Ok(Entry {
            path: Vec::new(),
            kind,
            mode: small(number(&block[100..108], "mode")? & 0o7777, "mode")?,
            uid,
            gid,
            mtime,
            // Only files have content, whatever the header of another kind says (Go's reading).
            size: if kind == Kind::File { size } else { 0 },
            link: extended.link.unwrap_or_else(|| until_nul(&block[157..257]).to_vec()),
            device,
            xattrs: extended.xattrs,
        })
    };
    match fields() {
        Ok(entry) => Ok(Entry { path, ..entry }),
        Err(error) => Err(in_entry(&path, error)),
    }
}

/// An error with the entry that it is about.
pub fn in_entry(path: &[u8], error: Error) -> Error {
    let shown = String::from_utf8_lossy(path);
    let shown: String = shown.chars().take(200).collect();
    super::within(&format!("entry {shown:?}"), error)
}

fn plain_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    let prefix = until_nul(&block[345..500]);
    // GNU's own format has other things where ustar has the prefix.
    if &block[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(|_| refused("its mtime is beyond 63 bits"))
}

/// A number: octal digits, or base 256 with the highest bit set.
fn number(field: &[u8], name: &str) -> Result<u64> {
    let first = field[0];
    if first & 0x80 == 0 {
        return octal(field).ok_or_else(|| refused(format!("its {name} is no number")));
    }
    if first & 0x40 != 0 {
        return Err(refused(format!("its {name} is negative")));
    }
    let mut value = u64::from(first & 0x3f);
    for byte in &field[1..] {
        if value >> 56 != 0 {
            return Err(refused(format!("its {name} is beyond 64 bits")));
        }
        value = value << 8 | u64::from(*byte);
    }
    Ok(value)
}

/// Octal digits between blanks and NULs; nothing is 0.
fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| blank(byte));
    let mut value = 0_u64;
    let mut ended = false;
    for byte in digits {
        match byte {
            b'0'..=b'7' if !ended => {
                value = value.checked_mul(8)?.checked_add(u64::from(byte - b'0'))?;
            }
            b' ' | 0 => ended = true,
            _ => return None,
        }
    }
    Some(value)
}

/// PAX records: `LENGTH KEY=VALUE\n`.
fn parse_pax(mut rest: &[u8], into: &mut Extended) -> Result<()> {
    while !rest.is_empty() {
        let wrong = || refused("a PAX record is malformed");
        let space = rest.iter().take(20).position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize =
            std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        if length > rest.len() || length < space + 3 || rest[length - 1] != b'\n' {
            return Err(wrong());
        }
        let record = &rest[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        take_record(&record[..equals], &record[equals + 1..], into)?;
        rest = &rest[length..];
    }
    Ok(())
}

fn take_record(key: &[u8], value: &[u8], into: &mut Extended) -> Result<()> {
    let text = || std::str::from_utf8(value).ok();
    let wrong = || {
        let key = String::from_utf8_lossy(key).into_owned();
        refused(format!("the PAX record {key} has the value {:?}", String::from_utf8_lossy(value)))
    };
    let id = || text().and_then(|text| text.parse::<u32>().ok()).ok_or_else(wrong);
    match key {
        b"path" | b"linkpath" if value.contains(&0) => return Err(wrong()),
        b"path" => into.path = Some(value.to_vec()),
        b"linkpath" => into.link = Some(value.to_vec()),
        b"size" => into.size = Some(text().and_then(|text| text.parse().ok()).ok_or_else(wrong)?),
        b"uid" => into.uid = Some(id()?),
        b"gid" => into.gid = Some(id()?),
        b"mtime" => into.mtime = Some(text().and_then(pax_time).ok_or_else(wrong)?),
        _ if key.starts_with(b"GNU.sparse.") => return Err(refused("sparse files are not taken")),
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.is_empty() || name.len() > 255 || name.contains(&0) || value.len() > 65536 {
                    return Err(refused("an extended attribute that Linux cannot have"));
                }
                into.xattrs.retain(|(other, _)| other != name);
                into.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// `SECONDS[.FRACTION]`, not negative.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if seconds.is_empty() || !digits(seconds) || !digits(fraction) {
        return None;
    }
    let nanoseconds: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
}
