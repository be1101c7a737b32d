//! The mount trees of a new container that its init has not the rights for: sources that only the
//! host's root reaches, and idmapped mounts.

use super::create::Planned;
use crate::error::{Class, Error, Result};
use crate::namespaces::Maps;
use crate::process::user_namespace;
use crate::rootfs;
use crate::rootfs::plan::{Source, Step};
use crate::spec::NamespaceKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// User namespaces whose maps are those of idmapped mounts.
#[derive(Default)]
struct UserNamespaces(Vec<(Maps, OwnedFd)>);

/// The trees of those steps, by their place in the plan. Usually none, and then nothing is done.
///
/// What lies in the rootfs itself is left to the init, which sees the mounts made before it; it
/// asks for the owners ([`map_owners`]).
///
/// # Errors
/// Those of the sources and maps, named after the mount.
pub(super) fn prepare(planned: &Planned) -> Result<Vec<(usize, OwnedFd)>> {
    let plan = &planned.rootfs;
    // Root in a user namespace is nobody on the host, and cannot search what is closed to others.
    let init_is_less = planned.spec().linux.has(NamespaceKind::User) && !planned.rootless;
    let mut namespaces = UserNamespaces::default();
    let mut trees = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        if !matches!(step.source, Source::Bind { .. }) || step.source_inside(&plan.rootfs).is_some() {
            continue;
        }
        if step.idmap.is_some() {
            let namespace = namespaces.of(planned, step)?;
            trees.push((index, rootfs::idmapped_tree(plan, step, namespace)?));
        } else if init_is_less && !step.symlinks.copy {
            trees.push((index, rootfs::source_tree_of_host(plan, step)?));
        }
    }
    Ok(trees)
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
