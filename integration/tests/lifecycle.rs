//! create, start, state, kill, pause, resume, delete: the states of a container and what each allows.

use dhow_integration::{Scene, eventually, machine, skip_unless};
use std::fs;

#[test]
fn a_container_lives_its_whole_life() {
    let scene = Scene::new();
    let c = scene.payload(&["echo", "hello", "--", "exit", "7"]);
    c.create().ok();
    assert_eq!(c.status(), "created");
    assert_eq!(c.output(), "", "the payload must wait for start");
    c.start().ok();
    assert_eq!(c.reap(), 7);
    c.until("stopped");
    assert_eq!(c.output(), "hello\n");
    c.delete().ok();
    c.command(&["state"]).run().fails(&["does not exist"]);
    scene.is_clean();
}

#[test]
fn state_is_what_the_spec_says() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "100"]).set("/annotations", serde_json::json!({"org.example.key": "value"}));
    });
    c.create().ok();
    let state = c.state();
    assert_eq!(state["id"], c.id());
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"], c.pid());
    assert_eq!(state["bundle"], c.bundle().to_str().unwrap());
    assert_eq!(state["annotations"]["org.example.key"], "value");
    assert!(state["ociVersion"].as_str().is_some_and(|v| v.starts_with("1.")), "{state}");
    c.start().ok();
    let state = c.state();
    assert_eq!((&state["status"], &state["pid"]), (&"running".into(), &c.pid().into()));
    c.kill("KILL").ok();
    c.until("stopped");
    let pid = c.state().get("pid").and_then(serde_json::Value::as_i64).unwrap_or(0);
    assert_eq!(pid, 0, "a stopped container has no process");
}

#[test]
fn the_pid_file_names_the_process_and_nothing_else() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let text = fs::read_to_string(c.bundle().join("pid")).unwrap();
    assert_eq!(text, c.state()["pid"].to_string(), "engines parse the whole file as a number");
}

#[test]
fn before_start_the_payload_has_not_been_executed() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.create().ok();
    let argv = || fs::read_to_string(format!("/proc/{}/cmdline", c.pid())).unwrap();
    assert!(!argv().starts_with("/payload\0"), "{}", argv());
    c.start().ok();
    assert_eq!(argv(), "/payload\0sleep\x00100\0", "start returns once the payload runs");
}

#[test]
fn signals_by_every_name() {
    for (name, expected) in [
        ("TERM", "SIGTERM"),
        ("SIGHUP", "SIGHUP"),
        ("15", "SIGTERM"),
        ("usr1", "SIGUSR1"),
        ("SIGWINCH", ""),
        ("10", "SIGUSR1"),
    ] {
        let scene = Scene::new();
        let c = scene.payload(&["signal-wait"]);
        c.up().until_it_says("ready");
        c.kill(name).ok();
        if expected.is_empty() {
            assert_eq!(c.status(), "running");
            continue;
        }
        c.until_it_says(expected);
        assert_eq!(c.reap(), 0);
    }
}

#[test]
fn kill_without_a_signal_is_term() {
    let scene = Scene::new();
    let c = scene.payload(&["signal-wait"]);
    c.up().until_it_says("ready");
    c.command(&["kill"]).run().ok();
    c.until_it_says("SIGTERM");
}

#[test]
fn an_unknown_signal_is_refused() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.kill("SIGNOTHING").fails(&["NOTHING"]);
    c.kill("4711").fails(&["4711"]);
    assert_eq!(c.status(), "running");
}

#[test]
fn kill_all_reaches_every_process() {
    let scene = Scene::new();
    // Sharing the host's pid namespace, the children outlive their parent.
    let c = scene.container(|c| {
        c.payload(&["fork-tree", "3"]).without_namespace("pid");
    });
    c.up().until_it_says("ready 3");
    c.command(&["kill", "--all"]).args(["KILL"]).run().ok();
    c.until("stopped");
    c.delete().ok();
    scene.is_clean();
}

