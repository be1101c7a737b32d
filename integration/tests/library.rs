//! The library: a program that embeds it, with several threads, and the examples of its documentation.

use dhow_integration::machine::{has_controller, has_freezer, skip};
use dhow_integration::{Container, Outcome, Runner, Scene, eventually, image, is_dhow, skip_unless};
use serde_json::json;
use std::fs;
use std::path::Path;

const EMBEDDER: &str = env!("CARGO_BIN_EXE_embedder");

/// Names the scene in the environment of every helper, so that none is left unseen.
const TAG: &str = "DHOW_LIBRARY_TEST";

fn embed(scene: &Scene, scenario: &str, c: &Container<'_>, more: &[&str]) -> Outcome {
    let root = scene.state_dir().to_str().unwrap();
    let words = [scenario, root, c.id(), c.bundle().to_str().unwrap()];
    Runner::new(EMBEDDER).env(TAG, scene.tag()).args(words).args(more).run()
}

/// No helper process of the scene is left.
#[track_caller]
fn no_helper_is_left(scene: &Scene) {
    let wanted = format!("{TAG}={}\0", scene.tag());
    eventually("the helpers end", || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        !processes
            .map(|entry| entry.path())
            .filter(|path| {
                fs::read(path.join("cmdline")).is_ok_and(|line| line.starts_with(b"dhow-helper\0"))
            })
            .any(|path| fs::read_to_string(path.join("environ")).is_ok_and(|text| text.contains(&wanted)))
    });
}

/// A container that sleeps until it is killed.
fn sleeper(scene: &Scene) -> Container<'_> {
    scene.container(|c| {
        c.payload(&["sleep", "1000"]).set("/annotations", json!({"org.example.word": "kept"}));
    })
}

#[test]
fn a_whole_life_by_every_method() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let c = sleeper(&scene);
    let mut has: Vec<&str> =
        ["memory", "cpu", "pids"].into_iter().filter(|name| has_controller(name)).collect();
    if has_freezer() {
        has.push("freezer");
    }
    if has.len() < 4 {
        skip(&format!("in part: of memory, cpu, pids and freezer this machine has {has:?}"));
    }
    embed(&scene, "life", &c, &has).ok();
    no_helper_is_left(&scene);
    scene.is_clean();
}

#[test]
fn errors_come_back_whole_and_leave_nothing() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let good = sleeper(&scene);
    let missing = scene.container(|c| {
        c.args(&["/no/such/program"]);
    });
    let wrong = scene.container(|c| {
        c.set("/process/cwd", "not/absolute");
    });
    let bundles = [missing.bundle(), wrong.bundle()].map(|path| path.to_str().unwrap());
    embed(&scene, "errors", &good, &bundles).ok();
    no_helper_is_left(&scene);
    scene.is_clean();
}

#[test]
fn many_threads_at_a_time() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "1000"]).remove("/linux/cgroupsPath");
    });
    embed(&scene, "threads", &c, &[]).ok();
    no_helper_is_left(&scene);
    scene.is_clean();
}

#[test]
fn a_container_outlives_its_maker_and_its_exit_code_is_kept() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["signal-wait", "--", "exit", "42"]);
    });
    embed(&scene, "abandon", &c, &[]).ok();
    let log = c.bundle().join("log");
    eventually("the payload waits", || fs::read_to_string(&log).is_ok_and(|text| text.contains("ready")));
    assert_eq!(c.command(&["state"]).run().ok().json()["status"], "running");
    c.kill("TERM").ok();
    assert_eq!(c.command(&["wait"]).run().stdout.trim(), "42");
    assert_eq!(c.command(&["inspect"]).run().ok().json()["exitCode"], 42);
    c.command(&["delete"]).run().ok();
    no_helper_is_left(&scene);
    scene.is_clean();
}

#[test]
fn warnings_are_told() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "1000"]).push("/process/capabilities/bounding", "CAP_FLY");
    });
    let outcome = embed(&scene, "warnings", &c, &[]).ok();
    assert_eq!(outcome.stderr, "", "{outcome}");
    scene.is_clean();
}

#[test]
fn a_lack_of_memory_is_told() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    skip_unless!(has_controller("memory"), "no memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["alloc", "64"])
            .set("/linux/resources/memory", json!({"limit": 16 << 20, "swap": 16 << 20}));
    });
    embed(&scene, "out-of-memory", &c, &[]).ok();
    scene.is_clean();
}

#[test]
fn who_forgets_the_first_call_is_told_so_and_who_cannot_make_it_names_a_program() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let c = scene.payload(&["exit", "5"]);
    embed(&scene, "forgetful", &c, &[]).ok();
    embed(&scene, "foreign-helper", &c, &[env!("CARGO_BIN_EXE_run_bundle")]).ok();
    no_helper_is_left(&scene);
    scene.is_clean();
}

