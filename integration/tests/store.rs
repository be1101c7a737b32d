//! The image store where it is hard: full disks, filesystems that lack something, and images that go or
//! change while containers are made of them.

use dhow_integration::command::binary;
use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene, machine, skip_unless};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn archive(scene: &Scene, name: &str, more: &[Layer]) -> PathBuf {
    let path = scene.dir().join(format!("{}.tar", name.replace(':', "-")));
    let layers = [&[image::base(scene.payload_program())], more].concat();
    image::save(&path, name, &layers, &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
    path
}

/// Runs a script in a mount namespace of its own, in which `$1` is a filesystem that `mounts` mounts
/// there. `$dhow` has its store in it.
fn on(scene: &Scene, mounts: &str, script: &str) -> Outcome {
    let place = scene.dir().join("place");
    fs::create_dir_all(&place).unwrap();
    let dhow = format!("{} --root {}", binary().display(), place.display());
    let script = format!("set -e; {mounts}; dhow='{dhow}'; {script}");
    let unshare = ["--mount", "--propagation", "private", "/bin/sh", "-c", &script, "sh"];
    Runner::new("unshare").args(unshare).args([place.to_str().unwrap()]).run()
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let scene = Scene::new();
    let long = "x".repeat(3 << 20);
    let big = (0..8).fold(Layer::default(), |layer, n| layer.file(&format!("big-{n}"), &long));
    let path = archive(&scene, "big:1", &[big]);
    let script = format!(
        "$dhow image import {} || echo failed $?; find $1 -type f; df -k $1 | tail -1",
        path.display()
    );
    // Too small for the blob; and for what is unpacked beside it.
    for size in ["12m", "36m"] {
        let seen = on(&scene, &format!("mount -t tmpfs -o size={size} tmpfs $1"), &script).ok();
        assert!(seen.stderr.contains("no space left on device"), "{size} {seen}");
        assert!(!seen.stderr.contains("read the"), "it was no reading that failed: {size} {seen}");
        let lines: Vec<&str> = seen.stdout.lines().collect();
        assert_eq!(lines[0], "failed 1", "{size} {seen}");
        assert!(lines[1].ends_with("/@images/lock") && lines.len() == 3, "{size} {seen}");
    }
    // With room for all of it, the same store takes it: nothing of a failure is in the way.
    let twice = format!("$dhow image import {0} || mount -o remount,size=200m $1; {script}", path.display());
    let seen = on(&scene, "mount -t tmpfs -o size=36m tmpfs $1", &twice).ok();
    assert!(seen.stdout.contains("big:1: 2 layers, 0 of them there already"), "{seen}");
}

#[test]
fn on_a_full_disk_nothing_is_left_half_made() {
    let scene = Scene::new();
    let path = archive(&scene, "base:1", &[Layer::default().file("data/x", &"x".repeat(100_000))]);
    // Every command that writes is tried where there is no room at all; and then as much again is there.
    let script = format!(
        "$dhow image import {} >/dev/null; $dhow image tag base:1 second:1; $dhow volume create first >/dev/null; \
        $dhow create --image base:1 {tag} >/dev/null 2>&1 </dev/null; $dhow start {tag}; $dhow stop --time 0 {tag}; \
        list() {{ (cd $1 && find . -not -path './fill' | sort); }}; list $1 >$1/../before; \
        cat /dev/zero >$1/fill 2>/dev/null || true; \
        try() {{ if $dhow \"$@\" </dev/null; then echo \"$1 $2 did it\"; fi; }}; \
        try image save -o $1/saved.tar base:1; try image unpack base:1 $1/unpacked; try bundle base:1 $1/bundle; \
        try commit {tag} done:1; try image tag base:1 third:1; try volume create named; \
        try run --image base:1 {tag}-r -- true; try run --rm -d --image base:1 {tag}-r -- true; \
        try create --image base:1 --volume v:/data {tag}-r; \
        list $1 >$1/../after; cmp $1/../before $1/../after || diff $1/../before $1/../after; \
        $dhow delete {tag}; rm $1/fill; \
        $dhow run --image base:1 {tag} -- echo again; $dhow image rm base:1 second:1; $dhow image gc; list $1 | wc -l",
        path.display(),
        tag = scene.tag(),
    );
    let seen = on(&scene, "mount -t tmpfs -o size=64m tmpfs $1", &script).ok();
    assert!(!seen.stdout.contains("did it") && !seen.stdout.contains("./"), "{seen}");
    assert!(seen.stdout.starts_with("again\n"), "{seen}");
    let errors: Vec<&str> = seen.stderr.lines().collect();
    assert_eq!(errors.len(), 9, "{seen}");
    for line in errors {
        assert!(line.contains("no space left on device") && line.contains("`dhow image gc`"), "{line}");
    }
}

#[test]
fn a_filesystem_that_lacks_something_is_named() {
    skip_unless!(
        machine::linux_is_at_least(6, 7),
        "an overlay keeps no overlay's attributes before Linux 6.7"
    );
    let scene = Scene::new();
    let opaque = Layer::default().directory("etc").file("etc/.wh..wh..opq", "");
    let path = archive(&scene, "test", &[opaque]);
    let import = format!("$dhow image import -q {}", path.display());
    // overlayfs writes to no overlay.
    let overlay = "mount -t tmpfs tmpfs $1; mkdir $1/l $1/u $1/w $1/m; \
        mount -t overlay -o lowerdir=$1/l,upperdir=$1/u,workdir=$1/w overlay $1";
    let script = format!("{import}; ! $dhow run --image test c -- true; find $1/@images/containers");
    let seen = on(&scene, overlay, &script).ok();
    assert!(
        seen.stderr.contains("not supported as upperdir") && seen.stderr.contains("--root DIR"),
        "{seen}"
    );
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[1].ends_with("/containers"), "nothing is left of it: {seen}");
    // ramfs has no trusted attributes, which opaque directories need.
    let seen = on(&scene, "mount -t ramfs ramfs $1", &format!("! {import}; find $1 -type f")).ok();
    assert!(seen.stderr.contains("no extended attributes") && seen.stderr.contains("--root DIR"), "{seen}");
    assert!(seen.stdout.ends_with("/@images/lock\n") && seen.stdout.lines().count() == 1, "{seen}");
    let seen = on(&scene, "mount -t tmpfs -o ro tmpfs $1", &format!("! {import}")).ok();
    assert!(seen.stderr.contains("read-only file system"), "{seen}");
}

