// The bodies of the targets for images, for the fuzzer and for the test that replays the corpus.
// Each user of this file calls some of them.
#![allow(dead_code)]

use dhow::image::documents::{Document, ImageConfig, Index, Saved, parse};
use dhow::image::erofs::{NodeKind, Tree, write};
use dhow::image::tar::{Kind, Reader};
use dhow::image::{Digest, Reference};

/// The reader of archives: it ends, what it answers fits Linux, and no content is longer than the
/// archive.
pub fn tar(data: &[u8]) {
    let mut reader = Reader::new(data);
    while let Ok(Some(entry)) = reader.next() {
        assert!(entry.kind == Kind::File || entry.size == 0);
        assert!(entry.mode <= 0o7777 && entry.uid != u32::MAX && entry.gid != u32::MAX);
        assert!(entry.mtime.0 >= 0 && entry.mtime.1 < 1_000_000_000);
        assert!(reader.position() <= data.len() as u64);
        let mut length = 0;
        while let Ok(piece) = reader.content() {
            let count = piece.len();
            if count == 0 {
                break;
            }
            length += count as u64;
            reader.consume(count);
        }
        assert!(length <= entry.size);
    }
    let _ = reader.drain();
}

/// A whole layer with its whiteouts and links as a tree, and that as EROFS. Every name of the tree
/// is one that a directory can have, and every link is counted.
pub fn layer(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let mut tree = Tree::new(first & 1 == 1);
    let mut reader = Reader::new(data);
    while let Ok(Some(entry)) = reader.next() {
        let _ = tree.take(&entry, reader.position());
    }
    let mut names = vec![0_u32; tree.nodes.len()];
    let mut seen = 0;
    let mut todo = vec![0];
    while let Some(number) = todo.pop() {
        seen += 1;
        assert!(seen <= tree.nodes.len(), "a directory has two names");
        let NodeKind::Directory(children) = &tree.nodes[number].kind else { continue };
        for (name, child) in children {
            assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&b'/') && !name.contains(&0));
            assert!(!name.starts_with(b".wh.") && name != b"." && name != b"..");
            names[*child] += 1;
            if names[*child] == 1 {
                todo.push(*child);
            }
        }
    }
    for (node, count) in tree.nodes.iter().zip(names).skip(1) {
        assert_eq!(node.links, count);
    }
    let mut image = Vec::new();
    write(&tree, data.len() as u64, [0; 16], &mut image).expect("memory can be written to");
    assert!(image.len().is_multiple_of(512));
}

/// Every document of an image, and names.
pub fn documents(data: &[u8]) {
    let _ = parse::<Index>(data, "index.json");
    let _ = parse::<Vec<Saved>>(data, "manifest.json");
    let _ = parse::<ImageConfig>(data, "configuration");
    for media_type in ["", "application/vnd.oci.image.manifest.v1+json"] {
        let _ = Document::parse(data, media_type);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(digest) = Digest::parse(text) {
            assert_eq!(digest.to_string(), text);
        }
        if let Ok(name) = Reference::parse(text) {
            let full = name.to_string();
            // A tag may have dots side by side, and has no slash.
            let path = full.rsplit_once(':').map_or("", |(path, _)| path);
            assert!(!path.contains("..") && !full.starts_with('/') && !path.is_empty());
            assert_eq!(Reference::parse(&full).map(|again| again.to_string()).ok(), Some(full));
        }
    }
}
