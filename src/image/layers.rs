//! The layers of an image on their way into the store: several at once, each for itself.
//!
//! A layer that borrows from the layers below (the metadata of a directory that it leaves out, the
//! target of a hard link) is found out while it passes, and taken again when those are there.

use super::digest::Digest;
use super::documents::Descriptor;
use super::erofs::{self, Indexer, Tree};
use super::layer::{self, Compression, Expected, Limits, Outputs, Passed, Sink};
use super::source::Source;
use super::store::{LayerLock, Store, Workplace, tree_of};
use super::unpack::Unpacker;
use super::{refused, within};
use crate::error::{Context as _, Result};
use crate::rootfs::open_layer;
use crate::sys::path::Root;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// How layers are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Backing {
    /// Unpacked into directories.
    #[default]
    Directory,
    /// As plain archives that EROFS metadata points into: only for root of the host.
    Erofs,
    /// EROFS where this machine can mount it.
    Auto,
}

/// How far an import is.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of blobs that were read.
    pub read: AtomicU64,
    /// Bytes of blobs that there are.
    pub total: AtomicU64,
}

impl Progress {
    pub(super) fn expect(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }
}

/// Where a layer's blob is, and what the manifest says of it.
pub(super) struct LayerPlan {
    pub path: String,
    pub described: Option<Descriptor>,
    pub diff: Digest,
}

/// A layer in the workplace, or one that was in the store before.
pub(super) struct Taken {
    pub descriptor: Descriptor,
    /// Whether it was in the store before.
    pub shared: bool,
    /// What belongs where.
    pub moves: Vec<(PathBuf, PathBuf)>,
    /// The directory that has its tree now.
    at: PathBuf,
}

/// What all layers of an import have in common.
pub(super) struct Batch<'a> {
    pub store: &'a Store,
    pub source: &'a Source,
    pub workplace: &'a Workplace,
    pub limits: Limits,
    pub backing: Backing,
    pub progress: &'a Progress,
}

/// What came of a layer; `None` when it needs the layers below.
type Outcome = Option<Taken>;

impl Batch<'_> {
    /// Locks the layers that are not there yet.
    pub fn lock(&self, plans: &[LayerPlan]) -> Result<Vec<LayerLock>> {
        let missing = plans.iter().map(|plan| plan.diff).filter(|diff| !self.store.layer(*diff).is_dir());
        self.store.lock_layers(&missing.collect())
    }

    /// Takes all layers, the lowest first.
    pub fn take(&self, plans: &[LayerPlan]) -> Result<Vec<Taken>> {
        let mut chain = None;
        let works: Vec<Work<'_>> = plans
            .iter()
            .enumerate()
            .map(|(index, plan)| {
                let chained = Digest::chained(chain, plan.diff);
                chain = Some(chained);
                Work { batch: self, plan, chained, index, place: self.workplace.fresh() }
            })
            .collect();
        let mut all: Vec<Taken> = Vec::with_capacity(works.len());
        let mut below: Vec<Root> = Vec::new();
        for (work, outcome) in works.iter().zip(at_once(&works)) {
            let taken = match outcome? {
                Some(taken) => taken,
                None => {
                    for layer in &all[below.len()..] {
                        let root = open_layer(&tree_of(&layer.at));
                        let root = root.doing_on("open a layer", || layer.at.display().to_string())?;
                        below.insert(0, root);
                    }
                    work.take(Some(&below))?.ok_or_else(|| refused("it needs the layers below"))?
                }
            };
            all.push(taken);
        }
        Ok(all)
    }
}

/// As many layers at once as there are processors. After a failure none is begun, so that what
/// is answered for the others is at most a failure of theirs.
fn at_once(works: &[Work<'_>]) -> Vec<Result<Outcome>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(works.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let outcomes: Vec<Mutex<Option<Result<Outcome>>>> = works.iter().map(|_| Mutex::new(None)).collect();
    // The largest first: the last one to end should not have begun last.
    let mut order: Vec<usize> = (0..works.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(works[*index].size()));
    let worker = || {
        while let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let outcome = works[*index].take(if *index == 0 { Some(&[]) } else { None });
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            if let Ok(mut place) = outcomes[*index].lock() {
                *place = Some(outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // With fewer threads it takes longer, and that is all.
            if std::thread::Builder::new().spawn_scoped(scope, worker).is_err() {
                break;
            }
        }
        worker();
    });
    let outcomes = outcomes.into_iter().map(|outcome| outcome.into_inner().ok().flatten());
    let mut outcomes: Vec<Option<Result<Outcome>>> = outcomes.collect();
    // What was not begun is not to hide the failure that is the reason.
    if let Some(at) = outcomes.iter().position(|outcome| matches!(outcome, Some(Err(_)))) {
        outcomes.swap(0, at);
    }
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(refused("it was not read")))).collect()
}

/// One layer's way into the store.
struct Work<'a> {
    batch: &'a Batch<'a>,
    plan: &'a LayerPlan,
    chained: Digest,
    index: usize,
    place: PathBuf,
}

