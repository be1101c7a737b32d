//! Images that mean harm, and images that are merely odd: the first are refused with one error and
//! leave the store as it was, the second come out as Docker has them. As root only.

use super::digest::Digest;
use super::erofs::tests::assert_same;
use super::testing::{Scene, Tar, can_mount_erofs, header};
use super::{Backing, Limits, documents};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

/// Whether these tests can make devices and trusted attributes.
fn is_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: mknod(2) and trusted.* attributes need CAP_MKNOD and CAP_SYS_ADMIN");
    }
    is_root
}

fn refuse_layers(name: &str, layers: &[Vec<u8>], words: &str) {
    if is_root() {
        let scene = Scene::new(name);
        scene.layout(layers);
        scene.refused(words);
    }
}

fn refuse(name: &str, layer: Tar, words: &str) {
    refuse_layers(name, &[layer.end()], words);
}

/// Imports layers that are odd but right.
fn accept(name: &str, layers: &[Tar]) -> Option<Scene> {
    is_root().then(|| {
        let scene = Scene::new(name);
        scene.layout(&layers.iter().map(|layer| layer.clone().end()).collect::<Vec<_>>());
        scene.import().unwrap();
        if can_mount_erofs() {
            // What is accepted as a directory is accepted as an index, and looks the same.
            let index = Scene::new(&format!("{name}-erofs"));
            index.layout(&layers.iter().map(|layer| layer.clone().end()).collect::<Vec<_>>());
            index.import_as(Backing::Erofs, Limits::default()).unwrap();
            for layer in 0..layers.len() {
                assert_same(&scene.tree(layer), &index.tree(layer));
            }
        }
        scene
    })
}

#[test]
fn names_that_lead_out() {
    refuse(
        "dots",
        Tar::default().file("../outside/victim", "x"),
        "entry \"../outside/victim\": a path with `..`",
    );
    refuse("dots-within", Tar::default().directory("a").file("a/../../outside/victim", "x"), "`..`");
    refuse("empty", Tar::default().file("", "x"), "an empty name");
    refuse("nul", Tar::default().pax("path", b"a\0b").file("a", "x"), "PAX record path");
    refuse("long", Tar::default().pax("path", &[b'a'; 256]).file("a", "x"), "more than 255 bytes");
    refuse("deep", Tar::default().pax("path", &b"a/".repeat(2100)).file("a", "x"), "more than 4095 bytes");
    refuse("steps", Tar::default().pax("path", &b"a/".repeat(300)).file("a", "x"), "more than 256 names");
    refuse("root", Tar::default().symlink("./", "/etc"), "the root of a layer must be a directory");
}

#[test]
fn odd_names_stay_inside() {
    let layer = Tar::default().file("/absolute", "x").pax("path", b"\xff\xfe").file("a", "y").directory("./");
    let Some(scene) = accept("inside", &[layer]) else { return };
    assert_eq!(std::fs::read_to_string(scene.layer(0).join("absolute")).unwrap(), "x");
    assert_eq!(std::fs::read_dir(scene.layer(0)).unwrap().count(), 2);
}

#[test]
fn links_that_lead_out() {
    let outside = "/var/tmp";
    // Upwards ends at the layer's own root, as in a container.
    let up = Tar::default().symlink("l", "../../..").file("l/x/y", "x").directory("l/d").file("l/d", "y");
    if let Some(scene) = accept("up", &[up]) {
        assert_eq!(std::fs::read_to_string(scene.layer(0).join("x/y")).unwrap(), "x");
        assert!(scene.layer(0).join("d").is_file());
        assert_eq!(std::fs::read_dir(scene.base.join("outside")).unwrap().count(), 1);
    }
    refuse(
        "absolute",
        Tar::default().symlink("l", outside).file("l/victim", "x"),
        "a symlink that leads nowhere",
    );
    refuse(
        "circle",
        Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", ""),
        "a symlink in a circle",
    );
    refuse(
        "hard-out",
        Tar::default().hard_link("l", "../../outside/victim"),
        "link target: a path with `..`",
    );
    refuse("hard-none", Tar::default().hard_link("l", "none"), "which is not there");
    refuse("hard-self", Tar::default().hard_link("l", "./l"), "a hard link to itself");
    refuse("hard-cycle", Tar::default().hard_link("a", "b").hard_link("b", "a"), "which is not there");
    refuse("hard-root", Tar::default().hard_link("a", "/"), "a hard link to the root");
    let through = Tar::default().symlink("l", "/var/tmp").hard_link("a", "l/victim");
    refuse("hard-through", through, "which is not there");
    refuse("hard-directory", Tar::default().directory("d").hard_link("a", "d"), "a hard link to a directory");
    refuse(
        "hard-whiteout",
        Tar::default().file(".wh.a", "").hard_link("b", "a"),
        "a hard link to a whiteout",
    );
    refuse("file-parent", Tar::default().file("a", "").file("a/b", ""), "its directory is a file");
}

