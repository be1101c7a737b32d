//! What is asked of a shim by hand: under a real containerd what its own client cannot ask, and without
//! any what needs none.

use dhow_integration::bare::Bare;
use dhow_integration::containerd::{Engine, Which, can_be_tried};
use dhow_integration::ttrpc::{Client, SANDBOX, TASK};
use dhow_integration::{Runner, Scene, eventually, machine, needs_shim, skip_unless};
use dhow_shim_common::wire::{Message, Writer};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

macro_rules! needs {
    () => {
        skip_unless!(can_be_tried(), "no containerd, no shim in bin, or not the machine's own cgroup layout");
    };
}

/// A running container, and a connection to its shim.
fn running<'s>(scene: &'s Scene, words: &[&str]) -> (Engine<'s>, Client) {
    let engine = Engine::new(scene, Which::Installed);
    engine.run(&["--detach"], "c", words).ok();
    let client = engine.client("c");
    (engine, client)
}

#[track_caller]
fn finish(engine: Engine<'_>, id: &str) {
    let _ = engine.try_ctr(&["task", "delete", "--force", id]);
    let _ = engine.try_ctr(&["container", "delete", id]);
    engine.finish();
}

fn criu_works() -> bool {
    Command::new("criu").arg("check").output().is_ok_and(|output| output.status.success())
}

/// It counts into a file of its rootfs.
const COUNTING: [&str; 3] =
    ["/bin/sh", "-c", "i=0; while true; do i=$((i+1)); echo $i >/count; /bin/sleep 0.05; done"];

#[test]
fn a_checkpoint_comes_back_by_containerd_and_as_the_options_say() {
    needs!();
    skip_unless!(criu_works(), "there is no criu that works on this kernel (`criu check`)");
    let scene = Scene::new();
    let (engine, mut shim) = running(&scene, &COUNTING);
    let count_of = |id: &str| {
        let file = engine.bundles().join(id).join("rootfs/count");
        engine.jail.run("cat").args([file.to_str().unwrap()]).run().stdout.trim().parse::<u64>().ok()
    };
    eventually("it counts", || count_of("c").is_some_and(|count| count > 3));

    // By containerd: the container goes on, and another is made from its image and its files.
    let image = "localhost/checkpointed:latest";
    engine.ctr(&["container", "checkpoint", "--task", "--rw", "--image", "c", image]);
    // Between two writes the file is empty.
    let now = |id: &str| {
        let mut found = None;
        eventually("a count can be read", || {
            found = count_of(id);
            found.is_some()
        });
        found.unwrap()
    };
    let before = now("c");
    eventually("it goes on", || count_of("c").is_some_and(|count| count > before));

    // By hand: it ends, and the image is where the request says.
    let files = scene.dir().join("criu-image");
    fs::create_dir(&files).unwrap();
    let options = Writer::new().number(1, 1u32).number(2, 1u32).number(5, 1u32);
    let request = Writer::new().bytes(1, "c").bytes(2, files.to_str().unwrap()).any(
        3,
        "containerd.runc.v1.CheckpointOptions",
        options.finish(),
    );
    shim.ask(TASK, "Checkpoint", request).unwrap();
    assert!(files.join("inventory.img").exists());
    eventually("it ends", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
    let stopped_at = now("c");
    engine.ctr(&["task", "delete", "c"]);
    engine.ctr(&["container", "delete", "c"]);
    assert!(stopped_at > before);

    engine.ctr(&["container", "restore", "--live", "--rw", "back", image]);
    eventually("it counts on", || count_of("back").is_some_and(|count| count > before));
    let _ = engine.try_ctr(&["task", "kill", "--signal", "SIGKILL", "back"]);
    eventually("it ends", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
    finish(engine, "back");
}

#[test]
fn what_cannot_be_checkpointed_or_restored_is_told_and_leaves_nothing() {
    needs!();
    let scene = Scene::new();
    let (engine, mut shim) = running(&scene, &["/payload", "signal-wait"]);
    let request = |id: &str| Writer::new().bytes(1, id).bytes(2, "/proc/none");
    let (code, _) = shim.ask(TASK, "Checkpoint", request("other")).unwrap_err();
    assert_eq!(code, 5, "NotFound");
    let (_, said) = shim.ask(TASK, "Checkpoint", request("c")).unwrap_err();
    assert!(said.contains("dhow checkpoint failed"), "{said}");
    let state = shim.ask(TASK, "State", Writer::new().bytes(1, "c")).unwrap();
    assert_eq!(Message::read(&state).unwrap().number(4), 2, "it runs");
    finish(engine, "c");
}

#[test]
fn a_terminal_has_the_size_that_it_is_given() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.set("/process/terminal", true).payload(&["tty-wait-resize", "--", "signal-wait"]);
    });
    let out = scene.dir().join("out");
    let out_text = out.to_str().unwrap();
    bare.up(|request| request.number(4, 1u32).bytes(6, out_text));
    let about = bare.about();
    let said = |text: &str| fs::read_to_string(&out).is_ok_and(|said| said.contains(text));
    eventually("it waits", || said("ready"));
    bare.ask("ResizePty", about.number(3, 132u32).number(4, 43u32));
    eventually("it sees its size", || said("132x43") || said("43x132"));
    bare.finish();
}

