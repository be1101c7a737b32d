//! The store: what is on disk, and how it stays right.
//!
//! ```text
//! blobs/sha256/HEX      as received
//! layers/ID/fs          a layer, unpacked, in overlayfs's form; ID is its diffID, or, when it
//!                       cannot stand alone, its chain id. A layer under its name is complete.
//! layers/ID/layer.erofs in place of fs: metadata that points into the plain layer.tar beside it
//! refs/NAME             one small file per tag
//! tmp/                  what is in the making; not locked means abandoned
//! locks/ID              held by who unpacks a layer: another import waits, and finds it there
//! lock                  shared for use, exclusive for gc
//! ```

use super::digest::Digest;
use super::documents::{Document, ImageConfig, MOST_DOCUMENT, Manifest, parse};
use super::reference::Reference;
use super::refused;
use crate::error::{Class, Context as _, Error, Result};
use nix::errno::Errno;
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An image store.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: OwnedFd,
}

/// How a store is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Beside others.
    Shared,
    /// Alone: what nothing refers to may go.
    Exclusive,
}

/// What a tag points at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// The full name.
    pub name: String,
    /// The manifest.
    pub manifest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// When the tag was set, RFC 3339.
    pub tagged: String,
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name by which it was found.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest.
    pub manifest: Manifest,
    /// The configuration.
    pub config: ImageConfig,
}

impl Image {
    /// The image's id: the digest of its configuration.
    pub fn id(&self) -> Digest {
        self.manifest.config.digest
    }

    /// The sizes of its blobs together.
    pub fn size(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum::<u64>() + self.manifest.config.size
    }
}

impl Store {
    /// Opens the store below a directory, making it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made or locked.
    pub fn open(root: &Path, how: Use) -> Result<Store> {
        let shown = || root.display().to_string();
        let doing = "open the image store";
        for part in ["blobs/sha256", "layers", "refs", "tmp", "locks"] {
            std::fs::create_dir_all(root.join(part)).doing_on(doing, shown)?;
        }
        // Layers have setuid programs in them: nobody else may come near.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(root, private).doing_on(doing, shown)?;
        let root = std::fs::canonicalize(root).doing_on(doing, shown)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = open(root.join("lock"), flags, Mode::from_raw_mode(0o600)).doing_on(doing, shown)?;
        let operation = match how {
            Use::Shared => FlockOperation::LockShared,
            Use::Exclusive => FlockOperation::LockExclusive,
        };
        flock(&lock, operation).doing_on("lock the image store", shown)?;
        Ok(Store { root, _lock: lock })
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob is.
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Where a layer is.
    pub fn layer(&self, id: Digest) -> PathBuf {
        self.root.join("layers").join(id.hex())
    }

    /// What a layer is a tree in: a directory, or the metadata of an EROFS.
    pub fn tree(&self, id: Digest) -> PathBuf {
        tree_of(&self.layer(id))
    }

    /// The layers of an image, the lowest first, each by the id that it is kept under.
    ///
    /// # Errors
    /// [`Class::Corrupt`] when one is missing.
    pub fn layer_ids(&self, config: &ImageConfig) -> Result<Vec<Digest>> {
        let mut chain = None;
        config
            .rootfs
            .diff_ids
            .iter()
            .map(|diff| {
                let chained = Digest::chained(chain, *diff);
                chain = Some(chained);
                self.find_layer(*diff, chained).ok_or_else(|| {
                    Error::new(Class::Corrupt, "a layer of the image is missing").on(diff.to_string())
                })
            })
            .collect()
    }

    /// The id under which a layer is there.
    pub fn find_layer(&self, diff: Digest, chain: Digest) -> Option<Digest> {
        [diff, chain].into_iter().find(|id| self.layer(*id).is_dir())
    }

    /// A small blob, checked.
    ///
    /// # Errors
    /// [`Class::Corrupt`] when it is missing or not what it was.
    pub fn document(&self, digest: Digest) -> Result<Vec<u8>> {
        let path = self.blob(digest);
        let corrupt =
            |cause: &str| Error::new(Class::Corrupt, "read a blob").on(digest.to_string()).because(cause);
        let metadata = std::fs::metadata(&path).map_err(|_| corrupt("it is missing"))?;
        if metadata.len() > MOST_DOCUMENT {
            return Err(corrupt("it is too large"));
        }
        let text = std::fs::read(&path).doing_on("read a blob", || digest.to_string())?;
        match Digest::of(&text) == digest {
            true => Ok(text),
            false => Err(corrupt("its content has changed")),
        }
    }

    /// Every tag, sorted by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn tags(&self) -> Result<Vec<Tag>> {
        let mut tags = Vec::new();
        for entry in std::fs::read_dir(self.root.join("refs")).doing("list the tags")? {
            let path = entry.doing("list the tags")?.path();
            let text = std::fs::read(&path).doing_on("read a tag", || path.display().to_string())?;
            tags.push(serde_json::from_slice::<Tag>(&text).map_err(|error| {
                Error::new(Class::Corrupt, "read a tag")
                    .on(path.display().to_string())
                    .because(error.to_string())
            })?);
        }
        tags.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(tags)
    }

