//! Pulling from a registry that is made here, byte by byte, because Debian's cannot be told to want
//! bearer tokens, to break off in the middle, or to have an image for several platforms.

use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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

/// A request: method, path, and the header fields.
type Request = (String, String, BTreeMap<String, String>);

/// What the registry has and does.
#[derive(Default)]
struct Content {
    /// By path: media type and bytes.
    things: BTreeMap<String, (String, Vec<u8>)>,
    /// Whether a token is wanted, which is given to who knows the password.
    wants_token: bool,
    /// What goes wrong: at the first request whose path ends so, and then at no other.
    faults: Mutex<Vec<(String, Fault)>>,
    /// Every request.
    seen: Mutex<Vec<Request>>,
}

/// What a registry does in place of an answer.
#[derive(Clone)]
enum Fault {
    /// The connection breaks after half of the bytes.
    Break,
    /// It is another status, with these header fields and this body.
    Status(&'static str, String, &'static str),
    /// It answers with these bytes.
    Bytes(Vec<u8>),
    /// It never ends.
    Endless,
    /// Nothing comes for as long as the other side waits.
    Silence,
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
    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        for place in ["blobs", "manifests"] {
            self.things.insert(format!("/v2/some/image/{place}/{digest}"), (kind.into(), bytes.to_vec()));
        }
        descriptor
    }

    /// An image of one layer, as a descriptor.
    fn image(&mut self, architecture: &str, layer: &[u8]) -> Value {
        let diff = digest(layer);
        let config = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["/payload"]},
            "rootfs": {"type": "layers", "diff_ids": [diff]}});
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layer = self.blob("application/vnd.oci.image.layer.v1.tar", layer);
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut descriptor = self.blob(kind, manifest.to_string().as_bytes());
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

    fn seen(&self) -> Vec<Request> {
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
            let length = match more.contains("Transfer-Encoding") {
                true => String::new(),
                false => format!("Content-Length: {}\r\n", body.len()),
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{length}{more}\r\n");
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
        let nothing = (String::new(), Vec::new());
        let fault = self.fault(path);
        let thing = self.things.get(path).or((path == "/v2/").then_some(&nothing));
        let Some((kind, bytes)) = thing.or(fault.is_some().then_some(&nothing)) else {
            return respond("404 Not Found", "", b"", 0);
        };
        let kind = format!("Content-Type: {kind}\r\nDocker-Content-Digest: {}\r\n", digest(bytes));
        let range = fields
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        if let Some(from) = range.filter(|from: &usize| *from < bytes.len() && fault.is_none()) {
            let last = bytes.len() - 1;
            let kind = format!("{kind}Content-Range: bytes {from}-{last}/{}\r\n", bytes.len());
            return respond("206 Partial Content", &kind, &bytes[from..], bytes.len() - from);
        }
        match fault {
            None => respond("200 OK", &kind, bytes, bytes.len()),
            Some(Fault::Break) => respond("200 OK", &kind, bytes, bytes.len() / 2),
            Some(Fault::Status(status, more, body)) => respond(status, &more, body.as_bytes(), body.len()),
            Some(Fault::Bytes(other)) => respond("200 OK", "", &other, other.len()),
            Some(Fault::Endless) => {
                respond("200 OK", "Transfer-Encoding: chunked\r\n", &[], 0)?;
                let piece = [format!("{:x}\r\n", 1 << 20).as_bytes(), &[b' '; 1 << 20], b"\r\n"].concat();
                while stream.write_all(&piece).is_ok() {}
                Ok(())
            }
            Some(Fault::Silence) => reader.read_until(b'\n', &mut Vec::new()).map(drop),
        }
    }

    fn fault(&self, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(|(end, _)| path.ends_with(end.as_str()))?;
        Some(faults.remove(at).1)
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
    let images = ["arm64", "amd64", "s390x"].map(|name| content.image(name, &layer(&scene, name)));
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
    let image = content.image("amd64", &layer(&scene, "tokens"));
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
    let image = content.image("amd64", &bytes);
    content.index("1", &[image]);
    content.faults.lock().unwrap().push((digest.clone(), Fault::Break));
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

/// A registry with one image of one layer, under the tag `1`; the layer's digest.
fn plain(scene: &Scene, text: &str) -> (Registry, String) {
    let mut content = Content::default();
    let bytes = layer(scene, text);
    let image = content.image("amd64", &bytes);
    content.index("1", &[image]);
    (Registry::start(content), digest(&bytes))
}

fn pull_one(scene: &Scene, registry: &Registry) -> Outcome {
    pull(scene, &["--platform", "linux/amd64"], &registry.name("1"))
}

/// The store has nothing of an image, and nothing that is in the making.
#[track_caller]
fn has_nothing(scene: &Scene) {
    let store = scene.state_dir().join("@images");
    for part in ["tmp", "blobs/sha256", "layers", "refs", "locks"] {
        let left: Vec<_> = fs::read_dir(store.join(part)).unwrap().flatten().map(|one| one.path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn what_passes_is_waited_for() {
    let scene = Scene::new();
    let (registry, layer) = plain(&scene, "patience");
    let busy = |status| Fault::Status(status, String::new(), "<html>\nbusy</html>");
    let told = Fault::Status(
        "429 Too Many Requests",
        "Content-Type: application/json\r\n".into(),
        "{\"errors\": [{\"code\": \"TOOMANYREQUESTS\", \"message\": \"slowly\"}]}",
    );
    *registry.content.faults.lock().unwrap() = vec![
        ("/manifests/1".into(), busy("503 Service Unavailable")),
        ("/manifests/1".into(), told),
        ("/manifests/1".into(), Fault::Break),
        (layer.clone(), busy("502 Bad Gateway")),
        (layer, busy("429 Too Many Requests")),
    ];
    pull_one(&scene, &registry).ok();
    assert_eq!(text(&scene, &registry.name("1")), "patience");
    assert!(registry.content.faults.lock().unwrap().is_empty());
}

#[test]
fn a_connection_may_break_as_often_as_something_comes() {
    let scene = Scene::new();
    let (registry, layer) = plain(&scene, "breaks");
    let whole = registry.content.things[&format!("/v2/some/image/blobs/{layer}")].1.clone();
    // Each answer begins at the beginning and is cut off further on, well-formed: a proxy does so.
    let cut = |part: usize| (layer.clone(), Fault::Bytes(whole[..whole.len() * part / 9].to_vec()));
    *registry.content.faults.lock().unwrap() = (1..9).map(cut).collect();
    pull_one(&scene, &registry).ok();
    assert_eq!(text(&scene, &registry.name("1")), "breaks");
    scene.dhow(["image", "verify", &registry.name("1")]).run().ok();
}

#[test]
fn what_a_registry_sends_wrongly_is_said_and_nothing_is_left() {
    let scene = Scene::new();
    let (registry, layer) = plain(&scene, "wrong");
    let whole = registry.content.things[&format!("/v2/some/image/blobs/{layer}")].1.clone();
    let mut other = whole.clone();
    other[700] ^= 1;
    let status = |line, more: &str, body| Fault::Status(line, more.to_owned(), body);
    let cases: Vec<(&str, Fault, &[&str])> = vec![
        (&layer, Fault::Bytes([&whole[..], b"more"].concat()), &["more than"]),
        (&layer, Fault::Bytes(other), &["digest"]),
        (&layer, status("404 Not Found", "", ""), &["404"]),
        (&layer, status("302 Found", "Location: /v2/some/image/nowhere\r\n", ""), &["404"]),
        (&layer, status("302 Found", "Location: http://\r\n", ""), &["302"]),
        ("/manifests/1", status("404 Not Found", "", "\x1b[2Jnothing here"), &["404", "nothing here"]),
        ("/manifests/1", Fault::Bytes(b"<html>".to_vec()), &["manifest"]),
        ("/manifests/1", Fault::Bytes(b"{\"layers\": []}".to_vec()), &["neither a manifest nor an index"]),
        ("/manifests/1", Fault::Endless, &["more than a document may have"]),
        ("/manifests/1", status("401 Unauthorized", "", ""), &["docker login"]),
        ("/v2/", status("401 Unauthorized", "WWW-Authenticate: Bearer realm=\"\"\r\n", ""), &["no URL"]),
        ("/v2/", status("401 Unauthorized", "WWW-Authenticate: Bearer realm=\"x y\"\r\n", ""), &["no URL"]),
    ];
    for (path, fault, words) in cases {
        *registry.content.faults.lock().unwrap() = vec![(path.to_owned(), fault)];
        let seen = pull_one(&scene, &registry).fails(&[&registry.name("1"), "pull"]);
        assert!(words.iter().all(|word| seen.stderr.contains(word)), "{words:?} {seen}");
        assert!(!seen.stderr.contains('\x1b') && seen.stderr.len() < 1000, "{seen}");
        has_nothing(&scene);
    }
    pull_one(&scene, &registry).ok();
    assert_eq!(text(&scene, &registry.name("1")), "wrong");
}

#[test]
fn a_redirect_is_followed_without_the_password() {
    let scene = Scene::new();
    let (elsewhere, layer) = plain(&scene, "redirected");
    let (registry, _) = plain(&scene, "redirected");
    let place = format!("Location: http://{}/v2/some/image/blobs/{layer}\r\n", elsewhere.address);
    *registry.content.faults.lock().unwrap() =
        vec![(layer, Fault::Status("307 Temporary Redirect", place, ""))];
    let home = scene.dir().join("docker");
    fs::create_dir(&home).unwrap();
    let credentials = format!(r#"{{"auths": {{"{}": {{"registrytoken": "secret"}}}}}}"#, registry.address);
    fs::write(home.join("config.json"), credentials).unwrap();
    let words = ["image", "pull", "--platform", "linux/amd64", &registry.name("1")];
    scene.dhow(words).env("DOCKER_CONFIG", home.to_str().unwrap()).run().ok();
    assert_eq!(text(&scene, &registry.name("1")), "redirected");
    assert!(registry.seen().iter().any(|(.., fields)| fields.contains_key("authorization")));
    let there = elsewhere.seen();
    assert!(there.len() == 1 && !there[0].2.contains_key("authorization"), "{there:?}");
}

#[test]
fn a_mirror_that_is_wrong_is_passed_over() {
    let scene = Scene::new();
    let (registry, layer) = plain(&scene, "right");
    let (mirror, _) = plain(&scene, "right");
    let mut other = registry.content.things[&format!("/v2/some/image/blobs/{layer}")].1.clone();
    other[700] ^= 1;
    *mirror.content.faults.lock().unwrap() = vec![(layer, Fault::Bytes(other))];
    pull(&scene, &["--platform", "linux/amd64", "--mirror", &mirror.address], &registry.name("1")).ok();
    assert_eq!(text(&scene, &registry.name("1")), "right");
}

#[test]
fn a_pull_that_is_killed_takes_its_helper_along() {
    let scene = Scene::new();
    let (registry, layer) = plain(&scene, "killed");
    for path in ["/v2/", "/manifests/1", &layer] {
        *registry.content.faults.lock().unwrap() = vec![(path.to_owned(), Fault::Silence)];
        let words = ["image", "pull", "--platform", "linux/amd64", &registry.name("1")];
        let running = scene.dhow(words).spawn();
        eventually("it waits for an answer", || registry.content.faults.lock().unwrap().is_empty());
        kill(Pid::from_raw(running.pid()), Signal::SIGKILL).unwrap();
        running.wait().exits(128 + 9);
        // What talks to the registry has the store's place among its arguments.
        scene.is_clean();
        scene.dhow(["image", "gc"]).run().ok();
        has_nothing(&scene);
    }
    pull_one(&scene, &registry).ok();
    assert_eq!(text(&scene, &registry.name("1")), "killed");
}

#[test]
fn the_administrators_file_names_mirrors() {
    let scene = Scene::new();
    let mut content = Content::default();
    let image = content.image("amd64", &layer(&scene, "mirrored"));
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
