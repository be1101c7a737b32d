//! A container as commands see it: its record, and what is true of it now.

use crate::cgroups::{self, Driver, Manager, Placement};
use crate::error::{Class, Context as _, Error, Result};
use crate::process::protocol::{Channel, Message};
use crate::spec::{NamespaceKind, State};
use crate::state::{Exit, Facts, Init, Locked, Next, Operation, Phase, Record, Status, Store};
use nix::errno::Errno;
use nix::unistd::geteuid;
use rustix::fs::{Mode, OFlags};
use serde_json::value::RawValue;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// What holds for every command of one call: where containers are, who makes cgroups.
#[derive(Debug, Clone)]
pub struct Context {
    /// The containers.
    pub store: Store,
    /// Where the image store is.
    pub images: PathBuf,
    /// Who makes cgroups.
    pub cgroups: Driver,
    /// Whether dhow runs without root's rights.
    pub rootless: bool,
}

impl Context {
    /// A context on a directory of containers.
    pub fn new(root: impl Into<PathBuf>, cgroups: Driver, rootless: bool) -> Context {
        let images = PathBuf::from("/var/lib/dhow/images");
        Context { store: Store::new(root), images, cgroups, rootless }
    }

    /// A context on everything below a directory, or on the usual places.
    pub fn usual(root: Option<PathBuf>, cgroups: Driver, rootless: bool) -> Context {
        // No container can be called so.
        let images = root.as_ref().map_or_else(default_images, |root| root.join("@images"));
        let context = Context::new(root.unwrap_or_else(default_root), cgroups, rootless);
        Context { images, ..context }
    }
}

/// Where containers are when `--root` does not say: gone with a reboot, as engines expect.
fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !geteuid().is_root() && !directory.is_empty() => {
            PathBuf::from(directory).join("dhow")
        }
        _ => PathBuf::from("/run/dhow"),
    }
}

/// Where images are when `--root` does not say: there after a reboot.
fn default_images() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // Few set the first: "If $XDG_DATA_HOME is either not set or empty, a default equal to
    // $HOME/.local/share should be used" (XDG Base Directory Specification).
    let own = || variable("XDG_DATA_HOME").or_else(|| Some(variable("HOME")?.join(".local/share")));
    let data = if geteuid().is_root() { None } else { own() };
    data.unwrap_or_else(|| "/var/lib".into()).join("dhow/images")
}

/// A container that exists, as its record tells and as it is now.
#[derive(Debug)]
pub struct Container {
    /// What is stored of it.
    pub record: Record,
    /// What it is.
    pub status: Status,
    /// How an init ended whose monitor has not written it down yet: its zombie tells, but not when.
    pub unreported: Option<Exit>,
}

impl Container {
    /// Looks at a container, without any lock.
    ///
    /// # Errors
    /// [`Class::NoContainer`], [`Class::Corrupt`].
    pub fn open(context: &Context, id: &str) -> Result<Container> {
        let container = Container::from_record(context.store.read(id)?)?;
        match container.was_overtaken() {
            true => Container::from_record(context.store.read(id)?),
            false => Ok(container),
        }
    }

    /// Locks a container and looks at it.
    ///
    /// # Errors
    /// As for [`Container::open`]; [`Class::WrongState`] when another command keeps the lock.
    pub fn lock(context: &Context, id: &str) -> Result<(Locked, Container)> {
        let locked = context.store.lock(id)?;
        let record = locked.read()?.ok_or_else(|| crate::state::no_container(id))?;
        Ok((locked, Container::from_record(record)?))
    }

    /// A container by its record: looks whether its init lives and its cgroup is frozen.
    ///
    /// # Errors
    /// [`Class::Corrupt`] when the record's cgroup makes no sense.
    pub fn from_record(record: Record) -> Result<Container> {
        let same_boot = record.boot == boot_id()?;
        let stat = if same_boot { record.init.map_or(Ok(None), Init::stat)? } else { None };
        let alive = stat.is_some_and(|stat| !stat.has_ended());
        let executed = record.restored || stat.is_some_and(|stat| stat.has_executed);
        let frozen = alive && manager_of(&record)?.is_frozen()?;
        let monitored = same_boot && record.phase == Phase::Restarting && monitor_lives(&record)?;
        let status = Status::of(Facts { phase: record.phase, same_boot, alive, executed, frozen, monitored });
        let mut container = Container { record, status, unreported: None };
        if status == Status::Exited && container.awaits_report() && monitor_lives(&container.record)? {
            container.foresee(stat.and_then(|stat| stat.exit_code))?;
        }
        Ok(container)
    }

    /// Whether nobody has written down yet how its init ended, though somebody should.
    fn awaits_report(&self) -> bool {
        self.record.exit.is_none() && self.record.supervision.is_some()
    }

    /// Whether its monitor has written down the end, and let the init go, between the look at the
    /// record and the look at the init.
    pub(super) fn was_overtaken(&self) -> bool {
        self.status == Status::Exited && self.awaits_report() && self.unreported.is_none()
    }