    /// An image by its name, its digest, or the beginning of its id.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none, or more than one.
    pub fn find(&self, name: &str) -> Result<Image> {
        let missing = || no_such_image(name);
        let wanted = Reference::parse(name).ok();
        let tags = self.tags()?;
        if let Some(wanted) = &wanted {
            let full = wanted.to_string();
            let by_name = tags.iter().find(|tag| match wanted.digest {
                // The digest may be the one of an index, by which it was pulled.
                Some(digest) => {
                    let same = tag.manifest == digest && tag.name.starts_with(&wanted.repository);
                    same || tag.name == wanted.kept_as().to_string()
                }
                None => tag.name == full,
            });
            if let Some(tag) = by_name {
                return self.image(tag);
            }
        }
        let found = self.by_id(name, &tags)?.into_iter().next();
        found.map(|(_, image)| image).ok_or_else(missing)
    }

    /// The tags of the one image whose id or digest begins so.
    fn by_id<'a>(&self, beginning: &str, tags: &'a [Tag]) -> Result<Vec<(&'a Tag, Image)>> {
        let hex = beginning.strip_prefix("sha256:").unwrap_or(beginning);
        if hex.is_empty() || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let mut found: Vec<(&Tag, Image)> = Vec::new();
        for tag in tags {
            let image = self.image(tag)?;
            if image.id().hex().starts_with(hex) || image.digest.hex().starts_with(hex) {
                found.push((tag, image));
            }
        }
        let ids: BTreeSet<Digest> = found.iter().map(|(_, image)| image.id()).collect();
        match ids.len() {
            0 | 1 => Ok(found),
            count => Err(Error::new(Class::Config, "which image is meant")
                .on(beginning)
                .because(format!("the ids of {count} images begin so"))
                .hint("give more of the id, or a name")),
        }
    }

    /// The names that a word means: that name, or all those of the image with this id.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none, or the ids of several images begin so.
    pub fn names(&self, word: &str) -> Result<Vec<Reference>> {
        let tags = self.tags()?;
        let name = Reference::parse(word).map(|name| name.kept_as());
        if let Ok(name) = name
            && tags.iter().any(|tag| tag.name == name.to_string())
        {
            return Ok(vec![name]);
        }
        let found = self.by_id(word, &tags)?;
        if found.is_empty() {
            return Err(no_such_image(word));
        }
        found.iter().map(|(tag, _)| Reference::parse(&tag.name)).collect()
    }

    /// What a tag points at.
    ///
    /// # Errors
    /// [`Class::Corrupt`].
    pub fn image(&self, tag: &Tag) -> Result<Image> {
        let Document::Manifest(manifest) = Document::parse(&self.document(tag.manifest)?, "")? else {
            return Err(Error::new(Class::Corrupt, "read a manifest").on(tag.name.clone()));
        };
        let config = parse(&self.document(manifest.config.digest)?, "configuration")?;
        Ok(Image { name: tag.name.clone(), digest: tag.manifest, manifest, config })
    }

    /// Sets a tag; what had the name before loses it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn tag(&self, name: &Reference, manifest: Digest) -> Result<()> {
        let tag = Tag {
            name: name.to_string(),
            manifest,
            media_type: super::documents::MANIFEST.into(),
            tagged: crate::sys::time::rfc3339(std::time::SystemTime::now()),
        };
        let text = serde_json::to_vec(&tag)
            .map_err(|error| Error::new(Class::Internal, "write a tag").because(error.to_string()))?;
        let workplace = self.workplace()?;
        let (new, place) = (workplace.path.join("tag"), self.tag_path(&tag.name)?);
        let doing = "write a tag";
        let mut file = File::create(&new).doing(doing)?;
        file.write_all(&text).and_then(|()| file.sync_all()).doing(doing)?;
        std::fs::rename(&new, &place).doing(doing)?;
        sync(&self.root.join("refs"))
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none.
    pub fn untag(&self, name: &Reference) -> Result<()> {
        match std::fs::remove_file(self.tag_path(&name.to_string())?) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(no_such_image(&name.familiar()));
            }
            removed => removed.doing_on("remove a tag", || name.to_string())?,
        }
        sync(&self.root.join("refs"))
    }

    fn tag_path(&self, name: &str) -> Result<PathBuf> {
        // A name has no `+`, so this can be read backwards, and stays one file.
        let file = name.replace('/', "+");
        match file.len() {
            0..=255 => Ok(self.root.join("refs").join(file)),
            _ => Err(refused("its name is longer than 255 bytes")),
        }
    }

    /// Waits until nobody else unpacks these layers, and keeps others from it.
    ///
    /// # Errors
    /// When a lock cannot be made.
    pub fn lock_layers(&self, ids: &BTreeSet<Digest>) -> Result<Vec<LayerLock>> {
        // Always in the same order: two imports of the same layers cannot wait for each other.
        ids.iter().map(|id| LayerLock::take(self.root.join("locks").join(id.hex()))).collect()
    }

    /// Removes what killed imports left of their locks. The store must be locked exclusively.
    pub(super) fn clear_locks(&self) {
        for entry in std::fs::read_dir(self.root.join("locks")).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
    }

    /// A locked directory of one's own in `tmp`; what others have left there goes first.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn workplace(&self) -> Result<Workplace> {
        let tmp = self.root.join("tmp");
        self.clear_abandoned(&tmp);
        for attempt in 0..1000 {
            let path = tmp.join(format!("{}-{attempt}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error).doing("make a directory in the image store"),
            }
            // Until it is locked, another may take it for abandoned, and remove it.
            let Ok(lock) = open_directory(&path) else { continue };
            let locked = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            if locked && path.is_dir() {
                return Ok(Workplace { path, _lock: lock, names: AtomicUsize::new(0) });
            }
        }
        Err(Error::system("make a directory in the image store", Errno::EEXIST))
    }

    fn clear_abandoned(&self, tmp: &Path) {
        for entry in std::fs::read_dir(tmp).into_iter().flatten().flatten() {
            let Ok(directory) = open_directory(&entry.path()) else { continue };
            if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A directory in which something is made. Dropped, it goes with all that is still in it.
#[derive(Debug)]
pub struct Workplace {
    /// Where it is.
    pub path: PathBuf,
    _lock: OwnedFd,
    names: AtomicUsize,
}

impl Workplace {
    /// A name in it that was not given before.
    pub fn fresh(&self) -> PathBuf {
        self.path.join(self.names.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// What a layer's directory has for a tree.
pub(super) fn tree_of(layer: &Path) -> PathBuf {
    let metadata = layer.join("layer.erofs");
    if metadata.exists() { metadata } else { layer.join("fs") }
}

/// The right to unpack a layer.
#[derive(Debug)]
pub struct LayerLock {
    path: PathBuf,
    _lock: OwnedFd,
}

impl LayerLock {
    fn take(path: PathBuf) -> Result<LayerLock> {
        let doing = "lock a layer of the image store";
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let lock = open(&path, flags, Mode::from_raw_mode(0o600)).doing(doing)?;
            flock(&lock, FlockOperation::LockExclusive).doing(doing)?;
            // Who had it before has removed the file: then this lock is on nothing.
            let held = rustix::fs::fstat(&lock).doing(doing)?;
            let there = rustix::fs::stat(&path);
            if there.is_ok_and(|there| there.st_ino == held.st_ino) {
                return Ok(LayerLock { path, _lock: lock });
            }
        }
    }
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn no_such_image(name: &str) -> Error {
    Error::new(Class::Config, "no such image").on(name).hint("`dhow image ls` lists what is there")
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).doing_on("open", || path.display().to_string())
}

/// Gives something complete its final name, unless it is there already.
///
/// # Errors
/// renameat2(2)'s.
pub(super) fn settle(from: &Path, to: &Path) -> Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        failed => failed.doing_on("put into the image store", || to.display().to_string()),
    }
}

/// Makes a directory's entries durable.
///
/// # Errors
/// fsync(2)'s.
pub(super) fn sync(directory: &Path) -> Result<()> {
    let fd = open_directory(directory)?;
    rustix::fs::fsync(&fd).doing_on("sync", || directory.display().to_string())
}

/// Makes all that was written to the filesystem of a directory durable, at once.
///
/// # Errors
/// syncfs(2)'s.
pub(super) fn sync_filesystem(directory: &Path) -> Result<()> {
    let fd = open_directory(directory)?;
    rustix::fs::syncfs(&fd).doing_on("sync", || directory.display().to_string())
}
