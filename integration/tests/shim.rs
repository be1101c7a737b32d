//! `containerd-shim-dhow-v2` under real containerds: Debian stable's, which is installed, and the
//! newer one of the sid folder (integration/peers.sh engines). What is not there is skipped by name.

use dhow_integration::command::workspace;
use dhow_integration::containerd::{Engine, IMAGE, SHIM, SOCKETS, Which, can_be_tried};
use dhow_integration::{Runner, Scene, eventually, machine, skip_unless};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What is measured runs alone; everything else side by side.
static QUIET: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// Tries something with every containerd that is there.
fn with_each(story: impl Fn(Engine<'_>)) {
    let _company = QUIET.read();
    for which in Which::ALL {
        if which.is_there() {
            let scene = Scene::new();
            story(Engine::new(&scene, which));
        } else {
            eprintln!("no containerd in {} (integration/peers.sh engines)", which.folder().display());
        }
    }
}

macro_rules! needs {
    () => {
        skip_unless!(can_be_tried(), "no containerd, no shim in bin, or not the machine's own cgroup layout");
    };
}

#[test]
fn a_container_lives_and_every_event_is_told_in_order() {
    needs!();
    with_each(|engine| {
        let events = engine.command(&["events"]).spawn();
        engine.run(&["--rm"], "once", &["/payload", "echo", "hello"]).ok().says("hello");
        engine.run(&["--rm"], "seven", &["/payload", "exit", "7"]).exits(7);
        engine.run(&["--detach"], "long", &["/payload", "signal-wait"]).ok();
        let status = |word: &str| {
            let listed = engine.ctr(&["task", "ls"]);
            listed.stdout.lines().any(|line| line.contains("long") && line.contains(word))
        };
        assert!(status("RUNNING"));
        engine.ctr(&["task", "exec", "--exec-id", "e1", "long", "/payload", "echo", "in"]).says("in");
        engine.try_ctr(&["task", "exec", "--exec-id", "e2", "long", "/payload", "exit", "8"]).exits(8);
        let ps = engine.ctr(&["task", "ps", "long"]);
        assert_eq!(ps.stdout.lines().count(), 2, "{ps}");
        let used = engine.ctr(&["task", "metrics", "long"]);
        assert!(used.line("memory.usage_in_bytes").split_whitespace().last() > Some("0"), "{used}");
        assert_eq!(used.line("pids.current").trim(), "1", "{used}");
        engine.ctr(&["task", "pause", "long"]);
        assert!(status("PAUSED"));
        engine.ctr(&["task", "resume", "long"]);
        engine.ctr(&["task", "kill", "--signal", "SIGTERM", "long"]);
        eventually("the task stops", || status("STOPPED"));
        engine.ctr(&["task", "delete", "long"]);
        engine.ctr(&["container", "delete", "long"]);
        let of_long = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| line.contains("/tasks/") && line.contains("\"long\""));
            let topics =
                lines.filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("/tasks/")));
            topics.map(str::to_owned).collect()
        };
        let expected = [
            "create",
            "start",
            "exec-added",
            "exec-started",
            "exit",
            "exec-added",
            "exec-started",
            "exit",
            "paused",
            "resumed",
            "exit",
            "delete",
        ];
        eventually("all events came", || of_long(&events.stdout()).len() >= expected.len());
        assert_eq!(of_long(&events.stdout()), expected);
        let _ = kill(Pid::from_raw(events.pid()), Signal::SIGTERM);
        events.wait();
        engine.finish();
    });
}

