//! Fields of config.json that few containers use: each seen from inside, and refused by name when
//! wrong.

use dhow_integration::machine::{self, has_program};
use dhow_integration::{Scene, skip_unless};
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// What a program of the host prints.
fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Field `number` of /proc/PID/stat, counted from 1 as proc_pid_stat(5) does.
fn stat_field(stat: &str, number: usize) -> String {
    let rest = stat.rsplit_once(") ").unwrap().1;
    rest.split_whitespace().nth(number - 3).unwrap().to_owned()
}

#[test]
fn the_scheduler_is_what_the_config_says() {
    const POLICY: usize = 41;
    const NICE: usize = 19;
    let scene = Scene::new();
    for (scheduler, policy, nice) in [
        (json!({ "policy": "SCHED_BATCH", "nice": 7 }), "3", "7"),
        (json!({ "policy": "SCHED_IDLE" }), "5", "0"),
        (json!({ "policy": "SCHED_OTHER", "nice": -3, "flags": ["SCHED_FLAG_RESET_ON_FORK"] }), "0", "-3"),
    ] {
        let c = scene.container(|c| {
            c.set("/process/scheduler", scheduler.clone()).payload(&["cat", "/proc/self/stat"]);
        });
        let stat = c.run().ok().stdout;
        assert_eq!((&*stat_field(&stat, POLICY), &*stat_field(&stat, NICE)), (policy, nice), "{scheduler}");
    }
}

#[test]
fn an_exec_has_the_containers_scheduler_and_io_priority() {
    skip_unless!(has_program("ionice") && has_program("chrt"), "ionice and chrt of util-linux");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set(
            "/process/scheduler",
            json!({ "policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
        )
        .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }))
        .payload(&["sleep", "100"]);
    });
    c.up();
    let pid = c.pid().to_string();
    assert_eq!(host("ionice", &["-p", &pid]), "best-effort: prio 6\n");
    let policy = host("chrt", &["-p", &pid]);
    assert!(policy.contains("SCHED_BATCH|SCHED_RESET_ON_FORK"), "{policy}");
    let pid_file = scene.dir().join("exec.pid");
    let options = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    c.exec_with(&options, &["/payload", "sleep", "100"]).run().ok();
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(host("ionice", &["-p", &pid]), "best-effort: prio 6\n");
    assert!(host("chrt", &["-p", &pid]).contains("SCHED_BATCH"));
    c.kill("KILL").ok();
    // It is the test's to reap, and until then the pid namespace does not end.
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.parse().unwrap()), None).unwrap();
}

#[test]
fn a_user_namespace_does_not_hinder_a_realtime_priority() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    // Its root has no CAP_SYS_NICE that would count: dhow itself must do it.
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536)
            .set("/process/ioPriority", json!({ "class": "IOPRIO_CLASS_RT", "priority": 3 }))
            .set("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": -5 }))
            .payload(&["cat", "/proc/self/stat", "--", "sleep", "100"]);
    });
    c.up().until_it_says(")");
    assert_eq!(stat_field(&c.output(), 19), "-5");
    assert_eq!(host("ionice", &["-p", &c.pid().to_string()]), "realtime: prio 3\n");
    c.kill("KILL").ok();
}

#[test]
fn the_memory_policy_is_what_the_config_says() {
    skip_unless!(fs::exists("/proc/self/numa_maps").unwrap(), "the kernel has no NUMA");
    let scene = Scene::new();
    for (policy, seen) in [
        (json!({ "mode": "MPOL_BIND", "nodes": "0" }), "bind:0"),
        (json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }), "interleave"),
        (json!({ "mode": "MPOL_DEFAULT" }), "default"),
    ] {
        let c = scene.container(|c| {
            c.set("/linux/memoryPolicy", policy.clone()).payload(&["cat", "/proc/self/numa_maps"]);
        });
        let maps = c.run().ok();
        assert!(maps.stdout.contains(seen), "{policy}: {maps}");
    }
    let c = scene.container(|c| {
        c.set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "1000" }));
    });
    c.create().fails(&["linux.memoryPolicy MPOL_BIND 1000"]);
    scene.is_clean();
}

