//! What takes a container's isolation away, piece by piece: `--privileged`, `--device`, and the host's
//! namespaces.

use super::options::{Options, wrong};
use crate::error::Result;
use rustix::fs::{major, minor};
use serde_json::{Value, json};
use std::fs::{Metadata, symlink_metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What of the host's /dev no container gets: the container has its own.
const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", "ptmx"];

/// How deep a directory of devices may be.
const DEEPEST: usize = 8;

/// Puts into a configuration what is asked for.
///
/// # Errors
/// For a device that is none, a namespace that nobody knows.
pub(super) fn apply(options: &Options, config: &mut Value) -> Result<()> {
    for (option, kind, asked) in
        [("pid", "pid", &options.pid), ("ipc", "ipc", &options.ipc), ("uts", "uts", &options.uts)]
    {
        match asked.as_deref() {
            None | Some("" | "private") => {}
            Some("host") => share(kind, config),
            // What is written down is its id: its processes may be others by then.
            Some(other) if kind == "pid" && other.starts_with("container:") => {}
            Some(other) if kind == "pid" => {
                return Err(wrong(option, other, "it is private, host or container:ID"));
            }
            Some(other) => {
                return Err(wrong(option, other, "it is private or host")
                    .hint("a namespace of another container can be joined by linux.namespaces of a bundle"));
            }
        }
    }
    let mut devices = Vec::new();
    if options.privileged {
        find(Path::new("/dev"), Path::new("/dev"), 0, &mut devices);
        open_up(config);
    }
    let mut rules = Vec::new();
    for text in &options.devices {
        let (mut found, access) = device(text)?;
        rules.extend(found.iter().map(|one| {
            json!({"allow": true, "type": one["type"], "major": one["major"], "minor": one["minor"], "access": access})
        }));
        // The caller's own word about a device counts.
        devices.retain(|one: &Value| !found.iter().any(|other| other["path"] == one["path"]));
        devices.append(&mut found);
    }
    if let Some(all) = config["linux"]["resources"]["devices"].as_array_mut() {
        all.extend(rules);
    }
    if !devices.is_empty() {
        config["linux"]["devices"] = json!(devices);
    }
    Ok(())
}

/// Leaves out a namespace: the container is in the host's.
fn share(kind: &str, config: &mut Value) {
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != kind);
    }
    match kind {
        "uts" => drop(config.as_object_mut().and_then(|config| config.remove("hostname"))),
        "ipc" => {
            for mount in config["mounts"].as_array_mut().into_iter().flatten() {
                let place = mount["destination"].as_str().unwrap_or_default().to_owned();
                if matches!(&*place, "/dev/shm" | "/dev/mqueue") && Path::new(&place).is_dir() {
                    *mount = json!({"destination": place, "type": "bind", "source": place,
                        "options": ["rbind", "nosuid", "nodev", "noexec"]});
                }
            }
        }
        _ => {}
    }
}

/// What Docker's `--privileged` means, beside the capabilities, the devices and seccomp: nothing of
/// /proc and /sys is hidden or read-only, every device may be used.
fn open_up(config: &mut Value) {
    if let Some(linux) = config["linux"].as_object_mut() {
        linux.remove("maskedPaths");
        linux.remove("readonlyPaths");
    }
    config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    for mount in config["mounts"].as_array_mut().into_iter().flatten() {
        if matches!(mount["type"].as_str(), Some("sysfs" | "cgroup"))
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|word| word != "ro");
        }
    }
}

/// `HOST[:PLACE][:rwm]`; a directory stands for all devices in it.
fn device(text: &str) -> Result<(Vec<Value>, String)> {
    let refuse = |cause: &str| wrong("device", text, cause);
    let is_access = |word: &str| !word.is_empty() && word.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, access) = match parts[..] {
        [from] => (from, from, "rwm"),
        [from, access] if is_access(access) => (from, from, access),
        [from, to] => (from, to, "rwm"),
        [from, to, access] if is_access(access) => (from, to, access),
        _ => return Err(refuse("it must be DEVICE[:PLACE][:rwm]")),
    };
    let to = Path::new(to);
    if !to.is_absolute() || to.file_name().is_none() || to.components().any(|part| part.as_os_str() == "..") {
        return Err(refuse("the place in the container must be an absolute path"));
    }
    let from = std::fs::canonicalize(from).map_err(|error| refuse(&error.to_string().to_lowercase()))?;
    let metadata = symlink_metadata(&from).map_err(|error| refuse(&error.to_string().to_lowercase()))?;
    let mut found = Vec::new();
    match metadata.is_dir() {
        true => find(&from, to, 0, &mut found),
        false => found.extend(node(&metadata, to)),
    }
    match found.is_empty() {
        true => Err(refuse("there is no such device")),
        false => Ok((found, access.to_owned())),
    }
}

