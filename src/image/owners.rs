//! Whose the files of images are where dhow runs without root's rights: the user's own alone, or,
//! where there are newuidmap(1), newgidmap(1) and ranges in /etc/subuid and /etc/subgid, as many
//! owners as the ranges have. Files of others can only be made, read and removed inside a user
//! namespace with these ids, in which the user is root.

use crate::error::{Class, Context as _, Error, Result};
use crate::namespaces::{Maps, write_maps};
use crate::spec::IdMapping;
use crate::sys::clone::{Child, Forked, clone3, exit_now};
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{User, getegid, geteuid};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process is root in a namespace of [`as_root`].
static INSIDE: AtomicBool = AtomicBool::new(false);

/// Whether this is root of the machine, which may make devices and overlayfs's `trusted` marks.
pub fn is_root() -> bool {
    geteuid().is_root() && !INSIDE.load(Ordering::Relaxed)
}

/// Whether files can only belong to this user.
pub(super) fn is_alone() -> bool {
    !geteuid().is_root()
}

/// The ids of a user without root's rights who has more than one: their own as root, and the ranges
/// behind it. `None` for root, and for whom nothing is set aside.
pub fn ranges() -> Option<Maps> {
    let uid = geteuid();
    if uid.is_root() || !["newuidmap", "newgidmap"].into_iter().all(is_program) {
        return None;
    }
    let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let range = |file: &str, own: u32| {
        let text = std::fs::read_to_string(file).ok()?;
        let (start, count) = find(&text, uid.as_raw(), name.as_deref())?;
        let id = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        Some(vec![id(0, own, 1), id(1, start, count)])
    };
    let uids = range("/etc/subuid", uid.as_raw())?;
    Some(Maps { uids, gids: range("/etc/subgid", getegid().as_raw())? })
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// The first range of a user in a file of subuid(5)'s form.
fn find(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let is_own = Some(owner) == name || owner.parse() == Ok(uid);
        let (start, count) = (fields.next()?.parse().ok()?, fields.next()?.trim_end().parse().ok()?);
        (is_own && count > 0).then_some((start, count))
    })
}

/// Whether an id of a container is one of a map's.
pub(super) fn has(map: &[IdMapping], id: u32) -> bool {
    map.iter().any(|entry| id >= entry.container_id && id - entry.container_id < entry.size)
}

/// The error of an owner that cannot be set.
pub(super) fn refused(errno: rustix::io::Errno, uid: u32, gid: u32) -> Error {
    let error = Error::system("set the owner", crate::sys::errno(errno)).on(format!("{uid}:{gid}"));
    match errno {
        rustix::io::Errno::INVAL if INSIDE.load(Ordering::Relaxed) => error
            .because("there are fewer ids for this user in /etc/subuid or /etc/subgid")
            .hint("`usermod --add-subuids --add-subgids` gives more")
            .class(Class::Config),
        _ => error,
    }
}

/// Does work with files of all owners: in a child that is root in a user namespace with [`ranges`],
/// where there are some, and here where not. What the work answers comes back as text.
///
/// # Errors
/// The work's own, and those of making the namespace.
pub fn as_root(work: impl FnOnce() -> Result<String>) -> Result<String> {
    match ranges() {
        Some(maps) => in_child(CloneFlags::CLONE_NEWUSER, Some(&maps), work),
        None => work(),
    }
}

/// Does work in a child with a mount namespace of its own, and as root of a user namespace where this
/// is not root: mounts are made there that nobody else sees.
///
/// # Errors
/// The work's own, and those of making the namespaces.
pub fn in_mount_namespace(work: impl FnOnce() -> Result<String>) -> Result<String> {
    if geteuid().is_root() {
        return in_child(CloneFlags::CLONE_NEWNS, None, work);
    }
    let own = |host_id| vec![IdMapping { container_id: 0, host_id, size: 1 }];
    let alone = || Maps { uids: own(geteuid().as_raw()), gids: own(getegid().as_raw()) };
    let maps = ranges().unwrap_or_else(alone);
    in_child(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS, Some(&maps), work)
}

/// Does work in a child with new namespaces, which is root by the maps of a user namespace among
/// them. What the work answers comes back as text.
///
/// # Errors
/// The work's own, and those of making the namespaces.
pub fn in_child(
    namespaces: CloneFlags,
    maps: Option<&Maps>,
    work: impl FnOnce() -> Result<String>,
) -> Result<String> {
    let doing = "enter the namespace of the container's files";
    let (mut ours, theirs) = UnixStream::pair().doing(doing)?;
    match clone3(namespaces, 0, None).doing(doing)? {
        Forked::Child => {
            drop(ours);
            INSIDE.store(maps.is_some(), Ordering::Relaxed);
            inside(theirs, work)
        }
        Forked::Parent(Child { pid, .. }) => {
            drop(theirs);
            let mut answer = String::new();
            // A child that nobody lets go on ends by itself when this end is closed.
            let answered = maps
                .map_or(Ok(()), |maps| write_maps(pid, maps))
                .and_then(|()| ours.write_all(b"!").doing(doing))
                .and_then(|()| ours.read_to_string(&mut answer).doing(doing));
            drop(ours);
            let _ = waitpid(pid, None);
            answered?;
            let ended = |_| Error::new(Class::System, doing).because("it ended without a word");
            serde_json::from_str::<Result<String>>(&answer).map_err(ended)?
        }
    }
}

fn inside(mut parent: UnixStream, work: impl FnOnce() -> Result<String>) -> ! {
    let mut word = [0];
    // A killed command goes on in no child of it.
    let _ = crate::sys::prctl::die_with_parent(true);
    if parent.read_exact(&mut word).is_err() {
        exit_now(1);
    }
    let answer = work();
    let _ = std::io::stdout().flush();
    let _ = serde_json::to_writer(&parent, &answer);
    let _ = parent.shutdown(Shutdown::Both);
    exit_now(0)
}

/// Removes a tree, whoever owns what is in it.
///
/// # Errors
/// unlink(2)'s.
pub(super) fn remove_tree(place: &Path) -> Result<()> {
    let remove = || {
        let removed = std::fs::remove_dir_all(place).doing_on("remove", || place.display().to_string());
        removed.map(|()| String::new())
    };
    as_root(remove).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "# a comment\nother:1:2\nme:100000:65536\n1000:7:8\nempty:5:0\nbroken:x:y\n";
        assert_eq!(find(text, 1000, Some("me")), Some((100_000, 65536)));
        assert_eq!(find(text, 1000, None), Some((7, 8)));
        assert_eq!(find(text, 1001, Some("nobody")), None);
        assert_eq!(find(text, 1001, Some("empty")), None);
        assert_eq!(find(text, 1001, Some("broken")), None);
    }

    #[test]
    fn an_id_is_in_a_map_or_not() {
        let id = |container_id, size| IdMapping { container_id, host_id: 9, size };
        let map = [id(0, 1), id(1, 10)];
        assert!([0, 1, 10].iter().all(|one| has(&map, *one)));
        assert!(![11, u32::MAX].iter().any(|one| has(&map, *one)));
    }
}
