//! Pulling from a registry that is made here, byte by byte, because Debian's cannot be told to want
//! bearer tokens, to break off in the middle, or to have an image for several platforms.

use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const TOKEN: &str = "a-token-of-the-test";
/// `somebody:secret`
const LOGIN: &str = "c29tZWJvZHk6c2VjcmV0";

/// What the registry has and does.
#[derive(Default)]
struct Content {
    /// By path: media type and bytes.
    things: BTreeMap<String, (String, Vec<u8>)>,
    /// Whether a token is wanted, which is given to who knows the password.
    wants_token: bool,
    /// Whether the first answer with this blob breaks off halfway.
    breaks: Mutex<Option<String>>,
    /// Every request: method, path, and the header fields.
    seen: Mutex<Vec<(String, String, BTreeMap<String, String>)>>,
}

struct Registry {
    address: String,
    content: Arc<Content>,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

impl Content {
    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = digest(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        for place in ["blobs", "manifests"] {
            self.things.insert(format!("/v2/some/image/{place}/{digest}"), (kind.into(), bytes.clone()));
        }
        descriptor
    }

    /// An image of one layer, as a descriptor.
    fn image(&mut self, architecture: &str, layer: Vec<u8>) -> Value {
        let diff = digest(&layer);
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/payload"]},
            "rootfs": {"type": "layers", "diff_ids": [diff]}});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().into());
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut descriptor = self.blob(kind, manifest.to_string().into());
        descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
        descriptor
    }

    fn index(&mut self, tag: &str, manifests: &[Value]) {
        let kind = "application/vnd.oci.image.index.v1+json";
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string();
        self.things.insert(format!("/v2/some/image/manifests/{tag}"), (kind.into(), index.into()));
    }
}

impl Registry {
    fn start(content: Content) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let content = Arc::new(content);
        let (served, own) = (Arc::clone(&content), address.clone());
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (content, address) = (Arc::clone(&served), own.clone());
                std::thread::spawn(move || drop(content.answer(&stream, &address)));
            }
        });
        Registry { address, content }
    }

    fn seen(&self) -> Vec<(String, String, BTreeMap<String, String>)> {
        self.content.seen.lock().unwrap().clone()
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/some/image:{tag}", self.address)
    }
}

impl Content {
    /// Answers one request and hangs up. TLS, which is tried first, gets what Go's servers say to it.
    fn answer(&self, mut stream: &TcpStream, address: &str) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let mut first = Vec::new();
        reader.read_until(b'\n', &mut first)?;
        let first = String::from_utf8_lossy(&first).into_owned();
        let mut words = first.split_whitespace();
        let (Some(method), Some(target), Some("HTTP/1.1")) = (words.next(), words.next(), words.next())
        else {
            return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nno TLS here\n");
        };
        let mut fields = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            fields.insert(name.to_lowercase(), value.to_owned());
        }
        self.seen.lock().unwrap().push((method.to_owned(), target.to_owned(), fields.clone()));
        let path = target.split('?').next().unwrap_or_default();
        let authorization = fields.get("authorization").map(String::as_str);
        let mut respond = |status: &str, more: &str, body: &[u8], sent: usize| {
            let length = body.len();
            let head =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n");
            stream.write_all(head.as_bytes())?;
            if method == "HEAD" { Ok(()) } else { stream.write_all(&body[..sent]) }
        };
        if path == "/token" {
            let body = format!("{{\"token\": \"{TOKEN}\"}}");
            return match authorization == Some(&format!("Basic {LOGIN}")) {
                true => respond("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), body.len()),
                false => respond("401 Unauthorized", "", b"", 0),
            };
        }
        if self.wants_token && authorization != Some(&format!("Bearer {TOKEN}")) {
            let realm = format!(
                "WWW-Authenticate: Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"repository:some/image:pull\"\r\n"
            );
            return respond("401 Unauthorized", &realm, b"", 0);
        }
        if path == "/v2/" {
            return respond("200 OK", "", b"", 0);
        }
        let Some((kind, bytes)) = self.things.get(path) else { return respond("404 Not Found", "", b"", 0) };
        let kind = format!("Content-Type: {kind}\r\nDocker-Content-Digest: {}\r\n", digest(bytes));
        let range = fields
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        if let Some(from) = range.filter(|from: &usize| *from < bytes.len()) {
            let last = bytes.len() - 1;
            let kind = format!("{kind}Content-Range: bytes {from}-{last}/{}\r\n", bytes.len());
            return respond("206 Partial Content", &kind, &bytes[from..], bytes.len() - from);
        }
        let breaks = self.breaks.lock().unwrap().take_if(|digest| path.ends_with(digest.as_str())).is_some();
        respond("200 OK", &kind, bytes, if breaks { bytes.len() / 2 } else { bytes.len() })
    }
}

