//! A pod as CRI describes it (`runtime.v1.PodSandboxConfig` in k8s.io/cri-api): the container that holds
//! its namespaces, and the files that its containers share.

use dhow_shim_common::sys;
use dhow_shim_common::wire::Message;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// `NamespaceMode`: the node's own.
const NODE: u64 = 2;
/// The bytes that /dev/shm of a pod holds: as much as in containerd's own pods.
const SHM_SIZE: u32 = 64 << 20;
/// What containers have from their pod: its name below the pod's bundle, and its place in a container.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// One range of ids: the first one inside, the first one outside, how many.
type Range = [u64; 3];

/// What of a pod's configuration means something here.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its annotations, as containerd's own pods have them.
    annotations: BTreeMap<String, String>,
    hostname: String,
    /// The text of resolv.conf; the node's when `None`.
    resolver: Option<String>,
    cgroup_parent: String,
    sysctls: BTreeMap<String, String>,
    has_host_network: bool,
    has_host_pids: bool,
    has_host_ipc: bool,
    /// The ids of the pod's own user namespace: users, groups.
    maps: Option<[Vec<Range>; 2]>,
    user: u64,
    group: u64,
    groups: Vec<u64>,
}

impl Pod {
    /// Reads the `google.protobuf.Any` of a request; where that is something else, a pod that has
    /// everything of its own.
    pub fn read(any: &[u8]) -> Pod {
        let any = Message::read(any).unwrap_or_default();
        if !any.text(1).ends_with("PodSandboxConfig") {
            return Pod::default();
        }
        let config = any.message(2);
        let (metadata, linux) = (config.message(1), config.message(8));
        let context = linux.message(2);
        let namespaces = context.message(1);
        let annotations = [("sandbox-name", 1), ("sandbox-uid", 2), ("sandbox-namespace", 3)];
        let annotation =
            |(name, tag): (&str, u64)| (format!("io.kubernetes.cri.{name}"), metadata.text(tag).to_owned());
        Pod {
            annotations: annotations.map(annotation).into(),
            hostname: config.text(2).to_owned(),
            resolver: config.all(4).last().and_then(Message::read).map(|dns| resolver(&dns)),
            cgroup_parent: linux.text(1).to_owned(),
            sysctls: linux.pairs(3).map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            has_host_network: namespaces.number(1) == NODE,
            has_host_pids: namespaces.number(2) == NODE,
            has_host_ipc: namespaces.number(3) == NODE,
            maps: namespaces.all(5).last().and_then(Message::read).and_then(|users| maps(&users)),
            // Int64Value, which has the number as its first field.
            user: context.message(3).number(1),
            group: context.message(8).number(1),
            groups: context.numbers(5),
        }
    }