/// In the host's pid namespace processes live on when the init has ended; KILL still reaches them.
#[test]
fn kill_reaches_those_that_outlived_the_init() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["fork-tree", "3"]).without_namespace("pid");
    });
    c.up().until_it_says("ready 3");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(c.pid()), nix::sys::signal::Signal::SIGKILL).unwrap();
    c.until("stopped");
    c.kill("TERM").fails(&["container not running"]);
    c.kill("KILL").ok();
    let pids = || c.command(&["ps", "--format", "json"]).run().stdout;
    eventually("all have ended", || !pids().contains(|c: char| c.is_ascii_digit()));
    c.kill("KILL").fails(&["container not running"]);
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn kill_of_a_stopped_container_says_the_words() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.up().until("stopped");
    let outcome = c.kill("TERM").fails(&[]);
    let text = outcome.stderr.to_lowercase();
    // containerd takes either as "already gone".
    let known = ["container not running", "process already finished", "no such process"];
    assert!(known.iter().any(|words| text.contains(words)), "{outcome}");
}

#[test]
fn a_created_container_can_be_killed() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.create().ok();
    c.kill("KILL").ok();
    c.until("stopped");
    c.start().fails(&[]);
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn a_created_container_can_be_deleted() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.create().ok();
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn start_twice_is_refused() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.start().fails(&[]);
    assert_eq!(c.status(), "running");
    c.kill("KILL").ok();
    c.until("stopped");
    c.start().fails(&[]);
}

#[test]
fn a_running_container_is_not_deleted_without_force() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.delete().fails(&[c.id()]);
    assert_eq!(c.status(), "running");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn delete_of_an_unknown_container() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.delete().fails(&["does not exist"]);
    c.delete_force().ok();
}

#[test]
fn every_command_on_an_unknown_container_says_that_it_does_not_exist() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    for command in ["state", "start", "kill", "pause", "resume", "ps"] {
        c.command(&[command]).run().fails(&["does not exist"]);
    }
    c.exec(&["/payload", "exit", "0"]).fails(&["does not exist"]);
}

#[test]
fn the_name_is_free_again_after_delete() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    for _ in 0..3 {
        c.up().until("stopped");
        c.create().fails(&["exist"]);
        c.delete().ok();
    }
}

#[test]
fn pause_stops_the_processes_and_resume_lets_them_go_on() {
    skip_unless!(machine::has_freezer(), "no freezer cgroup is mounted");
    let scene = Scene::new();
    let c = scene.payload(&["spin"]);
    c.up();
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", c.pid())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(11).unwrap().parse::<u64>().unwrap()
    };
    let start = ticks();
    eventually("the payload spins", || ticks() > start);
    c.pause().ok();
    assert_eq!(c.status(), "paused");
    let paused = ticks();
    std::thread::sleep(std::time::Duration::from_millis(150));
    assert_eq!(ticks(), paused, "a paused container uses no processor time");
    c.delete().fails(&[]);
    c.resume().ok();
    assert_eq!(c.status(), "running");
    eventually("the payload spins again", || ticks() > paused);
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_paused_container_can_be_deleted_by_force() {
    skip_unless!(machine::has_freezer(), "no freezer cgroup is mounted");
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "3"]);
    c.up().until_it_says("ready");
    c.pause().ok();
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn pause_and_resume_in_the_wrong_state_are_refused() {
    skip_unless!(machine::has_freezer(), "no freezer cgroup is mounted");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.resume().fails(&[]);
    c.kill("KILL").ok();
    c.until("stopped");
    c.pause().fails(&[]);
    c.resume().fails(&[]);
}

#[test]
fn ps_lists_the_processes_as_the_host_numbers_them() {
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "2"]);
    c.up().until_it_says("ready 2");
    let listed = c.command(&["ps", "--format", "json"]).run().ok().json();
    let mut pids: Vec<i64> = listed.as_array().unwrap().iter().map(|p| p.as_i64().unwrap()).collect();
    pids.sort_unstable();
    assert_eq!(pids.len(), 3, "{listed}");
    assert!(pids.contains(&i64::from(c.pid())), "{listed}");
    for pid in pids {
        let argv = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(argv.starts_with("/payload"), "{pid} runs {argv}");
    }
}

#[test]
fn ps_prints_a_table() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let table = c.command(&["ps"]).run().ok();
    assert!(table.stdout.lines().next().unwrap().contains("PID"), "{table}");
    assert!(table.stdout.contains(&c.pid().to_string()) && table.stdout.contains("/payload"), "{table}");
}
