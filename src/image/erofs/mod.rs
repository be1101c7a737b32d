//! A layer as an EROFS in index mode: its plain archive stays one file, `layer.tar`, and a small
//! image of metadata, `layer.erofs`, says where in it every file begins.
//!
//! The kernel mounts the two together without a loop device (Linux 6.12). Nothing is unpacked:
//! no inode is made, and `rm` of a layer is two unlinks. The tree is built while the archive
//! passes ([`tree`]), and written at its end ([`write`]). What a layer borrows from the layers
//! below cannot be pointed at: such a layer is unpacked into a directory instead.

mod tree;
mod write;

#[cfg(test)]
mod tests;

pub use tree::{Node, NodeKind, Tree};
pub use write::write;

use super::layer::{Pieces, Sink};
use super::tar::{Entry, Reader};
use crate::error::{Context as _, Result};
use crate::sys::path::Root;
use std::fs::File;
use std::path::Path;

/// Builds the tree of a layer while it passes.
#[derive(Debug)]
pub struct Indexer {
    /// What is there so far.
    pub tree: Tree,
}

impl Sink for Indexer {
    fn take(&mut self, entry: &Entry, content: &mut Reader<Pieces<'_>>) -> Result<()> {
        self.tree.take(entry, content.position())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Whether this process can mount such a layer: it tries with an empty one in a directory of its
/// own, since a user namespace may not, and older kernels want a loop device.
///
/// # Errors
/// When the directory cannot be written to.
pub fn is_possible(directory: &Path) -> Result<bool> {
    let doing = "try whether EROFS can be mounted";
    let meta = directory.join("probe.erofs");
    let archive = crate::rootfs::erofs::archive_of(&meta);
    std::fs::write(&archive, [0; 1024]).doing(doing)?;
    let mut file = File::create(&meta).doing(doing)?;
    write(&Tree::new(false), 1024, [0; 16], &mut file).doing(doing)?;
    drop(file);
    let possible = crate::rootfs::erofs::mount(&meta).map(Root::from).is_ok();
    for path in [meta, archive] {
        std::fs::remove_file(path).doing(doing)?;
    }
    Ok(possible)
}
