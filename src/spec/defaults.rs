//! What a container gets that is not told otherwise: the mounts, what of /proc and /sys it may not
//! see or change, and Docker's capabilities.

pub use super::default_seccomp::profile as seccomp;
use serde_json::{Value, json};

/// Docker's default capabilities.
pub const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// PATH for an image or a bundle that has none.
pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `linux.maskedPaths`: what of the host's state leaks through procfs and sysfs, which are not
/// namespaced there.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// `linux.readonlyPaths`: writing here changes the host.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// `linux.namespaces`, all but the user's.
pub fn namespaces() -> Value {
    json!([
        {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
        {"type": "cgroup"}
    ])
}

/// `mounts`.
pub fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
         "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
    ])
}

/// Makes a configuration one that a user without rights can have: their own id as root, no cgroup,
/// and of /sys what the host shows where the network is the host's too.
pub fn make_rootless(config: &mut Value, uid: u32, gid: u32) {
    let linux = &mut config["linux"];
    linux["uidMappings"] = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    linux["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    let mut own_network = false;
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        own_network = namespaces.iter().any(|namespace| namespace["type"] == "network");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(linux) = linux.as_object_mut() {
        linux.remove("resources");
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        for mount in mounts {
            match mount["destination"].as_str() {
                // Without a network namespace of one's own, sysfs cannot be mounted anew.
                Some("/sys") if !own_network => {
                    *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                        "options": ["rbind", "nosuid", "noexec", "nodev", "rro"]});
                }
                // Group 5 is not mapped.
                Some("/dev/pts") => {
                    mount["options"] =
                        json!(["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]);
                }
                _ => {}
            }
        }
    }
}
