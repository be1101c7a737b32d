//! Images for tests: `docker save` archives, made byte by byte.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// A layer's archive in the making.
#[derive(Debug, Default, Clone)]
pub struct Layer {
    tar: Vec<u8>,
    owner: u32,
}

impl Layer {
    /// A layer whose files belong to this user and group.
    pub fn of(owner: u32) -> Layer {
        Layer { owner, ..Layer::default() }
    }

    fn entry(mut self, path: &str, kind: u8, mode: u32, link: &str, content: &[u8]) -> Layer {
        let mut header = [0_u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        header[108..116].copy_from_slice(format!("{:07o}\0", self.owner).as_bytes());
        header[116..124].copy_from_slice(format!("{:07o}\0", self.owner).as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[148..156].fill(b' ');
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.tar.extend_from_slice(&header);
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// A file, mode 0644.
    #[must_use]
    pub fn file(self, path: &str, content: &str) -> Layer {
        self.entry(path, b'0', 0o644, "", content.as_bytes())
    }

    /// A copy of a program of the host.
    #[must_use]
    pub fn program(self, path: &str, from: &Path) -> Layer {
        let content = fs::read(from).unwrap();
        self.entry(path, b'0', 0o755, "", &content)
    }

    /// A directory, mode 0755.
    #[must_use]
    pub fn directory(self, path: &str) -> Layer {
        self.entry(path, b'5', 0o755, "", b"")
    }

    /// A symlink.
    #[must_use]
    pub fn symlink(self, path: &str, target: &str) -> Layer {
        self.entry(path, b'2', 0o777, target, b"")
    }

    /// Its bytes, without the end of an archive.
    pub fn so_far(&self) -> &[u8] {
        &self.tar
    }

    fn end(&self) -> Vec<u8> {
        [&self.tar[..], &[0; 1024]].concat()
    }
}

/// busybox with `/bin/sh` and its friends, an /etc/passwd with the user `app`, and the payload.
pub fn base(payload: &Path) -> Layer {
    filled(Layer::default(), payload)
}

/// The same in a layer that was begun already.
pub fn filled(layer: Layer, payload: &Path) -> Layer {
    let busybox = crate::machine::program("busybox").expect("busybox: apt-get install busybox-static");
    let mut layer = layer
        .directory("bin")
        .program("bin/busybox", &busybox)
        .program("payload", payload)
        .directory("etc")
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home/app:/bin/sh\n")
        .file("etc/group", "root:x:0:\napp:x:8:\nmore:x:9:app\n");
    for applet in [
        "sh",
        "true",
        "cat",
        "ls",
        "id",
        "env",
        "mkdir",
        "rm",
        "ln",
        "mv",
        "sleep",
        "mount",
        "umount",
        "unshare",
        "nc",
        "chroot",
        "tar",
        "gzip",
        "awk",
        "sed",
        "grep",
        "find",
        "sort",
        "ip",
        "stat",
        "setarch",
        "swapon",
        "hostname",
        "date",
        "ps",
        "su",
        "nsenter",
        "reboot",
        "ulimit",
        "touch",
        "echo",
        "dmesg",
        "wc",
        "xargs",
        "sha256sum",
        "chmod",
    ] {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer
}

/// Writes an image of these layers, the lowest first, as `docker save` would: `run` is the `config` of
/// its configuration.
pub fn save(to: &Path, name: &str, layers: &[Layer], run: &Value) {
    let hex =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let tars: Vec<Vec<u8>> = layers.iter().map(Layer::end).collect();
    let diffs: Vec<String> = tars.iter().map(|tar| format!("sha256:{}", hex(tar))).collect();
    let history: Vec<Value> =
        (1..=tars.len()).map(|step| json!({"created_by": format!("step {step}")})).collect();
    let config = json!({"architecture": architecture(), "os": "linux", "config": run, "history": history,
        "rootfs": {"type": "layers", "diff_ids": diffs}})
    .to_string();
    let mut archive = Layer::default().file("config.json", &config);
    let mut paths = Vec::new();
    for (index, tar) in tars.iter().enumerate() {
        let path = format!("{index}.tar");
        archive = archive.entry(&path, b'0', 0o644, "", tar);
        paths.push(path);
    }
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]);
    fs::write(to, archive.file("manifest.json", &manifest.to_string()).end()).unwrap();
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Writes a layer's archive alone.
pub fn write(to: &Path, layer: &Layer) {
    fs::write(to, layer.end()).unwrap();
}
