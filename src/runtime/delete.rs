//! `delete`: a container and all that was made for it goes.

use super::container::{Container, Context, boot_id};
use super::kill::{kill, send};
use super::{supervise, undo};
use crate::error::{Class, Error, Result};
use crate::log;
use crate::process::hooks;
use crate::spec::HookPoint;
use crate::state::{Locked, Operation, Phase, Record, Status};
use crate::sys::{pidfd, timing};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::time::Duration;

/// How long a killed init may take to end: until the kernel has taken its memory apart.
pub(super) const DYING: Duration = Duration::from_secs(10);

/// Deletes a container that has ended or never started; with `force`, one that runs too, and what
/// a killed create left behind. With `force` it is no error when there is none.
///
/// # Errors
/// [`Class::WrongState`] when it runs; what could not be taken back.
pub fn delete(context: &Context, id: &str, force: bool) -> Result<()> {
    timing::step("read the record");
    if force {
        // Before the lock: a start or create that hangs in a hook holds it while the init lives.
        let _ = kill(context, id, libc::SIGKILL, false);
    }
    let locked = match context.store.lock(id) {
        Err(error) if error.class == Class::NoContainer => {
            // Of one that was made from an image, its writable layer may be left.
            let found = crate::image::container::remove_left(&context.images, id)?;
            return if force || found { Ok(()) } else { Err(error) };
        }
        locked => locked?,
    };
    let record = match locked.read() {
        Ok(Some(record)) => record,
        // A create that was killed before it wrote anything has made a bundle of its image at most.
        Ok(None) => {
            crate::image::container::remove_left(&context.images, id)?;
            return locked.remove();
        }
        Err(error) if force && error.class == Class::Corrupt => {
            log::warn(&format!("{error}; removing it, and what it may have named is left"));
            return locked.remove();
        }
        Err(error) => return Err(error),
    };
    let container = Container::from_record(record)?;
    if !force {
        container.allow(Operation::Delete)?;
    }
    timing::step("end its processes");
    end_processes(&container)?;
    supervise::dismiss(&container.record);
    remove(locked, container.record, force)
}

/// Ends the init, and waits for its end.
fn end_processes(container: &Container) -> Result<()> {
    let Some(init) = container.record.init else { return Ok(()) };
    if matches!(container.status, Status::Exited | Status::Restarting | Status::Dead)
        || container.record.boot != boot_id()?
    {
        return Ok(());
    }
    let Ok(process) = pidfd::open(Pid::from_raw(init.pid)) else { return Ok(()) };
    match send(container, libc::SIGKILL) {
        Err(error) if error.class == Class::WrongState => return Ok(()),
        result => result?,
    }
    if container.status == Status::Paused {
        container.cgroup()?.thaw()?;
    }
    match pidfd::wait_ended(process.as_fd(), Some(DYING)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(Class::System, "end the container's init")
            .on(init.pid.to_string())
            .because(format!("it is still there {} seconds after SIGKILL", DYING.as_secs()))),
        Err(errno) => Err(Error::system("wait for the container's init", errno)),
    }
}

/// Replays the journal backwards and removes the record, last of all. It can be repeated: what is
/// gone already is no error.
pub(super) fn remove(locked: Locked, mut record: Record, force: bool) -> Result<()> {
    if record.phase != Phase::Removing {
        record.phase = Phase::Removing;
        match locked.write(&record) {
            // On a full disk this is what makes room. One that is killed before its end finds the container
            // as it was, and begins anew.
            Err(error) if error.errno == Some(libc::ENOSPC) || error.errno == Some(libc::EDQUOT) => {}
            written => written?,
        }
    }
    timing::step("take back the cgroup and the rest");
    let undone = undo::cgroup(&record).and_then(|()| undo::take_back(&record, force));
    if let Err(error) = undone {
        record.phase = Phase::Dead;
        record.left = vec![error.to_string()];
        let _ = locked.write(&record);
        return Err(error);
    }
    let poststop = std::mem::take(&mut record.hooks.poststop);
    timing::step("remove the record");
    locked.remove()?;
    if !poststop.is_empty() {
        let container = Container { record, status: Status::Exited, unreported: None };
        let state = container.state(Some("stopped")).to_json();
        let files = hooks::Files::open(&container.record.annotations).unwrap_or_else(|error| {
            log::warn(&error.to_string());
            hooks::Files::default()
        });
        for hook in poststop {
            // "the runtime MUST log a warning, but the remaining hooks and lifecycle continue as if
            // the hook had succeeded" (runtime.md, Lifecycle)
            if let Err(error) = hooks::run_all(HookPoint::Poststop, &[hook], &state, &files) {
                log::warn(&error.to_string());
            }
        }
    }
    Ok(())
}
