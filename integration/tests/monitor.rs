//! Containers that a monitor stays with: exit codes, restart policies, logs; stop, restart, wait.

use dhow_integration::scene::Container;
use dhow_integration::{Scene, eventually, image, machine, skip_unless};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

fn inspect(c: &Container<'_>) -> Value {
    c.command(&["inspect"]).run().ok().json()
}

fn until_state(c: &Container<'_>, state: &str) -> Value {
    let mut last = Value::Null;
    eventually(&format!("{} is {state}", c.id()), || {
        last = inspect(c);
        // The monitor writes down a moment after the end when that was.
        last["state"] == state && (state != "exited" || last["exitedAt"].is_string())
    });
    last
}

/// Takes monitors that have ended: the test is their subreaper, and a zombie is no leak.
fn reap(pid: i64) {
    let _ = waitpid(Pid::from_raw(i32::try_from(pid).unwrap()), Some(WaitPidFlag::WNOHANG));
}

#[test]
fn the_exit_code_of_a_detached_container_is_kept() {
    let scene = Scene::new();
    for (verbs, code, signal) in [
        (["exit", "7"], 7, Value::Null),
        (["exit", "0"], 0, Value::Null),
        (["raise", "SIGABRT"], 134, 6.into()),
    ] {
        // As PID 1 a payload's own signals do not end it.
        let c = scene.container(|c| {
            c.payload(&verbs).without_namespace("pid");
        });
        c.run_kept(&["--detach", "--monitor"]).ok();
        let state = until_state(&c, "exited");
        assert_eq!((&state["exitCode"], &state["signal"]), (&code.into(), &signal), "{state}");
        assert!(state["exitedAt"].as_str().unwrap() > state["created"].as_str().unwrap(), "{state}");
        assert_eq!(state["status"], "stopped");
        c.command(&["wait"]).run().ok().says(&code.to_string());
        c.delete().ok();
    }
    scene.is_clean();
}

/// A container's directory, locked as a command does: nothing can be written down meanwhile.
fn hold(scene: &Scene, c: &Container<'_>) -> fs::File {
    let directory = fs::File::open(scene.state_dir().join(c.id())).unwrap();
    rustix::fs::flock(&directory, rustix::fs::FlockOperation::LockExclusive).unwrap();
    directory
}

#[test]
fn how_it_ended_is_known_before_it_is_written_down() {
    let scene = Scene::new();
    for (policy, word) in [("no", "exited"), ("on-failure", "restarting")] {
        let c = scene.payload(&["sleep", "100"]);
        c.run_kept(&["--detach", "--monitor", "--restart", policy]).ok();
        let held = hold(&scene, &c);
        kill(Pid::from_raw(c.pid()), Signal::SIGKILL).unwrap();
        let mut last = inspect(&c);
        eventually("it ends", || {
            last = inspect(&c);
            last["state"] != "running"
        });
        assert_eq!(
            (&last["state"], &last["exitCode"], &last["signal"]),
            (&word.into(), &137.into(), &9.into())
        );
        let listed = scene.dhow(["list", "--format", "json"]).run().ok().json();
        assert_eq!((&listed[0]["state"], &listed[0]["exitCode"]), (&word.into(), &137.into()), "{listed}");
        assert_eq!(c.state()["state"], word);
        if policy == "no" {
            c.command(&["wait"]).run().ok().says("137");
        }
        drop(held);
        eventually("it is written down", || inspect(&c)["exitedAt"].is_string());
        c.delete_force().ok();
    }
    scene.is_clean();
}

#[test]
fn the_monitors_calls_log_where_the_caller_does() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    let c = scene.payload(&["exit", "0"]);
    let options = ["--log", log.to_str().unwrap(), "--log-format", "json", "--debug"];
    let words = ["run", "--detach", "--monitor", "--bundle", c.bundle().to_str().unwrap(), c.id()];
    scene.dhow(options).args(words).run().ok().says("");
    until_state(&c, "exited");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains(&format!("create {}: rootfs", c.id())), "{text}");
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{text}");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_monitor_is_small() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.run_kept(&["--detach", "--monitor", "--log-driver", "json-file"]).ok();
    let pid = inspect(&c)["monitor"].as_i64().unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let kilobytes: u32 = peak.trim_end_matches(" kB").parse().unwrap();
    println!("peak memory of the monitor: {peak}");
    assert!(kilobytes < 1024, "{peak}");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_create_or_start_that_fails_says_why_and_leaves_nothing() {
    let scene = Scene::new();
    let missing = scene.container(|c| {
        c.args(&["/nothing"]);
    });
    let options = ["--detach", "--restart", "always", "--log-driver", "json-file"];
    missing.run_kept(&options).fails(&["/nothing", "no such file"]);
    scene.is_clean();
    let hook = scene.container(|c| {
        c.payload(&["sleep", "9"]).hook("poststart", "exit 3");
    });
    hook.run_kept(&options).fails(&["poststart hook"]);
    scene.is_clean();
    let nowhere = scene.payload(&["sleep", "9"]);
    nowhere
        .run_kept(&["--detach", "--log-driver", "json-file", "--log-opt", "path=/nowhere/log"])
        .fails(&["/nowhere/log"]);
    scene.is_clean();
    scene.payload(&["exit", "0"]).run_kept(&["--restart", "always"]).fails(&["--detach"]);
    scene.payload(&["exit", "0"]).run_kept(&["--detach", "--restart", "often"]).fails(&["on-failure"]);
}

