//! config.json: a usual one to start from, and the means to bend it.

use serde_json::{Value, json};

/// A config.json in the making.
#[derive(Debug, Clone)]
pub struct Config(pub Value);

/// The capabilities of the usual config: what `runc spec` writes.
pub const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

impl Config {
    /// The usual config, as `runc spec` writes it, with `cgroup` as its cgroupsPath.
    pub fn usual(cgroup: &str) -> Self {
        Config(json!({
            "ociVersion": "1.2.0",
            "process": process(),
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "dhow",
            "mounts": mounts(),
            "linux": {
                "cgroupsPath": cgroup,
                "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
                "namespaces": [
                    { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                    { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
                ],
                "maskedPaths": [
                    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
                ],
                "readonlyPaths": [
                    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
                ],
            },
        }))
    }

    /// The payload and its verbs: `["ids", "--", "cwd"]`.
    pub fn payload(&mut self, verbs: &[&str]) -> &mut Self {
        let args: Vec<&str> = std::iter::once("/payload").chain(verbs.iter().copied()).collect();
        self.set("/process/args", json!(args))
    }

    /// The whole argv.
    pub fn args(&mut self, args: &[&str]) -> &mut Self {
        self.set("/process/args", json!(args))
    }

    /// Sets what `pointer` (RFC 6901) names, making the objects on the way.
    pub fn set(&mut self, pointer: &str, value: impl Into<Value>) -> &mut Self {
        let mut at = &mut self.0;
        for key in pointer.split('/').skip(1) {
            let key = key.replace("~1", "/").replace("~0", "~");
            at = match at {
                Value::Array(list) => &mut list[key.parse::<usize>().expect("an array's index")],
                other => &mut other[key],
            };
        }
        *at = value.into();
        self
    }

    /// Removes what `pointer` names.
    pub fn remove(&mut self, pointer: &str) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer starts with /");
        let parent = self.0.pointer_mut(parent).expect("the parent exists");
        parent.as_object_mut().expect("the parent is an object").remove(key).expect("the field exists");
        self
    }

    /// Appends to the array that `pointer` names; makes the array when there is none.
    pub fn push(&mut self, pointer: &str, value: impl Into<Value>) -> &mut Self {
        match self.0.pointer_mut(pointer) {
            Some(Value::Array(list)) => list.push(value.into()),
            _ => {
                self.set(pointer, json!([value.into()]));
            }
        }
        self
    }

    /// Adds a mount.
    pub fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> &mut Self {
        let mount = json!({ "destination": destination, "type": kind, "source": source, "options": options });
        self.push("/mounts", mount)
    }

    /// Adds a bind mount.
    pub fn bind(&mut self, source: &std::path::Path, destination: &str, options: &[&str]) -> &mut Self {
        let options: Vec<&str> = std::iter::once("rbind").chain(options.iter().copied()).collect();
        self.mount(destination, "bind", source.to_str().expect("a UTF-8 path"), &options)
    }

    /// Leaves out the mount at `destination`.
    pub fn without_mount(&mut self, destination: &str) -> &mut Self {
        self.0["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != destination);
        self
    }

    /// Leaves out the namespace of `kind`: the container shares the host's.
    pub fn without_namespace(&mut self, kind: &str) -> &mut Self {
        self.namespaces().retain(|n| n["type"] != kind);
        self
    }

    /// Adds a namespace of `kind`, in place of one that was there: new, or joined by `path`.
    pub fn namespace(&mut self, kind: &str, path: Option<&str>) -> &mut Self {
        self.without_namespace(kind);
        let namespace = match path {
            Some(path) => json!({ "type": kind, "path": path }),
            None => json!({ "type": kind }),
        };
        self.namespaces().push(namespace);
        self
    }

    /// A user namespace that maps `size` ids from 0 to `first` of the host.
    pub fn user_namespace(&mut self, first: u32, size: u32) -> &mut Self {
        let map = json!([{ "containerID": 0, "hostID": first, "size": size }]);
        self.namespace("user", None).set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map)
    }

    /// Adds a hook that runs `script` with /bin/sh on the host.
    pub fn hook(&mut self, point: &str, script: &str) -> &mut Self {
        let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] });
        self.push(&format!("/hooks/{point}"), hook)
    }

    /// A writable root file system.
    pub fn writable(&mut self) -> &mut Self {
        self.set("/root/readonly", false)
    }

    fn namespaces(&mut self) -> &mut Vec<Value> {
        self.0["linux"]["namespaces"].as_array_mut().unwrap()
    }
}

fn process() -> Value {
    json!({
        "terminal": false,
        "user": { "uid": 0, "gid": 0 },
        "args": ["/payload", "exit", "0"],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
        "cwd": "/",
        "capabilities": {
            "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
        },
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
        "noNewPrivileges": true,
    })
}

fn mounts() -> Value {
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
          "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
          "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
        { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
          "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
          "options": ["nosuid", "noexec", "nodev"] },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs",
          "options": ["nosuid", "noexec", "nodev", "ro"] },
        { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
          "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
    ])
}