#[test]
fn a_symlink_of_a_lower_layer_is_replaced() {
    let layers = [Tar::default().symlink("l", "/var/tmp"), Tar::default().file("l/x", "inside")];
    let Some(scene) = accept("lower-link", &layers) else { return };
    assert!(scene.layer(1).join("l").symlink_metadata().unwrap().is_dir());
    assert_eq!(std::fs::read_to_string(scene.layer(1).join("l/x")).unwrap(), "inside");
}

#[test]
fn links_that_are_right() {
    let layer = Tar::default()
        .directory("d")
        .symlink("l", "/d")
        .file("l/x", "through")
        .hard_link("h", "l/x")
        .hard_link("s", "l")
        .device("null", 1, 3)
        .hard_link("null2", "null");
    let Some(scene) = accept("links", &[layer]) else { return };
    let root = scene.layer(0);
    assert_eq!(root.join("h").metadata().unwrap().ino(), root.join("d/x").metadata().unwrap().ino());
    assert_eq!(std::fs::read_link(root.join("s")).unwrap().to_str(), Some("/d"));
    assert!(root.join("null2").metadata().unwrap().file_type().is_char_device());
}

#[test]
fn what_lower_layers_lend() {
    let mut sticky = header("t/u/", b'5', 0);
    sticky[100..108].copy_from_slice(b"0001777\0");
    sticky[108..116].copy_from_slice(b"0000144\0");
    let lower = Tar::default().directory("t").raw(sticky, b"").file("t/f", "lower");
    let upper = Tar::default().file("t/u/new", "x").hard_link("g", "t/f");
    let Some(scene) = accept("lend", &[lower, upper]) else { return };
    let made = scene.layer(1).join("t/u").metadata().unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.mtime()), (0o1777, 100, 1000));
    assert_eq!(std::fs::read_to_string(scene.layer(1).join("g")).unwrap(), "lower");
    assert_eq!(scene.layer(1).join("g").metadata().unwrap().nlink(), 2);
}

#[test]
fn whiteouts_that_are_wrong() {
    refuse("wh-empty", Tar::default().file(".wh.", ""), "a whiteout that names nothing");
    refuse("wh-dot", Tar::default().file(".wh..", ""), "a whiteout that names nothing");
    refuse("wh-dots", Tar::default().file(".wh...", ""), "a whiteout that names nothing");
    refuse("wh-kind", Tar::default().file(".wh..wh.plnk", ""), "a whiteout of a kind that is not known");
    refuse("wh-parent", Tar::default().file(".wh.a/x", ""), "a whiteout that is a directory");
    refuse("wh-root", Tar::default().file(".wh..wh..opq", ""), "the root of a layer cannot be opaque");
    refuse("wh-device", Tar::default().device("a", 0, 0), "overlayfs's own mark");
    for key in ["trusted.overlay.opaque", "user.overlay.redirect"] {
        let layer = Tar::default().pax(&format!("SCHILY.xattr.{key}"), b"y").directory("a");
        refuse("wh-xattr", layer, "overlayfs's own mark");
    }
}

fn opaque(path: &std::path::Path) -> bool {
    let mut value = [0; 2];
    rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|n| &value[..n] == b"y")
}

