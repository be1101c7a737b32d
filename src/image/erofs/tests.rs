//! The same layers as directories and as EROFS: what the kernel shows must be the same.

use super::is_possible;
use crate::image::testing::{Scene, Tar, header};
use crate::image::{Backing, Limits};
use crate::rootfs::open_layer;
use crate::sys::fd::proc_path;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Whether the kernel mounts what is written; if not, it says why nothing is compared.
fn can_mount() -> bool {
    static POSSIBLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    let possible = *POSSIBLE.get_or_init(|| is_possible(&Scene::new("erofs-probe").base).unwrap());
    if !possible {
        eprintln!("skipped: no file-backed EROFS here (Linux 6.12 and CAP_SYS_ADMIN over the host)");
    }
    possible
}

/// Everything that can be seen of a tree, but for its root's date.
fn seen(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut first_names: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = std::fs::symlink_metadata(if path.as_os_str().is_empty() {
            root.join(".")
        } else {
            full.clone()
        });
        let meta = meta.unwrap();
        let mut text = format!("{:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.rdev());
        // A whiteout has no date of its own.
        let is_whiteout = meta.file_type().is_char_device() && meta.rdev() == 0;
        if !path.as_os_str().is_empty() && !is_whiteout {
            write!(text, " {}.{}", meta.mtime(), meta.mtime_nsec()).unwrap();
        }
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            let first = first_names.entry(meta.ino()).or_insert_with(|| path.clone());
            // Which of several names comes first is the same for both: they are visited in one order.
            write!(text, " {} of {}", meta.nlink(), meta.nlink() > 1 || *first == path).unwrap();
        }
        if meta.is_symlink() {
            write!(text, " -> {}", std::fs::read_link(&full).unwrap().display()).unwrap();
        } else if meta.is_file() {
            let content = std::fs::read(&full).unwrap();
            write!(text, " {} {}", content.len(), crate::image::Digest::of(&content)).unwrap();
        }
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&full, &mut names[..]).unwrap();
        let mut names: Vec<&[u8]> =
            names[..length].split(|byte| *byte == 0).filter(|n| !n.is_empty()).collect();
        names.sort_unstable();
        for name in names {
            let mut value = vec![0; 4096];
            let length = rustix::fs::lgetxattr(&full, name, &mut value[..]).unwrap();
            write!(text, " {:?}={:?}", String::from_utf8_lossy(name), &value[..length]).unwrap();
        }
        all.insert(path, text);
    }
    all
}

/// A layer with something of everything.
fn rich() -> Tar {
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let long = format!("/{}", "target/".repeat(500));
    let mut layer = Tar::default()
        .directory("./")
        .directory("many")
        .pax("SCHILY.xattr.user.note", b"of a directory")
        .directory("attributes")
        .pax("SCHILY.xattr.security.capability", capability)
        .pax("SCHILY.xattr.user.empty", b"")
        .pax("SCHILY.xattr.user.long", &[b'v'; 700])
        .file("attributes/file", "content")
        .pax("linkpath", long.as_bytes())
        .symlink("long", "x")
        .symlink("short", "many")
        .file("short/through", "the link")
        .device("null", 1, 3)
        .device("large-minor", 4095, 70000)
        .link(b'6', "fifo", "")
        .file("empty", "")
        .file("one", "x")
        .hard_link("two", "one")
        .hard_link("short-too", "short")
        .file("many/.wh.hidden", "")
        .directory("opaque")
        .file("opaque/.wh..wh..opq", "")
        .pax("mtime", b"1234567890.987654321")
        .file("dated", "x")
        .file("replaced", "by a directory")
        .directory("replaced");
    for number in 0..300 {
        layer = layer.file(&format!("many/{:04}-{}", number * 7919 % 300, "n".repeat(number % 60)), "small");
    }
    let mut owned = header("owned", b'0', 3000);
    owned[100..108].copy_from_slice(b"0004755\0");
    owned[108..116].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff");
    layer = layer.raw(owned, &[b'o'; 3000]);
    let large: Vec<u8> = (0_u32..700_001).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    layer.raw(header("large", b'0', large.len() as u64), &large).file(&"d/".repeat(40), "")
}

#[test]
fn a_layer_looks_as_its_directory_does() {
    if !can_mount() {
        return;
    }
    let (directory, index) = (Scene::new("as-directory"), Scene::new("as-erofs"));
    for (scene, backing) in [(&directory, Backing::Directory), (&index, Backing::Erofs)] {
        scene.layout(&[rich().end()]);
        scene.import_as(backing, Limits::default()).unwrap();
    }
    let metadata = index.tree(0);
    assert!(metadata.ends_with("layer.erofs"), "{}", metadata.display());
    let mount = open_layer(&metadata).unwrap();
    let (expected, found) = (seen(&directory.tree(0)), seen(Path::new(&proc_path(mount.as_fd()))));
    assert!(expected.len() > 340);
    for (path, text) in &expected {
        assert_eq!(found.get(path), Some(text), "{}", path.display());
    }
    assert_eq!(found.len(), expected.len());
    // A part of a file is read from the right place.
    let large = std::fs::File::open(Path::new(&proc_path(mount.as_fd())).join("large")).unwrap();
    let mut four = [0; 4];
    large.read_exact_at(&mut four, 2_400_000).unwrap();
    assert_eq!(four, 600_000_u32.wrapping_mul(2_654_435_761).to_le_bytes());
}

#[test]
fn what_borrows_from_below_is_a_directory() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new("erofs-lend");
    let lower = Tar::default().directory("t").file("t/f", "lower").end();
    let upper = Tar::default().file("t/new", "x").hard_link("g", "t/f").end();
    scene.layout(&[lower, upper]);
    scene.import_as(Backing::Auto, Limits::default()).unwrap();
    assert!(scene.tree(0).is_file() && scene.tree(1).is_dir());
    assert_eq!(std::fs::read_to_string(scene.tree(1).join("g")).unwrap(), "lower");
}

#[test]
fn the_same_layer_makes_the_same_bytes() {
    if !can_mount() {
        return;
    }
    let bytes = ["erofs-once", "erofs-again"].map(|name| {
        let scene = Scene::new(name);
        scene.layout(&[rich().end()]);
        scene.import_as(Backing::Erofs, Limits::default()).unwrap();
        std::fs::read(scene.tree(0)).unwrap()
    });
    assert!(bytes[0] == bytes[1] && bytes[0].len().is_multiple_of(512));
}
