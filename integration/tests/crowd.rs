//! Many containers and many commands at a time on the same ids: nothing hangs, no state is wrong,
//! and nothing is left. `DHOW_CROWD` is how many containers there are, `DHOW_CROWD_SECONDS` how long
//! it goes on, `DHOW_CRASH_SEED` where the dice begin; `make test-crash` asks for 1000 and a minute.

use dhow_integration::{Container, Outcome, Scene, holds_within, wait};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

const AT_ONCE: usize = 16;

fn from_environment(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// xorshift64: dice that can be thrown again.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % sides
    }
}

/// What a command may say when another one was faster: it is in another state, or not there.
const EXPECTED: [&str; 15] = [
    "does not exist",
    "already exists",
    "cannot start",
    "not running",
    "not paused",
    "already paused",
    "not stopped",
    "paused container",
    "stopped container",
    "another command is working",
    "does not wait for start",
    "it ended",
    "ended without a word",
    "was killed",
    // On cgroup v2 a process that is ending, and waits for another to be reaped, never stands still.
    "still not frozen",
];

/// What a command does in a state (`None`: no container) that nobody else changes meanwhile: whether it
/// succeeds, and what state comes of it.
fn model(state: Option<&'static str>, verb: &str) -> (bool, Option<&'static str>) {
    match (verb, state) {
        ("create", None) => (true, Some("created")),
        ("start", Some("created")) => (true, Some("running")),
        ("exec", Some("created" | "running")) => (true, state),
        ("pause", Some("created")) => (true, Some("paused before start")),
        ("pause", Some("running")) => (true, Some("paused")),
        ("resume", Some("paused before start")) => (true, Some("created")),
        ("resume", Some("paused")) => (true, Some("running")),
        ("kill", Some("created" | "running")) => (true, Some("exited")),
        ("delete", Some("created" | "exited")) | ("force", _) => (true, None),
        _ => (false, state),
    }
}

/// Some commands on a container that this one has for itself: each must do what the model says, and
/// leave the state that the model says, with all the others at work beside it.
fn exact_sequence(scene: &Scene, c: &Container<'_>, dice: &mut Dice) -> usize {
    const VERBS: [&str; 9] =
        ["create", "create", "start", "start", "exec", "pause", "resume", "kill", "delete"];
    let mut state = None;
    let mut story = Vec::new();
    let run = |verb: &str| match verb {
        "create" => scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).run(),
        "exec" => c.command(&["exec"]).args(["/payload", "exit", "0"]).run(),
        "kill" => c.command(&["kill"]).args(["KILL"]).run(),
        "force" => c.command(&["delete", "--force"]).run(),
        verb => c.command(&[verb]).run(),
    };
    run("force").ok();
    for _ in 0..8 {
        let verb = VERBS[dice.throw(VERBS.len())];
        if verb == "kill" && state.is_some_and(|word: &str| word.starts_with("paused")) {
            // On cgroup v1 it dies when it is thawed, on v2 at once.
            continue;
        }
        let (succeeds, next) = model(state, verb);
        story.push(verb);
        let outcome = run(verb);
        assert_eq!(outcome.code == 0, succeeds, "{story:?} from {state:?}: {outcome}");
        let word = || {
            let seen = c.command(&["state"]).run();
            if seen.code == 0 { Some(seen.json()["state"].as_str().unwrap().to_owned()) } else { None }
        };
        let wanted = next.map(|word| word.split(' ').next().unwrap());
        // A killed one takes a moment to go.
        let settled = match verb {
            "kill" => holds_within(wait::PATIENCE, || word().as_deref() == wanted),
            _ => word().as_deref() == wanted,
        };
        assert!(settled, "{story:?}: {:?} where {next:?} should be", word());
        state = next;
    }
    run("force").ok();
    story.len()
}

fn any_command(scene: &Scene, c: &Container<'_>, dice: &mut Dice) -> Outcome {
    match dice.throw(12) {
        0..=2 => scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).run(),
        3..=4 => c.command(&["start"]).run(),
        5 => c.command(&["exec"]).args(["/payload", "exit", "0"]).run(),
        6 => c.command(&["pause"]).run(),
        7 => c.command(&["resume"]).run(),
        8 => c.command(&["kill"]).args(["KILL"]).run(),
        9 => c.command(&["state"]).run(),
        10 => c.command(&["delete"]).run(),
        _ => c.command(&["delete", "--force"]).run(),
    }
}

