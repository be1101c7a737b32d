//! `exec`: another process in a container that runs.

use super::container::{Container, Context, let_proceed};
use super::create::CONFIG;
use super::foreground::{Signals, size_as_caller, stay};
use super::handover::{
    connect_console_socket, connect_pidfd_socket, send_console, send_pidfd, write_pid_file,
};
use super::{filter, resctrl};
use crate::cgroups::Placement;
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::process::credentials::Sets;
use crate::process::exec::{self as child, Cpus, Exec};
use crate::process::protocol::{Channel, Message, out_of_turn};
use crate::process::{Spawned, scheduling, spawn, spawn_staged};
use crate::spec::{self, NamespaceKind, Process, Spec};
use crate::state::{Operation, Status};
use crate::sys::clone::Child;
use crate::sys::{pidfd, timing};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the child may be silent before the container is looked at again, in milliseconds.
const PATIENCE: u8 = 200;

/// How long a killed process may take to end.
const DEATH: Duration = Duration::from_millis(500);

/// What is asked of `exec`.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// A file with the `process` document; else the container's own process is changed by what
    /// follows.
    pub process: Option<PathBuf>,
    /// argv.
    pub args: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// `UID[:GID]`.
    pub user: Option<String>,
    /// The working directory.
    pub cwd: Option<String>,
    /// `NAME=value`, added.
    pub env: Vec<String>,
    /// Capabilities, added.
    pub capabilities: Vec<String>,
    /// Supplementary groups, added.
    pub additional_gids: Vec<u32>,
    /// Sets noNewPrivileges.
    pub no_new_privileges: bool,
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// The SELinux label.
    pub selinux_label: Option<String>,
    /// Returns as soon as the process runs.
    pub detach: bool,
    /// Where its pid is written.
    pub pid_file: Option<PathBuf>,
    /// Where the master of its terminal is sent.
    pub console_socket: Option<PathBuf>,
    /// Where a pidfd of it is sent.
    pub pidfd_socket: Option<PathBuf>,
    /// How many fds after standard error it gets.
    pub preserve_fds: u32,
    /// Cgroups below the container's.
    pub cgroups: Vec<String>,
    /// Also into a container that is paused; it then waits there.
    pub ignore_paused: bool,
}

/// Runs a process in a container. Answers its exit status, 0 when detached.
///
/// # Errors
/// [`Class::WrongState`] when the container does not run; why the process could not be executed.
pub fn exec(context: &Context, id: &str, request: &ExecRequest) -> Result<i32> {
    let (child, signals, console) = begin(context, id, request)?;
    timing::step("the payload runs");
    match signals {
        Some(signals) => stay(&child, &signals, console),
        None => Ok(0),
    }
}

/// Runs a process in a container, and leaves it to the caller to wait for it.
///
/// # Errors
/// Those of [`exec`].
pub fn exec_as_child(context: &Context, id: &str, request: &ExecRequest) -> Result<Child> {
    begin(context, id, request).map(|(child, ..)| child)
}

/// Runs a process in a container: it, the signals that are held for it unless it is detached, and the
/// master of its terminal.
fn begin(
    context: &Context,
    id: &str,
    request: &ExecRequest,
) -> Result<(Child, Option<Signals>, Option<OwnedFd>)> {
    let container = Container::open(context, id)?;
    if !(request.ignore_paused && container.status == Status::Paused) {
        container.allow(Operation::Exec)?;
    }
    timing::step("plan");
    let (mut process, capabilities) = describe(context, &container, request)?;
    spec::validate_process(&process)?;
    let console = console(&process, request)?;
    if console.is_none() {
        size_as_caller(&mut process);
    }
    let watcher = request.pidfd_socket.as_deref().map(connect_pidfd_socket).transpose()?;
    let init = open_init(&container)?;
    let filter = filter::stored(context, id)?;
    let placement = placement(&container, request)?;
    // The child inherits it, so only this process can have it before the child's first instruction.
    resctrl::enter(&container.record, std::process::id())?;
    let signals = if request.detach { None } else { Some(Signals::hold()?) };
    let (initial_cpus, final_cpus) =
        process.exec_cpu_affinity.as_ref().map(spec::ExecCpuAffinity::masks).transpose()?.unwrap_or_default();
    // The child inherits it. It may be in the cgroup from its first instruction on (CLONE_INTO_CGROUP),
    // so only this process can have it before that.
    scheduling::bind_to("initial", initial_cpus.as_deref())?;
    let cpus = match (final_cpus, initial_cpus) {
        (Some(cpus), _) => Cpus::These(cpus),
        (None, Some(_)) => Cpus::AsTheyAre,
        (None, None) => Cpus::All,
    };
    let plan = Exec {
        id,
        process: &process,
        capabilities,
        init: init.as_fd(),
        namespaces: CloneFlags::empty(),
        in_user_namespace: false,
        cpus,
        inherited: &container.record.inherited,
        root: None,
        new_keyring: false,
        preserved_fds: request.preserve_fds,
        filter: filter.as_ref(),
    };
    log::debug(|| format!("exec in {id}: {:?}", process.args));
    timing::step("clone the process");
    let spawned = enter(&container, plan, &placement)?;
    timing::step("wait for the payload");
    let outcome = follow(context, &container, &spawned, placement, request)
        .and_then(|master| hand_over(&spawned.child, master, console, watcher.as_ref(), request));
    match outcome {
        Ok(kept) => Ok((spawned.child, signals, kept)),
        Err(error) => {
            end(&spawned.child, &error);
            Err(error)
        }
    }
}

