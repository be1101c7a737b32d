//! Commit: a container's writable layer becomes an image's topmost layer.

use super::archive::{Writer, plain};
use super::bundle::Origin;
use super::changes::{self, Change, Kind};
use super::digest::{Digest, Hasher};
use super::documents::{CONFIG, Descriptor, INDEX, MANIFEST, MOST_DOCUMENT, Platform, parse};
use super::store::{Image, Store, Tag, Workplace};
use super::{Backing, ImportRequest, Imported, Limits, Reference, import};
use crate::error::{Class, Context as _, Error, Result};
use crate::spec::load;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

/// The level of the new layer's compression: zlib's own default takes twice the time for two percent.
const LEVEL: u32 = 4;

/// The media type of the new layer.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What is asked of a commit.
#[derive(Debug, Clone, Default)]
pub struct CommitRequest {
    /// What the layer is for.
    pub message: String,
    /// Who made it.
    pub author: String,
    /// Changes of the configuration, as lines of a Dockerfile.
    pub changes: Vec<String>,
}

/// Makes an image of a container's bundle.
///
/// # Errors
/// [`Class::Usage`] for a change that cannot be made; what is wrong with the store or the bundle.
/// Then the store is as it was before.
pub fn commit(store: &Store, bundle: &Path, name: &Reference, request: &CommitRequest) -> Result<Imported> {
    let origin = Origin::load(bundle)?.ok_or_else(|| {
        Error::new(Class::Config, "commit")
            .on(bundle.display().to_string())
            .because("the container was not made from an image")
    })?;
    let base = store.image(&Tag {
        name: origin.name.clone(),
        manifest: origin.manifest,
        media_type: MANIFEST.into(),
        tagged: String::new(),
    })?;
    // What cannot be made is said before anything is read.
    request.changes.iter().try_for_each(|line| change(&mut json!({}), line))?;
    let workplace = store.workplace()?;
    let layout = workplace.path.join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).doing("make a layout")?;
    let (layer, diff) = write_layer(&layout, bundle)?;
    let config = config(store, &base, bundle, diff, request)?;
    write_layout(store, &base, &layout, layer, &config)?;
    // From here on it is as any other image that comes in: checked, unpacked, tagged last.
    let import_request = ImportRequest {
        from: layout,
        name: Some(name.clone()),
        platform: Platform::parse(&format!("{}/{}", base.config.os, base.config.architecture))
            .unwrap_or_else(Platform::host),
        limits: Limits { ratio: u64::MAX, ..Limits::default() },
        backing: Backing::default(),
        progress: Arc::default(),
    };
    let mut imported = import(store, &import_request)?;
    drop::<Workplace>(workplace);
    imported.pop().ok_or_else(|| Error::new(Class::Internal, "commit").because("nothing was imported"))
}

/// Hashes what passes through.
struct Hashed<W> {
    out: W,
    hasher: Hasher,
}

