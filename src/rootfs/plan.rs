//! `mounts` of config.json as a list of steps, decided before anything is mounted.

use super::idmapped::{self, IdMap};
use super::options::{Bind, Options, Symlinks, parse_propagation};
use super::overlay::Overlay;
use crate::error::{Error, Result};
use crate::spec::{Linux, Mount, NamespaceKind, Spec};
use crate::sys::mount::{Attributes, Change, Propagation};
use std::path::{Path, PathBuf};

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A new filesystem, by fsopen(2).
    Filesystem {
        /// Its type.
        kind: String,
        /// What stands in the first column of /proc/mounts.
        source: String,
        /// `key` or `key=value`, in order.
        data: Vec<(String, Option<String>)>,
    },
    /// A file or directory of the host.
    Bind {
        /// Where it is, absolute.
        source: PathBuf,
        /// Whether the mounts below it come along.
        recursive: bool,
    },
    /// The container's view of its cgroups.
    Cgroup,
}

/// One mount to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// `mounts[3]`, for errors.
    pub field: String,
    /// Where in the container, absolute.
    pub target: PathBuf,
    /// What.
    pub source: Source,
    /// Attributes of the mount itself.
    pub change: Change,
    /// Attributes of the whole tree.
    pub recursive: Change,
    /// Propagation, in order.
    pub propagation: Vec<(Propagation, bool)>,
    /// Whether the content of the place is copied into the new tmpfs.
    pub copy_up: bool,
    /// Whether its files show other owners.
    pub idmap: Option<IdMap>,
    /// What symlinks at the ends of a bind mean.
    pub symlinks: Symlinks,
}

impl Step {
    /// A directory of dhow's own that the container may look into. `field` is what asked for it.
    pub fn read_only_bind(field: &str, source: &Path, target: &Path) -> Step {
        let set = Attributes::MOUNT_ATTR_RDONLY
            | Attributes::MOUNT_ATTR_NOSUID
            | Attributes::MOUNT_ATTR_NODEV
            | Attributes::MOUNT_ATTR_NOEXEC;
        Step {
            field: field.to_owned(),
            target: target.to_owned(),
            source: Source::Bind { source: source.to_owned(), recursive: false },
            change: Change { set, ..Change::none() },
            recursive: Change::none(),
            propagation: Vec::new(),
            copy_up: false,
            idmap: None,
            symlinks: Symlinks::default(),
        }
    }

    /// procfs and sysfs must not be redirected by the image: their place is taken only when no
    /// symlink leads there.
    pub fn needs_real_directory(&self) -> bool {
        matches!(&self.source, Source::Filesystem { kind, .. } if kind == "proc" || kind == "sysfs")
    }

    /// Where a bind mount's source is inside the rootfs: then it shows what is mounted there by
    /// then, and its path is no more to be trusted than the image.
    pub fn source_inside(&self, rootfs: &Path) -> Option<&Path> {
        match &self.source {
            Source::Bind { source, .. } => source.strip_prefix(rootfs).ok(),
            _ => None,
        }
    }

    /// A tmpfs is made read-only after everything else, so that mount points can be made in it.
    pub fn is_late_readonly(&self) -> bool {
        let is_tmpfs = matches!(&self.source, Source::Filesystem { kind, .. } if kind == "tmpfs");
        is_tmpfs && self.change.set.contains(Attributes::MOUNT_ATTR_RDONLY)
    }

