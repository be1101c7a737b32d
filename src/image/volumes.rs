//! Named volumes: directories of the store that outlive the containers which have them.
//!
//! `volumes/NAME/meta.json`, and `data`, which begins with what the image of its first container has in
//! that place. A volume is made aside and renamed into place; `filling` says that copying into it has
//! begun, so that what a killed command has left half-copied is copied anew.

use super::archive::Found;
use super::bundle::{self, Origin};
use super::options::{self, Options};
use super::store::{Image, Store};
use super::{container, owners, tree};
use crate::error::{Class, Context as _, Error, Result};
use crate::rootfs::Overlay;
use crate::sys::{self, time};
use nix::errno::Errno;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, RenameFlags, flock, open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

/// Where a volume is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its place in the container.
    pub place: String,
    /// Whether it begins with what the image has there.
    pub fill: bool,
}

/// Whether a word can be a volume's name: Docker's rule.
pub fn is_name(word: &str) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    word.len() < 256 && word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(may)
}

fn checked(name: &str) -> Result<&str> {
    match is_name(name) {
        true => Ok(name),
        false => Err(Error::new(Class::Usage, "invalid name of a volume")
            .on(format!("{name:?}"))
            .because("it begins with a letter or a digit, and has letters, digits, '_', '.' and '-'")),
    }
}

fn directory(store: &Store, name: &str) -> PathBuf {
    store.root().join("volumes").join(name)
}

/// Where a volume's files are.
pub fn data(store: &Store, name: &str) -> PathBuf {
    directory(store, name).join("data")
}

/// A volume by its name.
///
/// # Errors
/// [`Class::Config`] when there is none.
pub fn find(store: &Store, name: &str) -> Result<Volume> {
    let path = directory(store, checked(name)?).join("meta.json");
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(Class::Config, "no such volume")
                .on(name)
                .hint("`dhow volume ls` shows those that are there"));
        }
        text => text.doing_on("read", || path.display().to_string())?,
    };
    serde_json::from_slice(&text).map_err(|error| {
        Error::new(Class::Corrupt, "read").on(path.display().to_string()).because(error.to_string())
    })
}

/// All volumes, by name.
///
/// # Errors
/// When the store cannot be read.
pub fn list(store: &Store) -> Result<Vec<Volume>> {
    let entries = std::fs::read_dir(store.root().join("volumes")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_name(name))
        .collect();
    names.sort_unstable();
    names.iter().map(|name| find(store, name)).collect()
}

/// The containers that have a volume.
///
/// # Errors
/// When the note of one cannot be read.
pub fn users(store: &Store, name: &str) -> Result<Vec<String>> {
    let mut users = Vec::new();
    for entry in std::fs::read_dir(container::place(store.root())).into_iter().flatten().flatten() {
        let origin = Origin::load(&entry.path())?;
        if origin.is_some_and(|origin| origin.volumes.iter().any(|one| one == name)) {
            users.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    users.sort_unstable();
    Ok(users)
}

/// Makes a volume, unless it is there; whether it was made.
///
/// # Errors
/// For a name that is none; ENOSPC and its like.
pub fn create(store: &Store, name: &str) -> Result<bool> {
    let doing = "make a volume";
    let place = directory(store, checked(name)?);
    if place.is_dir() {
        return Ok(false);
    }
    std::fs::create_dir_all(store.root().join("volumes")).doing(doing)?;
    let workplace = store.workplace()?;
    let aside = workplace.fresh();
    std::fs::create_dir_all(aside.join("data")).doing(doing)?;
    std::fs::set_permissions(aside.join("data"), PermissionsExt::from_mode(0o755)).doing(doing)?;
    let volume = Volume { name: name.to_owned(), created: time::rfc3339(SystemTime::now()) };
    let text = serde_json::to_string(&volume)
        .map_err(|error| Error::new(Class::Internal, doing).because(error.to_string()))?;
    std::fs::write(aside.join("meta.json"), text).doing(doing)?;
    super::store::sync_filesystem(&aside)?;
    let (from, to) = (&aside, &place);
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => super::store::sync(&store.root().join("volumes")).map(|()| true),
        // Another was faster.
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(errno) => Err(Error::system(doing, sys::errno(errno)).on(name)),
    }
}

/// Removes a volume with all that is in it. The store must be locked exclusively, so that no container
/// comes to have it meanwhile.
///
/// # Errors
/// [`Class::WrongState`] while a container has it.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    let doing = "remove the volume";
    find(store, name)?;
    let users = users(store, name)?;
    if let Some(first) = users.first() {
        return Err(Error::new(Class::WrongState, doing)
            .on(name)
            .because(format!("containers have it: {}", users.join(", ")))
            .hint(format!("`dhow delete {first}` removes a container")));
    }
    // First out of its name, so that nothing half-deleted is ever taken for a volume.
    let workplace = store.workplace()?;
    std::fs::rename(directory(store, name), workplace.fresh()).doing_on(doing, || name)?;
    super::store::sync(&store.root().join("volumes"))
}

