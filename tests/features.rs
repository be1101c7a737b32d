//! `dhow features` leaves nothing out: what the sources understand is listed. That each listed thing is really
//! carried out is shown on the kernel by integration/tests/features.rs.

use dhow::runtime::features;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

fn parse(path: &Path) -> syn::File {
    syn::parse_file(&fs::read_to_string(path).expect("read a source")).expect("parse a source")
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)
}

fn strings(document: &serde_json::Value, pointer: &str) -> BTreeSet<String> {
    let list = document.pointer(pointer).and_then(serde_json::Value::as_array).expect("a list");
    list.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
}

/// String literals in patterns, of the functions with these names.
struct Patterns {
    functions: &'static [&'static str],
    inside: bool,
    found: BTreeSet<String>,
}

impl<'a> Visit<'a> for Patterns {
    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.enter(&function.sig.ident.to_string(), |this| visit::visit_impl_item_fn(this, function));
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.enter(&function.sig.ident.to_string(), |this| visit::visit_item_fn(this, function));
    }

    fn visit_pat(&mut self, pattern: &'a syn::Pat) {
        if let syn::Pat::Lit(literal) = pattern
            && let syn::Lit::Str(text) = &literal.lit
            && self.inside
        {
            self.found.insert(text.value());
        }
        visit::visit_pat(self, pattern);
    }
}

impl Patterns {
    fn enter(&mut self, name: &str, go: impl FnOnce(&mut Self)) {
        let before = self.inside;
        self.inside |= self.functions.contains(&name);
        go(self);
        self.inside = before;
    }
}

#[test]
fn every_mount_option_of_the_parser_is_listed() {
    let listed = strings(&features(), "/mountOptions");
    let mut words = Patterns { functions: &["add", "propagation"], inside: false, found: BTreeSet::new() };
    words.visit_file(&parse(&source("rootfs/options.rs")));
    words.found.remove("");
    assert!(words.found.len() > 20, "only {:?} were seen: the test looks at the wrong place", words.found);
    for word in &words.found {
        assert!(listed.contains(word), "{word} is understood and not listed");
    }
}

/// String constants anywhere.
struct Literals(BTreeSet<String>);

impl<'a> Visit<'a> for Literals {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_lit_str(&mut self, text: &'a syn::LitStr) {
        self.0.insert(text.value());
    }
}

fn literals(directory: &Path, found: &mut Literals) {
    for entry in fs::read_dir(directory).expect("read src").flatten() {
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            literals(&path, found);
        } else if name.ends_with(".rs") && !name.ends_with("_test.rs") {
            found.visit_file(&parse(&path));
        }
    }
}

#[test]
fn every_annotation_that_asks_something_of_dhow_is_listed() {
    let listed = strings(&features(), "/potentiallyUnsafeConfigAnnotations");
    let mut found = Literals(BTreeSet::new());
    literals(&source(""), &mut found);
    let asks = |text: &&String| {
        ["run.oci.", "org.criu.", "org.systemd.property"].iter().any(|begin| text.starts_with(begin))
    };
    let asked: Vec<&String> = found.0.iter().filter(asks).collect();
    assert!(asked.len() > 8, "only {asked:?} were seen: the test looks at the wrong place");
    for name in asked {
        // The beginnings by which an image is kept from asking anything.
        let is_prefix = matches!(name.as_str(), "run.oci." | "org.criu.");
        assert!(is_prefix || listed.contains(name), "{name} is not in potentiallyUnsafeConfigAnnotations");
    }
}