#[test]
fn whiteouts_that_are_right() {
    let lower =
        Tar::default().directory("a").directory("b").directory("c").directory("gone").file("gone/x", "");
    let upper = Tar::default()
        .file("a/.wh.below", "")
        .file("f", "")
        .file(".wh.f", "")
        .file(".wh.g", "")
        .file("g", "")
        .directory("b")
        .file("b/.wh..wh..opq", "")
        .file(".wh.c", "")
        .directory("c")
        .file("gone/.wh.x", "");
    let Some(scene) = accept("whiteouts", &[lower, upper]) else { return };
    let root = scene.layer(1);
    for name in ["a/below", "gone/x"] {
        let found = root.join(name).metadata().unwrap();
        assert!(found.file_type().is_char_device() && found.rdev() == 0, "{name}");
    }
    assert!(root.join("f").is_file() && root.join("g").is_file());
    assert!(opaque(&root.join("b")) && opaque(&root.join("c")) && !opaque(&root.join("a")));
}

#[test]
fn opaque_after_its_siblings() {
    let layer =
        Tar::default().directory("d").file("d/before", "").file("d/.wh..wh..opq", "").file("d/after", "");
    let Some(scene) = accept("opaque", &[Tar::default().directory("d"), layer]) else { return };
    let root = scene.layer(1);
    assert!(opaque(&root.join("d")) && root.join("d/before").is_file() && root.join("d/after").is_file());
}

#[test]
fn a_size_of_pax_is_the_size() {
    let mut header = header("a", b'0', 0);
    header[124..136].copy_from_slice(b"00000000001\0");
    let layer = Tar::default().pax("size", b"5").raw(header, b"12345").file("b", "next");
    let Some(scene) = accept("pax-size-right", &[layer]) else { return };
    let read = |name: &str| std::fs::read_to_string(scene.layer(0).join(name)).unwrap();
    assert_eq!((read("a"), read("b")), ("12345".into(), "next".into()));
}

#[test]
fn the_last_of_a_name_wins() {
    let layer = Tar::default()
        .file("a", "first")
        .file("a", "second")
        .directory("b/")
        .file("b/x", "")
        .symlink("b", "a")
        .symlink("c", "a")
        .file("c", "third")
        .file("d", "")
        .directory("d");
    let Some(scene) = accept("duplicates", &[layer]) else { return };
    let root = scene.layer(0);
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    assert_eq!((read("a"), read("c")), ("second".into(), "third".into()));
    assert!(root.join("b").is_symlink() && root.join("d").is_dir() && !root.join("c").is_symlink());
}

#[test]
fn numbers_that_are_wrong() {
    let base256 = |at: usize, bytes: &[u8]| {
        let mut header = header("a", b'0', 0);
        header[at..at + bytes.len()].copy_from_slice(bytes);
        Tar::default().raw(header, b"")
    };
    refuse("uid", Tar::default().pax("uid", b"4294967296").file("a", ""), "PAX record uid");
    refuse("uid-256", base256(108, &[0x80, 0, 0, 1, 0, 0, 0, 0]), "its uid 4294967296 is beyond 32 bits");
    refuse("uid-none", Tar::default().pax("uid", b"4294967295").file("a", ""), "the id that means none");
    refuse("uid-minus", base256(108, &[0xff; 8]), "its uid is negative");
    refuse("mtime-minus", base256(136, &[0xff; 12]), "its mtime is negative");
    refuse("mtime-pax", Tar::default().pax("mtime", b"-1.5").file("a", ""), "PAX record mtime");
    refuse("size-pax", Tar::default().pax("size", b"99999999").file("a", "x"), "cut off");
    refuse("octal", base256(100, b"00q0644\0"), "its mode is no number");
    let wild = Tar::default().raw(header("p", b'x', 30), b"99999999999999999999 path=b\naaaa");
    refuse("pax-length", wild.file("a", ""), "a PAX record is malformed");
    refuse("pax-size", Tar::default().raw(header("p", b'x', 1 << 30), b""), "an extended header of");
    let many = (0..9).fold(Tar::default(), |tar, _| tar.raw(header("l", b'L', 2), b"a\0"));
    refuse("names", many.file("a", ""), "more than 8 extended headers");
    refuse("sparse", Tar::default().pax("GNU.sparse.major", b"1").file("a", ""), "sparse");
    refuse("sparse-old", Tar::default().raw(header("a", b'S', 0), b""), "sparse");
    refuse("type", Tar::default().raw(header("a", b'V', 0), b""), "unknown type 'V'");
    refuse_layers("checksum", &[vec![7; 1024]], "the checksum of a header is wrong");
    refuse_layers("cut", &[Tar::default().file("a", "content").0[..514].to_vec()], "cut off");
    let trailing = [Tar::default().file("a", "").end(), b"more".repeat(200)].concat();
    refuse_layers("trailing", &[trailing], "data after the end of the archive");
}

