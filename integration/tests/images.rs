//! The image store through the command line: registries, many at once, and killed at any point.

use dhow_integration::command::{Running, workspace};
use dhow_integration::image::{self, Layer};
use dhow_integration::machine::skip;
use dhow_integration::{Outcome, Runner, Scene, Terminal};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A `docker save` archive of `layers` layers, each with `files` files, one whiteout on top, built
/// by tar and sha256sum.
const ARCHIVE: &str = r#"
set -eu
cd "$1"; layers=$2; files=$3; diffs= list=
for layer in $(seq "$layers"); do
    mkdir -p "build/tree/layer-$layer"
    for file in $(seq "$files"); do echo "$layer $file" >"build/tree/layer-$layer/$file"; done
    [ "$layer" = 1 ] || { mkdir -p build/tree/layer-1; : >build/tree/layer-1/.wh.1; }
    tar --sort=name --numeric-owner --owner=0 --group=0 -C build/tree -cf "build/$layer.tar" .
    rm -r build/tree
    sum=$(sha256sum "build/$layer.tar" | cut -d ' ' -f 1)
    diffs="$diffs,\"sha256:$sum\"" list="$list,\"$layer.tar\""
done
printf '{"architecture":"amd64","os":"linux","config":{"Cmd":["/payload"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' "${diffs#,}" >build/config.json
printf '[{"Config":"config.json","RepoTags":["made:1"],"Layers":[%s]}]' "${list#,}" >build/manifest.json
tar -C build -cf image.tar $(ls build)
rm -r build
"#;

fn archive(dir: &Path, layers: u32, files: u32) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let made = Runner::new("/bin/sh").args(["-c", ARCHIVE, "sh", dir.to_str().unwrap()]);
    made.args([layers.to_string(), files.to_string()]).run().ok();
    dir.join("image.tar")
}

fn import(scene: &Scene, archive: &Path) -> Runner {
    scene.dhow(["image", "import", "--platform", "linux/amd64", archive.to_str().unwrap()])
}

