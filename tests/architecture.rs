//! The rooms of the house import only downwards (docs/architecture.md), and only `sys` is unsafe.

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by floor, from the top. Rooms on one floor do not import each other.
const FLOORS: [&[&str]; 7] = [
    &["cli", "api"],
    &["runtime"],
    &["process", "image"],
    &["namespaces", "rootfs", "cgroups", "seccomp", "state"],
    &["spec"],
    &["error", "log"],
    &["sys"],
];

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("read src").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The room that a file belongs to; `None` for main.rs and lib.rs.
fn room_of(path: &Path, root: &Path) -> Option<String> {
    let first = path.strip_prefix(root).ok()?.components().next()?.as_os_str().to_str()?;
    let name = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(name, "main" | "lib")).then(|| name.to_owned())
}

fn floor_of(room: &str) -> usize {
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("room {room} has no floor"))
}

/// The rooms that a text names as `crate::room`.
fn imports(text: &str) -> Vec<String> {
    let code: String =
        text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    code.match_indices("crate::")
        .map(|(at, word)| {
            code[at + word.len()..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
        })
        .filter(|room: &String| FLOORS.iter().any(|rooms| rooms.contains(&room.as_str())))
        .collect()
}

#[test]
fn imports_go_down() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut looked_at = 0;
    for path in sources(&root) {
        let Some(room) = room_of(&path, &root) else { continue };
        let text = fs::read_to_string(&path).expect("read a source");
        for import in imports(&text) {
            looked_at += 1;
            let same_floor_ok = room == import || (room == "log" && import == "error");
            assert!(
                same_floor_ok || floor_of(&import) > floor_of(&room),
                "{}: {room} must not import {import}",
                path.display()
            );
        }
    }
    assert!(looked_at > 100, "only {looked_at} imports were seen: the test looks at the wrong place");
}

#[test]
fn unsafe_is_in_sys_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in sources(&root) {
        if room_of(&path, &root).as_deref() == Some("sys") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("read a source");
        assert!(!text.contains("unsafe {") && !text.contains("allow(unsafe_code)"), "{}", path.display());
    }
}

/// The last name in a mangled symbol of dhow's (rustc's book, "v0 Symbol Format"): of
/// `_RNvMs1_NtC4dhow5stateNtB5_6Locked4mark` it is `mark`.
fn function_of(symbol: &str) -> Option<&str> {
    let mut rest = symbol.strip_prefix("_RNv")?;
    let mut names = Vec::new();
    while let Some(first) = rest.chars().next() {
        if first.is_ascii_digit() {
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            let length: usize = rest[..digits].parse().ok()?;
            names.push(rest.get(digits..digits + length)?);
            rest = &rest[digits + length..];
        } else {
            // `s…_` tells impls of one module apart, `B…_` refers back.
            let skipped = if matches!(first, 's' | 'B') { rest.find('_')? + 1 } else { 1 };
            rest = &rest[skipped..];
        }
    }
    names.pop().filter(|_| names.first() == Some(&"dhow"))
}

#[test]
fn the_linkers_list_is_of_functions_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let code: String =
        sources(&root.join("src")).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let list = fs::read_to_string(root.join(".ci/order.txt")).expect("read .ci/order.txt");
    let ours: Vec<&str> = list.lines().filter_map(function_of).collect();
    let gone: Vec<&&str> = ours.iter().filter(|name| !code.contains(&format!("fn {name}"))).collect();
    assert!(ours.len() > 200, "{}", ours.len());
    assert!(gone.len() * 20 < ours.len(), "`make order` makes .ci/order.txt anew; gone are {gone:?}");
}
