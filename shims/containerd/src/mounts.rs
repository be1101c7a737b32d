//! The root filesystem that containerd's snapshotters describe as mounts.

use dhow_shim_common::sys;
use dhow_shim_common::wire::Message;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// `containerd.types.Mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: String,
    source: String,
    target: String,
    options: Vec<String>,
}

impl Mount {
    /// Reads one.
    pub fn read(bytes: &[u8]) -> Option<Mount> {
        let message = Message::read(bytes)?;
        let options = message.all(4).map(|option| String::from_utf8_lossy(option).into_owned()).collect();
        let text = |tag| message.text(tag).to_owned();
        Some(Mount { kind: text(1), source: text(2), target: text(3), options })
    }
}

/// mount(2)'s flags for the words of fstab; the others go to the filesystem.
const FLAGS: [(&str, MountFlags); 13] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("sync", MountFlags::SYNCHRONOUS),
    ("dirsync", MountFlags::DIRSYNC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("lazytime", MountFlags::LAZYTIME),
    ("silent", MountFlags::SILENT),
    ("rw", MountFlags::empty()),
];

/// A mount's options, sorted.
#[derive(Debug)]
struct Sorted {
    flags: MountFlags,
    /// Whether it is a bind mount, and if so of the whole tree.
    bind: Option<bool>,
    /// Whether the source is a file that a block device is to be made of.
    is_loop: bool,
    /// Whose ids the files have: the words of `uidmap=` and `gidmap=`, which containerd adds for pods
    /// with user namespaces.
    ids: Option<[String; 2]>,
    data: Vec<String>,
}

fn sort(mount: &Mount) -> Sorted {
    let mut sorted =
        Sorted { flags: MountFlags::empty(), bind: None, is_loop: false, ids: None, data: Vec::new() };
    let map = |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name).map(maps));
    if let (Some(uids), Some(gids)) = (map("uidmap="), map("gidmap=")) {
        sorted.ids = Some([uids, gids]);
    }
    if mount.kind == "bind" {
        sorted.bind = Some(false);
    }
    for option in &mount.options {
        match (option.as_str(), FLAGS.iter().find(|(word, _)| word == option)) {
            ("bind", _) => sorted.bind = Some(sorted.bind.unwrap_or(false)),
            ("rbind", _) => sorted.bind = Some(true),
            ("loop", _) => sorted.is_loop = true,
            ("defaults" | "", _) => {}
            (word, _) if word.starts_with("uidmap=") || word.starts_with("gidmap=") => {}
            (_, Some((_, flag))) => sorted.flags |= *flag,
            _ => sorted.data.push(option.clone()),
        }
    }
    sorted
}

/// `INSIDE:OUTSIDE:SIZE,…` as user_namespaces(7) has it.
fn maps(text: &str) -> String {
    text.split(',').map(|range| range.replace(':', " ") + "\n").collect()
}

/// Mounts all of them, one over the other, below `rootfs`.
///
/// # Errors
/// What could not be mounted, and why; nothing stays mounted then.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), String> {
    if mounts.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(rootfs).map_err(|error| format!("make {}: {error}", rootfs.display()))?;
    for mount in mounts {
        let target = rootfs.join(mount.target.trim_start_matches('/'));
        if let Err(error) = one(mount, &target) {
            unmount_all(rootfs);
            let Mount { kind, source, .. } = mount;
            return Err(format!("mount {kind} {source} on {}: {error}", target.display()));
        }
    }
    Ok(())
}

fn one(mount: &Mount, target: &Path) -> Result<(), String> {
    let Sorted { flags, bind, is_loop, ids, data } = sort(mount);
    let users = match &ids {
        Some([uids, gids]) => {
            Some(sys::user_namespace(uids, gids).map_err(|error| format!("make a user namespace: {error}"))?)
        }
        None => None,
    };
    let says = |error: rustix::io::Errno| error.to_string();
    if let Some(recursive) = bind {
        let result = match recursive {
            true => rustix::mount::mount_bind_recursive(&mount.source, target),
            false => rustix::mount::mount_bind(&mount.source, target),
        };
        result.map_err(says)?;
        if !flags.is_empty() {
            rustix::mount::mount_remount(target, MountFlags::BIND | flags, c"").map_err(says)?;
        }
        return users.map_or(Ok(()), |users| map_ids(target, target, &users, false));
    }
    // Open until it is mounted, which keeps it from then on.
    let device =
        if is_loop { Some(loop_of(&mount.source, flags.contains(MountFlags::RDONLY))?) } else { None };
    let source = device.as_ref().map_or(&mount.source, |(path, _)| path);
    let (place, data) = fit_a_page(data, users.is_some());
    // An overlay's layers are mapped, not the overlay: they are seen below a mapped copy of their folder.
    let mapped = match (&users, &place) {
        (Some(users), Some(place)) => Some(Mapped::new(place, target, users)?),
        (Some(_), None) => return Err("there are no lower directories whose ids could be mapped".to_owned()),
        (None, _) => None,
    };
    let place = mapped.as_ref().map(|mapped| mapped.place.clone()).or(place);
    let data = CString::new(data.join(",")).map_err(|_| "a NUL byte".to_owned())?;
    let there = std::env::current_dir().ok();
    if let Some(place) = &place {
        std::env::set_current_dir(place).map_err(|error| format!("{}: {error}", place.display()))?;
    }
    let result = rustix::mount::mount(source, target, &mount.kind, flags, data.as_c_str());
    if let (Some(_), Some(there)) = (place, there) {
        let _ = std::env::set_current_dir(there);
    }
    result.map_err(says)
}

