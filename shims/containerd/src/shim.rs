//! The loop of a shim: requests, ends of children, output to move on, events to tell.

use crate::events::Publisher;
use crate::options::Options;
use crate::process::{Container, End, Stage};
use crate::runtime::{Outcome, Runtime, last_error};
use crate::sandbox::Sandbox;
use crate::stdio::{Copy, Readers, Way};
use crate::task;
use dhow_shim_common::sys;
use dhow_shim_common::ttrpc::{Connection, Request, Status, TooLong};
use dhow_shim_common::wire::Writer;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// What a shim knows of itself.
#[derive(Debug)]
pub struct Home {
    pub namespace: String,
    pub socket: PathBuf,
    /// The dhow binary, unless a container's options name another.
    pub binary: String,
    pub log: Option<File>,
    pub debug: bool,
    /// What it was started with, which is a pod's own.
    pub options: Options,
}

/// Whom an answer goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    connection: u64,
    stream: u32,
}

/// How long a shim stays that has no container, in milliseconds. containerd asks for one at once, and
/// says when the last has gone; but one that was killed in between knows nothing of its shim.
const PATIENCE: u64 = 30_000;

/// How often readers are looked for, in milliseconds.
const READERS_INTERVAL: u64 = 5;

/// What is done when a command has ended.
pub type Then = Box<dyn FnOnce(&mut Shim, Outcome)>;

/// What is done when what it waits for has come, or (`false`) has not for too long.
pub type Waiter = Box<dyn FnOnce(&mut Shim, bool)>;

/// What a command reads and writes.
pub enum Stdio {
    /// Nothing.
    None,
    /// These: a container's.
    Files([RawFd; 3]),
    /// It reads this text, and what it prints is wanted.
    Text(Vec<u8>),
}

/// What somebody waits for.
enum Awaited {
    Readable(OwnedFd),
    Readers(Readers),
}

struct Waiting {
    what: Awaited,
    /// Milliseconds of sys::milliseconds.
    due: u64,
    then: Waiter,
}

struct Command {
    then: Then,
    /// What it logs. In memory: a bundle that is full, read-only or gone keeps no error from being told.
    log: File,
    stdout: Option<File>,
    program: String,
    /// Commands that began later have a higher one.
    number: u64,
}

/// All of it.
pub struct Shim {
    pub home: Home,
    pub containers: BTreeMap<String, Container>,
    /// The pod, when containerd leaves it to the shim.
    pub sandbox: Option<Sandbox>,
    pub copies: Vec<Copy>,
    pub publisher: Publisher,
    listener: UnixListener,
    signals: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    commands: HashMap<i32, Command>,
    /// Ends of processes that nobody knows yet, should a command that is at work have made one; and the
    /// last number at that time.
    unclaimed: Vec<(i32, End, u64)>,
    waiting: BTreeMap<u64, Waiting>,
    last_number: u64,
    /// When to look for connections again, after there were too many.
    deaf_until: Option<u64>,
    /// Since when it has no container.
    empty_since: Option<u64>,
    is_over: bool,
}

/// What poll(2) has found something at.
#[derive(Debug, Clone)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Publisher,
    Copy(usize),
    Memory(String),
    Waiting(u64),
}

impl Shim {
    pub fn new(home: Home, listener: UnixListener, signals: OwnedFd, ttrpc: &str) -> Shim {
        Shim {
            publisher: Publisher::new(ttrpc, &home.namespace),
            home,
            containers: BTreeMap::new(),
            sandbox: None,
            copies: Vec::new(),
            listener,
            signals,
            connections: BTreeMap::new(),
            commands: HashMap::new(),
            unclaimed: Vec::new(),
            waiting: BTreeMap::new(),
            last_number: 0,
            deaf_until: None,
            empty_since: None,
            is_over: false,
        }
    }

    /// Serves until containerd says that it is over, and for as long as there is something to tell.
    pub fn stay(&mut self) {
        while !self.is_over {
            self.turn(-1);
        }
        let due = sys::milliseconds() + 2000;
        for copy in &mut self.copies {
            copy.is_ending = true;
        }
        self.step_copies();
        let has_output = |shim: &Shim| shim.connections.values().any(Connection::has_output);
        while sys::milliseconds() < due
            && (!self.publisher.is_done() || !self.copies.is_empty() || has_output(self))
        {
            self.turn(50);
            self.step_copies();
        }
    }