#[test]
fn a_policy_starts_it_anew() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["touch", "/tmp/lives", "--", "append", "/tmp/lives", "x", "--", "exit", "3"]).writable();
    });
    c.run_kept(&["--detach", "--restart", "on-failure:2"]).ok();
    eventually("it gives up", || {
        let state = inspect(&c);
        // The init may have ended, and the monitor not written it down yet.
        state["state"] == "exited" && state["restarts"] == 2 && state["exitCode"] == 3
    });
    assert_eq!(fs::read_to_string(c.rootfs().join("tmp/lives")).unwrap(), "xxx");
    let state = inspect(&c);
    assert_eq!((&state["exitCode"], &state["restartPolicy"]), (&3.into(), &"on-failure:2".into()), "{state}");
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn success_is_no_failure_and_always_is_always() {
    let scene = Scene::new();
    let fine = scene.payload(&["exit", "0"]);
    fine.run_kept(&["--detach", "--restart", "on-failure"]).ok();
    let state = until_state(&fine, "exited");
    assert_eq!((&state["restarts"], &state["exitCode"]), (&0.into(), &0.into()));
    let always = scene.payload(&["exit", "0"]);
    always.run_kept(&["--detach", "--restart", "always"]).ok();
    eventually("it is started again and again", || inspect(&always)["restarts"].as_i64() >= Some(3));
    always.command(&["stop"]).run().ok();
    let state = until_state(&always, "exited");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(inspect(&always)["restarts"], state["restarts"], "what was stopped stays so");
    for c in [fine, always] {
        c.delete().ok();
    }
    scene.is_clean();
}

#[test]
fn while_it_waits_to_be_restarted_it_is_restarting() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "1"]);
    c.run_kept(&["--detach", "--restart", "always"]).ok();
    // The fifth back-off is 1.6 seconds long.
    eventually("it waits long", || {
        let state = inspect(&c);
        state["state"] == "restarting" && state["restarts"].as_i64() >= Some(5)
    });
    assert_eq!(c.status(), "stopped");
    c.command(&["start"]).run().fails(&["stopped"]);
    c.kill("KILL").fails(&["not running"]);
    c.exec(&["/payload", "exit", "0"]).fails(&["not running"]);
    let monitor = inspect(&c)["monitor"].as_i64().unwrap();
    c.command(&["restart"]).run().ok();
    assert_eq!(inspect(&c)["monitor"], monitor, "the same monitor starts it");
    eventually("it waits again", || inspect(&c)["state"] == "restarting");
    c.delete().ok();
    eventually("the monitor goes", || {
        reap(monitor);
        !fs::exists(format!("/proc/{monitor}")).unwrap()
    });
    scene.is_clean();
}

#[test]
fn without_its_monitor_it_is_exited() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "1"]);
    c.run_kept(&["--detach", "--restart", "always"]).ok();
    eventually("it waits", || {
        inspect(&c)["state"] == "restarting" && inspect(&c)["restarts"].as_i64() >= Some(3)
    });
    let monitor = inspect(&c)["monitor"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(monitor).unwrap()), Signal::SIGKILL).unwrap();
    reap(monitor);
    eventually("it is exited", || inspect(&c)["state"] == "exited");
    c.command(&["restart"]).run().ok();
    assert_ne!(inspect(&c)["monitor"], monitor, "another one has been started");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn stop_asks_first() {
    let scene = Scene::new();
    let polite = scene.payload(&["signal-wait"]);
    polite.run_kept(&["--detach", "--monitor", "--log-driver", "k8s-file"]).ok();
    eventually("it listens", || polite.command(&["logs"]).run().stdout.contains("ready"));
    polite.command(&["stop"]).run().ok();
    assert_eq!(polite.command(&["logs"]).run().ok().stdout, "ready\nSIGTERM\n");
    assert_eq!(until_state(&polite, "exited")["exitCode"], 0);
    polite.command(&["stop"]).run().ok();
    let told = scene.container(|c| {
        c.payload(&["signal-wait"])
            .set("/annotations", serde_json::json!({ "org.opencontainers.image.stopSignal": "SIGQUIT" }));
    });
    told.run_kept(&["--detach", "--monitor", "--log-driver", "k8s-file"]).ok();
    eventually("it listens", || told.command(&["logs"]).run().stdout.contains("ready"));
    told.command(&["stop"]).run().ok();
    assert_eq!(told.command(&["logs"]).run().ok().stdout, "ready\nSIGQUIT\n");
    // As PID 1 without a handler it does not even notice.
    let deaf = scene.payload(&["sleep", "100"]);
    deaf.run_kept(&["--detach", "--monitor"]).ok();
    let begun = Instant::now();
    deaf.command(&["stop", "--time", "1"]).run().ok();
    assert!((1.0..5.0).contains(&begun.elapsed().as_secs_f64()), "{:?}", begun.elapsed());
    let state = until_state(&deaf, "exited");
    assert_eq!((&state["exitCode"], &state["signal"]), (&137.into(), &9.into()), "{state}");
    for c in [polite, told, deaf] {
        c.delete().ok();
    }
    scene.is_clean();
}

