//! A runtime that is killed, or that a full or broken machine lets down, at any syscall: an error or
//! success, and after `delete --force` nothing is left on the machine.
//!
//! A test tries every STRIDE-th point, beginning at one that SEED decides; both come from the
//! environment (`DHOW_CRASH_STRIDE`, `DHOW_CRASH_SEED`) and are printed. `make test-crash` tries all.
#![cfg(target_arch = "x86_64")]

use dhow_integration::image::{self, Layer};
use dhow_integration::scene::Container;
use dhow_integration::trace::{Deed, Point, Traced, errors_of, run};
use dhow_integration::{Config, Outcome, Scene, machine, skip_unless};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

/// How far the container is when the command comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Created,
    Running,
    /// Likewise, and a monitor stays with it, which is watched too.
    Monitored,
    Paused,
    Stopped,
}

/// A command under test.
struct Command {
    name: &'static str,
    before: Before,
    words: &'static [&'static str],
    after: &'static [&'static str],
}

const fn on_running(
    name: &'static str,
    words: &'static [&'static str],
    after: &'static [&'static str],
) -> Command {
    Command { name, before: Before::Running, words, after }
}

fn from_environment(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// What a run of points came to.
#[derive(Default)]
struct Tally {
    tried: usize,
    wrong: Vec<String>,
}

struct Trial<'a> {
    scene: &'a Scene,
    container: &'a Container<'a>,
    command: &'a Command,
    files: BTreeSet<String>,
}

/// Every name below a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(names(&entry.path()));
        }
        found.insert(entry.path().display().to_string());
    }
    found
}

impl Trial<'_> {
    fn words(&self) -> Vec<String> {
        let bundle = self.container.bundle().display().to_string();
        let mut words: Vec<String> =
            self.command.words.iter().map(|word| word.replace("BUNDLE", &bundle)).collect();
        words.push(self.container.id().to_owned());
        words.extend(self.command.after.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Brings the container to where the command finds it: its init, and who else is to be watched.
    fn prepare(&self) -> (Option<i32>, Option<i32>) {
        let c = self.container;
        if self.command.before == Before::Nothing {
            return (None, None);
        }
        if self.command.before == Before::Monitored {
            c.run_kept(&["--detach", "--monitor", "--log-driver", "json-file"]).ok();
            let monitor = c.command(&["inspect"]).run().ok().json()["monitor"].as_i64().unwrap();
            return (Some(c.pid()), Some(i32::try_from(monitor).unwrap()));
        }
        c.create().ok();
        if self.command.before != Before::Created {
            c.start().ok();
        }
        match self.command.before {
            Before::Paused => drop(c.pause().ok()),
            Before::Stopped => {
                c.kill("KILL").ok();
                c.until("stopped");
            }
            _ => {}
        }
        (Some(c.pid()), Some(c.pid()).filter(|_| self.command.name == "start"))
    }

    fn run(&self, deed: Option<(Point, Deed)>) -> Traced {
        let (init, watched) = self.prepare();
        let words = self.words();
        let mut traced =
            run(self.scene, &words.iter().map(String::as_str).collect::<Vec<_>>(), watched, deed);
        // A monitor that is killed leaves its container's init to this process.
        traced.orphans.extend(init.filter(|_| self.command.before == Before::Monitored));
        traced
    }

    /// What is left that must not be.
    fn left(&self) -> Vec<String> {
        // Asked for by name, it is the caller's; a monitor writes it at each start.
        let _ = fs::remove_file(self.container.bundle().join("pid"));
        let mut left = self.scene.leaks();
        left.extend(names(self.container.bundle()).difference(&self.files).cloned());
        left.extend(names(&self.scene.state_dir().join("@images/containers")));
        left
    }

    fn is_clean_soon(&self) -> Result<(), String> {
        let clean =
            dhow_integration::holds_within(std::time::Duration::from_secs(15), || self.left().is_empty());
        if clean { Ok(()) } else { Err(format!("left: {:?}", self.left())) }
    }

    /// One point: what is wrong with what came of it.
    fn attempt(&self, point: Point, deed: Deed) -> Result<(), String> {
        let traced = self.run(Some((point, deed)));
        let verdict = self.judge(&traced, deed);
        let half_made = match deed {
            Deed::Fail(_) if traced.code != 0 && self.command.before == Before::Nothing => {
                self.is_clean_soon().map_err(|left| format!("a create that failed {left}"))
            }
            _ => Ok(()),
        };
        let state = self.container.command(&["state"]).run();
        let deleted = self.delete_and_reap(&traced.orphans);
        let clean = self.is_clean_soon();
        let told = |what: String| {
            format!(
                "{what}\n    code {} stderr {:?}; state then: {}",
                traced.code,
                traced.stderr.trim_end(),
                state.stdout.split_whitespace().collect::<String>()
            )
        };
        verdict.and(half_made).map_err(told)?;
        if deleted.code != 0 {
            let ps = std::process::Command::new("ps").args(["-eo", "pid,ppid,stat,wchan:20,args"]).output();
            let ps = ps.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
            let tag = self.scene.tag();
            let ours = |line: &&str| line.contains(tag) || line.contains("dhow]") || line.contains("payload");
            let ps: Vec<&str> = ps.lines().filter(ours).collect();
            return Err(told(format!("delete --force: {deleted} {ps:#?}")));
        }
        clean.map_err(told)?;
        let doctor = self.scene.dhow(["doctor"]).run();
        if doctor.code == 0 && doctor.stdout.is_empty() { Ok(()) } else { Err(format!("doctor: {doctor}")) }
    }

    /// `delete --force`, while this process, as the orphans' subreaper, waits for them: the kernel
    /// lets no init end before all of its pid namespace have been waited for.
    fn delete_and_reap(&self, orphans: &[i32]) -> Outcome {
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for pid in orphans {
                        let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            });
            let outcome = self.container.delete_force();
            done.store(true, Ordering::Relaxed);
            outcome
        })
    }

    fn judge(&self, traced: &Traced, deed: Deed) -> Result<(), String> {
        if traced.hung {
            return Err("it hung".into());
        }
        if traced.stderr.contains("panicked") || matches!(traced.code, 134 | 139 | 132) {
            return Err("it panicked".into());
        }
        match deed {
            Deed::Fail(_) if traced.code != 0 && traced.stderr.trim().is_empty() => {
                Err("it failed without a word".into())
            }
            Deed::Fail(_) if traced.code >= 128 && traced.code != 255 => {
                Err("it did not fail by itself".into())
            }
            _ => Ok(()),
        }
    }
}

