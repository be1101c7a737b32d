//! The task service: `containerd.task.v2` and `.v3`, which are alike on the wire. The numbers are the
//! fields' numbers in containerd's `shim.proto` and `events/task.proto`.

use crate::cgroup::Cgroups;
use crate::checkpoint;
use crate::metrics;
use crate::mounts::{self, Mount};
use crate::oom::Watch;
use crate::options::Options;
use crate::pod;
use crate::process::{Console, Container, End, Process, Stage};
use crate::runtime::{Outcome, Runtime};
use crate::sandbox;
use crate::shim::{Caller, Shim, Stdio};
use crate::stdio::{self, Logger, Places, Prepared, Readers, Way};
use dhow_shim_common::sys;
use dhow_shim_common::ttrpc::{Code, Request, Status};
use dhow_shim_common::wire::{Message, Writer};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// What a method has to say at once; `None` when the answer comes later.
pub type Now = Result<Option<Writer>, Status>;

const EMPTY: Now = Ok(Some(Writer::raw(Vec::new())));

/// Does what a request asks for.
pub fn handle(shim: &mut Shim, caller: Caller, request: &Request) {
    shim.log("debug", &format!("{}/{}", request.service, request.method));
    let now = match (request.service, Message::read(request.payload)) {
        ("containerd.task.v2.Task" | "containerd.task.v3.Task", Some(message)) => {
            method(shim, caller, request.method, &message)
        }
        ("containerd.runtime.sandbox.v1.Sandbox", Some(message)) => {
            sandbox::method(shim, caller, request.method, &message)
        }
        (_, None) => Err(Status::new(Code::InvalidArgument, "the request is no message")),
        (service, _) => Err(Status::new(Code::Unimplemented, format!("service {service}"))),
    };
    match now {
        Ok(None) => {}
        Ok(Some(answer)) => shim.answer(caller, Ok(answer)),
        Err(status) => shim.answer(caller, Err(status)),
    }
}

fn method(shim: &mut Shim, caller: Caller, method: &str, message: &Message) -> Now {
    match method {
        "Create" => create(shim, caller, message),
        "Start" => start(shim, caller, message),
        "State" => state(shim, message),
        "Delete" => delete(shim, caller, message),
        "Exec" => exec(shim, message),
        "Kill" => kill(shim, caller, message),
        "Wait" => wait(shim, caller, message),
        "Pids" => pids(shim, caller, message),
        "Pause" => freeze(shim, caller, message, true),
        "Resume" => freeze(shim, caller, message, false),
        "Update" => update(shim, caller, message),
        "Stats" => stats(shim, message),
        "ResizePty" => resize(shim, message),
        "CloseIO" => close_io(shim, message),
        "Connect" => connect(shim, message),
        "Shutdown" => shutdown(shim, message),
        "Checkpoint" => checkpoint::checkpoint(shim, caller, message),
        other => Err(Status::new(Code::Unimplemented, format!("method {other}"))),
    }
}

pub fn container<'s>(shim: &'s mut Shim, id: &str) -> Result<&'s mut Container, Status> {
    let missing = || Status::new(Code::NotFound, format!("container {id} does not exist: not found"));
    shim.containers.get_mut(id).ok_or_else(missing)
}

fn process<'s>(shim: &'s mut Shim, message: &Message) -> Result<&'s mut Process, Status> {
    let exec = message.text(2);
    let missing = || Status::new(Code::NotFound, format!("process {exec} does not exist: not found"));
    container(shim, message.text(1))?.process(exec).ok_or_else(missing)
}

pub fn failed(text: impl Into<String>) -> Status {
    Status::new(Code::Unknown, text)
}

/// A status for what dhow has said; its words tell containerd what kind of error it is.
pub fn refused(what: &str, outcome: &Outcome) -> Status {
    let is_over = ["not running", "no such process", "already finished", "does not exist"];
    let message = outcome.message.to_lowercase();
    match is_over.iter().any(|words| message.contains(words)) {
        true => Status::new(Code::NotFound, format!("process already finished: {}", outcome.message)),
        false => failed(format!("{what}: {}", outcome.message)),
    }
}

