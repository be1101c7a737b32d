//! What the tests with engines need: a mount namespace that they may litter, and an image.

use crate::command::{Runner, workspace};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A mount namespace with a cgroup layout of its own, kept open by a sleeping process. Engines
/// leave mounts and stray directories below /sys/fs/cgroup; here they go with the namespace.
pub struct Jail {
    holder: Child,
}

impl Jail {
    /// Makes one with the layout `v1`, `v2` or `hybrid`; `v2` where the machine has no other.
    #[track_caller]
    pub fn new(layout: &str) -> Self {
        let only_v2 = crate::cgroup::hierarchies().iter().all(|h| h.v2);
        let layout = if only_v2 { "v2" } else { layout };
        let holder = Command::new(workspace().join("integration/layout.sh"))
            // Ready when it has become sleep: all mounts are done then.
            .args([layout, "sleep", "1000000"])
            .stdin(Stdio::null())
            .spawn()
            .expect("layout.sh");
        let comm = format!("/proc/{}/comm", holder.id());
        crate::eventually("the mount namespace is there", || {
            fs::read_to_string(&comm).is_ok_and(|c| c.trim() == "sleep")
        });
        Jail { holder }
    }

    /// What is mounted inside: its mountinfo.
    pub fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap()
    }

    /// Runs a program inside.
    pub fn run(&self, program: &str) -> Runner {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        Runner::new("/usr/bin/nsenter").args([namespace.as_str(), "--", program])
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a tool that must succeed; answers its stdout.
#[track_caller]
fn tool(dir: &Path, program: &str, args: &[&str]) -> String {
    Runner::new(program).args(args).cwd(dir).run().ok().stdout
}

/// Makes a docker-archive of an image that holds busybox and the payload, and runs a shell; answers its
/// path.
#[track_caller]
pub fn busybox_archive(dir: &Path, payload: &Path, name: &str) -> PathBuf {
    archive(dir, payload, name, &["/bin/sh"])
}

/// Makes one that runs something else.
#[track_caller]
pub fn archive(dir: &Path, payload: &Path, name: &str, command: &[&str]) -> PathBuf {
    let rootfs = dir.join("image-rootfs");
    let bin = rootfs.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for directory in ["tmp", "etc", "proc", "sys", "dev", "run", "root"] {
        fs::create_dir(rootfs.join(directory)).unwrap();
    }
    fs::copy(crate::machine::program("busybox").expect("busybox-static"), bin.join("busybox")).unwrap();
    fs::copy(payload, rootfs.join("payload")).unwrap();
    for applet in ["sh", "true", "cat", "sleep", "echo", "hostname", "id", "ps", "ls"] {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
        .unwrap();
    fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n").unwrap();
    let image = dir.join("image");
    fs::create_dir(&image).unwrap();
    tool(
        dir,
        "tar",
        &["-C", "image-rootfs", "--owner=0", "--group=0", "--numeric-owner", "-cf", "image/layer.tar", "."],
    );
    let digest = |file: &str| tool(&image, "sha256sum", &[file]).split(' ').next().unwrap().to_owned();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = serde_json::json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": command },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest("layer.tar"))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "dhow-integration" }],
    });
    fs::write(image.join("config"), config.to_string()).unwrap();
    let config_name = format!("{}.json", digest("config"));
    fs::rename(image.join("config"), image.join(&config_name)).unwrap();
    let manifest =
        serde_json::json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    tool(&image, "tar", &["-cf", "../image.tar", "manifest.json", &config_name, "layer.tar"]);
    dir.join("image.tar")
}