/// Every syscall with all that can happen there.
fn points_of(all: &[Vec<u64>]) -> Vec<(Point, Deed)> {
    /// How many syscalls the C library and Rust's own start make before `main`. A program that has
    /// no memory even for its stack is ended there, before it can say anything or do harm.
    const BEFORE_MAIN: usize = 14;
    let mut points = Vec::new();
    for (role, syscalls) in all.iter().enumerate() {
        // A role's first syscall comes right behind its exec, or its fork.
        let mut begun = if role == 0 { 0 } else { BEFORE_MAIN };
        for (nth, syscall) in syscalls.iter().enumerate() {
            let point = Point { role, nth, syscall: *syscall };
            points.push((point, Deed::Signal(Signal::SIGKILL)));
            let starved = begun < BEFORE_MAIN && *syscall == libc::SYS_mmap.cast_unsigned();
            let errors = if starved { &[] } else { errors_of(*syscall) };
            points.extend(errors.iter().map(|errno| (point, Deed::Fail(*errno))));
            let execs = [libc::SYS_execve, libc::SYS_execveat].map(i64::cast_unsigned);
            begun = if execs.contains(syscall) { 0 } else { begun + 1 };
        }
    }
    points
}

/// Tries a command at every STRIDE-th of its points.
fn try_all(command: &Command, edit: impl Fn(&mut Config), stride: usize) {
    try_all_with(command, edit, stride, |_| {});
}

fn seed() -> usize {
    from_environment("DHOW_CRASH_SEED", std::process::id() as usize)
}

