//! What the payload is given: user, capabilities, limits, environment, directory, descriptors.

use dhow_integration::{Scene, machine, skip_unless};
use rustix::thread::CapabilitySet;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

#[test]
fn uid_gid_groups_and_umask() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["ids", "--", "umask"]).set(
            "/process/user",
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 44], "umask": 0o27 }),
        );
    });
    c.run().ok().says("uid=1000 euid=1000 gid=1001 egid=1001\ngroups=5,44\numask=0027");
}

#[test]
fn no_groups_of_the_caller_reach_the_payload() {
    let scene = Scene::new();
    scene.payload(&["ids"]).run().ok().says("uid=0 euid=0 gid=0 egid=0\ngroups=");
}

#[test]
fn the_umask_is_022_by_default() {
    let scene = Scene::new();
    scene.payload(&["umask"]).run().ok().says("umask=0022");
}

#[test]
fn capabilities_are_exactly_those_of_the_config() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["caps"]).set(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_KILL"],
                "ambient": ["CAP_CHOWN"],
            }),
        );
        // Not root: exec leaves root with every capability of the bounding set.
        c.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    });
    let seen = c.run().ok();
    assert_eq!(seen.line("bounding="), "CAP_CHOWN,CAP_KILL,CAP_SETUID");
    assert_eq!(seen.line("ambient="), "CAP_CHOWN");
    assert_eq!(seen.line("inheritable="), "CAP_CHOWN,CAP_KILL");
    assert_eq!(seen.line("permitted="), "CAP_CHOWN", "what exec leaves to a user other than root");
    assert_eq!(seen.line("effective="), "CAP_CHOWN");
}

#[test]
fn without_capabilities_root_has_none() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["caps", "--", "chown", "/dev/shm", "1", "1"]).remove("/process/capabilities");
    });
    let seen = c.run().exits(1);
    for set in ["effective=", "permitted=", "inheritable=", "bounding=", "ambient="] {
        assert_eq!(seen.line(set), "", "{seen}");
    }
    assert!(seen.stdout.ends_with("! chown: EPERM\n"), "{seen}");
}

#[test]
fn a_user_gets_no_capabilities_by_itself() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["caps"]).set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    });
    let seen = c.run().ok();
    assert_eq!((seen.line("effective="), seen.line("permitted=")), ("", ""));
    assert_eq!(seen.line("bounding="), "CAP_KILL,CAP_NET_BIND_SERVICE,CAP_AUDIT_WRITE");
}

#[test]
fn limits_are_set() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["rlimits"]).set(
            "/process/rlimits",
            json!([
                { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
                { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
                { "type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152 },
            ]),
        );
    });
    let seen = c.run().ok();
    let limit =
        |name: &str| seen.line(name).split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(limit("Max open files"), ["100", "200"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(limit("Max stack size"), ["1048576", "2097152"]);
}

#[test]
fn an_unknown_limit_is_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/process/rlimits", json!([{ "type": "RLIMIT_NOTHING", "soft": 1, "hard": 1 }]));
    });
    c.create().fails(&["RLIMIT_NOTHING"]);
    scene.is_clean();
}

#[test]
fn a_limit_that_the_machine_may_not_raise_is_refused_by_name() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 1_000_000, "hard": 1_000_000 }]));
    });
    if machine::has_capability(CapabilitySet::SYS_RESOURCE) {
        c.run().ok();
    } else {
        c.run().fails(&["RLIMIT_NOFILE", "operation not permitted"]);
    }
    scene.is_clean();
}

#[test]
fn the_environment_is_the_configs_and_no_more() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["env"]).set("/process/env", json!(["PATH=/bin", "A=1", "EMPTY=", "B=x=y", "A=2"]));
    });
    let seen = c.run_with(&[]).env("FROM_THE_CALLER", "yes").run().ok();
    let mut lines: Vec<&str> = seen.stdout.lines().collect();
    lines.sort_unstable();
    assert!(lines.contains(&"PATH=/bin") && lines.contains(&"EMPTY=") && lines.contains(&"B=x=y"), "{seen}");
    assert!(lines.contains(&"A=2"), "the last of two wins: {seen}");
    assert!(!seen.stdout.contains("FROM_THE_CALLER"), "{seen}");
}

#[test]
fn the_command_is_found_in_the_containers_path() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["tool", "echo", "found"]).set("/process/env", json!(["PATH=/none:/opt/bin"]));
    });
    std::fs::create_dir_all(c.rootfs().join("opt/bin")).unwrap();
    std::fs::hard_link(c.rootfs().join("payload"), c.rootfs().join("opt/bin/tool")).unwrap();
    c.run().ok().says("found");
}

#[test]
fn the_working_directory() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["cwd"]).set("/process/cwd", "/tmp");
    });
    c.run().ok().says("/tmp");
}

