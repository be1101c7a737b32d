//! A payload in the foreground: its signals, its terminal, its exit status.

use crate::error::{Context as _, Result};
use crate::spec::{ConsoleSize, Process};
use crate::sys::clone::Child;
use crate::sys::{pidfd, tty};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use rustix::termios::{OptionalActions, OutputModes, Termios};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How long, after the payload's end, the terminal must be silent to count as read to its end
/// when a process that the payload left behind keeps it open. Milliseconds.
const SILENCE: u8 = 50;

/// The signals of this process, held back so that they can be passed on to the payload.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Holds back every signal that can be: before the payload starts, so that none is lost.
    ///
    /// # Errors
    /// EMFILE and their like.
    pub fn hold() -> Result<Signals> {
        let mut held = SigSet::all();
        // A fault of dhow's own must still end it, and Ctrl-Z stop it.
        for own in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGABRT,
            Signal::SIGTSTP,
            Signal::SIGTTIN,
            Signal::SIGTTOU,
            Signal::SIGPIPE,
        ] {
            held.remove(own);
        }
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&held), None).doing("hold back signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals { fd: SignalFd::with_flags(&held, flags).doing("hold back signals")? })
    }
}

/// Stays with a payload until it ends: passes on signals and, with its terminal, what is typed
/// and what it writes. Answers the exit status, 128 + number for a signal.
///
/// # Errors
/// poll(2)'s and waitpid(2)'s.
pub fn stay(child: &Child, signals: &Signals, console: Option<OwnedFd>) -> Result<i32> {
    let mut console = console.map(Console::take).transpose()?;
    loop {
        let events = wait(child, signals, console.as_mut())?;
        if events.signal {
            pass_on(child, signals, console.as_ref());
        }
        if events.ended {
            break;
        }
    }
    let status = exit_status(child)?;
    if let Some(console) = &mut console {
        console.drain();
    }
    Ok(status)
}

/// Gives a terminal that will be shown on the caller's the size of that one, from its first moment.
pub fn size_as_caller(process: &mut Process) {
    if process.terminal && process.console_size.is_none() {
        process.console_size = tty::window_size(rustix::stdio::stdin())
            .ok()
            .map(|(height, width)| ConsoleSize { height, width });
    }
}

#[derive(Debug, Default)]
struct Events {
    ended: bool,
    signal: bool,
}

/// Waits until something happens, and moves what the terminal and the user have to say.
fn wait(child: &Child, signals: &Signals, console: Option<&mut Console>) -> Result<Events> {
    let stdin = rustix::stdio::stdin();
    let Some(console) = console else {
        let mut fds = [watch(child.pidfd.as_fd()), watch(signals.fd.as_fd())];
        poll_all(&mut fds)?;
        return Ok(Events { ended: is_ready(&fds[0]), signal: is_ready(&fds[1]) });
    };
    let mut to_console = PollFlags::POLLIN;
    to_console.set(PollFlags::POLLOUT, !console.typed.is_empty());
    let (ended, signal, input, output) = {
        let mut fds = [
            watch(child.pidfd.as_fd()),
            watch(signals.fd.as_fd()),
            PollFd::new(console.master.as_fd(), to_console),
            watch(stdin),
        ];
        // More is read only when what was typed before has been taken.
        let watched = if console.reads_input && console.typed.is_empty() { 4 } else { 3 };
        poll_all(&mut fds[..watched])?;
        (is_ready(&fds[0]), is_ready(&fds[1]), watched == 4 && is_ready(&fds[3]), is_ready(&fds[2]))
    };
    if input {
        console.read_input(stdin);
    }
    if output || !console.typed.is_empty() {
        console.type_in();
        console.show();
    }
    Ok(Events { ended, signal })
}

fn watch(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    fd.any().unwrap_or(false)
}

fn poll_all(fds: &mut [PollFd<'_>]) -> Result<()> {
    match poll(fds, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno).doing("wait for the container"),
    }
}

/// Gives the signals that came to the payload; a change of the window's size to its terminal.
fn pass_on(child: &Child, signals: &Signals, console: Option<&Console>) {
    while let Ok(Some(signal)) = signals.fd.read_signal() {
        let number = signal.ssi_signo.cast_signed();
        match number {
            libc::SIGCHLD => {}
            libc::SIGWINCH if console.is_some() => {
                if let Some(console) = console {
                    console.resize();
                }
            }
            // It may have ended meanwhile, which the pidfd tells.
            _ => drop(pidfd::send_signal(child.pidfd.as_fd(), number)),
        }
    }
}

fn exit_status(child: &Child) -> Result<i32> {
    loop {
        match waitpid(child.pid, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return Ok(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                if signal == Signal::SIGSYS {
                    super::filter::tell(child.pid.as_raw());
                }
                return Ok(128 + signal as i32);
            }
            // nix has no names for real-time signals; a payload that one ends is rare.
            Err(Errno::EINVAL) => return Ok(128),
            Ok(_) => {}
            Err(errno) => return Err(errno).doing("wait for the payload"),
        }
    }
}

/// The payload's terminal, and the caller's own.
#[derive(Debug)]
struct Console {
    master: OwnedFd,
    /// What was typed and not yet taken by the payload.
    typed: Vec<u8>,
    reads_input: bool,
    /// How the caller's terminal was, to be given back.
    original: Option<Termios>,
}

impl Console {
    /// Makes the caller's terminal raw, if it is one, so that every key reaches the payload.
    fn take(master: OwnedFd) -> Result<Console> {
        let stdin = rustix::stdio::stdin();
        let original = rustix::termios::tcgetattr(stdin).ok();
        if let Some(original) = &original {
            let mut raw = original.clone();
            raw.make_raw();
            // The payload's terminal leaves newlines alone, so that this one has to return the
            // carriage, as it does for every other program.
            raw.output_modes |= OutputModes::OPOST;
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).doing("make the terminal raw")?;
        }
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing("prepare the terminal")?;
        let console = Console { master, typed: Vec::new(), reads_input: true, original };
        console.resize();
        Ok(console)
    }

    /// Gives the payload's terminal the size of the caller's.
    fn resize(&self) {
        if let Ok((rows, columns)) = tty::window_size(rustix::stdio::stdin()) {
            let _ = tty::set_window_size(self.master.as_fd(), rows, columns);
        }
    }

    fn read_input(&mut self, stdin: BorrowedFd<'_>) {
        let mut buffer = [0_u8; 4096];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) | Err(_) => self.reads_input = false,
            Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
        }
    }

    fn type_in(&mut self) {
        if self.typed.is_empty() {
            return;
        }
        match rustix::io::write(&self.master, &self.typed) {
            Ok(length) => drop(self.typed.drain(..length)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // Nobody has the terminal open any more.
            Err(_) => self.typed.clear(),
        }
    }

    /// Writes out what there is; whether there was anything.
    fn show(&self) -> bool {
        let mut buffer = [0_u8; 16384];
        let Ok(length @ 1..) = rustix::io::read(&self.master, &mut buffer) else { return false };
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match rustix::io::write(rustix::stdio::stdout(), rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Shows all that the payload wrote before its end. The kernel hands it over a little later;
    /// once nobody has the terminal open, reading ends with EIO, after the last byte.
    fn drain(&mut self) {
        loop {
            let mut fds = [watch(self.master.as_fd())];
            match poll(&mut fds, PollTimeout::from(SILENCE)) {
                Ok(1..) if fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) => {
                    if !self.show() {
                        return;
                    }
                }
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Some(original) = &self.original {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, original);
        }
    }
}