/// All devices below a directory. What cannot be looked at is no device.
fn find(directory: &Path, place: &Path, depth: usize, found: &mut Vec<Value>) {
    let is_own =
        |name: &std::ffi::OsStr| directory == Path::new("/dev") && OWN.iter().any(|own| name == *own);
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort_unstable();
    for path in names {
        let Some(name) = path.file_name().filter(|name| !is_own(name)) else { continue };
        let Ok(metadata) = symlink_metadata(&path) else { continue };
        let at = place.join(name);
        if metadata.is_dir() && depth < DEEPEST {
            find(&path, &at, depth + 1, found);
        }
        found.extend(node(&metadata, &at));
    }
}

/// A device of the host, as config.json has it.
fn node(metadata: &Metadata, place: &Path) -> Option<Value> {
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    let number = metadata.rdev();
    // overlayfs's whiteout is no device.
    (number != 0 && place.to_str().is_some()).then(|| {
        json!({"path": place, "type": kind, "major": major(number), "minor": minor(number),
            "fileMode": metadata.permissions().mode() & 0o7777, "uid": metadata.uid(), "gid": metadata.gid()})
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::profile;

    fn made(options: &Options) -> Value {
        let mut config = profile::config();
        config["hostname"] = json!("box");
        apply(options, &mut config).unwrap();
        config
    }

    #[test]
    fn devices_as_people_write_them() {
        let of = |text: &str| device(text).map(|(found, access)| (found[0].clone(), access));
        let (null, access) = of("/dev/null").unwrap();
        assert_eq!((&null["path"], &null["major"], &*access), (&json!("/dev/null"), &json!(1), "rwm"));
        assert_eq!(of("/dev/null:/dev/other").unwrap().0["path"], "/dev/other");
        assert_eq!(of("/dev/null:r").unwrap().1, "r");
        let (other, access) = of("/dev/zero:/dev/x:rw").unwrap();
        assert_eq!((&other["path"], &*access), (&json!("/dev/x"), "rw"));
        for text in
            ["", "/nonsense", "/etc/passwd", "/dev/null:x", "/dev/null:/a/../b", "/dev/null:/x:q", "/etc"]
        {
            assert!(of(text).is_err(), "{text}");
        }
        let config = made(&Options { devices: vec!["/dev/null:/dev/x:r".into()], ..Options::default() });
        let rules = config["linux"]["resources"]["devices"].as_array().unwrap();
        assert_eq!(rules[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(rules[1]["access"], "r");
        assert_eq!(config["linux"]["devices"][0]["path"], "/dev/x");
    }

    #[test]
    fn privileged_hides_nothing() {
        let config = made(&Options { privileged: true, ..Options::default() });
        let linux = &config["linux"];
        assert!(linux.get("maskedPaths").is_none() && linux.get("readonlyPaths").is_none());
        assert_eq!(linux["resources"]["devices"], json!([{"allow": true, "access": "rwm"}]));
        let paths: Vec<&str> =
            linux["devices"].as_array().unwrap().iter().filter_map(|one| one["path"].as_str()).collect();
        assert!(paths.contains(&"/dev/null") && !paths.contains(&"/dev/ptmx"), "{paths:?}");
        assert!(!config["mounts"].to_string().contains("\"ro\""), "{}", config["mounts"]);
    }

    #[test]
    fn namespaces_of_the_host() {
        let host = Some("host".to_owned());
        let config = made(&Options { pid: host.clone(), ipc: host.clone(), uts: host, ..Options::default() });
        let kinds = config["linux"]["namespaces"].to_string();
        assert!(!["\"pid\"", "\"ipc\"", "\"uts\""].iter().any(|kind| kinds.contains(kind)), "{kinds}");
        assert!(kinds.contains("\"mount\"") && config.get("hostname").is_none());
        let other = Options { pid: Some("nonsense".into()), ..Options::default() };
        let error = apply(&other, &mut profile::config()).unwrap_err().to_string();
        assert!(error.contains("--pid") && error.contains("container:ID"), "{error}");
    }
}
