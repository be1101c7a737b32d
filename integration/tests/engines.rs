//! Engines on top of the binary: Debian's containerd (through ctr) and podman.
//!
//! Each engine keeps everything below the scene's folder and runs in a mount namespace of its
//! own. An engine that is not installed is skipped by name; `make test` installs both.

use dhow_integration::command::binary;
use dhow_integration::engine::{Jail, busybox_archive};
use dhow_integration::{Outcome, Runner, Scene, cgroup, eventually, machine, skip_unless};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const IMAGE: &str = "localhost/dhow-test:latest";

/// The cgroup that the engine made as its containers' parent is not the runtime's to remove:
/// it must be empty, and goes here.
#[track_caller]
fn remove_parents(name: &str) {
    for dir in cgroup::named_after(name) {
        let gone = dhow_integration::holds_within(Duration::from_secs(3), || fs::remove_dir(&dir).is_ok());
        let children: Vec<_> = fs::read_dir(&dir).into_iter().flatten().flatten().collect();
        assert!(gone || !dir.exists(), "{} is not empty: {children:?}", dir.display());
    }
}

/// What a runtime has in its state directory.
fn entries(dir: &Path) -> Vec<OsString> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    // crun keeps an empty directory to mask others with.
    names.filter(|name| name != ".empty-directory").collect()
}

/// Engines are tried in the machine's own cgroup layout.
fn layout_is_the_machines() -> bool {
    std::env::var_os("DHOW_LAYOUT").is_none()
}

/// A containerd with everything of its own.
struct Containerd<'s> {
    scene: &'s Scene,
    jail: Jail,
    daemon: Option<dhow_integration::command::Running>,
}

impl<'s> Containerd<'s> {
    #[track_caller]
    fn new(scene: &'s Scene) -> Self {
        let jail = Jail::new(if dhow_integration::is_dhow() { "hybrid" } else { "v1" });
        let dir = scene.dir().join("containerd");
        fs::create_dir(&dir).unwrap();
        let config = dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{0}/sock\"\n[ttrpc]\naddress = \"{0}/sock.ttrpc\"\n",
            dir.display()
        );
        fs::write(&config, text).unwrap();
        let daemon = jail.run("containerd").args(["--config", config.to_str().unwrap()]).spawn();
        let containerd = Containerd { scene, jail, daemon: Some(daemon) };
        eventually("containerd answers", || containerd.try_ctr(&["version"]).code == 0);
        let archive = busybox_archive(scene.dir(), scene.payload_program(), IMAGE);
        containerd.ctr(&["image", "import", archive.to_str().unwrap()]);
        containerd
    }

    fn command(&self, words: &[&str]) -> Runner {
        let socket = self.scene.dir().join("containerd/sock");
        let global = ["--address", socket.to_str().unwrap(), "--namespace", self.scene.tag()];
        self.jail.run("ctr").args(global).args(words)
    }

    fn try_ctr(&self, words: &[&str]) -> Outcome {
        self.command(words).run()
    }

    #[track_caller]
    fn ctr(&self, words: &[&str]) -> Outcome {
        self.try_ctr(words).ok()
    }

    /// The folder in which the shim gives the runtime one `--root` per containerd namespace.
    fn runtime_root(&self) -> PathBuf {
        self.scene.dir().join("runtime")
    }

    /// Ends the daemon: the runtime must have left nothing.
    #[track_caller]
    fn finish(self) {
        let root = self.runtime_root().join(self.scene.tag());
        let left: Vec<_> =
            fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        // crun keeps an empty directory to mask others with.
        assert!(left.iter().all(|name| name == ".empty-directory"), "state stays: {left:?}");
        let scene = self.scene;
        drop(self);
        remove_parents(scene.tag());
        scene.is_clean();
    }

    /// `ctr run OPTIONS IMAGE ID COMMAND…` on the binary under test.
    #[track_caller]
    fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Outcome {
        let (runtime, root) = (binary(), self.runtime_root());
        let runtime = ["--runc-binary", runtime.to_str().unwrap(), "--runc-root", root.to_str().unwrap()];
        let words =
            [&["run"], &runtime[..], &["--snapshotter", "native"], options, &[IMAGE, id], command].concat();
        self.try_ctr(&words)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(daemon.pid());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            if std::thread::panicking() {
                eprintln!("containerd said: {}", daemon.stderr());
            }
            let outcome = daemon.wait();
            if outcome.code != 0 {
                eprintln!("containerd: {outcome}");
            }
        }
    }
}