impl Work<'_> {
    fn size(&self) -> u64 {
        self.batch.source.open_file(&self.plan.path).map_or(0, |section| section.left)
    }

    fn take(&self, below: Option<&[Root]>) -> Result<Outcome> {
        let place = format!("layer {} ({})", self.index + 1, self.plan.diff);
        self.take_known(below).map_err(|error| within(&place, error))
    }

    fn take_known(&self, below: Option<&[Root]>) -> Result<Outcome> {
        let Some(id) = self.batch.store.find_layer(self.plan.diff, self.chained) else {
            return self.take_new(below);
        };
        let at = self.batch.store.layer(id);
        if let Some(descriptor) = self.known_blob(&at) {
            return Ok(Some(Taken { descriptor, shared: true, moves: Vec::new(), at }));
        }
        std::fs::create_dir(&self.place).doing("make a layer's directory")?;
        let passed = self.pass(None, None)?;
        Ok(Some(self.taken(&passed, Vec::new(), at)))
    }

    /// Reads the layer. It is kept as an index, or unpacked, as asked and as it can be.
    fn take_new(&self, below: Option<&[Root]>) -> Result<Outcome> {
        let _ = std::fs::remove_dir_all(&self.place);
        std::fs::create_dir(&self.place).doing("make a layer's directory")?;
        let as_index = self.batch.backing == Backing::Erofs && below.is_none_or(<[Root]>::is_empty);
        let (passed, alone) = if as_index {
            let mut indexer = Indexer { tree: Tree::new(self.index > 0) };
            let archive = self.place.join("layer.tar");
            // A blob that is not compressed is the plain archive.
            let mut plain = match self.compression()? {
                Compression::Plain => None,
                _ => Some(File::create(&archive).doing("make the plain archive")?),
            };
            match self.pass(plain.as_mut(), Some(&mut indexer)) {
                Err(_) if indexer.tree.used_lower() => return Ok(None),
                passed => {
                    let passed = passed?;
                    if plain.is_none() {
                        let blob = self.blob_place();
                        // Not every filesystem has hard links.
                        std::fs::hard_link(&blob, &archive)
                            .or_else(|_| std::fs::copy(&blob, &archive).map(drop))
                            .doing("make the plain archive")?;
                    }
                    self.write_index(&indexer.tree, &passed)?;
                    (passed, true)
                }
            }
        } else {
            let fs = self.place.join("fs");
            std::fs::create_dir(&fs).doing("make a layer's directory")?;
            let mut unpacker = Unpacker::new(&fs, below)?;
            match self.pass(None, Some(&mut unpacker)) {
                Err(_) if below.is_none() && unpacker.used_lower() => return Ok(None),
                passed => (passed?, !unpacker.used_lower()),
            }
        };
        let id = if alone { self.plan.diff } else { self.chained };
        let moves = vec![(self.place.clone(), self.batch.store.layer(id))];
        let taken = Taken { shared: false, ..self.taken(&passed, moves, self.place.clone()) };
        let meta =
            serde_json::json!({"diffId": self.plan.diff, "blob": taken.descriptor, "size": passed.plain});
        std::fs::write(self.place.join("meta.json"), meta.to_string()).doing("write meta.json")?;
        Ok(Some(taken))
    }

    fn compression(&self) -> Result<Compression> {
        let mut first = Vec::new();
        let section = self.batch.source.open_file(&self.plan.path)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(section, 4), &mut first)
            .doing("read the blob")?;
        Ok(Compression::of(&first))
    }

    fn write_index(&self, tree: &Tree, passed: &Passed) -> Result<()> {
        let doing = "write the layer's index";
        let file = File::create(self.place.join("layer.erofs")).doing(doing)?;
        erofs::write(tree, passed.plain, self.plan.diff.first_half(), file).doing(doing)
    }

    /// Reads the blob once, into a copy of it and to whoever wants its entries.
    fn pass(&self, plain: Option<&mut File>, sink: Option<&mut (dyn Sink + '_)>) -> Result<Passed> {
        let section = self.batch.source.open_file(&self.plan.path)?;
        let size = section.left;
        let blob = self.plan.described.as_ref().map(|descriptor| (descriptor.digest, descriptor.size));
        if let Some((_, described)) = blob.filter(|(_, described)| *described != size) {
            return Err(refused(format!("its size is {size}, and the manifest says {described}")));
        }
        let mut copy = File::create(self.blob_place()).doing("make a blob")?;
        let expected = Expected { blob, diff: self.plan.diff };
        let read = Some(&self.batch.progress.read);
        layer::pass(
            section,
            expected,
            self.batch.limits,
            Outputs { blob: Some(&mut copy), plain, sink, read },
        )
    }

    fn blob_place(&self) -> PathBuf {
        self.place.with_extension("blob")
    }

    fn taken(&self, passed: &Passed, mut moves: Vec<(PathBuf, PathBuf)>, at: PathBuf) -> Taken {
        moves.push((self.blob_place(), self.batch.store.blob(passed.blob)));
        let found = descriptor(passed.compression.media_type(), passed.blob, passed.size);
        let descriptor = self.plan.described.clone().unwrap_or(found);
        Taken { descriptor, shared: true, moves, at }
    }

    /// Whether this very blob is in the store as this layer's: then nothing is left to check.
    fn known_blob(&self, layer: &Path) -> Option<Descriptor> {
        #[derive(serde::Deserialize)]
        struct Meta {
            blob: Descriptor,
        }
        let meta: Meta = serde_json::from_slice(&std::fs::read(layer.join("meta.json")).ok()?).ok()?;
        let described = self.plan.described.as_ref()?;
        let same = described.digest == meta.blob.digest && described.size == meta.blob.size;
        (same && self.batch.store.blob(meta.blob.digest).is_file()).then(|| described.clone())
    }
}

pub(super) fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations: None }
}