#[test]
fn a_rootfs_comes_from_a_file_by_a_loop_device() {
    needs_shim!();
    skip_unless!(Path::new("/dev/loop-control").exists(), "no loop devices (/dev/loop-control)");
    skip_unless!(machine::has_program("mkfs.ext4"), "no mkfs.ext4 (e2fsprogs)");
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "cat", "/kept", "--", "signal-wait"]);
    });
    bare.container.file("/kept", "in the image", 0o644);
    let image = scene.dir().join("rootfs.ext4");
    let rootfs = bare.container.rootfs().to_str().unwrap().to_owned();
    let image_text = image.to_str().unwrap();
    Runner::new("mkfs.ext4").args(["-q", "-F", "-d", &rootfs, image_text, "32m"]).run().ok();
    fs::remove_file(bare.container.rootfs().join("kept")).unwrap();
    let mount = Writer::new().bytes(1, "ext4").bytes(2, image_text).bytes(4, "loop");
    let out = scene.dir().join("out");
    let out_text = out.to_str().unwrap();
    bare.up(|request| request.message(3, &mount).bytes(6, out_text));
    eventually("it reads its file", || {
        fs::read_to_string(&out).is_ok_and(|text| text.starts_with("in the image"))
    });
    let backs = |line: &str| line.contains(image_text);
    let devices = || -> Vec<String> {
        let all = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        all.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok()).collect()
    };
    assert!(devices().iter().any(|line| backs(line)));
    bare.finish();
    eventually("the device goes with the mount", || !devices().iter().any(|line| backs(line)));
}

#[test]
fn a_logger_that_is_slow_holds_nobody_up() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "echo", "said", "--", "signal-wait"]);
    });
    let (program, out) = (scene.dir().join("logger"), scene.dir().join("logged"));
    let script = format!(
        "#!/bin/sh\nwhile ! [ -e {0}.go ]; do sleep 0.02; done\nexec 5>&-\nexec cat <&3 >{0}\n",
        out.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}", program.display());
    let creation = bare.creation(|request| request.bytes(6, &uri));
    let creating = bare.shim.send(TASK, "Create", creation);
    let begun = Instant::now();
    let about = bare.about();
    bare.ask("Connect", about.clone());
    assert!(begun.elapsed() < Duration::from_secs(5), "others are served meanwhile");
    fs::write(out.with_extension("go"), "").unwrap();
    bare.shim.answer(creating).unwrap();
    bare.ask("Start", about);
    eventually("the logger has it", || fs::read_to_string(&out).is_ok_and(|text| text.starts_with("said\n")));
    bare.finish();
}

#[test]
fn metrics_are_of_the_layout() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "signal-wait"]);
    });
    bare.up(|request| request);
    let about = bare.about();
    let stats = bare.ask("Stats", about);
    let any = Message::read(Message::read(&stats).unwrap().bytes(1)).unwrap();
    let metrics = Message::read(any.bytes(2)).unwrap();
    let message = |tag| Message::read(metrics.bytes(tag)).unwrap();
    let is_v1 = ["memory", "cpuacct", "pids"]
        .iter()
        .any(|name| dhow_integration::cgroup::directory(name, "/").is_some_and(|(_, v2)| !v2));
    if is_v1 {
        assert_eq!(any.text(1), "io.containerd.cgroups.v1.Metrics");
        assert_eq!(message(2).number(1), 1, "one process");
        let usage = Message::read(message(4).bytes(33)).unwrap();
        assert!(usage.number(2) > 0, "memory is in use");
    } else {
        assert_eq!(any.text(1), "io.containerd.cgroups.v2.Metrics");
        // cpu.stat is there without the controller.
        assert!(message(2).number(1) > 0, "microseconds of CPU time");
        if machine::has_controller("pids") {
            assert_eq!(message(1).number(1), 1, "one process");
        }
        if machine::has_controller("memory") {
            assert!(message(4).number(32) > 0, "memory is in use");
        }
    }
    bare.finish();
}

