//! The state store: list and its formats, commands at the same time, and what a crash leaves.

use dhow_integration::command::binary;
use dhow_integration::{Runner, Scene, eventually, is_dhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

#[test]
fn list_shows_every_container() {
    let scene = Scene::new();
    let first = scene.payload(&["sleep", "100"]);
    let second = scene.payload(&["exit", "0"]);
    first.up();
    second.create().ok();
    let table = scene.dhow(["list"]).run().ok();
    let header: Vec<&str> = table.stdout.lines().next().unwrap().split_whitespace().collect();
    if is_dhow() {
        assert_eq!(header[..6], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
        assert_eq!(header[6..], ["STATE", "SINCE", "EXIT", "RESTARTS", "IMAGE"]);
    }
    let row = |id: &str| table.stdout.lines().find(|l| l.contains(id)).unwrap().to_owned();
    assert!(
        row(first.id()).contains("running") && row(first.id()).contains(&first.pid().to_string()),
        "{table}"
    );
    assert!(row(second.id()).contains("created"), "{table}");
    let mut ids: Vec<String> =
        scene.dhow(["list", "--quiet"]).run().ok().stdout.lines().map(str::to_owned).collect();
    ids.sort();
    assert_eq!(ids, [first.id(), second.id()]);
}

#[test]
fn list_as_json() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    for words in
        [["list", "--format=json"].as_slice(), &["list", "--format", "json"], &["list", "-f", "json"]]
    {
        let listed = scene.dhow(words).run().ok().json();
        let entry = &listed.as_array().unwrap()[0];
        assert_eq!(entry["id"], c.id());
        assert_eq!(entry["status"], "running");
        assert_eq!(entry["pid"], c.pid());
        assert_eq!(entry["bundle"], c.bundle().to_str().unwrap());
        // go-runc parses this as a time.
        let created = entry["created"].as_str().unwrap();
        assert!(created.contains('T') && (created.ends_with('Z') || created.contains('+')), "{created}");
    }
}

#[test]
fn an_empty_list_is_empty() {
    let scene = Scene::new();
    let listed = scene.dhow(["list", "--format", "json"]).run().ok().json();
    // runc says null; Go reads both as no container.
    assert!(listed.is_null() || listed.as_array().is_some_and(Vec::is_empty), "{listed}");
    assert_eq!(scene.dhow(["list", "-q"]).run().ok().stdout.trim(), "");
}

#[test]
fn the_state_directory_is_private() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.create().ok();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let own = scene.state_dir().join(c.id());
    assert_eq!(mode(&own) & 0o077, 0, "{:o}: nobody else looks into a container's state", mode(&own));
    assert_eq!(mode(scene.state_dir()) & 0o022, 0, "{:o}", mode(scene.state_dir()));
}

#[test]
fn a_payload_that_ends_before_start_returns() {
    let scene = Scene::new();
    for _ in 0..25 {
        let c = scene.payload(&["exit", "3"]);
        c.create().ok();
        c.start().ok();
        assert_eq!(c.reap(), 3);
        c.until("stopped");
        c.delete().ok();
    }
    scene.is_clean();
}

#[test]
fn of_two_creates_at_once_one_wins() {
    let scene = Scene::new();
    for _ in 0..10 {
        let c = scene.payload(&["sleep", "100"]);
        let words = ["create", "--bundle", c.bundle().to_str().unwrap(), c.id()];
        let all: Vec<_> = (0..4).map(|_| scene.dhow(words).spawn()).collect();
        let codes: Vec<i32> = all.into_iter().map(|create| create.wait().code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        assert_eq!(c.status(), "created", "the losers must not harm the winner");
        c.start().ok();
        c.delete_force().ok();
        scene.is_clean();
    }
}

#[test]
fn of_two_starts_at_once_one_wins() {
    let scene = Scene::new();
    for _ in 0..10 {
        let c = scene.payload(&["sleep", "100"]);
        c.create().ok();
        let all: Vec<_> = (0..4).map(|_| c.command(&["start"]).spawn()).collect();
        let codes: Vec<i32> = all.into_iter().map(|start| start.wait().code).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
        assert_eq!(c.status(), "running");
        c.delete_force().ok();
    }
    scene.is_clean();
}

#[test]
fn deletes_at_once_leave_nothing() {
    let scene = Scene::new();
    for _ in 0..10 {
        let c = scene.payload(&["fork-tree", "2"]);
        c.up();
        let all: Vec<_> = (0..4).map(|_| c.command(&["delete", "--force"]).spawn()).collect();
        for delete in all {
            delete.wait().ok();
        }
        c.delete_force().ok();
        scene.is_clean();
    }
}

#[test]
fn state_is_whole_while_others_change_it() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.create().ok();
    thread::scope(|scope| {
        let change = scope.spawn(|| {
            c.start().ok();
            c.kill("KILL").ok();
            c.until("stopped");
        });
        while !change.is_finished() {
            let state = c.state();
            assert!(
                ["created", "running", "stopped"].contains(&state["status"].as_str().unwrap()),
                "{state}"
            );
        }
    });
}