/// The same, with something done in the scene before.
fn try_all_with(command: &Command, edit: impl Fn(&mut Config), stride: usize, prepare: impl Fn(&Scene)) {
    let stride = from_environment("DHOW_CRASH_STRIDE", stride);
    let seed = seed();
    let scene = Scene::new();
    prepare(&scene);
    let container = scene.container(|c| edit(c.payload(&["sleep", "100"])));
    let mut trial = Trial { scene: &scene, container: &container, command, files: BTreeSet::new() };
    trial.files = names(container.bundle());
    let mut plain = trial.run(None);
    // Twice: the first container of all makes the state directory, and mount points in the rootfs,
    // which stay, as runc's do.
    for again in [true, false] {
        assert_eq!(plain.code, 0, "{}: {}", command.name, plain.stderr);
        let _ = fs::remove_file(container.bundle().join("pid"));
        trial.delete_and_reap(&plain.orphans).ok();
        trial.files = names(container.bundle());
        if again {
            plain = trial.run(None);
        }
    }
    let points = points_of(&plain.syscalls);
    let mut tally = Tally::default();
    for (point, deed) in points.iter().skip(seed % stride).step_by(stride) {
        tally.tried += 1;
        if let Err(what) = trial.attempt(*point, *deed) {
            let one = format!("{} {point:?} {deed:?}: {what}", command.name);
            println!("{one}");
            tally.wrong.push(one);
            if tally.wrong.len() > 60 {
                break;
            }
        }
    }
    println!(
        "{}: syscalls by process {:?}; {} of {} points tried (stride {stride}, seed {seed}), {} leaked or wrong",
        command.name,
        plain.syscalls.iter().map(Vec::len).collect::<Vec<_>>(),
        tally.tried,
        points.len(),
        tally.wrong.len()
    );
    assert!(tally.wrong.is_empty(), "{} points: {:#?}", tally.wrong.len(), tally.wrong);
}

const CREATE: Command = Command {
    name: "create",
    before: Before::Nothing,
    words: &["create", "--bundle", "BUNDLE", "--pid-file", "BUNDLE/pid"],
    after: &[],
};

/// A create with what the usual config has not: hooks, a filter, a user namespace.
fn rich(config: &mut Config) {
    config
        .hook("createRuntime", "true")
        .hook("createContainer", "true")
        .hook("poststop", "true")
        .user_namespace(100_000, 65536)
        .set(
            "/linux/seccomp",
            serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] }),
        );
}

#[test]
fn create() {
    try_all(&CREATE, |_| {}, 40);
}

#[test]
fn create_with_hooks_and_a_user_namespace() {
    try_all(&CREATE, rich, 60);
}

#[test]
fn run_detached() {
    let words = &["run", "--detach", "--bundle", "BUNDLE"];
    try_all(&Command { name: "run", before: Before::Nothing, words, after: &[] }, |_| {}, 60);
}

/// The monitor is watched too, and the calls that it makes.
#[test]
fn run_with_a_monitor() {
    let words = &["run", "--detach", "--bundle", "BUNDLE", "--monitor", "--log-driver", "json-file"];
    try_all(&Command { name: "run --monitor", before: Before::Nothing, words, after: &[] }, |_| {}, 90);
}

/// While its monitor writes down how it ended.
#[test]
fn stop_with_a_monitor() {
    let words = &["stop", "--time", "0"];
    try_all(&Command { name: "stop", before: Before::Monitored, words, after: &[] }, |_| {}, 15);
}

/// The kernel ends a child with its parent only once the child has asked for that: one whose parent was
/// killed before is on its own, and would mount and make directories in a rootfs that is another's by now.
#[test]
fn an_init_that_comes_too_late_makes_nothing() {
    let scene = Scene::new();
    let plain = scene.payload(&["sleep", "100"]);
    let words =
        |c: &Container<'_>| ["create", "--bundle", c.bundle().to_str().unwrap(), c.id()].map(str::to_owned);
    let run = |c: &Container<'_>, deed| run(&scene, &words(c).each_ref().map(String::as_str), None, deed);
    let syscall = libc::SYS_prctl.cast_unsigned();
    let roles = run(&plain, None).syscalls;
    let asks = |made: &Vec<u64>| made.iter().take(4).position(|number| *number == syscall);
    let first = roles.iter().enumerate().skip(1).find_map(|(role, made)| Some((role, asks(made)?)));
    let (role, nth) = first.expect("a child that is tied to its parent");
    let late = scene.payload(&["sleep", "100"]);
    let before = names(&late.rootfs());
    let traced = run(&late, Some((Point { role, nth, syscall }, Deed::Orphan)));
    assert!(traced.code == 137 && !traced.hung, "{}", traced.stderr);
    for pid in traced.orphans {
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL));
    }
    assert_eq!(names(&late.rootfs()), before);
    for container in [plain, late] {
        container.delete_force().ok();
    }
    scene.is_clean();
}