#[test]
fn input_ends_output_goes_to_files_and_terminals_are_terminals() {
    needs!();
    skip_unless!(machine::has_program("script"), "no script program (bsdutils) to give ctr a terminal");
    with_each(|engine| {
        let text = "a line\n".repeat(20_000);
        let cat = engine.to_run(&["--rm"], "cat", &["/bin/cat"]).input(&text).run().ok();
        assert_eq!(cat.stdout.len(), text.len());
        let log = engine.scene.dir().join("logs/out.log");
        let uri = format!("file://{}", log.display());
        let words = ["/payload", "echo", "to the file", "--", "stderr", "this too"];
        engine.run(&["--detach", "--log-uri", &uri], "filed", &words).ok();
        eventually("the log is written", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("to the file\nthis too\n"))
        });
        eventually("it stopped", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
        engine.ctr(&["task", "delete", "filed"]);
        engine.ctr(&["container", "delete", "filed"]);
        logged_by_a_program(&engine);
        let line = |words: Vec<String>| {
            let all = [engine.which.words("ctr"), engine.global(), words].concat();
            engine.jail.run("script").args(["-qefc", &all.join(" "), "/dev/null"]).run()
        };
        let rest = ["--rm", "--tty", IMAGE, "term", "/payload", "tty"].map(str::to_owned).to_vec();
        let outcome = line([engine.running(), rest].concat()).ok();
        assert!(outcome.stdout.contains("isatty=true,true,true"), "{outcome}");
        engine.run(&["--detach"], "long", &["/payload", "signal-wait"]).ok();
        let words = ["task", "exec", "--tty", "--exec-id", "e", "long", "/payload", "tty"];
        let outcome = line(words.map(str::to_owned).to_vec()).ok();
        assert!(outcome.stdout.contains("isatty=true,true,true"), "{outcome}");
        engine.ctr(&["task", "delete", "--force", "long"]);
        engine.ctr(&["container", "delete", "long"]);
        engine.finish();
    });
}

