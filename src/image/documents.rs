//! The JSON documents of image-spec, and Docker's names for the same.

use super::digest::Digest;
use super::refused;
use crate::error::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The most that one document may have, in bytes: what containerd and registries allow.
pub const MOST_DOCUMENT: u64 = 4 * 1024 * 1024;

/// The media type of a manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The media type of an index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The media type of a configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Which machines it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free-form metadata: the image's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A kind of machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Its processor, in Go's words.
    pub architecture: String,
    /// Its system.
    pub os: String,
    /// The processor's variant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: String::new() }
    }

    /// Parses `OS/ARCHITECTURE[/VARIANT]`.
    pub fn parse(text: &str) -> Option<Platform> {
        let mut parts = text.split('/');
        let (os, architecture) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let variant = parts.next().unwrap_or_default().to_owned();
        let whole = !os.is_empty() && !architecture.is_empty() && parts.next().is_none();
        whole.then_some(Platform { architecture, os, variant })
    }

    /// Whether an image for `other` is one for this.
    pub fn takes(&self, other: &Platform) -> bool {
        self.architecture == other.architecture
            && self.os == other.os
            && (self.variant.is_empty() || self.variant == other.variant)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

/// A manifest or an index, whichever it turns out to be.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Either {
    #[serde(default)]
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// A manifest: one image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// [`MANIFEST`].
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What a descriptor of an image leads to.
#[derive(Debug)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Vec<Descriptor>),
}

impl Document {
    /// Parses a manifest or an index. A document that could be taken for both is refused
    /// (CVE-2021-41190).
    ///
    /// # Errors
    /// When it is neither, or both.
    pub fn parse(text: &[u8], media_type: &str) -> Result<Document> {
        let either: Either = parse(text, "manifest")?;
        let own = either.media_type.as_deref().unwrap_or_default();
        if !own.is_empty() && !media_type.is_empty() && own != media_type {
            let cause = format!("the descriptor says {media_type:?}, and the document itself {own:?}");
            return Err(refused(cause));
        }
        match either {
            Either { manifests: Some(_), config: Some(_), .. }
            | Either { manifests: Some(_), layers: Some(_), .. } => {
                Err(refused("a document that is a manifest and an index at once"))
            }
            Either { manifests: Some(manifests), .. } => match is_manifest(media_type) {
                true => Err(refused("its media type says manifest, and it is an index")),
                false => Ok(Document::Index(manifests)),
            },
            Either { config: Some(config), layers: Some(layers), .. } => match is_index(media_type) {
                true => Err(refused("its media type says index, and it is a manifest")),
                false => Ok(Document::Manifest(Manifest {
                    schema_version: 2,
                    media_type: MANIFEST.into(),
                    config,
                    layers,
                })),
            },
            Either { .. } => Err(refused("a document that is neither a manifest nor an index")),
        }
    }
}

fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, MANIFEST | "application/vnd.docker.distribution.manifest.v2+json")
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, INDEX | "application/vnd.docker.distribution.manifest.list.v2+json")
}

/// Whether a layer of this media type is a tar archive.
pub fn is_layer(media_type: &str) -> bool {
    let bare = media_type
        .strip_prefix("application/vnd.oci.image.layer.")
        .or_else(|| media_type.strip_prefix("application/vnd.docker.image.rootfs."));
    bare.is_some_and(|kind| {
        let kind = kind.trim_start_matches("nondistributable.").trim_start_matches("foreign.");
        matches!(kind, "v1.tar" | "v1.tar+gzip" | "v1.tar+zstd")
            || matches!(kind, "diff.tar" | "diff.tar.gzip" | "diff.tar.zstd")
    })
}

/// `index.json` of a layout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// The images.
    pub manifests: Vec<Descriptor>,
}

/// An image's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// When it was made.
    pub created: Option<String>,
    /// The processor that it is for.
    pub architecture: String,
    /// The system that it is for.
    pub os: String,
    /// The processor's variant.
    pub variant: Option<String>,
    /// How it is run.
    pub config: Option<RunConfig>,
    /// Its layers.
    pub rootfs: RootFs,
    /// How it was made.
    pub history: Option<Vec<History>>,
}

/// The layers of a configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// The digests of the plain layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// How an image is run.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct RunConfig {
    /// `USER[:GROUP]`, by name or number.
    pub user: String,
    /// Ports that it listens on.
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    /// `NAME=VALUE`.
    pub env: Option<Vec<String>>,
    /// What is run.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments.
    pub cmd: Option<Vec<String>>,
    /// Directories for data of its own.
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    /// Where it is run.
    pub working_dir: String,
    /// Free-form metadata.
    pub labels: Option<BTreeMap<String, String>>,
    /// What stops it.
    pub stop_signal: String,
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// With which comment.
    pub comment: Option<String>,
    /// Whether it made no layer.
    pub empty_layer: bool,
}

/// Docker's `manifest.json`, one image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    /// The configuration's path in the archive.
    pub config: String,
    /// Its names.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// The layers' paths in the archive.
    pub layers: Vec<String>,
}

/// Parses a document.
///
/// # Errors
/// With the parser's words.
pub fn parse<T: DeserializeOwned>(text: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| refused(format!("its {what} cannot be read: {error}")))
}
