//! Writes a tree as EROFS metadata (Documentation/filesystems/erofs.rst, fs/erofs/erofs_fs.h).
//!
//! ```text
//! 1024  superblock, 128 bytes
//! 1152  device table: one slot, the archive
//! 1280  inodes: 64 bytes each, then its extended attributes, then, for a file with content, one
//!       chunk index of 8 bytes, which points into the archive
//! …     blocks of directories and symlinks
//! ```
//!
//! Blocks are 512 bytes, as in a tar: so every file begins with a block.

use super::tree::{Node, NodeKind, Tree};
use std::io::{self, BufWriter, Write};

const BLOCK_BITS: u32 = 9;
const BLOCK: u64 = 1 << BLOCK_BITS;
const MAGIC: u32 = 0xe0f5_e1e2;
const HAS_MTIME: u32 = 2;
const CHUNKED_FILE: u32 = 4;
const DEVICE_TABLE: u32 = 8;
const SUPERBLOCK: u64 = 1024;
const DEVICE_SLOT: u64 = SUPERBLOCK + 128;
const INODES: u64 = DEVICE_SLOT + 128;
/// The alignment of inodes, and the unit in which they are numbered.
const SLOT: u64 = 32;
/// The index of the archive in the device table, counted from 1.
const ARCHIVE: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const CHUNK_BASED: u16 = 4;
const EXTENDED: u16 = 1;
const CHUNK_INDEXES: u16 = 0x20;
const NO_BLOCK: u32 = u32::MAX;

/// Where a node lies.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// The inode, in bytes.
    inode: u64,
    /// The first block of a directory or symlink.
    block: u64,
    /// The length of a directory or symlink, in bytes.
    size: u64,
    /// Links to a directory: `.`, its name, and `..` in each below it.
    links: u32,
}

/// Writes the metadata of a tree whose files are in an archive of `archive` bytes.
///
/// # Errors
/// write(2)'s; EFBIG when a number does not fit.
pub fn write(tree: &Tree, archive: u64, uuid: [u8; 16], to: impl Write) -> io::Result<()> {
    let parents = parents(tree);
    let (places, inodes_end, end) = lay_out(tree);
    let mut to = Counting { to: BufWriter::new(to), count: 0 };
    to.pad(SUPERBLOCK)?;
    let blocks = small(end / BLOCK)?;
    let live = tree.nodes.iter().filter(|node| node.links > 0).count() as u64;
    superblock(&mut to, live, blocks, uuid)?;
    to.pad(DEVICE_SLOT + 64)?;
    to.u32(small(archive.div_ceil(BLOCK))?)?;
    for (number, (node, place)) in tree.nodes.iter().zip(&places).enumerate() {
        if node.links > 0 {
            to.pad(place.inode)?;
            inode(&mut to, node, place, small(number as u64)?)?;
        }
    }
    to.pad(inodes_end)?;
    for (number, (node, place)) in tree.nodes.iter().zip(&places).enumerate() {
        match &node.kind {
            _ if node.links == 0 => {}
            NodeKind::Directory(_) => {
                to.pad(place.block * BLOCK)?;
                directory(&mut to, tree, &places, number, parents[number])?;
            }
            NodeKind::Symlink(target) => {
                to.pad(place.block * BLOCK)?;
                to.bytes(target)?;
            }
            _ => {}
        }
    }
    to.pad(end)?;
    to.to.flush()
}

fn parents(tree: &Tree) -> Vec<usize> {
    let mut parents = vec![0; tree.nodes.len()];
    for (number, node) in tree.nodes.iter().enumerate() {
        if let NodeKind::Directory(names) = &node.kind {
            for child in names.values() {
                parents[*child] = number;
            }
        }
    }
    parents
}

/// Gives everything its place. Answers also where the inodes end, and where everything does.
fn lay_out(tree: &Tree) -> (Vec<Place>, u64, u64) {
    let mut places = vec![Place::default(); tree.nodes.len()];
    let mut at = INODES;
    for (node, place) in tree.nodes.iter().zip(&mut places).filter(|(node, _)| node.links > 0) {
        place.inode = at;
        let index = if has_content(node) { 8 } else { 0 };
        at = (at + 64 + xattrs_size(node)).next_multiple_of(8) + index;
        at = at.next_multiple_of(SLOT);
    }
    let inodes_end = at.next_multiple_of(BLOCK);
    let mut block = inodes_end / BLOCK;
    for (node, place) in tree.nodes.iter().zip(&mut places).filter(|(node, _)| node.links > 0) {
        place.block = block;
        place.links = node.links;
        match &node.kind {
            NodeKind::Directory(names) => {
                let names = names.iter().map(|(name, child)| (name.as_slice(), *child));
                let sizes = packed(with_dots(names, 0, 0));
                let last = sizes.last().map_or(0, |block| used(block));
                place.size = (sizes.len() as u64 - 1) * BLOCK + last;
                block += sizes.len() as u64;
            }
            NodeKind::Symlink(target) => {
                place.size = target.len() as u64;
                block += place.size.div_ceil(BLOCK);
            }
            _ => {}
        }
    }
    for (number, node) in tree.nodes.iter().enumerate() {
        if let NodeKind::Directory(names) = &node.kind {
            let is_directory = |child: &&usize| matches!(tree.nodes[**child].kind, NodeKind::Directory(_));
            places[number].links =
                u32::try_from(names.values().filter(is_directory).count() + 2).unwrap_or(u32::MAX);
        }
    }
    (places, inodes_end, block * BLOCK)
}