#[test]
fn long_names_of_both_kinds() {
    let long = "d".repeat(120);
    let gnu = Tar::default().raw(header("l", b'L', 121), format!("{long}\0").as_bytes()).file("short", "gnu");
    let both = gnu.pax("path", format!("p{long}").as_bytes()).pax("mtime", b"12.5").file("short", "pax");
    let Some(scene) = accept("long-names", &[both]) else { return };
    assert_eq!(std::fs::read_to_string(scene.layer(0).join(&long)).unwrap(), "gnu");
    let pax = scene.layer(0).join(format!("p{long}"));
    assert_eq!((pax.metadata().unwrap().mtime(), pax.metadata().unwrap().mtime_nsec()), (12, 500_000_000));
}

#[test]
fn modes_survive() {
    let with_mode = |path: &str, kind: u8, mode: &[u8; 8]| {
        let mut header = header(path, kind, 0);
        header[100..108].copy_from_slice(mode);
        header[116..124].copy_from_slice(b"0000062\0");
        header
    };
    let layer = Tar::default()
        .raw(with_mode("s", b'5', b"0002775\0"), b"")
        .file("s/f", "")
        .raw(with_mode("su", b'0', b"0006755\0"), b"")
        .pax("SCHILY.xattr.user.note", b"kept")
        .file("x", "");
    let Some(scene) = accept("modes", &[layer]) else { return };
    let meta = |name: &str| scene.layer(0).join(name).metadata().unwrap();
    assert_eq!((meta("s").permissions().mode() & 0o7777, meta("s").gid()), (0o2775, 50));
    assert_eq!((meta("su").permissions().mode() & 0o7777, meta("s/f").gid()), (0o6755, 0));
    assert_eq!((meta("s").mtime(), meta("s/f").mtime()), (1000, 1000));
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn refuse_blob(name: &str, blob: Vec<u8>, plain: &[u8], limits: Limits, words: &str) {
    if is_root() {
        let scene = Scene::new(name);
        scene.layout_of(&[(blob, Digest::of(plain))]);
        scene.refused_by(limits, words);
    }
}

#[test]
fn bombs_and_broken_streams() {
    let big = Tar::default().raw(header("zeros", b'0', 4 << 20), &vec![0; 4 << 20]).end();
    let small = Limits { ratio: 50, ratio_from: 1 << 20, ..Limits::default() };
    refuse_blob("gzip-bomb", gzip(&big), &big, small, "more than 50 times its own size");
    let zstd = zstd::encode_all(&big[..], 3).unwrap();
    refuse_blob("zstd-bomb", zstd, &big, small, "more than 50 times its own size");
    let tiny = Limits { layer: 1 << 20, ..Limits::default() };
    refuse_blob("large", gzip(&big), &big, tiny, "more than the limit of 1048576 bytes");
    let few = Limits { entries: 1, ..Limits::default() };
    let two = Tar::default().file("a", "").file("b", "").end();
    refuse_blob("entries", gzip(&two), &two, few, "more than 1 entries");
    let none = Limits { layers: 0, ..Limits::default() };
    refuse_blob("layers", gzip(&two), &two, none, "more than 0 layers");
    let trailing = [gzip(&two), b"trailing".to_vec()].concat();
    refuse_blob("gzip-trailing", trailing, &two, Limits::default(), "the layer cannot be decoded");
    let cut = gzip(&two)[..20].to_vec();
    refuse_blob("gzip-cut", cut, &two, Limits::default(), "");
    let wide = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&two).unwrap();
        encoder.finish().unwrap()
    };
    refuse_blob("zstd-window", wide, &two, Limits::default(), "the layer cannot be decoded");
}