/// Mounts a copy of what is mounted at `source`, with its ids mapped, over `target`.
fn map_ids(source: &Path, target: &Path, users: &OwnedFd, is_read_only: bool) -> Result<(), String> {
    use rustix::mount::{MoveMountFlags, OpenTreeFlags};
    let says = |error: std::io::Error| format!("map the ids of {}: {error}", source.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree =
        rustix::mount::open_tree(rustix::fs::CWD, source, flags).map_err(|errno| says(errno.into()))?;
    sys::map_ids(&tree, users, is_read_only)
        .map_err(|errno| says(std::io::Error::from_raw_os_error(errno)))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, c"", rustix::fs::CWD, target, flags).map_err(|errno| says(errno.into()))
}

/// A folder of layers with their ids mapped. The overlay has copies of the mounts that it is made of:
/// this one goes when it is done.
struct Mapped {
    place: PathBuf,
}

impl Mapped {
    fn new(layers: &Path, rootfs: &Path, users: &OwnedFd) -> Result<Mapped, String> {
        let place = rootfs.with_extension("layers");
        std::fs::create_dir_all(&place).map_err(|error| format!("make {}: {error}", place.display()))?;
        let mapped = Mapped { place };
        map_ids(layers, &mapped.place, users, true)?;
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.place, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.place);
    }
}

/// A block device of a file.
fn loop_of(source: &str, is_read_only: bool) -> Result<(String, OwnedFd), String> {
    let file = OpenOptions::new().read(true).write(!is_read_only).open(source);
    let file = file.map_err(|error| format!("open {source}: {error}"))?;
    let says = |errno| format!("make a loop device: {}", std::io::Error::from_raw_os_error(errno));
    sys::loop_device(&file.into(), is_read_only).map_err(says)
}

/// mount(2) takes a page of options. When the directories of an overlay are more than that, they are
/// named from the directory that they have in common, or when they must be (`anyway`).
fn fit_a_page(data: Vec<String>, anyway: bool) -> (Option<PathBuf>, Vec<String>) {
    let length: usize = data.iter().map(|option| option.len() + 1).sum();
    let Some(at) = data.iter().position(|option| option.starts_with("lowerdir=")) else {
        return (None, data);
    };
    if length < 4096 && !anyway {
        return (None, data);
    }
    let layers: Vec<&str> = data[at]["lowerdir=".len()..].split(':').collect();
    let mut common = PathBuf::from(layers[0]);
    while !layers.iter().all(|layer| Path::new(layer).starts_with(&common)) || common.as_os_str() == layers[0]
    {
        if !common.pop() {
            return (None, data);
        }
    }
    let short = |layer: &&str| Path::new(layer).strip_prefix(&common).map(|rest| rest.display().to_string());
    let Ok(short) = layers.iter().map(short).collect::<Result<Vec<_>, _>>() else { return (None, data) };
    let mut data = data.clone();
    data[at] = format!("lowerdir={}", short.join(":"));
    (Some(common), data)
}

/// Takes away all that is mounted on a directory.
pub fn unmount_all(rootfs: &Path) {
    for attempt in 0..64 {
        match rustix::mount::unmount(rootfs, UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) if attempt < 3 => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(rustix::io::Errno::BUSY) => {
                let _ = rustix::mount::unmount(rootfs, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Mount {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }
    }

    #[test]
    fn options_are_sorted() {
        let sorted = sort(&overlay(&["ro", "nosuid", "lowerdir=/a:/b", "index=off"]));
        assert_eq!(sorted.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        assert_eq!((sorted.bind, sorted.data.join(",")), (None, "lowerdir=/a:/b,index=off".into()));
        assert_eq!(sort(&overlay(&["rbind", "rw"])).bind, Some(true));
        let sorted = sort(&overlay(&["uidmap=0:1000:10,10:5000:5", "gidmap=0:1000:10", "lowerdir=/a"]));
        assert_eq!(sorted.data, ["lowerdir=/a"]);
        assert_eq!(sorted.ids, Some(["0 1000 10\n10 5000 5\n".to_owned(), "0 1000 10\n".to_owned()]));
        let sorted = sort(&overlay(&["loop", "ro", "noload"]));
        assert_eq!((sorted.is_loop, sorted.data), (true, vec!["noload".to_owned()]));
    }

    #[test]
    fn many_layers_fit_a_page() {
        let layers: Vec<String> = (0..120).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let data = vec!["index=off".to_owned(), format!("lowerdir={}", layers.join(":"))];
        let (place, short) = fit_a_page(data.clone(), false);
        assert_eq!(place, Some(PathBuf::from("/var/lib/containerd/snapshots")));
        assert!(short[1].starts_with("lowerdir=0/fs:1/fs:"), "{}", short[1]);
        let (place, same) = fit_a_page(vec![data[0].clone(), "lowerdir=/a:/b".into()], false);
        assert_eq!((place, same[1].as_str()), (None, "lowerdir=/a:/b"));
        let (place, short) = fit_a_page(vec!["lowerdir=/a/1/fs".into()], true);
        assert_eq!((place, short[0].as_str()), (Some(PathBuf::from("/a/1")), "lowerdir=fs"));
    }
}