/// `binary://`: the program is told whose output it gets, and gets all of it.
#[track_caller]
fn logged_by_a_program(engine: &Engine<'_>) {
    let (program, out) = (engine.scene.dir().join("logger"), engine.scene.dir().join("logged"));
    let script = format!(
        "#!/bin/sh\nexec 5>&-\nOUT={}\n{{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; }} >$OUT.new\n\
         mv $OUT.new $OUT\n",
        out.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?one=1", program.display());
    engine.run(&["--detach", "--log-uri", &uri], "logged", &["/payload", "echo", "said"]).ok();
    eventually("the logger has it", || out.exists());
    let expected = format!("logged {} one 1\nsaid\n", engine.scene.tag());
    assert_eq!(fs::read_to_string(&out).unwrap(), expected);
    eventually("it stopped", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
    engine.ctr(&["task", "delete", "logged"]);
    engine.ctr(&["container", "delete", "logged"]);
}

#[test]
fn one_small_shim_serves_a_pod() {
    needs!();
    with_each(|engine| {
        let pod = "--annotation=io.kubernetes.cri.sandbox-id=pod";
        for id in ["pod", "second", "third"] {
            engine.run(&["--detach", pod], id, &["/payload", "signal-wait"]).ok();
        }
        let shims = engine.shims();
        assert_eq!(shims.len(), 1, "{shims:?}");
        let status = fs::read_to_string(format!("/proc/{}/status", shims[0])).unwrap();
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", shims[0])).unwrap();
        let value = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
        };
        let (rss, threads) = (value(&status, "VmRSS"), value(&status, "Threads"));
        let private = value(&rollup, "Private_Clean") + value(&rollup, "Private_Dirty");
        let size = fs::metadata(workspace().join("bin").join(SHIM)).unwrap().len();
        eprintln!(
            "shim of 3 containers: {rss} kB RSS, {private} kB private, {threads} threads, {size} bytes"
        );
        assert!(rss <= 5 * 1024 && private <= 1024 && threads <= 4 && size < 4 << 20);
        for id in ["second", "third", "pod"] {
            assert_eq!(engine.shims(), shims, "the shim stays as long as the pod");
            engine.ctr(&["task", "delete", "--force", id]);
            engine.ctr(&["container", "delete", id]);
        }
        engine.finish();
    });
}

#[test]
fn killed_shims_leave_nothing_and_killed_containerds_find_their_containers() {
    needs!();
    with_each(|mut engine| {
        for id in ["a", "b", "c"] {
            engine.run(&["--detach"], id, &["/payload", "signal-wait"]).ok();
        }
        engine.end(Signal::SIGKILL);
        assert_eq!(engine.shims().len(), 3);
        engine.begin();
        let listed = engine.ctr(&["task", "ls"]);
        assert_eq!(listed.stdout.matches("RUNNING").count(), 3, "{listed}");
        engine.ctr(&["task", "exec", "--exec-id", "e", "a", "/payload", "echo", "again"]).says("again");
        engine.try_ctr(&["task", "kill", "--signal", "SIGKILL", "a"]).ok();
        eventually("its end is seen", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
        engine.ctr(&["task", "delete", "--force", "a"]);
        for shim in engine.shims() {
            kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
        }
        eventually("containerd has cleaned up", || {
            !engine.ctr(&["task", "ls", "-q"]).stdout.lines().any(|line| line == "b" || line == "c")
        });
        for id in ["a", "b", "c"] {
            engine.ctr(&["container", "delete", id]);
        }
        engine.finish();
    });
}

#[test]
fn memory_that_runs_out_is_told_before_the_end() {
    needs!();
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    with_each(|engine| {
        let events = engine.command(&["events"]).spawn();
        let limit = ["--rm", "--memory-limit", "16777216"];
        let outcome = engine.run(&limit, "hungry", &["/payload", "alloc", "64"]);
        assert_eq!(outcome.code, 137, "{outcome}");
        let has = |topic: &str| events.stdout().find(topic);
        eventually("both events came", || has("/tasks/oom").is_some() && has("/tasks/exit").is_some());
        assert!(has("/tasks/oom") < has("/tasks/exit"), "{}", events.stdout());
        let _ = kill(Pid::from_raw(events.pid()), Signal::SIGTERM);
        events.wait();
        engine.finish();
    });
}

#[test]
fn options_and_layers_are_heeded() {
    needs!();
    with_each(|engine| {
        let options = engine.scene.dir().join("containerd/options.toml");
        let cgroup = format!("{}-shims", engine.scene.tag());
        let more = format!("IoUid = 1000\nIoGid = 1001\nShimCgroup = \"/{cgroup}\"\nNoPivotRoot = true\n");
        fs::OpenOptions::new().append(true).open(&options).unwrap().write_all(more.as_bytes()).unwrap();
        // The last --snapshotter counts.
        let layers = ["--snapshotter", "overlayfs", "--detach"];
        let log = engine.scene.dir().join("out.fifo");
        Runner::new("mkfifo").args([log.to_str().unwrap()]).run().ok();
        let reader = Runner::new("cat").args([log.to_str().unwrap()]).spawn();
        let uri = format!("fifo://{}", log.display());
        let script =
            "ls -lnL /proc/self/fd/1; cat /proc/self/mountinfo; echo all is said; exec /payload signal-wait";
        let words = ["/bin/sh", "-c", script];
        engine.run(&[&layers[..], &["--log-uri", &uri]].concat(), "layered", &words).ok();
        eventually("it says all", || reader.stdout().contains("all is said"));
        let said = reader.stdout();
        // The user is the payload's own in the end, as with runc; the group stays.
        let pipe = said.split_whitespace().nth(3);
        assert_eq!(pipe, Some("1001"), "the pipe has its owner: {said}");
        assert!(said.lines().any(|line| line.contains(" / ") && line.contains("- overlay ")), "{said}");
        let state = engine.scene.dir().join("runtime").join(engine.scene.tag()).join("layered");
        assert!(state.exists(), "--root is what the options say");
        let shim = engine.shims()[0];
        let cgroups = fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap();
        assert!(cgroups.contains(&cgroup), "{cgroups}");
        engine.ctr(&["task", "delete", "--force", "layered"]);
        engine.ctr(&["container", "delete", "layered"]);
        reader.wait();
        engine.finish();
    });
}

/// Containers come and go, and meanwhile shims, commands of the runtime and containerd are killed.
#[test]
fn kills_under_load_leave_nothing() {
    needs!();
    with_each(|mut engine| {
        let over = std::sync::atomic::AtomicBool::new(false);
        let go_on = || !over.load(std::sync::atomic::Ordering::Relaxed);
        for _ in 0..2 {
            std::thread::scope(|scope| {
                for worker in 0..4 {
                    let (engine, go_on) = (&engine, &go_on);
                    scope.spawn(move || {
                        for round in 0.. {
                            if !go_on() {
                                break;
                            }
                            let id = format!("w{worker}-{round}-{}", std::process::id());
                            // Whatever becomes of it.
                            let _ = engine.run(&["--rm"], &id, &["/payload", "sleep", "0.3"]);
                        }
                    });
                }
                for round in 0..12 {
                    std::thread::sleep(Duration::from_millis(250));
                    let victims = if round % 3 == 2 { engine.commands() } else { engine.shims() };
                    // Nobody would go on with the work of one that cleans up.
                    let cleans_up = |pid: &&i32| {
                        fs::read(format!("/proc/{pid}/cmdline"))
                            .is_ok_and(|line| line.ends_with(b"\0delete\0"))
                    };
                    if let Some(victim) = victims.iter().find(|pid| !cleans_up(pid)) {
                        let _ = kill(Pid::from_raw(*victim), Signal::SIGKILL);
                    }
                }
                let daemon = engine.daemon.as_ref().unwrap().pid();
                kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
                over.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            engine.end(Signal::SIGKILL);
            engine.begin();
            over.store(false, std::sync::atomic::Ordering::Relaxed);
        }
        eventually("all can be deleted", || {
            for id in engine.ctr(&["task", "ls", "-q"]).stdout.lines() {
                let _ = engine.try_ctr(&["task", "delete", "--force", id]);
            }
            for id in engine.ctr(&["container", "ls", "-q"]).stdout.lines() {
                let _ = engine.try_ctr(&["container", "delete", id]);
            }
            engine.ctr(&["container", "ls", "-q"]).stdout.trim().is_empty()
        });
        engine.finish();
    });
}

/// Asks the shim itself, as containerd would.
fn ask(dir: &Path, id: &str, most: Option<&str>, input: &[u8]) -> Vec<u8> {
    use std::process::{Command, Stdio};
    let mut command = Command::new(workspace().join("bin").join(SHIM));
    command.args([
        "-namespace",
        "n",
        "-address",
        dir.to_str().unwrap(),
        "-publish-binary",
        "x",
        "-id",
        id,
        "start",
    ]);
    command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).env_remove("MAX_SHIM_VERSION");
    if let Some(most) = most {
        command.env("MAX_SHIM_VERSION", most);
    }
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn it_says_where_it_is_in_every_form() {
    needs!();
    let scene = Scene::new();
    let dir = scene.dir().join("bundle");
    fs::create_dir(&dir).unwrap();
    let id = scene.tag();
    let plain = String::from_utf8(ask(&dir, id, None, b"")).unwrap();
    let socket = PathBuf::from(plain.strip_prefix("unix://").unwrap());
    assert!(socket.starts_with(SOCKETS));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(Path::new(SOCKETS)), mode(&socket)), (0o711, 0o600));
    assert_eq!(fs::read_to_string(dir.join("address")).unwrap(), plain);
    let json: serde_json::Value = serde_json::from_slice(&ask(&dir, id, Some("3"), b"")).unwrap();
    assert_eq!(json, serde_json::json!({"version": 3, "address": plain, "protocol": "ttrpc"}));
    let field =
        |tag: u8, text: &str| [&[tag << 3 | 2, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let input = [field(1, id), field(2, "n"), field(5, "/nowhere")].concat();
    let expected = [vec![8, 3], field(2, &plain), field(3, "ttrpc")].concat();
    assert_eq!(ask(&dir, id, Some("3"), &input), expected);
    let shims = Runner::new("pgrep").args(["-f", &format!("{SHIM} .*{id}")]).run().ok();
    assert_eq!(shims.stdout.lines().count(), 1, "one shim for the three: {shims}");
    Runner::new("kill").args([shims.stdout.trim()]).run().ok();
    eventually("its socket goes with it", || !socket.exists());
    let info = Runner::new(workspace().join("bin").join(SHIM)).args(["-info"]).input("").run().ok();
    assert!(info.stdout.contains("io.containerd.dhow.v2") && info.stdout.contains("ociVersionMin"), "{info}");
}

/// What a script in `integration/engines` has found wanting; it must have tried so many features.
#[track_caller]
fn lacks(words: &[&str], least: usize) -> String {
    let _company = QUIET.read();
    let script = workspace().join("integration/engines").join(words[0]);
    let said = Runner::new(script).args(&words[1..]).limit(Duration::from_secs(300)).run();
    let count = |word: &str| said.stdout.lines().filter(|line| line.starts_with(word)).count();
    assert!(count("ok ") >= least, "{said}");
    let failed: Vec<_> = said.stdout.lines().filter(|line| line.starts_with("FAIL ")).collect();
    failed.join("\n")
}

#[test]
fn every_containerd_has_its_features_by_path_and_by_shim() {
    needs!();
    for (which, name) in [(Which::Installed, "stable"), (Which::Trixie, "trixie"), (Which::Sid, "sid")] {
        for mode in ["shim", "path"] {
            if which.is_there() {
                assert_eq!(lacks(&["containerd.sh", name, mode], 32), "", "{name} {mode}");
            }
        }
    }
}

#[test]
fn docker_runs_on_dhow_by_path_and_by_shim() {
    needs!();
    let sid = Which::Sid.folder();
    skip_unless!(sid.join("usr/sbin/dockerd").exists(), "no dockerd in the sid folder (peers.sh docker)");
    assert_eq!(lacks(&["docker.sh", "sid", "path"], 70), "");
    assert_eq!(lacks(&["docker.sh", "sid", "shim"], 70), "");
}

#[test]
fn an_older_docker_runs_on_dhow() {
    needs!();
    let there = Which::Sid.folder().join("../docker-stable/usr/sbin/dockerd").exists();
    skip_unless!(there && machine::has_program("iptables"), "no dockerd (peers.sh docker), or no iptables");
    assert_eq!(lacks(&["docker.sh", "stable", "path"], 60), "");
}

#[test]
fn podman_and_buildah_of_sid_run_on_dhow() {
    needs!();
    let there = Which::Sid.folder().join("usr/bin/podman").exists();
    skip_unless!(there, "no podman in the sid folder (peers.sh engines)");
    assert_eq!(lacks(&["podman.sh"], 80), "");
}

/// Fifty containers, by turns with containerd's own shim and runc: how long each takes, in the middle.
fn by_turns(engine: &Engine<'_>, series: u32) -> [Duration; 2] {
    // overlayfs, which is containerd's own choice: native copies the image for each, whatever the shim.
    let of_runc = ["run", "--snapshotter", "overlayfs", "--rm"];
    let of_dhow = ["--snapshotter", "overlayfs", "--rm"];
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..50 {
        let id = |who: &str| format!("{who}{series}-{round}");
        let begun = Instant::now();
        engine.run(&of_dhow, &id("d"), &["/payload", "exit", "0"]).ok();
        times[0].push(begun.elapsed());
        let begun = Instant::now();
        engine.command(&of_runc).args([IMAGE, &id("r"), "/payload", "exit", "0"]).run().ok();
        times[1].push(begun.elapsed());
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

#[test]
fn containers_start_faster_than_with_runc_and_its_shim() {
    needs!();
    skip_unless!(machine::has_program("runc"), "runc is not installed");
    let _alone = QUIET.write();
    let scene = Scene::new();
    let engine = Engine::new(&scene, Which::Installed);
    // What else the machine does is in it: a series that was disturbed is measured again.
    let ratio = (0..3)
        .map(|series| {
            let [ours, theirs] = by_turns(&engine, series);
            let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
            eprintln!("ctr run --rm: dhow and its shim {ours:?}, runc and its shim {theirs:?}: {ratio:.2}");
            ratio
        })
        .find(|ratio| *ratio <= 0.7);
    assert!(ratio.is_some(), "three series took more than 0.7 of runc's time");
    engine.finish();
}

#[test]
fn a_crowd_of_short_lives_leaves_nothing() {
    needs!();
    with_each(|engine| {
        let many: u32 = std::env::var("DHOW_CROWD").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
        std::thread::scope(|scope| {
            for worker in 0..10 {
                let engine = &engine;
                scope.spawn(move || {
                    for round in 0..many / 10 {
                        let id = format!("w{worker}-{round}");
                        let seen = engine.run(&["--rm"], &id, &["/payload", "sleep", "1", "--", "exit", "3"]);
                        assert_eq!(seen.code, 3, "{seen}");
                    }
                });
            }
        });
        engine.finish();
    });
}