fn create(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = message.text(1).to_owned();
    if shim.containers.contains_key(&id) {
        return Err(Status::new(Code::AlreadyExists, format!("container {id} exists: already exists")));
    }
    let bundle = PathBuf::from(message.text(2));
    let mounts: Vec<Mount> = message.all(3).filter_map(Mount::read).collect();
    // A container that says nothing has its pod's.
    let options = match Options::read(message.bytes(10)) {
        said if said == Options::default() => shim.home.options.clone(),
        said => said,
    };
    let places = Places {
        terminal: message.flag(4),
        stdin: message.text(5).into(),
        stdout: message.text(6).into(),
        stderr: message.text(7).into(),
    };
    let runtime = Runtime::new(&options, &shim.home.binary, &shim.home.namespace, &bundle);
    runtime.note().map_err(failed)?;
    mounts::mount_all(&mounts, &bundle.join("rootfs")).map_err(failed)?;
    if let Some(sandbox) = &shim.sandbox {
        pod::share_files(&sandbox.bundle, &bundle).map_err(|error| {
            mounts::unmount_all(&bundle.join("rootfs"));
            failed(error)
        })?;
    }
    let number = shim.number();
    let mut container = Container::new(number, &bundle, &runtime, &options, places.clone());
    container.checkpoint = checkpoint::image_of(message, &options);
    let comes_back = container.checkpoint.is_some();
    if comes_back {
        container.init.stage = Stage::Created;
    }
    shim.containers.insert(id.clone(), container);
    let event = creation(message, &places);
    if comes_back {
        // Nothing can be made before criu makes all of it, in `start`.
        shim.publisher.publish("/tasks/create", "TaskCreate", event);
        return EMPTY;
    }
    let then = move |shim: &mut Shim, made: &Making, result: Result<i32, String>| {
        let answer = match result {
            Ok(pid) => {
                shim.publisher.publish("/tasks/create", "TaskCreate", event.number(6, pid.cast_unsigned()));
                Ok(Writer::new().number(1, pid.cast_unsigned()))
            }
            Err(message) => {
                drop_container(shim, &made.id);
                Err(failed(format!("OCI runtime create failed: {message}")))
            }
        };
        let is_made = answer.is_ok();
        shim.answer(caller, answer);
        if is_made {
            settle(shim, &made.id, "");
        }
    };
    make_init(shim, &id, Box::new(then))
}

/// `dhow create`, for a container that is known already.
pub fn make_init(shim: &mut Shim, id: &str, then: Made) -> Now {
    let Container { bundle, options, .. } = container(shim, id)?;
    let pid_file = bundle.join("init.pid");
    let (bundle_text, pid_text) = (bundle.display().to_string(), pid_file.display().to_string());
    let mut words = vec!["create", "--bundle", &bundle_text, "--pid-file", &pid_text];
    words.extend(options.no_pivot_root.then_some("--no-pivot"));
    words.extend(options.no_new_keyring.then_some("--no-new-keyring"));
    make(shim, Making { id: id.to_owned(), exec: String::new(), pid_file }, &words, then);
    Ok(None)
}

/// TaskCreate, without the pid.
fn creation(message: &Message, places: &Places) -> Writer {
    let io = Writer::new()
        .bytes(1, &places.stdin)
        .bytes(2, &places.stdout)
        .bytes(3, &places.stderr)
        .number(4, places.terminal);
    let event = Writer::new().bytes(1, message.text(1)).bytes(2, message.text(2));
    let mounts = message.all(3).map(|mount| Writer::raw(mount.to_vec()));
    let event = mounts.fold(event, |event, mount| event.message(3, &mount)).message(4, &io);
    event.bytes(5, message.text(8))
}

