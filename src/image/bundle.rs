//! A bundle from an image: config.json on a safe default profile, and the layers that its rootfs
//! is an overlay of.

use super::accounts::{Account, account};
use super::digest::Digest;
use super::documents::RunConfig;
use super::options::{self, Options};
use super::store::{Image, Store};
use super::{owners, privileges, profile, refused, security, userns, within};
use crate::error::{Class, Context as _, Error, Result};
use crate::rootfs::{Overlay, open_layer};
use crate::spec::{IdMapping, annotations, defaults};
use nix::unistd::{getegid, geteuid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The name, in a bundle, of the note of its image.
const IMAGE: &str = "image.json";

/// The image that a bundle was made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Origin {
    /// The name by which it was found.
    pub name: String,
    /// The manifest.
    pub manifest: Digest,
    /// Blobs and layers that must stay as long as the bundle does.
    pub keep: Vec<Digest>,
    /// The named volumes that its container has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

impl Origin {
    /// The note of a bundle; `None` when it was not made of an image.
    ///
    /// # Errors
    /// [`Class::Corrupt`].
    pub fn load(bundle: &Path) -> Result<Option<Origin>> {
        let path = bundle.join(IMAGE);
        let shown = || path.display().to_string();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.doing_on("read", shown)?,
        };
        let parsed = serde_json::from_slice(&text);
        parsed
            .map(Some)
            .map_err(|error| Error::new(Class::Corrupt, "read").on(shown()).because(error.to_string()))
    }
}

/// Makes a bundle of an image in a new directory.
///
/// # Errors
/// When the directory has something in it, or the image names a user that it does not have.
pub fn bundle(store: &Store, image: &Image, directory: &Path, options: &Options) -> Result<()> {
    let shown = || directory.display().to_string();
    let doing = "make the bundle";
    super::fill(directory, doing, || {
        let directory = std::fs::canonicalize(directory).doing_on(doing, shown)?;
        write(store, image, &directory, options)?;
        // What is not in the store's own place is only found again by a note.
        let place = store.root().join("bundles");
        std::fs::create_dir_all(&place).doing(doing)?;
        let name = Digest::of(directory.as_os_str().as_encoded_bytes()).hex();
        let note = json!({"bundle": directory});
        std::fs::write(place.join(name), note.to_string()).doing("note the bundle in the image store")
    })
}

/// Writes a bundle's files into an empty directory; config.json, which makes it one, is the last.
///
/// # Errors
/// When the directory cannot be written, or the image does not say what to run and as whom.
pub fn write(store: &Store, image: &Image, directory: &Path, options: &Options) -> Result<()> {
    let doing = "make the bundle";
    let shown = || directory.display().to_string();
    let overlay = Overlay { volatile: options.ephemeral, ..overlay(store, image, directory)? };
    // Of an image without layers, this is the lowest.
    std::fs::create_dir(directory.join("rootfs")).doing_on(doing, shown)?;
    let config = config(image, &overlay, options).map_err(|error| {
        let _ = std::fs::remove_dir(directory.join("rootfs"));
        within(&image.name, error)
    })?;
    for part in ["upper", "work"] {
        std::fs::create_dir(directory.join(part)).doing_on(doing, shown)?;
    }
    // The merged root looks as the upper directory does.
    like(&overlay.lower[0], &overlay.upper)?;
    let mut keep = vec![image.digest, image.id()];
    keep.extend(image.manifest.layers.iter().map(|layer| layer.digest));
    keep.extend(store.layer_ids(&image.config)?);
    let volumes = options.named.keys().cloned().collect();
    let origin = Origin { name: image.name.clone(), manifest: image.digest, keep, volumes };
    for (name, document) in [(IMAGE, json!(origin)), (Overlay::FILE, json!(overlay)), ("config.json", config)]
    {
        std::fs::write(directory.join(name), format!("{document:#}\n")).doing_on(doing, shown)?;
    }
    Ok(())
}

/// What the root filesystem of a bundle in this directory is an overlay of.
pub(super) fn overlay(store: &Store, image: &Image, directory: &Path) -> Result<Overlay> {
    let ids = store.layer_ids(&image.config)?;
    let mut lower: Vec<PathBuf> = ids.iter().rev().map(|id| store.tree(*id)).collect();
    if lower.is_empty() {
        // overlayfs wants one.
        lower.push(directory.join("rootfs"));
    }
    Ok(Overlay {
        lower,
        upper: directory.join("upper"),
        work: directory.join("work"),
        userxattr: !geteuid().is_root(),
        volatile: false,
    })
}