fn example(scene: &Scene, program: &str, args: &[&str]) -> Runner {
    Runner::new(program)
        .env("DHOW_ROOT", scene.state_dir().to_str().unwrap())
        .env(TAG, scene.tag())
        .args(args)
}

#[test]
fn the_example_that_runs_a_bundle() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let run_bundle = env!("CARGO_BIN_EXE_run_bundle");
    let run = |c: &Container<'_>| example(&scene, run_bundle, &[c.id(), c.bundle().to_str().unwrap()]).run();
    let good = scene.payload(&["echo", "hello", "--", "exit", "9"]);
    run(&good).exits(9).says("hello");
    let missing = scene.container(|c| {
        c.args(&["/no/such/program"]);
    });
    let outcome = run(&missing).exits(127);
    assert!(outcome.stderr.contains("exec: \"/no/such/program\": no such file or directory"), "{outcome}");
    no_helper_is_left(&scene);
    scene.is_clean();
}

#[test]
fn the_example_that_supervises() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    // Fails twice and then ends well: it counts its lives in a file.
    let script = "echo x >> /data/lives; test $(cat /data/lives | wc -l) -ge 3";
    let data = scene.dir().join("data");
    fs::create_dir(&data).unwrap();
    let mended = with_shell(&scene, script, Some(&data));
    let hopeless = with_shell(&scene, "exit 4", None);
    let words = [&mended, &hopeless].map(|c| format!("{}={}", c.id(), c.bundle().display()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = example(&scene, env!("CARGO_BIN_EXE_supervisor"), &words).run().exits(1);
    let count = |line: &str| outcome.stdout.lines().filter(|found| *found == line).count();
    assert_eq!(count(&format!("{}: ended with 1", mended.id())), 2, "{outcome}");
    assert_eq!(count(&format!("{}: done", mended.id())), 1, "{outcome}");
    assert_eq!(count(&format!("{}: ended with 4", hopeless.id())), 5, "{outcome}");
    assert_eq!(count(&format!("{}: given up after 5 failures", hopeless.id())), 1, "{outcome}");
    no_helper_is_left(&scene);
    scene.is_clean();
}

fn with_shell<'s>(scene: &'s Scene, script: &str, data: Option<&Path>) -> Container<'s> {
    let c = scene.container(|c| {
        c.args(&["/bin/busybox", "sh", "-c", script]);
        if let Some(data) = data {
            c.bind(data, "/data", &["bind", "rw"]);
        }
    });
    let c = c.with_busybox();
    std::os::unix::fs::symlink("busybox", c.rootfs().join("bin/wc")).unwrap();
    c
}

#[test]
fn the_example_that_unpacks_an_image() {
    skip_unless!(is_dhow(), "the library is dhow's own");
    let scene = Scene::new();
    let archive = scene.dir().join("demo.tar");
    let below = image::base(scene.payload_program()).file("etc/motd", "old\n").file("etc/gone", "x");
    let above = image::Layer::default().directory("etc").file("etc/motd", "new\n").file("etc/.wh.gone", "");
    image::save(&archive, "demo", &[below, above], &json!({"Cmd": ["/payload", "exit", "6"]}));
    let out = scene.dir().join("out");
    let words = [archive.to_str().unwrap(), out.to_str().unwrap()];
    let unpack_image = env!("CARGO_BIN_EXE_unpack_image");
    let outcome = example(&scene, unpack_image, &words).run().ok();
    assert!(outcome.stdout.starts_with("docker.io/library/demo:latest: 2 layers, "), "{outcome}");
    assert_eq!(fs::read_to_string(out.join("rootfs/etc/motd")).unwrap(), "new\n");
    assert!(!out.join("rootfs/etc/gone").exists() && !out.join("rootfs/etc/.wh.gone").exists());
    assert_eq!(fs::read_link(out.join("rootfs/bin/sh")).unwrap(), Path::new("busybox"));
    let bundle = out.join("bundle");
    let id = format!("{}-image", scene.tag());
    example(&scene, env!("CARGO_BIN_EXE_run_bundle"), &[&id, bundle.to_str().unwrap()]).run().exits(6);
    example(&scene, unpack_image, &words).run().fails(&["unpack the image", "is not empty"]);
    // The same by the command.
    let again = scene.dir().join("again");
    scene.dhow(["image", "unpack", "demo", again.to_str().unwrap()]).run().ok();
    assert_eq!(fs::read_to_string(again.join("etc/motd")).unwrap(), "new\n");
    no_helper_is_left(&scene);
    scene.is_clean();
}