#[test]
fn an_exec_is_bound_to_the_cpus_of_the_config() {
    skip_unless!(std::thread::available_parallelism().is_ok_and(|n| n.get() > 1), "one CPU only");
    let scene = Scene::new();
    let allowed = |outcome: dhow_integration::Outcome| {
        outcome.ok().stdout.split_once("Cpus_allowed_list:\t").unwrap().1.trim().to_owned()
    };
    let argv = ["/payload", "status", "Cpus_allowed_list"];
    // Before Linux 6.2 a cpuset forgets what a process that enters it was bound to.
    let first = if machine::linux_is_at_least(6, 2) { "1" } else { "0-1" };
    for (affinity, seen) in [
        (json!({ "initial": "0", "final": "1" }), "1"),
        (json!({ "final": "0" }), "0"),
        (json!({ "initial": "1" }), first),
    ] {
        let c = scene.container(|c| {
            c.set("/process/execCPUAffinity", affinity.clone()).payload(&["sleep", "100"]);
        });
        c.up();
        assert_eq!(allowed(c.exec(&argv)), seen, "{affinity}");
        c.delete_force().ok();
    }
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let process = |affinity: Value| {
        let file = scene.dir().join("process.json");
        let process = json!({ "args": argv, "cwd": "/", "execCPUAffinity": affinity });
        fs::write(&file, process.to_string()).unwrap();
        scene.dhow(["exec", "--process", file.to_str().unwrap(), c.id()]).run()
    };
    assert_eq!(allowed(process(json!({ "final": "1" }))), "1");
    process(json!({ "final": "8000" })).fails(&["process.execCPUAffinity.final"]);
    process(json!({ "initial": "1-" })).fails(&["process.execCPUAffinity.initial"]);
}

/// Maps id 0 of the files to `host`.
fn owner_map(host: u32) -> Value {
    json!([{ "containerID": 0, "hostID": host, "size": 1 }])
}

#[test]
fn idmapped_binds_show_other_owners() {
    let scene = Scene::new();
    let (directory, file) = (scene.dir().join("owned"), scene.dir().join("file"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("inner"), "").unwrap();
    fs::write(&file, "").unwrap();
    let bind = |source: &std::path::Path, to: &str, options: &[&str]| {
        json!({ "destination": to, "source": source, "options": options,
                "uidMappings": owner_map(1234), "gidMappings": owner_map(77) })
    };
    let c = scene.container(|c| {
        c.push("/mounts", bind(&directory, "/d", &["bind", "idmap"]))
            .push("/mounts", bind(&file, "/not/there/f", &["rbind", "ridmap"]))
            .push("/mounts", bind(&file, "/plain", &["bind"]))
            .payload(&["stat", "/d/inner", "--", "stat", "/not/there/f", "--", "stat", "/plain"]);
    });
    let seen = c.run().ok();
    assert_eq!(seen.stdout.matches("uid=1234 gid=77").count(), 3, "{seen}");
    scene.is_clean();
}

#[test]
fn idmap_alone_takes_the_containers_maps() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let file = scene.dir().join("file");
    fs::write(&file, "").unwrap();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536)
            .bind(&file, "/mapped", &["idmap", "ro", "nosuid"])
            .bind(&file, "/unmapped", &[])
            .payload(&["stat", "/mapped", "--", "stat", "/unmapped", "--", "append", "/mapped", "x"]);
    });
    let seen = c.run().exits(1);
    assert!(seen.line("/mapped ").contains("uid=0 gid=0"), "{seen}");
    assert!(seen.line("/unmapped ").contains("uid=65534 gid=65534"), "{seen}");
    assert!(seen.stdout.ends_with("! append: EROFS\n"), "{seen}");
}

#[test]
fn idmaps_that_cannot_be_are_refused() {
    let scene = Scene::new();
    let refused = |mount: Value, words: &[&str]| {
        scene
            .container(|c| {
                c.push("/mounts", mount);
            })
            .create()
            .fails(words);
    };
    let dir = scene.dir().to_str().unwrap();
    let bind = json!({ "destination": "/d", "source": dir, "options": ["bind", "idmap"] });
    refused(bind.clone(), &["mounts[7] (/d)", "idmap", "user namespace"]);
    let mut half = bind.clone();
    half["uidMappings"] = owner_map(5);
    refused(half.clone(), &["mounts[7] (/d)", "gidMappings"]);
    half["gidMappings"] = json!([{ "containerID": 0, "hostID": 5, "size": 0 }]);
    refused(half, &["mounts[7].gidMappings[0]", "not possible"]);
    // procfs has no idmapped mounts.
    let (map, source) = (owner_map(5), "/proc");
    refused(
        json!({ "destination": "/d", "source": source, "options": ["bind"], "uidMappings": map, "gidMappings": map }),
        &["mounts[7] (/d)", "idmap"],
    );
    scene.is_clean();
}