/// A process that is on its way.
#[derive(Debug, Clone)]
pub struct Making {
    pub id: String,
    /// Empty for the init.
    pub exec: String,
    pub pid_file: PathBuf,
}

/// What is done with a process that was made, or with the reason why it was not.
pub type Made = Box<dyn FnOnce(&mut Shim, &Making, Result<i32, String>)>;

/// Runs the command that makes a process, with its stdio in place, once somebody reads its output.
pub fn make(shim: &mut Shim, making: Making, words: &[&str], then: Made) {
    let words = words.iter().map(|&word| word.to_owned()).collect();
    let process = shim.containers.get_mut(&making.id).and_then(|one| one.process(&making.exec));
    let mut readers = process.map(|process| Readers::of(&process.places)).unwrap_or_default();
    let go_on = move |shim: &mut Shim, _| match equip(shim, &making) {
        Ok(equipment) => launch(shim, making, words, equipment, then),
        Err(error) => then(shim, &making, Err(error)),
    };
    match readers.are_there() {
        true => go_on(shim, true),
        false => shim.when_read(readers, Box::new(go_on)),
    }
}

/// What a process that is on its way is given.
struct Equipment {
    /// The number of its copies.
    number: u64,
    prepared: Prepared,
    console: Option<Console>,
    /// They stay open until a terminal's copies have them open: a reader must not see the end before.
    readers: Readers,
}

fn equip(shim: &mut Shim, making: &Making) -> Result<Equipment, String> {
    let namespace = shim.home.namespace.clone();
    let console_number = shim.number();
    let console_place = shim.home.socket.with_extension(format!("{console_number}.pty"));
    let container = shim.containers.get_mut(&making.id).ok_or("the container is gone")?;
    let options = container.options.clone();
    let process = container.process(&making.exec).ok_or("the process is gone")?;
    let about = Logger { id: &making.id, namespace: &namespace };
    let prepared = stdio::prepare(process.number, &process.places, &options, &about)?;
    let console = if process.places.terminal { Some(Console::new(console_place)?) } else { None };
    Ok(Equipment { number: process.number, prepared, console, readers: Readers::of(&process.places) })
}

fn launch(shim: &mut Shim, making: Making, mut words: Vec<String>, equipment: Equipment, then: Made) {
    let Equipment { number, prepared, console, readers } = equipment;
    let Prepared { files, copies, ready, output } = prepared;
    if let Some(console) = &console {
        words.extend(["--console-socket".to_owned(), console.path.display().to_string()]);
    }
    words.push(making.id.clone());
    shim.copies.extend(copies);
    let id = making.id.clone();
    let whole = move |shim: &mut Shim, outcome: Outcome| {
        let result = made(shim, &making, &outcome, console.zip(Some(output)));
        drop(readers);
        if result.is_err() {
            drop_copies(shim, number, true);
        }
        match outcome.code == 0 && result.is_err() {
            true => take_back(shim, making, result, then),
            false => then(shim, &making, result),
        }
    };
    let go_on = move |shim: &mut Shim, is_ready: bool| {
        let runtime = shim.containers.get(&id).map(|one| one.runtime.clone());
        let message = match (is_ready, runtime) {
            (true, Some(runtime)) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let numbers = [&files[0], &files[1], &files[2]].map(std::os::fd::AsRawFd::as_raw_fd);
                // The process gets them; what stays open here would keep its readers from seeing the end.
                return shim.run(&runtime, &words, Stdio::Files(numbers), Box::new(whole));
            }
            (false, _) => "the logger is not ready after 10 s",
            (_, None) => "the container is gone",
        };
        whole(shim, Outcome { code: 127, message: message.to_owned(), stdout: Vec::new() });
    };
    match ready {
        Some(file) => shim.when_readable(file, Box::new(go_on)),
        None => go_on(shim, true),
    }
}

