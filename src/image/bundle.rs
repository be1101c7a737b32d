//! A bundle from an image: config.json on a safe default profile, and the layers that its rootfs
//! is an overlay of.

use super::digest::Digest;
use super::documents::RunConfig;
use super::store::{Image, Store};
use super::{profile, refused};
use crate::error::{Class, Context as _, Error, Result};
use crate::rootfs::open_layer;
use nix::errno::Errno;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The name of the description of the overlay in a bundle.
pub const OVERLAY: &str = "overlay.json";

/// The most that an image's passwd or group may have, in bytes.
const MOST_ACCOUNTS: u64 = 4 * 1024 * 1024;

/// What the rootfs is an overlay of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// The layers, the topmost first.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs's own directory.
    pub work: PathBuf,
}

/// Makes a bundle of an image in a new directory.
///
/// # Errors
/// When the directory has something in it, or the image names a user that it does not have.
pub fn bundle(store: &Store, image: &Image, directory: &Path, command: &[String]) -> Result<()> {
    let shown = || directory.display().to_string();
    let doing = "make the bundle";
    std::fs::create_dir_all(directory).doing_on(doing, shown)?;
    if std::fs::read_dir(directory).doing_on(doing, shown)?.next().is_some() {
        return Err(Error::new(Class::Config, doing).on(shown()).because("the directory is not empty"));
    }
    let directory = std::fs::canonicalize(directory).doing_on(doing, shown)?;
    let ids = store.layer_ids(&image.config)?;
    let lower: Vec<PathBuf> = ids.iter().rev().map(|id| store.tree(*id)).collect();
    let config = config(image, &lower, command).map_err(|error| super::within(&image.name, error))?;
    for part in ["rootfs", "upper", "work"] {
        std::fs::create_dir(directory.join(part)).doing_on(doing, shown)?;
    }
    if let Some(top) = lower.first() {
        // The merged root looks as the upper directory does.
        like(top, &directory.join("upper"))?;
    }
    let overlay = Overlay { lower, upper: directory.join("upper"), work: directory.join("work") };
    keep(store, &directory, &ids)?;
    for (name, document) in [(OVERLAY, json!(overlay)), ("config.json", config)] {
        let text = format!("{document:#}\n");
        std::fs::write(directory.join(name), text).doing_on(doing, shown)?;
    }
    Ok(())
}

fn like(from: &Path, to: &Path) -> Result<()> {
    let doing = "make the writable layer";
    let layer = open_layer(from).doing(doing)?;
    let stat = crate::sys::path::stat(std::os::fd::AsFd::as_fd(&layer)).doing(doing)?;
    std::os::unix::fs::chown(to, Some(stat.st_uid), Some(stat.st_gid)).doing(doing)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(stat.st_mode & 0o7777);
    std::fs::set_permissions(to, mode).doing(doing)
}

/// Notes which layers a bundle needs, so that gc leaves them.
fn keep(store: &Store, directory: &Path, ids: &[Digest]) -> Result<()> {
    let doing = "note the bundle in the image store";
    let place = store.root().join("bundles");
    std::fs::create_dir_all(&place).doing(doing)?;
    let name = Digest::of(directory.as_os_str().as_encoded_bytes()).hex();
    let note = json!({"bundle": directory, "layers": ids});
    std::fs::write(place.join(name), note.to_string()).doing(doing)
}

/// The layers that bundles need. Notes of bundles that are gone go too.
///
/// # Errors
/// When a note cannot be read: then nothing is known.
pub fn kept(store: &Store) -> Result<std::collections::BTreeSet<Digest>> {
    #[derive(Deserialize)]
    struct Note {
        bundle: PathBuf,
        layers: Vec<Digest>,
    }
    let mut kept = std::collections::BTreeSet::new();
    let Ok(notes) = std::fs::read_dir(store.root().join("bundles")) else { return Ok(kept) };
    for path in notes.flatten().map(|entry| entry.path()) {
        let text = std::fs::read(&path).doing("read the note of a bundle")?;
        let note: Note = serde_json::from_slice(&text).map_err(|error| {
            let shown = path.display().to_string();
            Error::new(Class::Corrupt, "read the note of a bundle").on(shown).because(error.to_string())
        })?;
        if note.bundle.join(OVERLAY).exists() {
            kept.extend(note.layers);
        } else {
            let _ = std::fs::remove_file(&path);
        }
    }
    Ok(kept)
}

