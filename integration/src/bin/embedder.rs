//! A program that embeds dhow, as tests/library.rs drives it: `embedder SCENARIO ROOT ID BUNDLE [WORD…]`.
//! Every expectation is an assertion here: the test asks for exit code 0.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dhow::{Class, Container, Event, Limits, Runtime, Status};
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::process::Stdio;
use std::time::Duration;

fn main() {
    if std::env::args().nth(1).as_deref() != Some("forgetful") {
        dhow::helper();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [scenario, root, id, bundle, more @ ..] = &words[..] else { panic!("usage: see the source") };
    let runtime = Runtime::at(root);
    match scenario.as_str() {
        "life" => life(&runtime, id, bundle, more),
        "errors" => errors(&runtime, id, bundle, more),
        "threads" => threads(&runtime, id, bundle),
        "abandon" => abandon(&runtime, id, bundle),
        "warnings" => warnings(&runtime, id, bundle),
        "out-of-memory" => out_of_memory(&runtime, id, bundle),
        "forgetful" => {
            let error = runtime.create(id, bundle).create().unwrap_err();
            assert_eq!(error.class, Class::Usage, "{error}");
            assert!(error.to_string().contains("has not called dhow::helper()"), "{error}");
        }
        "foreign-helper" => {
            let container = runtime.helper_program(&more[0]).create(id, bundle).run().unwrap();
            assert_eq!(container.wait().unwrap().code, 5);
            container.delete().unwrap();
        }
        other => panic!("no scenario {other}"),
    }
}

fn status(container: &Container) -> Status {
    container.state().unwrap().status
}

/// A whole life, by every method. The words are the controllers that the machine has.
fn life(runtime: &Runtime, id: &str, bundle: &str, has: &[String]) {
    let has = |what: &str| has.iter().any(|word| word == what);
    let container = runtime.create(id, bundle).stdin(Stdio::null()).create().unwrap();
    let state = container.state().unwrap();
    assert_eq!((state.status, state.exit), (Status::Created, None));
    assert!(std::path::Path::new(&format!("/proc/{}", state.pid.unwrap())).exists());
    assert_eq!(state.annotations["org.example.word"], "kept");
    assert_eq!(state.bundle, std::fs::canonicalize(bundle).unwrap());
    let ids: Vec<String> = runtime.containers().unwrap().iter().map(|c| c.id().to_owned()).collect();
    assert_eq!(ids, [id]);

    container.start().unwrap();
    assert_eq!(status(&container), Status::Running);
    assert_eq!(container.start().unwrap_err().class, Class::WrongState);
    processes(&container);
    limits(&container, &has);
    if has("freezer") {
        container.pause().unwrap();
        assert_eq!(status(&container), Status::Paused);
        container.resume().unwrap();
    }
    assert_eq!(container.delete().unwrap_err().class, Class::WrongState);
    container.kill(dhow::signal("KILL").unwrap()).unwrap();
    let exit = container.wait().unwrap();
    assert_eq!((exit.code, exit.signal, exit.out_of_memory), (137, Some(9), false));
    let state = container.state().unwrap();
    assert_eq!((state.status, state.pid, state.exit), (Status::Exited, None, Some(exit)));
    container.stop(Duration::from_secs(1)).unwrap();
    container.delete().unwrap();
    assert_eq!(container.state().unwrap_err().class, Class::NoContainer);
    container.destroy().unwrap();
}

/// Processes in a container that runs: what they are given, how they end.
fn processes(container: &Container) {
    let (mut output, writer) = std::io::pipe().unwrap();
    let (reader, mut input) = std::io::pipe().unwrap();
    let exec = container.exec([
        "/payload",
        "read-line",
        "--",
        "env",
        "WORD",
        "--",
        "cwd",
        "--",
        "ids",
        "--",
        "exit",
        "7",
    ]);
    let exec = exec.env("WORD", "said").cwd("/tmp").user("12:34").stdin(reader).stdout(writer);
    let mut process = exec.spawn().unwrap();
    assert!(std::path::Path::new(&format!("/proc/{}", process.pid())).exists());
    input.write_all(b"hello\n").unwrap();
    drop(input);
    let exit = process.wait().unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    assert_eq!(process.wait().unwrap(), exit);
    assert_eq!(process.kill(15).unwrap_err().class, Class::NoProcess);
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    for words in ["hello", "said", "/tmp", "uid=12", "gid=34"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let mut process = container.exec(["/payload", "sleep", "1000"]).spawn().unwrap();
    process.kill(dhow::signal("KILL").unwrap()).unwrap();
    assert_eq!(process.wait().unwrap().signal, Some(9));
}

/// Its limits, and what is told of it.
fn limits(container: &Container, has: &dyn Fn(&str) -> bool) {
    if has("pids") {
        container.update(&Limits { processes: Some(77), ..Limits::default() }).unwrap();
        let stats = container.stats().unwrap();
        // The kernel counts one that has ended until it is freed, a moment later.
        assert!((1..4).contains(&stats.processes) && stats.process_limit == Some(77), "{stats:?}");
    }
    if has("memory") {
        container.update(&Limits { memory: Some(64 << 20), ..Limits::default() }).unwrap();
        let stats = container.stats().unwrap();
        assert_eq!(stats.memory_limit, Some(64 << 20));
        assert!(stats.memory > 0 && stats.memory <= stats.memory_peak, "{stats:?}");
        let wrong = Limits { cpu_period: Some(1), ..Limits::default() };
        let error = container.update(&wrong).unwrap_err();
        assert!(error.to_string().contains("period"), "{error}");
    }
    let mut told = 0;
    container
        .events(Duration::from_millis(20), |event| {
            assert!(matches!(event, Event::Stats(_)), "{event:?}");
            told += 1;
            if told == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(told, 2);
}

/// Errors come back whole. The words are bundles: without its program, with a wrong field, that sleeps.
fn errors(runtime: &Runtime, id: &str, bundle: &str, more: &[String]) {
    let [missing, wrong, ..] = more else { panic!("two bundles") };
    let error = runtime.create(id, missing).create().unwrap_err();
    assert_eq!(error.class, Class::CommandNotFound, "{error:?}");
    assert!(error.hint.is_some() && error.errno == Some(2), "{error:?}");
    let error = runtime.create(id, wrong).create().unwrap_err();
    assert_eq!(error.class, Class::Config, "{error:?}");
    assert_eq!(error.subject.as_deref(), Some("process.cwd"), "{error:?}");
    assert_eq!(runtime.create("a/b", bundle).create().unwrap_err().class, Class::Usage);
    assert!(runtime.containers().unwrap().is_empty());

    let container = runtime.create(id, bundle).run().unwrap();
    assert_eq!(runtime.create(id, bundle).create().unwrap_err().class, Class::ContainerExists);
    let error = container.exec(["/no/such"]).spawn().unwrap_err();
    assert_eq!(error.class, Class::CommandNotFound, "{error:?}");
    let error = container.exec(["/payload", "pid"]).user("root").spawn().unwrap_err();
    assert_eq!(error.class, Class::Usage, "{error:?}");
    container.destroy().unwrap();
    assert_eq!(container.start().unwrap_err().class, Class::NoContainer);
    let error = runtime.clone().helper_program("/bin/true").create(id, bundle).create().unwrap_err();
    assert_eq!(error.class, Class::Internal, "{error:?}");
    assert!(error.to_string().contains("ended without an answer"), "{error}");
    let error = runtime.clone().helper_program("/no/such").create(id, bundle).create().unwrap_err();
    assert_eq!((error.class, error.errno), (Class::System, Some(2)), "{error:?}");
}

/// Many threads at a time, while others allocate and spawn, which is what a fork would trip over.
fn threads(runtime: &Runtime, id: &str, bundle: &str) {
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = fds();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let busy: Vec<_> = (0..3_usize)
            .map(|number| {
                let done = &done;
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        kept.push(format!("{number}{}", "x".repeat(kept.len() % 5000)));
                        kept.truncate(3000);
                        std::thread::yield_now();
                    }
                })
            })
            .collect();
        let lives: Vec<_> = (0..8)
            .map(|number| {
                scope.spawn(move || {
                    for life in 0..3 {
                        let id = format!("{id}-{number}-{life}");
                        let container = runtime.create(id, bundle).run().unwrap();
                        let mut process = container.exec(["/payload", "exit", "3"]).spawn().unwrap();
                        assert_eq!(process.wait().unwrap().code, 3);
                        container.kill(9).unwrap();
                        assert_eq!(container.wait().unwrap().code, 137);
                        container.delete().unwrap();
                    }
                })
            })
            .collect();
        let ended: Vec<_> = lives.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.into_iter().for_each(|one| one.join().unwrap());
        ended.into_iter().for_each(|one| one.unwrap());
    });
    assert_eq!(fds(), before, "fds are left open");
    // No zombie, and no helper that would have to be waited for.
    let children =
        std::fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    assert_eq!(children, "");
}

