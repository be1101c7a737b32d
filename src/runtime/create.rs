//! `create`: from a bundle to an init that waits for `start`.
//!
//! The container is a value whose type says how far it has come, and whose Drop takes back what
//! it did: [`Planned`] (in `planned.rs`) has touched nothing, [`Recorded`] has a record and a lock, [`Spawned`] has
//! a cgroup and a process, [`Created`] is done.

use super::cni::{self, Network};
use super::container::{self, Container, Context};
use super::handover::{
    connect_console_socket, connect_pidfd_socket, send_console, send_pidfd, write_pid_file,
};
use super::planned::{Planned, cgroup_view};
use super::{filter, notify_socket, resctrl, trees, undo};
use crate::cgroups::{Manager, Placement};
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::namespaces::{self, Maps};
use crate::process::credentials;
use crate::process::init::{self, Init as InitPlan};
use crate::process::protocol::{Channel, Message, out_of_turn};
use crate::process::{self, hooks, scheduling};
use crate::rootfs::Pivot;
use crate::spec::{HookPoint, Hooks, Inherited, NamespaceKind, Spec, annotations};
use crate::state::{Init, Locked, Phase, Record, Status, Supervision, Undo};
use crate::sys::clone::Child;
use crate::sys::{pidfd, signal, time, timing};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The socket, in the container's directory, on which the init waits for `start`.
pub(super) const START_SOCKET: &str = "start.sock";

/// The copy of config.json, in the container's directory: `exec` needs the process's defaults,
/// and the bundle may be gone by then.
pub(super) const CONFIG: &str = "config.json";

/// The compiled seccomp filter, in the container's directory: `exec` installs the same.
pub(super) const FILTER: &str = "seccomp.bpf";

/// What is asked of `create` and `run`.
#[derive(Debug, Clone)]
pub struct Request {
    /// The new container's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// Where the master of the payload's terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Where a pidfd of the init is sent.
    pub pidfd_socket: Option<PathBuf>,
    /// Where the init's pid is written.
    pub pid_file: Option<PathBuf>,
    /// How the rootfs is entered.
    pub pivot: Pivot,
    /// Whether the container gets a session keyring of its own.
    pub new_keyring: bool,
    /// How many fds after standard error the payload gets.
    pub preserve_fds: u32,
    /// What the monitor that asks for it is to do, if one does.
    pub supervision: Option<Box<Supervision>>,
    /// Whether the container has run before and is there still: it is made anew in its place.
    pub again: bool,
    /// What was made for the container before: delete takes it back.
    pub undo: Vec<Undo>,
    /// The network that it is to be in.
    pub network: Option<Network>,
}

/// Who will say that the payload may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedBy {
    /// A later `start`, through a socket in the container's directory.
    Start,
    /// The caller, over the channel of the new container.
    Caller,
}

/// A container whose init waits.
#[derive(Debug)]
pub struct Created {
    /// The lock on its directory.
    pub locked: Locked,
    /// Its record, as written.
    pub record: Record,
    /// The init.
    pub child: Child,
    /// The socket to the init.
    pub channel: Channel,
    /// The master of the terminal, when no console socket took it.
    pub console: Option<OwnedFd>,
}

/// Creates a container.
///
/// # Errors
/// Whatever is wrong with the bundle, the host or the caller's rights. Nothing is left behind.
pub fn create(context: &Context, request: &Request, started_by: StartedBy) -> Result<Created> {
    timing::step("read and plan");
    if !request.again {
        context.store.check_free(&request.id)?;
    }
    let console = connect_console(request)?;
    let watcher = request.pidfd_socket.as_deref().map(connect_pidfd_socket).transpose()?;
    let planned = Planned::new(context, request, &console, started_by).map_err(|error| {
        // What looks like a stranger's may be that of another create of this id, which was faster.
        if request.again { error } else { context.store.check_free(&request.id).err().unwrap_or(error) }
    })?;
    log::debug(|| format!("create {}: rootfs {}", request.id, planned.rootfs.rootfs.display()));
    signal::take_requests().doing("take signals")?;
    timing::step("write the record");
    let recorded = planned.record(context, request)?;
    let mut spawned = recorded.spawn(&planned, request, started_by)?;
    timing::step("set up the init from outside");
    let master = spawned.configure(&planned, request).map_err(|error| spawned.explain(error))?;
    timing::step("write down that it is created");
    let kept = match (master, console) {
        (Some(master), Some(socket)) => {
            send_console(&socket, &master)?;
            None
        }
        (master, _) => master,
    };
    if let (Some(watcher), Some(child)) = (&watcher, &spawned.child) {
        send_pidfd(watcher, child)?;
    }
    let mut created =
        spawned.finish(request, started_by, !planned.spec().hooks.start_container.is_empty())?;
    created.console = kept;
    Ok(created)
}