    fn of(index: usize, mount: &Mount, bundle: &Path, rootfs: &Path, linux: &Linux) -> Result<Step> {
        let field = format!("mounts[{index}] ({})", mount.destination);
        let options = Options::parse(&mount.options);
        let label = &linux.mount_label;
        let idmap = match &options.mappings {
            None => idmap(&field, mount, options.idmap, linux)?,
            Some(text) => {
                let recursive = options.idmap.unwrap_or(false);
                let map = idmapped::parse(text, &linux.uid_mappings, &linux.gid_mappings)
                    .map_err(|cause| Error::config(field.clone(), format!("option idmap={text}: {cause}")))?;
                Some(IdMap { recursive, ..map })
            }
        };
        if options.symlinks.copy && (options.symlinks.source_stays || options.symlinks.target_stays) {
            return Err(Error::config(field, "copy-symlink excludes src-nofollow and dest-nofollow"));
        }
        // A type of "bind" counts even without the option: containerd and podman write so.
        let bind = options.bind.or_else(|| (mount.kind == "bind").then_some(Bind::Single));
        let source = match bind {
            Some(bind) => {
                if mount.source.is_empty() {
                    return Err(Error::config(field, "a bind mount needs a source"));
                }
                if let Some((key, _)) = options.data.iter().find(|(key, _)| !is_nothing_to_a_bind(key)) {
                    let cause = format!("unknown option {key:?}: a bind mount has no filesystem options");
                    return Err(Error::config(field, cause));
                }
                Source::Bind { source: bundle.join(&mount.source), recursive: bind == Bind::Recursive }
            }
            None if idmap.is_none() && matches!(mount.kind.as_str(), "cgroup" | "cgroup2") => Source::Cgroup,
            None if mount.kind.is_empty() => {
                return Err(Error::config(field, "has neither a type nor the option bind or rbind"));
            }
            None if idmap.is_some() => {
                return Err(Error::config(field, "only a bind mount can be idmapped"));
            }
            None => {
                let mut data = options.data;
                if !label.is_empty() && matches!(mount.kind.as_str(), "tmpfs" | "devpts" | "ramfs") {
                    data.push(("context".into(), Some(label.to_owned())));
                }
                Source::Filesystem { kind: mount.kind.clone(), source: mount.source.clone(), data }
            }
        };
        let recursive = match linux.has(NamespaceKind::User) && shows_sys(&source) {
            true => protect_below(options.change, options.recursive),
            false => options.recursive,
        };
        Ok(Step {
            field,
            target: inside(rootfs, Path::new(&mount.destination)),
            source,
            change: options.change,
            recursive,
            propagation: options.propagation,
            copy_up: options.copy_up,
            idmap,
            symlinks: options.symlinks,
        })
    }
}

/// Whether it is /sys of the host with what is mounted below it, cgroups among it.
fn shows_sys(source: &Source) -> bool {
    matches!(source, Source::Bind { source, recursive: true } if source.starts_with("/sys"))
}

/// A read-only /sys is so for the cgroups below it: a user's container gets the host's where it has no network
/// namespace to mount its own, and that user's cgroups with it (CVE-2023-25809). `rrw` asks for the contrary.
fn protect_below(of_top: Change, mut of_all: Change) -> Change {
    let read_only = Attributes::MOUNT_ATTR_RDONLY;
    if of_top.set.contains(read_only) && !of_all.clear.contains(read_only) {
        of_all.set |= read_only;
    }
    of_all
}

/// A destination, absolute. One that begins with the rootfs's own path means what is below it, as
/// runc takes it; a path of that name inside the container would be a strange coincidence.
fn inside(rootfs: &Path, destination: &Path) -> PathBuf {
    let below = destination.strip_prefix(rootfs).ok().filter(|_| rootfs != Path::new("/"));
    Path::new("/").join(below.unwrap_or(destination))
}

/// Mappings without the option mean `idmap`; the option without mappings means those of the
/// container's user namespace (runtime-spec, "mounts").
fn idmap(field: &str, mount: &Mount, option: Option<bool>, linux: &Linux) -> Result<Option<IdMap>> {
    let recursive = option.unwrap_or(false);
    match (mount.uid_mappings.is_empty(), mount.gid_mappings.is_empty()) {
        (true, true) if option.is_none() => Ok(None),
        (true, true) if linux.has(NamespaceKind::User) => Ok(Some(IdMap { recursive, own: None })),
        (true, true) => Err(Error::config(
            field,
            "option idmap needs uidMappings and gidMappings, or a user namespace of the container",
        )),
        (false, false) => {
            let own = Some((mount.uid_mappings.clone(), mount.gid_mappings.clone()));
            Ok(Some(IdMap { recursive, own }))
        }
        _ => Err(Error::config(field, "has one of uidMappings and gidMappings, and needs both or none")),
    }
}

