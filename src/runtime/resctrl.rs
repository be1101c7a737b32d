//! `linux.intelRdt` in the life of a container: its class is made before its init runs, and goes with it.

use super::container::{Container, Context};
use crate::cgroups::resctrl::{Membership, Resctrl, mounted};
use crate::error::{Class, Error, Result};
use crate::spec::{IntelRdt, Spec};
use crate::state::{Operation, Record, Undo};
use std::path::{Path, PathBuf};

/// The class of service that a container is to be in.
#[derive(Debug)]
pub(super) struct Service {
    at: PathBuf,
    member: Membership,
}

/// What the configuration asks for, if it does.
///
/// # Errors
/// Where resctrl is not mounted; a class of the container's name that somebody else has made.
pub(super) fn plan(spec: &Spec, id: &str, again: bool) -> Result<Option<Service>> {
    let Some(asked) = &spec.linux.intel_rdt else { return Ok(None) };
    let at = mounted()?;
    let member = Membership::new(asked, id);
    if !again {
        Resctrl::open(&at)?.check_free(&member)?;
    }
    Ok(Some(Service { at, member }))
}

impl Service {
    /// How it is taken back.
    pub(super) fn undo(&self) -> Undo {
        Undo::Service {
            at: self.at.clone(),
            class: self.member.class.clone(),
            own: self.member.own,
            monitor: self.member.monitor.clone(),
        }
    }

    /// Makes what is missing.
    ///
    /// # Errors
    /// What the kernel says against it.
    pub(super) fn prepare(&self) -> Result<()> {
        Resctrl::open(&self.at)?.prepare(&self.member)
    }
}

/// Puts a process, and what it will start, into the container's class, if it has one.
///
/// # Errors
/// The kernel's.
pub(super) fn enter(record: &Record, pid: u32) -> Result<()> {
    match of(record) {
        Some((at, member)) => Resctrl::open(at)?.add(&member, pid),
        None => Ok(()),
    }
}

/// Removes what was made for a container. That resctrl was unmounted since is no error: its groups went
/// with it.
///
/// # Errors
/// The kernel's.
pub(super) fn take_back(at: &Path, member: &Membership) -> Result<()> {
    match Resctrl::open(at) {
        Ok(resctrl) => resctrl.remove(member),
        Err(error) if error.errno == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Changes the schemata of a container's class while it runs.
///
/// # Errors
/// [`Class::WrongState`] when it does not run; when it has no class; what the kernel says against a line.
pub fn update_service(context: &Context, id: &str, asked: &IntelRdt) -> Result<()> {
    let (_locked, container) = Container::lock(context, id)?;
    container.allow(Operation::Update)?;
    let Some((at, member)) = of(&container.record) else {
        return Err(Error::new(Class::Unsupported, "update the container's class of service")
            .on(id)
            .because("it was created without linux.intelRdt")
            .hint("give the container linux.intelRdt when it is created"));
    };
    Resctrl::open(at)?.change(&member.class, asked)
}

fn of(record: &Record) -> Option<(&Path, Membership)> {
    record.undo.iter().find_map(|undo| match undo {
        Undo::Service { at, class, own, monitor } => {
            Some((at.as_path(), Membership::known(class.clone(), *own, monitor.clone())))
        }
        _ => None,
    })
}