#[test]
fn sixteen_commands_at_a_time_on_shared_containers() {
    let containers = from_environment("DHOW_CROWD", 60);
    let time = Duration::from_secs(from_environment("DHOW_CROWD_SECONDS", 8) as u64);
    let seed = from_environment("DHOW_CRASH_SEED", std::process::id() as usize);
    println!("{containers} containers, {AT_ONCE} commands at a time, {time:?}, seed {seed}");
    let scene = Scene::new();
    let all: Vec<_> = (0..containers).map(|_| scene.payload(&["sleep", "1000"])).collect();
    let (done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    // Who needs a container for a whole sequence holds it for itself.
    let held: Vec<RwLock<()>> = all.iter().map(|_| RwLock::new(())).collect();
    let is_owned: Vec<AtomicBool> = all.iter().map(|_| AtomicBool::new(false)).collect();
    let exact = AtomicUsize::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // The containers' subreaper is this process: without it they would stay zombies, and their pid
        // namespaces with them.
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                reap_orphans(scene.tag());
                std::thread::sleep(Duration::from_millis(20));
                if begun.elapsed() > time {
                    thaw(&all, &is_owned);
                }
            }
        });
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                let (all, scene, done, failed) = (&all, &scene, &done, &failed);
                let (held, is_owned, exact) = (&held, &is_owned, &exact);
                scope.spawn(move || {
                    let mut dice = Dice((seed + worker * 7919 + 1) as u64 * 0x9e37_79b9);
                    while begun.elapsed() < time {
                        let number = dice.throw(all.len());
                        let c = &all[number];
                        if dice.throw(25) == 0 {
                            let _own = held[number].write().unwrap_or_else(PoisonError::into_inner);
                            is_owned[number].store(true, Ordering::SeqCst);
                            // When the time is over, all that nobody owned then are thawed by another.
                            if begun.elapsed() < time {
                                exact.fetch_add(exact_sequence(scene, c, &mut dice), Ordering::Relaxed);
                            }
                            is_owned[number].store(false, Ordering::SeqCst);
                            continue;
                        }
                        let _shared = held[number].read().unwrap_or_else(PoisonError::into_inner);
                        let outcome = any_command(scene, c, &mut dice);
                        done.fetch_add(1, Ordering::Relaxed);
                        if outcome.code != 0 {
                            failed.fetch_add(1, Ordering::Relaxed);
                            let text = outcome.stderr.to_lowercase();
                            let was_killed = outcome.command.contains(" exec ") && outcome.code == 137;
                            let expected = was_killed || EXPECTED.iter().any(|words| text.contains(words));
                            assert!(expected && !text.contains("panicked"), "seed {seed}: {outcome}");
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // One thread more than there are commands, so that frozen ones are found and freed too.
        for chunk in all.chunks(all.len().div_ceil(AT_ONCE)) {
            scope.spawn(move || {
                for c in chunk {
                    c.delete_force().ok();
                }
            });
        }
        let clean = wait::PATIENCE * 4;
        let is_clean = holds_within(clean, || scene.leaks().is_empty());
        over.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok), "seed {seed}: see above");
        assert!(is_clean, "seed {seed}: {:#?}", scene.leaks());
    });
    let exact = exact.into_inner();
    println!("{} commands, {} of them refused", done.into_inner(), failed.into_inner());
    println!("{exact} commands more whose outcome and state were foretold");
    assert!(exact > 0, "seed {seed}");
}

/// An exec into a container that somebody then paused waits until it is thawed, and who wants the container
/// for itself waits for the exec.
fn thaw(all: &[Container<'_>], is_owned: &[AtomicBool]) {
    let shared = all.iter().zip(is_owned).filter(|(_, own)| !own.load(Ordering::SeqCst));
    shared.for_each(|(c, _)| drop(c.command(&["resume"]).run()));
}

fn reap_orphans(tag: &str) {
    use nix::sys::wait::{WaitPidFlag, waitpid};
    let me = std::process::id();
    let children = std::fs::read_dir(format!("/proc/{me}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .collect::<String>();
    for pid in children.split_whitespace() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        // A command of the test's own is its thread's to wait for; a container's processes are in its
        // cgroup.
        if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')) && cgroup.contains(tag) {
            let _ = waitpid(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Some(WaitPidFlag::WNOHANG));
        }
    }
}