impl Planned {
    /// Takes the id, and writes down how to take back what comes next.
    pub(super) fn record(&self, context: &Context, request: &Request) -> Result<Recorded> {
        let cgroup = self.cgroup.take().unwrap_or(Manager::Disabled);
        let undo = self.journal(request, &cgroup)?;
        let boot = container::boot_id()?.to_owned();
        // Between here and the value that takes it back nothing may fail.
        let (locked, before) = match request.again {
            false => (context.store.create(&request.id)?, None),
            true => reclaim(context, &request.id).map(|(locked, before)| (locked, Some(before)))?,
        };
        if let (Some(before), Some(overlay)) = (&before, &self.rootfs.overlay)
            && before.boot == boot
        {
            overlay.allow_again();
        }
        let spec = self.spec();
        let record = Record {
            boot,
            bundle: self.bundle.clone(),
            rootfs: self.rootfs.rootfs.clone(),
            oci_version: spec.oci_version.clone(),
            created: match &before {
                Some(before) => before.created.clone(),
                None => time::rfc3339(SystemTime::now()),
            },
            supervision: request.supervision.clone(),
            no_pivot: request.pivot == Pivot::Move,
            no_new_keyring: !request.new_keyring,
            owner: nix::unistd::geteuid().as_raw(),
            namespaces: spec.linux.namespaces.iter().map(|namespace| namespace.kind.clone()).collect(),
            private_pids: spec.linux.creates(NamespaceKind::Pid),
            annotations: spec.annotations.clone(),
            hooks: Hooks {
                poststart: spec.hooks.poststart.clone(),
                poststop: spec.hooks.poststop.clone(),
                ..Hooks::default()
            },
            inherited: Inherited::of(spec),
            undo,
            ..Record::new(&request.id)
        };
        let recorded = Recorded { locked: Some(locked), before, record, cgroup };
        recorded.locked()?.write(&recorded.record)?;
        recorded.locked()?.write_file(CONFIG, &self.config.text)?;
        if notify_socket::is_wanted() {
            notify_socket::make_directory(recorded.locked()?)?;
        }
        if let Some(filter) = &self.filter {
            recorded.locked()?.write_file(FILTER, &filter.to_bytes())?;
        }
        Ok(recorded)
    }
}

/// A container that has a record and a lock. Dropped, it takes them back.
pub(super) struct Recorded {
    pub(super) locked: Option<Locked>,
    /// What it was, if it has run before: it then goes back to that.
    before: Option<Box<Record>>,
    pub(super) record: Record,
    pub(super) cgroup: Manager,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let Some(locked) = self.locked.take() else { return };
        // criu may have been killed half-way, and nobody else knows what it has started.
        let emptied = match self.record.restored && !matches!(self.cgroup, Manager::Disabled) {
            true => self.cgroup.kill_all(libc::SIGKILL),
            false => Ok(()),
        };
        if let Err(error) = emptied.and_then(|()| self.cgroup.destroy()) {
            // The record stays, and with it what `delete` has to take back.
            log::warn(&format!("{error}; `dhow delete --force {}` tries again", self.record.id));
            return;
        }
        let taken_back = match self.before.take() {
            Some(before) => undo::take_back_life(&self.record).and_then(|()| locked.write(&before)),
            None => match undo::take_back(&self.record, false) {
                Err(error) => {
                    log::warn(&format!("{error}; `dhow delete --force {}` tries again", self.record.id));
                    return;
                }
                Ok(()) => locked.remove(),
            },
        };
        if let Err(error) = taken_back {
            log::warn(&error.to_string());
        }
    }
}

/// Locks a container that has ended, and takes back what is left of its last life.
fn reclaim(context: &Context, id: &str) -> Result<(Locked, Box<Record>)> {
    let (locked, container) = Container::lock(context, id)?;
    if !matches!(container.status, Status::Exited | Status::Restarting | Status::Dead) {
        return Err(Error::new(Class::WrongState, "cannot restart the container now")
            .on(format!("{id} is {}", container.status.name())));
    }
    let mut record = container.record;
    undo::cgroup(&record)?;
    undo::take_back_life(&record)?;
    locked.remove_file(START_SOCKET)?;
    cni::outlives(&mut record)?;
    record.phase = Phase::Started;
    Ok((locked, Box::new(record)))
}

