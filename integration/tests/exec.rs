//! exec: another process in a running container.

use dhow_integration::{Container, Runner, Scene, cgroup, machine, skip_unless};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;

/// A running container.
fn running(scene: &Scene) -> Container<'_> {
    let c = scene.payload(&["sleep", "1000"]);
    c.up();
    c
}

/// A process.json beside the bundle, from the usual process after `edit`.
fn process_file(scene: &Scene, args: &[&str], edit: impl FnOnce(&mut Value)) -> String {
    let mut process =
        json!({ "user": { "uid": 0, "gid": 0 }, "args": args, "env": ["PATH=/bin"], "cwd": "/" });
    edit(&mut process);
    let path = scene.dir().join("process.json");
    fs::write(&path, process.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn stdio_and_exit_status_are_the_callers() {
    let scene = Scene::new();
    let c = running(&scene);
    let seen = c
        .exec_with(&[], &["/payload", "read-line", "--", "stderr", "e", "--", "exit", "9"])
        .input("in\n")
        .run();
    let seen = seen.exits(9).says("got 3: in");
    assert_eq!(seen.stderr, "e\n");
    c.exec(&["/payload", "exit", "0"]).ok();
    assert_eq!(c.status(), "running");
}

#[test]
fn options_of_the_command_are_not_the_runtimes() {
    let scene = Scene::new();
    let c = running(&scene);
    c.exec(&["/payload", "echo", "--tty", "-d", "--help", "-e"]).ok().says("--tty -d --help -e");
}

#[test]
fn a_double_dash_may_end_the_options() {
    let scene = Scene::new();
    let c = running(&scene);
    scene.dhow(["exec", "--", c.id(), "/payload", "echo", "hi"]).run().ok().says("hi");
}

#[test]
fn a_signal_that_ends_the_process_gives_128_and_its_number() {
    let scene = Scene::new();
    let c = running(&scene);
    c.exec(&["/payload", "raise", "SIGKILL"]).exits(137);
}

#[test]
fn it_joins_every_namespace_and_cgroup_of_the_container() {
    let scene = Scene::new();
    let c = scene.payload(&["ns", "--", "cgroup", "--", "sleep", "1000"]);
    c.up().until_it_says("0::");
    let seen = c.exec(&["/payload", "ns", "--", "cgroup"]).ok();
    assert_eq!(seen.stdout, c.output());
    let host: Vec<String> = cgroup::of(c.pid()).into_iter().map(|(_, path)| path).collect();
    let child = c.exec_with(&[], &["/payload", "echo", "up", "--", "sleep", "1000"]).spawn();
    child.until_it_says("up");
    let listed = c.command(&["ps", "--format", "json"]).run().ok().json();
    let pids: Vec<i32> =
        listed.as_array().unwrap().iter().map(|p| i32::try_from(p.as_i64().unwrap()).unwrap()).collect();
    let other = *pids.iter().find(|pid| **pid != c.pid()).expect("ps lists the exec'd process");
    let places: Vec<String> = cgroup::of(other).into_iter().map(|(_, path)| path).collect();
    assert_eq!(places, host);
    c.kill("KILL").ok();
    child.wait().exits(137);
}

#[test]
fn it_joins_a_user_namespace() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65536).payload(&["sleep", "1000"]);
    });
    c.up();
    let seen = c.exec(&["/payload", "ids", "--", "cat", "/proc/self/uid_map"]).ok();
    assert!(seen.stdout.starts_with("uid=0 euid=0 gid=0 egid=0\n"), "{seen}");
    assert!(seen.stdout.contains("100000"), "{seen}");
}

#[test]
fn the_process_has_what_the_config_gives() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "1000"])
            .set("/process/env", json!(["PATH=/bin", "FROM=config"]))
            .set("/process/cwd", "/tmp");
    });
    c.up();
    let seen =
        c.exec(&["/payload", "env", "--", "cwd", "--", "no-new-privs", "--", "caps", "--", "umask"]).ok();
    assert!(seen.stdout.contains("FROM=config\n") && seen.stdout.contains("/tmp\n"), "{seen}");
    assert!(seen.stdout.contains("no-new-privs=true"), "{seen}");
    assert_eq!(seen.line("bounding="), "CAP_KILL,CAP_NET_BIND_SERVICE,CAP_AUDIT_WRITE");
    assert_eq!(seen.field("umask"), "0022");
}