    /// It is over once this turn is. Nobody finds it any more: whoever hears of that may start another
    /// one for the same name, whose socket has the same place.
    pub fn end(&mut self) {
        if !self.is_over {
            let _ = fs::remove_file(&self.home.socket);
        }
        self.is_over = true;
    }

    /// A number that nothing has had.
    pub fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Writes a line into containerd's log.
    pub fn log(&self, level: &str, text: &str) {
        if level == "debug" && !self.home.debug {
            return;
        }
        if let Some(mut log) = self.home.log.as_ref() {
            let _ = writeln!(log, "level={level} msg={text:?} runtime=io.containerd.dhow.v2");
        }
    }

    /// Waits, for so many milliseconds at most (-1: for ever), and does what there is to do.
    fn turn(&mut self, most: i32) {
        let found = self.wait(most);
        // Copies go by their place: they are moved on before anything else can change the places.
        let ready: Vec<usize> = found
            .iter()
            .filter_map(|one| if let Source::Copy(at) = one { Some(*at) } else { None })
            .collect();
        self.move_on(&ready);
        for source in found {
            match source {
                Source::Listener => self.accept(),
                Source::Signals => self.signalled(),
                Source::Connection(number) => self.serve(number),
                Source::Publisher => self.publisher.heard(),
                Source::Memory(id) => task::memory(self, &id),
                Source::Waiting(number) => self.go_on_with(number, true),
                Source::Copy(_) => {}
            }
        }
        self.look_after_waiting();
        self.publisher.go_on();
        let now = sys::milliseconds();
        if self.deaf_until.is_some_and(|due| due <= now) {
            self.deaf_until = None;
        }
        if self.is_deserted() {
            self.log("info", "the shim's socket is gone, and nobody is connected: the shim ends");
            self.end();
        }
        if !self.containers.is_empty() {
            self.empty_since = None;
        } else if now - *self.empty_since.get_or_insert(now) >= PATIENCE {
            self.log("info", "there has been no container for long: the shim ends");
            self.end();
        }
    }

    /// Whether nobody can ask for it any more, and nothing of what it has still runs: it was cleaned up
    /// after as if it had been killed.
    fn is_deserted(&self) -> bool {
        self.connections.is_empty()
            && !self.containers.is_empty()
            && self.containers.values().all(|container| container.init.stage == Stage::Stopped)
            && !self.home.socket.exists()
    }

