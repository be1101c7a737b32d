//! Taking back what was made for a container, beside its cgroup.

use super::container::{boot_id, manager_of};
use super::{cni, resctrl};
use crate::cgroups::Manager;
use crate::cgroups::resctrl::Membership;
use crate::error::{Error, Result};
use crate::image::container;
use crate::log;
use crate::state::{Record, Undo};
use crate::sys::{mount, path};
use nix::errno::Errno;
use std::path::Path;

/// Removes a container's cgroup. What is gone already is no error.
pub(super) fn cgroup(record: &Record) -> Result<()> {
    let mut cgroup = manager_of(record)?;
    let may_have_processes =
        (!record.private_pids || record.restored) && !matches!(cgroup, Manager::Disabled);
    if may_have_processes && record.boot == boot_id()? {
        cgroup.kill_all(libc::SIGKILL)?;
    }
    cgroup.destroy()
}

/// Takes back what belongs to one life of a container that is to live again: all but its cgroup,
/// which must be gone, and its directory in the image store, with all that it has written.
pub(super) fn take_back_life(record: &Record) -> Result<()> {
    let mut life = record.clone();
    life.undo.retain(|undo| !matches!(undo, Undo::Directory(_)));
    take_back(&life, false)
}

/// Replays a journal backwards, but for the cgroup, which must be gone by then: nothing runs any
/// more. It can be repeated. With `force`, a network that cannot be left is left behind.
pub(super) fn take_back(record: &Record, force: bool) -> Result<()> {
    for undo in record.undo.iter().rev() {
        match undo {
            Undo::Cgroup(_) => {}
            Undo::Network(text) => match cni::remove(text.get(), &record.id) {
                // A plugin may have gone, and its network with it.
                Err(error) if force => log::warn(&error.to_string()),
                result => result?,
            },
            // Mounts do not outlive a boot, and the path may now lead to another's.
            Undo::Mount { at, below } if record.boot == boot_id()? => detach_rootfs(at, *below)?,
            Undo::Mount { .. } => {}
            Undo::Directory(place) => container::remove(place)?,
            Undo::Service { at, class, own, monitor } if record.boot == boot_id()? => {
                let member = Membership::known(class.clone(), *own, monitor.clone());
                resctrl::take_back(at, &member)?;
            }
            Undo::Service { .. } => {}
        }
    }
    Ok(())
}

/// Detaches the rootfs of a container that had no mount namespace of its own.
///
/// What was mounted there before, say by an engine, stays.
///
/// # Errors
/// umount2(2)'s; that nothing is mounted there is none.
fn detach_rootfs(rootfs: &Path, below: u64) -> Result<()> {
    if path::mount_id(rootfs) == Ok(below) {
        return Ok(());
    }
    match mount::detach(rootfs) {
        // EINVAL: no mount point.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(errno) => {
            Err(Error::system("detach the container's rootfs", errno).on(rootfs.display().to_string()))
        }
    }
}
