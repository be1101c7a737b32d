//! The root file system: mounts, devices, masks, links that lead astray, and the host untouched.

use dhow_integration::{Container, Runner, Scene};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// The fields of the mountinfo line for `point`: per-mount options, type, and superblock options.
fn mount_of<'a>(mountinfo: &'a str, point: &str) -> (&'a str, &'a str, &'a str) {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(point));
    let line = line.unwrap_or_else(|| panic!("{point} is not mounted: {mountinfo}"));
    let (left, right) = line.split_once(" - ").unwrap();
    let mut right = right.split(' ');
    (left.split(' ').nth(5).unwrap(), right.next().unwrap(), right.nth(1).unwrap())
}

#[test]
fn a_read_only_root_refuses_writes() {
    let scene = Scene::new();
    scene.payload(&["touch", "/new"]).run().exits(1).says("! touch: EROFS");
    scene.payload(&["touch", "/dev/shm/new", "--", "ls", "/dev/shm"]).run().ok().says("new");
}

#[test]
fn a_writable_root_keeps_what_is_written() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().payload(&["write", "/new", "text"]);
    });
    c.run().ok();
    assert_eq!(fs::read_to_string(c.rootfs().join("new")).unwrap(), "text");
}

#[test]
fn the_root_holds_the_bundles_files_and_nothing_of_the_host() {
    let scene = Scene::new();
    let seen = scene.payload(&["ls", "/", "--", "cwd", "--", "mounts"]).run().ok();
    assert_eq!(seen.stdout.lines().next(), Some("dev payload proc sys tmp"), "{seen}");
    assert!(!seen.stdout.contains(" /mnt/") && !seen.stdout.contains(" /run"), "{seen}");
}

#[test]
fn mounts_have_the_options_of_the_config() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount(
            "/data",
            "tmpfs",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "noatime", "mode=0711", "size=128k"],
        );
        c.payload(&["mounts", "--", "stat", "/data", "--", "fs", "/data"]);
    });
    let seen = c.run().ok();
    let (options, kind, of_super) = mount_of(&seen.stdout, "/data");
    assert_eq!(kind, "tmpfs");
    for option in ["rw", "nosuid", "nodev", "noexec", "noatime"] {
        assert!(options.split(',').any(|o| o == option), "{option}: {seen}");
    }
    assert!(of_super.contains("size=128k"), "{seen}");
    assert_eq!(seen.line("/data directory mode="), "0711 uid=0 gid=0 size=40 rdev=0:0");
    for (point, kind) in [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/pts", "devpts"),
        ("/dev/mqueue", "mqueue"),
        ("/sys", "sysfs"),
    ] {
        assert_eq!(mount_of(&seen.stdout, point).1, kind, "{point}");
    }
    assert!(mount_of(&seen.stdout, "/sys").0.starts_with("ro,"), "{seen}");
    assert!(mount_of(&seen.stdout, "/").0.starts_with("ro"), "{seen}");
}

#[test]
fn bind_mounts_of_directories_and_files() {
    let scene = Scene::new();
    let source = scene.dir().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "from the host").unwrap();
    let c = scene.container(|c| {
        c.bind(&source, "/dir", &["rw"]).bind(&source, "/ro", &["ro"]).bind(
            &source.join("file"),
            "/etc/one",
            &["ro"],
        );
        c.payload(&[
            "cat", "/etc/one", "--", "write", "/dir/new", "x", "--", "touch", "/ro/new2", "--", "write",
            "/etc/one", "x",
        ]);
    });
    c.run().exits(1).says("from the host! touch: EROFS\n! write: EROFS");
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "x");
    assert!(!source.join("new2").exists());
}

#[test]
fn a_bind_source_that_is_not_there_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.bind(&scene.dir().join("none"), "/dir", &[]);
    });
    c.create().fails(&["/none", "no such file or directory"]);
    scene.is_clean();
}

#[test]
fn a_relative_bind_source_is_in_the_bundle() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount("/data", "bind", "data", &["bind"]).payload(&["cat", "/data/file"]);
    });
    fs::create_dir(c.bundle().join("data")).unwrap();
    fs::write(c.bundle().join("data/file"), "beside config.json").unwrap();
    c.run().ok().says("beside config.json");
}