fn has_content(node: &Node) -> bool {
    matches!(node.kind, NodeKind::File { size: 1.., .. })
}

fn superblock(to: &mut Counting<impl Write>, inodes: u64, blocks: u32, uuid: [u8; 16]) -> io::Result<()> {
    to.u32(MAGIC)?;
    to.u32(0)?; // no checksum
    to.u32(HAS_MTIME)?;
    to.bytes(&[u8::try_from(BLOCK_BITS).unwrap_or(0), 0])?;
    to.u16(u16::try_from(INODES / SLOT).unwrap_or(0))?; // the root is the first inode
    to.u64(inodes)?;
    to.u64(0)?; // built in 1970: the same layer makes the same bytes
    to.u32(0)?;
    to.u32(blocks)?;
    to.u32(0)?; // inodes are counted from the image's beginning
    to.u32(0)?; // and no attributes are shared
    to.bytes(&uuid)?;
    to.bytes(&[0; 16])?; // no volume name
    to.u32(CHUNKED_FILE | DEVICE_TABLE)?;
    to.u16(0)?;
    to.u16(ARCHIVE)?; // the number of extra devices
    to.u16(u16::try_from(DEVICE_SLOT / 128).unwrap_or(0))
}

fn inode(to: &mut Counting<impl Write>, node: &Node, place: &Place, number: u32) -> io::Result<()> {
    let with_content = has_content(node);
    let (kind, size) = match &node.kind {
        NodeKind::Directory(_) => (0o040_000, place.size),
        NodeKind::File { size, .. } => (0o100_000, *size),
        NodeKind::Symlink(_) => (0o120_000, place.size),
        NodeKind::CharDevice(..) => (0o020_000, 0),
        NodeKind::BlockDevice(..) => (0o060_000, 0),
        NodeKind::Fifo => (0o010_000, 0),
    };
    let mode = match &node.kind {
        NodeKind::Symlink(_) => 0o777,
        _ => node.mode & 0o7777,
    };
    let chunk_bits = size.next_power_of_two().trailing_zeros().max(BLOCK_BITS) - BLOCK_BITS;
    let chunk_bits = u16::try_from(chunk_bits).unwrap_or(u16::MAX);
    if chunk_bits > 0x1f {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let special = match &node.kind {
        NodeKind::File { .. } if with_content => u32::from(chunk_bits | CHUNK_INDEXES),
        NodeKind::File { .. } | NodeKind::Fifo => NO_BLOCK,
        NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) => {
            // The kernel's new_encode_dev().
            (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
        }
        _ => small(place.block)?,
    };
    let xattrs = xattrs_size(node);
    let xattr_count = if xattrs == 0 { 0 } else { (xattrs - 12) / 4 + 1 };
    let layout = if with_content { CHUNK_BASED } else { FLAT_PLAIN };
    to.u16(EXTENDED | layout << 1)?;
    to.u16(u16::try_from(xattr_count).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?)?;
    to.u16(kind | u16::try_from(mode).unwrap_or(0))?;
    to.u16(0)?;
    to.u64(size)?;
    to.u32(special)?;
    to.u32(number + 1)?;
    to.u32(node.uid)?;
    to.u32(node.gid)?;
    to.bytes(&node.mtime.0.to_le_bytes())?;
    to.u32(node.mtime.1)?;
    to.u32(place.links)?;
    to.bytes(&[0; 16])?;
    if xattrs > 0 {
        to.bytes(&[0; 12])?;
        for (key, value) in &node.xattrs {
            xattr(to, key, value)?;
        }
    }
    if let (true, NodeKind::File { at, .. }) = (with_content, &node.kind) {
        to.pad(to.count.next_multiple_of(8))?;
        to.u16(0)?;
        to.u16(ARCHIVE)?;
        to.u32(small(at / BLOCK)?)?;
    }
    Ok(())
}

/// The kernel's number of a prefix, and the rest of the name; `None` for what EROFS cannot have.
fn prefix(key: &[u8]) -> Option<(u8, &[u8])> {
    let rest = |prefix: &[u8]| key.strip_prefix(prefix).filter(|rest| !rest.is_empty());
    match key {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => rest(b"user.")
            .map(|rest| (1, rest))
            .or_else(|| rest(b"trusted.").map(|rest| (4, rest)))
            .or_else(|| rest(b"security.").map(|rest| (6, rest))),
    }
}

fn xattr_size(key: &[u8], value: &[u8]) -> u64 {
    prefix(key).map_or(0, |(_, rest)| (4 + rest.len() + value.len()).next_multiple_of(4) as u64)
}

fn xattrs_size(node: &Node) -> u64 {
    match node.xattrs.iter().map(|(key, value)| xattr_size(key, value)).sum() {
        0 => 0,
        sum => 12 + sum,
    }
}

fn xattr(to: &mut Counting<impl Write>, key: &[u8], value: &[u8]) -> io::Result<()> {
    // As with directories: what the filesystem cannot have is left out.
    let Some((index, rest)) = prefix(key) else { return Ok(()) };
    let too_long = |_| io::Error::from(io::ErrorKind::FileTooLarge);
    to.bytes(&[u8::try_from(rest.len()).map_err(too_long)?, index])?;
    to.u16(u16::try_from(value.len()).map_err(too_long)?)?;
    to.bytes(rest)?;
    to.bytes(value)?;
    to.pad(to.count.next_multiple_of(4))
}

type Dirent<'a> = (&'a [u8], usize);

