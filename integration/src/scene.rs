//! A test's own little world: containers, a state directory, and the check at the end.

use crate::command::{Outcome, Runner, Running, binary};
use crate::config::Config;
use crate::leaks::Marks;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

static SCENES: AtomicU32 = AtomicU32::new(0);

/// A temporary folder, a state directory, and the containers of one test.
pub struct Scene {
    dir: PathBuf,
    marks: Marks,
    containers: AtomicU32,
    /// Ids that a command has made and none has deleted.
    alive: Mutex<Vec<String>>,
    /// Whether the end may leave things: set by tests that prove a leak check.
    lenient: AtomicBool,
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Scene {
    /// A new world, empty.
    pub fn new() -> Self {
        // Containers outlive the command that made them. As their reaper the test can wait for
        // them, as an engine's shim does, and needs no help of PID 1.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .expect("PR_SET_CHILD_SUBREAPER");
        let number = SCENES.fetch_add(1, Ordering::Relaxed);
        let tag = format!("dhow-test-{}-{number}x", std::process::id());
        // Short, because a console socket's path may have no more than 107 bytes.
        let dir = std::env::temp_dir().join(&tag);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("make {}: {e}", dir.display()));
        // Containers with ids of their own must be able to pass through.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        let payload = dir.join("payload");
        fs::copy(payload_program(), &payload).expect("copy the payload");
        let marks = Marks { tag, state: dir.join("state"), payload };
        Scene {
            dir,
            marks,
            containers: AtomicU32::new(0),
            alive: Mutex::new(Vec::new()),
            lenient: AtomicBool::new(false),
        }
    }

    /// The temporary folder. Bundles and the state directory are in it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The payload program of this scene, on the host.
    pub fn payload_program(&self) -> &Path {
        &self.marks.payload
    }

    /// What `--root` is set to.
    pub fn state_dir(&self) -> &Path {
        &self.marks.state
    }

    /// Part of every name in this test.
    pub fn tag(&self) -> &str {
        &self.marks.tag
    }

    /// The binary with this scene's `--root`.
    pub fn dhow<S: AsRef<str>>(&self, args: impl IntoIterator<Item = S>) -> Runner {
        Runner::new(binary()).args(["--root", self.marks.state.to_str().unwrap()]).args(args)
    }

    /// A container whose config is the usual one after `edit`; nothing is run yet.
    pub fn container(&self, edit: impl FnOnce(&mut Config)) -> Container<'_> {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.marks.tag);
        let bundle = self.dir.join(format!("b{number}"));
        let rootfs = bundle.join("rootfs");
        fs::create_dir_all(rootfs.join("tmp")).unwrap();
        fs::hard_link(&self.marks.payload, rootfs.join("payload")).unwrap();
        let mut config = Config::usual(&format!("/{id}"));
        edit(&mut config);
        // The container's root must be able to make mount points.
        let id_of = |map: &str| u32::try_from(config.0.pointer(map)?.as_u64()?).ok();
        let uid = id_of("/linux/uidMappings/0/hostID");
        let gid = id_of("/linux/gidMappings/0/hostID");
        std::os::unix::fs::chown(&rootfs, uid, gid).unwrap();
        fs::write(bundle.join("config.json"), serde_json::to_vec_pretty(&config.0).unwrap()).unwrap();
        Container { scene: self, id, bundle, output: Mutex::new(None) }
    }

    /// A container that runs these verbs of the payload.
    pub fn payload(&self, verbs: &[&str]) -> Container<'_> {
        self.container(|c| {
            c.payload(verbs);
        })
    }

    /// What the test has left so far.
    pub fn leaks(&self) -> Vec<String> {
        self.marks.leaks()
    }

    /// Nothing may be left: no process, no cgroup, no mount, no state.
    #[track_caller]
    pub fn is_clean(&self) {
        // A killed process takes a moment to go, and the kernel a moment to free its cgroup.
        let clean = crate::holds_within(std::time::Duration::from_secs(3), || self.leaks().is_empty());
        assert!(clean, "left behind: {:#?}", self.leaks());
    }

    /// Lets the scene end with things left over: for the tests of the leak check itself.
    pub fn may_leak(&self) {
        self.lenient.store(true, Ordering::Relaxed);
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for id in self.alive.lock().unwrap().drain(..) {
            let outcome = self.dhow(["delete", "--force", &id]).spawn().wait();
            if outcome.code != 0 {
                eprintln!("clean up: {outcome}");
            }
        }
        let clean = crate::holds_within(std::time::Duration::from_secs(3), || self.leaks().is_empty());
        let left = if clean { Vec::new() } else { self.leaks() };
        self.marks.clear();
        // Removing a folder with a mount in it would remove what is mounted.
        if self.marks.has_mounts() {
            eprintln!("{} stays: something is mounted in it", self.dir.display());
        } else if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("remove {}: {error}", self.dir.display());
        }
        let strict = !std::thread::panicking() && !self.lenient.load(Ordering::Relaxed);
        assert!(!strict || left.is_empty(), "the test left behind: {left:#?}");
    }
}

