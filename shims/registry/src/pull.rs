//! Pull: a manifest, the one for the platform if it is an index, and all that it names.

use crate::connect::{Again, Connection, Failure, connect, patiently};
use crate::{Place, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};
use oci_client::RegistryOperation;
use oci_client::client::BlobResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::AsyncWriteExt as _;

/// Blobs that are fetched at once.
const AT_ONCE: usize = 3;

/// How deep an index may lie in an index.
const MOST_INDEXES: usize = 4;

const MANIFESTS: &[&str] = &[
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// What points at a blob.
#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// A manifest or an index.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default, rename = "mediaType")]
    media_type: String,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

/// Fetches an image into an OCI layout, from the first registry that has it.
pub async fn pull(
    place: &Place,
    platform: &str,
    to: &Path,
    have: Option<&Path>,
    mirrors: &[String],
) -> Result<()> {
    let blobs = to.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(|error| format!("{}: {error}", blobs.display()))?;
    let mut failures = Vec::new();
    for registry in mirrors.iter().chain([&place.registry]) {
        // A mirror is asked in its own way: `http://` is for one without TLS.
        let (registry, plain_http) = match registry.split_once("://") {
            Some((scheme, host)) => (host.trim_end_matches('/').to_owned(), scheme == "http"),
            None => (registry.clone(), place.plain_http),
        };
        let place = Place { registry: registry.clone(), plain_http, ..place.clone() };
        match pull_from(&place, platform, to, &blobs, have).await {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{registry}: {error}")),
        }
    }
    Err(failures.join("; "))
}

async fn pull_from(
    place: &Place,
    platform: &str,
    to: &Path,
    blobs: &Path,
    have: Option<&Path>,
) -> Result<()> {
    let (connection, (digest, text, document)) = patiently(async || {
        let connection = connect(place, RegistryOperation::Pull).await?;
        let found = manifest(&connection, platform).await?;
        Ok((connection, found))
    })
    .await?;
    let wanted: Vec<&Descriptor> = document.config.iter().chain(&document.layers).collect();
    let progress = Progress::of(wanted.iter().map(|one| one.size).sum());
    futures_util::stream::iter(&wanted)
        .map(|one| blob(&connection, one, blobs, have, &progress))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let put = |path: PathBuf, content: &[u8]| {
        std::fs::write(&path, content).map_err(|error| format!("{}: {error}", path.display()))
    };
    put(blobs.join(hex_of(&digest)?), &text)?;
    let media_type = match document.media_type.as_str() {
        "" => MANIFESTS[0],
        given => given,
    };
    let index: Value = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media_type, "digest": digest, "size": text.len()}]});
    put(to.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put(to.join("index.json"), index.to_string().as_bytes())
}

/// The manifest for the platform, with its digest.
async fn manifest(connection: &Connection, platform: &str) -> Result<(String, Vec<u8>, Document), Failure> {
    let mut image = connection.image.clone();
    for _ in 0..MOST_INDEXES {
        let fetched = connection.client.pull_manifest_raw(&image, &connection.auth, MANIFESTS).await;
        let (text, digest) = fetched?;
        let document: Document =
            serde_json::from_slice(&text).map_err(|error| format!("its manifest cannot be read: {error}"))?;
        match (&document.manifests, &document.config) {
            (None, Some(_)) => return Ok((digest, text.to_vec(), document)),
            (Some(all), None) => image = image.clone_with_digest(choose(all, platform)?),
            (Some(_), Some(_)) => {
                return Err("its manifest is a manifest and an index at once".to_owned().into());
            }
            (None, None) => return Err("its manifest is neither a manifest nor an index".to_owned().into()),
        }
    }
    Err(format!("more than {MOST_INDEXES} indexes, one in another").into())
}

/// The digest of the image for a platform, `OS/ARCHITECTURE[/VARIANT]`.
fn choose(all: &[Descriptor], platform: &str) -> Result<String> {
    let mut parts = platform.split('/');
    let mut part = || parts.next().unwrap_or_default().to_owned();
    let wanted = Platform { os: part(), architecture: part(), variant: part() };
    let fits = |one: &&Descriptor| match &one.platform {
        Some(other) => {
            other.os == wanted.os
                && other.architecture == wanted.architecture
                && (wanted.variant.is_empty() || other.variant == wanted.variant)
        }
        None => true,
    };
    let found = all.iter().find(fits);
    found.map(|one| one.digest.clone()).ok_or_else(|| format!("its index has no image for {platform}"))
}