#[test]
fn containerd_runs_enters_stops_and_deletes() {
    skip_unless!(machine::has_program("containerd"), "containerd is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    let scene = Scene::new();
    let engine = Containerd::new(&scene);
    engine.run(&["--rm"], "once", &["/payload", "echo", "hello"]).ok().says("hello");
    let seven = engine.run(&["--rm"], "seven", &["/payload", "exit", "7"]);
    assert_eq!(seven.code, 7, "{seven}");

    engine.run(&["--detach"], "long", &["/payload", "signal-wait"]).ok();
    let listed = engine.ctr(&["task", "ls"]);
    assert!(listed.stdout.lines().any(|l| l.contains("long") && l.contains("RUNNING")), "{listed}");
    engine.ctr(&["task", "exec", "--exec-id", "e1", "long", "/payload", "echo", "inside"]).says("inside");
    let eight = engine.try_ctr(&["task", "exec", "--exec-id", "e2", "long", "/payload", "exit", "8"]);
    assert_eq!(eight.code, 8, "{eight}");
    let ps = engine.ctr(&["task", "ps", "long"]);
    assert_eq!(ps.stdout.lines().count(), 2, "{ps}");

    engine.ctr(&["task", "pause", "long"]);
    let listed = engine.ctr(&["task", "ls"]);
    assert!(listed.stdout.lines().any(|l| l.contains("long") && l.contains("PAUSED")), "{listed}");
    engine.ctr(&["task", "resume", "long"]);

    engine.ctr(&["task", "kill", "--signal", "SIGTERM", "long"]);
    eventually("the task stops", || engine.ctr(&["task", "ls"]).stdout.contains("STOPPED"));
    engine.ctr(&["task", "delete", "long"]);
    engine.ctr(&["container", "delete", "long"]);
    engine.finish();
}

#[test]
fn containerd_reports_a_command_that_is_not_there() {
    skip_unless!(machine::has_program("containerd"), "containerd is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    let scene = Scene::new();
    let engine = Containerd::new(&scene);
    let outcome = engine.run(&["--rm"], "missing", &["/no/such/command"]);
    assert!(outcome.code != 0, "{outcome}");
    let text = outcome.stderr.to_lowercase();
    assert!(text.contains("/no/such/command") && text.contains("no such file or directory"), "{outcome}");
    let listed = engine.ctr(&["task", "ls", "-q"]);
    assert_eq!(listed.stdout.trim(), "", "{listed}");
    engine.finish();
}

#[test]
fn containerd_gives_a_terminal() {
    skip_unless!(machine::has_program("containerd"), "containerd is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    skip_unless!(machine::has_program("script"), "no script program (bsdutils) to give ctr a terminal");
    let scene = Scene::new();
    let engine = Containerd::new(&scene);
    let socket = scene.dir().join("containerd/sock");
    let line = format!(
        "ctr --address {} --namespace {} run --rm --tty --snapshotter native --runc-binary {} --runc-root {} {IMAGE} term /payload tty -- sleep 1",
        socket.display(),
        scene.tag(),
        binary().display(),
        engine.runtime_root().display(),
    );
    let outcome = engine.jail.run("script").args(["-qefc", &line, "/dev/null"]).run().ok();
    assert!(outcome.stdout.contains("isatty=true,true,true"), "{outcome}");
    engine.finish();
}

/// A podman with everything of its own.
struct Podman<'s> {
    scene: &'s Scene,
    jail: Jail,
}

impl<'s> Podman<'s> {
    #[track_caller]
    fn new(scene: &'s Scene) -> Self {
        let podman = Podman { scene, jail: Jail::new("v1") };
        // Not --runtime-flag: the clean-up that conmon starts when a container ends lacks it.
        let script =
            format!("#!/bin/sh\nexec {} --root {} \"$@\"\n", binary().display(), scene.state_dir().display());
        fs::write(podman.runtime(), script).unwrap();
        fs::set_permissions(podman.runtime(), fs::Permissions::from_mode(0o755)).unwrap();
        let archive = busybox_archive(scene.dir(), scene.payload_program(), IMAGE);
        podman.podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]);
        podman
    }

    /// What podman is told to be its runtime: the binary with the scene's `--root`.
    fn runtime(&self) -> PathBuf {
        self.scene.dir().join("runtime")
    }

    /// The runtime must have left nothing.
    #[track_caller]
    fn finish(self) {
        let state = self.scene.state_dir();
        // conmon's clean-up may still be at work.
        let clean = dhow_integration::holds_within(Duration::from_secs(5), || entries(state).is_empty());
        assert!(clean, "state stays: {:?}", entries(state));
        let scene = self.scene;
        drop(self);
        remove_parents(scene.tag());
        scene.is_clean();
    }

    fn try_podman(&self, words: &[&str]) -> Outcome {
        let dir = self.scene.dir().join("podman").display().to_string();
        let global = [
            format!("--root={dir}/root"),
            format!("--runroot={dir}/run"),
            format!("--tmpdir={dir}/tmp"),
            format!("--runtime={}", self.runtime().display()),
            "--storage-driver=vfs".to_owned(),
            "--cgroup-manager=cgroupfs".to_owned(),
            "--events-backend=file".to_owned(),
        ];
        self.jail.run("podman").args(&global).args(words).limit(Duration::from_secs(90)).run()
    }

    #[track_caller]
    fn podman(&self, words: &[&str]) -> Outcome {
        self.try_podman(words).ok()
    }

    /// `podman run OPTIONS IMAGE COMMAND…`.
    #[track_caller]
    fn run(&self, options: &[&str], command: &[&str]) -> Outcome {
        let parent = format!("--cgroup-parent=/{}", self.scene.tag());
        // Without seccomp, and without a network: podman would change the host's firewall.
        let fixed =
            ["run", "--security-opt=seccomp=unconfined", "--network=none", "--log-driver=k8s-file", &parent];
        // Its usual limits are higher than what a machine without CAP_SYS_RESOURCE may set.
        let limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];
        self.try_podman(&[&fixed[..], &limits, options, &[IMAGE], command].concat())
    }
}

