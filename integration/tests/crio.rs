//! What CRI-O does with a runtime of the type "oci": conmon makes containers and runs ExecSync's
//! commands, CRI-O itself starts, executes, updates, stops and deletes. CRI-O is not in Debian; conmon is.
//! The words are those of its `internal/oci/runtime_oci.go`.

use dhow_integration::command::binary;
use dhow_integration::{Container, Runner, Scene, cgroup, eventually, machine, skip_unless};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

macro_rules! needs {
    () => {
        skip_unless!(machine::has_program("conmon"), "no conmon");
    };
}

fn runtime() -> String {
    binary().display().to_string()
}

/// What CRI-O keeps of one container.
struct Kept<'s> {
    scene: &'s Scene,
    container: Container<'s>,
    dir: PathBuf,
}

impl<'s> Kept<'s> {
    /// CreateContainer: conmon has a byte to wait for, and a pipe to say the pid on.
    #[track_caller]
    fn new(scene: &'s Scene, container: Container<'s>, flags: &[&str]) -> Self {
        let dir = scene.dir().join("crio");
        for name in ["exits", "persist", "attach"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        fs::write(dir.join("byte"), "\0").unwrap();
        let kept = Kept { scene, container, dir };
        let bundle = kept.container.bundle().display().to_string();
        let place = |name: &str| kept.place(name);
        let words = [
            "-b",
            &bundle,
            "-c",
            kept.container.id(),
            "--exit-dir",
            &place("exits"),
            "-l",
            &place("log"),
            "--log-level",
            "info",
            "-n",
            "k8s_one",
            "-P",
            &place("conmon.pid"),
            "-p",
            &place("pid"),
            "--persist-dir",
            &place("persist"),
            "-r",
            &runtime(),
            "--socket-dir-path",
            &place("attach"),
            "-u",
            kept.container.id(),
            "--runtime-arg",
            &kept.root(),
        ];
        let said = kept.conmon(&[&words[..], flags].concat(), "_OCI_SYNCPIPE=3 _OCI_STARTPIPE=4");
        let pid: i32 = kept.file("pid").trim().parse().unwrap();
        assert_eq!(said["pid"], pid, "{said}");
        kept
    }

    fn place(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }

    fn root(&self) -> String {
        format!("--root={}", self.scene.state_dir().display())
    }

    /// Runs conmon with file 3 for what it says and 4 for what it waits for; the last thing that it says.
    #[track_caller]
    fn conmon(&self, words: &[&str], environment: &str) -> serde_json::Value {
        let sync = self.place("sync");
        let _ = fs::remove_file(&sync);
        let script = format!("exec env {environment} conmon \"$@\" 3>{sync} 4<{}", self.place("byte"));
        let ended = Runner::new("sh").args(["-c", &script, "sh"]).args(words).run();
        let last = || -> Option<serde_json::Value> {
            serde_json::from_str(fs::read_to_string(&sync).ok()?.lines().last()?).ok()
        };
        eventually("conmon says something", || last().is_some());
        assert_eq!(ended.code, 0, "{ended}, {:?}", last());
        last().unwrap()
    }

    fn dhow(&self, words: &[&str]) -> Runner {
        self.scene.dhow(words)
    }

    fn status(&self) -> String {
        let id = self.container.id();
        self.dhow(&["state", id]).run().ok().json()["status"].as_str().unwrap().to_owned()
    }

    /// The `process` document of an exec.
    fn spec(&self, words: &[&str], terminal: bool) -> String {
        let process = serde_json::json!({
            "args": words, "cwd": "/", "user": { "uid": 0, "gid": 0 }, "terminal": terminal,
            "env": ["PATH=/bin:/"], "capabilities": {},
        });
        fs::write(self.dir.join("process.json"), process.to_string()).unwrap();
        self.place("process.json")
    }

    /// ExecSync.
    #[track_caller]
    fn exec_sync(&self, words: &[&str]) -> (i64, String) {
        let _ = fs::remove_file(self.dir.join("exec.log"));
        let spec = self.spec(words, false);
        let conmon = [
            "-c",
            self.container.id(),
            "-n",
            "k8s_one",
            "-r",
            &runtime(),
            "-p",
            &self.place("exec.pid"),
            "-e",
            "-l",
            &self.place("exec.log"),
            "--socket-dir-path",
            &self.place("attach"),
            "--log-level",
            "info",
            "-u",
            "exec-1",
            "--exec-process-spec",
            &spec,
            // It says the exit code when it has a time limit.
            "-T",
            "60",
            "--runtime-arg",
            &self.root(),
        ];
        self.conmon(&conmon, "_OCI_SYNCPIPE=3 _OCI_ATTACHPIPE=4");
        let said = || serde_json::from_str(self.file("sync").lines().last()?).ok();
        let said = || said().filter(|said: &serde_json::Value| said["exit_code"].is_number());
        eventually("conmon says how it ended", || said().is_some());
        let said = said().unwrap();
        (said["exit_code"].as_i64().unwrap(), self.file("exec.log"))
    }

    /// An exec whose streams CRI-O has itself.
    fn exec(&self, words: &[&str], terminal: bool) -> Vec<String> {
        let spec = self.spec(words, terminal);
        let pid = self.place("stream.pid");
        self.dhow(&["exec", "--pid-file", &pid, "--process", &spec, self.container.id()]).line()
    }

    /// The exit file, once it is there.
    #[track_caller]
    fn exit_code(&self) -> String {
        let file = Path::new("exits").join(self.container.id());
        let text = || self.file(file.to_str().unwrap());
        eventually("conmon notes the end", || !text().is_empty());
        text()
    }

    #[track_caller]
    fn finish(self) {
        self.dhow(&["delete", "--force", self.container.id()]).run().ok();
        self.scene.is_clean();
    }
}

#[test]
fn a_container_lives_as_cri_o_would_have_it() {
    needs!();
    let scene = Scene::new();
    let container = scene.container(|config| {
        config.payload(&["echo", "out", "--", "stderr", "err", "--", "signal-wait"]);
    });
    let kept = Kept::new(&scene, container.with_busybox(), &[]);
    let id = kept.container.id().to_owned();
    assert_eq!(kept.status(), "created");
    kept.dhow(&["start", &id]).run().ok();
    assert_eq!(kept.status(), "running");
    let both =
        || kept.file("log").contains(" stdout F out\n") && kept.file("log").contains(" stderr F err\n");
    let is_told = dhow_integration::holds_within(dhow_integration::wait::PATIENCE, both);
    assert!(is_told, "{}; the log: {}", kept.status(), kept.file("log"));
    let (code, log) = kept.exec_sync(&["/payload", "echo", "in", "--", "exit", "7"]);
    assert_eq!((code, log.contains(" stdout F in\n")), (7, true), "{log}");

    let run = |words: Vec<String>| Runner::new(&words[0]).args(&words[1..]);
    run(kept.exec(&["/payload", "echo", "streamed", "--", "exit", "3"], false))
        .run()
        .exits(3)
        .says("streamed");
    let typed = run(kept.exec(&["/bin/busybox", "cat"], false)).input("typed\n").run().ok();
    assert_eq!(typed.stdout, "typed\n");
    if machine::has_program("script") {
        let line = kept.exec(&["/payload", "tty", "--", "exit", "4"], true).join(" ");
        let seen = Runner::new("script").args(["-qefc", &line, "/dev/null"]).run().exits(4);
        assert!(seen.stdout.contains("isatty=true,true,true"), "{seen}");
    }

    if machine::has_controller("memory") {
        let resources = r#"{"memory":{"limit":67108864},"cpu":{"shares":512},"devices":[{"allow":false,"access":"rwm"}]}"#;
        kept.dhow(&["update", "--resources", "-", &id]).input(resources).run().ok();
        let (dir, is_v2) = cgroup::directory("memory", &kept.container.cgroup()).unwrap();
        let name = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap().trim(), "67108864");
    }
    kept.dhow(&["pause", &id]).run().ok();
    assert_eq!(kept.status(), "paused");
    kept.dhow(&["resume", &id]).run().ok();
    kept.dhow(&["kill", &id, "TERM"]).run().ok();
    assert_eq!(kept.exit_code(), "0");
    assert_eq!(kept.file("persist/exit"), "0");
    eventually("it is seen as stopped", || kept.status() == "stopped");
    kept.finish();
}