impl Recorded {
    pub(super) fn path(&self) -> Result<&Path> {
        Ok(self.locked()?.path())
    }

    pub(super) fn locked(&self) -> Result<&Locked> {
        self.locked.as_ref().ok_or_else(|| Error::new(Class::Internal, "use a container that was given away"))
    }

    /// Makes the cgroup and the init.
    fn spawn(mut self, planned: &Planned, request: &Request, started_by: StartedBy) -> Result<Spawned> {
        timing::step("make the cgroup");
        self.cgroup.create()?;
        self.cgroup.mark(&self.locked()?.mark());
        if planned.rootless {
            // Hierarchies that it may not use were left out; later commands must not look for them.
            self.record.replace_undo(Undo::Cgroup(container::stored(&self.cgroup)?));
        }
        let resources = planned.resources();
        // Also without any limit: then too only the default devices may be used.
        match planned.rootless {
            true => self.cgroup.apply_rootless(&resources)?,
            false => self.cgroup.apply(&resources)?,
        }
        if let Some(service) = &planned.service {
            service.prepare()?;
        }
        timing::step("plan the init");
        let placement = self.cgroup.placement()?;
        let listener = match started_by {
            StartedBy::Start => Some(listen(self.locked()?)?),
            StartedBy::Caller => None,
        };
        let joins = planned
            .joins
            .iter()
            .map(|(kind, fd)| Ok((*kind, fd.try_clone().doing("copy a file descriptor")?)))
            .collect::<Result<Vec<_>>>()?;
        let init = InitPlan {
            id: &request.id,
            spec: planned.spec(),
            process: &planned.process,
            bundle: planned.bundle(),
            namespaces: &planned.namespaces,
            joins,
            rootfs: &planned.rootfs,
            awaits_root: planned.makes_root(),
            needs_trees: trees::are_needed(planned),
            joins_network: request.network.is_some(),
            cgroups: cgroup_view(&self.cgroup, planned.namespaces.new_cgroup),
            capabilities: planned.capabilities,
            pivot: if planned.spec().linux.has(NamespaceKind::Mount) { request.pivot } else { Pivot::Chroot },
            stand_in: planned.stand_in()?,
            hook_files: &planned.hook_files,
            new_keyring: request.new_keyring,
            preserved_fds: planned.preserved_fds,
            filter: planned.filter.as_ref(),
            listener,
        };
        let flags = planned.namespaces.clone_flags();
        timing::step("clone the init");
        let into = placement.cgroup_fd();
        let here = planned.stand_in_rootfs()?;
        let spawned = if planned.namespaces.staged {
            let enter = || {
                namespaces::join(&planned.joins)?;
                match planned.namespaces.time_offsets.is_empty() {
                    true => Ok(()),
                    false => namespaces::create_time(&planned.namespaces.time_offsets),
                }
            };
            process::spawn_staged(flags, into, enter, |channel| init::become_payload(&init, channel))?
        } else {
            process::spawn(flags, into, |channel| init::become_payload(&init, channel))?
        };
        drop(here);
        signal::set_companion(Some(spawned.child.pidfd.as_fd()));
        Ok(Spawned {
            recorded: Some(self),
            child: Some(spawned.child),
            channel: Some(spawned.channel),
            placement,
        })
    }
}

/// A container that has a process. Dropped, the process is killed, then the rest taken back.
struct Spawned {
    recorded: Option<Recorded>,
    child: Option<Child>,
    channel: Option<Channel>,
    placement: Placement,
}

impl Drop for Spawned {
    fn drop(&mut self) {
        signal::set_companion(None);
        if let Some(child) = &self.child {
            let _ = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = nix::sys::wait::waitpid(child.pid, None);
        }
    }
}

impl Spawned {
    fn parts(&self) -> Result<(&Recorded, &Child, &Channel)> {
        match (&self.recorded, &self.child, &self.channel) {
            (Some(recorded), Some(child), Some(channel)) => Ok((recorded, child, channel)),
            _ => Err(Error::new(Class::Internal, "use a container that was given away")),
        }
    }

