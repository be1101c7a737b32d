//! What a shim must bear: nonsense on its socket, requests in the wrong order, readers that stop, a
//! runtime that hangs, a bundle that goes away.

use dhow_integration::bare::{self, Bare};
use dhow_integration::ttrpc::{Client, TASK};
use dhow_integration::{Runner, Scene, eventually, holds_within, machine, needs_shim, skip_unless};
use dhow_shim_common::wire::{Message, Writer};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// gRPC's codes.
const INVALID: u64 = 3;
const NOT_FOUND: u64 = 5;
const EXISTS: u64 = 6;
const PRECONDITION: u64 = 9;
const UNIMPLEMENTED: u64 = 12;

/// The shim's pid, as it says itself.
#[track_caller]
fn pid(bare: &mut Bare<'_>) -> u64 {
    let about = bare.about();
    let answer = bare.ask("Connect", about);
    Message::read(&answer).unwrap().number(1)
}

/// Kilobytes of memory, and clock ticks of CPU time.
#[track_caller]
fn used(pid: u64) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    (line.split_whitespace().next().unwrap().parse().unwrap(), ticks(11) + ticks(12))
}

/// A container that waits for signals.
fn waiting<'s>(scene: &'s Scene) -> Bare<'s> {
    let mut bare = Bare::new(scene, |config| {
        config.args(&["/payload", "signal-wait"]);
    });
    bare.up(|request| request);
    bare
}

#[track_caller]
fn refused(bare: &mut Bare<'_>, method: &str, request: &Writer, code: u64) {
    let answer = bare.shim.ask(TASK, method, request.clone());
    assert_eq!(answer.as_ref().map_err(|(code, _)| *code), Err(code), "{method}: {answer:?}");
}

/// The `process` document of an exec.
fn exec(bare: &Bare<'_>, id: &str, words: &[&str]) -> Writer {
    let process = serde_json::json!({ "args": words, "cwd": "/", "user": { "uid": 0, "gid": 0 } });
    bare.about().bytes(2, id).any(7, "types/process", process.to_string())
}

fn frame(length: usize, kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(length).unwrap().to_be_bytes();
    [&length[..], &7u32.to_be_bytes(), &[kind, 0], payload].concat()
}

#[test]
fn nonsense_on_the_socket_harms_nobody() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    let place = bare.socket();
    let garbage: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        frame(4, 1, &[0xff; 4]),
        frame(4, 2, &[0xff; 4]),
        frame(0, 1, b""),
        frame((4 << 20) + 1, 1, b"too long"),
        frame(1 << 20, 1, b"cut off"),
        b"\0\0".to_vec(),
    ];
    for bytes in &garbage {
        let mut stream = UnixStream::connect(&place).unwrap();
        stream.write_all(bytes).unwrap();
        // What it has to say to that, if anything; then the end, or the patience's.
        let _ = stream.set_read_timeout(Some(Duration::from_millis(50)));
        let _ = stream.read(&mut [0; 4096]);
    }
    // The longest message that may be, which is none.
    let mut stream = UnixStream::connect(&place).unwrap();
    stream.write_all(&frame(4 << 20, 1, &vec![0xff; 4 << 20])).unwrap();
    drop(stream);
    // A service and methods that nobody has.
    let about = bare.about();
    for (service, method) in [("no.Such", "State"), (TASK, "NoSuch"), ("", "")] {
        let code = bare.shim.ask(service, method, about.clone()).unwrap_err().0;
        assert_eq!(code, UNIMPLEMENTED, "{service}/{method}");
    }
    assert_eq!(bare.shim.ask(TASK, "State", Writer::raw(vec![0xff])).unwrap_err().0, INVALID);
    bare.ask("State", about);
    let (memory, _) = used(shim);
    assert!(memory < 5 * 1024, "{memory} kB");
    bare.finish();
}