/// Removing and collecting while containers are made: each is made whole, or says that there is no image.
#[test]
fn an_image_goes_while_containers_are_made_of_it() {
    let scene = Scene::new();
    let path = archive(&scene, "test", &[]);
    let path = path.to_str().unwrap();
    scene.dhow(["image", "import", "-q", path]).run().ok();
    let (mut made, mut refused) = (0, 0);
    for round in 0..5 {
        let names = ["a", "b", "c"].map(|name| format!("{}-{name}", scene.tag()));
        let running: Vec<_> = names
            .iter()
            .map(|name| scene.dhow(["run", "--image", "test", name, "--", "cat", "/etc/group"]).spawn())
            .collect();
        let pause = std::time::Duration::from_millis(6 * round);
        std::thread::sleep(pause);
        let _ = scene.dhow(["image", "rm", "test"]).run();
        scene.dhow(["image", "gc"]).run().ok();
        for one in running {
            let seen = one.wait();
            match seen.code {
                0 => made += 1,
                _ => {
                    seen.fails(&["no such image: test"]);
                    refused += 1;
                }
            }
        }
        scene.dhow(["image", "gc"]).run().ok();
        // Nothing keeps what nobody uses.
        let place = scene.state_dir().join("@images");
        let left = |part: &str| fs::read_dir(place.join(part)).map_or(0, Iterator::count);
        assert_eq!((left("layers"), left("blobs/sha256"), left("containers"), left("tmp")), (0, 0, 0, 0));
        scene.dhow(["image", "import", "-q", path]).run().ok();
    }
    println!("{made} were made, {refused} came too late");
    assert!(made > 0, "none was made");
    scene.is_clean();
}

/// A name that moves to another image takes nothing from the containers of the first.
#[test]
fn a_name_moves_while_its_container_runs() {
    let scene = Scene::new();
    let name = format!("{}-c", scene.tag());
    let of = |text: &str| archive(&scene, "test", &[Layer::default().file("which", text)]);
    let import = |path: &Path| scene.dhow(["image", "import", "-q", path.to_str().unwrap()]).run().ok();
    import(&of("first\n"));
    let which = ["cat", "/which"];
    scene.dhow(["run", "-d", "--monitor", "--image", "test", &name, "--", "sleep", "1000"]).run().ok();
    let before =
        scene.dhow(["state", &name]).run().ok().json()["annotations"]["org.dhow.image.digest"].clone();
    import(&of("second\n"));
    scene.dhow(["image", "gc"]).run().ok();
    let exec = || scene.dhow(["exec", &name]).args(which).run().ok();
    exec().says("first");
    // Also in its next life, and for a commit: its layers and documents are kept.
    scene.dhow(["restart", "--time", "0", &name]).run().ok();
    exec().says("first");
    scene.dhow(["exec", &name, "touch", "/new"]).run().ok();
    scene.dhow(["commit", &name, "made:2"]).run().ok();
    let other = format!("{}-d", scene.tag());
    scene.dhow(["run", "--image", "made:2", &other, "--", "cat", "/which", "/new"]).run().ok().says("first");
    scene.dhow(["run", "--image", "test", &other, "--", "cat", "/which"]).run().ok().says("second");
    let now: Value = scene.dhow(["image", "inspect", "test"]).run().ok().json();
    assert_ne!(now["digest"], before);
    scene.dhow(["delete", "--force", &name]).run().ok();
    for image in ["test", "made:2"] {
        scene.dhow(["image", "rm", image]).run().ok();
    }
    scene.dhow(["image", "gc"]).run().ok();
    assert_eq!(fs::read_dir(scene.state_dir().join("@images/layers")).unwrap().count(), 0);
    scene.is_clean();
}

/// fsconfig(2) takes names of 255 bytes; layers with longer ones go in another way.
#[test]
fn a_store_may_lie_deep() {
    let scene = Scene::new();
    let path = archive(&scene, "test", &[Layer::default().file("which", "deep\n")]);
    let deep = scene.dir().join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    let dhow = |words: &[&str]| {
        Runner::new(binary()).args(["--root", deep.to_str().unwrap()]).args(words.iter().copied()).run()
    };
    dhow(&["image", "import", "-q", path.to_str().unwrap()]).ok();
    let name = format!("{}-c", scene.tag());
    dhow(&["run", "--image", "test", &name, "--", "cat", "/which"]).ok().says("deep");
    scene.is_clean();
}