    /// Has systemd make the cgroup around the init, where it is systemd's, and writes down where it
    /// has become.
    fn adopt(&mut self, planned: &Planned) -> Result<()> {
        let (Some(recorded), Some(child)) = (&mut self.recorded, &self.child) else { return Ok(()) };
        if !recorded.cgroup.needs_adopt() {
            return Ok(());
        }
        recorded.cgroup.adopt(child.pid.as_raw(), &planned.resources(), planned.rootless)?;
        recorded.cgroup.mark(&recorded.locked()?.mark());
        recorded.record.replace_undo(Undo::Cgroup(container::stored(&recorded.cgroup)?));
        recorded.locked()?.write(&recorded.record)
    }

    /// Puts the container into its network, whose namespace the init has made.
    fn connect(&mut self, request: &Request) -> Result<()> {
        let (Some(network), Some(recorded), Some(child)) =
            (&request.network, &mut self.recorded, &self.child)
        else {
            return Ok(());
        };
        let connected = network.add(&request.id, child.pid.as_raw()).inspect_err(|_| {
            // What the plugins before the failing one have made is gone now; that one may complain again.
            recorded.record.undo.retain(|undo| !matches!(undo, Undo::Network(_)));
        })?;
        connected.tell(&request.bundle)?;
        recorded.record.replace_undo(connected.undo(network)?);
        recorded.locked()?.write(&recorded.record)
    }

    /// The error of an init that ended without a word, with the reason where the kernel tells it.
    fn explain(&self, error: Error) -> Error {
        let oom = self.recorded.as_ref().and_then(|recorded| container::out_of_memory(&recorded.cgroup));
        if let Err(asked) = go_on() {
            return asked;
        }
        match oom {
            Some(words) if error.class == Class::System => Error::new(Class::System, "create the container")
                .because(words)
                .hint("raise linux.resources.memory.limit"),
            _ => error,
        }
    }

    /// Does for the init what only the parent can, runs the runtime's hooks when the init asks,
    /// and waits until it is ready. Answers the master of its terminal.
    fn configure(&mut self, planned: &Planned, request: &Request) -> Result<Option<OwnedFd>> {
        let placement = std::mem::replace(&mut self.placement, Placement::None);
        let (_, child, _) = self.parts()?;
        // It may have come before the init was the one to be killed for it.
        go_on()?;
        if let Some(adjust) = planned.process.oom_score_adj {
            credentials::adjust_oom_score(child.pid.as_raw(), adjust)?;
        }
        if planned.namespaces.creates_user() {
            namespaces::write_maps(child.pid, &Maps::of(&planned.spec().linux))?;
        }
        self.adopt(planned)?;
        let (recorded, child, channel) = self.parts()?;
        let owner = planned.cgroup_owner();
        if let Some(owner) = owner {
            recorded.cgroup.hand_to(owner)?;
        }
        if planned.service.is_some() {
            resctrl::enter(&recorded.record, child.pid.as_raw().unsigned_abs())?;
        }
        container::let_proceed(channel, placement)?;
        if let Some(name) = planned.spec().annotations.get(annotations::DELEGATE) {
            channel.send(&Message::Delegated(recorded.cgroup.delegate(name, owner)?))?;
        }
        if let Some(overlay) = planned.rootfs.overlay.as_ref().filter(|_| planned.makes_root()) {
            timing::step("mount the overlay");
            container::hand_over(channel, &Message::Root(planned.mount_root(overlay, child.pid)?))?;
        }
        let mut console = None;
        timing::step("wait for the init");
        loop {
            let (recorded, child, channel) = self.parts()?;
            match channel.expect()? {
                Message::HooksPlease => {
                    timing::step("run the runtime's hooks");
                    // A hook may hang; `kill` and `delete --force` must find the init then.
                    let mut record = recorded.record.clone();
                    record.init = pidfd::stat(child.pid)
                        .doing("look at the container's init")?
                        .map(|stat| Init { pid: child.pid.as_raw(), start_time: stat.start_time });
                    recorded.locked()?.write(&record)?;
                    run_hooks(planned, &recorded.record.id, child.pid.as_raw())?;
                    channel.send(&Message::HooksDone)?;
                    timing::step("wait for the init");
                }
                Message::DevicesPlease => {
                    namespaces::move_devices(child.pid, &planned.spec().linux.net_devices)?;
                    self.connect(request)?;
                    self.parts()?.2.send(&Message::DevicesDone)?;
                }
                Message::TreesPlease => trees::send(planned, child.pidfd.as_fd(), channel)?,
                Message::OwnersPlease(step, tree) => {
                    trees::map_owners(planned, step, &tree)?;
                    channel.send(&Message::OwnersDone)?;
                }
                Message::Console(master) => console = Some(master),
                Message::Listener(listener) => {
                    let pid = child.pid.as_raw();
                    let state = planned.state(&recorded.record.id, pid);
                    filter::send_listener(planned.spec(), &listener, pid, &state)?;
                }
                Message::Ready => {
                    scheduling::apply(child.pid.as_raw(), &planned.process)?;
                    send_pidfd_to_receiver(planned.spec(), child)?;
                    return Ok(console);
                }
                other => return Err(out_of_turn(&other)),
            }
        }
    }

