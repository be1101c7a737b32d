//! What the fuzzer begins with, and every archive of it cut off
//! at every block, and with every byte of its first headers changed.

#[path = "../fuzz/images.rs"]
mod images;
#[path = "../fuzz/plain.rs"]
mod plain;
#[path = "../fuzz/seccomp.rs"]
mod seccomp;

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

/// Each seed as it is, cut off at every byte, and with every byte changed.
fn replay(target: &str, run: impl Fn(&[u8])) {
    for seed in corpus(target) {
        run(&seed);
        for at in 0..seed.len() {
            run(&seed[..at]);
            // The long ones have plenty of places.
            let flips = if seed.len() > 1000 { &[0x10][..] } else { &[0x01, 0x10, 0x80][..] };
            for flip in flips {
                let mut changed = seed.clone();
                changed[at] ^= flip;
                run(&changed);
            }
        }
    }
}

#[test]
fn configurations_are_planned_or_refused() {
    replay("config", plain::config);
}

#[test]
fn records_are_read_or_refused() {
    replay("record", plain::record);
}

#[test]
fn mount_options_are_understood_or_the_filesystems() {
    replay("mount_options", plain::mount_options);
}

#[test]
fn maps_of_ids_are_possible_or_refused() {
    replay("idmaps", plain::idmaps);
}

#[test]
fn profiles_compile_to_what_they_say() {
    replay("seccomp", seccomp::profile);
}

/// Every target of the fuzzer has seeds, and `make fuzz` runs it.
#[test]
fn every_target_is_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(root.join(path)).expect("a directory of fuzz");
        let stem = |entry: fs::DirEntry| Some(entry.path().file_stem()?.to_str()?.to_owned());
        let mut names: Vec<String> = entries.filter_map(|entry| stem(entry.ok()?)).collect();
        names.sort();
        names
    };
    assert_eq!(names("fuzz/fuzz_targets"), names("fuzz/seeds"));
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).expect("fuzz/Cargo.toml");
    let here = fs::read_to_string(file!()).expect("this file");
    for target in names("fuzz/fuzz_targets") {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "{target}");
        assert!(here.contains(&format!("\"{target}\"")), "{target} is not replayed");
    }
}
