//! The directory, in the store, of a container that was made from an image: its bundle and its
//! writable layer.

use super::archive::Found;
use super::bundle;
use super::options::{self, Options};
use super::owners;
use super::store::{Image, Store};
use super::tree::{self, Owner};
use super::{userns, volumes};
use crate::error::{Class, Context as _, Error, Result};
use crate::sys;
use nix::errno::Errno;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, open};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where they are in a store.
pub(super) const PLACE: &str = "containers";

/// The files that a container gets in place of its image's.
const ETC: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// Where the directories of all containers are.
pub fn place(images: &Path) -> PathBuf {
    images.join(PLACE)
}

/// Where a container's directory is.
pub fn directory(images: &Path, id: &str) -> PathBuf {
    images.join(PLACE).join(id)
}

/// The name that a container has for itself, if it has a directory.
pub fn hostname(place: &Path) -> Option<String> {
    std::fs::read_to_string(place.join("hostname")).ok().map(|text| text.trim_end().to_owned())
}

/// Makes a container's directory.
///
/// # Errors
/// [`Class::ContainerExists`] when one of that name is there; whatever is wrong with the image or the
/// options. Nothing is left then.
pub fn make(store: &Store, image: &Image, id: &str, options: &Options) -> Result<PathBuf> {
    let place = directory(store.root(), id);
    let shown = || place.display().to_string();
    let doing = "make the container's directory";
    std::fs::create_dir_all(store.root().join(PLACE)).doing_on(doing, shown)?;
    std::fs::create_dir(&place).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::new(Class::ContainerExists, format!("container {id:?} already exists"))
                .because(format!("its writable layer is in {}", place.display()))
                .hint(format!("`dhow delete --force {id}` removes it"))
        }
        _ => Error::system(doing, sys::io_errno(&error)).on(shown()),
    })?;
    let made = (|| {
        let lock = lock(&place)?;
        let mut options = options.clone();
        let hostname = options.hostname.get_or_insert_with(|| id.to_owned()).clone();
        write_etc(&place, &hostname, &options)?;
        options.etc = Some(place.clone());
        if nix::unistd::geteuid().is_root() {
            options.own_volumes = make_volumes(store, image, &place, &options)?;
        }
        let chosen = userns::maps(store, &options)?;
        options.user_maps = chosen.as_ref().map(|(maps, _)| maps.clone());
        options.named = volumes::prepare(store, image, &options)?;
        bundle::write(store, image, &place, &options)?;
        // A child that is forked later has a copy of every fd: the lock is given up, not just closed.
        flock(&lock, FlockOperation::Unlock).doing(doing)
    })();
    if let Err(error) = made {
        let _ = remove(&place);
        return Err(error);
    }
    Ok(place)
}

/// Makes directories for the volumes without a source, each with what the image has in its place.
fn make_volumes(
    store: &Store,
    image: &Image,
    place: &Path,
    options: &Options,
) -> Result<BTreeMap<String, PathBuf>> {
    let doing = "make the container's volumes";
    let of_image = image.config.config.iter().flat_map(|run| &run.volumes).flat_map(BTreeMap::keys);
    let wanted: BTreeSet<String> = of_image.cloned().chain(options::scratch_places(options)).collect();
    let mut all = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(all);
    }
    let view = match image.config.rootfs.diff_ids.is_empty() {
        true => None,
        false => Some(bundle::overlay(store, image, place)?.view()?),
    };
    std::fs::create_dir(place.join("volumes")).doing(doing)?;
    for (index, destination) in wanted.into_iter().enumerate() {
        let own = place.join("volumes").join(index.to_string());
        std::fs::create_dir(&own).doing(doing)?;
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o755)).doing(doing)?;
        let found = view.as_ref().and_then(|view| view.resolve(Path::new(&destination)).ok());
        let found = found.and_then(|fd| Found::of(fd).ok());
        if let Some(found) = found.filter(|found| found.kind() == FileType::Directory) {
            let to = open_directory(&own).doing(doing)?;
            tree::copy_into(&found, to.as_fd(), Owner::Kept)?;
            std::os::unix::fs::chown(&own, Some(found.stat.st_uid), Some(found.stat.st_gid)).doing(doing)?;
            let mode = PermissionsExt::from_mode(found.stat.st_mode & 0o7777);
            std::fs::set_permissions(&own, mode).doing(doing)?;
        }
        all.insert(destination, own);
    }
    Ok(all)
}

