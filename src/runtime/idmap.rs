//! The idmapped mounts of a new container, made before its init.

use crate::error::{Class, Error, Result};
use crate::namespaces::Maps;
use crate::process::user_namespace;
use crate::rootfs::{self, Plan};
use crate::spec::{Linux, NamespaceKind};
use std::os::fd::{AsFd, OwnedFd};

/// The trees of the steps that are idmapped, by their place in the plan. Usually none, and then
/// nothing is done.
///
/// # Errors
/// Those of the maps, named after the mount, and of the mounts.
pub(super) fn trees(
    plan: &Plan,
    linux: &Linux,
    joins: &[(NamespaceKind, OwnedFd)],
) -> Result<Vec<(usize, OwnedFd)>> {
    let mut made: Vec<(Maps, OwnedFd)> = Vec::new();
    let mut trees = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        let Some(map) = &step.idmap else { continue };
        let joined = joins.iter().find(|(kind, _)| *kind == NamespaceKind::User);
        if let (None, Some((_, namespace))) = (&map.own, joined) {
            trees.push((index, rootfs::idmapped_tree(step, namespace.as_fd())?));
            continue;
        }
        let maps = match &map.own {
            Some((uids, gids)) => Maps { uids: uids.clone(), gids: gids.clone() },
            // The container's own namespace is not there yet, and one with its maps is as good.
            None => Maps::of(linux),
        };
        if !made.iter().any(|(known, _)| *known == maps) {
            let namespace = user_namespace(&maps).map_err(|error| error.on(step.field.clone()))?;
            made.push((maps.clone(), namespace));
        }
        let (_, namespace) = made
            .iter()
            .find(|(known, _)| *known == maps)
            .ok_or_else(|| Error::new(Class::Internal, "find a user namespace"))?;
        trees.push((index, rootfs::idmapped_tree(step, namespace.as_fd())?));
    }
    Ok(trees)
}
