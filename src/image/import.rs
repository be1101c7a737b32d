//! Import: from a layout or an archive into the store, whole or not at all.

use super::digest::Digest;
use super::documents::{
    CONFIG, Descriptor, Document, ImageConfig, Index, MANIFEST, MOST_DOCUMENT, Manifest, Platform, Saved,
    is_layer, parse,
};
use super::layer::{self, Expected, Limits};
use super::reference::Reference;
use super::source::Source;
use super::store::{self, Store, Workplace};
use super::unpack::Unpacker;
use super::{refused, within};
use crate::error::{Class, Context as _, Error, Result};
use crate::sys::path::Root;
use std::fs::File;
use std::path::{Path, PathBuf};

/// How deep an index may lie in an index.
const MOST_INDEXES: usize = 4;

/// What is asked of an import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// A directory, an archive, or `-` for standard input.
    pub from: PathBuf,
    /// The name to give it; otherwise it keeps its own.
    pub name: Option<Reference>,
    /// Which image of an index.
    pub platform: Platform,
    /// What it may be at most.
    pub limits: Limits,
}

/// What an import brought.
#[derive(Debug, Clone)]
pub struct Imported {
    /// The names that it has now.
    pub names: Vec<Reference>,
    /// The manifest's digest.
    pub manifest: Digest,
    /// The image's id.
    pub id: Digest,
    /// Layers that were there already.
    pub shared: usize,
    /// All its layers.
    pub layers: usize,
}

/// One image of a source, its documents read and checked.
struct Candidate {
    names: Vec<String>,
    manifest: Option<(Digest, Vec<u8>)>,
    config: Descriptor,
    config_text: Vec<u8>,
    layers: Vec<LayerPlan>,
}

/// Where a layer's blob is, and what the manifest says of it.
struct LayerPlan {
    path: String,
    described: Option<Descriptor>,
    diff: Digest,
}

/// Imports every image of a source, of an index those for the platform.
///
/// # Errors
/// When an image is refused: then the store is as it was before.
pub fn import(store: &Store, request: &ImportRequest) -> Result<Vec<Imported>> {
    let shown = request.from.display().to_string();
    let workplace = store.workplace()?;
    let scratch = || {
        let path = workplace.path.join("archive");
        let file =
            File::options().read(true).write(true).create_new(true).open(&path).doing("make a file")?;
        std::fs::remove_file(&path).doing("make a file")?;
        Ok(file)
    };
    let source = Source::open(&request.from, scratch).map_err(|error| within(&shown, error))?;
    let candidates = candidates(&source, &request.platform).map_err(|error| within(&shown, error))?;
    if request.name.is_some() && candidates.len() > 1 {
        return Err(Error::new(Class::Usage, "give several images one name").on(shown));
    }
    candidates
        .into_iter()
        .map(|candidate| {
            let names = names_of(&candidate, request)?;
            let place = names.first().map_or_else(|| shown.clone(), ToString::to_string);
            take(store, &source, &workplace, request.limits, candidate, names)
                .map_err(|error| within(&place, error))
        })
        .collect()
}

fn names_of(candidate: &Candidate, request: &ImportRequest) -> Result<Vec<Reference>> {
    if let Some(name) = &request.name {
        return Ok(vec![name.clone()]);
    }
    if candidate.names.is_empty() {
        return Err(Error::new(Class::Usage, "the image has no name of its own")
            .on(request.from.display().to_string())
            .hint("give it one with --name"));
    }
    candidate.names.iter().map(|name| Reference::parse(name)).collect()
}

fn candidates(source: &Source, platform: &Platform) -> Result<Vec<Candidate>> {
    // New `docker save` archives have both; the layout says more.
    let found = if source.has("index.json") {
        let index: Index = parse(&source.document("index.json")?, "index.json")?;
        index
            .manifests
            .into_iter()
            .map(|described| {
                let name = annotated_name(&described);
                from_layout(source, &described, platform, name)
            })
            .collect::<Result<Vec<_>>>()?
    } else if source.has("manifest.json") {
        let saved: Vec<Saved> = parse(&source.document("manifest.json")?, "manifest.json")?;
        saved.into_iter().map(|saved| from_saved(source, saved)).collect::<Result<Vec<_>>>()?
    } else {
        return Err(refused("it has neither an index.json nor a manifest.json"));
    };
    match found.is_empty() {
        true => Err(refused("it has no image")),
        false => Ok(found),
    }
}