fn store(scene: &Scene) -> PathBuf {
    scene.state_dir().join("@images")
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Imports an image whose id depends on a number; the id.
fn numbered(scene: &Scene, number: u32) -> String {
    let path = scene.dir().join("numbered.tar");
    let run = serde_json::json!({"Env": [format!("NUMBER={number}")]});
    image::save(&path, &format!("numbered:{number}"), &[Layer::default().file("a", "b")], &run);
    let id = scene.dhow(["image", "import", "-q", path.to_str().unwrap()]).run().ok().stdout;
    id.trim().strip_prefix("sha256:").unwrap().to_owned()
}

#[test]
fn an_id_names_an_image_when_it_is_the_only_one() {
    let scene = Scene::new();
    let dhow = |words: &[&str]| scene.dhow([&["image"], words].concat()).run();
    // Of seventeen, two at least begin with the same digit.
    let mut ids: Vec<String> = Vec::new();
    let twin = loop {
        let id = numbered(&scene, u32::try_from(ids.len()).unwrap());
        if let Some(at) = ids.iter().position(|other| other[..1] == id[..1]) {
            ids.push(id);
            break at;
        }
        ids.push(id);
    };
    let (digit, last) = (ids[twin][..1].to_owned(), ids.len() - 1);
    for words in [&["rm"][..], &["inspect"], &["history"], &["verify"], &["save"]] {
        dhow(&[words, &[&digit]].concat()).fails(&[&digit, "2 images"]);
    }
    dhow(&["tag", &digit, "other"]).fails(&[&digit, "2 images"]);
    let name = format!("numbered:{twin}");
    for beginning in [&ids[twin][..12], &ids[twin], &format!("sha256:{}", ids[twin])] {
        let seen = dhow(&["inspect", beginning]).ok().json();
        assert_eq!(seen["name"], format!("docker.io/library/{name}"), "{beginning}");
    }
    // A name that looks like an id is a name.
    let looks = &ids[twin][..12];
    dhow(&["tag", &format!("numbered:{last}"), looks]).ok();
    assert_eq!(dhow(&["inspect", looks]).ok().json()["id"], format!("sha256:{}", ids[last]));
    dhow(&["rm", looks]).ok();
    // By its id an image with one name goes, and one with several only when all are meant.
    dhow(&["tag", &name, "second:1"]).ok();
    dhow(&["rm", looks]).fails(&[looks, &name, "second:1", "--force"]);
    dhow(&["rm", "--force", looks]).ok();
    dhow(&["inspect", "second:1"]).fails(&["second:1"]);
    dhow(&["rm", &ids[last], "nobody"]).fails(&["nobody"]);
    dhow(&["inspect", &format!("numbered:{last}")]).fails(&["no such image"]);
    // A digest is no tag: neither is `latest` removed by it, nor anything given it for a name.
    let first = numbered(&scene, 100);
    dhow(&["tag", "numbered:100", "numbered:latest"]).ok();
    let other = format!("numbered@sha256:{}", ids[twin]);
    dhow(&["rm", &other]).fails(&["no such image"]);
    dhow(&["tag", &first, &other]).fails(&["a digest is no name"]);
    dhow(&["inspect", "numbered:latest"]).ok();
}

/// Nothing is left of what was not completed, and what is there is right.
#[track_caller]
fn complete_or_empty(scene: &Scene) {
    scene.dhow(["image", "gc"]).run().ok();
    for part in ["tmp", "locks"] {
        assert_eq!(count(&store(scene).join(part)), 0, "{part}");
    }
    if count(&store(scene).join("refs")) == 0 {
        assert_eq!((count(&store(scene).join("layers")), count(&store(scene).join("blobs/sha256"))), (0, 0));
    } else {
        scene.dhow(["image", "verify", "made:1"]).run().ok();
        for layer in fs::read_dir(store(scene).join("layers")).unwrap() {
            let layer = layer.unwrap().path();
            assert!(layer.join("meta.json").is_file(), "{}", layer.display());
            let fs = layer.join("fs");
            assert!(fs.is_dir() && count(&fs) > 0, "{}", fs.display());
        }
    }
}

#[test]
fn an_import_that_is_killed_leaves_nothing_or_all() {
    let scene = Scene::new();
    let archive = archive(&scene.dir().join("killed"), 4, 300);
    let whole = import(&scene, &archive).run().ok().took;
    scene.dhow(["image", "rm", "made:1"]).run().ok();
    complete_or_empty(&scene);
    let (mut left, mut done) = (0, 0);
    for step in 1..40_u32 {
        let mut running = import(&scene, &archive).spawn();
        // The first import warmed the caches: most of the kills come in the first half of its time.
        std::thread::sleep(whole * step / 80);
        let pid = rustix::process::Pid::from_raw(running.pid()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        running.finish();
        left += usize::from(count(&store(&scene).join("tmp")) > 0);
        complete_or_empty(&scene);
        if count(&store(&scene).join("refs")) > 0 {
            done += 1;
            scene.dhow(["image", "rm", "made:1"]).run().ok();
        }
    }
    // Some were killed in the middle, and an import works as if nothing had been.
    assert!(left > 0, "{left} left something, {done} were done");
    import(&scene, &archive).run().ok();
    complete_or_empty(&scene);
}

#[test]
fn an_import_that_is_killed_at_any_system_call_leaves_nothing_or_all() {
    if Runner::new("/bin/sh").args(["-c", "strace -o /dev/null true"]).run().code != 0 {
        return skip("strace is not there, or may not trace");
    }
    let scene = Scene::new();
    let archive = archive(&scene.dir().join("killed"), 2, 3);
    for call in ["renameat2", "syncfs", "fsync", "rename", "flock", "mkdir", "unlink", "write", "openat"] {
        for nth in [1, 2, 3, 5, 8, 13, 30] {
            let inject = format!("inject={call}:signal=SIGKILL:when={nth}");
            let line = import(&scene, &archive).line();
            let strace =
                Runner::new("/bin/sh").args(["-c", r#"exec strace -f -qq -o /dev/null -e "$0" "$@""#]);
            strace.args([inject]).args(line).limit(Duration::from_secs(60)).run();
            complete_or_empty(&scene);
            let _ = scene.dhow(["image", "rm", "made:1"]).run();
        }
    }
}

#[test]
fn imports_at_once_unpack_once_and_gc_waits() {
    let scene = Scene::new();
    let archives: Vec<PathBuf> =
        (1..=3).map(|n| archive(&scene.dir().join(format!("at-once-{n}")), 3, 100 * n)).collect();
    let running: Vec<Running> = (0..9)
        .map(|n| match n % 4 {
            3 => scene.dhow(["image", "gc"]).spawn(),
            n => import(&scene, &archives[n]).spawn(),
        })
        .collect();
    let outcomes: Vec<Outcome> = running.into_iter().map(|one| one.wait().ok()).collect();
    assert_eq!(outcomes.len(), 9);
    complete_or_empty(&scene);

    // Of two at once, one unpacks and the other finds it.
    let scene = Scene::new();
    let same = [import(&scene, &archives[2]).spawn(), import(&scene, &archives[2]).spawn()];
    let mut shared: Vec<String> = same
        .into_iter()
        .map(|one| one.wait().ok().stdout.split(", ").nth(1).unwrap_or_default().to_owned())
        .collect();
    shared.sort();
    assert_eq!(shared, ["0 of them there already", "3 of them there already"]);
    complete_or_empty(&scene);
}

#[test]
fn what_was_done_is_told_to_programs() {
    let scene = Scene::new();
    import(&scene, &archive(&scene.dir().join("made"), 2, 3)).run().ok();
    let digest = scene.dhow(["image", "inspect", "made:1"]).run().ok().json()["digest"].clone();
    let json = ["--format", "json"];
    let tagged = scene.dhow(["image", "tag", "made:1", "other:2"]).args(json).run().ok().json();
    assert_eq!((&tagged["name"], &tagged["digest"]), (&"docker.io/library/other:2".into(), &digest));
    let path = scene.dir().join("saved.tar");
    let output = path.to_str().unwrap();
    let saved = scene.dhow(["image", "save", "-o", output, "other:2"]).args(json).run().ok().json();
    assert_eq!((&saved["digest"], &saved["output"]), (&digest, &output.into()));
    assert_eq!(saved["size"], fs::metadata(&path).unwrap().len());
    let removed = scene.dhow(["image", "rm", "other:2"]).args(json).run().ok().json();
    scene.dhow(["image", "rm", "other:2"]).run().fails(&["no such image: other:2"]);
    assert_eq!(removed["name"], "docker.io/library/other:2");
    scene.dhow(["image", "save", "made:1"]).args(json).run().fails(&["--format json", "--output"]);
    for words in [&["tag", "made:1", "third"][..], &["rm", "third"], &["save", "-o", output, "made:1"]] {
        scene.dhow(["image"]).args(words.iter().copied()).run().ok().says("");
        scene.dhow(["image"]).args(words.iter().copied()).args(["--format", "xml"]).run().fails(&["xml"]);
    }
}

/// Imports with a terminal as standard error, while another holds the layer's lock until words were
/// seen; when none are to come, for longer than a bar takes to be drawn.
fn watched(scene: &Scene, archive: &Path, options: &str, lock: &Path, words: &str) -> String {
    let (mut terminal, slave) = Terminal::open();
    terminal.resize(80, 24);
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let held = fs::File::create(lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // The test's own end stays open until all was read: what a closed terminal had is gone.
    let own = fs::OpenOptions::new().read(true).write(true).open(&slave).unwrap();
    let script = format!("exec \"$@\" {options} 2>{} >&2", slave.display());
    let line = import(scene, archive).line();
    let running = Runner::new("/bin/sh").args(["-c", &script, "sh"]).args(line).env("TERM", "xterm").spawn();
    match words {
        "" => std::thread::sleep(Duration::from_millis(500)),
        words => _ = terminal.until(words),
    }
    drop(held);
    running.wait().ok();
    drop(own);
    terminal.until_end().to_owned()
}

#[test]
fn a_bar_is_shown_to_a_person_who_waits() {
    let scene = Scene::new();
    let archive = archive(&scene.dir().join("made"), 1, 50);
    let remove = || {
        scene.dhow(["image", "rm", "made:1"]).run().ok();
        scene.dhow(["image", "gc"]).run().ok();
    };
    import(&scene, &archive).run().ok();
    let layers = scene.dhow(["image", "inspect", "made:1"]).run().ok().json();
    let diff = layers["config"]["rootfs"]["diff_ids"][0].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let lock = store(&scene).join("locks").join(diff);
    remove();
    // Bytes of how many, on one line that is drawn anew; at the end only the result is left.
    let seen = watched(&scene, &archive, "", &lock, "0 B of");
    let (bar, result) = seen.split_at(seen.rfind("\x1b[2K").unwrap());
    assert!(!bar.contains('\n') && bar.contains("KiB, 0 B/s"), "{seen:?}");
    assert_eq!(result.lines().count(), 1, "{seen:?}");
    assert!(result.contains("docker.io/library/made:1: 1 layers") && result.ends_with("\r\n"), "{seen:?}");
    remove();
    // None for programs, nor for those who want quiet, nor where nobody looks, nor for what is quick.
    for options in ["--quiet", "--format json"] {
        let seen = watched(&scene, &archive, options, &lock, "");
        assert!(!seen.contains('\x1b') && seen.lines().count() == 1, "{options} {seen:?}");
        remove();
    }
    let unseen = import(&scene, &archive).run().ok();
    assert_eq!(unseen.stderr, "");
}

/// A layer of a million empty files in a thousand directories: half a gigabyte of headers.
#[test]
#[ignore = "takes minutes and a million inodes: make test-long"]
fn a_million_entries() {
    use std::io::Write;
    const DIRECTORIES: u32 = 1000;
    let scene = Scene::new();
    let dir = scene.dir();
    let packed = fs::File::create(dir.join("layer.tar.gz")).unwrap();
    let mut gzip = std::process::Command::new("gzip")
        .args(["-1", "-n"])
        .stdin(std::process::Stdio::piped())
        .stdout(packed)
        .spawn()
        .unwrap();
    let (mut pipe, mut sum) = (gzip.stdin.take().unwrap(), Sha256::new());
    let mut put = |bytes: &[u8]| {
        sum.update(bytes);
        pipe.write_all(bytes).unwrap();
    };
    for directory in 0..DIRECTORIES {
        let layer = Layer::default().directory(&format!("{directory}"));
        put((0..1000).fold(layer, |layer, file| layer.file(&format!("{directory}/{file}"), "")).so_far());
    }
    put(&[0; 1024]);
    drop(pipe);
    assert!(gzip.wait().unwrap().success());
    let diff: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{diff}"]}}}}"#
    );
    fs::write(dir.join("config.json"), config).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["million:1"],"Layers":["layer.tar.gz"]}]"#;
    fs::write(dir.join("manifest.json"), manifest).unwrap();
    let image = dir.join("image.tar");
    let members = ["config.json", "manifest.json", "layer.tar.gz"];
    Runner::new("tar")
        .args(["-C", dir.to_str().unwrap(), "-cf", image.to_str().unwrap()])
        .args(members)
        .run()
        .ok();
    let begun = std::time::Instant::now();
    let import = scene.dhow(["image", "import", "--platform", "linux/amd64", image.to_str().unwrap()]);
    let running = import.limit(Duration::from_secs(600)).spawn();
    let (mut most, pid) = (0, running.pid());
    loop {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmHWM:")) else { break };
        most = most.max(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
    running.wait().ok();
    println!("a million entries in {:?}, at most {most} KB of memory", begun.elapsed());
    assert!(most > 0 && most < 20 << 10, "{most} KB");
    let layers = scene.dhow(["image", "inspect", "million:1"]).run().ok().json()["layers"].clone();
    let layer = Path::new(layers[0].as_str().unwrap());
    for directory in [0, DIRECTORIES / 2, DIRECTORIES - 1] {
        assert_eq!(fs::read_dir(layer.join(directory.to_string())).unwrap().count(), 1000);
    }
    assert_eq!(fs::read_dir(layer).unwrap().count(), DIRECTORIES as usize);
    let run = |words: &[&str]| scene.dhow(words).limit(Duration::from_secs(600)).run().ok();
    run(&["image", "rm", "million:1"]);
    run(&["image", "gc"]);
    complete_or_empty(&scene);
}

/// Debian's docker-registry on loopback.
struct Registry {
    _running: Running,
    address: String,
}

/// `somebody`, `secret:with:colons`
const HTPASSWD: &str = "somebody:$2y$04$DtfML2coH3Y/AsMbuEWFrupMxjsZe9u94QcOX/jHAqwVjTTtoxNcm\n";
const LOGIN: &str = "c29tZWJvZHk6c2VjcmV0OndpdGg6Y29sb25z";

impl Registry {
    /// `None` when the folder with other engines is not there.
    fn start(scene: &Scene, name: &str, port: u16, tls: bool, password: bool) -> Option<Registry> {
        let peers = std::env::var_os("DHOW_PEERS").map_or("/var/tmp/dhow-peers".into(), PathBuf::from);
        let program = peers.join("sid/usr/bin/docker-registry");
        if !program.exists() {
            skip("no docker-registry: `make peers` makes the folder that has it");
            return None;
        }
        let dir = scene.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        let address = format!("127.0.0.1:{port}");
        let keys = workspace().join("integration/tests/registry");
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            dir.join("data").display()
        );
        if password {
            fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
            let path = dir.join("htpasswd");
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display());
        }
        config += &format!("http:\n  addr: {address}\n");
        if tls {
            let (pem, key) = (keys.join("server.pem"), keys.join("server.key"));
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", pem.display(), key.display());
        }
        fs::write(dir.join("config.yml"), config).unwrap();
        let sid = peers.join("sid");
        let (loader, libraries) =
            (sid.join("lib64/ld-linux-x86-64.so.2"), sid.join("usr/lib/x86_64-linux-gnu"));
        let running = Runner::new(loader)
            .args(["--library-path", libraries.to_str().unwrap(), program.to_str().unwrap(), "serve"])
            .args([dir.join("config.yml").to_str().unwrap()])
            .env("OTEL_TRACES_EXPORTER", "none")
            .spawn();
        let up = dhow_integration::holds_within(Duration::from_secs(20), || {
            std::net::TcpStream::connect(&address).is_ok()
        });
        assert!(up, "docker-registry says {} {}", running.stdout(), running.stderr());
        Some(Registry { _running: running, address })
    }
}

#[test]
fn images_go_to_a_registry_and_come_back() {
    let scene = Scene::new();
    let Some(registry) = Registry::start(&scene, "registry", 15431, false, false) else { return };
    let name = format!("{}/some/image:2", registry.address);
    import(&scene, &archive(&scene.dir().join("made"), 3, 10)).run().ok();
    scene.dhow(["image", "push", "made:1", &name]).run().ok();
    // A second time nothing is sent, and it is as right.
    scene.dhow(["image", "push", "made:1", &name]).run().ok();
    let before = scene.dhow(["image", "inspect", "made:1"]).run().ok().json();
    scene.dhow(["image", "rm", "made:1"]).run().ok();
    scene.dhow(["image", "gc"]).run().ok();
    let pulled =
        scene.dhow(["image", "pull", "--platform", "linux/amd64", "--format", "json", &name]).run().ok();
    assert_eq!(pulled.json()["digest"], before["digest"], "{pulled}");
    assert_eq!((&pulled.json()["layers"], &pulled.json()["shared"]), (&3.into(), &0.into()));
    let after = scene.dhow(["image", "inspect", &name]).run().ok().json();
    assert_eq!((&after["config"], &after["manifest"]), (&before["config"], &before["manifest"]));
    scene.dhow(["image", "verify", &name]).run().ok();
    // By digest, and again: nothing is fetched twice.
    let digest = format!("{}/some/image@{}", registry.address, before["digest"].as_str().unwrap());
    let again =
        scene.dhow(["image", "pull", "--platform", "linux/amd64", "--format", "json", &digest]).run().ok();
    assert_eq!(again.json()["shared"], 3);
    scene.dhow(["image", "inspect", &digest]).run().ok();
    let wrong = format!("{}/some/image:3", registry.address);
    scene.dhow(["image", "pull", &wrong]).run().fails(&["pull", &wrong, "manifest unknown"]);
    complete_or_registry_only(&scene);
}

/// A failed pull leaves nothing in the making.
fn complete_or_registry_only(scene: &Scene) {
    for part in ["tmp", "locks"] {
        assert_eq!(count(&store(scene).join(part)), 0, "{part}");
    }
}

#[test]
fn a_mirror_is_asked_first() {
    let scene = Scene::new();
    let Some(registry) = Registry::start(&scene, "registry", 15432, false, false) else { return };
    import(&scene, &archive(&scene.dir().join("made"), 1, 1)).run().ok();
    scene.dhow(["image", "push", "made:1", &format!("{}/library/made:1", registry.address)]).run().ok();
    scene.dhow(["image", "rm", "made:1"]).run().ok();
    let pull = ["image", "pull", "--platform", "linux/amd64", "--mirror", "127.0.0.1:1", "--mirror"];
    scene.dhow(pull).args([registry.address.as_str(), "made:1"]).run().ok();
    // It is called what was asked for, not after the mirror.
    let listed = scene.dhow(["image", "ls", "--format", "json"]).run().ok().json();
    assert_eq!(listed[0]["name"], "docker.io/library/made:1");
}

#[test]
fn a_registry_with_tls_and_a_password() {
    let scene = Scene::new();
    let Some(registry) = Registry::start(&scene, "registry", 15433, true, true) else { return };
    let name = format!("{}/made:1", registry.address);
    let authority = workspace().join("integration/tests/registry/ca.pem");
    let authority = authority.to_str().unwrap();
    let home = scene.dir().join("docker");
    fs::create_dir(&home).unwrap();
    import(&scene, &archive(&scene.dir().join("made"), 1, 1)).run().ok();
    let push = |home: &Path| {
        let push = scene.dhow(["image", "push", "--ca-file", authority, "made:1", &name]);
        push.env("DOCKER_CONFIG", home.to_str().unwrap())
            .env("PATH", &format!("{}:/bin:/usr/bin", home.display()))
    };
    push(&home).run().fails(&["push", &name, "credentials"]);
    let credentials = |text: &str| fs::write(home.join("config.json"), text).unwrap();
    credentials(&format!(r#"{{"auths": {{"{}": {{"auth": "bm9ib2R5Ong="}}}}}}"#, registry.address));
    push(&home).run().fails(&["push", &name, "credentials"]);
    credentials(&format!(r#"{{"auths": {{"{}": {{"auth": "{LOGIN}"}}}}}}"#, registry.address));
    push(&home).run().ok();
    // A credential helper, and the authority by the usual variable.
    credentials(&format!(r#"{{"credHelpers": {{"{}": "test"}}}}"#, registry.address));
    let helper = home.join("docker-credential-test");
    let says = r#"{"Username": "somebody", "Secret": "secret:with:colons"}"#;
    fs::write(
        &helper,
        format!("#!/bin/sh\nread -r who\n[ \"$who\" = {} ] && echo '{says}'\n", registry.address),
    )
    .unwrap();
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let pull = |authority: &str| {
        scene
            .dhow(["image", "pull", "--platform", "linux/amd64", &name])
            .env("DOCKER_CONFIG", home.to_str().unwrap())
            .env("PATH", &format!("{}:/bin:/usr/bin", home.display()))
            .env("SSL_CERT_FILE", authority)
            .run()
    };
    pull(authority).ok();
    pull("/dev/null").fails(&["pull", "certificate"]);
}

/// A user without rights, and without ids of their own but one.
const USER: u32 = 54322;

#[test]
fn a_user_without_rights_imports() {
    let scene = Scene::new();
    let home = scene.dir().join("home");
    let dir = home.join("made");
    fs::create_dir_all(&dir).unwrap();
    // Owners, a device, a capability, a directory that its owner may not enter, and whiteouts.
    let script = r#"
set -eu; cd "$1"
mkdir -p 1/closed 1/d 2/d; echo x >1/closed/x; chmod 500 1/closed; echo y >1/d/y; chown 7:8 1/d/y; chmod 4755 1/d/y
mknod 1/null c 1 3; : >2/d/.wh..wh..opq; : >2/.wh.null; echo z >2/d/z
diffs=
for layer in 1 2; do
    tar --sort=name --numeric-owner -C $layer -cf $layer.tar .
    diffs="$diffs,\"sha256:$(sha256sum $layer.tar | cut -d ' ' -f 1)\""
done
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%s]}}' "${diffs#,}" >config.json
echo '[{"Config":"config.json","RepoTags":["made:1"],"Layers":["1.tar","2.tar"]}]' >manifest.json
tar -cf image.tar config.json manifest.json 1.tar 2.tar
"#;
    Runner::new("/bin/sh").args(["-c", script, "sh", dir.to_str().unwrap()]).run().ok();
    std::os::unix::fs::chown(&home, Some(USER), Some(USER)).unwrap();
    fs::copy(dhow_integration::command::binary(), home.join("dhow")).unwrap();
    let dhow = |words: &[&str]| {
        let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
        let (program, state) = (home.join("dhow"), home.join("state"));
        let own = [program.to_str().unwrap(), "--root", state.to_str().unwrap()];
        Runner::new("setpriv").args(user).args(own).args(words).cwd(&home).run()
    };
    dhow(&["image", "import", "--platform", "linux/amd64", "made/image.tar"]).ok();
    let layers = dhow(&["image", "inspect", "made:1"]).ok().json()["layers"].clone();
    let at = |layer: usize, path: &str| PathBuf::from(layers[layer].as_str().unwrap()).join(path);
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let file = fs::metadata(at(0, "d/y")).unwrap();
    assert_eq!((file.uid(), file.mode() & 0o7777), (USER, 0o4755));
    assert!(!at(0, "null").exists(), "a user cannot make devices");
    assert_eq!(fs::metadata(at(0, "closed")).unwrap().mode() & 0o777, 0o700);
    let hidden = fs::symlink_metadata(at(1, "null")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    // What overlayfs makes of it in the user's own namespace.
    let mount = format!(
        "mkdir -p upper work merged && mount -t overlay overlay -o userxattr,lowerdir={}:{},upperdir=upper,workdir=work merged && ls merged merged/d",
        at(1, "").display(),
        at(0, "").display()
    );
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
    let unshare = Runner::new("setpriv").args(user).args(["unshare", "-Urm", "sh", "-c", &mount]);
    unshare.cwd(&home).run().ok().says("merged:\nclosed\nd\n\nmerged/d:\nz");
    dhow(&["image", "import", "--backing", "erofs", "made/image.tar"]).fails(&["erofs", "--backing auto"]);
    // Where the store is that nobody names.
    let user = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()];
    let usual = ["env", "-u", "XDG_DATA_HOME", "./dhow", "image", "import", "--platform", "linux/amd64"];
    let words = Runner::new("setpriv").args(user).args(usual).args(["made/image.tar"]).cwd(&home);
    words.env("HOME", home.to_str().unwrap()).run().ok();
    assert_eq!(count(&home.join(".local/share/dhow/images/refs")), 1);
    dhow(&["image", "rm", "made:1"]).ok();
    dhow(&["image", "gc"]).ok();
    assert!(count(&home.join("state/@images/layers")) == 0 && count(&home.join("state/@images/tmp")) == 0);
}

/// Everything that a tree can have that an archive keeps.
const RICH_TREE: &str = r#"
set -eu; cd "$1"; mkdir -p tree && cd tree
mkdir -p a/b/c sticky "name with spaces" ünïcode; chmod 1777 sticky; chmod 2755 a; chmod 700 a/b
echo one >a/one; echo two >a/b/two; ln a/one a/b/also-one; ln a/one third-one
chown 7:8 a/one; chown 70000:4000000000 a/b/two; chmod 4711 a/b/two; chmod 0 "name with spaces"
head -c 300000 /dev/urandom >big; : >empty; chmod 440 empty; chmod 6755 big
ln -s ../outside/of/it a/link; ln -s big sym; ln sym hard-sym; chown -h 5:6 sym
mkfifo pipe; chmod 622 pipe; mknod null c 1 3; chmod 666 null; mknod disk b 7 99; chown 0:6 disk
long=$(printf 'n%.0s' $(seq 200)); mkdir "$long"; echo long >"$long/$long"; ln "$long/$long" "hard-$long"
ln -s "/$long/$long/$long" long-link
touch -h -d '2001-02-03 04:05:06.123456789' a/one sym; touch -d '2038-01-20' big; touch -d '1999-12-31 23:59:59' a/b a
"#;

/// The archive of that tree, what tar makes of it again, and an image of it.
const RICH_IMAGE: &str = r#"
set -eu; cd "$1/tree"
tar --sort=name --format=posix --pax-option=delete=atime,delete=ctime --numeric-owner --xattrs --xattrs-include='*' \
    -cf ../layer.tar .
cd ..; mkdir peer
tar -xpf layer.tar --numeric-owner --same-owner --xattrs --xattrs-include='*' --delay-directory-restore -C peer
digest=$(sha256sum layer.tar | cut -d ' ' -f 1); gzip -n layer.tar
printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$digest" >config.json
echo '[{"Config":"config.json","RepoTags":["rich:1"],"Layers":["layer.tar.gz"]}]' >manifest.json
tar -cf image.tar config.json manifest.json layer.tar.gz
"#;

/// All that stat(2), readlink(2), listxattr(2) and read(2) tell of a tree, by name.
fn described(tree: &Path) -> std::collections::BTreeMap<PathBuf, String> {
    use std::os::unix::fs::MetadataExt;
    let mut all = std::collections::BTreeMap::new();
    let mut first_names = std::collections::BTreeMap::new();
    let mut names = vec![PathBuf::new()];
    while let Some(name) = names.pop() {
        let path = tree.join(&name);
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            let inside = fs::read_dir(&path).unwrap().map(|entry| name.join(entry.unwrap().file_name()));
            names.extend(inside);
        } else {
            // The smallest of a file's names stands for which file it is.
            let first = first_names.entry(stat.ino()).or_insert_with(|| name.clone());
            *first = name.clone().min(first.clone());
        }
        let mut list = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut list[..]).unwrap();
        let mut attributes: Vec<_> =
            list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()).collect();
        attributes.sort();
        let value = |key: &[u8]| {
            let mut value = vec![0; 4096];
            let key = std::str::from_utf8(key).unwrap();
            let length = rustix::fs::lgetxattr(&path, key, &mut value[..]).unwrap();
            format!("{key}={:?}", &value[..length])
        };
        let attributes: Vec<String> = attributes.into_iter().map(value).collect();
        let content = match stat.file_type() {
            kind if kind.is_file() => format!("{:?}", Sha256::digest(fs::read(&path).unwrap())),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().display().to_string(),
            _ => format!("device {}", stat.rdev()),
        };
        // A directory's size is the filesystem's own affair.
        let size = if stat.is_dir() { 0 } else { stat.size() };
        let words = format!(
            "{:o} {}:{} {size} links {} at {}.{:09} {attributes:?} {content}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.nlink(),
            stat.mtime(),
            stat.mtime_nsec()
        );
        all.insert(name, format!("{words} ino {}", stat.ino()));
    }
    // Inode numbers differ; which names are one file must not.
    for words in all.values_mut() {
        let (rest, ino) = words.rsplit_once(" ino ").unwrap();
        let first = first_names.get(&ino.parse().unwrap());
        *words = format!("{rest} is {first:?}");
    }
    all
}

/// GNU tar is the oracle: what it makes of a layer, dhow makes too, to the bit.
#[test]
fn a_layer_is_unpacked_as_tar_does() {
    let scene = Scene::new();
    let script =
        |text| Runner::new("/bin/sh").args(["-c", text, "sh", scene.dir().to_str().unwrap()]).run().ok();
    script(RICH_TREE);
    let capability = [&[1, 0, 0, 2, 0, 4][..], &[0; 14]].concat();
    for (name, key, value) in [
        ("a/one", "user.plain", &b"value"[..]),
        ("a/b", "user.on-a-directory", &[0, 255, 10]),
        ("big", "security.capability", &capability),
    ] {
        let path = scene.dir().join("tree").join(name);
        rustix::fs::setxattr(&path, key, value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    script(RICH_IMAGE);
    let image = scene.dir().join("image.tar");
    scene.dhow(["image", "import", "--platform", "linux/amd64", image.to_str().unwrap()]).run().ok();
    let layers = scene.dhow(["image", "inspect", "rich:1"]).run().ok().json()["layers"].clone();
    let (ours, peers) =
        (described(Path::new(layers[0].as_str().unwrap())), described(&scene.dir().join("peer")));
    assert!(peers.len() >= 23, "{peers:#?}");
    let kinds =
        ["user.plain", "security.capability", "user.on-a-directory", "70000:4000000000", ".123456789"];
    for kind in kinds.into_iter().chain(["links 3", "10622 ", "60644", "106755", "42755", "device 259"]) {
        let told = peers.values().any(|words| words.contains(kind));
        assert!(told, "the oracle knows nothing of {kind}: {peers:#?}");
    }
    let wrong: Vec<_> = peers.iter().filter(|(name, words)| ours.get(*name) != Some(words)).collect();
    let shown: Vec<_> = wrong.iter().map(|(name, words)| (name, words, ours.get(*name))).collect();
    assert!(wrong.is_empty() && ours.len() == peers.len(), "{shown:#?}");
}