fn layer(scene: &Scene, text: &str) -> Vec<u8> {
    let path = scene.dir().join("layer.tar");
    image::write(&path, &Layer::default().program("payload", scene.payload_program()).file("for", text));
    fs::read(path).unwrap()
}

fn pull(scene: &Scene, more: &[&str], name: &str) -> Outcome {
    scene.dhow(["image", "pull", "--format", "json"]).args(more.iter().copied()).args([name]).run()
}

/// The file `for` of an image that was pulled.
fn text(scene: &Scene, name: &str) -> String {
    let image = scene.dhow(["image", "inspect", name]).run().ok().json();
    fs::read_to_string(format!("{}/for", image["layers"][0].as_str().unwrap())).unwrap()
}

#[test]
fn an_index_has_one_image_for_each_platform() {
    let scene = Scene::new();
    let mut content = Content::default();
    let images = ["arm64", "amd64", "s390x"].map(|name| content.image(name, layer(&scene, name)));
    content.index("all", &images);
    content.index("few", &images[2..]);
    let registry = Registry::start(content);
    for architecture in ["arm64", "s390x", "amd64"] {
        pull(&scene, &["--platform", &format!("linux/{architecture}")], &registry.name("all")).ok();
        assert_eq!(text(&scene, &registry.name("all")), architecture);
    }
    // The other platforms' layers were not fetched with it.
    let blobs = registry.seen().iter().filter(|(_, path, _)| path.contains("/blobs/")).count();
    assert_eq!(blobs, 6, "{:#?}", registry.seen());
    pull(&scene, &["--platform", "linux/riscv64"], &registry.name("all")).fails(&["linux/riscv64"]);
    pull(&scene, &["--platform", "linux/amd64"], &registry.name("few")).fails(&["linux/amd64"]);
    // A layout with such an index, from a file.
    let layout = scene.dir().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\": \"1.0.0\"}").unwrap();
    for (path, (_, bytes)) in &registry.content.things {
        if let Some((_, hex)) = path.split_once("/blobs/sha256:") {
            fs::write(layout.join("blobs/sha256").join(hex), bytes).unwrap();
        }
    }
    let (kind, index) = &registry.content.things["/v2/some/image/manifests/all"];
    fs::write(layout.join("blobs/sha256").join(&digest(index)[7..]), index).unwrap();
    let entry = json!({"mediaType": kind, "digest": digest(index), "size": index.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    fs::write(layout.join("index.json"), index).unwrap();
    for architecture in ["s390x", "arm64"] {
        let words = ["image", "import", "--name", "local", "--platform", &format!("linux/{architecture}")];
        scene.dhow(words).args([layout.to_str().unwrap()]).run().ok();
        assert_eq!(text(&scene, "local"), architecture);
    }
}

#[test]
fn a_token_is_asked_for_with_the_password_and_used() {
    let scene = Scene::new();
    let mut content = Content { wants_token: true, ..Content::default() };
    let image = content.image("amd64", layer(&scene, "tokens"));
    content.index("1", &[image]);
    let registry = Registry::start(content);
    let home = scene.dir().join("docker");
    fs::create_dir(&home).unwrap();
    let pull = |auth: &str| {
        let credentials = format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, registry.address);
        fs::write(home.join("config.json"), credentials).unwrap();
        let words = ["image", "pull", "--platform", "linux/amd64", &registry.name("1")];
        scene.dhow(words).env("DOCKER_CONFIG", home.to_str().unwrap()).run()
    };
    pull("bm9ib2R5Ong=").fails(&["pull", &registry.name("1")]);
    assert!(!registry.seen().iter().any(|(_, path, _)| path.contains("/blobs/")));
    pull(LOGIN).ok();
    assert_eq!(text(&scene, &registry.name("1")), "tokens");
    let seen = registry.seen();
    let asked: Vec<&str> =
        seen.iter().map(|(_, path, _)| path.as_str()).filter(|path| path.starts_with("/token?")).collect();
    assert!(
        asked.iter().any(|path| path.contains("service=test")
            && path.contains("some%2Fimage") | path.contains("some/image")),
        "{asked:?}"
    );
    let bearer = format!("Bearer {TOKEN}");
    let blobs: Vec<_> = seen.iter().filter(|(_, path, _)| path.contains("/blobs/")).collect();
    assert!(
        !blobs.is_empty() && blobs.iter().all(|(.., fields)| fields.get("authorization") == Some(&bearer))
    );
}