#[test]
fn what_follows_a_compressed_layer() {
    if !is_root() {
        return;
    }
    let plain = Tar::default().file("a", "one").file("b", "two").end();
    let frames = [&plain[..700], &plain[700..]].map(|part| zstd::encode_all(part, 3).unwrap()).concat();
    let scene = Scene::new("frames");
    scene.layout_of(&[(frames.clone(), Digest::of(&plain))]);
    scene.import().unwrap();
    assert_eq!(std::fs::read_to_string(scene.layer(0).join("b")).unwrap(), "two");
    let trailing = [frames, b"trailing".to_vec()].concat();
    refuse_blob("zstd-trailing", trailing, &plain, Limits::default(), "the layer cannot be decoded");
    let second = [plain.clone(), plain.clone()].concat();
    refuse_blob("two-archives", gzip(&second), &second, Limits::default(), "data after the end");
}

#[test]
fn gzip_of_two_members_is_one_layer() {
    if !is_root() {
        return;
    }
    let scene = Scene::new("members");
    let plain = Tar::default().file("a", "one").file("b", "two").end();
    let blob = [gzip(&plain[..700]), gzip(&plain[700..])].concat();
    scene.layout_of(&[(blob, Digest::of(&plain))]);
    scene.import().unwrap();
    assert_eq!(std::fs::read_to_string(scene.layer(0).join("b")).unwrap(), "two");
    // The same again unpacks nothing, and a changed blob is found out.
    assert_eq!(scene.import().unwrap().shared, 1);
    super::manage::verify(&scene.store(), "test").unwrap();
}

#[test]
fn documents_that_are_wrong() {
    if !is_root() {
        return;
    }
    let layer = Tar::default().file("a", "x").end();
    let scene = Scene::new("documents");
    scene.layout_of(&[(layer.clone(), Digest::of(b"another"))]);
    scene.refused("unpacked its digest is");
    scene.layout(std::slice::from_ref(&layer));
    let blob = scene.base.join("layout/blobs/sha256").join(Digest::of(&layer).hex());
    let mut changed = layer.clone();
    changed[512] = b'y';
    std::fs::write(&blob, &changed).unwrap();
    scene.refused("its digest is");
    std::fs::write(&blob, [&layer[..], &[0]].concat()).unwrap();
    scene.refused("the manifest says");
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(scene.base.join("outside/victim"), &blob).unwrap();
    scene.refused("open a file of the image");
    let both = json!({"schemaVersion": 2, "config": {"mediaType": "", "digest": Digest::of(b""), "size": 0},
        "layers": [], "manifests": []});
    scene.index(&[scene.blob(documents::MANIFEST, both.to_string().as_bytes())]);
    scene.refused("a manifest and an index at once");
    let mut nested = scene.blob(documents::INDEX, json!({"manifests": []}).to_string().as_bytes());
    scene.index(&[nested.clone()]);
    scene.refused("no image for linux/amd64");
    for _ in 0..6 {
        nested = scene.blob(documents::INDEX, json!({"manifests": [nested]}).to_string().as_bytes());
    }
    scene.index(&[nested]);
    scene.refused("more than 4 indexes");
    let (wrong, good) = ("sha256:../../../../outside/victim", "md5:d41d8cd98f00b204e9800998ecf8427e");
    scene.index(&[json!({"mediaType": "", "digest": wrong, "size": 1})]);
    scene.refused("is not 64 hex digits");
    scene.index(&[json!({"mediaType": "", "digest": good, "size": 1})]);
    scene.refused("of another kind than sha256");
    scene.index(&[json!({"mediaType": "", "digest": Digest::of(b""), "size": 1_u64 << 40})]);
    scene.refused("is larger than");
}