    fn wait(&self, most: i32) -> Vec<Source> {
        let mut sources = vec![Source::Listener, Source::Signals];
        let input = PollFlags::IN;
        let listens = if self.deaf_until.is_some() { PollFlags::empty() } else { input };
        let mut set = vec![PollFd::new(&self.listener, listens), PollFd::new(&self.signals, input)];
        let mut add: Vec<(Source, BorrowedFd<'_>, PollFlags)> = Vec::new();
        let with_output = |connection: &Connection| match (connection.is_stuck(), connection.has_output()) {
            (true, _) => PollFlags::OUT,
            (false, true) => input | PollFlags::OUT,
            (false, false) => input,
        };
        for (number, connection) in &self.connections {
            add.push((Source::Connection(*number), connection.stream.as_fd(), with_output(connection)));
        }
        if let Some(connection) = &self.publisher.connection {
            add.push((Source::Publisher, connection.stream.as_fd(), with_output(connection)));
        }
        for (at, copy) in self.copies.iter().enumerate() {
            match copy.is_full() {
                true => add.push((Source::Copy(at), copy.to.as_fd(), PollFlags::OUT)),
                false => add.push((Source::Copy(at), copy.from.as_fd(), input)),
            }
        }
        for (id, container) in &self.containers {
            if let Some(watch) = &container.memory {
                add.push((Source::Memory(id.clone()), watch.file.as_fd(), input));
            }
        }
        for (number, one) in &self.waiting {
            if let Awaited::Readable(file) = &one.what {
                add.push((Source::Waiting(*number), file.as_fd(), input));
            }
        }
        for (source, file, flags) in add {
            sources.push(source);
            set.push(PollFd::from_borrowed_fd(file, flags));
        }
        let now = sys::milliseconds();
        let dues = self.waiting.values().map(|one| match one.what {
            Awaited::Readable(_) => one.due.saturating_sub(now),
            // The kernel does not tell when somebody opens a fifo.
            Awaited::Readers(_) => READERS_INTERVAL,
        });
        let deaf = self.deaf_until.map(|due| due.saturating_sub(now));
        // One that has not yet looked whether it is empty looks now.
        let empty = self.containers.is_empty().then(|| self.empty_since.map_or(0, |since| since + PATIENCE));
        let empty = empty.map(|due| due.saturating_sub(now));
        let own = self.publisher.timeout().into_iter().chain(dues).chain(deaf).chain(empty).min();
        let own = own.map(|ms| i32::try_from(ms).unwrap_or(i32::MAX));
        let timeout = match (own, most) {
            (None, most) => most,
            (Some(own), -1) => own,
            (Some(own), most) => own.min(most),
        };
        let timeout = (timeout >= 0).then(|| rustix::event::Timespec {
            tv_sec: (timeout / 1000).into(),
            tv_nsec: (timeout % 1000 * 1_000_000).into(),
        });
        if rustix::event::poll(&mut set, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = set.iter().map(|one| !one.revents().is_empty());
        sources.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(source, _)| source).collect()
    }

    /// Goes on with something when a file can be read (`true`), or after ten seconds (`false`);
    /// meanwhile there are others to serve.
    pub fn when_readable(&mut self, file: OwnedFd, then: Waiter) {
        self.wait_for(Awaited::Readable(file), then);
    }

    /// Goes on when readers have come, or after ten seconds.
    pub fn when_read(&mut self, readers: Readers, then: Waiter) {
        self.wait_for(Awaited::Readers(readers), then);
    }

    fn wait_for(&mut self, what: Awaited, then: Waiter) {
        let number = self.number();
        let due = sys::milliseconds() + 10_000;
        self.waiting.insert(number, Waiting { what, due, then });
    }

    fn look_after_waiting(&mut self) {
        let now = sys::milliseconds();
        let come: Vec<(u64, bool)> = self
            .waiting
            .iter_mut()
            .filter_map(|(number, one)| {
                let has_come = match &mut one.what {
                    Awaited::Readers(readers) => readers.are_there(),
                    Awaited::Readable(_) => false,
                };
                (has_come || one.due <= now).then_some((*number, has_come))
            })
            .collect();
        for (number, has_come) in come {
            self.go_on_with(number, has_come);
        }
    }

    fn go_on_with(&mut self, number: u64, has_come: bool) {
        if let Some(Waiting { then, what, .. }) = self.waiting.remove(&number) {
            then(self, has_come);
            // Only now: what holds a fifo open has done its part.
            drop(what);
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let _ = stream.set_nonblocking(true);
                    let number = self.number();
                    self.connections.insert(number, Connection::new(stream));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // There are no more files to be had: it goes on waiting, and poll(2) would not sleep.
                Err(_) => {
                    self.deaf_until = Some(sys::milliseconds() + 100);
                    return;
                }
            }
        }
    }