/// What follows when dhow has made a process.
fn made(
    shim: &mut Shim,
    making: &Making,
    outcome: &Outcome,
    console: Option<(Console, Option<OwnedFd>)>,
) -> Result<i32, String> {
    if outcome.code != 0 {
        return Err(outcome.message.clone());
    }
    let text = fs::read_to_string(&making.pid_file);
    let text = text.map_err(|error| format!("read {}: {error}", making.pid_file.display()))?;
    let pid = text.trim().parse::<i32>().map_err(|_| format!("{text:?} is no pid"))?;
    let container = shim.containers.get_mut(&making.id).ok_or("the container is gone")?;
    let is_init = making.exec.is_empty();
    if is_init {
        container.memory = Watch::new(&Cgroups::of(pid));
    }
    let process = container.process(&making.exec).ok_or("the process is gone")?;
    process.pid = pid;
    process.stage = if is_init { Stage::Created } else { Stage::Running };
    if let Some((console, output)) = console {
        let master = console.receive()?;
        shim.copies.extend(stdio::join_terminal(process.number, &process.places, &master, output)?);
        process.terminal = Some(master);
    }
    Ok(pid)
}

/// What dhow has made goes again: the shim could not do its own part, a terminal's above all.
fn take_back(shim: &mut Shim, making: Making, result: Result<i32, String>, then: Made) {
    let Some(container) = shim.containers.get_mut(&making.id) else { return then(shim, &making, result) };
    if let Some(process) = container.execs.get(&making.exec) {
        if process.pid > 0 {
            let _ = sys::kill(process.pid, libc::SIGKILL);
        }
        return then(shim, &making, result);
    }
    let (runtime, id) = (container.runtime.clone(), making.id.clone());
    let go_on = move |shim: &mut Shim, _| then(shim, &making, result);
    shim.run(&runtime, &["delete", "--force", &id], Stdio::None, Box::new(go_on));
}

fn start(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let (id, exec) = (message.text(1).to_owned(), message.text(2).to_owned());
    let stage = process(shim, message)?.stage;
    match (exec.is_empty(), stage) {
        (true, Stage::Created) => {}
        (false, Stage::Made) => return start_exec(shim, caller, &id, &exec),
        (_, Stage::Stopped) => return Err(refuse("cannot start a process that has ended")),
        _ => return Err(refuse("the process is started already")),
    }
    if let Some(image) = container(shim, &id)?.checkpoint.clone() {
        process(shim, message)?.stage = Stage::Starting;
        return checkpoint::restore(shim, caller, &id, &image);
    }
    start_init(shim, caller, id, |shim, id, pid| {
        shim.publisher.publish("/tasks/start", "TaskStart", Writer::new().bytes(1, id).number(2, pid));
        Writer::new().number(1, pid)
    })
}

/// `dhow start`, for a container that waits for it; `answer` is made of its id and pid once it runs.
pub fn start_init(
    shim: &mut Shim,
    caller: Caller,
    id: String,
    answer: impl FnOnce(&mut Shim, &str, u32) -> Writer + 'static,
) -> Now {
    let container = container(shim, &id)?;
    container.init.stage = Stage::Starting;
    let (runtime, name) = (container.runtime.clone(), id.clone());
    let then = move |shim: &mut Shim, outcome: Outcome| {
        let Some(container) = shim.containers.get_mut(&id) else { return };
        let pid = container.init.wire_pid();
        container.init.stage = if outcome.code == 0 { Stage::Running } else { Stage::Created };
        let answer = match outcome.code {
            0 => Ok(answer(shim, &id, pid)),
            _ => Err(failed(format!("OCI runtime start failed: {}", outcome.message))),
        };
        shim.answer(caller, answer);
        settle(shim, &id, "");
    };
    shim.run(&runtime, &["start", &name], Stdio::None, Box::new(then));
    Ok(None)
}

pub fn refuse(text: &str) -> Status {
    Status::new(Code::FailedPrecondition, format!("{text}: failed precondition"))
}