    /// config.json of the container that holds the pod's namespaces. `network` is the path of the
    /// network namespace, if the pod has one already; `users` that of the user namespace which owns it.
    pub fn spec(&self, id: &str, rootfs: &Path, pause: &Path, network: &str, users: Option<&str>) -> Value {
        let mut annotations = self.annotations.clone();
        annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
        annotations.insert("io.kubernetes.cri.sandbox-id".into(), id.into());
        let own = |kind: &str| json!({ "type": kind });
        let mut namespaces = vec![own("mount")];
        if !self.has_host_network {
            namespaces.push(own("uts"));
            namespaces.push(match network {
                "" => own("network"),
                path => json!({ "type": "network", "path": path }),
            });
        }
        namespaces.extend((!self.has_host_pids).then(|| own("pid")));
        namespaces.extend((!self.has_host_ipc).then(|| own("ipc")));
        let mut linux = json!({ "sysctl": self.sysctls() });
        if crate::cgroup::has("cpu") {
            // What waits needs no more than the least.
            linux["resources"] = json!({ "cpu": { "shares": 2 } });
        }
        if let Some([uids, gids]) = &self.maps {
            namespaces.push(match users {
                Some(path) => json!({ "type": "user", "path": path }),
                None => own("user"),
            });
            linux["uidMappings"] = mappings(uids);
            linux["gidMappings"] = mappings(gids);
        }
        linux["namespaces"] = namespaces.into();
        if !self.cgroup_parent.is_empty() {
            linux["cgroupsPath"] = cgroups_path(&self.cgroup_parent, id).into();
        }
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": { "path": rootfs, "readonly": true },
            "process": {
                "args": ["/pause", "pause"],
                "cwd": "/",
                "user": { "uid": self.user, "gid": self.group, "additionalGids": self.groups },
                "noNewPrivileges": true,
                "capabilities": {},
                "oomScoreAdj": score(),
            },
            // The shim itself: nobody need fetch an image for what does nothing but wait.
            "mounts": [
                {
                    "destination": "/proc", "source": "proc", "type": "proc",
                    "options": ["nosuid", "noexec", "nodev"],
                },
                {
                    "destination": "/dev", "source": "tmpfs", "type": "tmpfs",
                    "options": ["nosuid", "noexec", "mode=755", "size=64k"],
                },
                {
                    "destination": "/pause", "source": pause, "type": "bind",
                    "options": ["bind", "ro", "nosuid", "nodev"],
                },
            ],
            "annotations": annotations,
            "linux": linux,
        });
        if !self.has_host_network {
            spec["hostname"] = self.hostname.clone().into();
        }
        spec
    }

    /// The pod's, and those that CRI gives every pod with a network of its own.
    fn sysctls(&self) -> BTreeMap<String, String> {
        let mut all = self.sysctls.clone();
        let mut usual = |name: &str, value: &str| {
            all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        };
        if !self.has_host_network {
            usual("net.ipv4.ip_unprivileged_port_start", "0");
            // Groups that a user namespace does not have cannot be named in it.
            if self.maps.is_none() {
                usual("net.ipv4.ping_group_range", "0 2147483647");
            }
        }
        all
    }

    /// The user and the group that are root in the pod, as the host has them.
    pub fn root(&self) -> [u32; 2] {
        let host = |ranges: &Vec<Range>| {
            let first = ranges.iter().find(|[inside, ..]| *inside == 0);
            first.and_then(|[_, outside, _]| u32::try_from(*outside).ok()).unwrap_or(0)
        };
        self.maps.as_ref().map_or([0; 2], |[users, groups]| [host(users), host(groups)])
    }

    /// Makes the files that containers share.
    ///
    /// # Errors
    /// What could not be made, and why.
    pub fn make_files(&self, bundle: &Path) -> Result<(), String> {
        let own = |name: &str| fs::read_to_string(name).unwrap_or_default();
        let hostname = match self.hostname.as_str() {
            "" => own("/proc/sys/kernel/hostname"),
            name => format!("{name}\n"),
        };
        let resolver = self.resolver.clone().unwrap_or_else(|| own("/etc/resolv.conf"));
        for ((name, _), text) in FILES.iter().zip([hostname, own("/etc/hosts"), resolver]) {
            let path = bundle.join(name);
            fs::write(&path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
        }
        if self.has_host_ipc {
            return Ok(());
        }
        mount_memory(&bundle.join("shm"), &format!("mode=1777,size={SHM_SIZE}"))
    }

    /// The user namespace of a network namespace, for pods that have one of their own.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn owner(&self, network: &str) -> Result<Option<OwnedFd>, String> {
        if self.maps.is_none() || network.is_empty() {
            return Ok(None);
        }
        let file = fs::File::open(network).map_err(|error| format!("open {network}: {error}"))?;
        let owner = sys::owner_of(&file.into());
        owner.map(Some).map_err(|errno| format!("find the user namespace of {network}: errno {errno}"))
    }
}

/// Mounts a tmpfs.
///
/// # Errors
/// Why it cannot be done.
pub fn mount_memory(path: &Path, options: &str) -> Result<(), String> {
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    let options = std::ffi::CString::new(options).unwrap_or_default();
    fs::create_dir_all(path)
        .and_then(|()| Ok(rustix::mount::mount("shm", path, "tmpfs", flags, options.as_c_str())?))
        .map_err(|error| format!("mount tmpfs on {}: {error}", path.display()))
}

/// Where others find a file of this process.
pub fn path_of(file: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}