#[test]
fn options_change_user_directory_environment_and_capabilities() {
    let scene = Scene::new();
    let c = running(&scene);
    let options = [
        "--user",
        "1000:1001",
        "--cwd",
        "/tmp",
        "--env",
        "A=1",
        "--env=B=2",
        "--env",
        "C=3",
        "--cap",
        "CAP_CHOWN",
    ];
    let seen = c.exec_with(&options, &["/payload", "ids", "--", "cwd", "--", "env", "--", "caps"]).run().ok();
    assert!(seen.stdout.starts_with("uid=1000 euid=1000 gid=1001 egid=1001\n"), "{seen}");
    for line in ["/tmp", "A=1", "B=2", "C=3"] {
        assert!(seen.stdout.lines().any(|l| l == line), "{line}: {seen}");
    }
    assert!(seen.line("bounding=").contains("CAP_CHOWN"), "{seen}");
}

#[test]
fn a_capability_that_nobody_knows_is_warned_of() {
    let scene = Scene::new();
    let c = running(&scene);
    let caps = ["--cap", "CAP_NO_SUCH", "--cap", "CAP_CHOWN"];
    let seen = c.exec_with(&caps, &["/payload", "caps"]).run().ok();
    assert!(seen.stderr.contains("ignoring unknown or unavailable capabilities"), "{seen}");
    assert!(seen.stderr.contains("CAP_NO_SUCH") && seen.line("bounding=").contains("CAP_CHOWN"), "{seen}");
}

#[test]
fn a_process_file_says_it_all() {
    let scene = Scene::new();
    let c = running(&scene);
    let file = process_file(
        &scene,
        &["/payload", "ids", "--", "env", "--", "cwd", "--", "caps", "--", "rlimits"],
        |p| {
            p["user"] = json!({ "uid": 7, "gid": 8, "additionalGids": [9] });
            p["env"] = json!(["ONLY=this"]);
            p["cwd"] = json!("/tmp");
            p["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 99 }]);
            p["capabilities"] = json!({ "bounding": ["CAP_CHOWN"] });
        },
    );
    let seen = scene.dhow(["exec", "--process", &file, c.id()]).run().ok();
    assert!(seen.stdout.starts_with("uid=7 euid=7 gid=8 egid=8\ngroups=9\nONLY=this\n"), "{seen}");
    assert!(seen.stdout.contains("\n/tmp\n"), "{seen}");
    assert_eq!(seen.line("bounding="), "CAP_CHOWN");
    assert!(seen.line("Max open files").starts_with("99"), "{seen}");
}

#[test]
fn a_process_file_without_capabilities_means_the_containers() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["signal-wait"]).set("/process/capabilities", json!({ "bounding": ["CAP_KILL"] }));
    });
    c.up();
    let bounding = |change: fn(&mut Value)| {
        let file = process_file(&scene, &["/payload", "caps"], change);
        scene.dhow(["exec", "--process", &file, c.id()]).run().ok().line("bounding=").to_owned()
    };
    let without = |p: &mut Value| drop(p.as_object_mut().unwrap().remove("capabilities"));
    assert_eq!(bounding(without), "CAP_KILL");
    assert_eq!(bounding(|p| p["capabilities"] = json!({})), "");
}

/// An engine hears that the process could not be had, and then nobody would look after it.
#[test]
fn a_process_whose_pid_cannot_be_told_does_not_stay() {
    let scene = Scene::new();
    let c = running(&scene);
    for detach in [&["--detach"][..], &[]] {
        let options = [detach, &["--pid-file", "/no/such/place"]].concat();
        c.exec_with(&options, &["/payload", "signal-wait"])
            .run()
            .fails(&["write the pid file", "/no/such/place"]);
        let pids = c.command(&["ps", "--format", "json"]).run().ok().json();
        assert_eq!(pids.as_array().unwrap().len(), 1, "{pids}");
    }
}

#[test]
fn detached_as_engines_call_it() {
    let scene = Scene::new();
    let c = running(&scene);
    let pid_file = scene.dir().join("exec-pid");
    let file = process_file(&scene, &["/payload", "signal-wait"], |_| ());
    // conmon puts --pid-file first and --detach last.
    let words = ["exec", "--pid-file", pid_file.to_str().unwrap(), "--process", &file, "--detach", c.id()];
    let mut exec = scene.dhow(words).spawn();
    exec.finish().ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let cgroups = cgroup::of(pid);
    assert!(cgroups.iter().any(|(_, path)| *path == c.cgroup()), "{cgroups:?}");
    exec.until_it_says("ready");
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    exec.until_it_says("SIGTERM");
    let status = nix::sys::wait::waitpid(Pid::from_raw(pid), None).unwrap();
    assert_eq!(
        status,
        nix::sys::wait::WaitStatus::Exited(Pid::from_raw(pid), 0),
        "its caller can wait for it"
    );
}

#[test]
fn signals_reach_the_process() {
    let scene = Scene::new();
    let c = running(&scene);
    let exec = c.exec_with(&[], &["/payload", "signal-wait"]).spawn();
    exec.until_it_says("ready");
    kill(Pid::from_raw(exec.pid()), Signal::SIGTERM).unwrap();
    exec.wait().ok().says("ready\nSIGTERM");
}