fn start_exec(shim: &mut Shim, caller: Caller, id: &str, exec: &str) -> Now {
    let container = container(shim, id)?;
    let bundle = container.bundle.clone();
    let Some(process) = container.process(exec) else { return Err(failed("the process is gone")) };
    let spec = bundle.join(format!("exec-{}.json", process.number));
    let pid_file = bundle.join(format!("exec-{}.pid", process.number));
    fs::write(&spec, &process.spec).map_err(|error| {
        let _ = fs::remove_file(&spec);
        failed(format!("write {}: {error}", spec.display()))
    })?;
    process.stage = Stage::Starting;
    let (spec_text, pid_text) = (spec.display().to_string(), pid_file.display().to_string());
    let words = vec!["exec", "--process", &spec_text, "--detach", "--pid-file", &pid_text];
    let making = Making { id: id.to_owned(), exec: exec.to_owned(), pid_file };
    let spec_of = spec.clone();
    let then = move |shim: &mut Shim, making: &Making, result: Result<i32, String>| {
        let _ = fs::remove_file(&spec_of);
        let _ = fs::remove_file(&making.pid_file);
        let (id, exec) = (&making.id, &making.exec);
        let answer = match result {
            Ok(pid) => {
                let pid = pid.cast_unsigned();
                let event = Writer::new().bytes(1, id).bytes(2, exec).number(3, pid);
                shim.publisher.publish("/tasks/exec-started", "TaskExecStarted", event);
                Ok(Writer::new().number(1, pid))
            }
            Err(message) => {
                not_begun(shim, id, exec);
                Err(failed(format!("OCI runtime exec failed: {message}")))
            }
        };
        shim.answer(caller, answer);
        settle(shim, id, exec);
    };
    make(shim, making, &words, Box::new(then));
    Ok(None)
}

/// A process that could not be started has ended: nobody need wait for it.
fn not_begun(shim: &mut Shim, id: &str, exec: &str) {
    let Some(process) = shim.containers.get_mut(id).and_then(|container| container.process(exec)) else {
        return;
    };
    process.stage = Stage::Stopped;
    let end = End { code: 255, at: sys::now() };
    process.end = Some(end);
    for waiter in std::mem::take(&mut process.waiters) {
        shim.answer(waiter, Ok(ending(end)));
    }
}

/// A process may have ended while dhow was at work on it: that is told now.
pub fn settle(shim: &mut Shim, id: &str, exec: &str) {
    let process = shim.containers.get_mut(id).and_then(|container| container.process(exec));
    let Some(pid) = process.map(|process| process.pid).filter(|pid| *pid > 0) else { return };
    if let Some(end) = shim.claim(pid) {
        ended(shim, pid, end);
    }
}

/// Takes the end of a process; `false` when it is none of those that are known, or not yet to be told.
pub fn ended(shim: &mut Shim, pid: i32, end: End) -> bool {
    let found = shim.containers.iter_mut().find_map(|(id, container)| {
        let is_it = |process: &Process| process.pid == pid && process.end.is_none();
        if is_it(&container.init) {
            return Some((id.clone(), String::new()));
        }
        container.execs.iter().find(|(_, process)| is_it(process)).map(|(exec, _)| (id.clone(), exec.clone()))
    });
    let Some((id, exec)) = found else { return false };
    if exec.is_empty() {
        // Before the end: whoever hears of that asks at once whether it was for want of memory.
        memory(shim, &id);
    }
    let Some(container) = shim.containers.get_mut(&id) else { return false };
    let kills_the_rest = exec.is_empty() && !container.has_own_pids;
    let runtime = container.runtime.clone();
    let Some(process) = container.process(&exec) else { return false };
    if process.stage == Stage::Starting {
        return false;
    }
    process.stage = Stage::Stopped;
    process.end = Some(end);
    let waiters = std::mem::take(&mut process.waiters);
    shim.step_copies();
    let name = if exec.is_empty() { &id } else { &exec };
    let event = Writer::new()
        .bytes(1, &id)
        .bytes(2, name)
        .number(3, pid.cast_unsigned())
        .number(4, end.code)
        .time(5, end.at);
    let is_sandbox = shim.sandbox.as_ref().is_some_and(|sandbox| sandbox.id == id);
    if is_sandbox {
        sandbox::ended(shim);
    } else {
        shim.publisher.publish("/tasks/exit", "TaskExit", event);
    }
    for waiter in waiters {
        shim.answer(waiter, Ok(ending(end)));
    }
    if kills_the_rest {
        let words = ["kill", "--all", &id, "KILL"];
        shim.run(&runtime, &words, Stdio::None, Box::new(|_, _| {}));
    }
    true
}