fn lock(place: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let doing = "lock the container's directory";
    let lock = open(place, flags, Mode::empty()).doing(doing)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|errno| Error::system(doing, sys::errno(errno)).on(place.display().to_string()))?;
    Ok(lock)
}

/// The mounts of the files in /etc that are the container's own.
pub(super) fn etc_mounts(place: &Path) -> impl Iterator<Item = serde_json::Value> {
    ETC.map(|name| {
        serde_json::json!({"destination": format!("/etc/{name}"), "type": "bind",
            "source": place.join(name), "options": ["bind", "rprivate"]})
    })
    .into_iter()
}

/// Lines of /etc/hosts that the caller asked for; they stay when a network gives addresses.
const MORE_HOSTS: &str = "hosts.more";

/// There when the caller has named resolvers: then those of a network do not count.
const OWN_RESOLVERS: &str = "resolv.own";

fn write_etc(place: &Path, hostname: &str, options: &Options) -> Result<()> {
    let doing = "write the container's files in /etc";
    let write = |name: &str, text: String| {
        let path = place.join(name);
        std::fs::write(&path, text).doing(doing)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).doing(doing)
    };
    write("hostname", format!("{hostname}\n"))?;
    if let Some(other) = &options.etc_of {
        // Its names are those of its network; where it shares them itself, the link is followed on.
        return ["hosts", "resolv.conf"].into_iter().try_for_each(|name| {
            std::os::unix::fs::symlink(other.join(name), place.join(name)).doing(doing)
        });
    }
    let of_host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let more = options::host_lines(options)?;
    let own = if options.host_network { of_host("/etc/hosts") } else { hosts(hostname, &[]) };
    write("hosts", own + &more)?;
    if !more.is_empty() {
        write(MORE_HOSTS, more)?;
    }
    let mut resolv = of_host("/etc/resolv.conf");
    if !options.host_network {
        resolv = without_loopback(&resolv);
    }
    let asked = options::resolvers(options, &resolv)?;
    if !options.dns.is_empty() {
        write(OWN_RESOLVERS, String::new())?;
    }
    write("resolv.conf", asked.unwrap_or(resolv))
}

/// /etc/hosts of a container with these addresses.
fn hosts(hostname: &str, addresses: &[String]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    let own: &[String] = if addresses.is_empty() { &["127.0.1.1".to_owned()] } else { addresses };
    text.extend(own.iter().map(|address| format!("{address}\t{hostname}\n")));
    text
}

/// A resolver on the host's loopback cannot be reached from another network.
fn without_loopback(resolv: &str) -> String {
    let local = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words.next().is_some_and(|address| address.starts_with("127.") || address == "::1")
    };
    resolv.lines().filter(|line| !local(line)).map(|line| format!("{line}\n")).collect()
}

/// Tells a container, before it mounts them, of the addresses that its network has given it, and of
/// the network's own resolvers.
///
/// # Errors
/// ENOSPC and their like.
pub fn set_addresses(place: &Path, addresses: &[String], nameservers: &[String]) -> Result<()> {
    let doing = "write the container's files in /etc";
    let hostname = std::fs::read_to_string(place.join("hostname")).doing(doing)?;
    let more = std::fs::read_to_string(place.join(MORE_HOSTS)).unwrap_or_default();
    std::fs::write(place.join("hosts"), hosts(hostname.trim_end(), addresses) + &more).doing(doing)?;
    if nameservers.is_empty() || place.join(OWN_RESOLVERS).exists() {
        return Ok(());
    }
    let text: String = nameservers.iter().map(|address| format!("nameserver {address}\n")).collect();
    std::fs::write(place.join("resolv.conf"), text).doing(doing)
}