/// Ends while its container runs: the test looks what becomes of it.
fn abandon(runtime: &Runtime, id: &str, bundle: &str) {
    let log = std::fs::File::create(std::path::Path::new(bundle).join("log")).unwrap();
    runtime.create(id, bundle).stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).run().unwrap();
}

fn warnings(runtime: &Runtime, id: &str, bundle: &str) {
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let tell = heard.clone();
    let runtime = runtime.clone().on_warning(move |text| tell.lock().unwrap().push(text.to_owned()));
    let container = runtime.create(id, bundle).run().unwrap();
    let heard = heard.lock().unwrap();
    assert!(heard.iter().any(|text| text.contains("CAP_FLY")), "{heard:?}");
    container.destroy().unwrap();
}

fn out_of_memory(runtime: &Runtime, id: &str, bundle: &str) {
    let container = runtime.create(id, bundle).create().unwrap();
    let watched = container.clone();
    let watcher = std::thread::spawn(move || {
        let mut ran_out = false;
        let told = watched.events(Duration::from_millis(50), |event| {
            ran_out |= event == Event::OutOfMemory;
            ControlFlow::Continue(())
        });
        told.map(|()| ran_out)
    });
    container.start().unwrap();
    let exit = container.wait().unwrap();
    assert_eq!((exit.signal, exit.out_of_memory), (Some(9), true), "{exit:?}");
    assert!(watcher.join().unwrap().unwrap(), "no event of it");
    container.delete().unwrap();
}
