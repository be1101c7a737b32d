//! Idmapped mounts: a bind whose files show other owners, mount_setattr(2) MOUNT_ATTR_IDMAP.
//!
//! The kernel asks for CAP_SYS_ADMIN over the filesystem itself, which the init of a container with
//! a user namespace has not. So the tree is made before the init, by dhow itself, and the init only
//! attaches it: a detached mount belongs to whoever holds its fd.

use super::mounts::open_source;
use super::plan::{Source, Step};
use crate::error::{Class, Error, Result};
use crate::spec::IdMapping;
use crate::sys::mount;
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How the owners of a mount's files are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    /// `ridmap`: the mounts below it too.
    pub recursive: bool,
    /// The mount's own uid and gid maps; `None` for those of the container's user namespace.
    pub own: Option<(Vec<IdMapping>, Vec<IdMapping>)>,
}

/// The detached tree of a step, its owners mapped as the user namespace maps its ids.
///
/// # Errors
/// The source's, and [`Class::Unsupported`] where the filesystem or the kernel has no idmapped mounts.
pub fn tree(step: &Step, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let (Source::Bind { source, recursive }, Some(map)) = (&step.source, &step.idmap) else {
        return Err(Error::new(Class::Internal, "idmap a mount that is none").on(&step.field));
    };
    let tree = open_source(step, source, *recursive)?;
    mount::idmap(tree.as_fd(), user_namespace, map.recursive).map_err(|errno| {
        let error = Error::system("idmap the mount", errno).on(&step.field);
        match errno {
            Errno::EINVAL => error.class(Class::Unsupported).because(format!(
                "the filesystem of {} has no idmapped mounts, or the mount is idmapped already",
                source.display()
            )),
            Errno::ENOSYS => error.class(Class::Unsupported).hint("idmapped mounts need Linux 5.12"),
            Errno::EPERM => error.hint(
                "it takes CAP_SYS_ADMIN over the filesystem, and a map other than that of its own user namespace",
            ),
            _ => error,
        }
    })?;
    Ok(tree)
}