#[test]
fn nothing_but_stdio_is_open() {
    let scene = Scene::new();
    let c = running(&scene);
    let seen = c.exec(&["/payload", "fds"]).ok();
    let fds: Vec<&str> = seen.stdout.lines().filter_map(|l| l.split(' ').next()).collect();
    assert_eq!(fds, ["0", "1", "2"], "{seen}");
}

#[test]
fn no_signal_is_blocked() {
    let scene = Scene::new();
    let c = running(&scene);
    let seen = c.exec(&["/payload", "signals"]).ok();
    assert_eq!(seen.line("SigBlk:"), "0000000000000000");
}

#[test]
fn a_created_container_can_be_entered() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "1000"]);
    c.create().ok();
    c.exec(&["/payload", "echo", "early"]).ok().says("early");
}

#[test]
fn a_stopped_container_cannot_be_entered() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.up().until("stopped");
    c.exec(&["/payload", "exit", "0"]).fails(&["container not running"]);
}

#[test]
fn a_paused_container_is_not_entered_and_exec_does_not_hang() {
    skip_unless!(machine::has_freezer(), "no freezer cgroup is mounted");
    let scene = Scene::new();
    let c = running(&scene);
    c.pause().ok();
    c.exec(&["/payload", "exit", "0"]).fails(&["paused"]);
    c.resume().ok();
    c.exec(&["/payload", "exit", "0"]).ok();
}

#[test]
fn a_command_that_is_not_there_or_may_not_be_run() {
    let scene = Scene::new();
    let c = running(&scene);
    c.file("/not-executable", "text", 0o644);
    c.exec(&["/no/such/command"]).fails(&["/no/such/command", "no such file or directory"]);
    c.exec(&["not-in-path"]).fails(&["not-in-path", "executable file not found"]);
    c.exec(&["/not-executable"]).fails(&["/not-executable", "permission denied"]);
    c.exec(&["/tmp"]).fails(&["/tmp"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn a_process_file_that_is_wrong_is_refused() {
    let scene = Scene::new();
    let c = running(&scene);
    let path = scene.dir().join("process.json");
    fs::write(&path, "{ \"args\": [").unwrap();
    let words = ["exec", "--process", path.to_str().unwrap(), c.id()];
    scene.dhow(words).run().fails(&["process.json", "line 1"]);
    scene.dhow(["exec", "--process", "/no/such/file", c.id()]).run().fails(&["/no/such/file"]);
    scene.dhow(["exec", c.id()]).run().fails(&[]);
}

#[test]
fn many_at_once() {
    let scene = Scene::new();
    let c = running(&scene);
    let all: Vec<_> =
        (0..20).map(|n| c.exec_with(&[], &["/payload", "echo", &n.to_string()]).spawn()).collect();
    for (n, exec) in all.into_iter().enumerate() {
        exec.wait().ok().says(&n.to_string());
    }
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn exec_leaves_nothing() {
    let scene = Scene::new();
    let c = running(&scene);
    for _ in 0..5 {
        c.exec(&["/payload", "exit", "0"]).ok();
    }
    let listed = c.command(&["ps", "--format", "json"]).run().ok().json();
    assert_eq!(listed, json!([c.pid()]));
    let cgroups = cgroup::named_after(scene.tag());
    assert!(cgroups.iter().all(|dir| dir.ends_with(c.id())), "exec made a cgroup that stays: {cgroups:?}");
}

/// The check was before the pause and the fork behind it: the process would be frozen, and exec wait for it
/// until somebody resumes the container.
#[test]
fn a_pause_that_comes_meanwhile_is_noticed() {
    skip_unless!(machine::has_freezer(), "no freezer");
    // It would die when it is thawed, an orphan whom this machine's init may never wait for.
    skip_unless!(!machine::has_controller("freezer"), "cgroup v1 lets nothing that is frozen die");
    let scene = Scene::new();
    let c = running(&scene);
    let fifo = scene.dir().join("process");
    Runner::new("mkfifo").args([fifo.to_str().unwrap()]).run().ok();
    let exec = c.command(&["exec", "--process", fifo.to_str().unwrap()]).spawn();
    // Opened as soon as dhow reads it, which is after its first look at the container.
    let mut process = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    c.command(&["pause"]).run().ok();
    let text = json!({ "args": ["/payload", "exit", "0"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    process.write_all(text.to_string().as_bytes()).unwrap();
    drop(process);
    exec.wait().fails(&["cannot exec in a paused container"]);
    c.command(&["resume"]).run().ok();
    c.exec(&["/payload", "exit", "0"]).ok();
}