/// Words that a bind mount may have and that change nothing: what mount(8) takes for itself, which engines copy
/// from fstab-like places, and flags of mount(2) that are the filesystem's, which the kernel ignores there.
fn is_nothing_to_a_bind(key: &str) -> bool {
    let for_mount_helpers = matches!(key, "nofail" | "_netdev" | "auto" | "noauto" | "user" | "nouser");
    key.starts_with("x-") || for_mount_helpers || matches!(key, "sync" | "dirsync" | "lazytime")
}

/// Everything that is done to the rootfs, decided.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The rootfs, absolute.
    pub rootfs: PathBuf,
    /// Whether it ends up read-only.
    pub readonly: bool,
    /// `linux.rootfsPropagation`.
    pub propagation: Option<(Propagation, bool)>,
    /// The mounts, in order.
    pub steps: Vec<Step>,
    /// The layers that the rootfs is made of, when it is no plain directory.
    pub overlay: Option<Overlay>,
    /// Whether the container has a mount namespace, made or joined; else the mounts are the host's.
    pub own_namespace: bool,
    /// Whether dhow fills /dev: not when the configuration binds one there.
    pub fill_dev: bool,
}

impl Plan {
    /// Whether the container's copies of the host's mounts, or some of them, stay shared with the
    /// host's: what is mounted or unmounted there is so on the host too.
    pub fn reaches_host(&self) -> bool {
        let is_cut_off = |(propagation, recursive)| recursive && propagation != Propagation::Shared;
        self.own_namespace && !self.propagation.is_none_or(is_cut_off)
    }

