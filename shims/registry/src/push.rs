//! Push: the blobs that the registry lacks, then the manifest.

use crate::connect::{Connection, connect, patiently, words};
use crate::pull::Progress;
use crate::{Place, Result};
use futures_util::stream;
use oci_client::RegistryOperation;
use oci_client::errors::OciDistributionError;
use serde::Deserialize;
use std::path::Path;
use tokio::io::AsyncReadExt as _;

const PIECE: usize = 256 * 1024;

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

/// Sends an image whose blobs are files of a directory.
pub async fn push(place: &Place, blobs: &Path, manifest: &str) -> Result<()> {
    let path = blobs.join(manifest);
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let parsed: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let connection = patiently(async || connect(place, RegistryOperation::Push).await).await?;
    let all: Vec<&Descriptor> = parsed.layers.iter().chain([&parsed.config]).collect();
    let progress = Progress::of(all.iter().map(|one| one.size).sum());
    for one in all {
        blob(&connection, one, blobs).await?;
        progress.more(one.size);
    }
    let media_type = parsed.media_type.as_deref().unwrap_or("application/vnd.oci.image.manifest.v1+json");
    let media_type = media_type.parse().map_err(|_| format!("the media type {media_type:?}"))?;
    let sent = connection.client.push_manifest_raw(&connection.image, text, media_type).await;
    sent.map(drop).map_err(|error| words(&error))
}

async fn blob(connection: &Connection, one: &Descriptor, blobs: &Path) -> Result<()> {
    let there = connection.client.blob_exists(&connection.image, &one.digest).await;
    if there.map_err(|error| words(&error))? {
        return Ok(());
    }
    let path = blobs.join(one.digest.trim_start_matches("sha256:"));
    let file = tokio::fs::File::open(&path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    let pieces = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let mut piece = vec![0; PIECE];
        match file.read(&mut piece).await {
            Ok(0) => None,
            Ok(length) => {
                piece.truncate(length);
                Some((Ok(piece.into()), Some(file)))
            }
            Err(error) => Some((Err(OciDistributionError::IoError(error)), None)),
        }
    });
    let client = &connection.client;
    let sent = client.push_blob_stream(&connection.image, pieces, &one.digest, Some(one.size)).await;
    sent.map(drop).map_err(|error| words(&error))
}
