//! Idmapped mounts: a bind whose files show other owners, mount_setattr(2) MOUNT_ATTR_IDMAP.
//!
//! The kernel asks for CAP_SYS_ADMIN over the filesystem itself, which the init of a container with
//! a user namespace has not. So the tree is made before the init, by dhow itself, and the init only
//! attaches it: a detached mount belongs to whoever holds its fd.

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

/// A map in the words of crun: `uids=0-1000-1#1-5000-9;gids=@0-0-1`. Each triple is the id that the
/// filesystem has, the one that is shown, and how many; after `@` the shown one is an id of the
/// container's, whose maps are `uids` and `gids`.
///
/// # Errors
/// The part that cannot be read.
pub fn parse(text: &str, uids: &[IdMapping], gids: &[IdMapping]) -> std::result::Result<IdMap, String> {
    let (mut own_uids, mut own_gids) = (Vec::new(), Vec::new());
    for list in text.split(';') {
        let (into, of_container, triples) = match list.split_once('=') {
            Some(("uids", triples)) => (&mut own_uids, uids, triples),
            Some(("gids", triples)) => (&mut own_gids, gids, triples),
            _ => return Err(format!("{list:?} begins with neither uids= nor gids=")),
        };
        for triple in triples.split('#') {
            into.push(parse_triple(triple, of_container).ok_or_else(|| {
                format!("{triple:?} is no FILESYSTEM-SHOWN-COUNT with ids that are mapped")
            })?);
        }
    }
    match (own_uids.is_empty(), own_gids.is_empty()) {
        (false, false) => Ok(IdMap { recursive: false, own: Some((own_uids, own_gids)) }),
        _ => Err("uids and gids are both needed".to_owned()),
    }
}

fn parse_triple(triple: &str, of_container: &[IdMapping]) -> Option<IdMapping> {
    let (relative, numbers) = match triple.strip_prefix('@') {
        Some(numbers) => (true, numbers),
        None => (false, triple),
    };
    let mut numbers = numbers.split('-').map(|number| number.parse::<u32>().ok());
    let (filesystem, shown, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
    if numbers.next().is_some() || size == 0 {
        return None;
    }
    let host_id = match relative {
        false => shown,
        true => {
            let last = shown.checked_add(size - 1)?;
            let range = of_container
                .iter()
                .find(|range| shown >= range.container_id && last - range.container_id < range.size)?;
            range.host_id.checked_add(shown - range.container_id)?
        }
    };
    // Beyond the last id there is nothing to map; the kernel's EINVAL would not say where.
    filesystem.checked_add(size - 1)?;
    host_id.checked_add(size - 1)?;
    Some(IdMapping { container_id: filesystem, host_id, size })
}

/// The detached tree of a step, its owners mapped as the user namespace maps its ids.
///
/// # Errors
/// The source's, and [`Class::Unsupported`] where the filesystem or the kernel has no idmapped mounts.
pub fn tree(step: &Step, user_namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    let tree = super::mounts::source_tree(step)?;
    map(step, tree.as_fd(), user_namespace)?;
    Ok(tree)
}

/// Maps the owners in a detached tree of a step's.
///
/// # Errors
/// As of [`tree`].
pub fn map(step: &Step, tree: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> Result<()> {
    let (Source::Bind { source, .. }, Some(map)) = (&step.source, &step.idmap) else {
        return Err(Error::new(Class::Internal, "idmap a mount that is none").on(&step.field));
    };
    mount::idmap(tree, user_namespace, map.recursive).map_err(|errno| {
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, size: u32) -> IdMapping {
        IdMapping { container_id, host_id, size }
    }

    #[test]
    fn maps_in_an_option() {
        let container = [map(0, 100_000, 1000)];
        let of = |text: &str| parse(text, &container, &container);
        let own = of("uids=0-1000-1#5-@;gids=0-0-1");
        assert!(own.unwrap_err().contains("\"5-@\""));
        let own = of("uids=0-1000-1#7-8-9;gids=@0-5-10").unwrap().own.unwrap();
        assert_eq!(own, (vec![map(0, 1000, 1), map(7, 8, 9)], vec![map(0, 100_005, 10)]));
        for wrong in [
            "",
            "uids=0-0-1",
            "uids=0-0-0;gids=0-0-1",
            "x=1-1-1",
            "uids=@0-999-2;gids=0-0-1",
            "uids=1-2;gids=1-2-3",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
