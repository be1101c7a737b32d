//! The image store through the command line: registries, many at once, and killed at any point.

use dhow_integration::command::{Running, workspace};
use dhow_integration::machine::skip;
use dhow_integration::{Outcome, Runner, Scene};
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
        std::thread::sleep(whole * step / 36);
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
    assert!(left > 3, "{left} left something, {done} were done");
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