/// Tells the engine of the payload. Answers the master of its terminal, if that is for nobody else.
fn hand_over(
    child: &Child,
    master: Option<OwnedFd>,
    console: Option<OwnedFd>,
    watcher: Option<&OwnedFd>,
    request: &ExecRequest,
) -> Result<Option<OwnedFd>> {
    let kept = match (master, console) {
        (Some(master), Some(socket)) => {
            send_console(&socket, &master)?;
            None
        }
        (master, _) => master,
    };
    if let Some(watcher) = watcher {
        send_pidfd(watcher, child)?;
    }
    if let Some(file) = &request.pid_file {
        write_pid_file(file, child.pid.as_raw())?;
    }
    Ok(kept)
}

/// Ends a process of which the caller will only hear that it failed.
fn end(child: &Child, error: &Error) {
    let _ = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
    // On cgroup v1 one that is frozen dies when it is thawed, as an orphan.
    let patience = (error.class == Class::WrongState).then_some(DEATH);
    if pidfd::wait_ended(child.pidfd.as_fd(), patience).unwrap_or(true) {
        let _ = nix::sys::wait::waitpid(child.pid, None);
    }
}

/// The way into the container's cgroup. One that is not there any more belongs to a container that
/// has just been deleted.
fn placement(container: &Container, request: &ExecRequest) -> Result<Placement> {
    let init = container.record.init;
    let found = container.cgroup()?.placement_for_exec(&request.cgroups, init.map(|init| init.pid));
    found.map_err(|error| match init {
        Some(init) if init.is_alive().unwrap_or(true) => error,
        _ => not_running(container),
    })
}

/// The process to run: as a file tells, or the container's own, changed.
fn describe(context: &Context, container: &Container, request: &ExecRequest) -> Result<(Process, Sets)> {
    let mut process = match &request.process {
        Some(file) => from_file(context, container, file)?,
        None => from_container(context, &container.record.id, request)?,
    };
    process.terminal |= request.tty;
    let mut sets = Sets::new(process.capabilities.as_ref());
    sets.add(&request.capabilities);
    Ok((process, sets))
}

/// Where the file says nothing of them, labels and capabilities are the container's, as with runc and crun.
fn from_file(context: &Context, container: &Container, file: &Path) -> Result<Process> {
    let mut process = container.record.inherited.complete(spec::load::load_process(file)?);
    // Engines name them, so that the configuration is hardly ever read for this.
    if process.capabilities.is_none() {
        let of_container = config_of(context, &container.record.id)?.process;
        process.capabilities = of_container.and_then(|process| process.capabilities);
    }
    Ok(process)
}

/// The container's configuration, as it was when it was created.
fn config_of(context: &Context, id: &str) -> Result<Spec> {
    spec::load::parse(&context.store.read_file(id, CONFIG)?, Path::new(CONFIG))
}

fn from_container(context: &Context, id: &str, request: &ExecRequest) -> Result<Process> {
    let mut process = config_of(context, id)?.process.unwrap_or_default();
    process.args.clone_from(&request.args);
    process.terminal = false;
    process.console_size = None;
    process.env.extend(request.env.iter().cloned());
    process.user.additional_gids.extend(&request.additional_gids);
    process.no_new_privileges |= request.no_new_privileges;
    if let Some(cwd) = &request.cwd {
        process.cwd.clone_from(cwd);
    }
    if let Some(user) = &request.user {
        (process.user.uid, process.user.gid) = parse_user(user, process.user.gid)?;
    }
    if let Some(profile) = &request.apparmor {
        process.apparmor_profile.clone_from(profile);
    }
    if let Some(label) = &request.selinux_label {
        process.selinux_label.clone_from(label);
    }
    Ok(process)
}

/// `UID` or `UID:GID`. Numbers and nothing else: a text that was taken for root because it is no
/// number is CVE-2026-30892.
fn parse_user(text: &str, gid: u32) -> Result<(u32, u32)> {
    let number = |part: &str| -> Result<u32> {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| digits).ok_or_else(|| {
            Error::new(Class::Usage, "parse the user")
                .on(format!("{text:?}"))
                .because("it must be UID or UID:GID, in digits")
        })
    };
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, number(group)?)),
        None => Ok((number(text)?, gid)),
    }
}