/// One file serves as the blob and as the archive that the index points into.
#[test]
fn a_plain_blob_is_kept_once() {
    if !is_root() || !can_mount_erofs() {
        return;
    }
    let scene = Scene::new("once");
    let layer = Tar::default().file("a", &"x".repeat(32768)).end();
    let packed = gzip(&layer);
    for (blob, links) in [(layer.clone(), 2), (packed, 1)] {
        scene.layout_of(&[(blob.clone(), Digest::of(&layer))]);
        scene.import_as(Backing::Erofs, Limits::default()).unwrap();
        let archive = scene.tree(0).with_extension("tar");
        let kept = std::fs::metadata(&archive).unwrap();
        assert_eq!((kept.len(), kept.nlink()), (layer.len() as u64, links));
        let used = super::manage::usage(&scene.store()).unwrap();
        let least = if links == 2 { 0 } else { kept.len() };
        assert!(used[0].layers >= least && (links == 1 || used[0].layers < 16384), "{used:?}");
        // Also without the blob, when the image goes: each name is of its own.
        let stored = scene.store().blob(Digest::of(&blob));
        assert_eq!(std::fs::metadata(&stored).unwrap().ino() == kept.ino(), links == 2);
        let store = scene.store();
        store.untag(&super::Reference::parse("test").unwrap()).unwrap();
        super::manage::collect(&store, &std::collections::BTreeSet::new()).unwrap();
        assert!(!archive.exists() && !stored.exists());
    }
}

