//! One layer in one pass: read, hash, decode, hash again, unpack.
//!
//! A thread reads the blob, hashes it, keeps a copy and decodes it; the caller's thread hashes
//! what comes out and writes the files. Nothing counts before both digests were compared.

use super::digest::{Digest, Hasher};
use super::tar::{Entry, Reader, Stream};
use super::{refused, within};
use crate::error::{Context as _, Error, Result};
use crate::sys;
use nix::errno::Errno;
use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};

/// The size of the pieces in which a layer is passed on.
const PIECE: usize = 128 * 1024;

/// Pieces on the way at once.
const PIECES: usize = 8;

/// The largest window of zstd that is taken, as a power of two: 128 MiB, zstd's own `--long`.
const ZSTD_WINDOW: u32 = 27;

/// What an image may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one layer, decoded.
    pub layer: u64,
    /// How many times its own size a blob may become once it is above [`Limits::ratio_from`].
    pub ratio: u64,
    /// From which decoded size on the ratio counts: a few zeros compress well.
    pub ratio_from: u64,
    /// Entries of one layer.
    pub entries: u64,
    /// Layers of one image: what overlayfs stacks.
    pub layers: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { layer: 64 << 30, ratio: 200, ratio_from: 1 << 30, entries: 4_000_000, layers: 500 }
    }
}

/// What a layer must turn out to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// The blob's digest and size, where the manifest says so.
    pub blob: Option<(Digest, u64)>,
    /// The digest of the plain archive.
    pub diff: Digest,
}

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy)]
pub struct Passed {
    /// The blob's digest.
    pub blob: Digest,
    /// The blob's size.
    pub size: u64,
    /// The plain archive's size.
    pub plain: u64,
    /// How it is compressed.
    pub compression: Compression,
}

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, of one or more members.
    Gzip,
    /// zstd, of one or more frames.
    Zstd,
}

impl Compression {
    /// Tells by the first bytes (4 are enough), as Docker does: media types in the wild are often wrong.
    pub fn of(first: &[u8]) -> Compression {
        match first {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Plain,
        }
    }

    /// The media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::Plain => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// What becomes of a layer's entries.
pub trait Sink {
    /// Takes one entry, and of its content as much as it wants.
    ///
    /// # Errors
    /// When the entry is refused, or cannot be written.
    fn take(&mut self, entry: &Entry, content: &mut Reader<Pieces<'_>>) -> Result<()>;

    /// Completes what only the end of the layer can complete.
    ///
    /// # Errors
    /// When it cannot be written.
    fn finish(&mut self) -> Result<()>;
}

/// Where a layer goes while it passes.
#[derive(Default)]
pub struct Outputs<'a, 's> {
    /// The blob as it is.
    pub blob: Option<&'a mut File>,
    /// The plain archive.
    pub plain: Option<&'a mut File>,
    /// The entries.
    pub sink: Option<&'a mut (dyn Sink + 's)>,
    /// How many bytes of the blob were read, for whoever watches.
    pub read: Option<&'a AtomicU64>,
}

/// Passes a layer through.
///
/// # Errors
/// When a digest or size is wrong, a limit is passed, or an entry is refused.
pub fn pass(
    blob: impl Read + Send,
    expected: Expected,
    limits: Limits,
    outputs: Outputs<'_, '_>,
) -> Result<Passed> {
    let (full_in, full_out) = sync_channel(PIECES);
    let (empty_in, empty_out) = channel();
    let Outputs { blob: copy, plain, sink, read } = outputs;
    let failed = Cell::new(None);
    let is_plain = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let decode_all = move || {
            let mut source = Hashing { from: blob, hasher: Hasher::default(), copy, failed: None, read };
            let outcome = decode(&mut source, expected, limits, &full_in, &empty_out, is_plain);
            let (compression, plain) = outcome.map_err(|error| {
                let error = source.failed.map_or(error, not_written);
                let _ = full_in.send(Err(error.clone()));
                error
            })?;
            let size = source.hasher.count;
            Ok(Passed { blob: source.hasher.finish(), size, plain, compression })
        };
        let decoder = std::thread::Builder::new()
            .spawn_scoped(scope, decode_all)
            .doing("start a thread that decodes the layer")?;
        let pieces = Pieces {
            full: full_out,
            empty: empty_in,
            current: Vec::new(),
            at: 0,
            ended: false,
            hasher: Hasher::default(),
            is_plain,
            copy: plain,
            failed: &failed,
        };
        let unpacked = consume(pieces, limits, sink);
        // A consumer that failed has dropped its end of the channel, so the decoder ends too.
        let passed = decoder.join().map_err(|_| refused("the decoder failed"))?;
        if let Some(errno) = failed.get() {
            return Err(not_written(errno));
        }
        // The decoder's own words, not what the archive's reader made of them.
        let passed = passed?;
        let diff = match passed.compression {
            // The same bytes have the same digest.
            Compression::Plain => unpacked.map(|_| passed.blob)?,
            _ => unpacked?,
        };
        check(expected, diff, &passed)?;
        Ok(passed)
    })
}

fn check(expected: Expected, diff: Digest, passed: &Passed) -> Result<()> {
    if let Some((digest, size)) = expected.blob {
        if passed.size != size {
            let cause = format!("its size is {}, and the manifest says {size}", passed.size);
            return Err(refused(cause));
        }
        if passed.blob != digest {
            let cause = format!("its digest is {}, and the manifest says {digest}", passed.blob);
            return Err(refused(cause));
        }
    }
    if diff != expected.diff {
        let cause = format!("unpacked its digest is {diff}, and the configuration says {}", expected.diff);
        return Err(refused(cause));
    }
    Ok(())
}