#[test]
fn the_usual_devices_are_there() {
    let scene = Scene::new();
    let devices = [
        ("null", "1:3"),
        ("zero", "1:5"),
        ("full", "1:7"),
        ("random", "1:8"),
        ("urandom", "1:9"),
        ("tty", "5:0"),
    ];
    let mut verbs = Vec::new();
    let paths: Vec<String> = devices.iter().map(|(name, _)| format!("/dev/{name}")).collect();
    for path in &paths {
        verbs.extend(["stat", path, "--"]);
    }
    for link in ["fd", "stdin", "stdout", "stderr", "ptmx"] {
        verbs.extend(["readlink", Box::leak(format!("/dev/{link}").into_boxed_str()), "--"]);
    }
    let seen = scene.payload(&verbs).run().ok();
    for (name, number) in devices {
        let line = seen.line(&format!("/dev/{name} char "));
        assert!(
            line.starts_with("mode=0666 uid=0 gid=0") && line.ends_with(&format!("rdev={number}")),
            "{seen}"
        );
    }
    let links: Vec<&str> = seen.stdout.lines().skip(devices.len()).collect();
    assert_eq!(links[..4], ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2"]);
    assert!(["pts/ptmx", "/dev/pts/ptmx"].contains(&links[4]), "{seen}");
}

#[test]
fn more_devices_come_from_the_config() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        let device = json!({ "path": "/dev/of/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8 });
        let pipe = json!({ "path": "/dev/pipe", "type": "p", "fileMode": 0o600 });
        c.push("/linux/devices", device).push("/linux/devices", pipe);
        c.payload(&["stat", "/dev/of/mine", "--", "stat", "/dev/pipe"]);
    });
    let seen = c.run().ok();
    assert_eq!(seen.line("/dev/of/mine char "), "mode=0640 uid=7 gid=8 size=0 rdev=1:3");
    assert!(seen.line("/dev/pipe fifo ").starts_with("mode=0600"), "{seen}");
}

#[test]
fn what_stands_in_the_way_of_a_device_is_named() {
    let scene = Scene::new();
    let device = json!({ "path": "/opt/mine", "type": "c", "major": 1, "minor": 3 });
    let c = scene.container(|c| {
        c.push("/linux/devices", device).payload(&["exit", "0"]);
    });
    c.file("/opt/mine", "text", 0o644);
    c.run().fails(&["make the device", "/opt/mine", "file exists"]);
}

#[test]
fn masked_paths_show_nothing() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/maskedPaths", json!(["/proc/version", "/secret/dir", "/secret/file", "/not/there"]));
        c.payload(&[
            "stat",
            "/proc/version",
            "--",
            "ls",
            "/secret/dir",
            "--",
            "cat",
            "/secret/file",
            "--",
            "touch",
            "/secret/dir/new",
        ]);
    });
    c.file("/secret/dir/file", "hidden", 0o644);
    c.file("/secret/file", "hidden", 0o644);
    let seen = c.run().exits(1);
    assert!(seen.line("/proc/version char ").ends_with("rdev=1:3"), "{seen}");
    assert!(!seen.stdout.contains("hidden") && !seen.stdout.contains("file"), "{seen}");
    assert!(seen.stdout.ends_with("! touch: EROFS\n"), "{seen}");
}

#[test]
fn read_only_paths_cannot_be_written() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().set("/linux/readonlyPaths", json!(["/proc/sys", "/keep", "/not/there"]));
        c.payload(&[
            "write",
            "/proc/sys/net/ipv4/ip_forward",
            "1",
            "--",
            "touch",
            "/keep/new",
            "--",
            "touch",
            "/free",
        ]);
    });
    c.file("/keep/file", "text", 0o644);
    c.run().exits(1).says("! write: EROFS\n! touch: EROFS");
    assert!(c.rootfs().join("free").exists());
}

#[test]
fn the_root_is_a_read_only_path_too() {
    let scene = Scene::new();
    for root in ["/", "/.."] {
        let c = scene.container(|c| {
            c.writable().set("/linux/readonlyPaths", json!([root])).payload(&["touch", "/free"]);
        });
        c.run().exits(1).says("! touch: EROFS");
    }
}

