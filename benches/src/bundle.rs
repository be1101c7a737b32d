//! The bundles: the plain one, and one with what Docker asks for.

use crate::options::Layout;
use dhow_integration::Config;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// A bundle on disk whose config can be rewritten.
pub struct Bundle {
    /// Its directory.
    pub dir: PathBuf,
    /// Its config, without a cgroupsPath.
    config: Config,
}

impl Bundle {
    /// The plain bundle: what `runc spec` gives, with busybox.
    pub fn plain(dir: PathBuf) -> Result<Self, String> {
        let rootfs = dir.join("rootfs");
        let failed = |e: std::io::Error| format!("{}: {e}", rootfs.display());
        for name in ["bin", "proc", "dev", "sys", "etc"] {
            fs::create_dir_all(rootfs.join(name)).map_err(failed)?;
        }
        let busybox = dhow_integration::machine::program("busybox").ok_or("busybox-static is missing")?;
        fs::copy(busybox, rootfs.join("bin/busybox")).map_err(failed)?;
        for applet in ["true", "sleep", "sh"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).map_err(failed)?;
        }
        let mut config = Config::usual("/");
        config.args(&["/bin/true"]);
        Ok(Bundle { dir, config })
    }

    /// The same root with Docker's usual config; `seccomp` is a profile in OCI form.
    pub fn docker(dir: PathBuf, layout: Layout, seccomp: Option<Value>) -> Result<Self, String> {
        let mut bundle = Self::plain(dir)?;
        let files = bundle.dir.clone();
        let config = &mut bundle.config;
        config.writable().set("/process/noNewPrivileges", false).remove("/process/rlimits");
        for set in ["bounding", "effective", "permitted"] {
            config.set(&format!("/process/capabilities/{set}"), json!(DOCKER_CAPABILITIES));
        }
        config.set("/process/oomScoreAdj", 0);
        config.set("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647" }));
        for name in ["resolv.conf", "hostname", "hosts"] {
            fs::write(files.join(name), name).map_err(|e| format!("{name}: {e}"))?;
            fs::write(files.join("rootfs/etc").join(name), "").map_err(|e| format!("{name}: {e}"))?;
            config.bind(&files.join(name), &format!("/etc/{name}"), &["rprivate"]);
        }
        for (allow, major, minor) in DOCKER_DEVICES {
            let rule =
                json!({ "allow": allow, "type": "c", "major": major, "minor": minor, "access": "rwm" });
            config.push("/linux/resources/devices", rule);
        }
        // This kernel's cgroup2 lacks these controllers where v1 holds them.
        if layout == Layout::V1 {
            config.set("/linux/resources/memory", json!({ "limit": 268_435_456, "swap": 536_870_912 }));
            config.set("/linux/resources/cpu", json!({ "shares": 512, "quota": 50_000, "period": 100_000 }));
            config.set("/linux/resources/pids", json!({ "limit": 100 }));
        }
        for path in ["/proc/interrupts", "/sys/devices/virtual/powercap"] {
            config.push("/linux/maskedPaths", path);
        }
        if let Some(profile) = seccomp {
            config.set("/linux/seccomp", profile);
        }
        Ok(bundle)
    }

    /// Writes config.json for a container in `cgroup`, after `edit`.
    pub fn write(&self, cgroup: &str, edit: impl FnOnce(&mut Config)) {
        let mut config = self.config.clone();
        config.set("/linux/cgroupsPath", format!("/{cgroup}"));
        edit(&mut config);
        fs::write(self.dir.join("config.json"), config.0.to_string()).expect("write config.json");
    }

    /// Has its root be an overlay of its rootfs and so many layers less one, after
    /// [`write`](Bundle::write), with a new writable layer; none for a plain root.
    pub fn layer(&self, layers: usize) -> Result<(), String> {
        if layers == 0 {
            return Ok(());
        }
        let failed = |e: std::io::Error| format!("{}: {e}", self.dir.display());
        let mut lower = Vec::new();
        for number in 1..layers {
            let layer = self.dir.join(format!("layer-{number}"));
            fs::create_dir_all(layer.join("etc")).map_err(failed)?;
            fs::write(layer.join(format!("etc/{number}")), "").map_err(failed)?;
            lower.push(layer);
        }
        lower.push(self.rootfs());
        for part in ["upper", "work"] {
            let _ = fs::remove_dir_all(self.dir.join(part));
            fs::create_dir(self.dir.join(part)).map_err(failed)?;
        }
        let overlay = json!({"lower": lower, "upper": self.dir.join("upper"), "work": self.dir.join("work"),
            "volatile": true});
        fs::write(self.dir.join("overlay.json"), overlay.to_string()).map_err(failed)?;
        let text = fs::read_to_string(self.dir.join("config.json")).map_err(failed)?;
        let mut config: Value = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        config["annotations"]["org.dhow.image.name"] = json!("bench");
        fs::write(self.dir.join("config.json"), config.to_string()).map_err(failed)
    }

    /// Its `linux.resources`.
    pub fn resources(&self) -> Value {
        self.config.0.pointer("/linux/resources").cloned().unwrap_or_default()
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

const DOCKER_DEVICES: [(bool, u32, u32); 7] =
    [(true, 1, 5), (true, 1, 3), (true, 1, 9), (true, 1, 8), (true, 5, 0), (true, 5, 1), (false, 10, 229)];

const DOCKER_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The profile of Debian's containers-common, which is Docker's but for a few calls, as an OCI
/// profile: the rules that hold for a container with Docker's capabilities.
pub fn seccomp_profile(peers: &Path) -> Result<Value, String> {
    let file = peers.join("sid/usr/share/containers/seccomp.json");
    let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
    let source: Value = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut rules = Vec::new();
    for rule in source["syscalls"].as_array().into_iter().flatten().filter(|rule| applies(rule)) {
        let mut kept = json!({ "names": rule["names"], "action": rule["action"] });
        for key in ["args", "errnoRet"] {
            if rule.get(key).is_some_and(|value| !value.is_null()) {
                kept[key] = rule[key].clone();
            }
        }
        rules.push(kept);
    }
    Ok(json!({
        "defaultAction": source["defaultAction"],
        "defaultErrnoRet": source["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }))
}

/// Whether a rule of a profile holds on this machine for Docker's capabilities.
fn applies(rule: &Value) -> bool {
    let list = |pointer: &str| rule.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let have_all = |caps: &[Value]| caps.iter().all(|cap| DOCKER_CAPABILITIES.iter().any(|have| cap == have));
    let here = |arches: &[Value]| arches.iter().any(|arch| arch == "amd64" || arch == "x86_64");
    let (caps, arches) = (list("/includes/caps"), list("/includes/arches"));
    let (no_caps, no_arches) = (list("/excludes/caps"), list("/excludes/arches"));
    have_all(&caps)
        && (arches.is_empty() || here(&arches))
        && (no_caps.is_empty() || !have_all(&no_caps))
        && !here(&no_arches)
}