/// Unpacks, or only reads, all of a layer. Answers its diffID.
fn consume(pieces: Pieces<'_>, limits: Limits, mut sink: Option<&mut (dyn Sink + '_)>) -> Result<Digest> {
    let mut reader = Reader::new(pieces);
    let mut entries = 0;
    while let Some(entry) = reader.next()? {
        entries += 1;
        if entries > limits.entries {
            return Err(refused(format!("it has more than {} entries", limits.entries)));
        }
        if let Some(sink) = sink.as_deref_mut() {
            sink.take(&entry, &mut reader).map_err(|error| super::tar::in_entry(&entry.path, error))?;
        }
    }
    let pieces = reader.drain()?;
    if let Some(sink) = sink {
        sink.finish().map_err(|error| within("directories", error))?;
    }
    Ok(pieces.hasher.finish())
}

type Piece = Result<Vec<u8>, Error>;

/// Decodes a blob into pieces. Answers how it was compressed, and its plain size.
fn decode<R: Read>(
    source: &mut Hashing<'_, R>,
    expected: Expected,
    limits: Limits,
    full: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
    is_plain: &AtomicBool,
) -> Result<(Compression, u64)> {
    let mut input = BufReader::with_capacity(PIECE, source);
    let compression = Compression::of(input.fill_buf().doing("read the blob")?);
    is_plain.store(compression == Compression::Plain, Ordering::Relaxed);
    let most_in = expected.blob.map(|(_, size)| size);
    let mut plain = 0_u64;
    {
        let mut decoder: Box<dyn Read + '_> = match compression {
            Compression::Plain => Box::new(&mut input),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(&mut input)),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut input).doing("begin zstd")?;
                decoder.window_log_max(ZSTD_WINDOW).doing("begin zstd")?;
                Box::new(decoder)
            }
        };
        loop {
            let mut piece = empty.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let length = fill(&mut *decoder, &mut piece)?;
            if length == 0 {
                break;
            }
            plain += length as u64;
            check_size(plain, most_in, limits)?;
            piece.truncate(length);
            if full.send(Ok(piece)).is_err() {
                // The other side has failed, and says why.
                return Ok((compression, plain));
            }
        }
    }
    if !input.fill_buf().doing("read the blob")?.is_empty() {
        return Err(refused("there is data after the end of the compressed layer"));
    }
    Ok((compression, plain))
}

fn check_size(plain: u64, blob: Option<u64>, limits: Limits) -> Result<()> {
    if plain > limits.layer {
        return Err(refused(format!("it unpacks to more than the limit of {} bytes", limits.layer)));
    }
    match blob {
        Some(blob) if plain > limits.ratio_from && plain / limits.ratio > blob => {
            Err(refused(format!("it unpacks to more than {} times its own size", limits.ratio)))
        }
        _ => Ok(()),
    }
}

/// Fills a buffer as far as the stream goes.
fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error().is_some() => return Err(error).doing("read the blob"),
            Err(error) => return Err(refused(format!("the layer cannot be decoded: {error}"))),
        }
    }
    Ok(length)
}

/// An error of writing a copy, which must not be taken for one of reading.
fn not_written(errno: Errno) -> Error {
    Error::system("write the layer into the image store", errno)
}

/// A blob that is hashed and copied while it is read.
struct Hashing<'a, R> {
    from: R,
    hasher: Hasher,
    copy: Option<&'a mut File>,
    /// Why the copy could not be written.
    failed: Option<Errno>,
    read: Option<&'a AtomicU64>,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..length])
                .inspect_err(|error| self.failed = Some(sys::io_errno(error)))?;
        }
        if let Some(read) = self.read {
            read.fetch_add(length as u64, Ordering::Relaxed);
        }
        Ok(length)
    }
}

/// The decoded layer as a stream, hashed as it arrives.
#[derive(Debug)]
pub struct Pieces<'a> {
    full: Receiver<Piece>,
    empty: std::sync::mpsc::Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
    hasher: Hasher,
    is_plain: &'a AtomicBool,
    copy: Option<&'a mut File>,
    /// Why the copy could not be written.
    failed: &'a Cell<Option<Errno>>,
}

impl BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            if used.capacity() > 0 {
                let _ = self.empty.send(used);
            }
            self.at = 0;
            match self.full.recv() {
                Ok(Ok(piece)) => self.current = piece,
                Ok(Err(error)) => {
                    self.ended = true;
                    let words = error.cause.clone().unwrap_or_else(|| error.to_string());
                    return Err(io::Error::other(words));
                }
                Err(_) => self.ended = true,
            }
            // What is not compressed is hashed as a blob already. The channel orders this after the store.
            if !self.is_plain.load(Ordering::Relaxed) {
                self.hasher.update(&self.current);
            }
            if let Some(copy) = &mut self.copy {
                copy.write_all(&self.current)
                    .inspect_err(|error| self.failed.set(Some(sys::io_errno(error))))?;
            }
        }
        Ok(&self.current[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let have = self.fill_buf()?;
        let length = have.len().min(buffer.len());
        buffer[..length].copy_from_slice(&have[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl Stream for Pieces<'_> {}