#[test]
fn recursive_options_reach_the_mounts_below() {
    let scene = Scene::new();
    let tree = scene.dir().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &tree.join("sub"), Some("tmpfs"), flags, None::<&str>).unwrap();
    let c = scene.container(|c| {
        c.bind(&tree, "/all", &["rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"])
            .bind(&tree, "/top", &["ro", "nosuid"])
            .payload(&["touch", "/all/sub/x", "--", "touch", "/top/sub/x", "--", "mounts"]);
    });
    let seen = c.run();
    nix::mount::umount(&tree.join("sub")).unwrap();
    assert!(seen.stdout.starts_with("! touch: EROFS\n"), "{seen}");
    assert_eq!(seen.stdout.matches("! touch").count(), 1, "ro is for the top alone: {seen}");
    let options = |point: &str| {
        let line = seen.stdout.lines().find(|line| line.split(' ').nth(4) == Some(point)).unwrap();
        line.split(' ').nth(5).unwrap().to_owned()
    };
    for point in ["/all", "/all/sub"] {
        assert_eq!(options(point), "ro,nosuid,nodev,noexec,noatime", "{point}");
    }
    assert!(options("/top").starts_with("ro,nosuid"));
    assert!(options("/top/sub").starts_with("rw") && !options("/top/sub").contains("nosuid"));
}

#[test]
fn tmpcopyup_keeps_what_the_image_has() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=1m"]);
        c.payload(&["cat", "/data/deep/file", "--", "stat", "/data/deep/file", "--", "touch", "/data/new"]);
    });
    c.file("/data/deep/file", "from the image", 0o640);
    let seen = c.run().ok();
    assert!(seen.stdout.starts_with("from the image/data/deep/file file mode=0640"), "{seen}");
    assert!(!c.rootfs().join("data/new").exists());
}

/// A pair of interfaces on the host, gone with it.
struct Veth(String, String);

impl Veth {
    fn new(tag: &str) -> Option<Veth> {
        let tag = format!("{}{tag}", std::process::id() % 100_000);
        let (a, b) = (format!("dv{tag}a"), format!("dv{tag}b"));
        let made = Command::new("ip").args(["link", "add", &a, "type", "veth", "peer", "name", &b]).output();
        made.is_ok_and(|output| output.status.success()).then_some(Veth(a, b))
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // One end's end is the other's too, wherever it is.
        let _ = Command::new("ip").args(["link", "delete", &self.1]).output();
    }
}

#[test]
fn network_devices_move_with_addresses_and_mtu() {
    let Some(veth) = Veth::new("m") else {
        return machine::skip("no veth, or no ip(8)");
    };
    host("ip", &["link", "set", &veth.0, "mtu", "1234", "up"]);
    host("ip", &["address", "add", "192.0.2.7/24", "dev", &veth.0]);
    let scene = Scene::new();
    for user in [false, true] {
        if user && !machine::has_namespace("user") {
            continue;
        }
        let c = scene.container(|c| {
            if user {
                c.user_namespace(100_000, 65536);
            }
            c.set("/linux/netDevices", json!({ veth.0.as_str(): { "name": "lan0" } })).payload(&[
                "interfaces",
                "--",
                "cat",
                "/sys/class/net/lan0/mtu",
                "--",
                "cat",
                "/sys/class/net/lan0/flags",
                "--",
                "cat",
                "/proc/net/fib_trie",
                "--",
                "sleep",
                "100",
            ]);
        });
        c.up().until_it_says("192.0.2.7");
        let seen = c.output();
        assert!(seen.contains("lan0\n") && seen.contains("1234\n"), "{seen}");
        let flags = seen.lines().find_map(|line| line.strip_prefix("0x")).unwrap();
        assert_eq!(i64::from_str_radix(flags, 16).unwrap() & 1, 1, "it is up: {seen}");
        assert!(!fs::exists(format!("/sys/class/net/{}", veth.0)).unwrap(), "it is still on the host");
        // Back to the host for the next round; the end of the namespace would end it.
        let (pid, own) = (c.pid().to_string(), std::process::id().to_string());
        host("nsenter", &["-t", &pid, "-n", "ip", "link", "set", "lan0", "name", &veth.0, "netns", &own]);
        host("ip", &["address", "add", "192.0.2.7/24", "dev", &veth.0]);
        c.delete_force().ok();
    }
}

