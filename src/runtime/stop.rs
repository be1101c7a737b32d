//! `stop`, `restart` and `wait`: the end of a payload, asked for or waited for.

use super::container::{Container, Context, monitor_lives};
use super::delete::DYING;
use super::kill::{parse_signal, send};
use super::start::start;
use super::supervise;
use crate::error::{Class, Context as _, Error, Result};
use crate::state::{Init, Intent, Operation, Phase, Status};
use crate::sys::pidfd;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The annotation with the signal that asks a payload to end, from its image.
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// How long a monitor may take to write down an end, or to start the payload anew.
const MONITOR: Duration = Duration::from_secs(20);

/// How often a record is looked at.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Asks a container to end with its stop signal, and after `patience` ends it. One that has ended
/// stays so.
///
/// # Errors
/// [`Class::WrongState`], [`Class::NoContainer`].
pub fn stop(context: &Context, id: &str, patience: Duration) -> Result<()> {
    let container = note(context, id, Operation::Stop, Intent::Stop)?;
    end(&container, patience)?;
    await_report(context, id, container.record.init).map(drop)
}

/// Stops a container and runs its payload anew.
///
/// # Errors
/// Those of [`stop`], create and start.
pub fn restart(context: &Context, id: &str, patience: Duration) -> Result<()> {
    let container = note(context, id, Operation::Restart, Intent::Restart)?;
    let monitored = monitor_lives(&container.record)?;
    let before = container.record.init;
    if container.status == Status::Restarting {
        supervise::wake(&container.record);
        return await_life(context, id, before);
    }
    let ran = container.pid() != 0;
    end(&container, patience)?;
    if monitored && ran {
        return await_life(context, id, before);
    }
    if container.record.supervision.is_some() {
        let code = supervise::run_again(context, &container.record)?;
        return match code {
            0 => Ok(()),
            _ => Err(Error::new(Class::System, "restart the container")
                .on(id)
                .because("its monitor has said why")),
        };
    }
    supervise::revive(context, id, false)?;
    start(context, id)
}

/// Waits until a container has ended for good; its exit code.
///
/// # Errors
/// [`Class::Unsupported`] when nobody has kept its exit code.
pub fn wait(context: &Context, id: &str) -> Result<i32> {
    let mut container = Container::open(context, id)?;
    let mut known = None;
    while !matches!(container.status, Status::Exited | Status::Dead | Status::Removing) {
        if let Some(process) = open_init(&container)? {
            pidfd::wait_ended(process.as_fd(), None).doing("wait for the container")?;
            known = pidfd::exit_status(process.as_fd());
        }
        container = match await_report(context, id, container.record.init) {
            // Deleted as soon as it had ended.
            Err(error) if error.class == Class::NoContainer && known.is_some() => break,
            settled => settled?,
        };
    }
    container.exit().map(|exit| exit.code).or(known).ok_or_else(|| {
        Error::new(Class::Unsupported, "tell the exit code")
            .on(id)
            .because("nobody waited for it")
            .hint("`dhow run --detach --monitor` keeps it")
    })
}

/// Writes down what is wanted before anything is done: a monitor asks for it when the init ends.
fn note(context: &Context, id: &str, operation: Operation, intent: Intent) -> Result<Container> {
    let (locked, mut container) = Container::lock(context, id)?;
    container.allow(operation)?;
    let waits = container.status == Status::Restarting;
    let runs = container.pid() != 0;
    let Some(supervision) = container.record.supervision.as_mut().filter(|_| runs || waits) else {
        if runs && operation == Operation::Restart {
            // Whoever waits to delete it at its end is to let it live on.
            container.record.phase = Phase::Restarting;
            locked.write(&container.record)?;
        }
        return Ok(container);
    };
    supervision.intent = intent;
    if intent == Intent::Stop && waits {
        supervise::dismiss(&container.record);
        container.record.phase = Phase::Started;
    }
    locked.write(&container.record)?;
    Ok(container)
}

pub(super) fn open_init(container: &Container) -> Result<Option<OwnedFd>> {
    let Some(init) = container.record.init.filter(|_| container.pid() != 0) else { return Ok(None) };
    match pidfd::open(Pid::from_raw(init.pid)) {
        Err(nix::errno::Errno::ESRCH) => Ok(None),
        opened => opened.doing("open the container's init").map(Some),
    }
}

/// Ends the init: asks, waits, insists.
fn end(container: &Container, patience: Duration) -> Result<()> {
    let Some(process) = open_init(container)? else { return Ok(()) };
    let asked = match container.record.annotations.get(STOP_SIGNAL).filter(|name| !name.is_empty()) {
        Some(name) => {
            parse_signal(name).map_err(|error| error.on(format!("annotation {STOP_SIGNAL} {name:?}")))?
        }
        None => libc::SIGTERM,
    };
    // An init that waits for `start` has no payload to be asked.
    let asked = if container.status == Status::Created { libc::SIGKILL } else { asked };
    for (signal, patience) in [(asked, patience), (libc::SIGKILL, DYING)] {
        match send(container, signal) {
            Err(error) if error.class == Class::WrongState => return Ok(()),
            sent => sent?,
        }
        if container.status == Status::Paused {
            container.cgroup()?.thaw()?;
        }
        if pidfd::wait_ended(process.as_fd(), Some(patience)).doing("wait for the container")? {
            return Ok(());
        }
    }
    Err(Error::new(Class::System, "stop the container")
        .on(container.record.id.clone())
        .because(format!("it is still there {} seconds after SIGKILL", DYING.as_secs())))
}

/// Waits until the monitor, if there is one, has written down how that init ended.
fn await_report(context: &Context, id: &str, init: Option<Init>) -> Result<Container> {
    let begun = Instant::now();
    loop {
        let container = Container::open(context, id)?;
        let settled = container.record.init != init
            || container.record.exit.is_some()
            || container.pid() != 0
            || !monitor_lives(&container.record)?;
        if settled || begun.elapsed() > MONITOR {
            if container.status == Status::Restarting {
                std::thread::sleep(PAUSE);
            }
            return Ok(container);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until another init has taken the old one's place and runs the payload.
fn await_life(context: &Context, id: &str, before: Option<Init>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let container = Container::open(context, id)?;
        let is_new = container.record.init != before;
        if is_new && container.status == Status::Running {
            return Ok(());
        }
        let ran = container.record.phase == Phase::Started || container.record.exit.is_some();
        if is_new && ran && matches!(container.status, Status::Exited | Status::Restarting) {
            // It has ended already, and may be waiting for its next life.
            return Ok(());
        }
        if begun.elapsed() > MONITOR || !monitor_lives(&container.record)? && !is_new {
            return Err(Error::new(Class::System, "restart the container")
                .on(id)
                .because(format!("it is {}, and its monitor has not started it", container.status.name())));
        }
        std::thread::sleep(PAUSE);
    }
}
