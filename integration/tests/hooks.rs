//! Hooks: at which point, in which order, where, with what on stdin; and when one fails.

use dhow_integration::{Scene, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// The hooks that run in the runtime's own namespaces.
const ON_HOST: [&str; 4] = ["prestart", "createRuntime", "poststart", "poststop"];

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn every_hook_runs_once_and_in_order() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    // The container's own hook and payload write through a bind mount of the log.
    fs::write(&log, "").unwrap();
    let c = scene.container(|c| {
        for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            c.hook(point, &format!("echo {point} >> {}", log.display()));
        }
        let inside = json!({ "path": "/payload", "args": ["payload", "append", "/log", "startContainer\n"] });
        c.push("/hooks/startContainer", inside).bind(&log, "/log", &["rw"]).payload(&[
            "append",
            "/log",
            "payload\n",
        ]);
    });
    c.create().ok();
    assert_eq!(read(&log), "prestart\ncreateRuntime\ncreateContainer\n");
    c.start().ok();
    c.until("stopped");
    let lines = read(&log);
    // poststart runs when the payload does: either may write first.
    let mut after: Vec<&str> = lines.lines().skip(3).collect();
    assert_eq!(after.first(), Some(&"startContainer"), "{lines}");
    after.sort_unstable();
    assert_eq!(after, ["payload", "poststart", "startContainer"], "{lines}");
    c.delete().ok();
    assert_eq!(read(&log).lines().last(), Some("poststop"));
    assert_eq!(read(&log).lines().count(), 7);
    scene.is_clean();
}

#[test]
fn hooks_of_one_point_run_in_the_order_of_the_config() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    let c = scene.container(|c| {
        for number in 1..=4 {
            c.hook("createRuntime", &format!("echo {number} >> {}", log.display()));
        }
    });
    c.run().ok();
    assert_eq!(read(&log), "1\n2\n3\n4\n");
}

#[test]
fn the_state_is_on_a_hooks_stdin() {
    let scene = Scene::new();
    let dir = scene.dir().display().to_string();
    let c = scene.container(|c| {
        // It outlives the poststart hook, which is to see it run.
        c.set("/annotations", json!({ "k": "v" })).payload(&["sleep", "100"]);
        for point in ON_HOST {
            c.hook(point, &format!("cat > {dir}/{point}"));
        }
    });
    c.create().ok();
    let pid = c.pid();
    c.start().ok();
    c.kill("KILL").ok();
    c.until("stopped");
    c.delete().ok();
    for (point, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("poststart", "running"),
        ("poststop", "stopped"),
    ] {
        let text = read(&scene.dir().join(point));
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{point}: {e}: {text}"));
        assert_eq!(state["id"], c.id(), "{point}");
        assert_eq!(state["bundle"], c.bundle().to_str().unwrap(), "{point}");
        assert_eq!(state["annotations"]["k"], "v", "{point}");
        assert!(state["ociVersion"].is_string(), "{point}");
        if point == "poststop" {
            assert_eq!(state["status"], status);
        } else {
            assert_eq!(state["pid"], pid, "{point}: {text}");
        }
        // The other runtimes say "created" where the specification has "creating".
        if dhow_integration::command::is_dhow() && point != "poststart" {
            assert_eq!(state["status"], status, "{point}");
        }
    }
}

#[test]
fn host_hooks_see_the_host_and_container_hooks_the_container() {
    let scene = Scene::new();
    let dir = scene.dir().display().to_string();
    let c = scene.container(|c| {
        c.hook("createRuntime", &format!("readlink /proc/self/ns/mnt /proc/self/ns/net > {dir}/runtime"));
        // The host's files are still there, in the container's namespaces, before pivot_root.
        c.hook("createContainer", &format!("readlink /proc/self/ns/mnt /proc/self/ns/net > {dir}/container"));
        c.payload(&["ns"]);
    });
    let seen = c.run().ok();
    let link = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    assert_eq!(read(&scene.dir().join("runtime")), format!("{}\n{}\n", link("mnt"), link("net")));
    let inside = format!("{}\n{}\n", seen.line("mnt "), seen.line("net "));
    assert_eq!(read(&scene.dir().join("container")), inside);
}

#[test]
fn a_create_runtime_hook_can_configure_the_network() {
    if !machine::has_program("nsenter") {
        machine::skip("no nsenter program");
        return;
    }
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.hook(
            "createRuntime",
            r#"pid=$(grep -o '"pid": *[0-9]*' | tr -dc 0-9)
               nsenter --net=/proc/$pid/ns/net sh -c 'echo 99 > /proc/sys/net/ipv4/ip_default_ttl'"#,
        );
        c.payload(&["cat", "/proc/sys/net/ipv4/ip_default_ttl"]);
    });
    let before = read(Path::new("/proc/sys/net/ipv4/ip_default_ttl"));
    c.run().ok().says("99");
    assert_eq!(read(Path::new("/proc/sys/net/ipv4/ip_default_ttl")), before, "the host's own changed");
}

