//! Limits that change while a container runs, what it uses, and its memory running out.

use dhow_integration::{Container, Scene, cgroup, machine, skip_unless};
use serde_json::{Value, json};
use std::fs;

fn setting(c: &Container, controller: &str, v1: &str, v2: &str) -> String {
    let (dir, is_v2) = cgroup::directory(controller, &c.cgroup()).unwrap();
    let file = dir.join(if is_v2 { v2 } else { v1 });
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
}

fn memory(c: &Container) -> String {
    setting(c, "memory", "memory.limit_in_bytes", "memory.max")
}

fn pids(c: &Container) -> String {
    setting(c, "pids", "pids.max", "pids.max")
}

#[test]
fn options_and_documents_change_limits() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    scene.dhow(["update", "--memory", "64m", "--pids-limit", "50", c.id()]).run().ok();
    assert_eq!((memory(&c), pids(&c)), ("67108864".into(), "50".into()));
    // As containerd sends it. Docker sends 0 for what is not to change.
    let document = json!({ "memory": { "limit": 0 }, "pids": { "limit": 77 }, "cpu": { "shares": 0 } });
    scene.dhow(["update", "--resources", "-", c.id()]).input(&document.to_string()).run().ok();
    assert_eq!((memory(&c), pids(&c)), ("67108864".into(), "77".into()));
    let file = scene.dir().join("resources.json");
    fs::write(&file, json!({ "pids": { "limit": -1 } }).to_string()).unwrap();
    scene.dhow(["update", &format!("--resources={}", file.display()), c.id()]).run().ok();
    assert_eq!(pids(&c), "max");
}

/// The kernel itself, not only the file: a process more than allowed cannot be made.
#[test]
fn a_lower_limit_of_processes_holds_at_once() {
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    scene.dhow(["update", "--pids-limit", "2", c.id()]).run().ok();
    let refused = c.exec(&["/payload", "fork-tree", "2"]);
    assert_ne!(refused.code, 0, "{refused}");
}

#[test]
fn an_update_that_fails_leaves_all_as_it_was() {
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    skip_unless!(machine::has_controller("cpuset"), "no mounted hierarchy has the cpuset controller");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    scene.dhow(["update", "--pids-limit", "50", c.id()]).run().ok();
    let wrong = ["update", "--pids-limit", "60", "--cpuset-cpus", "4000", c.id()];
    scene.dhow(wrong).run().fails(&["linux.resources.cpu.cpus", "4000"]);
    assert_eq!(pids(&c), "50");
    for (option, value, words) in [
        ("--memory", "1x", "--memory"),
        ("--pids-limit", "many", "--pids-limit"),
        ("--cpu-quota", "5", "linux.resources.cpu.quota"),
        ("--blkio-weight", "5000", "linux.resources.blockIO.weight"),
    ] {
        scene.dhow(["update", option, value, c.id()]).run().fails(&[words]);
    }
}

#[test]
fn a_container_that_does_not_run_is_not_updated() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.up().until("stopped");
    scene.dhow(["update", "--pids-limit", "50", c.id()]).run().fails(&["container not running"]);
    scene.dhow(["events", "--stats", c.id()]).run().fails(&["container not running"]);
}

#[test]
fn stats_are_go_runcs_and_a_table() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "2"]);
    c.up().until_it_says("ready 2");
    let event = scene.dhow(["events", "--stats", c.id()]).run().ok().json();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!(c.id())));
    assert!(event["data"]["memory"]["usage"]["usage"].as_u64().unwrap() > 0, "{event}");
    assert!(event["data"]["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{event}");
    let shown = scene.dhow(["stats", c.id()]).run().ok();
    assert!(shown.stdout.starts_with("ID ") && shown.stdout.contains(&c.id()[..16]), "{shown}");
    let all = scene.dhow(["stats", "--format", "json", c.id()]).run().ok().json();
    assert_eq!(all[0]["id"], json!(c.id()));
}

#[test]
fn events_come_at_intervals_and_end_with_the_container() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "1"]);
    c.up();
    let outcome = scene.dhow(["events", "--interval=100ms", c.id()]).run().ok();
    let lines: Vec<Value> = outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 3, "{outcome}");
    assert!(lines.iter().all(|event| event["type"] == "stats"), "{outcome}");
    scene.dhow(["events", "--interval=0s", c.id()]).run().fails(&["--interval"]);
}

#[test]
fn running_out_of_memory_is_an_event() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 16 << 20, "swap": 16 << 20 }))
            .payload(&["sleep", "1", "--", "alloc", "64"]);
    });
    c.up();
    let outcome = scene.dhow(["events", "--interval=10s", c.id()]).run().ok();
    assert!(outcome.stdout.contains("\"type\":\"oom\""), "{outcome}");
}

#[test]
fn a_payload_that_memory_runs_out_for_is_named_with_its_limit() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 16 << 20, "swap": 16 << 20 }))
            .payload(&["alloc", "64"]);
    });
    let outcome = c.run().exits(137);
    assert!(outcome.stderr.contains("out of memory") && outcome.stderr.contains("16777216"), "{outcome}");
    scene.is_clean();
}

#[test]
fn an_init_that_memory_runs_out_for_is_named_with_its_limit() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 8192, "swap": 8192 })).payload(&["exit", "0"]);
    });
    c.create().fails(&["out of memory", "limit 8192"]);
    scene.is_clean();
}