/// conmon's socket, as CRI-O's attach uses it: one byte before each packet says which stream it is of.
#[test]
fn attach_has_both_ways() {
    needs!();
    let scene = Scene::new();
    let container = scene.container(|config| {
        config.args(&["/bin/busybox", "cat"]);
    });
    let kept = Kept::new(&scene, container.with_busybox(), &["-i"]);
    kept.dhow(&["start", kept.container.id()]).run().ok();
    let place = kept.dir.join("attach").join(kept.container.id()).join("attach");
    let stream: OwnedFd =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    // The path is longer than an address may be: from the folder it is short.
    let folder = fs::File::open(place.parent().unwrap()).unwrap();
    let short = format!("/proc/self/fd/{}/attach", folder.as_raw_fd());
    connect(stream.as_raw_fd(), &UnixAddr::new(short.as_str()).unwrap()).unwrap();
    send(stream.as_raw_fd(), b"hello\n", MsgFlags::empty()).unwrap();
    let mut packet = [0; 8192];
    let length = recv(stream.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
    assert_eq!(&packet[..length], b"\x02hello\n");
    // Without --leave-stdin-open the end of the input is the container's.
    drop(stream);
    assert_eq!(kept.exit_code(), "0");
    kept.finish();
}

#[test]
fn memory_that_runs_out_is_noted() {
    needs!();
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let container = scene.container(|config| {
        config.payload(&["alloc", "64"]).set("/linux/resources/memory/limit", 16 << 20);
    });
    let kept = Kept::new(&scene, container, &[]);
    kept.dhow(&["start", kept.container.id()]).run().ok();
    assert_eq!(kept.exit_code(), "137");
    eventually("conmon notes why", || kept.dir.join("persist/oom").exists());
    kept.finish();
}