/// Takes away what [`Pod::make_files`] has mounted.
pub fn unmount_files(bundle: &Path) {
    let _ = rustix::mount::unmount(bundle.join("shm"), UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
}

/// Gives a container the files of its pod, where its config.json names nothing else for their places.
///
/// # Errors
/// Why it cannot be done.
pub fn share_files(pod: &Path, bundle: &Path) -> Result<(), String> {
    let path = bundle.join("config.json");
    let says = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = fs::read(&path).map_err(|error| says(&error))?;
    let mut config: Value = serde_json::from_slice(&text).map_err(|error| says(&error))?;
    add_mounts(&mut config, pod);
    fs::write(&path, config.to_string()).map_err(|error| says(&error))
}

fn add_mounts(config: &mut Value, pod: &Path) {
    let is_read_only = config["root"]["readonly"] == true;
    // The runtime's usual memory is the container's alone.
    let is_usual = |mount: &Value| mount["destination"] == "/dev/shm" && mount["type"] == "tmpfs";
    let has_shm = pod.join("shm").exists();
    let joins = |one: &Value| one["type"] == "ipc" && one["path"].is_string();
    let has_pods_ipc = config["linux"]["namespaces"].as_array().is_some_and(|all| all.iter().any(joins));
    if !config["mounts"].is_array() {
        config["mounts"] = json!([]);
    }
    let Some(mounts) = config["mounts"].as_array_mut() else { return };
    let mut add = |name: &str, place: &str, access: &str| {
        if !mounts.iter().any(|mount| mount["destination"] == place) {
            let options = json!(["rbind", "rprivate", access]);
            mounts.push(json!({
                "destination": place, "type": "bind", "source": pod.join(name), "options": options,
            }));
        }
    };
    for (name, place) in FILES {
        add(name, place, if is_read_only { "ro" } else { "rw" });
    }
    if has_shm && has_pods_ipc {
        mounts.retain(|mount| !is_usual(mount));
        add_shm(mounts, pod);
    }
}

fn add_shm(mounts: &mut Vec<Value>, pod: &Path) {
    if !mounts.iter().any(|mount| mount["destination"] == "/dev/shm") {
        let options = json!(["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"]);
        mounts.push(json!({
            "destination": "/dev/shm", "type": "bind", "source": pod.join("shm"), "options": options,
        }));
    }
}

/// `DNSConfig` as resolv.conf(5).
fn resolver(dns: &Message) -> String {
    let words = |tag| -> Vec<String> {
        dns.all(tag).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
    };
    let (servers, searches, options) = (words(1), words(2), words(3));
    let mut text = String::new();
    if !searches.is_empty() {
        text += &format!("search {}\n", searches.join(" "));
    }
    for server in servers {
        text += &format!("nameserver {server}\n");
    }
    if !options.is_empty() {
        text += &format!("options {}\n", options.join(" "));
    }
    text
}

/// `UserNamespace`; `None` where the node's is used.
fn maps(users: &Message) -> Option<[Vec<Range>; 2]> {
    let range = |bytes| Message::read(bytes).map(|map| [map.number(2), map.number(1), map.number(3)]);
    let ranges = |tag| users.all(tag).filter_map(range).collect();
    (users.number(1) != NODE).then(|| [ranges(2), ranges(3)])
}

fn mappings(ranges: &[Range]) -> Value {
    let one =
        |[inside, outside, size]: &Range| json!({ "containerID": inside, "hostID": outside, "size": size });
    ranges.iter().map(one).collect()
}

/// As CRI names the cgroups of its containers: with systemd below a slice.
fn cgroups_path(parent: &str, id: &str) -> String {
    let last = parent.rsplit('/').next().unwrap_or(parent);
    match last.ends_with(".slice") {
        true => format!("{last}:cri-containerd:{id}"),
        false => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

/// That of containerd's own pods; this process' own where only the machine's root may go below it.
fn score() -> i64 {
    const CAP_SYS_RESOURCE: u64 = 24;
    const USUAL: i64 = -998;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    if effective >> CAP_SYS_RESOURCE & 1 == 1 {
        return USUAL;
    }
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_shim_common::wire::Writer;

    fn pod(namespaces: &Writer) -> Pod {
        let context = Writer::new().message(1, namespaces).message(3, &Writer::new().number(1, 7u32));
        let pair = Writer::new().bytes(1, "kernel.shm_rmid_forced").bytes(2, "1");
        let linux = Writer::new().bytes(1, "/kubepods/pod1").message(2, &context).message(3, &pair);
        let dns = Writer::new().bytes(1, "10.0.0.1").bytes(1, "10.0.0.2").bytes(2, "a").bytes(2, "b");
        let config = Writer::new()
            .message(1, &Writer::new().bytes(1, "web").bytes(2, "u").bytes(3, "default"))
            .bytes(2, "berth")
            .message(4, &dns)
            .message(8, &linux);
        let any = Writer::new().bytes(1, "types/runtime.v1.PodSandboxConfig").bytes(2, config.finish());
        Pod::read(&any.finish())
    }

    #[test]
    fn a_pod_becomes_a_container() {
        let pod = pod(&Writer::new());
        let spec = pod.spec("p1", Path::new("/r"), Path::new("/bin/shim"), "/run/netns/x", None);
        assert_eq!(spec["hostname"], "berth");
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/p1");
        assert_eq!(spec["linux"]["sysctl"]["kernel.shm_rmid_forced"], "1");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
        assert_eq!(spec["process"]["user"]["uid"], 7);
        assert_eq!(spec["annotations"]["io.kubernetes.cri.sandbox-name"], "web");
        let namespaces = json!([
            { "type": "mount" }, { "type": "uts" }, { "type": "network", "path": "/run/netns/x" },
            { "type": "pid" }, { "type": "ipc" },
        ]);
        assert_eq!(spec["linux"]["namespaces"], namespaces);
        assert_eq!(pod.resolver.as_deref(), Some("search a b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"));
    }

    #[test]
    fn the_nodes_namespaces_are_not_made() {
        let range = Writer::new().number(1, 100_000u32).number(3, 65_536u32);
        let users = Writer::new().message(2, &range).message(3, &range);
        let pod = pod(&Writer::new().number(1, 2u32).number(2, 2u32).number(3, 2u32).message(5, &users));
        let spec = pod.spec("p1", Path::new("/r"), Path::new("/bin/shim"), "", Some("/proc/1/fd/9"));
        let namespaces = json!([{ "type": "mount" }, { "type": "user", "path": "/proc/1/fd/9" }]);
        assert_eq!(spec["linux"]["namespaces"], namespaces);
        assert_eq!(spec["linux"]["uidMappings"][0]["hostID"], 100_000);
        assert_eq!(pod.root(), [100_000; 2]);
        assert!(spec["hostname"].is_null() && spec["linux"]["sysctl"].as_object().unwrap().len() == 1);
    }

    #[test]
    fn cgroups_have_the_drivers_names() {
        assert_eq!(
            cgroups_path("/kubepods.slice/kubepods-pod1.slice", "i"),
            "kubepods-pod1.slice:cri-containerd:i"
        );
        assert_eq!(cgroups_path("/a/b/", "i"), "/a/b/i");
    }

    #[test]
    fn a_container_gets_what_it_does_not_have() {
        let pod = std::env::temp_dir().join(format!("dhow-pod-{}", std::process::id()));
        fs::create_dir_all(pod.join("shm")).unwrap();
        let mut config = json!({
            "mounts": [
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
                { "destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/hosts" },
            ],
            "linux": { "namespaces": [{ "type": "ipc", "path": "/proc/9/ns/ipc" }] },
        });
        add_mounts(&mut config, &pod);
        let of = |place: &str| {
            let all = config["mounts"].as_array().unwrap().iter();
            all.filter(|mount| mount["destination"] == place).collect::<Vec<_>>()
        };
        assert_eq!(of("/dev/shm")[0]["source"], pod.join("shm").to_str().unwrap());
        assert_eq!(of("/etc/hosts")[0]["source"], "/var/lib/kubelet/hosts");
        assert_eq!(of("/etc/resolv.conf")[0]["options"], json!(["rbind", "rprivate", "rw"]));
        assert!(["/dev/shm", "/etc/hosts", "/etc/hostname"].iter().all(|place| of(place).len() == 1));
        fs::remove_dir_all(pod).unwrap();
    }
}