pub fn ending(end: End) -> Writer {
    Writer::new().number(1, end.code).time(2, end.at)
}

/// There may be news of a container's memory.
pub fn memory(shim: &mut Shim, id: &str) {
    let Some(container) = shim.containers.get_mut(id) else { return };
    let Some(watch) = &mut container.memory else { return };
    let is_news = watch.news();
    if watch.is_over() {
        container.memory = None;
    }
    if is_news {
        shim.publisher.publish("/tasks/oom", "TaskOOM", Writer::new().bytes(1, id));
    }
}

fn state(shim: &mut Shim, message: &Message) -> Now {
    let bundle = container(shim, message.text(1))?.bundle.display().to_string();
    let is_paused = container(shim, message.text(1))?.is_paused;
    let process = process(shim, message)?;
    // containerd.v1.types.Status
    let status = match process.stage {
        Stage::Made | Stage::Created => 1u32,
        Stage::Starting | Stage::Running if is_paused => 4,
        Stage::Starting | Stage::Running => 2,
        Stage::Stopped => 3,
    };
    let Places { stdin, stdout, stderr, terminal } = &process.places;
    let mut answer = Writer::new()
        .bytes(1, message.text(1))
        .bytes(2, bundle)
        .number(3, process.wire_pid())
        .number(4, status)
        .bytes(5, stdin)
        .bytes(6, stdout)
        .bytes(7, stderr)
        .number(8, *terminal)
        .bytes(11, message.text(2));
    if let Some(end) = process.end {
        answer = answer.number(9, end.code).time(10, end.at);
    }
    Ok(Some(answer))
}

fn delete(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let (id, exec) = (message.text(1).to_owned(), message.text(2).to_owned());
    let process = process(shim, message)?;
    // An init that is made in this moment would stay, with nobody to know it.
    let is_made = exec.is_empty() && process.stage == Stage::Made;
    if is_made || matches!(process.stage, Stage::Running | Stage::Starting) {
        return Err(refuse("cannot delete a running process"));
    }
    let end = process.end.unwrap_or(End { code: 0, at: 0 });
    let (number, pid) = (process.number, process.wire_pid());
    let answer = Writer::new().number(1, pid).number(2, end.code).time(3, end.at);
    if !exec.is_empty() {
        drop_copies(shim, number, false);
        if let Some(process) = container(shim, &id)?.execs.remove(&exec) {
            // Of one that was never started.
            let end = End { code: 255, at: sys::now() };
            process.waiters.into_iter().for_each(|waiter| shim.answer(waiter, Ok(ending(end))));
        }
        return Ok(Some(answer));
    }
    let (runtime, name) = (container(shim, &id)?.runtime.clone(), id.clone());
    let then = move |shim: &mut Shim, outcome: Outcome| {
        if outcome.code != 0 && !outcome.message.contains("does not exist") {
            return shim.answer(caller, Err(failed(format!("dhow delete failed: {}", outcome.message))));
        }
        if let Some(container) = shim.containers.get(&id) {
            container.runtime.forget();
        }
        // Somebody else may have asked at the same time: it is told once.
        if drop_container(shim, &id) {
            let event =
                Writer::new().bytes(1, &id).number(2, pid).number(3, end.code).time(4, end.at).bytes(5, &id);
            shim.publisher.publish("/tasks/delete", "TaskDelete", event);
        }
        shim.answer(caller, Ok(answer));
    };
    shim.run(&runtime, &["delete", &name], Stdio::None, Box::new(then));
    Ok(None)
}