#[test]
fn connections_that_are_too_many_wait_for_their_turn() {
    needs_shim!();
    skip_unless!(machine::has_program("prlimit"), "no prlimit program (util-linux)");
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    let place = bare.socket();
    Runner::new("prlimit").args(["--pid", &shim.to_string(), "--nofile=64:64"]).run().ok();
    let many: Vec<_> = (0..100).map_while(|_| UnixStream::connect(&place).ok()).collect();
    assert!(many.len() > 64, "{}", many.len());
    let about = bare.about();
    bare.ask("State", about.clone());
    let before = used(shim).1;
    std::thread::sleep(Duration::from_millis(500));
    let ticks = used(shim).1 - before;
    assert!(ticks < 10, "it does not turn round and round: {ticks} ticks in half a second");
    drop(many);
    bare.ask("State", about);
    let mut late = Client::of(bare.container.bundle());
    late.ask(TASK, "State", bare.about()).unwrap();
    drop(late);
    bare.finish();
}

#[test]
fn who_reads_no_answers_is_not_read_from() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    let request = Writer::new().bytes(1, TASK).bytes(2, "State").bytes(3, bare.about().finish()).finish();
    let request = frame(request.len(), 1, &request);
    let mut deaf = UnixStream::connect(bare.socket()).unwrap();
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let begun = Instant::now();
    let mut is_held_up = false;
    while !is_held_up && begun.elapsed() < Duration::from_secs(10) {
        is_held_up = deaf.write_all(&request).is_err();
    }
    assert!(is_held_up, "the shim took all that it was asked");
    let about = bare.about();
    bare.ask("State", about);
    let (memory, _) = used(shim);
    assert!(memory < 5 * 1024, "{memory} kB");
    drop(deaf);
    bare.finish();
}

#[test]
fn requests_come_in_any_order() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "signal-wait"]);
    });
    let about = bare.about();
    let none = about.clone().bytes(2, "none");
    for method in
        ["Start", "State", "Delete", "Kill", "Wait", "Pids", "Pause", "Stats", "CloseIO", "ResizePty"]
    {
        refused(&mut bare, method, &about, NOT_FOUND);
    }
    // While it is being made it is neither deleted nor made again.
    let creation = bare.creation(|request| request);
    let creating = bare.shim.send(TASK, "Create", creation.clone());
    let deleting = bare.shim.send(TASK, "Delete", about.clone());
    let again = bare.shim.send(TASK, "Create", creation.clone());
    bare.shim.answers(&[creating, deleting, again], &[0, PRECONDITION, EXISTS]);

    // An exec before its container is started, and what can be done with one that is not.
    let request = exec(&bare, "early", &["/payload", "signal-wait"]);
    bare.ask("Exec", request.clone());
    refused(&mut bare, "Exec", &request, EXISTS);
    let early = about.clone().bytes(2, "early");
    refused(&mut bare, "Kill", &early.clone().number(3, 15u32), PRECONDITION);
    let waits = bare.shim.send(TASK, "Wait", early.clone());
    bare.ask("Delete", early.clone());
    bare.shim.answer(waits).unwrap();
    for method in ["Start", "State", "Delete", "Kill", "Wait", "CloseIO", "ResizePty"] {
        refused(&mut bare, method, &none, NOT_FOUND);
    }
    let starting = [0; 2].map(|_| bare.shim.send(TASK, "Start", about.clone()));
    bare.shim.answers(&starting, &[0, PRECONDITION]);
    refused(&mut bare, "Start", &about, PRECONDITION);
    refused(&mut bare, "Delete", &about, PRECONDITION);
    let waits = bare.shim.send(TASK, "Wait", about.clone());
    bare.ask("Kill", about.clone().number(3, 9u32));
    let end = bare.shim.answer(waits).unwrap();
    assert_eq!(Message::read(&end).unwrap().number(1), 137);
    let request = exec(&bare, "late", &["/payload", "signal-wait"]);
    refused(&mut bare, "Exec", &request, PRECONDITION);
    refused(&mut bare, "Start", &about, PRECONDITION);
    refused(&mut bare, "Kill", &about.clone().number(3, 9u32), NOT_FOUND);
    let deleting = [0; 2].map(|_| bare.shim.send(TASK, "Delete", about.clone()));
    bare.shim.answers(&deleting, &[0, 0]);
    refused(&mut bare, "Wait", &about, NOT_FOUND);
    // All is as in the beginning.
    bare.ask("Create", creation);
    bare.finish();
}

