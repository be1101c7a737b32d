//! The tree of a layer in memory, by the same rules as [`crate::image::unpack`].

use crate::error::Result;
use crate::image::refused;
use crate::image::tar::{Entry, Kind};
use crate::image::unpack::{Whiteout, check_xattrs, clean, missing_target, split, whiteout_of};
use std::collections::BTreeMap;

/// As many as the kernel follows on one path.
const MOST_SYMLINKS: usize = 40;
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// A file of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// How many names it has; 0 when none is left.
    pub links: u32,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Names, and the numbers of the nodes that they lead to.
    Directory(BTreeMap<Vec<u8>, usize>),
    /// Where its content begins in the archive, and its length.
    File {
        /// In bytes; a multiple of 512.
        at: u64,
        /// In bytes.
        size: u64,
    },
    /// A target.
    Symlink(Vec<u8>),
    /// Its numbers.
    CharDevice(u32, u32),
    /// Its numbers.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// What is in the way of following a path.
enum Lost {
    Missing,
    NotDirectory,
    Circle,
}

/// A layer.
#[derive(Debug)]
pub struct Tree {
    /// Every node that there ever was; the root is the first.
    pub nodes: Vec<Node>,
    has_lowers: bool,
    used_lower: bool,
}

impl Tree {
    /// An empty layer, with layers below it or none.
    pub fn new(has_lowers: bool) -> Tree {
        Tree { nodes: vec![directory()], has_lowers, used_lower: false }
    }

    /// Whether the last error was that the layer needs something of the layers below.
    pub fn used_lower(&self) -> bool {
        self.used_lower
    }

    /// Takes an entry whose content begins at `at` in the archive.
    ///
    /// # Errors
    /// When the entry is refused.
    pub fn take(&mut self, entry: &Entry, at: u64) -> Result<()> {
        let path = clean(&entry.path)?;
        check_xattrs(entry)?;
        let Some((above, name)) = split(&path) else {
            if entry.kind != Kind::Directory {
                return Err(refused("the root of a layer must be a directory"));
            }
            self.describe(0, entry);
            return Ok(());
        };
        let parent = self.enter(above)?;
        if let Some(whiteout) = whiteout_of(name)? {
            return self.whiteout(parent, whiteout);
        }
        if matches!(entry.kind, Kind::CharDevice) && entry.device == (0, 0) {
            return Err(refused("a character device 0:0 is overlayfs's own mark"));
        }
        if entry.kind == Kind::HardLink {
            return self.hard_link(entry, &path, parent, name);
        }
        let kind = match entry.kind {
            Kind::Directory => NodeKind::Directory(BTreeMap::new()),
            Kind::Symlink if entry.link.is_empty() || entry.link.len() > 4095 => {
                return Err(refused("a symlink to nothing, or one that is too long"));
            }
            Kind::Symlink => NodeKind::Symlink(entry.link.clone()),
            Kind::CharDevice => NodeKind::CharDevice(entry.device.0, entry.device.1),
            Kind::BlockDevice => NodeKind::BlockDevice(entry.device.0, entry.device.1),
            Kind::Fifo => NodeKind::Fifo,
            Kind::File | Kind::HardLink => NodeKind::File { at, size: entry.size },
        };
        let is_directory = matches!(kind, NodeKind::Directory(_));
        let earlier = self.names(parent).and_then(|names| names.get(name).copied());
        let node = match earlier {
            Some(earlier) if is_directory && self.names(earlier).is_some() => earlier,
            _ => {
                let was_whiteout = earlier.is_some_and(|earlier| self.is_whiteout(earlier));
                self.remove(parent, name);
                let node = self.add(parent, name, kind);
                if was_whiteout && is_directory {
                    self.make_opaque(node);
                }
                node
            }
        };
        self.describe(node, entry);
        Ok(())
    }