/// The payload program that was built with the tests.
fn payload_program() -> PathBuf {
    // Tests are in target/TARGET/PROFILE/deps, the payload is one above.
    let test = std::env::current_exe().unwrap();
    let payload = test.ancestors().nth(2).unwrap().join("payload");
    let program = fs::read(&payload).unwrap_or_else(|e| panic!("{}: {e}", payload.display()));
    let wants_interpreter = program.windows(10).any(|w| w == b"ld-linux-x" || w == b"ld-linux-a");
    assert!(
        !wants_interpreter,
        "the payload must be static: run `make test`, or cargo test with --target *-musl"
    );
    payload
}

/// One container: a bundle, an id, and the commands upon it.
pub struct Container<'s> {
    scene: &'s Scene,
    id: String,
    bundle: PathBuf,
    /// The command that made it, whose stdout is the container's.
    output: Mutex<Option<Running>>,
}

impl Container<'_> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Its root file system on the host.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// The cgroupsPath of its usual config.
    pub fn cgroup(&self) -> String {
        format!("/{}", self.id)
    }

    /// Puts a file into the root file system.
    pub fn file(&self, path: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.rootfs().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Puts busybox and `/bin/sh` into the root file system.
    pub fn with_busybox(self) -> Self {
        let busybox = crate::machine::program("busybox").expect("busybox: apt-get install busybox-static");
        let bin = self.rootfs().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::copy(busybox, bin.join("busybox")).unwrap();
        for applet in ["sh", "true", "cat", "sleep"] {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
        }
        self
    }

    /// Overwrites config.json with any text.
    pub fn write_config(&self, text: &str) {
        fs::write(self.bundle.join("config.json"), text).unwrap();
    }

    /// A command of the binary: `words`, then the id.
    pub fn command(&self, words: &[&str]) -> Runner {
        self.scene.dhow(words).args([&self.id])
    }

    /// `create` with more options; the usual ones are there.
    #[track_caller]
    pub fn create_with(&self, options: &[&str]) -> Outcome {
        let pid_file = self.bundle.join("pid");
        let words =
            ["create", "--bundle", self.bundle.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap()];
        self.make(self.scene.dhow(words).args(options).args([&self.id]))
    }

    /// `create --bundle B --pid-file P ID`.
    #[track_caller]
    pub fn create(&self) -> Outcome {
        self.create_with(&[])
    }

    /// `run` with more options, among them --detach or --keep: the container stays when it succeeds.
    #[track_caller]
    pub fn run_kept(&self, options: &[&str]) -> Outcome {
        let pid_file = self.bundle.join("pid");
        let words =
            ["run", "--bundle", self.bundle.to_str().unwrap(), "--pid-file", pid_file.to_str().unwrap()];
        self.make(self.scene.dhow(words).args(options).args([&self.id]))
    }

    /// Runs a command that leaves a container, and keeps its stdout: it is the container's now.
    #[track_caller]
    fn make(&self, runner: Runner) -> Outcome {
        let mut running = runner.spawn();
        let outcome = running.finish();
        if outcome.code == 0 {
            self.scene.alive.lock().unwrap().push(self.id.clone());
        }
        *self.output.lock().unwrap() = Some(running);
        outcome
    }

    /// `run --bundle B ID`, to the payload's end.
    #[track_caller]
    pub fn run(&self) -> Outcome {
        self.run_with(&[]).run()
    }

    /// `run` in the foreground, to be changed and run by the caller.
    pub fn run_with(&self, options: &[&str]) -> Runner {
        self.scene.dhow(["run", "--bundle", self.bundle.to_str().unwrap()]).args(options).args([&self.id])
    }

    /// Creates and starts it; both must succeed.
    #[track_caller]
    pub fn up(&self) -> &Self {
        self.create().ok();
        self.start().ok();
        self
    }

    /// `start ID`.
    #[track_caller]
    pub fn start(&self) -> Outcome {
        self.command(&["start"]).run()
    }

    /// `kill ID SIGNAL`.
    #[track_caller]
    pub fn kill(&self, signal: &str) -> Outcome {
        self.command(&["kill"]).args([signal]).run()
    }

    /// `pause ID`.
    #[track_caller]
    pub fn pause(&self) -> Outcome {
        self.command(&["pause"]).run()
    }

    /// `resume ID`.
    #[track_caller]
    pub fn resume(&self) -> Outcome {
        self.command(&["resume"]).run()
    }

    /// `delete ID`.
    #[track_caller]
    pub fn delete(&self) -> Outcome {
        self.deleted(self.command(&["delete"]).run())
    }

    /// `delete --force ID`.
    #[track_caller]
    pub fn delete_force(&self) -> Outcome {
        self.deleted(self.command(&["delete", "--force"]).run())
    }

    fn deleted(&self, outcome: Outcome) -> Outcome {
        if outcome.code == 0 {
            self.scene.alive.lock().unwrap().retain(|id| *id != self.id);
        }
        outcome
    }

    /// `exec ID ARGV…`, to its end.
    #[track_caller]
    pub fn exec(&self, argv: &[&str]) -> Outcome {
        self.exec_with(&[], argv).run()
    }

    /// `exec OPTIONS ID ARGV…`.
    pub fn exec_with(&self, options: &[&str], argv: &[&str]) -> Runner {
        self.scene.dhow(["exec"]).args(options).args([self.id.as_str()]).args(argv)
    }

    /// What `state` prints.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.command(&["state"]).run().ok().json()
    }

    /// The `status` of `state`.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status is a string").to_owned()
    }

    /// Waits for a status.
    #[track_caller]
    pub fn until(&self, status: &str) -> &Self {
        crate::eventually(&format!("{} is {status}", self.id), || self.status() == status);
        self
    }

    /// The pid in the pid file.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let text = fs::read_to_string(self.bundle.join("pid")).expect("the pid file");
        text.trim().parse().unwrap_or_else(|_| panic!("the pid file holds {text:?}"))
    }

    /// Waits for the end of a container that was created or detached, as a shim does; answers
    /// its exit code, or 128 + signal.
    #[track_caller]
    pub fn reap(&self) -> i32 {
        let pid = Pid::from_raw(self.pid());
        let mut code = None;
        crate::eventually(&format!("{} ends", self.id), || {
            code = match waitpid(pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG)).expect("waitpid") {
                WaitStatus::Exited(_, code) => Some(code),
                WaitStatus::Signaled(_, signal, _) => Some(128 + signal as i32),
                _ => None,
            };
            code.is_some()
        });
        code.unwrap()
    }

    /// What the container, created or detached, has printed so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().as_ref().map(Running::stdout).unwrap_or_default()
    }

    /// Waits until the container, created or detached, has printed `text`.
    #[track_caller]
    pub fn until_it_says(&self, text: &str) -> &Self {
        self.output.lock().unwrap().as_ref().expect("the container was made").until_it_says(text);
        self
    }
}