/// Removes what is left of a container that has no record: one that was being made when its maker was
/// killed, or whose record went with a reboot. Answers whether there was anything.
///
/// # Errors
/// [`Class::WrongState`] while it is being made.
pub fn remove_left(images: &Path, id: &str) -> Result<bool> {
    let place = directory(images, id);
    if !place.is_dir() {
        return Ok(false);
    }
    let _lock = lock(&place).map_err(|error| match error.errno {
        Some(libc::EAGAIN) => error.class(Class::WrongState).because("it is being made"),
        _ => error,
    })?;
    remove(&place).map(|()| true)
}

/// Removes the directories of containers that were never whole. The store must be locked exclusively,
/// so that nobody makes one now.
pub fn clear_half_made(store: &Store) {
    for entry in std::fs::read_dir(store.root().join(PLACE)).into_iter().flatten().flatten() {
        let path = entry.path();
        if !path.join("config.json").exists() && lock(&path).is_ok() {
            let _ = remove(&path);
        }
    }
}

/// Removes a container's directory with all that its payload has written. What is gone is no error.
///
/// # Errors
/// When something cannot be removed.
pub fn remove(place: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::system("remove the writable layer", sys::io_errno(&error)).on(place.display().to_string())
    };
    match std::fs::remove_dir_all(place) {
        Err(error)
            if matches!(sys::io_errno(&error), Errno::EACCES | Errno::EPERM)
                && owners::ranges().is_some() =>
        {
            owners::remove_tree(place)
        }
        Err(error) if sys::io_errno(&error) == Errno::EACCES => {
            // A payload without rights may have taken its own away, as overlayfs does from `work`.
            let root = open_directory(place).doing("remove the writable layer")?;
            open_up(&root, 0)?;
            std::fs::remove_dir_all(place).map_err(failed)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed),
    }
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(sys::errno)
}

/// Gives the owner every right to the directories of a tree. Nothing is followed.
fn open_up(directory: &OwnedFd, depth: usize) -> Result<()> {
    /// As deep as a path can be.
    const DEEPEST: usize = 2048;
    let doing = "remove the writable layer";
    if depth > DEEPEST {
        return Err(Error::system(doing, Errno::ELOOP));
    }
    for entry in rustix::fs::Dir::read_from(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || entry.file_type() != FileType::Directory {
            continue;
        }
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = rustix::fs::openat(directory, name, path, Mode::empty()).doing(doing)?;
        // chmod(2) takes no O_PATH fd; its name in /proc leads to that very directory.
        let own = sys::fd::proc_path(found.as_fd());
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o700)).doing(doing)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open_up(
            &rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty()).doing(doing)?,
            depth + 1,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_of_the_host_alone_are_left_out() {
        let text = "search x\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\n";
        assert_eq!(without_loopback(text), "search x\nnameserver 10.0.0.1\n");
        assert!(hosts("web", &["10.1.2.3".into()]).ends_with("\n10.1.2.3\tweb\n"));
    }

    #[test]
    fn what_its_owner_may_not_enter_is_removed_too() {
        let base = std::env::temp_dir().join(format!("dhow-remove-{}", std::process::id()));
        std::fs::create_dir_all(base.join("a/b/c")).unwrap();
        std::os::unix::fs::symlink("/etc", base.join("a/link")).unwrap();
        for path in ["a/b", "a"] {
            std::fs::set_permissions(base.join(path), PermissionsExt::from_mode(0o000)).unwrap();
        }
        open_up(&open_directory(&base).unwrap(), 0).unwrap();
        assert_eq!(std::fs::metadata(base.join("a/b")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_ne!(std::fs::metadata("/etc").unwrap().permissions().mode() & 0o777, 0o700);
        remove(&base).unwrap();
        assert!(!base.exists());
        remove(&base).unwrap();
    }
}