/// While its monitor makes it anew.
#[test]
fn restart_with_a_monitor() {
    let words = &["restart", "--time", "0"];
    try_all(&Command { name: "restart", before: Before::Monitored, words, after: &[] }, |_| {}, 90);
}

fn small_image(scene: &Scene) -> std::path::PathBuf {
    let archive = scene.dir().join("image.tar");
    let layer = Layer::default().directory("etc").file("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    let layer = layer.program("payload", scene.payload_program());
    image::save(&archive, "test", &[layer], &serde_json::json!({ "Cmd": ["/payload", "sleep", "100"] }));
    archive
}

#[test]
fn create_from_an_image() {
    let import = |scene: &Scene| {
        let archive = small_image(scene);
        scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    };
    let words = &["create", "--image", "test"];
    let command = Command { name: "create --image", before: Before::Nothing, words, after: &[] };
    try_all_with(&command, |_| {}, 70, import);
}

/// What an import leaves is taken by the next `image gc`, and keeps no import from success.
#[test]
fn image_import() {
    let stride = from_environment("DHOW_CRASH_STRIDE", 60);
    let scene = Scene::new();
    let archive = small_image(&scene).display().to_string();
    let words = ["image", "import", "-q", archive.as_str()];
    let store = scene.state_dir().join("@images");
    let clear = || {
        let _ = scene.dhow(["image", "rm", "test"]).run();
        scene.dhow(["image", "gc"]).run().ok();
        names(&store)
    };
    run(&scene, &words, None, None);
    let empty = clear();
    let plain = run(&scene, &words, None, None);
    assert_eq!(plain.code, 0, "{}", plain.stderr);
    assert_eq!(clear(), empty);
    let points = points_of(&plain.syscalls);
    let (mut tried, mut wrong) = (0, Vec::new());
    for (point, deed) in points.iter().skip(seed() % stride).step_by(stride) {
        tried += 1;
        let traced = run(&scene, &words, None, Some((*point, *deed)));
        let silent = traced.code != 0 && traced.stderr.trim().is_empty() && matches!(deed, Deed::Fail(_));
        let again = scene.dhow(words).run();
        let verified = scene.dhow(["image", "verify", "test"]).run();
        let left = clear();
        let left: Vec<&String> = left.symmetric_difference(&empty).collect();
        // An allocation that fails ends the program with these words, which is all that it can say; so does
        // a thread that the standard library cannot give its stack for signals.
        let last_words = ["memory allocation of", "failed to allocate an alternative stack"];
        let starved = last_words.iter().any(|words| traced.stderr.contains(words));
        let panicked = !starved && (traced.stderr.contains("panicked") || traced.code == 134);
        if silent || panicked || traced.hung || again.code != 0 || verified.code != 0 || !left.is_empty() {
            println!(
                "import {point:?} {deed:?}: {} {:?} left {left:?}; {again} {verified}",
                traced.code, traced.stderr
            );
            wrong.push(*point);
        }
    }
    println!(
        "image import: {tried} of {} points tried (stride {stride}), {} wrong",
        points.len(),
        wrong.len()
    );
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn start() {
    try_all(&Command { name: "start", before: Before::Created, words: &["start"], after: &[] }, |_| {}, 15);
}

#[test]
fn exec() {
    try_all(&on_running("exec", &["exec"], &["/payload", "echo", "x"]), |_| {}, 30);
}

#[test]
fn exec_detached() {
    try_all(&on_running("exec -d", &["exec", "-d"], &["/payload", "sleep", "50"]), |_| {}, 30);
}

#[test]
fn pause_and_resume() {
    try_all(&on_running("pause", &["pause"], &[]), |_| {}, 15);
    try_all(&Command { name: "resume", before: Before::Paused, words: &["resume"], after: &[] }, |_| {}, 15);
}

#[test]
fn update() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    try_all(&on_running("update", &["update", "--pids-limit", "50", "--memory", "64m"], &[]), |_| {}, 20);
}

#[test]
fn kill() {
    try_all(&on_running("kill", &["kill"], &["KILL"]), |_| {}, 10);
}

#[test]
fn delete() {
    try_all(&Command { name: "delete", before: Before::Stopped, words: &["delete"], after: &[] }, |_| {}, 15);
}

#[test]
fn delete_with_force() {
    try_all(&on_running("delete --force", &["delete", "--force"], &[]), |_| {}, 15);
}