/// Forgets a container, its output, its mounts and itself; whether it was there.
pub fn drop_container(shim: &mut Shim, id: &str) -> bool {
    let Some(container) = shim.containers.remove(id) else { return false };
    for process in container.execs.into_values().chain([container.init]) {
        drop_copies(shim, process.number, false);
        // It was deleted before it ran, or killed by the deletion: its end will not be looked at.
        let end = End { code: 137, at: sys::now() };
        for waiter in process.waiters {
            shim.answer(waiter, Ok(ending(end)));
        }
    }
    mounts::unmount_all(&container.bundle.join("rootfs"));
    true
}

/// Ends a process' copies: at once, or when what is there has gone through.
fn drop_copies(shim: &mut Shim, number: u64, at_once: bool) {
    shim.copies.retain(|copy| copy.process != number || (!at_once && copy.way == Way::Out));
    for copy in shim.copies.iter_mut().filter(|copy| copy.process == number) {
        copy.is_ending = true;
    }
    shim.step_copies();
}

fn exec(shim: &mut Shim, message: &Message) -> Now {
    let (id, exec) = (message.text(1), message.text(2));
    let number = shim.number();
    let container = container(shim, id)?;
    if exec.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "an exec needs an id"));
    }
    if container.execs.contains_key(exec) {
        return Err(Status::new(Code::AlreadyExists, format!("id {exec}: already exists")));
    }
    if container.init.stage == Stage::Stopped {
        return Err(refuse("cannot exec in a stopped container"));
    }
    let places = Places {
        terminal: message.flag(3),
        stdin: message.text(4).into(),
        stdout: message.text(5).into(),
        stderr: message.text(6).into(),
    };
    let spec = Message::read(message.bytes(7)).map(|any| any.bytes(2).to_vec()).unwrap_or_default();
    container.execs.insert(exec.to_owned(), Process::new(number, places, spec));
    let event = Writer::new().bytes(1, id).bytes(2, exec);
    shim.publisher.publish("/tasks/exec-added", "TaskExecAdded", event);
    EMPTY
}

fn kill(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let process = process(shim, message)?;
    let over = || Status::new(Code::NotFound, "process already finished: not found");
    let signal = i32::try_from(message.number(3)).unwrap_or(0);
    if !message.text(2).is_empty() {
        if process.stage == Stage::Stopped {
            return Err(over());
        }
        if process.pid == 0 {
            return Err(refuse("the process is not started"));
        }
        // It has not been reaped, or it would be stopped: the pid is its own.
        return sys::kill(process.pid, signal).map_or_else(|_| Err(over()), |()| EMPTY);
    }
    let all = message.flag(4);
    if process.stage == Stage::Stopped && !all {
        return Err(over());
    }
    let number = signal.to_string();
    let mut words = vec!["kill"];
    words.extend(all.then_some("--all"));
    words.extend([message.text(1), &number]);
    command(shim, caller, message.text(1), &words, Stdio::None, |_, _| Writer::new())
}

/// Runs a command and answers with what is made of its output.
fn command(
    shim: &mut Shim,
    caller: Caller,
    id: &str,
    words: &[&str],
    stdio: Stdio,
    answer: impl FnOnce(&mut Shim, &Outcome) -> Writer + 'static,
) -> Now {
    let runtime = container(shim, id)?.runtime.clone();
    let what = format!("dhow {} failed", words[0]);
    let then = move |shim: &mut Shim, outcome: Outcome| {
        let result = match outcome.code {
            0 => Ok(answer(shim, &outcome)),
            _ => Err(refused(&what, &outcome)),
        };
        shim.answer(caller, result);
    };
    shim.run(&runtime, words, stdio, Box::new(then));
    Ok(None)
}