#[test]
fn many_execs_at_once_all_end_and_say_all() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let names: Vec<String> = (0..64).map(|n| format!("e{n}")).collect();
    let out = |name: &str| scene.dir().join(format!("{name}.out"));
    for (n, name) in names.iter().enumerate() {
        let code = (n % 100).to_string();
        let request = exec(&bare, name, &["/payload", "echo", name, "--", "exit", &code]);
        bare.ask("Exec", request.bytes(5, out(name).to_str().unwrap()));
    }
    let about = bare.about();
    let process = |name: &str| about.clone().bytes(2, name);
    let starts: Vec<u32> = names.iter().map(|name| bare.shim.send(TASK, "Start", process(name))).collect();
    let waits: Vec<u32> = names.iter().map(|name| bare.shim.send(TASK, "Wait", process(name))).collect();
    let codes = vec![0; names.len()];
    bare.shim.answers(&starts, &codes);
    for (n, wait) in waits.into_iter().enumerate() {
        let end = bare.shim.answer(wait).unwrap();
        assert_eq!(Message::read(&end).unwrap().number(1), n as u64);
        let said = fs::read_to_string(out(&names[n])).unwrap();
        assert_eq!(said, format!("{}\n", names[n]));
        bare.ask("Delete", process(&names[n]));
    }
    bare.finish();
}

#[test]
fn a_storm_of_sizes_is_only_weather() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.set("/process/terminal", true).payload(&["tty-wait-resize", "--", "signal-wait"]);
    });
    let out = scene.dir().join("out");
    let out_text = out.to_str().unwrap();
    bare.up(|request| request.number(4, 1u32).bytes(6, out_text));
    let about = bare.about();
    let sizes: Vec<u32> = (0..1000u32)
        .map(|n| bare.shim.send(TASK, "ResizePty", about.clone().number(3, n).number(4, 70_000 - n)))
        .collect();
    let codes = vec![0; sizes.len()];
    bare.shim.answers(&sizes, &codes);
    bare.finish();
}

/// A reader that stops holds up nobody but the process whose output it does not read.
#[test]
fn readers_that_stop_hold_up_nobody_else() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let fifo = scene.dir().join("full.fifo");
    let fifo_text = fifo.to_str().unwrap();
    Runner::new("mkfifo").args([fifo_text]).run().ok();
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    // Endless, where nobody reads.
    let busybox = machine::program("busybox").expect("busybox-static");
    fs::copy(busybox, bare.container.rootfs().join("busybox")).unwrap();
    let request = exec(&bare, "loud", &["/busybox", "yes"]).bytes(5, fifo_text);
    bare.ask("Exec", request);
    let about = bare.about();
    let loud = about.clone().bytes(2, "loud");
    bare.ask("Start", loud.clone());
    let shim = pid(&mut bare);
    // Once all is full the shim sleeps.
    eventually("all is full", || {
        let before = used(shim).1;
        std::thread::sleep(Duration::from_millis(200));
        used(shim).1 == before
    });
    bare.ask("State", about);
    bare.ask("Kill", loud.clone().number(3, 9u32));
    let end = bare.ask("Wait", loud.clone());
    assert_eq!(Message::read(&end).unwrap().number(1), 137, "its end is told, whoever reads");
    bare.ask("Delete", loud);
    // What was said before is still there, a fifo's and a pipe's.
    let mut first = vec![0; 100_000];
    let mut reader = reader;
    reader.read_exact(&mut first).unwrap();
    assert_eq!(&first[..4], b"y\ny\n");
    drop(reader);
    bare.finish();
}

