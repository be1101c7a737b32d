//! A container: its state, and what can be done with it.

use super::exec::Exec;
use super::handle::Runtime;
use super::helper::{Streams, ask};
use super::job::Work;
use super::stats::{Event, Limits, Stats};
use crate::error::{Class, Error, Result};
use crate::runtime;
use crate::state;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What a container is at this moment. docs/states.md has the table of what can be done when.
///
/// ```
/// use dhow::Status;
///
/// assert_eq!("exited".parse(), Ok(Status::Exited));
/// assert_eq!(Status::Exited.to_string(), "exited");
/// assert_eq!(Status::Exited.oci_name(), "stopped");
/// assert!("stopped".parse::<Status>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// It is being made.
    Creating,
    /// Its init waits for [`Container::start`].
    Created,
    /// Its payload runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its payload has ended, and its monitor waits to start it anew (`dhow run --restart`).
    Restarting,
    /// Its payload has ended.
    Exited,
    /// It is being deleted.
    Removing,
    /// The host rebooted under it, or something of it could not be taken back. It can be deleted.
    Dead,
}

impl Status {
    const PAIRS: [(Status, state::Status); 8] = [
        (Status::Creating, state::Status::Creating),
        (Status::Created, state::Status::Created),
        (Status::Running, state::Status::Running),
        (Status::Paused, state::Status::Paused),
        (Status::Restarting, state::Status::Restarting),
        (Status::Exited, state::Status::Exited),
        (Status::Removing, state::Status::Removing),
        (Status::Dead, state::Status::Dead),
    ];

    fn inner(self) -> state::Status {
        Status::PAIRS.iter().find(|pair| pair.0 == self).map_or(state::Status::Dead, |pair| pair.1)
    }

    fn of(status: state::Status) -> Status {
        Status::PAIRS.iter().find(|pair| pair.1 == status).map_or(Status::Dead, |pair| pair.0)
    }

    /// The word of the runtime specification (runtime.md, State), which has `stopped` for the last four,
    /// and `paused`, which runc added.
    pub fn oci_name(self) -> &'static str {
        self.inner().oci_name()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.inner().name())
    }
}

impl FromStr for Status {
    type Err = Error;

    fn from_str(text: &str) -> Result<Status> {
        let found = Status::PAIRS.iter().find(|pair| pair.1.name() == text);
        found.map(|pair| pair.0).ok_or_else(|| Error::new(Class::Usage, "unknown status").on(text))
    }
}

/// How a payload, or another process of a container, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// Its exit code; 128 + N when signal N ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of the container for want of memory. Told of containers, not
    /// of single processes.
    pub out_of_memory: bool,
}

impl Exit {
    pub(super) fn of_code(code: i32) -> Exit {
        Exit { code, signal: state::Exit::signal_of(code), out_of_memory: false }
    }

    fn of(exit: &state::Exit) -> Exit {
        Exit { code: exit.code, signal: exit.signal, out_of_memory: exit.oom }
    }
}

/// A container as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// Its id.
    pub id: String,
    /// What it is.
    pub status: Status,
    /// The init's pid, in the caller's pid namespace; `None` when it has ended.
    pub pid: Option<u32>,
    /// How its payload ended, once that is known.
    pub exit: Option<Exit>,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The annotations of its config.json.
    pub annotations: BTreeMap<String, String>,
}

/// The number of a signal by its name, signal(7): `TERM`, `SIGTERM`, `15`, `RTMIN+1`.
///
/// # Errors
/// [`Class::Usage`].
///
/// ```
/// assert_eq!(dhow::signal("TERM")?, 15);
/// assert_eq!(dhow::signal("SIGRTMIN+3")?, 37);
/// assert_eq!(dhow::signal("NOSUCH").unwrap_err().class, dhow::Class::Usage);
/// # Ok::<(), dhow::Error>(())
/// ```
pub fn signal(name: &str) -> Result<i32> {
    runtime::parse_signal(name)
}

/// A container, by its id. It holds nothing open, and what it does not know it asks: so another program,
/// the `dhow` command among them, may work on the same container at the same time.
///
/// All methods answer [`Class::NoContainer`] when there is none of that id, and those that change it
/// [`Class::WrongState`] when its state does not allow it, or another command works on it for more than
/// 20 seconds.
#[derive(Debug, Clone)]
pub struct Container {
    runtime: Runtime,
    id: String,
}

