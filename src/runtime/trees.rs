//! The mount trees of a new container that its init has not the rights for: sources that only the
//! host's root reaches, and idmapped mounts.

use super::planned::Planned;
use crate::error::{Class, Error, Result};
use crate::namespaces::{Maps, within_mounts_of};
use crate::process::protocol::{Channel, Message};
use crate::process::user_namespace;
use crate::rootfs;
use crate::rootfs::plan::{Source, Step};
use crate::spec::NamespaceKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// User namespaces whose maps are those of idmapped mounts.
#[derive(Default)]
struct UserNamespaces(Vec<(Maps, OwnedFd)>);

/// Whether a step needs its tree from dhow. What lies in the rootfs itself is left to the init,
/// which sees the mounts made before it; it asks for the owners ([`map_owners`]).
fn is_needed(planned: &Planned, step: &Step) -> bool {
    let outside = step.source_inside(&planned.rootfs.rootfs).is_none();
    // Root in a user namespace is nobody on the host, and cannot search what is closed to others.
    let init_is_less = planned.spec().linux.has(NamespaceKind::User) && !planned.rootless;
    let is_bind = matches!(step.source, Source::Bind { .. });
    is_bind && outside && (step.idmap.is_some() || init_is_less && !step.symlinks.copy)
}

/// Whether any step does: usually none.
pub(super) fn are_needed(planned: &Planned) -> bool {
    planned.rootfs.steps.iter().any(|step| is_needed(planned, step))
}

/// Opens those trees in the mount namespace of the init, and sends them.
///
/// # Errors
/// Those of the sources and maps, named after the mount.
pub(super) fn send(planned: &Planned, init: BorrowedFd<'_>, channel: &Channel) -> Result<()> {
    let mut namespaces = UserNamespaces::default();
    let mut needed = Vec::new();
    for (index, step) in planned.rootfs.steps.iter().enumerate() {
        if is_needed(planned, step) {
            // Made before the namespace is changed, because it takes the host's /proc.
            if step.idmap.is_some() {
                namespaces.of(planned, step)?;
            }
            needed.push((index, step));
        }
    }
    let mut open = || {
        needed.iter().try_for_each(|(index, step)| {
            let tree = match &step.idmap {
                Some(_) => rootfs::idmapped_tree(step, namespaces.of(planned, step)?)?,
                None => rootfs::source_tree(step)?,
            };
            channel.send(&Message::Tree(u32::try_from(*index).unwrap_or(u32::MAX), tree))
        })
    };
    within_mounts_of(init, &mut open)?;
    channel.send(&Message::TreesDone)
}

/// Maps the owners in the tree that the init has opened for a step.
///
/// # Errors
/// As of [`prepare`].
pub(super) fn map_owners(planned: &Planned, step: u32, tree: &OwnedFd) -> Result<()> {
    let step = usize::try_from(step).ok().and_then(|step| planned.rootfs.steps.get(step));
    let step = step.ok_or_else(|| Error::new(Class::Internal, "map the owners of a mount that is none"))?;
    let mut namespaces = UserNamespaces::default();
    rootfs::map_owners(step, tree.as_fd(), namespaces.of(planned, step)?)
}

impl UserNamespaces {
    /// One with the maps of a step; made when there is none yet.
    fn of<'a>(&'a mut self, planned: &'a Planned, step: &Step) -> Result<BorrowedFd<'a>> {
        let own = step.idmap.as_ref().and_then(|map| map.own.as_ref());
        let joined = planned.joins.iter().find(|(kind, _)| *kind == NamespaceKind::User);
        let maps = match (own, joined) {
            (Some((uids, gids)), _) => Maps { uids: uids.clone(), gids: gids.clone() },
            (None, Some((_, namespace))) => return Ok(namespace.as_fd()),
            // The container's own namespace is not there yet, and one with its maps is as good.
            (None, None) => Maps::of(&planned.spec().linux),
        };
        let known = self.0.iter().position(|(known, _)| *known == maps);
        let at = match known {
            Some(at) => at,
            None => {
                let namespace = user_namespace(&maps).map_err(|error| error.on(step.field.clone()))?;
                self.0.push((maps, namespace));
                self.0.len() - 1
            }
        };
        Ok(self.0[at].1.as_fd())
    }
}