fn config(image: &Image, lower: &[PathBuf], command: &[String]) -> Result<Value> {
    let run = image.config.config.clone().unwrap_or_default();
    let mut args = run.entrypoint.clone().unwrap_or_default();
    match command {
        [] => args.extend(run.cmd.clone().unwrap_or_default()),
        command => args.extend_from_slice(command),
    }
    if args.is_empty() {
        return Err(refused("it does not say what to run").hint("give a command after --"));
    }
    let mut env = run.env.clone().unwrap_or_default();
    if !env.iter().any(|one| one.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    let account = account(&run.user, lower)?;
    if !env.iter().any(|one| one.starts_with("HOME=")) {
        env.push(format!("HOME={}", account.home));
    }
    let cwd = if run.working_dir.is_empty() { "/" } else { &run.working_dir };
    let mut config = profile::config();
    config["process"]["args"] = json!(args);
    config["process"]["env"] = json!(env);
    config["process"]["cwd"] = json!(Path::new("/").join(cwd));
    config["process"]["user"] =
        json!({"uid": account.uid, "gid": account.gid, "additionalGids": account.groups});
    config["annotations"] = annotations(image, &run);
    let volumes = run.volumes.unwrap_or_default();
    if let Some(mounts) = config["mounts"].as_array_mut() {
        // A volume without a source: a tmpfs that begins with what the image has there.
        mounts.extend(volumes.keys().map(|place| {
            json!({"destination": place, "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "nodev", "tmpcopyup", "mode=755"]})
        }));
    }
    Ok(config)
}

/// Labels, and what image-spec's conversion.md has beside them.
fn annotations(image: &Image, run: &RunConfig) -> Value {
    let mut all = serde_json::Map::new();
    let mut note = |key: &str, value: String| {
        if !value.is_empty() {
            all.insert(format!("org.opencontainers.image.{key}"), json!(value));
        }
    };
    note("os", image.config.os.clone());
    note("architecture", image.config.architecture.clone());
    note("variant", image.config.variant.clone().unwrap_or_default());
    note("created", image.config.created.clone().unwrap_or_default());
    note("stopSignal", run.stop_signal.clone());
    let ports = run.exposed_ports.as_ref().map(|ports| ports.keys().cloned().collect::<Vec<_>>());
    note("exposedPorts", ports.unwrap_or_default().join(","));
    for (key, value) in run.labels.iter().flatten() {
        all.insert(key.clone(), json!(value));
    }
    all.insert("org.dhow.image.name".into(), json!(image.name));
    all.insert("org.dhow.image.digest".into(), json!(image.digest));
    Value::Object(all)
}

/// Who runs the payload.
struct Account {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: String,
}

/// `USER[:GROUP]` by the image's own passwd and group.
fn account(user: &str, lower: &[PathBuf]) -> Result<Account> {
    let (name, group) = user.split_once(':').map_or((user, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let passwd = table(lower, "etc/passwd")?;
    let entry = passwd.iter().find(|fields| {
        fields[0] == name || number.is_some() && fields.get(2).and_then(|uid| uid.parse().ok()) == number
    });
    let field = |index: usize| entry.and_then(|fields| fields.get(index)?.parse::<u32>().ok());
    let uid = number
        .or_else(|| field(2))
        .ok_or_else(|| refused(format!("its user {name:?} is not in its passwd")))?;
    let home = entry.and_then(|fields| fields.get(5).cloned()).filter(|home| home.starts_with('/'));
    let home = home.unwrap_or_else(|| "/".into());
    let all_groups = table(lower, "etc/group")?;
    let gid_of = |fields: &Vec<String>| fields.get(2).and_then(|gid| gid.parse::<u32>().ok());
    if let Some(group) = group {
        let found = || all_groups.iter().find(|fields| fields[0] == group).and_then(gid_of);
        let gid = group.parse().ok().or_else(found);
        let gid = gid.ok_or_else(|| refused(format!("its group {group:?} is not in its group file")))?;
        return Ok(Account { uid, gid, groups: Vec::new(), home });
    }
    let gid = field(3).unwrap_or(0);
    let login = entry.map_or("", |fields| fields[0].as_str());
    let member = |fields: &&Vec<String>| {
        !login.is_empty() && fields.get(3).is_some_and(|members| members.split(',').any(|one| one == login))
    };
    let groups = all_groups.iter().filter(member).filter_map(gid_of).filter(|one| *one != gid).collect();
    Ok(Account { uid, gid, groups, home })
}

/// The fields of a file of accounts, from the topmost layer that has it. Nothing in the image can
/// lead the reading anywhere else: no symlink is followed, and only a file is read.
fn table(lower: &[PathBuf], path: &str) -> Result<Vec<Vec<String>>> {
    for layer in lower {
        let root = open_layer(layer).doing_on("open a layer", || layer.display().to_string())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let fd = match root.open_without_symlinks(Path::new(path), flags) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => continue,
            // A symlink, a whiteout, or a file in its directory's place: what is below is hidden.
            Err(_) => return Ok(Vec::new()),
        };
        let file = File::from(fd);
        let metadata = file.metadata().doing_on("look at", || path)?;
        if !metadata.is_file() {
            return Ok(Vec::new());
        }
        let mut text = Vec::new();
        file.take(MOST_ACCOUNTS).read_to_end(&mut text).doing_on("read", || path)?;
        let text = String::from_utf8_lossy(&text);
        return Ok(text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect());
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Scene, Tar};

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n";

    #[test]
    fn users_are_the_images_own() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let scene = Scene::new("accounts");
        let lower = Tar::default().file("etc/passwd", PASSWD).file("etc/group", "app:x:8:\nmore:x:9:x,app\n");
        // A link out of the image is not followed, and nothing below it counts any more.
        let upper = Tar::default().symlink("etc/group", "/etc/group");
        scene.layout(&[lower.end(), upper.end()]);
        scene.import().unwrap();
        let layers = [scene.layer(0)];
        let of = |user: &str, layers: &[PathBuf]| {
            account(user, layers).map(|one| (one.uid, one.gid, one.groups, one.home))
        };
        assert_eq!(of("app", &layers).unwrap(), (7, 8, vec![9], "/home/app".into()));
        assert_eq!(of("7:more", &layers).unwrap(), (7, 9, vec![], "/home/app".into()));
        assert_eq!(of("", &layers).unwrap(), (0, 0, vec![], "/root".into()));
        assert_eq!(of("1234", &layers).unwrap(), (1234, 0, vec![], "/".into()));
        assert!(of("nobody", &layers).is_err() && of("app:none", &layers).is_err());
        let both = [scene.layer(1), scene.layer(0)];
        assert_eq!(of("app", &both).unwrap().2, Vec::<u32>::new());
    }

    #[test]
    fn what_is_written_is_valid() {
        let spec: crate::spec::Spec = serde_json::from_value(profile::config()).unwrap();
        assert_eq!(spec.linux.masked_paths.len(), 12);
        serde_json::from_value::<oci_spec::runtime::Spec>(profile::config()).unwrap();
    }
}