#[test]
fn sysctls_of_the_containers_own_namespaces_are_set() {
    let scene = Scene::new();
    let host = fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
    let c = scene.container(|c| {
        c.set("/linux/sysctl", json!({ "kernel.msgmax": "12345", "net.ipv4.ip_default_ttl": "77" }));
        c.payload(&["cat", "/proc/sys/kernel/msgmax", "--", "cat", "/proc/sys/net/ipv4/ip_default_ttl"]);
    });
    c.run().ok().says("12345\n77");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(), host);
}

#[test]
fn sysctls_of_the_host_are_refused() {
    let scene = Scene::new();
    for (key, value) in [("vm.swappiness", "1"), ("kernel.panic", "3")] {
        let c = scene.container(|c| {
            c.set("/linux/sysctl", json!({ key: value }));
        });
        c.create().fails(&[key]);
    }
    let c = scene.container(|c| {
        c.without_namespace("network").set("/linux/sysctl", json!({ "net.ipv4.ip_default_ttl": "77" }));
    });
    c.create().fails(&["net.ipv4.ip_default_ttl"]);
    scene.is_clean();
}

#[test]
fn links_in_the_root_do_not_lead_out_of_it() {
    let scene = Scene::new();
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let c = scene.container(|c| {
        c.mount("/link/sub", "tmpfs", "tmpfs", &["size=64k"]).mount(
            "/up/sub2",
            "tmpfs",
            "tmpfs",
            &["size=64k"],
        );
        c.payload(&["mounts"]);
    });
    symlink(&outside, c.rootfs().join("link")).unwrap();
    symlink("../../outside", c.rootfs().join("up")).unwrap();
    let seen = c.run();
    // Refusing and staying inside are both right.
    if seen.code == 0 {
        let inside = format!("{}/sub", outside.display());
        assert!(seen.stdout.contains(&inside), "absolute links start at the container's root: {seen}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside the root");
    scene.is_clean();
}

#[test]
fn a_proc_that_is_a_link_is_refused() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    fs::create_dir(c.rootfs().join("elsewhere")).unwrap();
    symlink("elsewhere", c.rootfs().join("proc")).unwrap();
    c.run().fails(&["/proc"]);
    scene.is_clean();
}

#[test]
fn the_hosts_mounts_do_not_change() {
    let scene = Scene::new();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let c = scene.container(|c| {
        c.writable().payload(&["mount-tmpfs", "/tmp", "--", "echo", "ready", "--", "sleep", "100"]);
        for set in ["bounding", "effective", "permitted"] {
            c.push(&format!("/process/capabilities/{set}"), "CAP_SYS_ADMIN");
        }
    });
    c.up().until_it_says("ready");
    let now = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut new = now.lines().filter(|line| !before.contains(line) && line.contains(scene.tag()));
    assert_eq!(new.next(), None, "a mount shows on the host while the container runs");
}

#[test]
fn without_pivot_root_the_container_works_too() {
    let scene = Scene::new();
    // Only the initial ramfs needs this; chroot and a moved mount take pivot_root's place.
    let seen = scene.payload(&["ls", "/"]).run_with(&["--no-pivot"]).run().ok();
    assert!(seen.stdout.contains("payload"), "{seen}");
    scene.is_clean();
}

#[test]
fn the_root_path_may_be_absolute() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["echo", "there"]).set("/root/path", scene.dir().join("b0/rootfs").to_str().unwrap());
    });
    c.run().ok().says("there");
}

#[test]
fn the_root_may_be_a_link() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["echo", "there"]).set("/root/path", "link");
    });
    symlink("rootfs", c.bundle().join("link")).unwrap();
    c.run().ok().says("there");
}

