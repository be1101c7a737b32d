//! What a shim must bear: nonsense on its socket, requests in the wrong order, readers that stop, a
//! runtime that hangs, a bundle that goes away.

use dhow_integration::bare::{self, Bare};
use dhow_integration::ttrpc::{Client, TASK};
use dhow_integration::{Runner, Scene, eventually, machine, skip_unless};
use dhow_shim_common::wire::{Message, Writer};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

macro_rules! needs_shim {
    () => {
        skip_unless!(bare::can_be_tried(), "no shim in bin, or another runtime");
    };
}

/// gRPC's codes.
const INVALID: u64 = 3;
const NOT_FOUND: u64 = 5;
const EXISTS: u64 = 6;
const PRECONDITION: u64 = 9;
const UNIMPLEMENTED: u64 = 12;

fn socket(bare: &Bare<'_>) -> PathBuf {
    let address = fs::read_to_string(bare.container.bundle().join("address")).unwrap();
    PathBuf::from(address.trim_start_matches("unix://"))
}

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
    let creation = bare.creation(|request| request);
    bare.ask("Create", creation);
    let about = bare.about();
    bare.ask("Start", about);
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
    let place = socket(&bare);
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
    let place = socket(&bare);
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
    let mut deaf = UnixStream::connect(socket(&bare)).unwrap();
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
    let creation = bare.creation(|request| request.number(4, 1u32).bytes(6, out_text));
    bare.ask("Create", creation);
    let about = bare.about();
    bare.ask("Start", about.clone());
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
    let creation = bare.creation(|request| request.number(4, 1u32).bytes(6, &uri));
    bare.ask("Create", creation);
    let about = bare.about();
    bare.ask("Start", about);
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
    let creation = bare.creation(|request| request.bytes(6, &uri));
    bare.ask("Create", creation);
    let about = bare.about();
    bare.ask("Start", about);
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
    let place = socket(&bare);
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