impl Container {
    pub(super) fn new(runtime: Runtime, id: String) -> Container {
        Container { runtime, id }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is now.
    ///
    /// # Errors
    /// [`Class::NoContainer`]; [`Class::Corrupt`] when its record cannot be read.
    pub fn state(&self) -> Result<State> {
        let found = runtime::Container::open(&self.runtime.context, &self.id)?;
        Ok(State {
            id: self.id.clone(),
            status: Status::of(found.status),
            pid: u32::try_from(found.pid()).ok().filter(|pid| *pid != 0),
            exit: found.exit().map(Exit::of),
            bundle: found.record.bundle,
            created: found.record.created,
            annotations: found.record.annotations,
        })
    }

    /// Runs the payload; returns once it runs. By a helper process.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it is not [`Status::Created`]; [`Class::CommandNotFound`] and
    /// [`Class::CommandDenied`] when the kernel does not execute its program; [`Class::Hook`].
    pub fn start(&self) -> Result<()> {
        self.have_done(Work::Start { id: self.id.clone() })
    }

    /// Sends a signal, by its number, to the init; SIGKILL ends every process of the container.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it has ended; [`Class::Usage`] when there is no such signal.
    pub fn kill(&self, signal: i32) -> Result<()> {
        runtime::kill(&self.runtime.context, &self.id, signal, false)
    }

    /// Sends a signal, by its number, to every process in its cgroup.
    ///
    /// # Errors
    /// Those of [`kill`](Container::kill).
    pub fn kill_all(&self, signal: i32) -> Result<()> {
        runtime::kill(&self.runtime.context, &self.id, signal, true)
    }

    /// Asks the payload to end, with its image's stop signal or SIGTERM, and ends it after `patience`. No
    /// error when it has ended.
    ///
    /// # Errors
    /// [`Class::WrongState`]; [`Class::System`] when it is still there ten seconds after SIGKILL.
    pub fn stop(&self, patience: Duration) -> Result<()> {
        runtime::stop(&self.runtime.context, &self.id, patience)
    }

    /// Freezes every process; returns when they all stand still.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it does not run.
    pub fn pause(&self) -> Result<()> {
        runtime::pause(&self.runtime.context, &self.id)
    }

    /// Lets them run on.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it is not [`Status::Paused`].
    pub fn resume(&self) -> Result<()> {
        runtime::resume(&self.runtime.context, &self.id)
    }

    /// Waits until the payload has ended, for good where it has a restart policy. Blocks this thread alone.
    ///
    /// # Errors
    /// [`Class::Unsupported`] when nobody has kept its exit code: it was not made by this library,
    /// and not run with a monitor.
    pub fn wait(&self) -> Result<Exit> {
        let code = runtime::wait(&self.runtime.context, &self.id)?;
        // Deleted meanwhile, the code alone is known.
        let known = self.state().ok().and_then(|state| state.exit);
        Ok(known.filter(|exit| exit.code == code).unwrap_or_else(|| Exit::of_code(code)))
    }

    /// Deletes it once it has ended, or before it was started: its cgroup, its mounts, its record, but not
    /// its bundle. By a helper process.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it runs; what could not be taken back, and then its status is
    /// [`Status::Dead`].
    pub fn delete(&self) -> Result<()> {
        self.have_done(Work::Delete { id: self.id.clone(), force: false })
    }

    /// Ends it if it runs, and deletes it. No error when there is none. By a helper process.
    ///
    /// # Errors
    /// What could not be taken back.
    pub fn destroy(&self) -> Result<()> {
        self.have_done(Work::Delete { id: self.id.clone(), force: true })
    }

    /// Begins to describe another process in it: a program, by its path or its name in the
    /// container's PATH, and its arguments.
    pub fn exec<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) -> Exec {
        Exec::new(self.runtime.clone(), self.id.clone(), args.into_iter().map(Into::into).collect())
    }

    /// What it uses now.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it does not run.
    pub fn stats(&self) -> Result<Stats> {
        let event = runtime::stats(&self.runtime.context, &self.id)?;
        let network = runtime::network(&self.runtime.context, &self.id);
        Ok(Stats::of(&event.data.unwrap_or_default(), network))
    }

    /// Tells what it uses every `interval`, and at once when its memory has run out. Blocks this
    /// thread until its payload has ended or `tell` answers [`ControlFlow::Break`].
    ///
    /// # Errors
    /// [`Class::WrongState`] when it does not run; [`Class::Usage`] for an interval of nothing.
    pub fn events(&self, interval: Duration, mut tell: impl FnMut(Event) -> ControlFlow<()>) -> Result<()> {
        if interval.is_zero() {
            return Err(Error::new(Class::Usage, "tell events").because("the interval is nothing"));
        }
        let context = &self.runtime.context;
        let mut enough = false;
        let told = runtime::events(context, &self.id, interval, &mut |event| {
            let event = match &event.data {
                Some(stats) => Event::Stats(Box::new(Stats::of(stats, runtime::network(context, &self.id)))),
                None => Event::OutOfMemory,
            };
            enough = tell(event).is_break();
            // An error is the only way out of it.
            if enough { Err(Error::new(Class::Internal, "tell events").because("enough")) } else { Ok(()) }
        });
        if enough { Ok(()) } else { told }
    }

    /// Changes its limits. If the kernel does not take one, all keep their old values.
    ///
    /// # Errors
    /// [`Class::WrongState`] when it does not run; [`Class::Config`] with the field, the value and the
    /// range that are wrong; [`Class::System`] when the kernel refuses.
    pub fn update(&self, limits: &Limits) -> Result<()> {
        runtime::update(&self.runtime.context, &self.id, &limits.resources())
    }

    fn have_done(&self, work: Work) -> Result<()> {
        ask(&self.runtime, work, Streams::default()).map(drop)
    }
}
