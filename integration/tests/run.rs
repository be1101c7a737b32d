//! `run`: the payload's exit status, its stdio, its signals; and nothing left.

use dhow_integration::{Scene, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn the_exit_status_is_the_payloads() {
    for code in [0, 1, 42, 255] {
        let scene = Scene::new();
        scene.payload(&["exit", &code.to_string()]).run().exits(code);
        scene.is_clean();
    }
}

#[test]
fn a_payload_that_a_signal_ends_gives_128_and_its_number() {
    let scene = Scene::new();
    // PID 1 of a pid namespace ignores what it does not handle; here it shares the host's.
    let c = scene.container(|c| {
        c.payload(&["raise", "SIGUSR1"]).without_namespace("pid");
    });
    c.run().exits(128 + Signal::SIGUSR1 as i32);
    scene.is_clean();
}

#[test]
fn stdio_is_the_callers() {
    let scene = Scene::new();
    let c = scene.payload(&["read-line", "--", "stderr", "to", "stderr"]);
    let outcome = c.run_with(&[]).input("a line\n").run().ok().says("got 7: a line");
    assert_eq!(outcome.stderr, "to stderr\n");
}

#[test]
fn the_payload_gets_its_arguments_as_they_are() {
    let scene = Scene::new();
    scene.payload(&["args", "a b", "", "*", "$HOME", "é"]).run().ok().says("[a b]\n[]\n[*]\n[$HOME]\n[é]");
}

#[test]
fn the_payload_is_process_1() {
    let scene = Scene::new();
    let outcome = scene.payload(&["pid"]).run().ok();
    assert_eq!((outcome.field("pid"), outcome.field("ppid")), ("1", "0"));
    assert_eq!(outcome.field("sid"), "1", "the payload leads a session of its own");
}

#[test]
fn the_bundle_is_the_working_directory_by_default() {
    let scene = Scene::new();
    let c = scene.payload(&["echo", "hi"]);
    scene.dhow(["run", c.id()]).cwd(c.bundle()).run().ok().says("hi");
}

#[test]
fn signals_reach_the_payload() {
    let scene = Scene::new();
    let c = scene.payload(&["signal-wait"]);
    let running = c.run_with(&[]).spawn();
    running.until_it_says("ready");
    kill(Pid::from_raw(running.pid()), Signal::SIGTERM).unwrap();
    running.wait().ok().says("ready\nSIGTERM");
    scene.is_clean();
}

#[test]
fn detached_it_goes_on_running() {
    let scene = Scene::new();
    let c = scene.payload(&["echo", "up", "--", "signal-wait"]);
    c.run_kept(&["--detach"]).ok();
    assert_eq!(c.status(), "running");
    c.until_it_says("ready").kill("TERM").ok();
    assert_eq!(c.reap(), 0);
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn kept_it_can_be_asked_and_deleted() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "3"]);
    c.run_with(&["--keep"]).run().exits(3);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn a_foreground_container_can_be_killed_from_elsewhere() {
    let scene = Scene::new();
    let c = scene.payload(&["echo", "up", "--", "sleep", "100"]);
    let running = c.run_with(&[]).spawn();
    running.until_it_says("up");
    // The payload may print before the runtime has noted that it runs.
    c.until("running");
    c.kill("KILL").ok();
    running.wait().exits(128 + 9);
    scene.is_clean();
}

#[test]
fn children_of_the_payload_end_with_it() {
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "5"]);
    let running = c.run_with(&[]).spawn();
    running.until_it_says("ready 5");
    c.kill("KILL").ok();
    running.wait().exits(137);
    eventually("nothing is left", || scene.leaks().is_empty());
}

#[test]
fn a_shell_of_busybox_runs() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["sh", "-c", "echo $((6 * 7)); exit 5"]);
    });
    c.with_busybox().run().exits(5).says("42");
}