#[test]
fn what_breaks_off_is_taken_up_where_it_broke() {
    let scene = Scene::new();
    let mut content = Content::default();
    let bytes = layer(&scene, "breaks");
    let (digest, half) = (digest(&bytes), bytes.len() / 2);
    let image = content.image("amd64", bytes);
    content.index("1", &[image]);
    *content.breaks.lock().unwrap() = Some(digest.clone());
    let registry = Registry::start(content);
    pull(&scene, &["--platform", "linux/amd64"], &registry.name("1")).ok();
    assert_eq!(text(&scene, &registry.name("1")), "breaks");
    scene.dhow(["image", "verify", &registry.name("1")]).run().ok();
    let asked: Vec<Option<String>> = (registry.seen().into_iter())
        .filter(|(method, path, _)| method == "GET" && path.ends_with(&digest))
        .map(|(.., fields)| fields.get("range").cloned())
        .collect();
    // The second request begins where the first one's bytes ended.
    let from: Vec<usize> = asked
        .iter()
        .flatten()
        .filter_map(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
        .collect();
    assert!(
        asked.len() == 2 && from.iter().any(|from| *from > 0 && *from <= half),
        "{asked:?}, half is {half}"
    );
}

#[test]
fn the_administrators_file_names_mirrors() {
    let scene = Scene::new();
    let mut content = Content::default();
    let image = content.image("amd64", layer(&scene, "mirrored"));
    content.index("1", &[image]);
    let registry = Registry::start(content);
    let file = json!({"mirrors": {"nowhere.invalid": ["127.0.0.1:1", registry.address]}});
    let etc = scene.dir().join("etc");
    // An /etc of this test's own.
    let script = "mkdir -p \"$1\" && cp -a /etc/. \"$1\" && mkdir -p \"$1/dhow\" && printf %s \"$2\" >\"$1/dhow/registries.json\" && \
        mount --bind \"$1\" /etc && shift 2 && exec \"$@\"";
    let pull = |file: &str| {
        let dhow = dhow_integration::command::binary();
        let words = ["--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh"];
        let words =
            Runner::new("unshare").args(words).args([etc.to_str().unwrap(), file, dhow.to_str().unwrap()]);
        let words = words.args(["--root", scene.state_dir().to_str().unwrap(), "image", "pull"]);
        words.args(["--platform", "linux/amd64", "nowhere.invalid/some/image:1"]).run()
    };
    pull(&file.to_string()).ok();
    // It is called what was asked for, not after the mirror.
    assert_eq!(text(&scene, "nowhere.invalid/some/image:1"), "mirrored");
    pull("{\"mirrors\": 5}").fails(&["/etc/dhow/registries.json"]);
    pull("{\"mirror\": {}}").fails(&["/etc/dhow/registries.json", "mirror"]);
}