    /// Says of an end what its monitor is about to write down.
    fn foresee(&mut self, code: Option<i32>) -> Result<()> {
        let (Some(code), Some(mut supervision)) = (code, self.record.supervision.clone()) else {
            return Ok(());
        };
        let oom = out_of_memory(&self.cgroup()?).is_some();
        self.unreported = Some(Exit { code, signal: Exit::signal_of(code), at: String::new(), oom });
        if supervision.next(code, Duration::ZERO) != Next::End {
            self.status = Status::Restarting;
        }
        Ok(())
    }

    /// How the payload ended, where somebody waits for it.
    pub fn exit(&self) -> Option<&Exit> {
        self.record.exit.as_ref().or(self.unreported.as_ref())
    }

    /// Whether an operation may be done now.
    ///
    /// # Errors
    /// [`Class::WrongState`], in the words that engines look for.
    pub fn allow(&self, operation: Operation) -> Result<()> {
        self.status.allow(operation, &self.record.id)
    }

    /// The container's cgroup.
    ///
    /// # Errors
    /// [`Class::Corrupt`].
    pub fn cgroup(&self) -> Result<Manager> {
        manager_of(&self.record)
    }

    /// The init's pid, 0 when it has ended.
    pub fn pid(&self) -> i32 {
        match self.status {
            Status::Restarting | Status::Exited | Status::Removing | Status::Dead => 0,
            _ => self.record.init.map_or(0, |init| init.pid),
        }
    }

    /// The state document of the specification, with another status where a hook is to see one.
    pub fn state<'a>(&'a self, status: Option<&'a str>) -> State<'a> {
        State {
            oci_version: &self.record.oci_version,
            id: &self.record.id,
            status: status.unwrap_or(self.status.oci_name()),
            pid: self.pid(),
            bundle: self.record.bundle.to_str().unwrap_or_default(),
            annotations: &self.record.annotations,
        }
    }

    /// The kinds of namespaces that it does not share with the runtime.
    pub fn namespaces(&self) -> Vec<NamespaceKind> {
        self.record.namespaces.iter().filter_map(|name| NamespaceKind::from_name(name)).collect()
    }
}

/// The cgroup of a record; [`Manager::Disabled`] when it has none.
pub(super) fn manager_of(record: &Record) -> Result<Manager> {
    let Some(stored) = record.cgroup() else { return Ok(Manager::Disabled) };
    let stored: cgroups::Record = serde_json::from_str(stored.get()).map_err(|error| {
        Error::new(Class::Corrupt, "read the state record").on("cgroup").because(error.to_string())
    })?;
    Ok(Manager::from_record(&stored))
}

/// Whether the monitor of a container is there.
pub(super) fn monitor_lives(record: &Record) -> Result<bool> {
    record.supervision.as_ref().and_then(|supervision| supervision.monitor).map_or(Ok(false), Init::is_alive)
}

/// The form of a cgroup in the journal.
pub(super) fn stored(manager: &Manager) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(&manager.record())
        .map_err(|error| Error::new(Class::Internal, "write the state record").because(error.to_string()))
}

/// What the kernel did to a container whose memory ran out, in words; `None` when it did nothing.
pub(super) fn out_of_memory(cgroup: &Manager) -> Option<String> {
    let oom = cgroup.oom().ok().flatten().filter(|oom| oom.kills > 0)?;
    let limit =
        oom.limit.map_or_else(|| "no limit of its own".to_owned(), |limit| format!("limit {limit} bytes"));
    Some(format!("out of memory: the kernel killed {} of the container's processes ({limit})", oom.kills))
}

/// Tells a child that all is there, with the files by which it enters its cgroup.
pub(super) fn let_proceed(channel: &Channel, placement: Placement) -> Result<()> {
    let tasks = match placement {
        Placement::Tasks(tasks) | Placement::Hybrid(_, tasks) => tasks,
        Placement::None | Placement::IntoCgroup(_) => Vec::new(),
    };
    hand_over(channel, &Message::Proceed(tasks))
}

/// Sends the init what it waits for, or will.
///
/// # Errors
/// The reason why it has ended, if it said one.
pub(super) fn hand_over(channel: &Channel, message: &Message) -> Result<()> {
    channel.send(message).map_err(|error| match error.errno.map(Errno::from_raw) {
        // One that has ended before it could listen may have said why. Of one that still listens
        // nothing would ever come.
        Some(Errno::EPIPE | Errno::ECONNRESET) => channel.expect().err().unwrap_or(error),
        _ => error,
    })
}

/// Names this boot of the host (random(4), boot_id). To guess would be to take what runs for what
/// another boot has left.
///
/// # Errors
/// When /proc does not tell.
pub(super) fn boot_id() -> Result<&'static str> {
    const FILE: &str = "/proc/sys/kernel/random/boot_id";
    static BOOT: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT.get() {
        return Ok(known);
    }
    let mut text = [0_u8; 64];
    let length = rustix::fs::open(FILE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut text))
        .doing_on("tell this boot of the host", || FILE)?;
    let text = String::from_utf8_lossy(&text[..length]);
    Ok(BOOT.get_or_init(|| text.trim_end().to_owned()))
}