#[test]
fn a_runtime_that_hangs_or_is_missing_holds_up_nobody() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let program = scene.dir().join("hangs");
    fs::write(&program, format!("#!/bin/sh\necho $$ >{0}.pid\nexec sleep 1000\n", program.display()))
        .unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let other = scene.container(|config| {
        config.args(&["/payload", "signal-wait"]);
    });
    let creation = |program: &str| {
        let options = Writer::new().bytes(6, program).bytes(7, scene.state_dir().to_str().unwrap()).finish();
        let request = Writer::new().bytes(1, other.id()).bytes(2, other.bundle().to_str().unwrap());
        request.any(10, "containerd.runc.v1.Options", options)
    };
    let missing = bare.shim.ask(TASK, "Create", creation("/no/such/runtime")).unwrap_err();
    assert!(missing.1.contains("/no/such/runtime"), "{missing:?}");
    let hangs = bare.shim.send(TASK, "Create", creation(program.to_str().unwrap()));
    let note = program.with_extension("pid");
    eventually("it hangs", || fs::read_to_string(&note).is_ok_and(|text| text.ends_with('\n')));
    let about = bare.about();
    bare.ask("State", about);
    let hanging: i32 = fs::read_to_string(&note).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(hanging), nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = bare.shim.answer(hangs).unwrap_err();
    assert!(error.1.contains("create failed"), "{error:?}");
    bare.finish();
}

#[test]
fn a_container_whose_bundle_is_gone_can_be_ended() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let address = fs::read_to_string(bare.container.bundle().join("address")).unwrap();
    let request = exec(&bare, "e", &["/payload", "exit", "0"]);
    bare.ask("Exec", request);
    let kept = scene.dir().join("kept");
    fs::rename(bare.container.bundle(), &kept).unwrap();
    let about = bare.about();
    let process = about.clone().bytes(2, "e");
    assert!(bare.shim.ask(TASK, "Start", process.clone()).is_err(), "there is no place for its document");
    bare.ask("Delete", process);
    bare.ask("Pids", about.clone());
    bare.ask("Kill", about.clone().number(3, 9u32));
    bare.ask("Wait", about.clone());
    bare.ask("Delete", about);
    fs::rename(&kept, bare.container.bundle()).unwrap();
    assert_eq!(fs::read_to_string(bare.container.bundle().join("address")).unwrap(), address);
    let creation = bare.creation(|request| request);
    bare.ask("Create", creation);
    bare.finish();
}

/// `binary://` has a terminal's output as well.
#[test]
fn a_terminal_can_have_a_logging_program() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.set("/process/terminal", true).payload(&["tty", "--", "echo", "said", "--", "signal-wait"]);
    });
    let (program, out) = (scene.dir().join("logger"), scene.dir().join("logged"));
    let script = format!("#!/bin/sh\nexec 5>&-\nexec cat <&3 >{}\n", out.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}", program.display());
    bare.up(|request| request.number(4, 1u32).bytes(6, &uri));
    let said = || fs::read_to_string(&out).unwrap_or_default();
    eventually("the logger has it", || said().contains("said"));
    assert!(said().contains("isatty=true,true,true"), "{}", said());
    bare.finish();
}

/// The output of a process is not given to it as a file of the host's.
#[test]
fn a_log_is_no_file_of_the_containers() {
    needs_shim!();
    let scene = Scene::new();
    let log = scene.dir().join("log");
    let mut bare = Bare::new(&scene, |config| {
        config.payload(&["echo", "said", "--", "readlink", "/proc/self/fd/1", "--", "signal-wait"]);
    });
    let uri = format!("file://{}", log.display());
    bare.up(|request| request.bytes(6, &uri));
    let said = || fs::read_to_string(&log).unwrap_or_default();
    eventually("it says both", || said().lines().count() >= 2);
    assert!(said().starts_with("said\npipe:["), "{}", said());
    bare.finish();
}