/// The hex digits of a digest, which become a file name.
fn hex_of(digest: &str) -> Result<&str> {
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then_some(hex).ok_or_else(|| format!("the digest {digest:?} is not of sha256"))
}

/// Fetches one blob, and goes on where a broken connection left it. Its digest is checked when
/// it is imported.
async fn blob(
    connection: &Connection,
    wanted: &Descriptor,
    blobs: &Path,
    have: Option<&Path>,
    progress: &Progress,
) -> Result<()> {
    let hex = hex_of(&wanted.digest)?;
    let place = blobs.join(hex);
    if place.exists() || have.is_some_and(|have| std::fs::hard_link(have.join(hex), &place).is_ok()) {
        progress.more(wanted.size);
        return Ok(());
    }
    let part = place.with_extension("part");
    let failed = |error: std::io::Error| format!("{}: {error}", part.display());
    let mut file = tokio::fs::File::create(&part).await.map_err(failed)?;
    let mut length = 0;
    patiently(async || {
        let before = length;
        let outcome = fetch(connection, wanted, &mut file, &mut length, progress).await;
        outcome.map_err(|failure| match failure.again {
            Again::Later if length > before => Failure { again: Again::AtOnce, ..failure },
            _ => failure,
        })
    })
    .await?;
    file.flush().await.map_err(failed)?;
    tokio::fs::rename(&part, &place).await.map_err(failed)
}

async fn fetch(
    connection: &Connection,
    wanted: &Descriptor,
    file: &mut tokio::fs::File,
    length: &mut u64,
    progress: &Progress,
) -> Result<(), Failure> {
    let (client, image, digest) = (&connection.client, &connection.image, wanted.digest.as_str());
    let unwritten = |error: std::io::Error| Failure::from(format!("write {digest}: {error}"));
    let mut stream = if *length == 0 {
        client.pull_blob_stream(image, digest).await?
    } else {
        match client.pull_blob_stream_partial(image, digest, *length, None).await? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                // It does not know ranges: from the beginning.
                file.set_len(0).await.map_err(unwritten)?;
                tokio::io::AsyncSeekExt::rewind(file).await.map_err(unwritten)?;
                progress.less(*length);
                *length = 0;
                stream
            }
        }
    };
    while let Some(piece) = stream.stream.next().await {
        // With all its bytes there, it is not the connection: they are the wrong ones.
        let again = if *length == wanted.size { Again::Never } else { Again::Later };
        let piece = piece.map_err(|error| Failure { again, words: format!("{digest}: {error}") })?;
        *length += piece.len() as u64;
        if *length > wanted.size {
            return Err(format!("{digest} has more than {} bytes", wanted.size).into());
        }
        file.write_all(&piece).await.map_err(unwritten)?;
        progress.more(piece.len() as u64);
    }
    // Not every proxy tells a connection that broke from one that ended.
    match *length == wanted.size {
        true => Ok(()),
        false => {
            let words = format!("{digest} has {length} bytes, and not {}", wanted.size);
            Err(Failure { again: Again::Later, words })
        }
    }
}

/// How far the image is, for who started this program.
pub struct Progress {
    total: u64,
    read: AtomicU64,
}

impl Progress {
    pub fn of(total: u64) -> Progress {
        Progress { total, read: AtomicU64::new(0) }
    }

    /// What has to be fetched anew.
    pub fn less(&self, bytes: u64) {
        self.read.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Says so at every hundredth.
    pub fn more(&self, bytes: u64) {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        let (after, step) = (before + bytes, (self.total / 100).max(1));
        if before / step != after / step {
            use std::io::Write as _;
            let mut out = std::io::stdout().lock();
            let told = writeln!(out, "read {after} of {}", self.total).and_then(|()| out.flush());
            if told.is_err() {
                // Who asked for the image is gone.
                std::process::exit(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_for_a_platform() {
        let all: Vec<Descriptor> = serde_json::from_value(json!([
            {"digest": "a", "size": 1, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
            {"digest": "b", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        ]))
        .unwrap();
        assert_eq!(choose(&all, "linux/amd64").as_deref(), Ok("b"));
        assert_eq!(choose(&all, "linux/arm64").as_deref(), Ok("a"));
        assert!(choose(&all, "linux/arm64/v7").is_err() && choose(&all, "linux/s390x").is_err());
    }

    #[test]
    fn a_digest_is_no_path() {
        for wrong in ["sha256:../../x", "md5:00", "", &format!("sha256:{}", "A".repeat(64))] {
            assert!(hex_of(wrong).is_err(), "{wrong}");
        }
        assert!(hex_of(&format!("sha256:{}", "a".repeat(64))).is_ok());
    }
}
