//! The library's API is what docs/public-api.txt lists: a change of it is seen in a review, and meant.
//!
//! The list is made from the sources: what src/lib.rs re-exports, with its public fields, variants,
//! functions, derived and implemented traits. `DHOW_WRITE=1 cargo test --test public_api` writes it anew.
//! `cargo public-api` tells nearly the same from rustdoc's JSON, but takes a minute, a compiler that it
//! knows, and a tool that is not everywhere; cargo-semver-checks wants a published version to compare with.

use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::{Attribute, Fields, File, ImplItem, Item, ItemImpl, Meta, UseTree, Visibility};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn parse(path: &Path) -> File {
    let text = fs::read_to_string(path).expect("read a source");
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sources that the API comes from.
fn sources() -> Vec<File> {
    let api = fs::read_dir(root().join("src/api")).expect("src/api").flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = api.chain([root().join("src/error.rs")]).collect();
    paths.sort();
    paths.iter().map(|path| parse(path)).collect()
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn has(attributes: &[Attribute], text: &str) -> bool {
    attributes.iter().any(|one| words(&one.meta) == text)
}

/// Code as a person writes it, more or less.
fn words(code: &impl ToTokens) -> String {
    let mut text = code.to_token_stream().to_string();
    for (from, to) in [
        (" :: ", "::"),
        (" ,", ","),
        (" :", ":"),
        ("& ", "&"),
        (" < ", "<"),
        (" >", ">"),
        ("< ", "<"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ;", ";"),
        (" [", "["),
        ("[ ", "["),
        (" ]", "]"),
        (" !", "!"),
        ("->", " ->"),
        ("  ", " "),
    ] {
        text = text.replace(from, to);
    }
    text.replace(",)", ")")
}

/// The names in a `use`, each as others see it.
fn names(tree: &UseTree) -> Vec<String> {
    match tree {
        UseTree::Path(path) => names(&path.tree),
        UseTree::Name(name) => vec![name.ident.to_string()],
        UseTree::Group(group) => group.items.iter().flat_map(names).collect(),
        UseTree::Rename(_) | UseTree::Glob(_) => panic!("name what is exported, one by one"),
    }
}

/// What a crate that depends on this one is meant to see.
fn exported(lib: &File) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for item in &lib.items {
        match item {
            Item::Use(one) if is_public(&one.vis) => found.extend(names(&one.tree)),
            Item::Mod(one) if is_public(&one.vis) => {
                assert!(
                    has(&one.attrs, "doc(hidden)"),
                    "mod {} is public: export its items, or hide it",
                    one.ident
                );
            }
            Item::Fn(one) if is_public(&one.vis) => panic!("{}: keep src/lib.rs to `pub use`", one.sig.ident),
            _ => {}
        }
    }
    found
}

fn traits(attributes: &[Attribute]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for one in attributes {
        if let Meta::List(list) = &one.meta
            && list.path.is_ident("derive")
        {
            let derived = list.tokens.to_string();
            found.extend(
                derived.split(',').map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()),
            );
        }
    }
    found
}

type List = BTreeMap<String, BTreeSet<String>>;

fn fields(name: &str, fields: &Fields, list: &mut BTreeSet<String>) {
    for field in fields {
        if let Some(ident) = field.ident.as_ref().filter(|_| is_public(&field.vis)) {
            list.insert(format!("field {name}.{ident}: {}", words(&field.ty)));
        }
    }
}

fn describe(item: &Item, wanted: &BTreeSet<String>, list: &mut List) {
    let mut begin = |ident: &syn::Ident, vis: &Visibility, attributes: &[Attribute], kind: &str| {
        let name = ident.to_string();
        if !is_public(vis) || !wanted.contains(&name) {
            return None;
        }
        let open = if has(attributes, "non_exhaustive") { " (non_exhaustive)" } else { "" };
        let entry = list.entry(name.clone()).or_default();
        entry.insert(format!("{kind} {name}{open}"));
        entry.extend(traits(attributes).into_iter().map(|one| format!("impl {one} for {name}")));
        Some(name)
    };
    match item {
        Item::Struct(one) => {
            if let Some(name) = begin(&one.ident, &one.vis, &one.attrs, "struct") {
                fields(&name, &one.fields, list.entry(name.clone()).or_default());
            }
        }
        Item::Enum(one) => {
            if let Some(name) = begin(&one.ident, &one.vis, &one.attrs, "enum") {
                let variants = one
                    .variants
                    .iter()
                    .map(|variant| format!("variant {name}::{}{}", variant.ident, words(&variant.fields)));
                list.entry(name.clone()).or_default().extend(variants);
            }
        }
        Item::Type(one) => {
            if let Some(name) = begin(&one.ident, &one.vis, &one.attrs, "type") {
                list.entry(name)
                    .or_default()
                    .insert(words(one).split("type ").last().unwrap_or("").to_owned());
            }
        }
        Item::Fn(one) if is_public(&one.vis) && wanted.contains(&one.sig.ident.to_string()) => {
            list.entry(one.sig.ident.to_string()).or_default().insert(words(&one.sig));
        }
        Item::Impl(one) => methods(one, wanted, list),
        _ => {}
    }
}

fn methods(block: &ItemImpl, wanted: &BTreeSet<String>, list: &mut List) {
    let name = words(&block.self_ty);
    if !wanted.contains(&name) || has(&block.attrs, "doc(hidden)") {
        return;
    }
    if let Some((_, path, _)) = &block.trait_ {
        let path = words(path);
        list.entry(name.clone()).or_default().insert(format!("impl {path} for {name}"));
        return;
    }
    for item in &block.items {
        if let ImplItem::Fn(one) = item
            && is_public(&one.vis)
        {
            list.entry(name.clone()).or_default().insert(format!("{name}: {}", words(&one.sig)));
        }
    }
}

#[test]
fn the_api_is_what_is_written_down() {
    let wanted = exported(&parse(&root().join("src/lib.rs")));
    let mut list = List::new();
    for file in sources() {
        file.items.iter().for_each(|item| describe(item, &wanted, &mut list));
    }
    let found: BTreeSet<String> = list.keys().cloned().collect();
    assert_eq!(found, wanted, "every exported name is in src/api or src/error.rs");
    let text: String = list
        .into_iter()
        .map(|(name, lines)| {
            lines.into_iter().fold(format!("# {name}\n"), |text, line| text + &line + "\n") + "\n"
        })
        .collect();
    // What cannot be named outside cannot be a part of it.
    for word in ["crate::", "nix::", "rustix::", "serde_json::", "spec::", "state::", "cgroups::", "Context"]
    {
        assert!(!text.lines().any(|line| line.contains(word)), "{word} is in the API");
    }
    let path = root().join("docs/public-api.txt");
    if std::env::var_os("DHOW_WRITE").is_some() {
        fs::write(&path, &text).expect("write the list");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    for line in text.lines().filter(|line| !written.lines().any(|other| other == *line)) {
        eprintln!("new:  {line}");
    }
    for line in written.lines().filter(|line| !text.lines().any(|other| other == *line)) {
        eprintln!("gone: {line}");
    }
    assert!(
        written == text,
        "the API has changed: if that is meant, DHOW_WRITE=1 cargo test --test public_api, and the CHANGELOG"
    );
}