fn like(from: &Path, to: &Path) -> Result<()> {
    let doing = "make the writable layer";
    let layer = open_layer(from).doing(doing)?;
    let stat = crate::sys::path::stat(std::os::fd::AsFd::as_fd(&layer)).doing(doing)?;
    if geteuid().is_root() {
        std::os::unix::fs::chown(to, Some(stat.st_uid), Some(stat.st_gid)).doing(doing)?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(stat.st_mode & 0o7777);
    std::fs::set_permissions(to, mode).doing(doing)
}

/// The blobs and layers that bundles need. Notes of bundles that are gone go too.
///
/// # Errors
/// When a note cannot be read: then nothing is known.
pub fn kept(store: &Store) -> Result<BTreeSet<Digest>> {
    #[derive(Deserialize)]
    struct Note {
        bundle: PathBuf,
    }
    let entries = |part: &str| std::fs::read_dir(store.root().join(part)).into_iter().flatten().flatten();
    let mut kept = BTreeSet::new();
    for path in entries("bundles").map(|entry| entry.path()) {
        let text = std::fs::read(&path).doing("read the note of a bundle")?;
        let note: Note = serde_json::from_slice(&text).map_err(|error| {
            let shown = path.display().to_string();
            Error::new(Class::Corrupt, "read the note of a bundle").on(shown).because(error.to_string())
        })?;
        match Origin::load(&note.bundle)? {
            Some(origin) => kept.extend(origin.keep),
            None => drop(std::fs::remove_file(&path)),
        }
    }
    for path in entries(super::container::PLACE).map(|entry| entry.path()) {
        kept.extend(Origin::load(&path)?.into_iter().flat_map(|origin| origin.keep));
    }
    Ok(kept)
}

/// What is run: the entrypoint, then the command. An entrypoint of the caller's own leaves the
/// image's command out, as in Docker: it was meant for another program.
fn arguments(run: &RunConfig, options: &Options) -> Result<Vec<String>> {
    let mut args = match &options.entrypoint {
        Some(program) => Vec::from_iter(Some(program.clone()).filter(|program| !program.is_empty())),
        None => run.entrypoint.clone().unwrap_or_default(),
    };
    match &options.command[..] {
        [] if options.entrypoint.is_none() => args.extend(run.cmd.clone().unwrap_or_default()),
        command => args.extend_from_slice(command),
    }
    match args.is_empty() {
        true => Err(refused("it does not say what to run").hint("give a command after --")),
        false => Ok(args),
    }
}

fn config(image: &Image, overlay: &Overlay, options: &Options) -> Result<Value> {
    let run = image.config.config.clone().unwrap_or_default();
    let account = account(options.user.as_ref().unwrap_or(&run.user), &options.group_add, overlay)?;
    let capabilities = options::capabilities(options)?;
    let cwd = options.workdir.as_ref().unwrap_or(&run.working_dir);
    let mut config = profile::config();
    let process = &mut config["process"];
    process["args"] = json!(arguments(&run, options)?);
    process["env"] = json!(environment(&run, options, &account)?);
    process["cwd"] = json!(Path::new("/").join(cwd));
    process["terminal"] = json!(options.terminal);
    process["user"] = json!({"uid": account.uid, "gid": account.gid, "additionalGids": account.groups});
    process["capabilities"] =
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    let rlimits = options::rlimits(options)?;
    if !rlimits.is_empty() {
        process["rlimits"] = json!(rlimits);
    }
    config["root"]["readonly"] = json!(options.read_only);
    config["hostname"] = json!(options.hostname.as_deref().unwrap_or("dhow"));
    config["annotations"] = annotations(image, &run, options)?;
    options::resources(options, &mut config["linux"]["resources"])?;
    if let Some(path) = &options.cgroups_path {
        config["linux"]["cgroupsPath"] = json!(path);
    }
    if let Some(adjust) = options.oom_score_adj {
        config["process"]["oomScoreAdj"] = json!(adjust);
    }
    privileges::apply(options, &mut config)?;
    security::apply(options, &capabilities, &mut config)?;
    network(options, &mut config);
    options::sysctls(options, &mut config["linux"])?;
    mounts(&run, options, &mut config)?;
    if !geteuid().is_root() {
        make_rootless(&mut config, &account)?;
    } else if let Some(maps) = &options.user_maps {
        userns::apply(maps, options, &mut config)?;
    }
    Ok(config)
}

/// The configuration for a user without root's rights: with the ids that are set aside for the user,
/// or with one.
fn make_rootless(config: &mut Value, account: &Account) -> Result<()> {
    defaults::make_rootless(config, geteuid().as_raw(), getegid().as_raw());
    let ranges = owners::ranges();
    let (has_user, groups) = match &ranges {
        Some(maps) => (
            owners::has(&maps.uids, account.uid) && owners::has(&maps.gids, account.gid),
            account.groups.iter().copied().filter(|group| owners::has(&maps.gids, *group)).collect(),
        ),
        // setgroups(2) is not allowed there, and of the groups only the user's own is mapped.
        None => (account.uid == 0 && account.gid == 0, Vec::new()),
    };
    if !has_user {
        return Err(refused(format!("its user {}:{} is not mapped", account.uid, account.gid)).hint(
            "without root's rights, newuidmap(1) and ranges in /etc/subuid and /etc/subgid there is one user \
             only: give --user 0",
        ));
    }
    config["process"]["user"]["additionalGids"] = json!(groups);
    let entries = |map: &[IdMapping]| -> Vec<Value> {
        let entry = |one: &IdMapping| json!({"containerID": one.container_id, "hostID": one.host_id, "size": one.size});
        map.iter().map(entry).collect()
    };
    if let Some(maps) = ranges {
        config["linux"]["uidMappings"] = json!(entries(&maps.uids));
        config["linux"]["gidMappings"] = json!(entries(&maps.gids));
    }
    Ok(())
}

/// The image's variables, then the caller's; PATH, HOME, HOSTNAME and TERM as Docker sets them.
fn environment(run: &RunConfig, options: &Options, account: &Account) -> Result<Vec<String>> {
    let image = run.env.clone().unwrap_or_default();
    let mut all = vec![defaults::PATH.to_owned()];
    if options.terminal {
        all.push("TERM=xterm".into());
    }
    all.extend(options.hostname.iter().map(|name| format!("HOSTNAME={name}")));
    for entry in image {
        let name = entry.split('=').next().unwrap_or_default();
        all.retain(|other| other.split('=').next() != Some(name));
        all.push(entry);
    }
    let mut all = options::environment(options, &all)?;
    if !all.iter().any(|one| one.starts_with("HOME=")) {
        all.push(format!("HOME={}", account.home));
    }
    Ok(all)
}

fn network(options: &Options, config: &mut Value) {
    if options.host_network {
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    } else if !options.joins.contains_key("network") {
        // The ports of a network of one's own need no privilege: an image's user may be anyone.
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "0"});
    }
}