    fn names(&self, node: usize) -> Option<&BTreeMap<Vec<u8>, usize>> {
        match &self.nodes[node].kind {
            NodeKind::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn name(&mut self, parent: usize, name: &[u8], node: usize) {
        if let NodeKind::Directory(names) = &mut self.nodes[parent].kind {
            names.insert(name.to_vec(), node);
        }
    }

    fn add(&mut self, parent: usize, name: &[u8], kind: NodeKind) -> usize {
        let node = self.nodes.len();
        self.nodes.push(Node { kind, ..directory() });
        self.name(parent, name, node);
        node
    }

    fn describe(&mut self, node: usize, entry: &Entry) {
        let node = &mut self.nodes[node];
        (node.mode, node.uid, node.gid, node.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        for (key, value) in &entry.xattrs {
            node.xattrs.retain(|(other, _)| other != key);
            node.xattrs.push((key.clone(), value.clone()));
        }
    }

    /// Takes a name away, and all below it.
    fn remove(&mut self, parent: usize, name: &[u8]) {
        let NodeKind::Directory(names) = &mut self.nodes[parent].kind else { return };
        let mut todo: Vec<usize> = names.remove(name).into_iter().collect();
        while let Some(node) = todo.pop() {
            self.nodes[node].links -= 1;
            if let NodeKind::Directory(names) = &mut self.nodes[node].kind {
                todo.extend(std::mem::take(names).into_values());
            }
        }
    }

    fn is_whiteout(&self, node: usize) -> bool {
        self.nodes[node].kind == NodeKind::CharDevice(0, 0)
    }

    fn make_opaque(&mut self, node: usize) {
        let xattrs = &mut self.nodes[node].xattrs;
        xattrs.retain(|(key, _)| key != OPAQUE);
        xattrs.push((OPAQUE.to_vec(), b"y".to_vec()));
    }

    /// The directory of an entry, made when it is missing.
    fn enter(&mut self, path: &[u8]) -> Result<usize> {
        let found = match self.follow(path) {
            Err(Lost::Missing) => {
                self.make_parents(path)?;
                self.follow(path)
            }
            found => found,
        };
        found.map_err(|lost| {
            refused(match lost {
                Lost::NotDirectory => "what should be its directory is a file",
                Lost::Missing => "its directory is a symlink that leads nowhere inside the layer",
                Lost::Circle => "its directory is a symlink in a circle",
            })
        })
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<()> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| end);
        for end in ends.chain([path.len()]) {
            let part = &path[..end];
            match self.follow(part) {
                Err(Lost::Missing) => {}
                Ok(_) => continue,
                Err(_) => return Ok(()),
            }
            let (above, name) = split(part).unwrap_or_default();
            let Ok(above) = self.follow(above) else { return Ok(()) };
            let earlier = self.names(above).and_then(|names| names.get(name).copied());
            let was_whiteout = earlier.is_some_and(|earlier| self.is_whiteout(earlier));
            if earlier.is_some() && !was_whiteout {
                // A symlink to nothing: the caller says so.
                return Ok(());
            }
            if !was_whiteout {
                self.need_lower()?;
            }
            self.remove(above, name);
            let made = self.add(above, name, NodeKind::Directory(BTreeMap::new()));
            if was_whiteout {
                self.make_opaque(made);
            }
        }
        Ok(())
    }

    fn need_lower(&mut self) -> Result<()> {
        self.used_lower |= self.has_lowers;
        match self.has_lowers {
            true => Err(refused("it needs the layers below")),
            false => Ok(()),
        }
    }

    /// The directory that a path leads to inside the layer, its symlinks followed as openat2(2)
    /// does with RESOLVE_IN_ROOT.
    fn follow(&self, path: &[u8]) -> Result<usize, Lost> {
        let mut above = vec![0];
        let mut todo: Vec<&[u8]> = path.rsplit(|byte| *byte == b'/').collect();
        let mut symlinks = 0;
        while let Some(name) = todo.pop() {
            let here = above.last().copied().unwrap_or(0);
            match name {
                b"" | b"." => continue,
                b".." => {
                    if above.len() > 1 {
                        above.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let next = self.names(here).and_then(|names| names.get(name)).copied().ok_or(Lost::Missing)?;
            match &self.nodes[next].kind {
                NodeKind::Directory(_) => above.push(next),
                NodeKind::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > MOST_SYMLINKS {
                        return Err(Lost::Circle);
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    todo.extend(target.rsplit(|byte| *byte == b'/'));
                }
                _ => return Err(Lost::NotDirectory),
            }
        }
        Ok(above.last().copied().unwrap_or(0))
    }

    fn whiteout(&mut self, parent: usize, whiteout: Whiteout<'_>) -> Result<()> {
        let hidden = match whiteout {
            Whiteout::Siblings if parent == 0 => {
                return Err(refused("the root of a layer cannot be opaque"));
            }
            Whiteout::Siblings => {
                self.make_opaque(parent);
                return Ok(());
            }
            Whiteout::Name(hidden) => hidden,
        };
        match self.names(parent).and_then(|names| names.get(hidden).copied()) {
            Some(node) if self.names(node).is_some() => self.make_opaque(node),
            Some(_) => {}
            None => {
                let node = self.add(parent, hidden, NodeKind::CharDevice(0, 0));
                self.nodes[node].mode = 0;
            }
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, path: &[u8], parent: usize, name: &[u8]) -> Result<()> {
        let target = clean(&entry.link).map_err(|error| crate::image::within("link target", error))?;
        if target == path {
            return Err(refused("a hard link to itself"));
        }
        let Some((directory, last)) = split(&target) else {
            return Err(refused("a hard link to the root"));
        };
        let find = |tree: &Tree| {
            let directory = tree.follow(directory).ok()?;
            tree.names(directory)?.get(last).copied()
        };
        let Some(node) = find(self) else {
            self.need_lower()?;
            return Err(refused(missing_target(entry)));
        };
        if self.is_whiteout(node) {
            return Err(refused("a hard link to a whiteout"));
        }
        if self.names(node).is_some() {
            return Err(refused("a hard link to a directory"));
        }
        self.remove(parent, name);
        if self.nodes[node].links == 0 {
            return Err(refused(missing_target(entry)));
        }
        self.nodes[node].links += 1;
        self.name(parent, name, node);
        Ok(())
    }
}

fn directory() -> Node {
    Node {
        kind: NodeKind::Directory(BTreeMap::new()),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
        links: 1,
    }
}