/// A shim that has some output left to move on is still there when the next one of its name begins.
#[test]
fn a_shim_that_goes_leaves_the_next_one_alone() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let old = pid(&mut bare);
    let place = bare.socket();
    let fifo = scene.dir().join("full.fifo");
    let fifo_text = fifo.to_str().unwrap();
    Runner::new("mkfifo").args([fifo_text]).run().ok();
    let reader = fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let busybox = machine::program("busybox").expect("busybox-static");
    fs::copy(busybox, bare.container.rootfs().join("busybox")).unwrap();
    let request = exec(&bare, "loud", &["/busybox", "dd", "if=/dev/zero", "bs=100000", "count=1"]);
    bare.ask("Exec", request.bytes(5, fifo_text));
    let about = bare.about();
    let loud = about.clone().bytes(2, "loud");
    bare.ask("Start", loud.clone());
    bare.ask("Wait", loud);
    bare.ask("Kill", about.clone().number(3, 9u32));
    bare.ask("Wait", about.clone());
    bare.ask("Delete", about.clone());
    bare.ask("Shutdown", about);
    assert!(!place.exists(), "whoever hears that it goes does not find it");
    assert!(fs::exists(format!("/proc/{old}/exe")).unwrap(), "it has not gone yet");
    bare.begin();
    let creation = bare.creation(|request| request);
    bare.ask("Create", creation);
    eventually("the old one has gone", || {
        fs::read(format!("/proc/{old}/cmdline")).unwrap_or_default().is_empty()
    });
    assert!(place.exists(), "the new one's socket stays");
    let mut late = Client::of(bare.container.bundle());
    late.ask(TASK, "State", bare.about()).unwrap();
    drop(reader);
    bare.finish();
}

/// A containerd that was killed before it could ask for a container knows nothing of its shim. What the
/// shim does about that it says in containerd's log, which is a fifo in the bundle.
#[test]
fn a_shim_that_nobody_needs_goes() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |_| {});
    let place = bare.socket();
    let about = bare.about();
    bare.ask("Shutdown", about);
    let log = bare.container.bundle().join("log");
    Runner::new("mkfifo").args([log.to_str().unwrap()]).run().ok();
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    bare.begin();
    let shim = pid(&mut bare);
    let begun = Instant::now();
    let goes = holds_within(Duration::from_secs(60), || !place.exists());
    assert!(goes, "it is there after {:?}", begun.elapsed());
    assert!(begun.elapsed() > Duration::from_secs(20), "it has given containerd time");
    eventually("it has gone", || fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default().is_empty());
    let mut said = [0; 4096];
    let length = reader.read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]);
    assert!(said.starts_with("level=info msg=\"there has been no container for long"), "{said}");
    assert!(said.ends_with("runtime=io.containerd.dhow.v2\n"), "{said}");
}

/// `delete`, as containerd calls it when a shim is gone: by the names alone, should the shim have been
/// killed before it could note where it is.
#[test]
fn what_a_killed_shim_leaves_is_taken_away() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let place = bare.socket();
    let shim = i32::try_from(pid(&mut bare)).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let bundle = bare.container.bundle();
    fs::remove_file(bundle.join("address")).unwrap();
    eventually("it is gone", || UnixStream::connect(&place).is_err());
    assert!(place.exists());
    // It may have had dhow begin to make the container, and dhow may not have heard of its death yet.
    let words = ["-c", "while :; do sleep 0.1; done", "--bundle", bundle.to_str().unwrap()];
    let mut work = Runner::new("sh").args(words).spawn();
    let said = bare::delete(&bare.container);
    eventually("nobody makes anything in the bundle any more", || work.has_ended());
    assert_eq!(said.stdout.as_bytes().first(), Some(&8), "DeleteResponse has the pid: {said}");
    assert!(!place.exists(), "the socket goes");
    let _ = fs::remove_dir(scene.state_dir().join("n"));
    drop(bare);
    scene.is_clean();
}

/// The shim is killed while it, dhow and the init are at work on a container, a little later each time;
/// containerd calls `delete` as soon as it sees the connection end.
#[test]
fn a_shim_that_is_killed_at_any_moment_leaves_nothing() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "signal-wait"]);
    });
    let snapshot = scene.dir().join("snapshot");
    let rootfs = bare.container.rootfs();
    fs::rename(&rootfs, &snapshot).unwrap();
    fs::create_dir(&rootfs).unwrap();
    let mount = Writer::new().bytes(1, "bind").bytes(2, snapshot.to_str().unwrap()).bytes(4, "rbind");
    for round in 0..60u64 {
        let shim = i32::try_from(pid(&mut bare)).unwrap();
        bare.shim.send(TASK, "Create", bare.creation(|request| request.message(3, &mount)));
        bare.shim.send(TASK, "Start", bare.about());
        std::thread::sleep(Duration::from_micros(300 * round));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
        bare.shim.until_it_ends();
        bare::delete(&bare.container);
        let left: Vec<_> = fs::read_dir(&rootfs).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "round {round}: {left:?} in the rootfs");
        let state = scene.state_dir().join("n").join(bare.container.id());
        assert!(!state.exists(), "round {round}: {}", state.display());
        bare.begin();
    }
    bare.ask("Shutdown", bare.about());
    let _ = fs::remove_dir(scene.state_dir().join("n"));
    drop(bare);
    scene.is_clean();
}