fn wait(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let process = process(shim, message)?;
    if let Some(end) = process.end {
        return Ok(Some(ending(end)));
    }
    process.waiters.push(caller);
    Ok(None)
}

fn pids(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = message.text(1).to_owned();
    let words = ["ps", "--format", "json", message.text(1)];
    command(shim, caller, message.text(1), &words, Stdio::Text(Vec::new()), move |shim, outcome| {
        let pids: Vec<i32> = serde_json::from_slice(&outcome.stdout).unwrap_or_default();
        let execs = shim.containers.get(&id).map(|container| &container.execs);
        pids.iter().fold(Writer::new(), |answer, pid| {
            let mut info = Writer::new().number(1, pid.cast_unsigned());
            let exec = execs.and_then(|execs| execs.iter().find(|(_, process)| process.pid == *pid));
            if let Some((exec, _)) = exec {
                let details = Writer::new().bytes(1, exec).finish();
                info = info.any(2, "containerd.runc.v1.ProcessDetails", details);
            }
            answer.message(1, &info)
        })
    })
}

fn freeze(shim: &mut Shim, caller: Caller, message: &Message, freezes: bool) -> Now {
    let id = message.text(1).to_owned();
    let word = if freezes { "pause" } else { "resume" };
    command(shim, caller, message.text(1), &[word, &id.clone()], Stdio::None, move |shim, _| {
        if let Some(container) = shim.containers.get_mut(&id) {
            container.is_paused = freezes;
        }
        let (topic, kind) =
            if freezes { ("/tasks/paused", "TaskPaused") } else { ("/tasks/resumed", "TaskResumed") };
        shim.publisher.publish(topic, kind, Writer::new().bytes(1, &id));
        Writer::new()
    })
}

fn update(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let any = Message::read(message.bytes(2)).unwrap_or_default();
    let words = ["update", "--resources", "-", message.text(1)];
    let resources = Stdio::Text(any.bytes(2).to_vec());
    command(shim, caller, message.text(1), &words, resources, |_, _| Writer::new())
}

fn stats(shim: &mut Shim, message: &Message) -> Now {
    let init = &container(shim, message.text(1))?.init;
    if init.pid == 0 || init.stage == Stage::Stopped {
        return Err(Status::new(Code::NotFound, "the container does not run: not found"));
    }
    let (kind, metrics) = metrics::read(&Cgroups::of(init.pid));
    Ok(Some(Writer::new().any(1, kind, metrics)))
}

fn resize(shim: &mut Shim, message: &Message) -> Now {
    let process = process(shim, message)?;
    let size = |tag| u16::try_from(message.number(tag)).unwrap_or(u16::MAX);
    if let Some(terminal) = &process.terminal {
        let size = rustix::termios::Winsize { ws_col: size(3), ws_row: size(4), ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).map_err(|errno| failed(errno.to_string()))?;
    }
    EMPTY
}

fn close_io(shim: &mut Shim, message: &Message) -> Now {
    let number = process(shim, message)?.number;
    if message.flag(3) {
        for copy in &mut shim.copies {
            copy.is_ending |= copy.process == number && copy.way == Way::In;
        }
        shim.step_copies();
    }
    EMPTY
}

fn connect(shim: &mut Shim, message: &Message) -> Now {
    let pid = container(shim, message.text(1)).map_or(0, |container| container.init.wire_pid());
    Ok(Some(Writer::new().number(1, std::process::id()).number(2, pid).bytes(3, env!("CARGO_PKG_VERSION"))))
}

/// The last container of a pod takes the shim with it; the others do not.
fn shutdown(shim: &mut Shim, message: &Message) -> Now {
    if shim.containers.is_empty() || message.flag(2) {
        shim.end();
    }
    EMPTY
}