/// The name that an image has in an index: containerd's and Docker's full one, or the tag alone.
fn annotated_name(described: &Descriptor) -> Option<String> {
    let annotations = described.annotations.as_ref()?;
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .find_map(|key| annotations.get(*key).cloned())
        // A layout of one image often has its tag alone there, which names nothing.
        .filter(|name| name.contains([':', '/']))
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A document that a descriptor leads to, checked against it.
fn described(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    if descriptor.size > MOST_DOCUMENT {
        return Err(refused(format!("{} is larger than {MOST_DOCUMENT} bytes", descriptor.digest)));
    }
    let text = source.document(&blob_path(descriptor.digest))?;
    let digest = Digest::of(&text);
    if text.len() as u64 != descriptor.size {
        let cause =
            format!("{} has {} bytes, and should have {}", descriptor.digest, text.len(), descriptor.size);
        return Err(refused(cause));
    }
    if digest != descriptor.digest {
        return Err(refused(format!(
            "the digest of a document is {digest}, and should be {}",
            descriptor.digest
        )));
    }
    Ok(text)
}

/// Follows indexes to the one manifest for the platform.
fn from_layout(
    source: &Source,
    first: &Descriptor,
    platform: &Platform,
    name: Option<String>,
) -> Result<Candidate> {
    let mut descriptor = first.clone();
    for _ in 0..MOST_INDEXES {
        let text = described(source, &descriptor)?;
        match Document::parse(&text, &descriptor.media_type)? {
            Document::Manifest(manifest) => {
                let config_text = described(source, &manifest.config)?;
                return candidate(manifest, text, config_text, descriptor.digest, name);
            }
            Document::Index(all) => {
                let fits = |one: &&Descriptor| match &one.platform {
                    Some(other) => platform.takes(other),
                    None => true,
                };
                descriptor = all
                    .iter()
                    .find(fits)
                    .cloned()
                    .ok_or_else(|| refused(format!("its index has no image for {platform}")))?;
            }
        }
    }
    Err(refused(format!("more than {MOST_INDEXES} indexes, one in another")))
}

fn candidate(
    manifest: Manifest,
    text: Vec<u8>,
    config_text: Vec<u8>,
    digest: Digest,
    name: Option<String>,
) -> Result<Candidate> {
    let config: ImageConfig = parse(&config_text, "configuration")?;
    let diffs = config.rootfs.diff_ids;
    if diffs.len() != manifest.layers.len() {
        let cause = format!(
            "its manifest has {} layers, and its configuration {}",
            manifest.layers.len(),
            diffs.len()
        );
        return Err(refused(cause));
    }
    if let Some(other) = manifest.layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        return Err(refused(format!("a layer of the unknown media type {:?}", other.media_type)));
    }
    let layers = manifest
        .layers
        .into_iter()
        .zip(diffs)
        .map(|(layer, diff)| LayerPlan { path: blob_path(layer.digest), described: Some(layer), diff })
        .collect();
    let names = name.into_iter().collect();
    Ok(Candidate { names, manifest: Some((digest, text)), config: manifest.config, config_text, layers })
}

/// An image of `docker save`: it has no manifest, and its layers no digests but their diffIDs.
fn from_saved(source: &Source, saved: Saved) -> Result<Candidate> {
    let config_text = source.document(&saved.config)?;
    let config: ImageConfig = parse(&config_text, "configuration")?;
    let digest = Digest::of(&config_text);
    // Its name is its digest, when it is a digest.
    let stem = Path::new(&saved.config).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    if let Some(named) = stem.as_deref().and_then(Digest::from_hex).filter(|named| *named != digest) {
        return Err(refused(format!(
            "the digest of its configuration is {digest}, and its name says {named}"
        )));
    }
    let diffs = config.rootfs.diff_ids;
    if diffs.len() != saved.layers.len() {
        let cause =
            format!("manifest.json has {} layers, and its configuration {}", saved.layers.len(), diffs.len());
        return Err(refused(cause));
    }
    let layers = saved
        .layers
        .into_iter()
        .zip(diffs)
        .map(|(path, diff)| LayerPlan { path, described: None, diff })
        .collect();
    Ok(Candidate {
        names: saved.repo_tags.unwrap_or_default(),
        manifest: None,
        config: descriptor(CONFIG, digest, config_text.len() as u64),
        config_text,
        layers,
    })
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations: None }
}

/// What is ready in the workplace, and where it belongs.
#[derive(Default)]
struct Ready {
    moves: Vec<(PathBuf, PathBuf)>,
    shared: usize,
}