#[test]
fn a_paused_container_is_stopped_too() {
    let scene = Scene::new();
    let c = scene.payload(&["signal-wait"]);
    c.up().until_it_says("ready");
    c.pause().ok();
    c.command(&["stop"]).run().ok();
    assert_eq!(c.reap(), 0);
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn restart_without_a_monitor_runs_the_bundle_again() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["touch", "/tmp/lives", "--", "append", "/tmp/lives", "x", "--", "sleep", "100"])
            .writable();
    });
    c.up();
    let lives = c.rootfs().join("tmp/lives");
    eventually("it lives", || fs::read_to_string(&lives).is_ok_and(|text| text == "x"));
    c.command(&["restart", "--time", "0"]).run().ok();
    eventually("it lives again", || fs::read_to_string(&lives).is_ok_and(|text| text == "xx"));
    assert_eq!(c.status(), "running");
    // Made anew in its place, a failure leaves what was there.
    c.command(&["stop", "--time", "0"]).run().ok();
    let config = fs::read_to_string(c.bundle().join("config.json")).unwrap();
    c.write_config("{");
    c.command(&["restart"]).run().fails(&["config.json"]);
    c.write_config(&config.replace("/payload", "/nothing"));
    c.command(&["restart"]).run().fails(&["/nothing"]);
    assert_eq!(c.status(), "stopped");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn logs_of_both_formats_turn_over() {
    let scene = Scene::new();
    for driver in ["json-file", "k8s-file"] {
        let c = scene.container(|c| {
            c.args(&[
                "/bin/sh",
                "-c",
                "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; echo last >&2",
            ]);
        });
        let c = c.with_busybox();
        let path = scene.dir().join(format!("{driver}.log"));
        let place = format!("path={}", path.display());
        let options =
            ["--detach", "--log-driver", driver, "--log-opt", "max-size=8k", "--log-opt", "max-file=3"];
        c.run_kept(&[&options[..], &["--log-opt", &place]].concat()).ok();
        until_state(&c, "exited");
        let sizes: Vec<u64> = ["", ".1", ".2"]
            .iter()
            .map(|suffix| fs::metadata(format!("{}{suffix}", path.display())).map_or(0, |m| m.len()))
            .collect();
        assert!(sizes.iter().all(|size| (1..=8192).contains(size)), "{driver}: {sizes:?}");
        assert!(!fs::exists(format!("{}.3", path.display())).unwrap());
        let logs = c.command(&["logs"]).run().ok();
        assert!(logs.stdout.ends_with("line 398\nline 399\n"), "{logs}");
        assert_eq!(logs.stderr, "last\n");
        let tail = c.command(&["logs", "--tail", "2"]).run().ok();
        // Two pipes: which of the last lines was read first is chance.
        let two = [("line 399\n", "last\n"), ("line 398\nline 399\n", "")];
        assert!(two.contains(&(tail.stdout.as_str(), tail.stderr.as_str())), "{tail}");
        let timed = c.command(&["logs", "-t", "--tail", "2"]).run().ok();
        assert!(timed.stdout.starts_with("20") && timed.stdout.ends_with("Z line 399\n"), "{timed}");
        assert_eq!(c.command(&["logs", "--since", "2999-01-01"]).run().ok().stdout, "");
        assert!(c.command(&["logs", "--since", "1h"]).run().ok().stdout.contains("line 399"));
        let first = fs::read_to_string(format!("{}.2", path.display())).unwrap();
        let first = first.lines().next().unwrap();
        if driver == "json-file" {
            let json: Value = serde_json::from_str(first).unwrap();
            assert!(json["log"].as_str().unwrap().ends_with('\n') && json["stream"] == "stdout", "{first}");
        } else {
            assert!(
                first.split(' ').nth(1) == Some("stdout") && first.split(' ').nth(2) == Some("F"),
                "{first}"
            );
        }
        c.delete().ok();
    }
    scene.is_clean();
}

