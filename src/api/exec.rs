//! Another process in a container.

use super::container::Exit;
use super::handle::Runtime;
use super::helper::{Streams, ask, await_end};
use super::job::{Answer, Inside, Work};
use crate::error::{Class, Error, Result};
use crate::state::Init;
use crate::sys::pidfd;
use nix::errno::Errno;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;

/// How another process is run in a container. What is not said is as for the container's own process:
/// user, environment, capabilities, seccomp filter. Ends with [`spawn`](Exec::spawn).
///
/// ```no_run
/// # fn main() -> dhow::Result<()> {
/// # dhow::helper();
/// let exit = dhow::Runtime::new()
///     .container("web")
///     .exec(["sh", "-c", "kill -HUP 1"])
///     .user("0:0")
///     .spawn()?
///     .wait()?;
/// assert_eq!(exit.code, 0);
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is run before spawn is called"]
pub struct Exec {
    runtime: Runtime,
    id: String,
    inside: Inside,
    streams: Streams,
}

impl Exec {
    pub(super) fn new(runtime: Runtime, id: String, args: Vec<String>) -> Exec {
        Exec { runtime, id, inside: Inside { args, ..Inside::default() }, streams: Streams::default() }
    }

    /// Takes everything from a file with a `process` object (config.md, Process), in place of the arguments.
    pub fn process_document(mut self, path: impl Into<PathBuf>) -> Exec {
        self.inside.document = Some(path.into());
        self
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: &str, value: &str) -> Exec {
        self.inside.env.push(format!("{name}={value}"));
        self
    }

    /// Its working directory, a path in the container.
    pub fn cwd(mut self, path: impl Into<String>) -> Exec {
        self.inside.cwd = Some(path.into());
        self
    }

    /// Who it runs as: `UID` or `UID:GID`, in digits.
    pub fn user(mut self, user: impl Into<String>) -> Exec {
        self.inside.user = Some(user.into());
        self
    }

    /// Adds a supplementary group.
    pub fn group(mut self, gid: u32) -> Exec {
        self.inside.groups.push(gid);
        self
    }

    /// Adds a capability, capabilities(7): `CAP_NET_ADMIN`.
    pub fn capability(mut self, name: impl Into<String>) -> Exec {
        self.inside.capabilities.push(name.into());
        self
    }

    /// Sets no_new_privs, prctl(2).
    pub fn no_new_privileges(mut self) -> Exec {
        self.inside.no_new_privileges = true;
        self
    }

    /// Gives it a terminal: a unix socket on which somebody listens for its master, SCM_RIGHTS.
    pub fn console_socket(mut self, path: impl Into<PathBuf>) -> Exec {
        self.inside.console_socket = Some(path.into());
        self
    }

    /// Its standard input; the caller's own unless this is called.
    pub fn stdin(mut self, stream: impl Into<Stdio>) -> Exec {
        self.streams.stdin = Some(stream.into());
        self
    }

    /// Its standard output; the caller's own unless this is called.
    pub fn stdout(mut self, stream: impl Into<Stdio>) -> Exec {
        self.streams.stdout = Some(stream.into());
        self
    }

    /// Its standard error; the caller's own unless this is called.
    pub fn stderr(mut self, stream: impl Into<Stdio>) -> Exec {
        self.streams.stderr = Some(stream.into());
        self
    }

    /// Runs it; returns once the kernel has executed its program. By a helper process.
    ///
    /// # Errors
    /// [`Class::NoContainer`]; [`Class::WrongState`] when the container does not run;
    /// [`Class::CommandNotFound`] and [`Class::CommandDenied`] when the program cannot be executed;
    /// [`Class::Usage`] and [`Class::Config`] for a value that is wrong.
    pub fn spawn(self) -> Result<Process> {
        let work = Work::Exec { id: self.id, process: Box::new(self.inside) };
        match ask(&self.runtime, work, self.streams)? {
            (Answer::Started(process), socket) => Ok(Process { process, socket, exit: None }),
            (other, _) => Err(Error::new(Class::Internal, "run a process").because(format!("{other:?}"))),
        }
    }
}

/// A process that was run in a container. Dropped, it runs on.
#[derive(Debug)]
pub struct Process {
    process: Init,
    socket: OwnedFd,
    exit: Option<Exit>,
}

impl Process {
    /// Its pid, in the caller's pid namespace.
    pub fn pid(&self) -> u32 {
        self.process.pid.unsigned_abs()
    }

    /// Sends it a signal, by its number.
    ///
    /// # Errors
    /// [`Class::NoProcess`] when it has ended; [`Class::Usage`] when there is no such signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        let failed = |errno| match errno {
            Errno::ESRCH => Error::new(Class::NoProcess, "the process has ended"),
            Errno::EINVAL => Error::new(Class::Usage, "unknown signal").on(signal.to_string()),
            _ => Error::system("signal the process", errno),
        };
        let process = pidfd::open(Pid::from_raw(self.process.pid)).map_err(failed)?;
        // From here on the pidfd names one process: the right one if it began when it should.
        if !self.process.is_alive()? {
            return Err(failed(Errno::ESRCH));
        }
        pidfd::send_signal(process.as_fd(), signal).map_err(failed)
    }

    /// Waits until it has ended. Blocks this thread alone.
    ///
    /// # Errors
    /// [`Class::System`] when its helper process was killed.
    pub fn wait(&mut self) -> Result<Exit> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let exit = Exit::of_code(await_end(&self.socket)?);
        self.exit = Some(exit);
        Ok(exit)
    }
}