#[test]
fn podman_runs_enters_stops_and_deletes() {
    skip_unless!(machine::has_program("podman"), "podman is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    let scene = Scene::new();
    let engine = Podman::new(&scene);
    engine.run(&["--rm"], &["/payload", "echo", "hello"]).ok().says("hello");
    engine.run(&["--rm"], &["/payload", "exit", "7"]).exits(7);
    engine
        .run(
            &["--rm", "--user=user", "--hostname=berth", "--workdir=/tmp"],
            &["sh", "-c", "id -u; hostname; pwd"],
        )
        .ok()
        .says("1000\nberth\n/tmp");

    engine.run(&["--detach", "--name=long"], &["/payload", "echo", "up", "--", "signal-wait"]).ok();
    let state = engine.podman(&["inspect", "--format={{.State.Status}} {{.OCIRuntime}}", "long"]);
    assert!(state.stdout.starts_with("running "), "{state}");
    engine.podman(&["exec", "long", "/payload", "echo", "inside"]).says("inside");
    engine.try_podman(&["exec", "long", "/payload", "exit", "8"]).exits(8);
    engine
        .podman(&["exec", "--user=1000", "--env=A=b", "long", "sh", "-c", "id -u; echo $A"])
        .says("1000\nb");
    engine.podman(&["pause", "long"]);
    engine.podman(&["unpause", "long"]);
    engine.podman(&["top", "long", "pid", "args"]);
    engine.podman(&["stop", "--time=10", "long"]);
    let logs = engine.podman(&["logs", "long"]);
    assert!(logs.stdout.contains("up") && logs.stdout.contains("SIGTERM"), "{logs}");
    let state = engine.podman(&["inspect", "--format={{.State.Status}} {{.State.ExitCode}}", "long"]);
    assert_eq!(state.stdout.trim(), "exited 0");
    engine.podman(&["start", "long"]);
    engine.podman(&["rm", "--force", "--time=1", "long"]);
    let left = engine.podman(&["ps", "--all", "--quiet"]);
    assert_eq!(left.stdout.trim(), "", "{left}");
    engine.finish();
}

#[test]
fn podman_knows_why_a_command_does_not_run() {
    skip_unless!(machine::has_program("podman"), "podman is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    let scene = Scene::new();
    let engine = Podman::new(&scene);
    // podman reads the runtime's words: 127 for "not found", 126 for "may not".
    engine.run(&["--rm"], &["/no/such/command"]).exits(127);
    engine.run(&["--rm"], &["no-such-command-in-path"]).exits(127);
    engine.run(&["--rm"], &["/etc/passwd"]).exits(126);
    engine.finish();
}

#[test]
fn podman_gives_limits_and_read_only_roots() {
    skip_unless!(machine::has_program("podman"), "podman is not installed");
    skip_unless!(layout_is_the_machines(), "this is not the machine's own cgroup layout");
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let engine = Podman::new(&scene);
    let is_v2 = cgroup::directory("memory", "/").is_some_and(|(_, v2)| v2);
    let limit_file =
        if is_v2 { "/sys/fs/cgroup/memory.max" } else { "/sys/fs/cgroup/memory/memory.limit_in_bytes" };
    let limits = ["--rm", "--memory=32m", "--pids-limit=20", "--cpus=0.5", "--read-only", "--cap-drop=all"];
    let verbs = ["/payload", "cat", limit_file, "--", "touch", "/new", "--", "caps"];
    let seen = engine.run(&limits, &verbs).exits(1);
    assert!(seen.stdout.starts_with("33554432\n! touch: EROFS\n"), "{seen}");
    assert_eq!(seen.line("bounding="), "");
    engine.finish();
}