/// Sees to it that the volumes that a container is to have are there; their directories by name.
///
/// # Errors
/// As for [`create`]; when what the image has cannot be copied.
pub(super) fn prepare(store: &Store, image: &Image, options: &Options) -> Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for wanted in options::named_volumes(options)? {
        create(store, &wanted.name)?;
        let image = Some(image).filter(|image| wanted.fill && !image.config.rootfs.diff_ids.is_empty());
        begin(store, image, &wanted).map_err(|error| super::within(&wanted.name, error))?;
        all.insert(wanted.name.clone(), data(store, &wanted.name));
    }
    Ok(all)
}

/// Copies what the image has in a volume's place into one that is empty, as Docker does. What a killed
/// command has left half-copied goes also where nothing is to be copied: the next one that copies would take
/// what containers had written meanwhile for a part of it.
fn begin(store: &Store, image: Option<&Image>, wanted: &Wanted) -> Result<()> {
    let doing = "fill the volume";
    let (place, data) = (directory(store, &wanted.name), data(store, &wanted.name));
    let lock = open_directory(&place).doing(doing)?;
    flock(&lock, FlockOperation::LockExclusive).doing(doing)?;
    let mark = place.join("filling");
    let was_cut_off = mark.exists();
    let is_filled = || Ok::<bool, Error>(std::fs::read_dir(&data).doing(doing)?.next().is_some());
    if !was_cut_off && (image.is_none() || is_filled()?) {
        return Ok(());
    }
    std::fs::write(&mark, "").doing(doing)?;
    let overlay = image.map(|image| bundle::overlay(store, image, &place)).transpose()?;
    let work = || {
        super::clear(&data)?;
        overlay.as_ref().map_or(Ok(()), |overlay| copy(overlay, &wanted.place, &data)).map(|()| String::new())
    };
    match nix::unistd::geteuid().is_root() {
        true => work()?,
        false => owners::in_mount_namespace(work)?,
    };
    // A power cut may not leave the mark gone, and half of the files.
    super::store::sync_filesystem(&data)?;
    std::fs::remove_file(&mark).doing(doing)?;
    // A child that is forked later has a copy of every fd: the lock is given up, not just closed.
    flock(&lock, FlockOperation::Unlock).doing(doing)
}

fn copy(overlay: &Overlay, place: &str, data: &Path) -> Result<()> {
    let doing = "fill the volume";
    let found = match overlay.view()?.resolve(Path::new(place)) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        found => Found::of(found.doing(doing)?).doing(doing)?,
    };
    if found.kind() != FileType::Directory {
        return Ok(());
    }
    tree::copy_into(&found, open_directory(data).doing(doing)?.as_fd(), tree::Owner::Kept)?;
    std::os::unix::fs::chown(data, Some(found.stat.st_uid), Some(found.stat.st_gid)).doing(doing)?;
    let mode = PermissionsExt::from_mode(found.stat.st_mode & 0o7777);
    std::fs::set_permissions(data, mode).doing(doing)
}

fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).map_err(sys::errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::store::Use;

    #[test]
    fn names_are_dockers() {
        assert!(["a", "db", "my_data-1.2", "0"].iter().all(|name| is_name(name)));
        assert!(["", ".x", "-x", "a/b", "..", "a b", "ä"].iter().all(|name| !is_name(name)));
    }

    #[test]
    fn a_volume_is_made_once_and_removed_whole() {
        let base = std::env::temp_dir().join(format!("dhow-volumes-{}", std::process::id()));
        let store = Store::open(&base, Use::Exclusive).unwrap();
        assert!(create(&store, "one").unwrap());
        assert!(!create(&store, "one").unwrap());
        std::fs::write(data(&store, "one").join("kept"), "").unwrap();
        assert!(data(&store, "one").join("kept").exists());
        assert_eq!(list(&store).unwrap().len(), 1);
        // Who has it keeps it.
        let container = container::directory(store.root(), "c");
        std::fs::create_dir_all(&container).unwrap();
        let digest = super::super::Digest::of(b"");
        let origin =
            Origin { name: "x".into(), manifest: digest, keep: Vec::new(), volumes: vec!["one".into()] };
        std::fs::write(container.join("image.json"), serde_json::to_string(&origin).unwrap()).unwrap();
        assert!(remove(&store, "one").unwrap_err().to_string().contains("containers have it: c"));
        std::fs::remove_dir_all(&container).unwrap();
        remove(&store, "one").unwrap();
        assert!(find(&store, "one").is_err() && list(&store).unwrap().is_empty());
        assert!(create(&store, "../x").is_err() && remove(&store, "..").is_err());
        drop(store);
        std::fs::remove_dir_all(base).unwrap();
    }
}
