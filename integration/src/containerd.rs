//! `containerd-shim-dhow-v2` under real containerds: Debian stable's, which is installed, and the
//! newer one of the sid folder (integration/peers.sh engines).

use crate::command::{Running, binary, workspace};
use crate::engine::{Jail, archive, busybox_archive};
use crate::ttrpc::Client;
use crate::{Outcome, Runner, Scene, cgroup, eventually, machine};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The image that each containerd has.
pub const IMAGE: &str = "localhost/dhow-test:latest";
/// Where shims have their sockets.
pub const SOCKETS: &str = "/run/dhow-shim";
/// The shim's name.
pub const SHIM: &str = "containerd-shim-dhow-v2";

/// Which containerd is driven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The machine's own.
    Installed,
    /// 1.7, of the trixie folder.
    Trixie,
    /// The newest, of the sid folder.
    Sid,
}

impl Which {
    /// All of them.
    pub const ALL: [Which; 3] = [Which::Installed, Which::Trixie, Which::Sid];

    /// The folder with its Debian.
    pub fn folder(self) -> PathBuf {
        let peers = std::env::var_os("DHOW_PEERS").unwrap_or("/var/tmp/dhow-peers".into());
        PathBuf::from(peers).join(if self == Which::Trixie { "trixie" } else { "sid" })
    }

    /// The words that start one of its programs: a folder's own loader runs what is in it.
    pub fn words(self, program: &str) -> Vec<String> {
        if self == Which::Installed {
            return vec![program.to_owned()];
        }
        let folder = self.folder();
        let text = |path: &str| folder.join(path).display().to_string();
        vec![
            text("lib64/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            text("usr/lib/x86_64-linux-gnu"),
            text(&format!("usr/bin/{program}")),
        ]
    }

    /// Whether it can be tried.
    pub fn is_there(self) -> bool {
        match self {
            Which::Installed => machine::has_program("containerd"),
            _ => self.folder().join("usr/bin/containerd").exists(),
        }
    }
}

/// The configuration of 1.6 and 1.7, for CRI. No score is below what a machine without
/// CAP_SYS_RESOURCE allows.
pub const CRI_OF_1: &str = r#"version = 2
root = "DIR/root"
state = "DIR/state"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "IMAGE"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "DIR/cni"
  conf_dir = "DIR/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "SNAPSHOTTER"
  default_runtime_name = "dhow"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.dhow]
  runtime_type = "io.containerd.dhow.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.dhow.options]
OPTIONS"#;

/// That of 2.0 and newer.
pub const CRI_OF_2: &str = r#"version = 3
root = "DIR/root"
state = "DIR/state"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "SNAPSHOTTER"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "IMAGE"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["DIR/cni"]
  conf_dir = "DIR/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = "dhow"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dhow]
  runtime_type = "io.containerd.dhow.v2"
  sandboxer = "SANDBOXER"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dhow.options]
OPTIONS"#;

/// A containerd with everything of its own.
pub struct Engine<'s> {
    /// What it belongs to.
    pub scene: &'s Scene,
    /// Which one it is.
    pub which: Which,
    /// Where it runs.
    pub jail: Jail,
    /// The process, while it runs.
    pub daemon: Option<Running>,
    /// The containerd namespace: the scene's own, or Kubernetes'.
    pub namespace: String,
}

impl<'s> Engine<'s> {
    /// One without CRI, and the image in it.
    #[track_caller]
    pub fn new(scene: &'s Scene, which: Which) -> Self {
        let cri = "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        let mut engine = Self::with(scene, which, scene.tag(), &format!("version = 2\n{cri}"));
        engine.begin();
        let archive = busybox_archive(scene.dir(), scene.payload_program(), IMAGE);
        engine.ctr(&["image", "import", archive.to_str().unwrap()]);
        engine
    }