/// A container that has been made, and whose terminal leads nowhere, is not there.
#[test]
fn what_has_a_terminal_that_leads_nowhere_is_not_left_running() {
    needs_shim!();
    let scene = Scene::new();
    let nowhere = scene.dir().join("no/such/place");
    let nowhere = nowhere.to_str().unwrap();
    let mut bare = Bare::new(&scene, |config| {
        config.set("/process/terminal", true).payload(&["signal-wait"]);
    });
    let creation = bare.creation(|request| request.number(4, 1u32).bytes(6, nowhere));
    let (_, said) = bare.shim.ask(TASK, "Create", creation).unwrap_err();
    assert!(said.contains(nowhere), "{said}");
    let state = scene.state_dir().join("n").join(bare.container.id());
    assert!(!state.exists(), "{}", state.display());
    bare.up(|request| request.number(4, 1u32));
    let process = serde_json::json!({
        "args": ["/payload", "signal-wait"], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "terminal": true,
    });
    let request = bare.about().bytes(2, "e").number(3, 1u32).bytes(5, nowhere);
    bare.ask("Exec", request.any(7, "types/process", process.to_string()));
    let process = bare.about().bytes(2, "e");
    let (_, said) = bare.shim.ask(TASK, "Start", process.clone()).unwrap_err();
    assert!(said.contains(nowhere), "{said}");
    eventually("it is alone", || Message::read(&bare.ask("Pids", bare.about())).unwrap().all(1).count() == 1);
    bare.ask("Delete", process);
    bare.finish();
}

/// Where bundles are there may be no room: the error says so, and what there is can be ended.
#[test]
fn a_bundle_on_a_full_disk_is_only_full() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "signal-wait"]);
    });
    let small = Small::new(&scene.dir().join("small"));
    let config = fs::read_to_string(bare.container.bundle().join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["root"]["path"] = bare.container.rootfs().to_str().unwrap().into();
    fs::write(small.0.join("config.json"), config.to_string()).unwrap();
    let creation = |bare: &Bare<'_>| bare.creation(|request| request.bytes(2, small.0.to_str().unwrap()));
    bare.ask("Create", creation(&bare));
    bare.ask("Start", bare.about());
    small.fill();
    let process = bare.about().bytes(2, "e");
    bare.ask("Exec", exec(&bare, "e", &["/payload", "exit", "0"]));
    let (_, said) = bare.shim.ask(TASK, "Start", process.clone()).unwrap_err();
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    bare.ask("Delete", process);
    bare.ask("Pids", bare.about());
    let other = Writer::new().bytes(1, bare.container.id()).bytes(2, "/no/image");
    let (_, said) = bare.shim.ask(TASK, "Checkpoint", other).unwrap_err();
    assert!(said.contains("/no/image") || said.contains("criu"), "dhow's own words: {said}");
    bare.ask("Kill", bare.about().number(3, 9u32));
    bare.ask("Wait", bare.about());
    bare.ask("Delete", bare.about());
    let (_, said) = bare.shim.ask(TASK, "Create", creation(&bare)).unwrap_err();
    assert!(said.to_lowercase().contains("no space left"), "{said}");
    drop(small);
    bare.up(|request| request);
    bare.finish();
}

/// A filesystem in memory with little room.
struct Small(PathBuf);

