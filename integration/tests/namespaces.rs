//! Namespaces: new ones, the host's, and others' by path.

use dhow_integration::{Container, Runner, Scene, machine, skip_unless};
use serde_json::json;
use std::fs;

/// The namespace of a kind, as `pid:[4026531836]`, of this process.
fn mine(kind: &str) -> String {
    of("self", kind)
}

fn of(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_str().unwrap().to_owned()
}

/// The path of a namespace of a running container.
fn path_of(c: &Container, kind: &str) -> String {
    format!("/proc/{}/ns/{kind}", c.pid())
}

#[test]
fn each_namespace_of_the_config_is_new() {
    let scene = Scene::new();
    let seen = scene.payload(&["ns"]).run().ok();
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        assert_ne!(seen.line(&format!("{kind} ")), mine(kind), "{kind}");
    }
    for kind in ["user", "time"] {
        assert_eq!(seen.line(&format!("{kind} ")), mine(kind), "{kind} is not in the config");
    }
}

#[test]
fn a_namespace_that_is_not_in_the_config_is_the_hosts() {
    let scene = Scene::new();
    for (name, kind) in
        [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup")]
    {
        let c = scene.container(|c| {
            c.payload(&["ns"]).without_namespace(name);
            if name == "uts" {
                c.remove("/hostname");
            }
        });
        let seen = c.run().ok();
        assert_eq!(seen.line(&format!("{kind} ")), mine(kind), "{name}");
        scene.is_clean();
    }
}

#[test]
fn hostname_and_domainname_are_set_inside_only() {
    let scene = Scene::new();
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let c = scene.container(|c| {
        c.payload(&["hostname"]).set("/hostname", "anchor").set("/domainname", "example.org");
    });
    c.run().ok().says("anchor example.org");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn a_hostname_without_a_uts_namespace_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["hostname"]).without_namespace("uts").set("/hostname", "would-rename-the-host");
    });
    c.run().fails(&["hostname", "uts"]);
    scene.is_clean();
}

#[test]
fn a_new_network_has_a_loopback_that_works() {
    let scene = Scene::new();
    let seen = scene.payload(&["loopback", "--", "interfaces"]).run().ok();
    assert!(seen.stdout.starts_with("loopback works\n"), "{seen}");
    let interfaces: Vec<&str> = seen.stdout.lines().skip(1).collect();
    // The kernel's own tunnel devices appear in every new network namespace where they are loaded.
    assert!(interfaces.contains(&"lo") && !interfaces.iter().any(|i| i.starts_with("eth")), "{seen}");
}

#[test]
fn namespaces_are_joined_by_path() {
    let scene = Scene::new();
    let first = scene.payload(&["sleep", "100"]);
    first.up();
    for (name, kind) in
        [("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("cgroup", "cgroup"), ("pid", "pid")]
    {
        let c = scene.container(|c| {
            c.payload(&["ns"]).namespace(name, Some(&path_of(&first, kind)));
            if name == "uts" {
                c.remove("/hostname");
            }
        });
        let seen = c.run().ok();
        assert_eq!(seen.line(&format!("{kind} ")), of(&first.pid().to_string(), kind), "{name}");
        assert_eq!(first.status(), "running", "joining {name} must not end the other container");
    }
}

#[test]
fn a_joined_pid_namespace_shows_its_processes() {
    let scene = Scene::new();
    let first = scene.payload(&["sleep", "100"]);
    first.up();
    let c = scene.container(|c| {
        c.payload(&["pid", "--", "cat", "/proc/1/cmdline"]).namespace("pid", Some(&path_of(&first, "pid")));
    });
    let seen = c.run().ok();
    assert_ne!(seen.field("pid"), "1");
    assert!(seen.stdout.contains("sleep\x00100"), "process 1 is the other container's: {seen}");
    // With process 1 of another container, kill and delete must reach this one's alone.
    let third = scene.container(|c| {
        c.payload(&["sleep", "100"]).namespace("pid", Some(&path_of(&first, "pid")));
    });
    third.up();
    third.kill("KILL").ok();
    third.until("stopped");
    // A namespace's init ends only when every zombie in it has been waited for.
    third.reap();
    third.delete().ok();
    assert_eq!(first.status(), "running");
}

#[test]
fn a_namespace_path_that_is_not_there_or_of_another_kind_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.namespace("network", Some("/run/netns/there-is-none"));
    });
    c.create().fails(&["/run/netns/there-is-none", "no such file or directory"]);
    let c = scene.container(|c| {
        c.namespace("network", Some("/proc/self/ns/uts"));
    });
    c.create().fails(&["/proc/self/ns/uts"]);
    scene.is_clean();
}

#[test]
fn a_user_namespace_maps_ids() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536).payload(&[
            "ids",
            "--",
            "cat",
            "/proc/self/uid_map",
            "--",
            "cat",
            "/proc/self/gid_map",
            "--",
            "stat",
            "/proc/1",
            "--",
            "echo",
            "ready",
            "--",
            "sleep",
            "100",
        ]);
    });
    c.up().until_it_says("ready");
    let seen = c.output();
    assert!(seen.contains("uid=0 euid=0 gid=0 egid=0"), "{seen}");
    let map: Vec<&str> = seen.lines().nth(2).unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"], "{seen}");
    let status = fs::read_to_string(format!("/proc/{}/status", c.pid())).unwrap();
    assert!(status.contains("Uid:\t100000\t100000\t100000\t100000"), "{status}");
    assert!(status.contains("Gid:\t100000\t100000\t100000\t100000"), "{status}");
    assert_ne!(of(&c.pid().to_string(), "user"), mine("user"));
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn in_a_user_namespace_the_container_is_complete() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536).payload(&[
            "write",
            "/dev/null",
            "x",
            "--",
            "ls",
            "/dev",
            "--",
            "hostname",
            "--",
            "loopback",
            "--",
            "caps",
        ]);
    });
    let seen = c.run().ok();
    for name in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd", "stdin"] {
        assert!(seen.stdout.lines().next().unwrap().split(' ').any(|n| n == name), "/dev/{name}: {seen}");
    }
    assert!(seen.stdout.contains("dhow"), "{seen}");
    assert_eq!(seen.field("effective"), "CAP_KILL,CAP_NET_BIND_SERVICE,CAP_AUDIT_WRITE");
}

