//! Building images for tests: archives byte by byte, so that they can be wrong in every way.

use super::digest::Digest;
use super::{ImportRequest, Imported, Limits, Reference, Store, import};
use crate::error::Result;
use crate::image::documents::Platform;
use crate::image::store::Use;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A tar archive in the making.
#[derive(Debug, Default, Clone)]
pub struct Tar(pub Vec<u8>);

/// A header whose fields can be set to anything.
pub fn header(path: &str, kind: u8, size: u64) -> [u8; 512] {
    let mut header = [0; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000001750\0");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header
}

impl Tar {
    /// Adds an entry as its header says, with the right checksum.
    pub fn raw(mut self, mut header: [u8; 512], content: &[u8]) -> Tar {
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, content: &str) -> Tar {
        self.raw(header(path, b'0', content.len() as u64), content.as_bytes())
    }

    pub fn directory(self, path: &str) -> Tar {
        let mut header = header(path, b'5', 0);
        header[100..108].copy_from_slice(b"0000755\0");
        self.raw(header, b"")
    }

    pub fn link(self, kind: u8, path: &str, target: &str) -> Tar {
        let mut header = header(path, kind, 0);
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Tar {
        self.link(b'2', path, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Tar {
        self.link(b'1', path, target)
    }

    pub fn device(self, path: &str, major: u32, minor: u32) -> Tar {
        let mut header = header(path, b'3', 0);
        header[329..337].copy_from_slice(format!("{major:07o}\0").as_bytes());
        header[337..345].copy_from_slice(format!("{minor:07o}\0").as_bytes());
        self.raw(header, b"")
    }

    /// A PAX header for the next entry.
    pub fn pax(self, key: &str, value: &[u8]) -> Tar {
        let rest = key.len() + value.len() + 3;
        let length = (1..6).map(|digits| rest + digits).find(|l| l.to_string().len() + rest == *l).unwrap();
        let record = [format!("{length} {key}=").as_bytes(), value, b"\n"].concat();
        self.raw(header("pax", b'x', record.len() as u64), &record)
    }

    /// The archive with its end.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// A place with a store, an image and something outside, removed when dropped.
#[derive(Debug)]
pub struct Scene {
    pub base: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

impl Scene {
    pub fn new(name: &str) -> Scene {
        let base = PathBuf::from(format!("/var/tmp/dhow-image-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("layout/blobs/sha256")).unwrap();
        std::fs::create_dir_all(base.join("outside")).unwrap();
        std::fs::write(base.join("outside/victim"), "untouched").unwrap();
        Scene { base }
    }

    pub fn store(&self) -> Store {
        Store::open(&self.base.join("store"), Use::Shared).unwrap()
    }

    /// Puts a blob into the layout; answers a descriptor.
    pub fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = Digest::of(content);
        std::fs::write(self.base.join("layout/blobs/sha256").join(digest.hex()), content).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    /// Makes a layout of plain layers.
    pub fn layout(&self, layers: &[Vec<u8>]) {
        let compressed: Vec<_> = layers.iter().map(|layer| (layer.clone(), Digest::of(layer))).collect();
        self.layout_of(&compressed);
    }

    /// Makes a layout of blobs with the diffIDs that the configuration gives them.
    pub fn layout_of(&self, layers: &[(Vec<u8>, Digest)]) {
        let diffs: Vec<Digest> = layers.iter().map(|(_, diff)| *diff).collect();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diffs}});
        let config = self.blob(super::documents::CONFIG, config.to_string().as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|(blob, _)| self.blob("application/vnd.oci.image.layer.v1.tar+gzip", blob))
            .collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": super::documents::MANIFEST,
            "config": config, "layers": layers});
        let manifest = self.blob(super::documents::MANIFEST, manifest.to_string().as_bytes());
        self.index(&[manifest]);
    }

    pub fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(self.base.join("layout/index.json"), index.to_string()).unwrap();
    }

    pub fn import_limited(&self, limits: Limits) -> Result<Imported> {
        self.import_as(super::Backing::Directory, limits)
    }

    pub fn import_as(&self, backing: super::Backing, limits: Limits) -> Result<Imported> {
        let request = ImportRequest {
            from: self.base.join("layout"),
            name: Some(Reference::parse("test").unwrap()),
            platform: Platform::parse("linux/amd64").unwrap(),
            limits,
            backing,
            progress: std::sync::Arc::default(),
        };
        import(&self.store(), &request).map(|mut all| all.remove(0))
    }

    pub fn import(&self) -> Result<Imported> {
        self.import_limited(Limits::default())
    }

    /// Every path of the store, but for its lock.
    pub fn stored(&self) -> BTreeMap<PathBuf, u64> {
        let mut found = BTreeMap::new();
        let mut todo = vec![self.base.join("store")];
        while let Some(path) = todo.pop() {
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                let metadata = entry.metadata().unwrap();
                if metadata.is_dir() {
                    todo.push(entry.path());
                }
                found.insert(entry.path(), if metadata.is_file() { metadata.len() } else { 0 });
            }
        }
        found
    }

    /// Imports what must be refused: with these words, and without a trace.
    pub fn refused(&self, words: &str) {
        self.refused_by(Limits::default(), words);
    }

    pub fn refused_by(&self, limits: Limits, words: &str) {
        drop(self.store());
        let before = self.stored();
        let error = self.import_limited(limits).expect_err(words).to_string();
        assert!(error.contains(words), "{words:?} is not in: {error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(before, self.stored(), "{words}: the store has changed");
        assert_eq!(std::fs::read_to_string(self.base.join("outside/victim")).unwrap(), "untouched");
        assert_eq!(std::fs::read_dir(self.base.join("outside")).unwrap().count(), 1);
    }

    /// The directory of a layer, the lowest being 0.
    pub fn layer(&self, index: usize) -> PathBuf {
        let tree = self.tree(index);
        assert!(tree.is_dir());
        tree
    }

    /// What a layer is kept as, the lowest being 0.
    pub fn tree(&self, index: usize) -> PathBuf {
        let store = self.store();
        let image = store.find("test").unwrap();
        store.tree(store.layer_ids(&image.config).unwrap()[index])
    }
}