#[test]
fn two_hundred_containers_at_once() {
    const ALL: usize = 200;
    const AT_ONCE: usize = 16;
    let scene = Scene::new();
    let next = std::sync::atomic::AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < ALL {
                    let c = scene.payload(&["echo", "one", "of", "many"]);
                    c.create().ok();
                    c.start().ok();
                    assert_eq!(c.reap(), 0);
                    assert_eq!(c.output(), "one of many\n");
                    c.delete().ok();
                }
            });
        }
    });
    scene.is_clean();
    let left = fs::read_dir(scene.state_dir()).unwrap().flatten().filter(|e| e.path().is_dir()).count();
    assert!(left == 0 || !is_dhow(), "{left} directories stay in the state directory");
}

#[test]
fn a_killed_create_is_cleared_by_delete_force() {
    let scene = Scene::new();
    let ready = scene.dir().join("ready");
    let c = scene.container(|c| {
        // Short, so that the orphaned hook is gone when the scene looks.
        c.hook("createRuntime", &format!("touch {}; sleep 2", ready.display())).payload(&["sleep", "100"]);
    });
    let create = scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn();
    eventually("the hook runs", || ready.exists());
    kill(Pid::from_raw(create.pid()), Signal::SIGKILL).unwrap();
    create.wait().exits(137);
    let listed = scene.dhow(["list"]).run().ok();
    assert!(listed.stdout.contains(c.id()) || !is_dhow(), "what was begun is known: {listed}");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_create_that_is_killed_anywhere_is_cleared_by_delete_force() {
    let scene = Scene::new();
    for step in 0..40u64 {
        let c = scene.payload(&["sleep", "100"]);
        let create = scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn();
        // From before the first syscall to after the last one, as create takes some milliseconds.
        thread::sleep(std::time::Duration::from_micros(step * 250));
        let _ = kill(Pid::from_raw(create.pid()), Signal::SIGKILL);
        create.wait();
        c.delete_force().ok();
        scene.is_clean();
    }
}

#[test]
fn a_state_that_cannot_be_read_is_reported_and_list_goes_on() {
    let scene = Scene::new();
    let (broken, whole) = (scene.payload(&["sleep", "100"]), scene.payload(&["sleep", "100"]));
    broken.up();
    whole.up();
    let dir = scene.state_dir().join(broken.id());
    let saved: Vec<(std::path::PathBuf, Vec<u8>)> = fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()))
        .map(|entry| (entry.path(), fs::read(entry.path()).unwrap()))
        .collect();
    for (path, _) in &saved {
        fs::write(path, "{ not what was written").unwrap();
    }
    broken.command(&["state"]).run().fails(&[broken.id()]);
    let listed = scene.dhow(["list", "-q"]).run();
    if is_dhow() {
        assert!(listed.stdout.contains(whole.id()), "{listed}");
    }
    for (path, bytes) in saved {
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(broken.status(), "running");
}

#[test]
fn a_container_whose_process_was_killed_from_outside_is_stopped() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    kill(Pid::from_raw(c.pid()), Signal::SIGKILL).unwrap();
    c.until("stopped");
    assert_eq!(c.reap(), 137);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn a_bundle_may_go_while_the_container_runs() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    fs::remove_file(c.bundle().join("config.json")).unwrap();
    assert_eq!(c.status(), "running");
    c.kill("KILL").ok();
    c.until("stopped");
    c.delete().ok();
    scene.is_clean();
}

/// Whoever has a full disk deletes what is on it.
#[test]
fn on_a_full_disk_containers_start_and_go() {
    let scene = Scene::new();
    let container = scene.payload(&["sleep", "100"]);
    let place = scene.dir().join("small");
    fs::create_dir(&place).unwrap();
    let script = format!(
        "set -e; mount -t tmpfs -o size=256k tmpfs $1; dhow='{} --root '$1; \
         $dhow create --bundle {1} {2} >/dev/null 2>&1 </dev/null; \
         ! dd if=/dev/zero of=$1/rest bs=4k 2>/dev/null; \
         $dhow start {2}; $dhow state {2} | grep status; $dhow exec {2} /payload echo in; \
         $dhow kill {2} KILL; $dhow delete --force {2}; ls $1",
        binary().display(),
        container.bundle().display(),
        container.id()
    );
    let unshare = ["--mount", "--propagation", "private", "/bin/sh", "-c", &script, "sh"];
    let seen = Runner::new("unshare").args(unshare).args([place.to_str().unwrap()]).run().ok();
    assert_eq!(seen.stdout, "  \"status\": \"running\",\nin\nrest\n", "{seen}");
    scene.is_clean();
}
