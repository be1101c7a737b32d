//! `--timings`: where the time of a command went.

use dhow_integration::{Runner, Scene, is_dhow, skip_unless};
use std::fs;

/// The rows of the table: at, for, and the step's name.
fn rows(stderr: &str) -> Vec<(u64, u64, String)> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let (at, length) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((at, length, words.collect::<Vec<_>>().join(" ")))
    };
    stderr.lines().filter_map(row).collect()
}

fn has(rows: &[(u64, u64, String)], name: &str) -> bool {
    rows.iter().any(|(_, _, step)| step == name)
}

#[test]
fn a_table_shows_parent_and_init() {
    skip_unless!(is_dhow(), "other runtimes have no --timings");
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let outcome = c.run_with(&["--timings"]).run().ok();
    let rows = rows(&outcome.stderr);
    for step in [
        "read and plan",
        "make the cgroup",
        "clone the init",
        "│ mount the rootfs",
        "│ become the payload",
        "the payload runs",
        "delete",
    ] {
        assert!(has(&rows, step), "{step} is missing: {outcome}");
    }
    assert!(rows.windows(2).all(|pair| pair[0].0 <= pair[1].0), "in order: {outcome}");
    // The steps of the command itself follow one another without a gap.
    let own: Vec<_> = rows.iter().filter(|(_, _, step)| !step.starts_with('│')).collect();
    for pair in own.windows(2) {
        let gap = pair[1].0.abs_diff(pair[0].0 + pair[0].1);
        assert!(gap <= 2, "{pair:?}: {outcome}");
    }
}

#[test]
fn each_command_has_its_steps() {
    skip_unless!(is_dhow(), "other runtimes have no --timings");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    let said = c.create_with(&["--timings"]).ok().stderr;
    assert!(
        has(&rows(&said), "│ look for the program") && !has(&rows(&said), "│ become the payload"),
        "{said}"
    );
    let said = c.command(&["--timings", "start"]).run().ok().stderr;
    assert!(has(&rows(&said), "wait for the payload"), "{said}");
    let said = c.exec_with(&["--timings"], &["/payload", "exit", "0"]).run().ok().stderr;
    assert!(has(&rows(&said), "│ join namespaces") && has(&rows(&said), "│ become the payload"), "{said}");
    let said = c.command(&["--timings", "delete", "--force"]).run().ok().stderr;
    assert!(has(&rows(&said), "end its processes"), "{said}");
    c.delete_force();
}

#[test]
fn the_file_is_a_trace() {
    skip_unless!(is_dhow(), "other runtimes have no --timings");
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let file = scene.dir().join("trace.json");
    let outcome = c.run_with(&[&format!("--timings={}", file.display())]).run().ok();
    let trace: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert!(complete.len() >= 15, "{trace}");
    for event in &complete {
        assert!(event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0, "{event}");
    }
    let total: f64 = complete.iter().filter(|e| e["tid"] == 1).map(|e| e["dur"].as_f64().unwrap()).sum();
    assert!(total / 1e6 <= outcome.took.as_secs_f64(), "no more time than there was: {total} µs, {outcome}");
    assert!(complete.iter().any(|e| e["tid"] == 2 && e["name"] == "mount the rootfs"));
    let names = events.iter().filter(|e| e["ph"] == "M" && e["name"] == "thread_name").count();
    assert_eq!(names, 2);
}

#[test]
fn a_command_that_fails_shows_how_far_it_came() {
    skip_unless!(is_dhow(), "other runtimes have no --timings");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["/no/such/program"]);
    });
    let file = scene.dir().join("trace.json");
    let outcome = c.run_with(&[&format!("--timings={}", file.display())]).run().exits(1);
    let error = outcome.stderr.lines().last().unwrap();
    assert!(error.starts_with("dhow: exec: \"/no/such/program\": no such file or directory"), "{outcome}");
    let rows = rows(&outcome.stderr);
    assert!(has(&rows, "│ look for the program") && !has(&rows, "the payload runs"), "{outcome}");
    let trace: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "look for the program"), "{trace}");
    // One that fails before it does anything, and whose trace cannot be written: its own error is told.
    let nowhere = format!("--timings={}/no/such/trace.json", scene.dir().display());
    let outcome = scene.dhow([&nowhere, "start", "nobody"]).run().exits(1);
    assert!(outcome.stderr.ends_with("dhow: container \"nobody\" does not exist\n"), "{outcome}");
    scene.is_clean();
}

/// Without the option nothing is said, mapped or asked of the clock for it.
#[test]
fn it_costs_nothing_when_it_is_off() {
    skip_unless!(is_dhow(), "other runtimes have no --timings");
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    assert_eq!(c.run().ok().stderr, "");
    let shared = |options: &[&str]| {
        let log = scene.dir().join("strace.log");
        let line = c.run_with(options).line();
        let words = ["-f", "-o", log.to_str().unwrap(), "-e", "trace=mmap"].map(str::to_owned);
        Runner::new("strace").args(words.into_iter().chain(line)).run().ok();
        fs::read_to_string(&log).unwrap().matches("MAP_SHARED|MAP_ANONYMOUS").count()
    };
    skip_unless!(dhow_integration::machine::has_program("strace"), "strace is not there");
    assert_eq!((shared(&[]), shared(&["--timings"])), (0, 1));
}