/// The image's volumes and the caller's mounts. The caller's take the place of the image's.
fn mounts(run: &RunConfig, options: &Options, config: &mut Value) -> Result<()> {
    let asked = options::mounts(options)?;
    let is_asked = |place: &str| asked.iter().any(|mount| mount["destination"] == place);
    let mut all = Vec::new();
    for place in run.volumes.iter().flat_map(std::collections::BTreeMap::keys) {
        let mount = options::scratch(place, options)
            .ok_or_else(|| refused(format!("its volume {place:?} is no place for one")))?;
        if !is_asked(place) {
            all.push(mount);
        }
    }
    if let Some(bytes) = options.shm_size {
        let shm = config["mounts"].as_array_mut().into_iter().flatten();
        for words in shm.filter(|mount| mount["destination"] == "/dev/shm").map(|mount| &mut mount["options"])
        {
            if let Some(words) = words.as_array_mut() {
                words.retain(|word| !word.as_str().is_some_and(|word| word.starts_with("size=")));
                words.push(json!(format!("size={bytes}")));
            }
        }
    }
    let etc = options.etc.iter().flat_map(|place| super::container::etc_mounts(place));
    all.extend(etc.filter(|mount| !mount["destination"].as_str().is_some_and(is_asked)));
    all.extend(asked.iter().cloned());
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| !all.iter().any(|other| other["destination"] == mount["destination"]));
        mounts.extend(all);
    }
    Ok(())
}

