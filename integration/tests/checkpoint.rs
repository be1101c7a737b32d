//! Checkpoint and restore. The real ones need a criu that works on this kernel; what goes wrong needs
//! none.

use dhow_integration::{Scene, eventually, machine, skip_unless};
use std::fs;
use std::io::Read;
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
                "i=0; while true; do i=$((i+1)); echo $i >/new; mv /new /count; sleep 0.05; done",
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

/// Twice, with processes that came by exec in between, and bind mounts whose mount points are gone.
#[test]
fn what_was_restored_is_checkpointed_again() {
    skip_unless!(criu_works(), "there is no criu that works on this kernel (`criu check`)");
    let scene = Scene::new();
    let [outer, inner] = ["outer", "inner"].map(|name| scene.dir().join(name));
    for dir in [&outer, &inner] {
        fs::create_dir(dir).unwrap();
    }
    fs::write(inner.join("file"), "nested").unwrap();
    let c = scene
        .container(|c| {
            c.writable().args(&["/bin/sleep", "1000"]);
            c.bind(&outer, "/outer", &["bind"]).bind(&inner, "/outer/for/nested", &["bind"]);
        })
        .with_busybox();
    c.up();
    let image = scene.dir().join("image");
    let image = image.to_str().unwrap();
    let bundle = c.bundle().to_str().unwrap();
    let mut background: Option<String> = None;
    for _ in 0..2 {
        scene.dhow(["checkpoint", "--image-path", image, c.id()]).run().ok();
        fs::remove_dir_all(outer.join("for")).unwrap();
        scene.dhow(["restore", "-d", "--image-path", image, "--bundle", bundle, c.id()]).run().ok();
        c.exec(&["/bin/cat", "/outer/for/nested/file"]).ok().says("nested");
        if let Some(pid) = &background {
            c.exec(&["/bin/sh", "-c", &format!("read name </proc/{pid}/comm && [ $name = sleep ]")]).ok();
        }
        let clocks = "[ -n \"$(readlink /proc/1/ns/time)\" ] && \
                      [ \"$(readlink /proc/1/ns/time)\" = \"$(readlink /proc/self/ns/time)\" ]";
        c.exec(&["/bin/sh", "-c", clocks]).ok();
        let stay = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!";
        background = Some(c.exec(&["/bin/sh", "-c", stay]).ok().stdout.trim().to_owned());
    }
    c.delete_force().ok();
    scene.is_clean();
}

/// As engines have it: the namespace is there before the container, and stays.
#[test]
fn a_network_namespace_of_others_is_joined_again() {
    skip_unless!(criu_works(), "there is no criu that works on this kernel (`criu check`)");
    skip_unless!(machine::has_program("ip"), "iproute2 is not installed");
    let scene = Scene::new();
    let mut holder = Command::new("unshare");
    let script = "ip link set lo up; ip address add 10.9.8.7/24 dev lo; echo up; exec sleep 1000";
    let mut holder = holder
        .args(["--net", "sh", "-c", script])
        .stdout(std::process::Stdio::piped())
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut said = [0; 3];
    holder.stdout.take().unwrap().read_exact(&mut said).unwrap();
    let place = format!("/proc/{}/ns/net", holder.id());
    let c = scene
        .container(|c| {
            c.writable().without_namespace("network").args(&["/bin/sleep", "1000"]);
            c.push("/linux/namespaces", serde_json::json!({"type": "network", "path": place}));
        })
        .with_busybox();
    c.up();
    let image = scene.dir().join("image");
    let words = ["--image-path", image.to_str().unwrap()];
    let bundle = c.bundle().to_str().unwrap();
    for _ in 0..3 {
        scene.dhow(["checkpoint"]).args(words).args([c.id()]).run().ok();
        scene.dhow(["restore", "-d"]).args(words).args(["--bundle", bundle, c.id()]).run().ok();
        assert_eq!(
            fs::read_link(format!("/proc/{}/ns/net", c.state()["pid"])).unwrap(),
            fs::read_link(&place).unwrap()
        );
        assert!(c.exec(&["/bin/busybox", "ip", "address"]).ok().stdout.contains("10.9.8.7/24"));
    }
    c.delete_force().ok();
    holder.kill().unwrap();
    holder.wait().unwrap();
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