#[test]
fn a_hook_has_the_environment_and_arguments_of_the_config() {
    let scene = Scene::new();
    let out = scene.dir().join("out");
    let c = scene.container(|c| {
        let script = format!("echo \"$0 $1 $MINE\" > {0}; env >> {0}", out.display());
        let hook =
            json!({ "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"], "env": ["MINE=yes"] });
        c.push("/hooks/createRuntime", hook);
    });
    c.run_with(&[]).env("FROM_THE_CALLER", "yes").run().ok();
    let text = read(&out);
    assert_eq!(text.lines().next(), Some("zero one yes"));
    assert!(!text.contains("FROM_THE_CALLER"), "{text}");
}

#[test]
fn a_hook_without_args_runs_under_its_path() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.push("/hooks/createRuntime", json!({ "path": "/bin/true" }));
    });
    c.run().ok();
}

#[test]
fn a_hook_that_fails_stops_create_and_nothing_is_left() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let scene = Scene::new();
        let c = scene.container(|c| {
            c.hook(point, "echo the reason >&2; exit 9");
        });
        c.create().fails(&["hook", "9"]);
        c.command(&["state"]).run().fails(&["does not exist"]);
        scene.is_clean();
    }
}

#[test]
fn a_start_container_hook_that_fails_stops_the_payload() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.push("/hooks/startContainer", json!({ "path": "/payload", "args": ["payload", "exit", "9"] }));
        c.payload(&["echo", "the payload ran"]);
    });
    c.create().ok();
    c.start().fails(&["hook"]);
    assert_eq!(c.output(), "");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.push("/hooks/createRuntime", json!({ "path": "/no/such/hook" }));
    });
    c.create().fails(&["/no/such/hook", "no such file or directory"]);
    scene.is_clean();
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        // The tag in its command line makes a survivor count as left behind.
        let script = format!("sleep 50; : {}", scene.tag());
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 1 });
        c.push("/hooks/createRuntime", hook);
    });
    let started = Instant::now();
    c.create().fails(&["hook", "1"]);
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    scene.is_clean();
}

#[test]
fn poststop_hooks_run_although_one_fails() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    let c = scene.container(|c| {
        c.hook("poststop", "exit 1").hook("poststop", &format!("echo second >> {}", log.display()));
    });
    c.up().until("stopped");
    c.delete_force();
    assert_eq!(read(&log), "second\n");
    scene.is_clean();
}

#[test]
fn a_run_that_is_told_to_end_lets_poststop_hooks_finish() {
    let scene = Scene::new();
    let (ready, done) = (scene.dir().join("ready"), scene.dir().join("done"));
    let c = scene.container(|c| {
        c.hook("poststart", &format!("touch {}; exec sleep 60", ready.display()))
            .hook("poststop", &format!("sleep 0.5; echo done > {}", done.display()))
            .payload(&["sleep", "100"]);
    });
    let run = c.run_with(&["--detach"]).spawn();
    dhow_integration::eventually("the hook runs", || ready.exists());
    kill(Pid::from_raw(run.pid()), Signal::SIGTERM).unwrap();
    run.wait().exits(143);
    assert_eq!(read(&done), "done\n");
    scene.is_clean();
}

#[test]
fn kill_does_not_wait_for_a_hook() {
    let scene = Scene::new();
    let (ready, stop) = (scene.dir().join("ready"), scene.dir().join("stop"));
    let c = scene.container(|c| {
        let script =
            format!("touch {}; while [ ! -e {} ]; do sleep 0.05; done", ready.display(), stop.display());
        c.hook("poststart", &script).payload(&["sleep", "100"]);
    });
    c.create().ok();
    let start = c.command(&["start"]).spawn();
    dhow_integration::eventually("the hook runs", || ready.exists());
    let started = Instant::now();
    let kill = c.kill("KILL");
    fs::write(&stop, "").unwrap();
    start.wait();
    kill.ok();
    assert!(started.elapsed() < Duration::from_secs(5), "kill waited {:?}", started.elapsed());
}

#[test]
fn a_hook_that_does_not_read_its_stdin_is_no_failure() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        for point in ["prestart", "createRuntime", "createContainer", "poststart", "poststop"] {
            c.hook(point, "exec 0<&-; exit 0");
        }
        // More than a pipe holds: whoever writes it to a closed pipe gets SIGPIPE.
        c.set("/annotations", json!({ "big": "x".repeat(100_000) }));
    });
    c.run().ok();
    scene.is_clean();
}