/// As in a Kubernetes namespace of some thousand services.
#[test]
fn a_large_environment_is_taken_in_time() {
    let scene = Scene::new();
    let env: Vec<String> = (0..40_000).map(|n| format!("SERVICE_{n}=x")).collect();
    let c = scene.container(|c| {
        c.payload(&["exit", "0"]).set("/process/env", json!(env));
    });
    let begun = std::time::Instant::now();
    c.run().ok();
    assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    let scene = Scene::new();
    // Also where the root ends up read-only, and behind a link that leads nowhere yet.
    for (cwd, made) in [("/made/for/it", "made/for/it"), ("/link/deep", "nowhere/deep")] {
        let c = scene.container(|c| {
            c.payload(&["cwd"]).set("/process/cwd", cwd);
            c.set("/process/user", json!({ "uid": 1000, "gid": 1000, "umask": 0o077 }));
        });
        std::os::unix::fs::symlink("/nowhere", c.rootfs().join("link")).unwrap();
        c.run().ok().says(&format!("/{made}"));
        let mode = std::fs::metadata(c.rootfs().join(made)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
    scene.is_clean();
}

#[test]
fn a_working_directory_that_only_the_user_may_enter() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["cwd"])
            .set("/process/cwd", "/home")
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    });
    let home = c.rootfs().join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(1000), Some(1000)).unwrap();
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
    c.run().ok().says("/home");
}

#[test]
fn oom_score_adj_is_set_and_otherwise_inherited() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["oom-score-adj"]).set("/process/oomScoreAdj", 500);
    });
    c.run().ok().says("500");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    scene.payload(&["oom-score-adj"]).run().ok().says(&own);
}

#[test]
fn no_new_privileges_is_as_the_config_says() {
    let scene = Scene::new();
    for value in [true, false] {
        let c = scene.container(|c| {
            c.payload(&["no-new-privs"]).set("/process/noNewPrivileges", value);
        });
        c.run().ok().says(&format!("no-new-privs={value}"));
    }
}

#[test]
fn nothing_but_stdio_is_open_in_the_payload() {
    let scene = Scene::new();
    let seen = scene.payload(&["fds"]).run().ok();
    let fds: Vec<&str> = seen.stdout.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(fds, ["0", "1", "2"], "{seen}");
    let c = scene.payload(&["fds", "--", "echo", "done"]);
    c.up().until_it_says("done");
    let fds = c.output().lines().filter(|l| l.chars().next().unwrap().is_ascii_digit()).count();
    assert_eq!(fds, 3, "{}", c.output());
}

#[test]
fn descriptors_of_the_caller_do_not_leak() {
    let scene = Scene::new();
    let c = scene.payload(&["fds"]);
    // sh opens what a careless caller might have left open, then becomes the runtime.
    let script = format!(
        "exec 3</etc/passwd 7</etc; exec {} --root {} run --bundle {} {}",
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        c.bundle().display(),
        c.id()
    );
    let seen = dhow_integration::Runner::new("/bin/sh").args(["-c", &script]).run().ok();
    assert_eq!(seen.stdout.lines().count(), 3, "{seen}");
}

#[test]
fn preserved_descriptors_reach_the_payload() {
    let scene = Scene::new();
    let c = scene.payload(&["fds", "--", "cat", "/proc/self/fd/3"]);
    std::fs::write(scene.dir().join("given"), "given by the caller").unwrap();
    let script = format!(
        "exec 3<{}/given 4</etc 5</etc; exec {} --root {} run --preserve-fds 2 --bundle {} {}",
        scene.dir().display(),
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        c.bundle().display(),
        c.id()
    );
    let seen = dhow_integration::Runner::new("/bin/sh").args(["-c", &script]).run().ok();
    let fds: Vec<&str> =
        seen.stdout.lines().filter_map(|l| l.split(' ').next().filter(|f| f.parse::<u8>().is_ok())).collect();
    assert_eq!(fds, ["0", "1", "2", "3", "4"], "{seen}");
    assert!(seen.stdout.contains("given by the caller"), "{seen}");
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["cat", "/proc/self/status"]);
    });
    let seen = c.with_busybox().run().ok();
    for mask in ["SigBlk:", "SigIgn:"] {
        let bits = u64::from_str_radix(seen.line(mask), 16).unwrap();
        // Bits from 31 up are the C library's own real-time signals, which the caller passes on.
        assert_eq!(bits & 0x7fff_ffff, 0, "{mask} {bits:x}");
    }
}

#[test]
fn a_script_is_run_by_its_interpreter() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["/script", "a", "b"]);
    });
    let c = c.with_busybox();
    c.file("/script", "#!/bin/sh\necho \"$0 $1 $2\"\n", 0o755);
    c.run().ok().says("/script a b");
}

#[test]
fn root_runs_what_only_its_owner_may_execute() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["/own", "ids"]).set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    });
    let own = c.rootfs().join("own");
    std::fs::copy(c.rootfs().join("payload"), &own).unwrap();
    std::os::unix::fs::chown(&own, Some(1000), Some(1000)).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(c.run().ok().field("uid"), "1000");
}

