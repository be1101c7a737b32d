//! What the fuzzer begins with, and every archive of it cut off
//! at every block, and with every byte of its first headers changed.

#[path = "../fuzz/images.rs"]
mod images;

use std::fs;
use std::path::Path;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let all: Vec<Vec<u8>> = entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
    assert!(all.len() > 5, "{}", directory.display());
    all
}

fn archives(run: impl Fn(&[u8])) {
    for archive in corpus("image_tar") {
        run(&archive);
        for end in (0..archive.len()).step_by(256) {
            run(&archive[..end]);
        }
        for at in 0..archive.len().min(2048) {
            for flip in [0x01, 0x80] {
                let mut changed = archive.clone();
                changed[at] ^= flip;
                run(&changed);
                // With the right checksum the change gets further.
                let block = at / 512 * 512;
                if let Some(header) = changed.get_mut(block..block + 512) {
                    header[148..156].fill(b' ');
                    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
                    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                    run(&changed);
                }
            }
        }
    }
}

#[test]
fn archives_are_read_or_refused() {
    archives(images::tar);
}

#[test]
fn layers_become_trees_or_are_refused() {
    for lowers in [0, 1] {
        archives(|archive| images::layer(&[&[lowers], archive].concat()));
    }
    for found in corpus("image_layer") {
        images::layer(&found);
    }
}

#[test]
fn documents_are_read_or_refused() {
    for document in corpus("image_documents") {
        images::documents(&document);
        for end in 0..document.len() {
            images::documents(&document[..end]);
            let mut changed = document.clone();
            changed[end] ^= 0x10;
            images::documents(&changed);
        }
    }
}