impl<W> Hashed<W> {
    fn new(out: W) -> Hashed<W> {
        Hashed { out, hasher: Hasher::default() }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes the layer's blob; answers its descriptor and its diffID.
fn write_layer(layout: &Path, bundle: &Path) -> Result<(Descriptor, Digest)> {
    let doing = "write the layer";
    let path = layout.join("layer");
    let blob = Hashed::new(io::BufWriter::new(File::create(&path).doing(doing)?));
    let plain_layer = Hashed::new(GzEncoder::new(blob, Compression::new(LEVEL)));
    let mut writer = Writer::new(plain_layer);
    changes::visit(bundle, &mut |change| write_change(&mut writer, &change))?;
    let plain_layer = writer.finish()?;
    let diff = plain_layer.hasher.finish();
    let mut blob = plain_layer.out.finish().doing(doing)?;
    blob.flush().doing(doing)?;
    let size = blob.hasher.count;
    let digest = blob.hasher.finish();
    std::fs::rename(&path, layout.join("blobs/sha256").join(digest.hex())).doing(doing)?;
    Ok((Descriptor { media_type: LAYER.into(), digest, size, platform: None, annotations: None }, diff))
}

fn write_change(writer: &mut Writer<impl Write>, change: &Change) -> Result<()> {
    let (directory, name) = match change.path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => change.path.split_at(at + 1),
        None => (&b""[..], &change.path[..]),
    };
    if name.starts_with(b".wh.") {
        return Err(Error::new(Class::Unsupported, "write the layer")
            .on(changes::shown(&change.path))
            .because("in a layer, a name that begins with .wh. says that a file is gone")
            .hint("remove or rename it in the container"));
    }
    match (&change.found, change.kind) {
        (None, Kind::Deleted) if change.implied => Ok(()),
        (None, _) => {
            let path = [directory, b".wh.", name].concat();
            writer.header(&super::tar::Entry { path, ..plain() })
        }
        (Some(found), _) => {
            writer.add(found, &change.path)?;
            if change.opaque {
                let path = [&change.path[..], b"/.wh..wh..opq"].concat();
                writer.header(&super::tar::Entry { path, ..plain() })?;
            }
            Ok(())
        }
    }
}

/// The new configuration: the old one, of which all that nobody asked to change stays as it is.
fn config(
    store: &Store,
    base: &Image,
    bundle: &Path,
    diff: Digest,
    request: &CommitRequest,
) -> Result<Value> {
    let mut config: Value = parse(&store.document(base.id())?, "configuration")?;
    let now = crate::sys::time::rfc3339(std::time::SystemTime::now());
    if let Some(diffs) = config["rootfs"]["diff_ids"].as_array_mut() {
        diffs.push(json!(diff));
    }
    let argv = load::load(bundle)?.spec.process.map(|process| process.args.join(" ")).unwrap_or_default();
    let mut step = json!({"created": now, "created_by": argv});
    for (key, text) in [("author", &request.author), ("comment", &request.message)] {
        if !text.is_empty() {
            step[key] = json!(text);
        }
    }
    match config["history"].as_array_mut() {
        Some(history) => history.push(step),
        None => config["history"] = json!([step]),
    }
    config["created"] = json!(now);
    if !request.author.is_empty() {
        config["author"] = json!(request.author);
    }
    if !config["config"].is_object() {
        config["config"] = json!({});
    }
    for line in &request.changes {
        change(&mut config["config"], line)?;
    }
    Ok(config)
}

/// Applies one line of a Dockerfile to a configuration.
fn change(config: &mut Value, line: &str) -> Result<()> {
    let wrong = |cause: &str| {
        Error::new(Class::Usage, "invalid value of --change").on(format!("{line:?}")).because(cause)
    };
    let (instruction, rest) = line.trim().split_once([' ', '\t']).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    let words = || shell_words(rest).ok_or_else(|| wrong("a quotation mark is left open"));
    match instruction.to_ascii_uppercase().as_str() {
        "CMD" => config["Cmd"] = command(rest),
        "ENTRYPOINT" => config["Entrypoint"] = command(rest),
        "USER" => config["User"] = json!(rest),
        "WORKDIR" if rest.starts_with('/') => config["WorkingDir"] = json!(rest),
        "WORKDIR" => return Err(wrong("it must be absolute")),
        "STOPSIGNAL" => config["StopSignal"] = json!(rest),
        "ENV" => {
            let mut all = config["Env"].as_array().cloned().unwrap_or_default();
            for (key, value) in pairs(&words()?, rest).ok_or_else(|| wrong("it must be NAME=VALUE"))? {
                let is_same =
                    |one: &Value| one.as_str().is_some_and(|one| one.split('=').next() == Some(&key));
                all.retain(|one| !is_same(one));
                all.push(json!(format!("{key}={value}")));
            }
            config["Env"] = all.into();
        }
        "LABEL" => {
            for (key, value) in pairs(&words()?, rest).ok_or_else(|| wrong("it must be KEY=VALUE"))? {
                put(config, "Labels", key, json!(value));
            }
        }
        "EXPOSE" => {
            for port in words()? {
                let port = if port.contains('/') { port } else { format!("{port}/tcp") };
                put(config, "ExposedPorts", port, json!({}));
            }
        }
        "VOLUME" => {
            let list: Option<Vec<String>> = serde_json::from_str(rest).ok();
            for place in list.map_or_else(words, Ok)? {
                put(config, "Volumes", place, json!({}));
            }
        }
        _ => {
            return Err(wrong(
                "it is not one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR",
            ));
        }
    }
    Ok(())
}

/// Puts an entry into an object of the configuration, which may be missing or null.
fn put(config: &mut Value, object: &str, key: String, value: Value) {
    if !config[object].is_object() {
        config[object] = Value::Object(Map::new());
    }
    config[object][key] = value;
}

/// `["a", "b"]` as it stands, anything else for the shell.
fn command(text: &str) -> Value {
    let list: Option<Vec<String>> = serde_json::from_str(text).ok();
    list.map_or_else(|| json!(["/bin/sh", "-c", text]), |list| json!(list))
}

/// `A=1 B="2 3"`, or the old form `A 1`.
fn pairs(words: &[String], rest: &str) -> Option<Vec<(String, String)>> {
    if let Some((key, value)) = rest.split_once([' ', '\t']).filter(|(key, _)| !key.contains('=')) {
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| {
        let (key, value) = word.split_once('=')?;
        (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
    };
    let all: Option<Vec<_>> = words.iter().map(pair).collect();
    all.filter(|all| !all.is_empty())
}

/// Words as a shell splits them: quotation marks and backslashes, and nothing else.
fn shell_words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(c) = letters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().push(letters.next()?),
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Writes the rest of the layout: the layers of the base by another name of the same file.
fn write_layout(store: &Store, base: &Image, layout: &Path, layer: Descriptor, config: &Value) -> Result<()> {
    let doing = "make a layout";
    let blob = |digest: Digest| layout.join("blobs/sha256").join(digest.hex());
    for below in &base.manifest.layers {
        let place = blob(below.digest);
        if !place.exists() {
            std::fs::hard_link(store.blob(below.digest), place)
                .doing_on(doing, || below.digest.to_string())?;
        }
    }
    let write = |media_type: &str, document: &Value| {
        let text = document.to_string();
        if text.len() as u64 > MOST_DOCUMENT {
            return Err(Error::new(Class::Usage, "commit").because("the configuration becomes too large"));
        }
        let digest = Digest::of(text.as_bytes());
        std::fs::write(blob(digest), &text).doing(doing)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": text.len()}))
    };
    let mut layers = base.manifest.layers.clone();
    layers.push(layer);
    let config = write(CONFIG, config)?;
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
    let manifest = write(MANIFEST, &manifest)?;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
    std::fs::write(layout.join("index.json"), index.to_string()).doing(doing)?;
    std::fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").doing(doing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Value {
        let mut config = json!({"Env": ["A=1", "B=2"], "Cmd": ["old"], "Labels": null});
        lines.iter().for_each(|line| change(&mut config, line).unwrap());
        config
    }

    #[test]
    fn changes_are_lines_of_a_dockerfile() {
        assert_eq!(changed(&["CMD [\"a\", \"b c\"]"])["Cmd"], json!(["a", "b c"]));
        assert_eq!(changed(&["cmd a b"])["Cmd"], json!(["/bin/sh", "-c", "a b"]));
        assert_eq!(changed(&["ENTRYPOINT []"])["Entrypoint"], json!([]));
        assert_eq!(changed(&["ENV A=3 C=\"4 5\""])["Env"], json!(["B=2", "A=3", "C=4 5"]));
        assert_eq!(changed(&["ENV A the rest"])["Env"], json!(["B=2", "A=the rest"]));
        assert_eq!(changed(&["LABEL x='y z' w=1"])["Labels"], json!({"x": "y z", "w": "1"}));
        assert_eq!(changed(&["EXPOSE 80 53/udp"])["ExposedPorts"], json!({"80/tcp": {}, "53/udp": {}}));
        assert_eq!(changed(&["VOLUME [\"/a\"]", "VOLUME /b"])["Volumes"], json!({"/a": {}, "/b": {}}));
        assert_eq!(changed(&["USER app", "WORKDIR /x"])["WorkingDir"], "/x");
        for line in ["", "RUN x", "WORKDIR x", "ENV", "ENV =x", "LABEL 'x", "COPY a b"] {
            assert!(change(&mut json!({}), line).is_err(), "{line}");
        }
    }
}
