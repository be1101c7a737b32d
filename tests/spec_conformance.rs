//! docs/spec-conformance.md has a row for each field of the types in src/spec, none for anything else, and
//! names tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use syn::{Attribute, Field, GenericArgument, Item, ItemStruct, LitStr, PathArguments, Type};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The structs of src/spec, by name.
fn structs() -> BTreeMap<String, ItemStruct> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root().join("src/spec")).expect("src/spec").flatten() {
        let text = fs::read_to_string(entry.path()).expect("read a source");
        for item in syn::parse_file(&text).expect("parse a source").items {
            if let Item::Struct(one) = item {
                found.insert(one.ident.to_string(), one);
            }
        }
    }
    found
}

/// The value of `name = "…"` in a serde attribute.
fn serde(attributes: &[Attribute], name: &str) -> Option<String> {
    let mut found = None;
    for one in attributes.iter().filter(|one| one.path().is_ident("serde")) {
        let _ = one.parse_nested_meta(|meta| {
            let text = meta.value().and_then(syn::parse::ParseBuffer::parse::<LitStr>);
            if meta.path.is_ident(name) {
                found = text.ok().map(|text| text.value());
            }
            Ok(())
        });
    }
    found
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
}

fn json_name(field: &Field, in_camel_case: bool) -> String {
    let name = field.ident.as_ref().expect("a named field").to_string();
    match serde(&field.attrs, "rename") {
        Some(renamed) => renamed,
        None if in_camel_case => camel_case(&name),
        None => name,
    }
}

/// What is inside of Option, Vec, Box and maps, and how a path goes into it.
fn inner(kind: &Type) -> (String, String) {
    let Type::Path(path) = kind else { panic!("a type of another form") };
    let last = path.path.segments.last().expect("a name");
    let arguments = match &last.arguments {
        PathArguments::AngleBracketed(arguments) => arguments.args.iter().collect(),
        _ => Vec::new(),
    };
    let last_argument = arguments.last().and_then(|one| match one {
        GenericArgument::Type(kind) => Some(inner(kind)),
        _ => None,
    });
    let step = match last.ident.to_string().as_str() {
        "Option" | "Box" => "",
        "Vec" => "[]",
        "BTreeMap" => ".*",
        name => return (name.to_owned(), String::new()),
    };
    let (name, further) = last_argument.expect("what it holds");
    (name, format!("{step}{further}"))
}

fn walk(
    name: &str,
    at: &str,
    structs: &BTreeMap<String, ItemStruct>,
    seen: &mut BTreeSet<String>,
    fields: &mut BTreeSet<String>,
) {
    let Some(one) = structs.get(name) else { return };
    if !seen.insert(name.to_owned()) {
        return;
    }
    let in_camel_case = serde(&one.attrs, "rename_all").is_some_and(|form| form == "camelCase");
    for field in &one.fields {
        let path = format!("{at}{}", json_name(field, in_camel_case));
        let (kind, step) = inner(&field.ty);
        walk(&kind, &format!("{path}{step}."), structs, seen, fields);
        fields.insert(path);
    }
}

/// The cells of the page's table.
fn rows() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/spec-conformance.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

#[test]
fn each_field_has_a_row_and_each_row_a_field() {
    let (mut fields, structs) = (BTreeSet::new(), structs());
    walk("Spec", "", &structs, &mut BTreeSet::new(), &mut fields);
    assert!(fields.len() > 150, "only {} fields were seen: the test looks at the wrong place", fields.len());
    let named: Vec<String> = rows().iter().map(|row| row[0].trim_matches('`').to_owned()).collect();
    let unique: BTreeSet<String> = named.iter().cloned().collect();
    assert_eq!(named.len(), unique.len(), "a field has two rows");
    let missing: Vec<_> = fields.difference(&unique).collect();
    let unknown: Vec<_> = unique.difference(&fields).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "without a row: {missing:#?}\nno field: {unknown:#?}");
}

fn has_test(path: &Path, name: &str) -> bool {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.iter().position(|line| line.starts_with(&format!("fn {name}("))).is_some_and(|at| {
        lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).any(|line| *line == "#[test]")
    })
}

#[test]
fn each_test_that_is_named_exists() {
    let mut looked_at = 0;
    for row in rows() {
        assert_eq!(row.len(), 5, "{row:?}");
        let (field, since, tests) = (&row[0], &row[1], &row[3]);
        assert!(since == "—" || since.parse::<f32>().is_ok(), "{field}: {since}");
        for test in tests.split(", ") {
            let (file, name) =
                test.trim_matches('`').split_once(": ").unwrap_or_else(|| panic!("{field}: {test}"));
            let path = match file.ends_with(".rs") {
                true => root().join(file),
                false => root().join(format!("integration/tests/{file}.rs")),
            };
            assert!(has_test(&path, name), "{field}: there is no test {name} in {}", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 200, "only {looked_at} tests were seen");
}
