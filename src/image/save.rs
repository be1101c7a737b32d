//! Save: an image as one archive that is an OCI layout and a `docker save` archive at once, with
//! its blobs as they were received.

use super::documents::{Descriptor, INDEX, MANIFEST};
use super::reference::Reference;
use super::store::{Image, Store};
use crate::error::{Class, Context as _, Error, Result};
use serde_json::json;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

/// Writes an image into a file, which is there whole or not at all; its size.
///
/// # Errors
/// As of [`save`].
pub fn save_as(store: &Store, image: &Image, path: &Path) -> Result<u64> {
    let doing = "write the archive";
    let shown = || path.display().to_string();
    // A pipe or a device is written to, and no file put in its place.
    let place = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let is_special = place.metadata().is_ok_and(|there| !there.is_file());
    if is_special {
        save(store, image, &File::options().write(true).open(&place).doing_on(doing, shown)?)?;
        return Ok(0);
    }
    let name = place.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = place.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || {
        let file = File::create_new(&new).doing_on(doing, shown)?;
        save(store, image, &file)?;
        std::fs::rename(&new, &place).doing_on(doing, shown)?;
        Ok(file.metadata().doing_on(doing, shown)?.len())
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&new)))
}

/// Writes an image as an archive.
///
/// # Errors
/// When a blob is missing, or the archive cannot be written.
pub fn save(store: &Store, image: &Image, mut to: impl Write) -> Result<()> {
    let name = Reference::parse(&image.name)?;
    let blob = |descriptor: &Descriptor| format!("blobs/sha256/{}", descriptor.digest.hex());
    let manifest_size = std::fs::metadata(store.blob(image.digest)).doing("look at the manifest")?.len();
    let manifest = json!([{
        "Config": blob(&image.manifest.config),
        "RepoTags": [name.familiar()],
        "Layers": image.manifest.layers.iter().map(blob).collect::<Vec<_>>(),
    }]);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": image.digest,
            "size": manifest_size,
            "annotations": {
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag,
            },
        }],
    });
    let layout = json!({"imageLayoutVersion": "1.0.0"});
    for (path, document) in [("oci-layout", &layout), ("index.json", &index), ("manifest.json", &manifest)] {
        let text = document.to_string();
        member(&mut to, path, text.len() as u64, text.as_bytes())?;
    }
    let mut digests = vec![image.digest, image.id()];
    digests.extend(image.manifest.layers.iter().map(|layer| layer.digest));
    digests.sort_unstable();
    digests.dedup();
    for digest in digests {
        let file = File::open(store.blob(digest)).doing_on("open a blob", || digest.to_string())?;
        let size = file.metadata().doing("look at a blob")?.len();
        member(&mut to, &format!("blobs/sha256/{}", digest.hex()), size, file)?;
    }
    to.write_all(&[0; 1024]).and_then(|()| to.flush()).doing("write the archive")
}

/// One file of the archive: a ustar header and the content.
fn member(to: &mut impl Write, path: &str, size: u64, content: impl Read) -> Result<()> {
    let doing = "write the archive";
    let mut header = [0_u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    match format!("{size:011o}\0") {
        octal if octal.len() == 12 => header[124..136].copy_from_slice(octal.as_bytes()),
        _ => {
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
        }
    }
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    to.write_all(&header).doing(doing)?;
    let written = io::copy(&mut content.take(size), to).doing(doing)?;
    if written != size {
        return Err(Error::new(Class::Corrupt, doing).on(path.to_owned()).because("the blob became shorter"));
    }
    let padding = usize::try_from(size.wrapping_neg() % 512).unwrap_or(0);
    to.write_all(&[0; 512][..padding]).doing(doing)
}