#[test]
fn a_user_namespace_without_maps_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.namespace("user", None);
    });
    c.create().fails(&["uidMappings"]);
    scene.is_clean();
}

#[test]
fn a_map_that_is_too_long_is_told_from_one_of_foreign_ids() {
    let scene = Scene::new();
    let map: Vec<_> = (0..400).map(|n| json!({"containerID": n, "hostID": 100_000 + n, "size": 1})).collect();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536).set("/linux/uidMappings", map);
    });
    c.create().fails(&["linux.uidMappings", "340 entries"]);
    scene.is_clean();
}

#[test]
fn a_time_namespace_has_its_own_clocks() {
    skip_unless!(machine::has_namespace("time"), "the kernel has no time namespaces");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.namespace("time", None)
            .set(
                "/linux/timeOffsets",
                json!({ "boottime": { "secs": 1_000_000, "nanosecs": 5 }, "monotonic": { "secs": 7 } }),
            )
            .payload(&["timens", "--", "ns"]);
    });
    let seen = c.run().ok();
    let uptime: f64 = seen.line("uptime ").split(' ').next().unwrap().parse().unwrap();
    assert!(uptime >= 1_000_000.0, "{seen}");
    assert_eq!(seen.line("boottime ").split_whitespace().collect::<Vec<_>>(), ["1000000", "5"]);
    assert_eq!(seen.line("monotonic ").split_whitespace().collect::<Vec<_>>(), ["7", "0"]);
    assert_ne!(seen.line("time "), mine("time"));
}

#[test]
fn a_time_namespace_needs_no_offsets() {
    skip_unless!(machine::has_namespace("time"), "the kernel has no time namespaces");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.namespace("time", None).payload(&["ns"]);
    });
    assert_ne!(c.run().ok().line("time "), mine("time"));
}

#[test]
fn in_a_cgroup_namespace_the_containers_cgroup_is_the_root() {
    let scene = Scene::new();
    let seen = scene.payload(&["cgroup"]).run().ok();
    for line in seen.stdout.lines() {
        assert!(line.ends_with(":/"), "{seen}");
    }
}

#[test]
fn without_a_pid_namespace_delete_ends_every_process() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["fork-tree", "4"]).without_namespace("pid");
    });
    c.up().until_it_says("ready 4");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_namespace_listed_twice_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.push("/linux/namespaces", json!({ "type": "pid" }));
    });
    c.create().fails(&["namespace", "pid"]);
    scene.is_clean();
}

/// The specification: a namespace that is not asked for is the runtime's own. The mounts are then
/// the host's; delete takes them back, also after a failure.
#[test]
fn without_a_mount_namespace_the_root_is_changed_and_the_mounts_go_at_delete() {
    let scene = Scene::new();
    let bare = |verbs: &[&str]| {
        scene.container(|c| {
            c.without_namespace("mount")
                .set("/linux/maskedPaths", json!([]))
                .set("/linux/readonlyPaths", json!([]))
                .writable()
                .payload(verbs);
        })
    };
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let c = bare(&["touch", "/made", "--", "sleep", "100"]);
    c.up();
    let below = |rootfs: &std::path::Path| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(rootfs.to_str().unwrap())).count()
    };
    assert_eq!(fs::read_link(format!("/proc/{}/ns/mnt", c.pid())).unwrap(), own);
    assert!(below(&c.rootfs()) > 3);
    dhow_integration::eventually("the payload has run", || c.rootfs().join("made").exists());
    // An exec'ed process is in the container's root too, not in the host's.
    c.exec(&["/payload", "access", "/made"]).ok();
    c.delete_force().ok();
    assert_eq!(below(&c.rootfs()), 0);
    let failing = bare(&["exit", "0"]);
    let mut config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(failing.bundle().join("config.json")).unwrap()).unwrap();
    config["process"]["args"] = json!(["/not/there"]);
    failing.write_config(&config.to_string());
    failing.create().fails(&["no such file or directory"]);
    assert_eq!(below(&failing.rootfs()), 0);
    // A rootfs that an engine has mounted is the engine's to unmount.
    let rootfs = failing.rootfs();
    let words = ["--bind", rootfs.to_str().unwrap(), rootfs.to_str().unwrap()];
    Runner::new("mount").args(words).run().ok();
    failing.create().fails(&["no such file or directory"]);
    assert_eq!(below(&rootfs), 1);
    config["process"]["args"] = json!(["/payload", "sleep", "100"]);
    failing.write_config(&config.to_string());
    failing.up();
    failing.delete_force().ok();
    assert_eq!(below(&rootfs), 1);
    Runner::new("umount").args([rootfs.to_str().unwrap()]).run().ok();
    let masked = scene.container(|c| {
        c.without_namespace("mount").payload(&["exit", "0"]);
    });
    masked.create().fails(&["no mount namespace", "maskedPaths"]);
    scene.is_clean();
}