/// Labels, and what image-spec's conversion.md has beside them. A label that would ask something of
/// the runtime is left out: an image is not trusted to ask for anything.
fn annotations(image: &Image, run: &RunConfig, options: &Options) -> Result<Value> {
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
    note("stopSignal", options.stop_signal.clone().unwrap_or_else(|| run.stop_signal.clone()));
    let ports = run.exposed_ports.as_ref().map(|ports| ports.keys().cloned().collect::<Vec<_>>());
    note("exposedPorts", ports.unwrap_or_default().join(","));
    for (key, value) in run.labels.iter().flatten() {
        if key.is_empty() || annotations::is_control(key) {
            crate::log::warn(&format!(
                "the image's label {key:?} is left out: it names a control of runtimes"
            ));
        } else {
            all.insert(key.clone(), json!(value));
        }
    }
    all.extend(options::labels(options)?.into_iter().map(|(key, value)| (key, json!(value))));
    for (kind, other) in options::joins(options) {
        all.insert(format!("{}{kind}", annotations::JOIN), json!(other));
    }
    if options.init {
        all.insert(annotations::INIT.into(), json!("true"));
    }
    all.insert(Overlay::ANNOTATION.into(), json!(image.name));
    all.insert("org.dhow.image.digest".into(), json!(image.digest));
    Ok(Value::Object(all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::documents::{Descriptor, ImageConfig, MANIFEST, Manifest};

    fn image(run: Value) -> Image {
        let digest = Digest::of(b"");
        let config =
            Descriptor { media_type: String::new(), digest, size: 0, platform: None, annotations: None };
        Image {
            name: "test".into(),
            digest,
            manifest: Manifest { schema_version: 2, media_type: MANIFEST.into(), config, layers: Vec::new() },
            config: ImageConfig { config: serde_json::from_value(run).unwrap(), ..ImageConfig::default() },
        }
    }

    fn made(run: Value, options: &Options) -> Value {
        let here = std::env::temp_dir();
        let overlay = Overlay { lower: vec![here], ..Overlay::default() };
        config(&image(run), &overlay, options).unwrap()
    }

    #[test]
    fn what_is_written_is_valid() {
        let config = made(json!({"Cmd": ["sh"]}), &Options::default());
        let spec: crate::spec::Spec = serde_json::from_value(config.clone()).unwrap();
        crate::spec::validate(&spec).unwrap();
        assert_eq!(spec.linux.masked_paths.len(), 12);
        assert!(spec.linux.seccomp.is_some());
        serde_json::from_value::<oci_spec::runtime::Spec>(config).unwrap();
    }

    #[test]
    fn entrypoint_and_command_are_dockers() {
        let run = json!({"Entrypoint": ["e", "1"], "Cmd": ["c"]});
        let of = |entrypoint: Option<&str>, command: &[&str]| {
            let command = command.iter().map(|one| (*one).to_owned()).collect();
            let options =
                Options { entrypoint: entrypoint.map(str::to_owned), command, ..Options::default() };
            arguments(&serde_json::from_value(run.clone()).unwrap(), &options).map(|args| args.join(" "))
        };
        assert_eq!(of(None, &[]).unwrap(), "e 1 c");
        assert_eq!(of(None, &["x"]).unwrap(), "e 1 x");
        assert_eq!(of(Some("p"), &[]).unwrap(), "p");
        assert_eq!(of(Some("p"), &["x"]).unwrap(), "p x");
        assert_eq!(of(Some(""), &["x"]).unwrap(), "x");
        assert!(of(Some(""), &[]).unwrap_err().to_string().contains("what to run"));
    }

    /// An image that asks the runtime for a file of the host, a cgroup, a unit's property.
    #[test]
    fn a_label_of_an_image_controls_nothing() {
        let hostile = [
            "run.oci.hooks.stdout",
            "run.oci.keep_original_groups",
            "run.oci.systemd.subgroup",
            "run.oci.pidfd_receiver",
            "run.oci.seccomp_fail_unknown_syscall",
            "org.dhow.image.name",
            "org.dhow.anything",
            "org.systemd.property.TasksMax",
            "io.containers.trace-syscall",
            "io.kubernetes.cri-o.Devices",
            "org.criu.config",
            "module.wasm.image/variant",
            "",
        ];
        let labels: serde_json::Map<_, _> =
            hostile.iter().map(|key| ((*key).to_owned(), json!("/x"))).collect();
        let mut run = json!({"Cmd": ["sh"], "Labels": labels});
        run["Labels"]["org.opencontainers.image.title"] = json!("kept");
        run["Labels"]["com.example"] = json!("kept");
        let config = made(run, &Options::default());
        let found = config["annotations"].as_object().unwrap();
        for key in hostile {
            assert_ne!(found.get(key), Some(&json!("/x")), "{key}");
        }
        assert_eq!(found["com.example"], "kept");
        assert_eq!(found["org.opencontainers.image.title"], "kept");
        assert_eq!(found[Overlay::ANNOTATION], "test");
    }

    #[test]
    fn the_callers_mounts_take_the_place_of_the_images() {
        let options =
            Options { tmpfs: vec!["/data".into(), "/dev/shm:size=1m".into()], ..Options::default() };
        let config = made(json!({"Cmd": ["sh"], "Volumes": {"/data": {}, "/logs": {}}}), &options);
        let mounts = config["mounts"].as_array().unwrap();
        let at = |place: &str| mounts.iter().filter(|one| one["destination"] == place).collect::<Vec<_>>();
        assert_eq!(at("/data").len(), 1);
        assert_eq!(at("/data")[0]["options"], json!(["nosuid", "nodev", "noexec"]));
        assert_eq!(at("/dev/shm").len(), 1);
        assert_eq!(at("/logs")[0]["options"][2], "tmpcopyup");
        let wrong = image(json!({"Cmd": ["sh"], "Volumes": {"../etc": {}}}));
        let overlay = Overlay { lower: vec![std::env::temp_dir()], ..Overlay::default() };
        assert!(super::config(&wrong, &overlay, &Options::default()).is_err());
    }
}