impl Small {
    fn new(place: &Path) -> Small {
        fs::create_dir(place).unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            place,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=64k"),
        )
        .unwrap();
        Small(place.to_owned())
    }

    /// Leaves no room at all.
    fn fill(&self) {
        let mut rest = fs::File::create(self.0.join("rest")).unwrap();
        while rest.write_all(&[0; 4096]).is_ok() {}
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn callers_that_have_gone_are_forgotten() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    let (before, _) = used(shim);
    for _ in 0..10 {
        let mut client = Client::of(bare.container.bundle());
        for _ in 0..2000 {
            client.send(TASK, "Wait", bare.about());
        }
        // It has taken all of them when it answers the last.
        client.ask(TASK, "State", bare.about()).unwrap();
    }
    bare.ask("State", bare.about());
    let (after, _) = used(shim);
    assert!(after < before + 200, "{before} kB have become {after} kB");
    bare.finish();
}

/// Somebody cleans /run up: who is connected goes on, and the shim does not stay when all have gone.
#[test]
fn a_shim_without_its_socket_goes_with_its_containers() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    fs::remove_file(bare.socket()).unwrap();
    bare.ask("State", bare.about());
    // containerd comes back, finds no shim, and cleans up.
    let Bare { container, shim: connection, .. } = bare;
    drop(connection);
    assert!(fs::exists(format!("/proc/{shim}/exe")).unwrap(), "it has a container");
    bare::delete(&container);
    eventually("it has gone", || fs::read(format!("/proc/{shim}/cmdline")).unwrap_or_default().is_empty());
    let _ = fs::remove_dir(scene.state_dir().join("n"));
    drop(container);
    scene.is_clean();
}

/// What many short execs leave: nothing in the bundle, no file, no memory.
#[test]
fn many_short_execs_leave_nothing() {
    needs_shim!();
    let scene = Scene::new();
    let mut bare = waiting(&scene);
    let shim = pid(&mut bare);
    let seen = |bare: &Bare<'_>| {
        let count = |place: PathBuf| fs::read_dir(place).unwrap().count();
        (count(bare.container.bundle().to_owned()), count(PathBuf::from(format!("/proc/{shim}/fd"))))
    };
    let mut before = None;
    for round in 0..12 {
        let processes: Vec<Writer> = (0..16)
            .map(|n| {
                let id = format!("e{round}-{n}");
                bare.ask("Exec", exec(&bare, &id, &["/payload", "exit", "3"]));
                bare.about().bytes(2, id)
            })
            .collect();
        let starts: Vec<u32> =
            processes.iter().map(|process| bare.shim.send(TASK, "Start", process.clone())).collect();
        bare.shim.answers(&starts, &[0; 16]);
        for process in processes {
            let end = bare.ask("Wait", process.clone());
            assert_eq!(Message::read(&end).unwrap().number(1), 3);
            bare.ask("Delete", process);
        }
        let now = (seen(&bare), used(shim).0);
        let (files, memory) = *before.get_or_insert(now);
        assert_eq!(now.0, files, "entries of the bundle, open files");
        assert!(now.1 < memory + 200, "{memory} kB have become {} kB", now.1);
    }
    bare.finish();
}

#[test]
fn a_container_full_of_processes_is_killed() {
    needs_shim!();
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    let scene = Scene::new();
    let mut bare = Bare::new(&scene, |config| {
        config.args(&["/payload", "signal-wait"]).set("/linux/resources/pids/limit", 20);
    });
    bare.up(|request| request);
    // A shell ends when it cannot fork; what it has begun stays.
    let busybox = machine::program("busybox").expect("busybox-static");
    fs::copy(busybox, bare.container.rootfs().join("busybox")).unwrap();
    let process = bare.about().bytes(2, "e");
    bare.ask("Exec", exec(&bare, "e", &["/busybox", "sh", "-c", "while :; do /payload sleep 1000 & done"]));
    bare.ask("Start", process.clone());
    let end = bare.ask("Wait", process);
    assert_eq!(Message::read(&end).unwrap().number(1), 2);
    let pids = bare.ask("Pids", bare.about());
    assert_eq!(Message::read(&pids).unwrap().all(1).count(), 19);
    let about = bare.about();
    bare.ask("Kill", about.clone().number(3, 9u32));
    let end = bare.ask("Wait", about);
    assert_eq!(Message::read(&end).unwrap().number(1), 137);
    bare.finish();
}