/// A client's reader opens its fifos while the request is on its way: on a busy machine late, and not
/// at all once the process is deleted.
#[test]
fn output_waits_for_its_reader() {
    needs_shim!();
    for terminal in [false, true] {
        let scene = Scene::new();
        let mut bare = Bare::new(&scene, |config| {
            config.set("/process/terminal", terminal).payload(&["echo", "said"]);
        });
        let fifo = scene.dir().join("out.fifo");
        let fifo_text = fifo.to_str().unwrap().to_owned();
        Runner::new("mkfifo").args([&fifo_text]).run().ok();
        let (told, hears) = std::sync::mpsc::channel();
        let reader = fifo_text.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            told.send(fs::read_to_string(reader).unwrap()).unwrap();
        });
        bare.up(|request| request.number(4, terminal).bytes(6, &fifo_text));
        let about = bare.about();
        bare.ask("Wait", about);
        bare.finish();
        assert_eq!(hears.recv_timeout(Duration::from_secs(15)).as_deref(), Ok("said\n"), "{terminal}");
    }
}

/// containerd's sandbox service, all of it: a pod that the client describes itself, by config.json, and one
/// that the shim makes.
#[test]
fn a_pod_answers_all_that_it_is_asked() {
    needs_shim!();
    for is_described in [true, false] {
        let scene = Scene::new();
        let mut bare = Bare::new(&scene, |config| {
            config.args(&["/payload", "signal-wait"]);
        });
        let bundle = bare.container.bundle().to_owned();
        if !is_described {
            fs::remove_file(bundle.join("config.json")).unwrap();
        }
        let socket = bare.shim.ask(TASK, "Connect", bare.about()).unwrap();
        let shim = Message::read(&socket).unwrap().number(1);
        let about = bare.about();
        let creation = about.clone().bytes(2, bundle.to_str().unwrap());
        let refused = |bare: &mut Bare<'_>, method: &str, request: &Writer| {
            bare.shim.ask(SANDBOX, method, request.clone()).unwrap_err().0
        };
        for method in
            ["StartSandbox", "StopSandbox", "WaitSandbox", "SandboxStatus", "PingSandbox", "SandboxMetrics"]
        {
            assert_eq!(refused(&mut bare, method, &about), 5, "{method}: NotFound");
        }
        let pod = |bare: &mut Bare<'_>, method: &str, request: &Writer| {
            bare.shim
                .ask(SANDBOX, method, request.clone())
                .unwrap_or_else(|error| panic!("{method}: {error:?}"))
        };
        pod(&mut bare, "CreateSandbox", &creation);
        assert_eq!(refused(&mut bare, "CreateSandbox", &creation), 6, "AlreadyExists");
        let state = |bare: &mut Bare<'_>| {
            let status = pod(bare, "SandboxStatus", &about.clone().number(2, 1u32));
            let status = Message::read(&status).unwrap();
            assert!(status.pairs(4).any(|(name, text)| name == "info" && text.contains("dhow")));
            (status.text(3).to_owned(), status.number(2))
        };
        assert_eq!(state(&mut bare).0, "SANDBOX_NOTREADY");
        let started = pod(&mut bare, "StartSandbox", &about);
        let started = Message::read(&started).unwrap();
        let process = started.number(1);
        assert!(started.message(2).number(1) > 0, "it says when");
        assert_eq!(refused(&mut bare, "StartSandbox", &about), 9, "FailedPrecondition");
        assert_eq!(state(&mut bare), ("SANDBOX_READY".to_owned(), process));
        let words = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap();
        assert_eq!(words.starts_with("/pause\0"), !is_described, "{words}");
        pod(&mut bare, "PingSandbox", &about);
        let platform = pod(&mut bare, "Platform", &about);
        assert_eq!(Message::read(&platform).unwrap().message(1).text(1), "linux");
        let metrics = pod(&mut bare, "SandboxMetrics", &about);
        let metrics = Message::read(&metrics).unwrap();
        assert_eq!(metrics.message(1).text(2), bare.container.id());
        assert!(metrics.message(1).message(3).text(1).starts_with("io.containerd.cgroups."));
        let waits = bare.shim.send(SANDBOX, "WaitSandbox", about.clone());
        pod(&mut bare, "StopSandbox", &about);
        let end = bare.shim.answer(waits).unwrap();
        assert_eq!(Message::read(&end).unwrap().number(1), 137);
        assert_eq!(state(&mut bare), ("SANDBOX_NOTREADY".to_owned(), 0));
        pod(&mut bare, "StopSandbox", &about);
        pod(&mut bare, "ShutdownSandbox", &about);
        eventually("the shim has gone", || {
            fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default().is_empty()
        });
        assert!(!Path::new("/run/containerd/dhow/n").join(bare.container.id()).exists());
        let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!left.contains(scene.tag()), "no mount stays");
        drop(bare);
        scene.is_clean();
    }
}
