//! The table state × operation through the command line: every state that can be brought about, and
//! in it every command.

use dhow_integration::scene::Container;
use dhow_integration::{Scene, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;

const STATES: [&str; 8] =
    ["creating", "created", "running", "paused", "restarting", "exited", "removing", "dead"];

/// Each command and what it comes to in each of [`STATES`]: `ok`, or words of its error.
const TABLE: [(&[&str], [&str; 8]); 9] = [
    (
        &["start"],
        [
            "cannot start",
            "ok",
            "already running",
            "cannot start",
            "has stopped",
            "has stopped",
            "cannot start",
            "has stopped",
        ],
    ),
    (&["kill"], ["ok", "ok", "ok", "ok", "not running", "not running", "not running", "not running"]),
    (
        &["pause"],
        [
            "not running",
            "ok",
            "ok",
            "already paused",
            "not running",
            "not running",
            "not running",
            "not running",
        ],
    ),
    (
        &["resume"],
        [
            "not paused",
            "not paused",
            "not paused",
            "ok",
            "not paused",
            "not paused",
            "not paused",
            "not paused",
        ],
    ),
    (&["exec"], ["not running", "ok", "ok", "paused", "stopped", "stopped", "not running", "stopped"]),
    (&["ps"], ["not running", "ok", "ok", "ok", "ok", "ok", "not running", "not running"]),
    (
        &["update"],
        ["not running", "ok", "ok", "ok", "not running", "not running", "not running", "not running"],
    ),
    (&["stop", "--time", "0"], ["cannot stop", "ok", "ok", "ok", "ok", "ok", "cannot stop", "ok"]),
    (&["delete"], ["not stopped", "ok", "not stopped", "not stopped", "ok", "ok", "ok", "ok"]),
];

fn state_of(c: &Container<'_>) -> String {
    c.command(&["inspect"]).run().ok().json()["state"].as_str().unwrap().to_owned()
}

/// Rewrites a field of the record, as only time or a crash would.
fn edit_record(scene: &Scene, c: &Container<'_>, field: &str, value: Value) {
    let path = scene.state_dir().join(c.id()).join("record.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    record[field] = value;
    fs::write(&path, record.to_string()).unwrap();
}

/// A container in a state, and the command that still works on it, if one does.
fn bring(scene: &Scene, state: &str) -> (String, Option<dhow_integration::command::Running>) {
    let gate = scene.dir().join(format!("gate-{}", fs::read_dir(scene.dir()).unwrap().count()));
    let c = scene.container(|c| {
        match state {
            "creating" => c.hook("createRuntime", &format!("touch {}; exec sleep 20", gate.display())),
            _ => c,
        };
        c.payload(if state == "restarting" { &["exit", "1"] } else { &["sleep", "100"] });
    });
    let mut running = None;
    match state {
        "creating" => {
            running = Some(scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn());
            eventually("the hook runs", || gate.exists());
        }
        "restarting" => {
            c.run_kept(&["--detach", "--restart", "always"]).ok();
            eventually("a long back-off", || {
                let state = c.command(&["inspect"]).run().ok().json();
                state["state"] == "restarting" && state["restarts"].as_i64() >= Some(5)
            });
        }
        "created" => drop(c.create().ok()),
        _ => drop(c.up()),
    }
    if matches!(state, "exited" | "removing" | "dead") {
        kill(Pid::from_raw(c.pid()), Signal::SIGKILL).unwrap();
        c.until("stopped");
    }
    match state {
        "paused" => drop(c.pause().ok()),
        "removing" => edit_record(scene, &c, "phase", "removing".into()),
        "dead" => edit_record(scene, &c, "boot", "another boot".into()),
        _ => {}
    }
    (c.id().to_owned(), running)
}

fn check(state: &str) {
    let scene = Scene::new();
    let at = STATES.iter().position(|name| *name == state).unwrap();
    for (words, verdicts) in TABLE {
        let (id, running) = bring(&scene, state);
        let inspected = || scene.dhow(["inspect", &id]).run().ok().json();
        assert_eq!(inspected()["state"], state, "before {words:?}");
        let command = scene.dhow(words).args([&id]);
        let payload: &[&str] = if words[0] == "exec" { &["/payload", "exit", "0"] } else { &[] };
        // A create that has not finished keeps the lock: whoever wants it waits too long.
        let waits = state == "creating" && !matches!(words[0], "kill" | "exec" | "ps");
        if waits {
            drop(running);
            scene.dhow(["delete", "--force", &id]).run().ok();
            continue;
        }
        let outcome = command.args(payload).run();
        match verdicts[at] {
            "ok" => drop(outcome.ok()),
            verdict => drop(outcome.fails(&[verdict])),
        }
        drop(running);
        scene.dhow(["delete", "--force", &id]).run().ok();
    }
    scene.is_clean();
}

#[test]
fn creating() {
    check("creating");
}

#[test]
fn created() {
    check("created");
}

#[test]
fn running() {
    check("running");
}

#[test]
fn paused() {
    check("paused");
}

#[test]
fn restarting() {
    check("restarting");
}

#[test]
fn exited() {
    check("exited");
}

#[test]
fn removing() {
    check("removing");
}

#[test]
fn dead() {
    check("dead");
}

#[test]
fn an_undo_that_fails_makes_it_dead_and_delete_can_be_repeated() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    // A cgroup inside the container's, with a process in it that is not the container's to kill.
    let (cgroup, _) = dhow_integration::cgroup::directory("pids", &c.cgroup())
        .or_else(|| dhow_integration::cgroup::directory("hugetlb", &c.cgroup()))
        .expect("a hierarchy with pids or hugetlb");
    let inner = cgroup.join("inner");
    fs::create_dir(&inner).unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    fs::write(inner.join("cgroup.procs"), stranger.id().to_string()).unwrap();
    c.command(&["delete", "--force"]).run().fails(&["inner"]);
    let inspected = c.command(&["inspect"]).run().ok().json();
    assert_eq!(inspected["state"], "dead", "{inspected}");
    let left = inspected["left"].to_string();
    assert!(left.contains("inner") && left.contains(cgroup.to_str().unwrap()), "{left}");
    assert!(stranger.try_wait().unwrap().is_none(), "it was not the container's");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn after_a_reboot_it_is_dead_and_no_stranger_is_signalled() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let pid = stranger.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    kill(Pid::from_raw(c.pid()), Signal::SIGKILL).unwrap();
    c.until("stopped");
    // Even a process that looks like the init in everything is none of another boot.
    edit_record(&scene, &c, "init", serde_json::json!({ "pid": pid, "start_time": start }));
    edit_record(&scene, &c, "boot", "another boot".into());
    assert_eq!(state_of(&c), "dead");
    c.kill("KILL").fails(&["not running"]);
    c.delete_force().ok();
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    scene.is_clean();
}

#[test]
fn a_pid_that_was_given_to_another_is_not_signalled() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let pid = c.pid();
    c.kill("KILL").ok();
    c.reap();
    // Start times count in hundredths of a second: in the same one the two could not be told apart.
    std::thread::sleep(std::time::Duration::from_millis(20));
    // The next process gets the pid (pid_namespaces(7), ns_last_pid).
    let mut stranger = None;
    for _ in 0..200 {
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        if child.id().cast_signed() == pid {
            stranger = Some(child);
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut stranger = stranger.expect("the pid can be had again");
    assert_eq!(c.status(), "stopped");
    c.kill("KILL").fails(&["not running"]);
    c.command(&["stop"]).run().ok();
    c.delete_force().ok();
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    scene.is_clean();
}

#[test]
fn a_record_that_is_no_record_is_an_error_to_every_command() {
    let scene = Scene::new();
    let commands: [&[&str]; 13] = [
        &["state"],
        &["inspect"],
        &["start"],
        &["kill"],
        &["pause"],
        &["resume"],
        &["ps"],
        &["update", "--pids-limit", "5"],
        &["stop"],
        &["restart"],
        &["wait"],
        &["logs"],
        &["delete"],
    ];
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let path = scene.state_dir().join(c.id()).join("record.json");
    let whole = fs::read(&path).unwrap();
    let newer = String::from_utf8(whole.clone()).unwrap().replace("\"version\":1", "\"version\":2");
    let half = &whole[..whole.len() / 2];
    for broken in [&b""[..], half, b"\xff\xfe\0", b"null", b"{}", newer.as_bytes()] {
        fs::write(&path, broken).unwrap();
        for words in commands {
            c.command(words).run().fails(&["read the state record", "record.json"]);
        }
        scene.dhow(["list"]).run().ok();
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(state_of(&c), "running", "nobody has touched it");
    // Of another user it is not taken: who may write it decides whom root signals.
    std::os::unix::fs::chown(&path, Some(12345), Some(12345)).unwrap();
    for words in commands {
        c.command(words).run().fails(&["belongs to uid 12345"]);
    }
    std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
    c.delete_force().ok();
    scene.is_clean();
}