#[test]
fn stdio_belongs_to_the_payloads_user() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["write", "/dev/stdout", "by path"])
            .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    });
    let seen = c.run().ok();
    assert!(seen.stdout.contains("by path"), "a user can open /dev/stdout: {seen}");
}

/// Whatever the caller of dhow is bound to, a container has the CPUs of its cpuset.
#[test]
fn the_callers_cpus_are_not_the_containers() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    skip_unless!(cpus > 1, "the machine has one CPU");
    skip_unless!(machine::has_program("taskset"), "taskset is not installed");
    let scene = Scene::new();
    let c = scene.payload(&["cat", "/proc/self/status", "--", "sleep", "100"]);
    let all = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = |status: &str| {
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let bound = |words: &[&str]| {
        let binary = dhow_integration::command::binary();
        let runner = dhow_integration::Runner::new("taskset").args(["-c", "0", binary.to_str().unwrap()]);
        runner.args(["--root", scene.state_dir().to_str().unwrap()]).args(words).run()
    };
    let run = scene.payload(&["cat", "/proc/self/status"]);
    let seen = bound(&["run", "--bundle", run.bundle().to_str().unwrap(), run.id()]).ok();
    assert_eq!(list(&seen.stdout), list(&all));
    c.up();
    let seen = bound(&["exec", c.id(), "/payload", "cat", "/proc/self/status"]).ok();
    assert_eq!(list(&seen.stdout), list(&all));
}

/// What config.json says of all processes holds for those that come later.
#[test]
fn flags_of_a_personality_are_warned_of() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/personality", json!({ "domain": "LINUX", "flags": ["NO_SUCH"] }));
    });
    let outcome = c.run().ok();
    if dhow_integration::is_dhow() {
        assert!(outcome.stderr.contains("linux.personality.flags [\"NO_SUCH\"]"), "{outcome}");
    }
    scene.is_clean();
}

#[test]
fn an_execed_process_has_the_personality_of_the_container() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/personality", json!({ "domain": "LINUX32" })).payload(&["sleep", "100"]);
    });
    let c = c.with_busybox();
    c.up();
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    c.exec(&["/bin/busybox", "uname", "-m"]).ok().says(machine);
}

#[test]
fn a_deadline_and_a_cpuset_exclude_each_other() {
    let scene = Scene::new();
    let deadline =
        json!({ "policy": "SCHED_DEADLINE", "runtime": 42_000, "deadline": 1_000_000, "period": 1_000_000 });
    let c = scene.container(|c| {
        c.set("/process/scheduler", deadline)
            .set("/linux/resources/cpu", json!({ "cpus": "0" }))
            .payload(&["exit", "0"]);
    });
    c.create().fails(&["process scheduler can't be used together with AllowedCPUs"]);
    scene.is_clean();
}

/// sd_notify(3): the payload says that it is ready, and the service manager hears it from dhow.
#[test]
fn a_payload_tells_the_service_manager_that_it_is_ready() {
    use std::os::unix::net::UnixDatagram;
    let scene = Scene::new();
    let path = scene.dir().join("manager");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let heard = || {
        let mut buffer = [0; 512];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let words = ["sleep", "0.3", "--", "sd-notify", "READY=1\\nMAINPID=1\\nSTATUS=up", "--", "sleep", "1"];
    let scene_path = path.to_str().unwrap();
    for user in [false, true] {
        let c = scene.container(|c| {
            if user {
                c.user_namespace(100_000, 65_536);
            }
            c.payload(&words);
        });
        // create and start: start waits until it is ready.
        let begun = std::time::Instant::now();
        let create = ["create", "--bundle", c.bundle().to_str().unwrap(), c.id()];
        scene.dhow(create).env("NOTIFY_SOCKET", scene_path).run().ok();
        scene.dhow(["start", c.id()]).env("NOTIFY_SOCKET", scene_path).run().ok();
        assert!(begun.elapsed().as_millis() >= 300, "start came back before it was ready");
        assert_eq!(heard(), format!("READY=1\nSTATUS=up\nMAINPID={}\n", c.state()["pid"]));
        c.delete_force().ok();
    }
    // In the foreground dhow itself is the service's process.
    let c = scene.payload(&words);
    let run = ["run", "--bundle", c.bundle().to_str().unwrap(), c.id()];
    scene.dhow(run).env("NOTIFY_SOCKET", scene_path).run().ok();
    assert_eq!(heard(), "READY=1\nSTATUS=up\n");
    // One that never says so does not make start wait for ever.
    let silent = scene.payload(&["sleep", "0.2"]);
    let run = ["run", "-d", "--bundle", silent.bundle().to_str().unwrap(), silent.id()];
    scene.dhow(run).env("NOTIFY_SOCKET", scene_path).run().ok();
    silent.until("stopped").delete().ok();
    scene.is_clean();
}