#[test]
fn network_devices_that_cannot_move_are_named() {
    let scene = Scene::new();
    for (devices, words) in [
        (json!({ "nosuchdev0": {} }), ["linux.netDevices.nosuchdev0", "no such device"]),
        (json!({ "lo": { "name": "lo1" } }), ["linux.netDevices.lo", "cannot leave"]),
        (json!({ "lo": { "name": "a/b" } }), ["linux.netDevices.lo", "no name"]),
    ] {
        let c = scene.container(|c| {
            c.set("/linux/netDevices", devices);
        });
        c.create().fails(&words);
    }
    let c = scene.container(|c| {
        c.without_namespace("network").set("/linux/netDevices", json!({ "lo": {} }));
    });
    c.create().fails(&["linux.netDevices.lo", "network namespace"]);
    scene.is_clean();
}

#[test]
fn intel_rdt_is_refused_where_there_is_no_resctrl() {
    skip_unless!(!fs::exists("/sys/fs/resctrl/schemata").unwrap(), "resctrl is mounted");
    let scene = Scene::new();
    for asked in
        [json!({ "closID": "x" }), json!({ "l3CacheSchema": "L3:0=f" }), json!({ "enableMonitoring": true })]
    {
        let c = scene.container(|c| {
            c.set("/linux/intelRdt", asked.clone());
        });
        c.create().fails(&["linux.intelRdt", "resctrl is not mounted", "mount -t resctrl"]);
    }
    scene.is_clean();
}

#[test]
fn a_class_of_service_is_updated_where_there_is_one() {
    let scene = Scene::new();
    let c = scene.container(|_| {});
    c.create().ok();
    for (flag, schema) in [("--l3-cache-schema", "L3:0=f"), ("--mem-bw-schema", "MB:0=20")] {
        scene.dhow(["update", flag, schema, c.id()]).run().fails(&["was created without linux.intelRdt"]);
    }
    scene
        .dhow(["update", "--mem-bw-schema", "20", c.id()])
        .run()
        .fails(&["memBwSchema", "does not start with MB:"]);
}

#[test]
fn annotations_say_where_hooks_write() {
    let scene = Scene::new();
    let (out, err) = (scene.dir().join("out"), scene.dir().join("err"));
    let c = scene.container(|c| {
        for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            c.hook(point, &format!("echo {point}; echo to-err-{point} >&2"));
        }
        // In the container, where the files of the host are known by their fds alone.
        let inside =
            json!({ "path": "/payload", "args": ["payload", "echo", "startContainer", "--", "stderr", "x"] });
        c.set("/hooks/startContainer", json!([inside]));
        c.set("/annotations/run.oci.hooks.stdout", out.to_str().unwrap());
        c.set("/annotations/run.oci.hooks.stderr", err.to_str().unwrap());
    });
    c.run().ok();
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(text, "prestart\ncreateRuntime\ncreateContainer\nstartContainer\npoststart\npoststop\n");
    assert_eq!(fs::read_to_string(&err).unwrap().lines().count(), 6);
}

#[test]
fn an_annotation_keeps_the_callers_groups() {
    let scene = Scene::new();
    let mine = nix::unistd::getgroups().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    let c = scene.container(|c| {
        c.set("/annotations/run.oci.keep_original_groups", "1")
            .set("/process/user/additionalGids", json!([4242]))
            .payload(&["ids"]);
    });
    assert_eq!(c.run().ok().field("groups"), mine.join(","));
}

#[test]
fn an_annotation_names_who_gets_a_pidfd() {
    use std::io::Read;
    let scene = Scene::new();
    let path = scene.dir().join("pidfd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let c = scene.container(|c| {
        c.set("/annotations/run.oci.pidfd_receiver", path.to_str().unwrap());
    });
    c.create().ok();
    let (mut stream, _) = listener.accept().unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "pidfd");
}
