//! Import: from a layout or an archive into the store, whole or not at all.

use super::digest::Digest;
use super::documents::{
    CONFIG, Descriptor, Document, ImageConfig, Index, MANIFEST, MOST_DOCUMENT, Manifest, Platform, Saved,
    is_layer, parse,
};
use super::erofs;
use super::layer::Limits;
use super::layers::{Backing, Batch, LayerPlan, Progress, descriptor};
use super::reference::Reference;
use super::source::Source;
use super::store::{self, Store};
use super::{refused, within};
use crate::error::{Class, Context as _, Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// How its layers are kept.
    pub backing: Backing,
    /// How far it is.
    pub progress: Arc<Progress>,
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
    let backing = match request.backing {
        Backing::Auto if erofs::is_possible(&workplace.path)? => Backing::Erofs,
        Backing::Auto => Backing::Directory,
        Backing::Erofs if !erofs::is_possible(&workplace.path)? => {
            return Err(Error::new(Class::Unsupported, "keep layers as EROFS")
                .because("this process cannot mount one: it takes Linux 6.12, root of the host, and a store that is not on a tmpfs")
                .hint("--backing auto uses directories where EROFS cannot be"));
        }
        asked => asked,
    };
    let batch = Batch {
        store,
        source: &source,
        workplace: &workplace,
        limits: request.limits,
        backing,
        progress: &request.progress,
    };
    let bytes = candidates.iter().flat_map(|candidate| &candidate.layers);
    batch.progress.expect(bytes.map(|plan| source.open_file(&plan.path).map_or(0, |file| file.left)).sum());
    candidates
        .into_iter()
        .map(|candidate| {
            let names = names_of(&candidate, request)?;
            let place = names.first().map_or_else(|| shown.clone(), ToString::to_string);
            take(&batch, candidate, names).map_err(|error| within(&place, error))
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
        by_platform(index.manifests, platform)?
            .into_iter()
            .map(|described| {
                // A layout of one image often has its tag alone there, which names nothing.
                let name = annotated_name(&described).filter(|name| name.contains([':', '/']));
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

/// The images of a layout's index: all descriptors with platforms under one name, or without a name,
/// are one image, of which the one for the platform is taken.
fn by_platform(manifests: Vec<Descriptor>, platform: &Platform) -> Result<Vec<Descriptor>> {
    let mut images: Vec<Vec<Descriptor>> = Vec::new();
    let mut places: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for described in manifests {
        let place = match &described.platform {
            Some(_) => *places.entry(annotated_name(&described)).or_insert(images.len()),
            None => images.len(),
        };
        match images.get_mut(place) {
            Some(image) => image.push(described),
            None => images.push(vec![described]),
        }
    }
    images
        .into_iter()
        .map(|mut image| match image.len() {
            // Nothing to choose from: it is what was asked for.
            1 => Ok(image.remove(0)),
            _ => choose(&image, platform),
        })
        .collect()
}

/// The first of an index that is for the platform.
fn choose(all: &[Descriptor], platform: &Platform) -> Result<Descriptor> {
    let fits = |one: &&Descriptor| one.platform.as_ref().is_none_or(|other| platform.takes(other));
    all.iter().find(fits).cloned().ok_or_else(|| {
        let error = refused(format!("its index has no image for {platform}"));
        let there = all.iter().flat_map(|one| &one.platform).take(20).map(ToString::to_string);
        let there: Vec<String> =
            there.map(|one| one.chars().filter(|c| !c.is_control()).take(60).collect()).collect();
        match there.is_empty() {
            true => error,
            false => error.hint(format!("--platform chooses of {}", there.join(", "))),
        }
    })
}

/// The name that an image has in an index: containerd's and Docker's full one, or the tag alone.
fn annotated_name(described: &Descriptor) -> Option<String> {
    let annotations = described.annotations.as_ref()?;
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .find_map(|key| annotations.get(*key).cloned())
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
            Document::Index(all) => descriptor = choose(&all, platform)?,
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

/// Takes one image: everything into the workplace first, then into its place, the names last.
fn take(batch: &Batch<'_>, candidate: Candidate, names: Vec<Reference>) -> Result<Imported> {
    let (store, workplace) = (batch.store, batch.workplace);
    if candidate.layers.len() > batch.limits.layers {
        return Err(refused(format!("it has more than {} layers", batch.limits.layers)));
    }
    // Held until everything is in its place.
    let _locks = batch.lock(&candidate.layers)?;
    let layers = batch.take(&candidate.layers)?;
    let mut moves: Vec<_> = layers.iter().flat_map(|layer| layer.moves.clone()).collect();
    let shared = layers.iter().filter(|layer| layer.shared).count();
    let count = layers.len();
    let layers = layers.into_iter().map(|layer| layer.descriptor).collect();
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
        moves.push((place, store.blob(digest)));
    }
    store::sync_filesystem(&workplace.path)?;
    for (from, to) in &moves {
        store::settle(from, to)?;
    }
    for directory in ["blobs/sha256", "layers"] {
        store::sync(&store.root().join(directory))?;
    }
    for name in &names {
        store.tag(name, manifest)?;
    }
    Ok(Imported { names, manifest, id: candidate.config.digest, shared, layers: count })
}