#[test]
fn a_log_is_followed_to_its_end() {
    let scene = Scene::new();
    let c = scene.payload(&[
        "echo", "one", "--", "sleep", "0.4", "--", "echo", "two", "--", "sleep", "0.4", "--", "echo", "three",
    ]);
    c.run_kept(&["--detach", "--log-driver", "json-file", "--log-opt", "max-size=100"]).ok();
    let followed = c.command(&["logs", "--follow"]).run().ok();
    assert_eq!(followed.stdout, "one\ntwo\nthree\n");
    c.delete().ok();
    let quiet = scene.payload(&["echo", "x"]);
    quiet.run_kept(&["--detach", "--log-driver", "none"]).ok();
    until_state(&quiet, "exited");
    quiet.command(&["logs"]).run().fails(&["none"]);
    quiet.delete().ok();
    scene.is_clean();
}

#[test]
fn wait_waits() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "0.5", "--", "exit", "5"]);
    let begun = Instant::now();
    c.run_kept(&["--detach", "--monitor"]).ok();
    c.command(&["wait"]).run().ok().says("5");
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    c.delete().ok();
    // Of one that nobody stays with, the kernel may tell (Linux 6.15).
    let alone = scene.payload(&["sleep", "0.3", "--", "exit", "6"]);
    alone.up();
    let waiting = alone.command(&["wait"]).spawn();
    assert_eq!(alone.reap(), 6);
    let waited = waiting.wait();
    assert!(waited.stdout == "6\n" || waited.stderr.contains("nobody waited"), "{waited}");
    alone.delete().ok();
    scene.is_clean();
}

#[test]
fn the_oom_killer_is_named() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["alloc", "200"]).set("/linux/resources/memory", serde_json::json!({ "limit": 32 << 20 }));
    });
    c.run_kept(&["--detach", "--monitor"]).ok();
    let state = until_state(&c, "exited");
    assert_eq!((&state["exitCode"], &state["oom"]), (&137.into(), &true.into()), "{state}");
    let row = scene.dhow(["list"]).run().ok();
    assert!(row.stdout.contains("137 signal 9 oom"), "{row}");
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn a_create_that_is_asked_to_end_takes_all_back() {
    let scene = Scene::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let ready = scene.dir().join(format!("ready-{signal}"));
        let script = format!("touch {}; exec sleep 60", ready.display());
        for command in ["create", "run"] {
            let _ = fs::remove_file(&ready);
            let c = scene.container(|c| {
                c.hook("createRuntime", &script).payload(&["sleep", "100"]);
            });
            let running = scene.dhow([command, "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn();
            eventually("the hook runs", || ready.exists());
            kill(Pid::from_raw(running.pid()), signal).unwrap();
            let outcome = running.wait();
            assert_eq!(outcome.code, 128 + signal as i32, "{outcome}");
            scene.is_clean();
        }
    }
}

#[test]
fn a_create_may_be_asked_to_end_at_any_moment() {
    let scene = Scene::new();
    for step in 0..40u64 {
        let c = scene.payload(&["sleep", "100"]);
        let create = scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn();
        std::thread::sleep(Duration::from_micros(step * 250));
        let _ = kill(Pid::from_raw(create.pid()), Signal::SIGTERM);
        let outcome = create.wait();
        match outcome.code {
            0 => drop(c.delete_force().ok()),
            143 => scene.is_clean(),
            _ => panic!("{outcome}"),
        }
    }
}

#[test]
fn a_container_of_an_image_keeps_what_it_has_written() {
    let scene = Scene::new();
    let archive = scene.dir().join("image.tar");
    let layer = image::base(scene.payload_program());
    image::save(&archive, "test", &[layer], &serde_json::json!({ "Env": ["PATH=/bin"] }));
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    let id = format!("{}-c", scene.tag());
    let words =
        ["run", "--image", "test", "--detach", "--restart", "on-failure:2", "--log-driver", "json-file"];
    scene.dhow(words).args([&id, "--", "sh", "-c", "echo x >> /lives; cat /lives; exit 3"]).run().ok();
    let inspect = || scene.dhow(["inspect", &id]).run().ok().json();
    eventually("it gives up", || inspect()["restarts"] == 2 && inspect()["state"] == "exited");
    eventually("all is written", || scene.dhow(["logs", &id]).run().stdout == "x\nx\nx\nx\nx\nx\n");
    let state = inspect();
    assert!(state["image"].as_str().is_some_and(|image| image.contains("test")), "{state}");
    scene.dhow(["delete", &id]).run().ok();
    let containers = fs::read_dir(scene.state_dir().join("@images/containers"));
    assert_eq!(containers.map_or(0, Iterator::count), 0);
    scene.is_clean();
}