    /// Writes down that the container is created. From here on it stays.
    fn finish(mut self, request: &Request, started_by: StartedBy, has_start_hooks: bool) -> Result<Created> {
        let (recorded, child, channel) = self.parts()?;
        let pid = child.pid;
        log::debug(|| format!("{}: the init is ready, pid {pid}", request.id));
        let doing = "look at the container's init";
        let stat = pidfd::stat(pid)
            .doing(doing)?
            .ok_or_else(|| Error::new(Class::System, doing).because("it ended at once"))?;
        let mut record = recorded.record.clone();
        record.init = Some(Init { pid: pid.as_raw(), start_time: stat.start_time });
        // `run` starts it in the next moment: one record tells of both, unless a hook may look at
        // the state in between.
        let starts_now = started_by == StartedBy::Caller && !has_start_hooks;
        record.phase = if starts_now { Phase::Started } else { Phase::Created };
        recorded.locked()?.write(&record)?;
        if let Some(file) = &request.pid_file {
            write_pid_file(file, pid.as_raw())?;
        }
        let adopted = match started_by {
            StartedBy::Start => channel.send(&Message::Adopted),
            StartedBy::Caller => Ok(()),
        };
        signal::set_companion(None);
        if let Err(error) = adopted.and_then(|()| go_on()) {
            if let Some(file) = &request.pid_file {
                let _ = std::fs::remove_file(file);
            }
            return Err(error);
        }
        let gone = || Error::new(Class::Internal, "use a container that was given away");
        let mut recorded = self.recorded.take().ok_or_else(gone)?;
        Ok(Created {
            locked: recorded.locked.take().ok_or_else(gone)?,
            record,
            child: self.child.take().ok_or_else(gone)?,
            channel: self.channel.take().ok_or_else(gone)?,
            console: None,
        })
    }
}

/// An error once this process has been asked to end: what was begun is then taken back.
///
/// # Errors
/// [`Class::System`], which names the signal.
pub(super) fn go_on() -> Result<()> {
    match signal::asked_to_end() {
        None => Ok(()),
        Some(number) => {
            let name =
                nix::sys::signal::Signal::try_from(number).map_or("a signal", |signal| signal.as_str());
            Err(Error::new(Class::System, "create the container").because(format!("ended by {name}")))
        }
    }
}

/// Sends a pidfd of the init to whom the annotation names, as crun does.
fn send_pidfd_to_receiver(spec: &Spec, child: &Child) -> Result<()> {
    let Some(path) = spec.annotations.get(annotations::PIDFD_RECEIVER) else { return Ok(()) };
    connect_pidfd_socket(Path::new(path))
        .and_then(|receiver| send_pidfd(&receiver, child))
        .map_err(|error| error.on(format!("annotation {} {path:?}", annotations::PIDFD_RECEIVER)))
}

pub(super) fn run_hooks(planned: &Planned, id: &str, pid: i32) -> Result<()> {
    let spec = planned.spec();
    let state = planned.state(id, pid).to_json();
    hooks::run_all(HookPoint::Prestart, &spec.hooks.prestart, &state, &planned.hook_files)?;
    hooks::run_all(HookPoint::CreateRuntime, &spec.hooks.create_runtime, &state, &planned.hook_files)
}

fn connect_console(request: &Request) -> Result<Option<OwnedFd>> {
    request.console_socket.as_deref().map(connect_console_socket).transpose()
}

/// The socket on which the init will hear `start`. It is bound through the directory's fd: a
/// path of a socket may not be longer than 107 bytes, and that of a container can be.
fn listen(locked: &Locked) -> Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
    use std::os::fd::AsRawFd;
    let doing = "make the start socket";
    let path = format!("{}/{START_SOCKET}", crate::sys::fd::proc_path(locked.as_fd()));
    let address = UnixAddr::new(path.as_str()).doing(doing)?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).doing(doing)?;
    bind(fd.as_raw_fd(), &address).doing(doing)?;
    listen(&fd, Backlog::new(1).doing(doing)?).doing(doing)?;
    Ok(fd)
}