/// Takes one image: everything into the workplace first, then into its place, the names last.
fn take(
    store: &Store,
    source: &Source,
    workplace: &Workplace,
    limits: Limits,
    candidate: Candidate,
    names: Vec<Reference>,
) -> Result<Imported> {
    if candidate.layers.len() > limits.layers {
        return Err(refused(format!("it has more than {} layers", limits.layers)));
    }
    let count = candidate.layers.len();
    let mut ready = Ready::default();
    let layers = take_layers(store, source, workplace, limits, &candidate, &mut ready)?;
    let (manifest, text) = match candidate.manifest {
        Some(manifest) => manifest,
        None => {
            let manifest = Manifest {
                schema_version: 2,
                media_type: MANIFEST.into(),
                config: candidate.config.clone(),
                layers,
            };
            let text = serde_json::to_vec(&manifest).map_err(|error| {
                Error::new(Class::Internal, "write a manifest").because(error.to_string())
            })?;
            (Digest::of(&text), text)
        }
    };
    for (digest, text) in [(candidate.config.digest, &candidate.config_text), (manifest, &text)] {
        let place = workplace.path.join(digest.hex());
        std::fs::write(&place, text).doing("write a document")?;
        ready.moves.push((place, store.blob(digest)));
    }
    store::sync_filesystem(&workplace.path)?;
    for (from, to) in &ready.moves {
        store::settle(from, to)?;
    }
    for directory in ["blobs/sha256", "layers"] {
        store::sync(&store.root().join(directory))?;
    }
    for name in &names {
        store.tag(name, manifest)?;
    }
    Ok(Imported { names, manifest, id: candidate.config.digest, shared: ready.shared, layers: count })
}

/// Unpacks, or only checks, the layers in order.
fn take_layers(
    store: &Store,
    source: &Source,
    workplace: &Workplace,
    limits: Limits,
    candidate: &Candidate,
    ready: &mut Ready,
) -> Result<Vec<Descriptor>> {
    let mut below: Vec<Root> = Vec::new();
    let mut chain = None;
    let mut described = Vec::new();
    for (index, plan) in candidate.layers.iter().enumerate() {
        let chained = Digest::chained(chain, plan.diff);
        chain = Some(chained);
        let place = format!("layer {} ({})", index + 1, plan.diff);
        let work =
            Work { store, source, limits, plan, chained, place: workplace.path.join(index.to_string()) };
        let (descriptor, root) = work.take(&below, ready).map_err(|error| within(&place, error))?;
        below.insert(0, root);
        described.push(descriptor);
    }
    Ok(described)
}

/// One layer's way into the store.
struct Work<'a> {
    store: &'a Store,
    source: &'a Source,
    limits: Limits,
    plan: &'a LayerPlan,
    chained: Digest,
    place: PathBuf,
}

impl Work<'_> {
    fn take(&self, below: &[Root], ready: &mut Ready) -> Result<(Descriptor, Root)> {
        let known = self.store.find_layer(self.plan.diff, self.chained);
        if let Some(id) = known {
            ready.shared += 1;
            let layer = self.store.layer(id);
            if let Some(descriptor) = self.known_blob(&layer) {
                return Ok((descriptor, open_layer(&layer)?));
            }
        }
        let fs = self.place.join("fs");
        std::fs::create_dir_all(&fs).doing("make a layer's directory")?;
        let copy_path = self.place.with_extension("blob");
        let mut copy = File::create(&copy_path).doing("make a blob")?;
        let mut unpacker = match known {
            Some(_) => None,
            None => Some(Unpacker::new(&fs, below)?),
        };
        let section = self.source.open_file(&self.plan.path)?;
        let size = section.left;
        let blob = self.plan.described.as_ref().map(|descriptor| (descriptor.digest, descriptor.size));
        if let Some((_, described)) = blob.filter(|(_, described)| *described != size) {
            return Err(refused(format!("its size is {size}, and the manifest says {described}")));
        }
        let expected = Expected { blob, diff: self.plan.diff };
        let passed = layer::pass(section, expected, self.limits, Some(&mut copy), unpacker.as_mut())?;
        ready.moves.push((copy_path, self.store.blob(passed.blob)));
        let found = descriptor(passed.compression.media_type(), passed.blob, passed.size);
        let layer = match (known, unpacker) {
            (Some(id), _) => self.store.layer(id),
            (None, unpacker) => {
                let stands_alone = unpacker.is_some_and(|unpacker| !unpacker.used_lower());
                let id = if stands_alone { self.plan.diff } else { self.chained };
                let meta = serde_json::json!({"diffId": self.plan.diff, "blob": found, "size": passed.plain});
                std::fs::write(self.place.join("meta.json"), meta.to_string()).doing("write meta.json")?;
                ready.moves.push((self.place.clone(), self.store.layer(id)));
                self.place.clone()
            }
        };
        Ok((self.plan.described.clone().unwrap_or(found), open_layer(&layer)?))
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
        (same && self.store.blob(meta.blob.digest).is_file()).then(|| described.clone())
    }
}

fn open_layer(layer: &Path) -> Result<Root> {
    Root::at(&layer.join("fs")).doing_on("open a layer", || layer.display().to_string())
}
