//! `run`: create, start, stay until the end, delete.

use super::container::{Container, Context, out_of_memory};
use super::create::{Created, Request, StartedBy, create, go_on};
use super::delete::{delete, remove};
use super::foreground::{Signals, stay};
use super::notify_socket::Relay;
use super::stop::{PAUSE, open_init};
use super::supervise::exited;
use super::{kill, start};
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::process::protocol::Message;
use crate::state::{Phase, Status};
use crate::sys::clone::{Child, Forked, clone3, exit_now};
use crate::sys::{pidfd, timing};
use nix::sched::CloneFlags;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// The exit status of a payload that SIGKILL ended, as the OOM killer does.
const KILLED: i32 = 128 + libc::SIGKILL;

/// How long a `restart` may take to make a container anew.
const RESTART: Duration = Duration::from_secs(20);

/// How `run` differs from `create` and `start`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Returns as soon as the payload runs.
    pub detach: bool,
    /// Leaves the container there, stopped, when the payload has ended.
    pub keep: bool,
    /// When it detaches, lets a process of its own delete the container when the payload has ended.
    pub remove: bool,
}

/// Runs a container. Answers the payload's exit status, 0 when detached.
///
/// # Errors
/// Those of create and start. Nothing is left behind.
pub fn run(context: &Context, request: &Request, options: RunOptions) -> Result<i32> {
    if options.detach && request.console_socket.is_none() {
        refuse_terminal_without_socket(request)?;
    }
    if !options.detach && request.console_socket.is_some() {
        return Err(Error::new(Class::Usage, "cannot use console socket")
            .because("dhow will not detach")
            .hint("give --detach too, or leave out --console-socket"));
    }
    let created = create(context, request, StartedBy::Caller)?;
    let signals = if options.detach { None } else { Some(Signals::hold()?) };
    let Created { locked, record, child, channel, console } = created;
    let container = Container { record: record.clone(), status: Status::Created, unreported: None };
    let relay = Relay::open(&locked);
    timing::step("wait for the payload");
    let started = relay
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|_| channel.send(&Message::Start))
        .and_then(|()| start::confirm(&channel))
        .inspect(|()| timing::step("write down that it runs"))
        .and_then(|()| start::mark_started(&locked, container, Some(&child.pidfd)))
        .and_then(|()| go_on());
    if let Err(error) = started {
        let _ = kill::send(
            &Container { record: record.clone(), status: Status::Created, unreported: None },
            libc::SIGKILL,
        );
        let _ = nix::sys::wait::waitpid(child.pid, None);
        if let Err(error) = remove(locked, record, false) {
            log::warn(&error.to_string());
        }
        return Err(error);
    }
    let Some(signals) = signals else {
        drop((locked, channel, console));
        if let Ok(Some(relay)) = relay {
            relay.until_ready(child.pidfd.as_fd(), child.pid.as_raw())?;
        }
        if options.remove {
            delete_when_ended(context, &request.id, &child)?;
        }
        return Ok(0);
    };
    // Others may pause, exec into or kill the container while it runs.
    drop(locked);
    if let Ok(Some(relay)) = relay {
        relay.in_background(&child)?;
    }
    timing::step("the payload runs");
    let status = stay(&child, &signals, console)?;
    timing::step("delete");
    if status == KILLED {
        // Told before the cgroup that knows it is gone.
        if let Some(words) = Container::open(context, &request.id)
            .and_then(|c| c.cgroup())
            .ok()
            .as_ref()
            .and_then(out_of_memory)
        {
            log::warn(&words);
        }
    }
    if options.keep {
        let written = exited(context, &request.id, child.pid.as_raw(), status).map(drop);
        written.or_else(|error| if error.class == Class::NoContainer { Ok(()) } else { Err(error) })?;
    } else {
        delete_after_last_life(context, &request.id)?;
    }
    Ok(status)
}

/// Deletes a container whose init has ended; one that `restart` is about to make anew, after its next
/// end.
pub(super) fn delete_after_last_life(context: &Context, id: &str) -> Result<()> {
    loop {
        let gone = delete_when_at_rest(context, id).or_else(|error| match error.class {
            // Someone else was faster.
            Class::NoContainer => Ok(true),
            // Someone has made it anew meanwhile.
            Class::WrongState if Container::open(context, id).is_ok_and(|now| now.pid() != 0) => Ok(false),
            _ => Err(error),
        })?;
        if gone {
            return Ok(());
        }
    }
}

/// The same for this life alone: whether it was the last.
fn delete_when_at_rest(context: &Context, id: &str) -> Result<bool> {
    let mut begun = Instant::now();
    loop {
        let container = Container::open(context, id)?;
        if let Some(process) = open_init(&container)? {
            pidfd::wait_ended(process.as_fd(), None).doing("wait for the container")?;
            // However long that life was, the next one has its whole time to begin.
            begun = Instant::now();
        } else if is_coming(&container) && begun.elapsed() < RESTART {
            std::thread::sleep(PAUSE);
        } else {
            return delete(context, id, false).map(|()| true);
        }
    }
}

/// Whether a `restart` is making the container's next life, and has no init yet: a delete that waits for
/// its lock would take the container between create and start.
fn is_coming(container: &Container) -> bool {
    matches!(container.record.phase, Phase::Restarting | Phase::Creating)
}

/// Forks a process that waits for the payload's end and deletes the container.
fn delete_when_ended(context: &Context, id: &str, child: &Child) -> Result<()> {
    let doing = "wait for the container's end";
    if let Forked::Parent(_) = clone3(CloneFlags::empty(), 0, None).doing(doing)? {
        return Ok(());
    }
    // Nobody waits for this one, and nothing of the caller's may be held open by it.
    let waited = (|| {
        let null = std::fs::File::options().read(true).write(true).open("/dev/null").doing(doing)?;
        nix::unistd::setsid().doing(doing)?;
        nix::unistd::dup2_stdin(&null).doing(doing)?;
        nix::unistd::dup2_stdout(&null).doing(doing)?;
        nix::unistd::dup2_stderr(&null).doing(doing)?;
        nix::unistd::chdir("/").doing(doing)?;
        pidfd::wait_ended(child.pidfd.as_fd(), None).doing(doing)?;
        delete_after_last_life(context, id)
    })();
    exit_now(i32::from(waited.is_err()))
}

/// A detached terminal needs a console socket: said before anything is made.
fn refuse_terminal_without_socket(request: &Request) -> Result<()> {
    let config = crate::spec::load::load(&request.bundle)?;
    match config.spec.process {
        Some(process) if process.terminal => Err(Error::new(Class::Config, "cannot allocate tty")
            .on("process.terminal")
            .because("dhow will detach without setting console socket")
            .hint("give --console-socket, or set process.terminal to false")),
        _ => Ok(()),
    }
}
