//! What is kept, what it takes, whether it is right, and what may go.

use super::digest::{Digest, digest_of};
use super::layer::{self, Expected, Limits, Outputs};
use super::refused;
use super::store::{Store, sync};
use crate::error::{Class, Context as _, Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `gc` took away.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collected {
    /// Blobs.
    pub blobs: usize,
    /// Layers.
    pub layers: usize,
    /// Bytes of blobs.
    pub blob_bytes: u64,
}

/// What an image takes on disk.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// The full name.
    pub name: String,
    /// Bytes of its blobs.
    pub blobs: u64,
    /// Bytes that its layers take unpacked.
    pub layers: u64,
    /// Bytes of both that no other image has a part in.
    pub own: u64,
}

/// What images refer to.
struct Marked {
    blobs: BTreeSet<Digest>,
    layers: BTreeSet<Digest>,
}

fn mark(store: &Store, names: &dyn Fn(&str) -> bool) -> Result<Marked> {
    let mut marked = Marked { blobs: BTreeSet::new(), layers: BTreeSet::new() };
    for tag in store.tags()?.iter().filter(|tag| names(&tag.name)) {
        let image = store.image(tag)?;
        marked.blobs.extend([image.digest, image.id()]);
        marked.blobs.extend(image.manifest.layers.iter().map(|layer| layer.digest));
        marked.layers.extend(store.layer_ids(&image.config)?);
    }
    Ok(marked)
}

/// Takes away what no tag leads to, and no bundle in `kept` needs. The store must be locked
/// exclusively.
///
/// # Errors
/// When a tag cannot be followed: then nothing goes.
pub fn collect(store: &Store, kept: &BTreeSet<Digest>) -> Result<Collected> {
    let marked = mark(store, &|_| true)?;
    store.clear_locks();
    let workplace = store.workplace()?;
    let mut collected = Collected::default();
    for (part, wanted) in [("blobs/sha256", &marked.blobs), ("layers", &marked.layers)] {
        let directory = store.root().join(part);
        for entry in std::fs::read_dir(&directory).doing("list the image store")? {
            let entry = entry.doing("list the image store")?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(Digest::from_hex);
            if digest.is_some_and(|digest| wanted.contains(&digest) || kept.contains(&digest)) {
                continue;
            }
            if part == "layers" {
                collected.layers += 1;
            } else {
                collected.blobs += 1;
                collected.blob_bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            }
            // First out of its name, so that nothing half-deleted is ever taken for whole.
            let aside = workplace.path.join(format!("{}-{}", part.len(), name.to_string_lossy()));
            std::fs::rename(entry.path(), aside).doing("remove from the image store")?;
        }
        sync(&directory)?;
    }
    Ok(collected)
}

/// Reads every blob of an image again, and compares it with its digests.
///
/// # Errors
/// The first that is wrong.
pub fn verify(store: &Store, name: &str) -> Result<()> {
    let image = store.find(name)?;
    let corrupt = |digest: Digest, cause: String| {
        Error::new(Class::Corrupt, "verify").on(format!("{}: {digest}", image.name)).because(cause)
    };
    store.layer_ids(&image.config)?;
    for (layer, diff) in image.manifest.layers.iter().zip(&image.config.rootfs.diff_ids) {
        let file =
            File::open(store.blob(layer.digest)).doing_on("open a blob", || layer.digest.to_string())?;
        let expected = Expected { blob: Some((layer.digest, layer.size)), diff: *diff };
        layer::pass(file, expected, Limits::default(), Outputs::default()).map_err(|error| {
            corrupt(layer.digest, error.cause.clone().unwrap_or_else(|| error.to_string()))
        })?;
    }
    Ok(())
}

/// What each image takes.
///
/// # Errors
/// When the store cannot be read.
pub fn usage(store: &Store) -> Result<Vec<Usage>> {
    let mut all = Vec::new();
    for tag in store.tags()? {
        let mine = mark(store, &|name| name == tag.name)?;
        // Another name of the same image is no other image.
        let same: BTreeSet<String> = store
            .tags()?
            .into_iter()
            .filter(|other| other.manifest == tag.manifest)
            .map(|other| other.name)
            .collect();
        let others = mark(store, &|name| !same.contains(name))?;
        let mut usage = Usage { name: tag.name, blobs: 0, layers: 0, own: 0 };
        for blob in &mine.blobs {
            let size = std::fs::metadata(store.blob(*blob)).map_or(0, |metadata| metadata.len());
            usage.blobs += size;
            usage.own += if others.blobs.contains(blob) { 0 } else { size };
        }
        for layer in &mine.layers {
            let size = size_below(&store.layer(*layer))?;
            usage.layers += size;
            usage.own += if others.layers.contains(layer) { 0 } else { size };
        }
        all.push(usage);
    }
    Ok(all)
}

/// Bytes on disk below a directory of the store, which nobody else writes to.
fn size_below(directory: &Path) -> Result<u64> {
    let mut total = 0;
    let mut seen = BTreeSet::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(path) = todo.pop() {
        for entry in std::fs::read_dir(&path).doing("list a layer")? {
            let entry = entry.doing("list a layer")?;
            let metadata = entry.metadata().doing("look at a layer")?;
            if metadata.is_dir() {
                todo.push(entry.path());
            }
            // A plain blob, which counts as that.
            if path == directory && entry.file_name() == "layer.tar" && metadata.nlink() > 1 {
                continue;
            }
            if metadata.nlink() < 2 || metadata.is_dir() || seen.insert(metadata.ino()) {
                total += metadata.blocks() * 512;
            }
        }
    }
    Ok(total)
}

/// Checks a blob against its digest.
///
/// # Errors
/// When it is not what it was.
pub fn verify_blob(store: &Store, digest: Digest) -> Result<u64> {
    let file = File::open(store.blob(digest)).doing_on("open a blob", || digest.to_string())?;
    match digest_of(file).doing_on("read a blob", || digest.to_string())? {
        (found, size) if found == digest => Ok(size),
        _ => Err(refused("its content has changed").class(Class::Corrupt)),
    }
}