/// An index.json that lists platforms itself, as buildx and crane write it, is one image.
#[test]
fn an_index_that_lists_platforms_is_one_image() {
    if !is_root() {
        return;
    }
    let scene = Scene::new("platforms");
    let of = |platform: &str, name: Option<&str>| {
        scene.layout(&[Tar::default().file(&platform.replace('/', "-"), "x").end()]);
        let index = std::fs::read(scene.base.join("layout/index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let mut described = index["manifests"][0].clone();
        let mut parts = platform.split('/');
        described["platform"] = json!({"os": parts.next().unwrap(), "architecture": parts.next().unwrap()});
        if let Some(name) = name {
            described["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        described
    };
    let import_all = |name: Option<&str>, platform: &str| {
        let request = super::ImportRequest {
            from: scene.base.join("layout"),
            name: name.map(|name| super::Reference::parse(name).unwrap()),
            platform: documents::Platform::parse(platform).unwrap(),
            limits: Limits::default(),
            backing: Backing::Directory,
            progress: std::sync::Arc::default(),
        };
        super::import(&scene.store(), &request)
    };
    // Also beside what a builder attests, whose platform nobody has.
    for name in [None, Some("latest"), Some("example.com/some:1")] {
        let all = ["unknown/unknown", "linux/arm64", "linux/amd64"].map(|platform| of(platform, name));
        scene.index(&all);
        for platform in ["linux/amd64", "linux/arm64"] {
            let imported = import_all(Some("test"), platform).unwrap();
            assert_eq!(imported.len(), 1, "{name:?}");
            assert!(scene.layer(0).join(platform.replace('/', "-")).is_file(), "{name:?} {platform}");
        }
        let error = import_all(Some("other"), "linux/riscv64").unwrap_err().to_string();
        assert!(error.contains("no image for linux/riscv64") && error.contains("linux/arm64"), "{error}");
    }
    // Under names of their own they are images of their own, whatever their platforms; so are those
    // that have no platform.
    let two = [of("linux/amd64", Some("two:1")), of("linux/arm64", Some("two:2"))];
    scene.index(&two);
    assert_eq!(import_all(None, "linux/amd64").unwrap().len(), 2);
    scene.index(&[of("linux/arm64", Some("foreign:1"))]);
    assert_eq!(import_all(None, "linux/amd64").unwrap().len(), 1);
    let bare = two.map(|mut one| {
        one.as_object_mut().unwrap().remove("platform");
        one
    });
    scene.index(&bare);
    assert_eq!(import_all(None, "linux/amd64").unwrap().len(), 2);
    scene.index(&[of("linux/ar\nm", None), of("linux/arm64", None)]);
    scene.refused("no image for linux/amd64");
}

#[test]
fn documents_of_the_wrong_kind_or_size() {
    if !is_root() {
        return;
    }
    let scene = Scene::new("kinds");
    let manifest = |media_type: &str, config: &serde_json::Value, layer: &serde_json::Value| {
        json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]}).to_string()
    };
    let plain = Tar::default().file("a", "x").end();
    let layer = scene.blob("application/vnd.oci.image.layer.v1.tar", &plain);
    let config = json!({"rootfs": {"diff_ids": [Digest::of(&plain)]}}).to_string();
    let config = scene.blob(documents::CONFIG, config.as_bytes());
    let put = |described: &str, own: &str, config: &serde_json::Value, layer: &serde_json::Value| {
        scene.index(&[scene.blob(described, manifest(own, config, layer).as_bytes())]);
    };
    put(documents::INDEX, documents::MANIFEST, &config, &layer);
    scene.refused("and the document itself");
    put(documents::INDEX, "", &config, &layer);
    scene.refused("its media type says index, and it is a manifest");
    let odd = scene.blob("application/vnd.example.model", &plain);
    put(documents::MANIFEST, documents::MANIFEST, &config, &odd);
    scene.refused("a layer of the unknown media type");
    let large = scene.blob(documents::CONFIG, &vec![b' '; 5 << 20]);
    put(documents::MANIFEST, documents::MANIFEST, &large, &layer);
    scene.refused("is larger than 4194304 bytes");
    let short = json!({"rootfs": {"diff_ids": []}}).to_string();
    let short = scene.blob(documents::CONFIG, short.as_bytes());
    put(documents::MANIFEST, documents::MANIFEST, &short, &layer);
    scene.refused("its manifest has 1 layers, and its configuration 0");
    let deep = scene.blob(documents::CONFIG, &b"[".repeat(100_000));
    put(documents::MANIFEST, documents::MANIFEST, &deep, &layer);
    scene.refused("its configuration cannot be read");
    put(documents::MANIFEST, documents::MANIFEST, &config, &layer);
    scene.import().unwrap();
}

#[test]
fn docker_archives_that_lead_out() {
    if !is_root() {
        return;
    }
    let layer = Tar::default().file("a", "x").end();
    let config = json!({"rootfs": {"diff_ids": [Digest::of(&layer)]}}).to_string();
    let archive = |config_path: &str, layer_path: &str, extra: Tar| {
        let manifest = json!([{"Config": config_path, "RepoTags": ["test:1"], "Layers": [layer_path]}]);
        extra
            .file("manifest.json", &manifest.to_string())
            .file("config.json", &config)
            .raw(header("l/layer.tar", b'0', layer.len() as u64), &layer)
            .end()
    };
    let scene = Scene::new("docker");
    let place = scene.base.join("layout");
    std::fs::remove_dir_all(&place).unwrap();
    let cases = [
        (archive("../outside/victim", "l/layer.tar", Tar::default()), "`..`"),
        (archive("config.json", "../outside/victim", Tar::default()), "`..`"),
        (archive("config.json", "none", Tar::default()), "it lacks the file \"none\""),
        (archive("config.json", "s", Tar::default().symlink("s", "/etc/passwd")), "is no file of its own"),
    ];
    for (bytes, words) in cases {
        std::fs::write(&place, bytes).unwrap();
        scene.refused(words);
    }
    std::fs::write(&place, gzip(&archive("config.json", "l/layer.tar", Tar::default()))).unwrap();
    scene.import().unwrap();
    assert_eq!(std::fs::read_to_string(scene.layer(0).join("a")).unwrap(), "x");
    // What is saved is a layout and a docker archive, and the same image.
    let store = scene.store();
    let image = store.find("test").unwrap();
    let mut saved = Vec::new();
    super::save::save(&store, &image, &mut saved).unwrap();
    std::fs::write(&place, saved).unwrap();
    let again = scene.import().unwrap();
    assert_eq!((again.manifest, again.shared), (image.digest, 1));
}

#[test]
fn gc_takes_what_no_name_leads_to() {
    let Some(scene) = accept("gc", &[Tar::default().file("a", "x")]) else { return };
    let layer = scene.layer(0);
    let store = scene.store();
    super::manage::collect(&store, &std::collections::BTreeSet::new()).unwrap();
    assert!(layer.is_dir());
    store.untag(&super::Reference::parse("test").unwrap()).unwrap();
    let collected = super::manage::collect(&store, &std::collections::BTreeSet::new()).unwrap();
    assert_eq!((collected.blobs, collected.layers), (3, 1));
    assert!(!layer.exists());
}