    fn serve(&mut self, number: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let mut stays = connection.flush();
        // Who takes no answers is asked for no more questions.
        if !connection.is_stuck() {
            stays &= connection.fill();
        }
        loop {
            let Some(connection) = self.connections.get_mut(&number) else { return };
            if connection.is_stuck() {
                break;
            }
            match connection.frame() {
                Ok(Some(frame)) if frame.is_request => {
                    let caller = Caller { connection: number, stream: frame.stream };
                    match Request::read(&frame.payload) {
                        Some(request) => task::handle(self, caller, &request),
                        None => stays = false,
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(TooLong) => {
                    stays = false;
                    break;
                }
            }
        }
        if !stays {
            self.connections.remove(&number);
            for container in self.containers.values_mut() {
                container.forget_waiters(|caller| caller.connection == number);
            }
        }
    }

    /// Answers a request; to a caller that has gone, nobody.
    pub fn answer(&mut self, caller: Caller, result: Result<Writer, Status>) {
        if let Some(connection) = self.connections.get_mut(&caller.connection) {
            connection.answer(caller.stream, result);
            // What fails now is seen when the connection is read.
            let _ = connection.flush();
        }
    }

    fn signalled(&mut self) {
        while let Some(signal) = sys::read_signal(&self.signals) {
            if signal != libc::SIGCHLD.cast_unsigned() {
                self.end();
            }
        }
        let mut ended = Vec::new();
        while let Some((pid, status)) = sys::reap_any() {
            ended.push((pid, status));
        }
        // What a command of dhow's has made is known before its end is looked at.
        for (pid, status) in &ended {
            if let Some(command) = self.commands.remove(pid) {
                self.finish(command, sys::exit_code(*status));
                continue;
            }
            let end = End { code: sys::exit_code(*status).cast_unsigned(), at: sys::now() };
            self.unclaimed.push((*pid, end, self.last_number));
        }
        for (pid, end, number) in std::mem::take(&mut self.unclaimed) {
            // A command that began later has not made it, though the pid may be that of what it has made.
            let may_be_claimed = |shim: &Shim| shim.commands.values().any(|command| command.number <= number);
            if !task::ended(self, pid, end) && may_be_claimed(self) {
                self.unclaimed.push((pid, end, number));
            }
        }
    }

    /// Takes the end of a process that has just become known, should it have ended already.
    pub fn claim(&mut self, pid: i32) -> Option<End> {
        let at = self.unclaimed.iter().position(|(ended, ..)| *ended == pid)?;
        Some(self.unclaimed.swap_remove(at).1)
    }

    fn finish(&mut self, command: Command, code: i32) {
        let stdout = command.stdout.map(content).unwrap_or_default();
        let mut message = String::new();
        if code != 0 {
            message = last_error(&content(command.log));
            if message.is_empty() {
                let end = if code == 127 {
                    "cannot be started".to_owned()
                } else {
                    format!("ended with exit code {code}")
                };
                message = format!("{} {end}", command.program);
            }
        }
        (command.then)(self, Outcome { code, message, stdout });
    }

    /// Runs a command of dhow's; `then` is called when it has ended, also when it cannot be started.
    pub fn run(&mut self, runtime: &Runtime, words: &[&str], stdio: Stdio, then: Then) {
        let (number, program) = (self.number(), runtime.binary.clone());
        self.log("debug", &format!("dhow {}", words.join(" ")));
        match launch(runtime, words, stdio) {
            Ok((pid, log, stdout)) => {
                self.commands.insert(pid, Command { then, log, stdout, program, number });
            }
            Err(message) => then(self, Outcome { code: 127, message, stdout: Vec::new() }),
        }
    }

    /// Moves all copies on, whether poll(2) has said something of them or not.
    pub fn step_copies(&mut self) {
        let all: Vec<usize> = (0..self.copies.len()).collect();
        let outward = |at: &usize| self.copies[*at].way == Way::Out || self.copies[*at].is_ending;
        let all: Vec<usize> = all.into_iter().filter(outward).collect();
        self.move_on(&all);
    }

    fn move_on(&mut self, ready: &[usize]) {
        let mut at = 0;
        self.copies.retain_mut(|copy| {
            let stays = !ready.contains(&at) || copy.step();
            at += 1;
            stays
        });
    }
}

/// Starts a command: its pid, what it logs, and what it prints where that is wanted.
fn launch(runtime: &Runtime, words: &[&str], stdio: Stdio) -> Result<(i32, File, Option<File>), String> {
    let log = memory_file()?;
    let words = runtime.words(&path_of(&log), words)?;
    let start = |files| sys::spawn(&words, files, true).map_err(|errno| format!("start dhow: errno {errno}"));
    let null = sys::null().map_err(|errno| format!("open /dev/null: errno {errno}"))?;
    let none = null.as_raw_fd();
    match stdio {
        Stdio::None => Ok((start([none, none, none])?, log, None)),
        Stdio::Files(files) => Ok((start(files)?, log, None)),
        Stdio::Text(text) => {
            let (mut input, output) = (memory_file()?, memory_file()?);
            input.write_all(&text).and_then(|()| input.rewind()).map_err(|error| error.to_string())?;
            let pid = start([input.as_raw_fd(), output.as_raw_fd(), none])?;
            Ok((pid, log, Some(output)))
        }
    }
}

/// A file in memory: unlike a pipe it takes all that is written, whoever reads when.
fn memory_file() -> Result<File, String> {
    let file = rustix::fs::memfd_create("dhow-shim", MemfdFlags::CLOEXEC);
    file.map(File::from).map_err(|errno| format!("make a file in memory: {errno}"))
}

/// By which other processes can open it, while it is open here.
fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}

/// All that is in it.
fn content(mut file: File) -> Vec<u8> {
    let mut content = Vec::new();
    let _ = file.rewind();
    let _ = file.read_to_end(&mut content);
    content
}