    /// The plan for a bundle. Pure.
    ///
    /// # Errors
    /// [`Class::Config`] and [`Class::Unsupported`], naming the mount.
    pub fn new(spec: &Spec, bundle: &Path) -> Result<Plan> {
        let root = spec.root.as_ref().ok_or_else(|| Error::config("root", "is missing"))?;
        let rootfs = bundle.join(&root.path);
        let steps = spec
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| Step::of(index, mount, bundle, &rootfs, &spec.linux))
            .collect::<Result<Vec<Step>>>()?;
        let propagation = match spec.linux.rootfs_propagation.as_str() {
            "" => None,
            word => Some(parse_propagation(word).ok_or_else(|| {
                Error::config(
                    "linux.rootfsPropagation",
                    format!("unknown value {word:?}; known are shared, slave, private and unbindable"),
                )
            })?),
        };
        let dev_is_bound = |step: &Step| {
            matches!(step.source, Source::Bind { .. })
                && step.target.components().eq(Path::new("/dev").components())
        };
        Ok(Plan {
            rootfs,
            readonly: root.readonly,
            overlay: None,
            own_namespace: spec.linux.has(NamespaceKind::Mount),
            propagation,
            fill_dev: !steps.iter().any(dev_is_bound),
            steps,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(mounts: impl serde::Serialize) -> Result<Plan> {
        let spec = json!({"root": {"path": "rootfs", "readonly": true}, "mounts": mounts});
        Plan::new(&serde_json::from_value(spec).unwrap(), Path::new("/bundle"))
    }

    #[test]
    fn sources_are_told_apart() {
        let plan = plan(json!([
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "data", "type": "none", "source": "vol", "options": ["rbind", "rro"]},
            {"destination": "/etc/x", "type": "bind", "source": "/x"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
        ]))
        .unwrap();
        assert!(plan.readonly && plan.fill_dev);
        assert_eq!(plan.rootfs, Path::new("/bundle/rootfs"));
        assert!(plan.steps[0].needs_real_directory());
        assert_eq!(plan.steps[1].target, Path::new("/data"));
        assert_eq!(plan.steps[1].source, Source::Bind { source: "/bundle/vol".into(), recursive: true });
        assert_eq!(plan.steps[2].source, Source::Bind { source: "/x".into(), recursive: false });
        assert_eq!(plan.steps[3].source, Source::Cgroup);
    }

    #[test]
    fn destinations_may_begin_with_the_rootfs() {
        let plan = plan(json!([
            {"destination": "/bundle/rootfs/a", "source": "/bundle/rootfs/b", "options": ["bind"]},
            {"destination": "/bundle/other", "source": "rootfs", "options": ["bind"]}
        ]))
        .unwrap();
        assert_eq!(plan.steps[0].target, Path::new("/a"));
        assert_eq!(plan.steps[0].source_inside(&plan.rootfs), Some(Path::new("b")));
        assert_eq!(plan.steps[1].target, Path::new("/bundle/other"));
        assert_eq!(plan.steps[1].source_inside(&plan.rootfs), Some(Path::new("")));
    }

    #[test]
    fn a_bound_dev_is_left_alone() {
        let mounts = json!([{"destination": "/dev/", "source": "/dev", "options": ["rbind"]}]);
        assert!(!plan(mounts).unwrap().fill_dev);
    }

    #[test]
    fn owners_are_mapped_as_the_mount_or_the_container_says() {
        let map = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
        let bind = |options: &[&str]| json!({"destination": "/a", "source": "/b", "options": options});
        let with = |mount: &serde_json::Value, user: bool| {
            let kinds = if user { json!([{"type": "user"}]) } else { json!([]) };
            let spec = json!({"root": {"path": "r"}, "mounts": [mount], "linux": {"namespaces": kinds}});
            Plan::new(&serde_json::from_value(spec).unwrap(), Path::new("/b"))
                .map(|plan| plan.steps[0].idmap.clone())
                .map_err(|error| error.to_string())
        };
        assert_eq!(with(&bind(&["bind"]), true), Ok(None));
        assert_eq!(with(&bind(&["bind", "idmap"]), true), Ok(Some(IdMap { recursive: false, own: None })));
        assert_eq!(with(&bind(&["rbind", "ridmap"]), true), Ok(Some(IdMap { recursive: true, own: None })));
        assert!(with(&bind(&["bind", "idmap"]), false).unwrap_err().contains("mounts[0] (/a): option idmap"));
        let mut mapped = bind(&["bind"]);
        mapped["uidMappings"] = map.clone();
        assert!(with(&mapped, false).unwrap_err().contains("needs both or none"));
        mapped["gidMappings"] = map.clone();
        assert!(with(&mapped, false).unwrap().unwrap().own.is_some());
        let tmpfs = json!({"destination": "/a", "type": "tmpfs", "uidMappings": map, "gidMappings": map});
        assert!(with(&tmpfs, false).unwrap_err().contains("only a bind mount"));
    }

    #[test]
    fn wrong_mounts_are_named() {
        for (mount, words) in [
            (
                json!({"destination": "/a", "options": ["bind"]}),
                "mounts[0] (/a): a bind mount needs a source",
            ),
            (json!({"destination": "/a", "source": "/b"}), "has neither a type nor"),
            (
                json!({"destination": "/a", "source": "/b", "options": ["bind", "size=1"]}),
                "unknown option \"size\"",
            ),
        ] {
            let error = plan(json!([mount])).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let spec = json!({"root": {"path": "r"}, "linux": {"rootfsPropagation": "often"}});
        let error =
            Plan::new(&serde_json::from_value(spec).unwrap(), Path::new("/b")).unwrap_err().to_string();
        assert!(error.contains("linux.rootfsPropagation: unknown value \"often\""), "{error}");
    }
}