fn console(process: &Process, request: &ExecRequest) -> Result<Option<OwnedFd>> {
    match (&request.console_socket, process.terminal, request.detach) {
        (Some(path), true, true) => connect_console_socket(path).map(Some),
        (Some(_), ..) => Err(Error::new(Class::Usage, "cannot use console socket")
            .because("dhow will not detach or allocate tty")
            .hint("--console-socket goes with --detach and a terminal")),
        (None, true, true) => Err(Error::new(Class::Usage, "cannot allocate tty")
            .because("dhow will detach without setting console socket")
            .hint("give --console-socket, or leave out --tty")),
        (None, ..) => Ok(None),
    }
}

/// A pidfd of the init, that is, of the process that the record means.
fn open_init(container: &Container) -> Result<OwnedFd> {
    let init = container.record.init.ok_or_else(|| not_running(container))?;
    let process = pidfd::open(Pid::from_raw(init.pid)).map_err(|errno| match errno {
        Errno::ESRCH => not_running(container),
        _ => Error::system("open the container's init", errno),
    })?;
    if init.is_alive()? { Ok(process) } else { Err(not_running(container)) }
}

fn not_running(container: &Container) -> Error {
    Error::new(Class::WrongState, "container not running").on(container.record.id.clone())
}

/// Makes the process. Root joins the pid namespace before it forks, so that one fork is enough; a
/// rootless dhow has the right to join only inside the user namespace, and needs one between.
fn enter(container: &Container, mut plan: Exec<'_>, placement: &Placement) -> Result<Spawned> {
    let kinds = container.namespaces();
    let all = child::flags_of(&kinds);
    let init = plan.init;
    plan.in_user_namespace = kinds.contains(&NamespaceKind::User);
    if !kinds.contains(&NamespaceKind::Mount) {
        let init = container.record.init.ok_or_else(|| not_running(container))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("/proc/{}/root", init.pid), flags, Mode::empty());
        // It was the init's only if the init is still there: the pid may be another's by now.
        if !init.is_alive()? {
            return Err(not_running(container));
        }
        plan.root = Some(root.doing("open the container's root")?);
    }
    let into = placement.cgroup_fd();
    let none = (CloneFlags::empty(), 0);
    if plan.in_user_namespace && !nix::unistd::geteuid().is_root() {
        let enter = || child::join(init, all);
        return spawn_staged(none, into, enter, |channel| child::become_payload(&plan, channel));
    }
    let pid = CloneFlags::CLONE_NEWPID;
    child::join(init, all & pid)?;
    plan.namespaces = all - pid;
    spawn(none, into, |channel| child::become_payload(&plan, channel))
}

/// Follows the child until it has become the payload, or says why it has not. Answers the master
/// of its terminal.
fn follow(
    context: &Context,
    container: &Container,
    spawned: &Spawned,
    placement: Placement,
    request: &ExecRequest,
) -> Result<Option<OwnedFd>> {
    let take_listener = |listener: &OwnedFd| {
        let config = config_of(context, &container.record.id)?;
        let pid = spawned.child.pid.as_raw();
        filter::send_listener(&config, listener, pid, &container.state(None))
    };
    let refuse_pause = || if request.ignore_paused { Ok(()) } else { not_paused(context, container) };
    talk(&spawned.channel, placement, &take_listener, &refuse_pause)
}

/// A pause that came between the first look at the container and the fork has frozen the child.
fn not_paused(context: &Context, container: &Container) -> Result<()> {
    let now = Container::open(context, &container.record.id)?;
    if now.status == Status::Paused { now.allow(Operation::Exec) } else { Ok(()) }
}

fn talk(
    channel: &Channel,
    placement: Placement,
    take_listener: &dyn Fn(&OwnedFd) -> Result<()>,
    refuse_pause: &dyn Fn() -> Result<()>,
) -> Result<Option<OwnedFd>> {
    let_proceed(channel, placement)?;
    let mut console = None;
    loop {
        while !channel.has_word_within(PATIENCE.into())? {
            refuse_pause()?;
        }
        match channel.receive()? {
            None => return Ok(console),
            Some(Message::Console(master)) => console = Some(master),
            Some(Message::Listener(listener)) => take_listener(&listener)?,
            Some(Message::Failed(error)) => return Err(error),
            Some(other) => return Err(out_of_turn(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_numbers_and_nothing_else() {
        assert_eq!(parse_user("1000", 5).unwrap(), (1000, 5));
        assert_eq!(parse_user("1:2", 5).unwrap(), (1, 2));
        for text in ["", "root", "1000:", ":1", "1:2:3", "-1", "+1", " 1", "1 ", "0x1", "4294967296", "1:x"] {
            assert_eq!(parse_user(text, 5).unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
