//! Checkpoint and restore. The real ones need a criu that works on this kernel; what goes wrong needs
//! none.

use dhow_integration::{Scene, eventually, machine, skip_unless};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// Whether there is a criu, and it can do its work here.
fn criu_works() -> bool {
    Command::new("criu").arg("check").output().is_ok_and(|output| output.status.success())
}

/// A directory with a program in it that is found as `criu`.
fn fake_criu(scene: &Scene, script: &str) -> String {
    let bin = scene.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let program = bin.join("criu");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

#[test]
fn a_container_goes_into_an_image_and_comes_back() {
    skip_unless!(criu_works(), "there is no criu that works on this kernel (`criu check`)");
    let scene = Scene::new();
    let source = scene.dir().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "bound").unwrap();
    let c = scene
        .container(|c| {
            c.writable().bind(&source, "/data", &["bind"]).args(&[
                "/bin/sh",
                "-c",
                "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.05; done",
            ]);
        })
        .with_busybox();
    c.up();
    let count = || fs::read_to_string(c.rootfs().join("count")).ok()?.trim().parse::<u64>().ok();
    eventually("it counts", || count().is_some_and(|count| count > 3));
    let image = scene.dir().join("image");
    let words = ["checkpoint", "--image-path", image.to_str().unwrap()];
    scene.dhow(words).args(["--leave-running", c.id()]).run().ok();
    assert_eq!(c.status(), "running");
    // Engines pause what they checkpoint.
    scene.dhow(["pause", c.id()]).run().ok();
    scene.dhow(words).args(["--leave-running", c.id()]).run().ok();
    assert_eq!(c.status(), "paused");
    scene.dhow(words).args([c.id()]).run().ok();
    scene.dhow(["state", c.id()]).run().fails(&["does not exist"]);
    let before = count().unwrap();
    let bundle = c.bundle().to_str().unwrap();
    let restore = ["restore", "-d", "--image-path", image.to_str().unwrap(), "--bundle", bundle, c.id()];
    scene.dhow(restore).run().ok();
    assert_eq!(c.status(), "running");
    eventually("it counts on from where it was", || count().is_some_and(|count| count > before));
    c.exec(&["/bin/cat", "/data/file"]).ok().says("bound");
    c.delete_force().ok();
    scene.is_clean();
}

/// The rootfs is mounted below the state directory meanwhile: nothing of it may go with that.
#[test]
fn a_restore_that_fails_leaves_the_rootfs_alone() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.file("/kept", "kept", 0o644);
    c.file("/notify/kept", "kept", 0o644);
    let image = scene.dir().join("image");
    fs::create_dir(&image).unwrap();
    let words =
        ["restore", "--image-path", image.to_str().unwrap(), "--bundle", c.bundle().to_str().unwrap()];
    for script in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\nkill -9 $PPID\nsleep 1\n"] {
        let path = fake_criu(&scene, script);
        let outcome = scene.dhow(words).args([c.id()]).env("PATH", &path).run();
        assert_ne!(outcome.code, 0, "{outcome}");
        scene.dhow(["delete", "--force", c.id()]).run().ok();
        let kept: Vec<PathBuf> = ["kept", "notify/kept", "payload"].map(|name| c.rootfs().join(name)).into();
        assert!(kept.iter().all(|path| path.exists()), "{outcome}");
    }
    scene.is_clean();
}

/// What criu has started is nobody's until the record tells of it.
#[test]
fn what_is_restored_and_cannot_be_kept_ends() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let image = scene.dir().join("image");
    let bundle = c.bundle().to_str().unwrap();
    let payload = scene.payload_program().display();
    let script = |way: &str| format!("#!/bin/sh\nexec {payload} criu {way} $2\n");
    let restore = ["restore", "-d", "--image-path", image.to_str().unwrap(), "--bundle", bundle];
    let path = fake_criu(&scene, &script("well"));
    scene.dhow(restore).args([c.id()]).env("PATH", &path).run().fails(&["open the directory of the image"]);
    assert!(!image.exists(), "a restore makes no image");
    fs::create_dir(&image).unwrap();
    let nowhere = ["--pid-file", "/not/there/pid", c.id()];
    scene.dhow(restore).args(nowhere).env("PATH", &path).run().fails(&["write the pid file"]);
    scene.is_clean();
    scene.dhow(restore).args([c.id()]).env("PATH", &path).run().ok();
    assert_eq!(c.status(), "running");
    c.delete_force().ok();
    scene.is_clean();
    let path = fake_criu(&scene, &script("killer"));
    assert_ne!(scene.dhow(restore).args([c.id()]).env("PATH", &path).run().code, 0);
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn what_cannot_be_checkpointed_is_told() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    scene.dhow(["checkpoint", c.id()]).run().fails(&["does not exist"]);
    c.up();
    let image = scene.dir().join("image");
    let words = ["checkpoint", "--image-path", image.to_str().unwrap()];
    let path = fake_criu(&scene, "#!/bin/sh\nexit 1\n");
    scene
        .dhow(words)
        .args([c.id()])
        .env("PATH", &path)
        .run()
        .fails(&["checkpoint the container", "dump.log"]);
    assert_eq!(c.status(), "running");
    fs::remove_file(scene.dir().join("bin/criu")).unwrap();
    let nothing = scene.dir().join("bin");
    scene.dhow(words).args([c.id()]).env("PATH", nothing.to_str().unwrap()).run().fails(&["need criu"]);
    for (option, value) in [
        ("--parent-path", "/absolute"),
        ("--parent-path", "not-there"),
        ("--manage-cgroups-mode", "often"),
        ("--page-server", "nowhere"),
        ("--empty-ns", "mount"),
    ] {
        scene.dhow(words).args([option, value, c.id()]).run().fails(&[option]);
    }
}

#[test]
fn podman_finds_out_that_it_is_there() {
    skip_unless!(machine::has_program("sh"), "no shell");
    let scene = Scene::new();
    scene.dhow(["checkpoint", "--help"]).run().ok();
    scene.dhow(["restore", "--lsm-mount-context"]).run().fails(&["flag needs an argument"]);
}
