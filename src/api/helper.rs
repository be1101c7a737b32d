//! The process that forks in the caller's place.

use super::handle::Runtime;
use super::job::{After, Answer, Ended, Job, Reply, Work, carry_out};
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::process::reaper;
use crate::runtime::{self, Context};
use crate::sys::clone::{Child, Forked, before_exec, clone3, exit_now};
use crate::sys::{fd, selfexe, socket};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use rustix::fs::MemfdFlags;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// The name that a helper is started under, argv\[0\].
const NAME: &str = "dhow-helper";

/// The word for requests by which a process enters a container.
const ENTERS: &str = "enter";

/// The most bytes of a request or an answer.
const MOST: usize = 128 * 1024;

/// Whether [`helper`] was called, so that this program can be its own helper.
static CALLED: AtomicBool = AtomicBool::new(false);

/// Call this first in `main`: the library runs the caller's program once more, and this is where that
/// second process does its work and ends. In any other process it returns at once.
///
/// Why a process of its own: to make a container means to fork, and between fork(2) and execve(2) a child
/// of a process with several threads may not so much as allocate memory, while a container's init has
/// mounts to make and files to read. So [`Create`](super::Create), [`Exec`](super::Exec),
/// [`Container::start`](super::Container::start), [`delete`](super::Container::delete) and the
/// changing methods of [`Images`](super::Images) are carried out by a fresh process with one thread,
/// which reports back over a socket. A caller may have as many threads as it likes, and call from all of
/// them at a time.
///
/// What a caller should know of that process:
/// - It is `/proc/self/exe` under the name `dhow-helper`. Before a container is entered it runs itself
///   anew from a read-only mount, so that nothing inside can write to the program (CVE-2019-5736). Link
///   statically where you can: a container's init is this program until its own takes its place.
/// - It has the caller's working directory, environment, and the standard streams that [`Create`]
///   (super::Create) or [`Exec`](super::Exec) were given. NOTIFY_SOCKET and LISTEN_FDS are not passed on.
/// - One stays with each container and each process that was made, as its parent, and keeps the exit code; it
///   leaves the caller's session, outlives the caller, and ends with its charge. It is no child of the
///   caller: a caller that is PID 1 or a child subreaper gets it, and has to wait for it.
/// - Do nothing before this call that must not be done twice.
///
/// ```
/// // the first line of main
/// dhow::helper();
/// ```
pub fn helper() {
    reaper::be_it_if_asked();
    CALLED.store(true, Ordering::Relaxed);
    let mut argv = std::env::args();
    if argv.next().as_deref() != Some(NAME) {
        return;
    }
    let (word, number) = (argv.next().unwrap_or_default(), argv.next().unwrap_or_default());
    let Some(socket) = number.parse().ok().and_then(fd::adopt) else {
        eprintln!("{NAME}: this is started by the dhow library, not by hand");
        exit_now(1)
    };
    if let Err(error) = serve(&socket, word == ENTERS) {
        let _ = tell(&socket, &Reply { warnings: Vec::new(), outcome: Err(error) });
        exit_now(1)
    }
    exit_now(0)
}

fn serve(socket: &OwnedFd, enters: bool) -> Result<()> {
    if enters {
        selfexe::protect().doing("protect the program")?;
    }
    // Whatever else the caller has left open is none of the container's business.
    fd::cloexec_from(3).doing("prepare the helper")?;
    let job: Job = hear(socket)?.ok_or_else(|| Error::new(Class::Internal, "hear the request"))?;
    if job.work.stays()
        && let Forked::Parent(_) = clone3(CloneFlags::empty(), 0, None).doing("stay with the process")?
    {
        // So that the one that stays is nobody's child whom nobody waits for.
        exit_now(0);
    }
    let memory = rustix::fs::memfd_create("dhow-log", MemfdFlags::CLOEXEC).doing("prepare the helper")?;
    let mut written = File::from(memory);
    let file = written.try_clone().doing("prepare the helper")?;
    log::init(log::Sink { file: Some(file), format: Some(log::Format::Json), level: log::Level::Warning });
    let context = job.context();
    let (outcome, after) = match carry_out(&context, job.work) {
        Ok((answer, after)) => (Ok(answer), after),
        Err(error) => (Err(error), After::Nothing),
    };
    tell(socket, &Reply { warnings: warnings(&mut written), outcome })?;
    stay(&context, socket, after)
}

/// What was logged, line by line.
fn warnings(written: &mut File) -> Vec<String> {
    let mut text = String::new();
    let _ = written.rewind().and_then(|()| written.read_to_string(&mut text));
    let message = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        line["msg"].as_str().map(str::to_owned)
    };
    text.lines().filter_map(message).take(100).collect()
}