#[test]
fn propagation_of_the_root_is_what_the_config_says() {
    let scene = Scene::new();
    for (value, mark) in [
        ("private", None),
        ("shared", Some("shared:")),
        ("slave", None),
        ("unbindable", None),
        ("runbindable", None),
    ] {
        let c = scene.container(|c| {
            c.set("/linux/rootfsPropagation", value).payload(&["mounts"]);
        });
        let seen = c.run().ok();
        let root = seen.stdout.lines().find(|l| l.split(' ').nth(4) == Some("/")).unwrap();
        let optional: Vec<&str> = root.split(' ').skip(6).take_while(|f| *f != "-").collect();
        let found = optional.iter().any(|field| field.starts_with("shared:"));
        assert_eq!(found, mark.is_some(), "{value}: {root}");
        assert_eq!(optional.contains(&"unbindable"), value.ends_with("unbindable"), "{value}: {root}");
    }
}

/// On a host whose mounts are shared, as systemd makes them, an unmount in a container's copy of them
/// is one on the host, unless something is done about it.
#[test]
fn the_mounts_of_a_host_that_shares_them_stay() {
    // Private first: the machine's own mounts may be shared, and are not to be a part of this.
    const SCRIPT: &str = "mount --make-rprivate /; mount --make-rshared /; points() { cut -d' ' -f5 /proc/self/mountinfo | sort; }
        mount --bind ${0%/*} ${0%/*}; before=$(points); \"$@\" || exit; after=$(points)
        [ \"$before\" = \"$after\" ] || { echo \"$before\" >$0; echo \"$after\" | diff $0 -; exit 99; }";
    let scene = Scene::new();
    let shared = |c: &Container<'_>, more: &[&str]| {
        let other = scene.dir().join("points");
        let host = ["--mount", "/bin/sh", "-c", SCRIPT, other.to_str().unwrap()];
        let line = scene.dhow(["run", "--bundle", c.bundle().to_str().unwrap()]).args(more).line();
        Runner::new("unshare").args(host).args(line).args([c.id()]).run()
    };
    for value in ["", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable"] {
        let c = scene.container(|c| {
            c.set("/linux/rootfsPropagation", value).payload(&["echo", "there"]);
            c.bind(Path::new("/sys"), "/host-sys", &["rbind"]);
        });
        for more in [&[][..], &["--no-pivot"]] {
            println!("{value:?} {more:?}");
            shared(&c, more).ok().says("there");
        }
    }
    let bare = scene.container(|c| {
        c.without_namespace("mount").payload(&["echo", "there"]).bind(
            Path::new("/sys"),
            "/host-sys",
            &["rbind"],
        );
        c.set("/linux/maskedPaths", json!([])).set("/linux/readonlyPaths", json!([]));
    });
    shared(&bare, &[]).ok().says("there");
    scene.is_clean();
}

#[test]
fn a_directory_made_for_a_mount_has_the_usual_mode() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount("/a/b", "tmpfs", "tmpfs", &["mode=0700"]).payload(&["stat", "/a"]);
    });
    let seen = c.run().ok();
    assert!(seen.stdout.contains("/a directory mode=0755"), "{seen}");
    let made = fs::metadata(c.rootfs().join("a")).unwrap().permissions().mode() & 0o777;
    assert_eq!(made, 0o755);
}

#[test]
fn an_unknown_file_system_is_refused_by_name() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount("/data", "nosuchfs", "none", &[]);
    });
    c.create().fails(&["nosuchfs", "/data"]);
    scene.is_clean();
}

#[test]
fn the_cgroup_mount_shows_the_containers_own_cgroup() {
    let scene = Scene::new();
    let seen = scene.payload(&["ls", "/sys/fs/cgroup", "--", "mounts"]).run().ok();
    let kind = mount_of(&seen.stdout, "/sys/fs/cgroup").1;
    let names = seen.stdout.lines().next().unwrap();
    let mounts: Vec<&str> = seen.stdout.lines().filter(|l| l.contains(" - cgroup")).collect();
    assert!(!mounts.is_empty(), "{seen}");
    for mount in mounts {
        let fields: Vec<&str> = mount.split(' ').collect();
        assert_eq!(fields[3], "/", "more than the container's own cgroup shows: {mount}");
        assert!(fields[5].starts_with("ro,"), "{mount}");
    }
    if kind == "cgroup2" {
        // Only a cgroup that is not the root has a type.
        assert!(names.contains("cgroup.procs") && names.contains("cgroup.type"), "{names}");
    } else {
        assert!(names.split(' ').any(|n| n.contains("memory")), "{names}");
    }
}