/// A directory's names with `.` and `..`, in the order of their bytes: the kernel searches it.
fn with_dots<'a>(names: impl Iterator<Item = Dirent<'a>>, own: usize, parent: usize) -> Vec<Dirent<'a>> {
    let mut all: Vec<Dirent<'a>> = names.collect();
    for dots in [(&b".."[..], parent), (&b"."[..], own)] {
        let at = all.partition_point(|(name, _)| *name < dots.0);
        all.insert(at, dots);
    }
    all
}

/// As many names as fit, block by block.
fn packed(all: Vec<Dirent<'_>>) -> Vec<Vec<Dirent<'_>>> {
    let mut blocks: Vec<Vec<Dirent<'_>>> = vec![Vec::new()];
    let mut size = 0;
    for dirent in all {
        let more = 12 + dirent.0.len() as u64;
        if size + more > BLOCK {
            blocks.push(Vec::new());
            size = 0;
        }
        size += more;
        if let Some(last) = blocks.last_mut() {
            last.push(dirent);
        }
    }
    blocks
}

fn used(block: &[Dirent<'_>]) -> u64 {
    block.iter().map(|(name, _)| 12 + name.len() as u64).sum()
}

fn directory(
    to: &mut Counting<impl Write>,
    tree: &Tree,
    places: &[Place],
    number: usize,
    parent: usize,
) -> io::Result<()> {
    let NodeKind::Directory(names) = &tree.nodes[number].kind else { return Ok(()) };
    let names = names.iter().map(|(name, child)| (name.as_slice(), *child));
    for block in packed(with_dots(names, number, parent)) {
        to.pad(to.count.next_multiple_of(BLOCK))?;
        let mut offset = 12 * block.len();
        for (name, child) in &block {
            to.u64(places[*child].inode / SLOT)?;
            to.u16(u16::try_from(offset).map_err(io::Error::other)?)?;
            to.bytes(&[dirent_type(&tree.nodes[*child].kind), 0])?;
            offset += name.len();
        }
        for (name, _) in &block {
            to.bytes(name)?;
        }
    }
    Ok(())
}

fn dirent_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::File { .. } => 1,
        NodeKind::Directory(_) => 2,
        NodeKind::CharDevice(..) => 3,
        NodeKind::BlockDevice(..) => 4,
        NodeKind::Fifo => 5,
        NodeKind::Symlink(_) => 7,
    }
}

fn small(value: u64) -> io::Result<u32> {
    u32::try_from(value).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

/// A writer that knows where it is.
struct Counting<W> {
    to: W,
    count: u64,
}

impl<W: Write> Counting<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    fn u16(&mut self, value: u16) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn u32(&mut self, value: u32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    /// Zeros up to here.
    fn pad(&mut self, to: u64) -> io::Result<()> {
        let missing = to.saturating_sub(self.count);
        self.count += missing;
        io::copy(&mut io::Read::take(io::repeat(0), missing), &mut self.to).map(drop)
    }
}
