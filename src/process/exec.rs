//! Another process in a running container.

use super::credentials::{self, Identity, Sets};
use super::init::{Payload, become_root, enter_cgroup, proc_of_container, set_personality};
use super::protocol::{Channel, Message};
use super::terminal::Terminal;
use super::{filter, scheduling, stdio};
use crate::error::{Context, Error, Result};
use crate::namespaces::flag;
use crate::seccomp::Program;
use crate::spec::{Inherited, NamespaceKind, Process};
use crate::sys::path::Root;
use crate::sys::{prctl, timing};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Everything an exec'ed process needs to know, decided by the parent before the fork.
#[derive(Debug)]
pub struct Exec<'a> {
    /// The container's id.
    pub id: &'a str,
    /// What to run, and as whom.
    pub process: &'a Process,
    /// Its capability sets.
    pub capabilities: Sets,
    /// The init, whose namespaces are joined.
    pub init: BorrowedFd<'a>,
    /// Those that the container has, without those that the parent has joined already.
    pub namespaces: CloneFlags,
    /// Whether one of them is a user namespace.
    pub in_user_namespace: bool,
    /// The CPUs that it is bound to once it is in the cgroup.
    pub cpus: Cpus,
    /// What it has as the container's init has it.
    pub inherited: &'a Inherited,
    /// The init's root, where the container has no mount namespace that would bring it.
    pub root: Option<OwnedFd>,
    /// Whether it gets a session keyring of its own.
    pub new_keyring: bool,
    /// How many fds after standard error it is to have.
    pub preserved_fds: u32,
    /// The seccomp filter.
    pub filter: Option<&'a Program>,
}

/// The CPUs of an exec'ed process, `process.execCPUAffinity`.
#[derive(Debug)]
pub enum Cpus {
    /// All that its cpuset has.
    All,
    /// Those that it has from its parent: `initial`.
    AsTheyAre,
    /// These: `final`.
    These(Vec<u64>),
}

/// The flags of setns(2) for the namespaces of a container.
pub fn flags_of(kinds: &[NamespaceKind]) -> CloneFlags {
    kinds.iter().map(|&kind| flag(kind)).collect()
}

/// Joins namespaces of a process, all of them in one setns(2): the kernel takes them in the order
/// that their owners demand.
///
/// # Errors
/// ESRCH when the process has ended.
pub fn join(init: BorrowedFd<'_>, namespaces: CloneFlags) -> Result<()> {
    if namespaces.is_empty() {
        return Ok(());
    }
    setns(init, namespaces).map_err(|errno| {
        let error = Error::system("join the container's namespaces", errno);
        match errno {
            Errno::ESRCH => error.because("the container's init has just ended: container not running"),
            _ => error,
        }
    })
}

/// Brings the process that [`super::spawn`] made to the payload's first instruction.
///
/// # Errors
/// The step that failed. The caller sends it to the parent.
pub fn become_payload(exec: &Exec<'_>, channel: &Channel) -> Result<Infallible> {
    timing::step("enter the cgroup");
    enter_cgroup(channel)?;
    match &exec.cpus {
        Cpus::All => scheduling::unbind(),
        Cpus::AsTheyAre => {}
        Cpus::These(cpus) => scheduling::bind_to("final", Some(cpus))?,
    }
    scheduling::apply(0, exec.process)?;
    // Before anyone in the container can see this process: it is still the host's
    // (CVE-2016-9962).
    prctl::set_dumpable(false).doing("become undumpable")?;
    timing::step("join namespaces");
    join(exec.init, exec.namespaces)?;
    timing::step("begin a session");
    if exec.in_user_namespace {
        become_root()?;
    }
    if let Some(root) = &exec.root {
        nix::unistd::fchdir(root.as_fd()).doing("enter the container's root")?;
        nix::unistd::chroot(".").doing("enter the container's root")?;
    }
    nix::unistd::setsid().doing("begin a session")?;
    if let Some(personality) = &exec.inherited.personality {
        set_personality(&personality.domain)?;
    }
    if let Some(policy) = &exec.inherited.memory_policy {
        scheduling::set_memory_policy(policy)?;
    }
    if exec.new_keyring {
        credentials::new_session_keyring(exec.id)?;
    }
    let root = Root::at(Path::new("/")).doing("open the container's root")?;
    if exec.process.terminal {
        let terminal = Terminal::make(&root, exec.process.console_size)?;
        channel.send(&Message::Console(terminal.install()?))?;
    } else {
        stdio::reopen_null(&root)?;
    }
    timing::step("become the user");
    credentials::label_exec(exec.process, proc_of_container)?;
    let identity = Identity {
        process: exec.process,
        sets: exec.capabilities,
        in_user_namespace: exec.in_user_namespace,
        keep_groups: exec.inherited.keep_groups,
        awaits_filter: exec.filter.is_some(),
    };
    credentials::apply(&identity)?;
    timing::step("look for the program");
    let payload = Payload::prepare(exec.process)?;
    timing::step("become the payload");
    let filter = filter::hand_over(exec.filter, channel)?;
    prctl::die_with_parent(false).doing("outlive the parent")?;
    payload.exec(exec.preserved_fds, None, filter)
}