    /// One with CRI, whose only handler is `dhow`. Its image waits for signals, so that it can stand in
    /// for Kubernetes' pause. Pods are containerd's own (`podsandbox`) or left to the `shim`.
    #[track_caller]
    pub fn with_cri(scene: &'s Scene, which: Which, sandboxer: &str, snapshotter: &str) -> Self {
        let dir = scene.dir().join("containerd").display().to_string();
        let options = format!(
            "BinaryName = \"{}\"\nRoot = \"{}\"\n",
            binary().display(),
            scene.dir().join("runtime").display()
        );
        let text = match which {
            Which::Sid => CRI_OF_2.replace("SANDBOXER", sandboxer),
            _ => CRI_OF_1.to_owned(),
        };
        let text = text.replace("DIR", &dir).replace("IMAGE", IMAGE).replace("OPTIONS", &options);
        let mut text = text.replace("SNAPSHOTTER", snapshotter);
        if snapshotter == "overlayfs" && sandboxer != "shim" {
            // Pods with user namespaces: for those containerd takes runc's own options alone.
            let shim = workspace().join("bin").join(SHIM);
            let by_path = format!("\"io.containerd.runc.v2\"\n  runtime_path = \"{}\"", shim.display());
            text = text.replace("\"io.containerd.dhow.v2\"", &by_path);
        }
        if sandboxer == "shim" {
            // Where pods are left to shims containerd 2.1 takes no options for any but runc's own.
            let table = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.dhow.options]";
            text.truncate(text.find(table).unwrap());
        }
        let mut engine = Self::with(scene, which, "k8s.io", "");
        let config = scene.dir().join("containerd/config.toml");
        // Tables come after what is at the top.
        fs::write(&config, text + &fs::read_to_string(&config).unwrap()).unwrap();
        engine.begin();
        let archive = archive(scene.dir(), scene.payload_program(), IMAGE, &["/payload", "signal-wait"]);
        engine.ctr(&["image", "import", archive.to_str().unwrap()]);
        engine
    }

    #[track_caller]
    fn with(scene: &'s Scene, which: Which, namespace: &str, top: &str) -> Self {
        let dir = scene.dir().join("containerd");
        fs::create_dir(&dir).unwrap();
        let places = format!("root = \"{0}/root\"\nstate = \"{0}/state\"\n", dir.display());
        let sockets =
            format!("[grpc]\naddress = \"{0}/sock\"\n[ttrpc]\naddress = \"{0}/sock.ttrpc\"\n", dir.display());
        let top = if top.is_empty() { String::new() } else { format!("{top}{places}") };
        fs::write(dir.join("config.toml"), top + &sockets).unwrap();
        let root = scene.dir().join("runtime");
        let options = format!("BinaryName = \"{}\"\nRoot = \"{}\"\n", binary().display(), root.display());
        fs::write(dir.join("options.toml"), options).unwrap();
        let jail = Jail::new("hybrid");
        // Its shims' sockets are where no other's are, so that what is left is seen.
        let sockets = scene.dir().join("sockets");
        fs::create_dir(&sockets).unwrap();
        fs::create_dir_all(SOCKETS).unwrap();
        jail.run("mount").args(["--bind", sockets.to_str().unwrap(), SOCKETS]).run().ok();
        Engine { scene, which, jail, daemon: None, namespace: namespace.to_owned() }
    }

    /// One of its programs, in its place; the shim and dhow are in its PATH.
    pub fn program(&self, name: &str) -> Runner {
        let words = self.which.words(name);
        let path =
            format!("{}:{}", workspace().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        self.jail.run(&words[0]).args(&words[1..]).env("PATH", &path)
    }

    /// Starts it.
    pub fn begin(&mut self) {
        let config = self.scene.dir().join("containerd/config.toml");
        // As under systemd, with Type=notify: the socket is containerd's, and no container's.
        let notify = self.scene.dir().join("notify");
        let containerd = self.program("containerd").env("NOTIFY_SOCKET", notify.to_str().unwrap());
        self.daemon = Some(containerd.args(["--config", config.to_str().unwrap()]).spawn());
        eventually("containerd answers", || self.try_ctr(&["version"]).code == 0);
    }

    /// Ends it.
    pub fn end(&mut self, signal: Signal) {
        let Some(daemon) = self.daemon.take() else { return };
        let _ = kill(Pid::from_raw(daemon.pid()), signal);
        if std::thread::panicking() {
            eprintln!("containerd said: {}", daemon.stderr());
        }
        daemon.wait();
    }

    /// ctr's first words.
    pub fn global(&self) -> Vec<String> {
        let socket = self.scene.dir().join("containerd/sock").display().to_string();
        ["--address".into(), socket, "--namespace".into(), self.namespace.clone()].to_vec()
    }

    /// A command of ctr's.
    pub fn command(&self, words: &[&str]) -> Runner {
        self.program("ctr").args(self.global()).args(words)
    }

    /// Runs it.
    pub fn try_ctr(&self, words: &[&str]) -> Outcome {
        self.command(words).run()
    }

    /// It must succeed.
    #[track_caller]
    pub fn ctr(&self, words: &[&str]) -> Outcome {
        self.try_ctr(words).ok()
    }

    /// The words of `ctr run` up to the options.
    pub fn running(&self) -> Vec<String> {
        let options = self.scene.dir().join("containerd/options.toml").display().to_string();
        let words = ["run", "--runtime", "io.containerd.dhow.v2", "--snapshotter", "native"];
        let words = words.map(str::to_owned).into_iter();
        words.chain(["--runtime-config-path".to_owned(), options]).collect()
    }

    /// `ctr run`.
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Outcome {
        self.to_run(options, id, command).run()
    }

    /// `ctr run`, to be run.
    pub fn to_run(&self, options: &[&str], id: &str, command: &[&str]) -> Runner {
        self.command(&[]).args(self.running()).args(options).args([IMAGE, id]).args(command)
    }

    /// The shims of this containerd, by pid.
    pub fn shims(&self) -> Vec<i32> {
        self.processes(SHIM)
    }

    /// The commands of the runtime that are at work.
    pub fn commands(&self) -> Vec<i32> {
        self.processes(binary().to_str().unwrap())
    }

    /// The processes of a program that belong to this containerd.
    pub fn processes(&self, program: &str) -> Vec<i32> {
        let tag = self.scene.tag();
        let is_it = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).into_owned();
            words.split('\0').next().is_some_and(|first| first.contains(program)) && words.contains(tag)
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_it).collect()
    }

    /// Where its bundles are.
    pub fn bundles(&self) -> PathBuf {
        self.scene.dir().join("containerd/state/io.containerd.runtime.v2.task").join(&self.namespace)
    }

    /// A connection to a container's shim.
    #[track_caller]
    pub fn client(&self, id: &str) -> Client {
        let address = fs::read_to_string(self.bundles().join(id).join("address")).unwrap();
        let name = address.rsplit('/').next().unwrap();
        Client::to(&self.scene.dir().join("sockets").join(name))
    }

    /// What is left of containers: bundles, sockets, the runtime's state, mounts.
    fn left(&self) -> Vec<String> {
        let dir = self.scene.dir();
        let folders = [self.bundles(), dir.join("sockets"), dir.join("runtime").join(&self.namespace)];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
        // A bundle that containerd was removing when it was killed has a dot before its name, for ever.
        let entries = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
        let mounts = self.jail.mounts();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter(|place| {
            let is_ones = place.contains(self.scene.tag()) || place.starts_with(SOCKETS);
            is_ones && ["/rootfs", ".root", "/shm"].iter().any(|end| place.ends_with(end))
        });
        // A bundle stays when its rootfs is not empty: with what.
        let content = |path: PathBuf| -> Vec<String> {
            let inside = fs::read_dir(path.join("rootfs")).into_iter().flatten().flatten();
            inside.map(|entry| entry.file_name().display().to_string()).collect()
        };
        let entries = entries.map(|entry| format!("{}: {:?}", entry.path().display(), content(entry.path())));
        entries.chain(places.map(str::to_owned)).collect()
    }

    /// Everything goes: nothing may be left of any container.
    #[track_caller]
    pub fn finish(mut self) {
        // What was killed is cleaned up by a containerd that may have much else to do.
        let gone = crate::holds_within(Duration::from_secs(60), || self.shims().is_empty());
        assert!(gone, "shims stay: {:?}; tasks: {}", self.shims(), self.ctr(&["task", "ls"]));
        // containerd takes its bundles away after that.
        crate::holds_within(Duration::from_secs(15), || self.left().is_empty());
        assert!(self.left().is_empty(), "it stays: {:#?}", self.left());
        self.end(Signal::SIGTERM);
        let scene = self.scene;
        drop(self);
        for dir in cgroup::named_after(scene.tag()) {
            let gone = crate::holds_within(Duration::from_secs(3), || fs::remove_dir(&dir).is_ok());
            assert!(gone || !dir.exists(), "{} is not empty", dir.display());
        }
        scene.is_clean();
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for shim in self.shims() {
                let _ = kill(Pid::from_raw(shim), Signal::SIGKILL);
            }
        }
        self.end(Signal::SIGTERM);
    }
}

/// The shim belongs to dhow, and these tests to the machine's own cgroup layout.
pub fn can_be_tried() -> bool {
    let is_here = workspace().join("bin").join(SHIM).exists();
    crate::is_dhow()
        && machine::has_program("containerd")
        && is_here
        && std::env::var_os("DHOW_LAYOUT").is_none()
}