/// Waits for the child that was made, and tells how it ended.
fn stay(context: &Context, socket: &OwnedFd, after: After) -> Result<()> {
    match after {
        After::Nothing => Ok(()),
        After::Container(id, child) => {
            // Its zombie stays until that is done: whoever looks meanwhile sees how it ended.
            let code = wait_apart(&child)?;
            match runtime::exited(context, &id, child.pid.as_raw(), code) {
                // It was deleted meanwhile.
                Err(error) if error.class == Class::NoContainer => Ok(()),
                written => written.map(drop),
            }
        }
        After::Process(child) => {
            let code = wait_apart(&child)?;
            let _ = nix::sys::wait::waitpid(child.pid, None);
            tell(socket, &Ended { code })
        }
    }
}

/// Lets go of all that is the caller's, and waits for a child's end; the child stays a zombie until this
/// process ends too.
fn wait_apart(child: &Child) -> Result<i32> {
    let doing = "stay with the process";
    let null = File::options().read(true).write(true).open("/dev/null").doing(doing)?;
    for number in 0..3 {
        fd::install_as(null.as_fd(), number).doing(doing)?;
    }
    // A leader of a group, as a shell's job is, is refused, and need not leave.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").doing(doing)?;
    loop {
        match waitid(Id::Pid(child.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing(doing),
        }
    }
}

fn tell<T: serde::Serialize>(socket: &OwnedFd, message: &T) -> Result<()> {
    let doing = "talk to the helper";
    let text = serde_json::to_vec(message)
        .map_err(|error| Error::new(Class::Internal, doing).because(error.to_string()))?;
    socket::send(socket.as_fd(), &[&text], &[]).doing(doing)
}

/// The next message; `None` when the other end is gone.
fn hear<T: DeserializeOwned>(socket: &OwnedFd) -> Result<Option<T>> {
    let doing = "hear the helper";
    let mut buffer = vec![0; MOST];
    let (length, _) = match socket::receive(socket.as_fd(), &mut buffer) {
        Err(Errno::ECONNRESET) => (0, Vec::new()),
        received => received.doing(doing)?,
    };
    match &buffer[..length] {
        [] => Ok(None),
        text => serde_json::from_slice(text)
            .map(Some)
            .map_err(|error| Error::new(Class::Internal, doing).because(error.to_string())),
    }
}

/// The standard streams of what is made; those of the caller where none is given.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub stdin: Option<Stdio>,
    pub stdout: Option<Stdio>,
    pub stderr: Option<Stdio>,
}

/// Has a helper do something. Answers with the socket on which a helper that stays will tell the end.
pub(super) fn ask(runtime: &Runtime, work: Work, streams: Streams) -> Result<(Answer, OwnedFd)> {
    let doing = "start the helper";
    if runtime.program.is_none() && !CALLED.load(Ordering::Relaxed) {
        return Err(Error::new(Class::Usage, doing)
            .because("this program has not called dhow::helper()")
            .hint("call it first in main, or name a program that does with Runtime::helper_program"));
    }
    let kind = SockType::SeqPacket;
    let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).doing(doing)?;
    let word = if work.enters() { ENTERS } else { "do" };
    let mut command = command(runtime, word, theirs.as_fd());
    command.stdin(streams.stdin.unwrap_or_else(Stdio::inherit));
    command.stdout(streams.stdout.unwrap_or_else(Stdio::inherit));
    command.stderr(streams.stderr.unwrap_or_else(Stdio::inherit));
    let shown = || command.get_program().to_string_lossy().into_owned();
    let shown = shown();
    tell(&ours, &Job::new(&runtime.context, work))?;
    let mut child = command.spawn().doing_on(doing, || shown.clone())?;
    // The last copies of this side's streams and of the helper's end of the socket.
    drop((command, theirs));
    let reply = hear::<Reply>(&ours);
    // A caller that ignores SIGCHLD has the kernel wait for its children.
    let status = child.wait().ok();
    let reply = reply?.ok_or_else(|| {
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        Error::new(Class::Internal, doing).on(shown).because(format!("it ended without an answer{status}"))
    })?;
    if let Some(warned) = &runtime.warned {
        reply.warnings.iter().for_each(|warning| warned(warning));
    }
    reply.outcome.map(|answer| (answer, ours))
}

fn command(runtime: &Runtime, word: &str, socket: BorrowedFd<'_>) -> Command {
    let own = || "/proc/self/exe".into();
    let mut command = Command::new(runtime.program.clone().unwrap_or_else(own));
    let number = socket.as_raw_fd();
    command.arg0(NAME).arg(word).arg(number.to_string());
    // The caller's manager waits for the caller's word, and its sockets are the caller's.
    for name in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    before_exec(&mut command, move || fd::keep_on_exec(number).map_err(|errno| errno as i32));
    command
}

/// Waits until a helper tells how its charge has ended.
pub(super) fn await_end(socket: &OwnedFd) -> Result<i32> {
    let ended: Option<Ended> = hear(socket)?;
    ended.map(|ended| ended.code).ok_or_else(|| {
        Error::new(Class::System, "wait for the process").because("its helper was killed before it ended")
    })
}
