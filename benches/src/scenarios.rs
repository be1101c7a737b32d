//! What is measured.

use crate::bundle::{Bundle, seccomp_profile};
use crate::contestant::{Contestant, path};
use crate::measure::{Shuffle, sample};
use crate::options::{Layout, Options};
use crate::stats::{Measured, Report};
use crate::workshop::{Scratch, peers};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Everything a scenario needs.
struct Bench<'a> {
    options: &'a Options,
    layout: Layout,
    scratch: &'a Scratch,
    contestants: Vec<Contestant>,
    plain: Bundle,
    docker: Bundle,
    results: Vec<Measured>,
}

/// Samples by scenario's part and contestant.
#[derive(Default)]
struct Samples(BTreeMap<(usize, String, &'static str, &'static str), Vec<f64>>);

impl Samples {
    /// Adds one; `order` sorts the parts in the tables.
    fn add(&mut self, order: usize, part: &str, who: &'static str, unit: &'static str, value: f64) {
        self.0.entry((order, part.to_owned(), who, unit)).or_default().push(value);
    }
}

/// Measures one layout and writes the results to `output`.
pub fn run_all(options: &Options, layout: Layout, output: &Path) -> Result<(), String> {
    // Containers that were created or detached fall to this process, which waits for them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| e.to_string())?;
    let scratch = Scratch::new(layout)?;
    let seccomp = if options.seccomp { Some(seccomp_profile(&peers())?) } else { None };
    let mut bench = Bench {
        options,
        layout,
        scratch: &scratch,
        contestants: Contestant::all(options, layout, &scratch)?,
        plain: Bundle::plain(scratch.dir.join("plain"))?,
        docker: Bundle::docker(scratch.dir.join("docker"), layout, seccomp)?,
        results: Vec::new(),
    };
    bench.warm_up()?;
    type Scenario = fn(&mut Bench) -> Result<(), String>;
    let scenarios: [(&str, Scenario); 11] = [
        ("run", |b| b.run("run", false, Duration::ZERO, 100)),
        ("docker", |b| {
            b.run(if b.options.seccomp { "docker+seccomp" } else { "docker" }, true, Duration::ZERO, 100)
        }),
        ("steps", |b| b.steps()),
        ("limits", |b| b.limits()),
        ("exec", |b| b.exec("exec", Duration::ZERO, 100)),
        ("parallel", |b| b.parallel()),
        ("list", |b| b.list()),
        ("usage", |b| b.usage()),
        ("memory", |b| b.memory()),
        ("isolated", |b| b.isolated()),
        ("layers", |b| b.layers()),
    ];
    for (name, scenario) in scenarios {
        if options.wants(name) {
            eprintln!("{layout} {name}");
            scenario(&mut bench)?;
        }
    }
    Report { machine: Vec::new(), results: std::mem::take(&mut bench.results) }.write(output)
}

impl Bench<'_> {
    /// Every contestant must be able to run the plain bundle: dhow's failure is the bench's,
    /// a peer's is told and the peer left out.
    fn warm_up(&mut self) -> Result<(), String> {
        let mut able = Vec::new();
        for contestant in std::mem::take(&mut self.contestants) {
            match self.run_once(&contestant, false, "warm-up") {
                Ok(_) => able.push(contestant),
                Err(e) if matches!(contestant.name, "dhow" | "floor") => {
                    return Err(format!("{}: {e}", contestant.name));
                }
                Err(e) => eprintln!("{} is left out with cgroup {}: {e}", contestant.name, self.layout),
            }
        }
        self.contestants = able;
        Ok(())
    }

    /// The cgroup of a container, relative to the mounts.
    fn cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.scratch.cgroup)
    }

    fn keep(&mut self, samples: Samples) {
        let layout = self.layout.to_string();
        for ((_, part, who, unit), values) in samples.0 {
            self.results.extend(Measured::of(&part, &layout, who, unit, &values));
        }
    }

    fn bundle(&self, docker: bool) -> &Bundle {
        if docker { &self.docker } else { &self.plain }
    }

    fn run_once(&self, who: &Contestant, docker: bool, id: &str) -> Result<crate::measure::Sample, String> {
        let bundle = self.bundle(docker);
        let cgroup = self.cgroup(id);
        bundle.write(&cgroup, |_| ());
        sample(who.run(bundle, id, &cgroup))
    }

    /// `run` of /bin/true, `pause` after each.
    fn run(&mut self, name: &str, docker: bool, pause: Duration, usual: usize) -> Result<(), String> {
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        // The floor knows the plain bundle only.
        let who: Vec<&Contestant> = self.contestants.iter().filter(|c| !docker || !c.is_floor()).collect();
        for _ in 0..self.options.runs(usual) {
            for at in shuffle.order(who.len()) {
                let one = self.run_once(who[at], docker, "one")?;
                samples.add(0, name, who[at].name, "ms", one.wall);
                samples.add(1, &format!("{name}/cpu"), who[at].name, "ms", one.cpu);
                std::thread::sleep(pause);
            }
        }
        self.keep(samples);
        Ok(())
    }

    /// Creates a container whose process sleeps; answers its pid.
    fn create(&self, who: &Contestant, docker: bool, id: &str) -> Result<(i32, f64), String> {
        self.create_edited(who, docker, id, |_| ())
    }

    fn create_edited(
        &self,
        who: &Contestant,
        docker: bool,
        id: &str,
        edit: impl FnOnce(&mut dhow_integration::Config),
    ) -> Result<(i32, f64), String> {
        let bundle = self.bundle(docker);
        bundle.write(&self.cgroup(id), |c| {
            c.args(&["/bin/sleep", "1000"]);
            edit(c);
        });
        let pid_file = self.scratch.dir.join("pid");
        let words = ["create", "--bundle", path(&bundle.dir), "--pid-file", path(&pid_file), id];
        let wall = sample(who.command(&words))?.wall;
        let pid = fs::read_to_string(&pid_file).map_err(|e| format!("the pid file of {}: {e}", who.name))?;
        Ok((pid.trim().parse().map_err(|_| format!("the pid file of {} holds {pid:?}", who.name))?, wall))
    }

    fn steps(&mut self) -> Result<(), String> {
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        let who: Vec<&Contestant> = self.contestants.iter().filter(|c| !c.is_floor()).collect();
        for _ in 0..self.options.runs(50) {
            for at in shuffle.order(who.len()) {
                let one = who[at];
                let mut add = |order, part: &str, wall| {
                    samples.add(order, &format!("steps/{part}"), one.name, "ms", wall);
                };
                let (pid, wall) = self.create(one, true, "step")?;
                add(0, "create", wall);
                for (order, words) in [
                    ["start", "step"].as_slice(),
                    &["state", "step"],
                    &["exec", "step", "/bin/true"],
                    &["kill", "step", "KILL"],
                ]
                .into_iter()
                .enumerate()
                {
                    add(order + 1, words[0], sample(one.command(words))?.wall);
                }
                wait_for(pid)?;
                add(5, "delete", sample(one.command(&["delete", "step"]))?.wall);
            }
        }
        self.keep(samples);
        Ok(())
    }

    /// What limits add to create, and what it takes to change a running container: all of Docker's
    /// limits and device rules against none, one after the other.
    fn limits(&mut self) -> Result<(), String> {
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        let with = self.docker.resources();
        let who: Vec<&Contestant> = self.contestants.iter().filter(|c| !c.is_floor()).collect();
        for _ in 0..self.options.runs(50) {
            for at in shuffle.order(who.len()) {
                let one = who[at];
                let mut add = |order, part: &str, wall| {
                    samples.add(order, &format!("limits/{part}"), one.name, "ms", wall);
                };
                for (order, part) in ["create without", "create with"].into_iter().enumerate() {
                    let resources = if order == 0 { serde_json::json!({}) } else { with.clone() };
                    let edit = |c: &mut dhow_integration::Config| {
                        c.set("/linux/resources", resources);
                    };
                    let (pid, wall) = self.create_edited(one, false, "limits", edit)?;
                    add(order, part, wall);
                    if order == 1 {
                        sample(one.command(&["start", "limits"]))?;
                        let update = ["update", "--pids-limit", "50", "limits"];
                        for (order, words) in [["pause", "limits"].as_slice(), &["resume", "limits"], &update]
                            .into_iter()
                            .enumerate()
                        {
                            // Only v1 has the pids controller here.
                            if words[0] != "update" || self.layout == Layout::V1 {
                                add(order + 2, words[0], sample(one.command(words))?.wall);
                            }
                        }
                    }
                    sample(one.command(&["kill", "limits", "KILL"]))?;
                    wait_for(pid)?;
                    sample(one.command(&["delete", "limits"]))?;
                }
            }
        }
        self.keep(samples);
        Ok(())
    }

    /// exec into a running container of each contestant; the floor enters dhow's.
    fn exec(&mut self, name: &str, pause: Duration, usual: usize) -> Result<(), String> {
        let runtimes: Vec<&Contestant> = self.contestants.iter().filter(|c| !c.is_floor()).collect();
        let mut pids = BTreeMap::new();
        for who in &runtimes {
            let id = format!("exec-{}", who.name);
            let (pid, _) = self.create(who, false, &id)?;
            sample(who.command(&["start", &id]))?;
            pids.insert(who.name, pid);
        }
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        for _ in 0..self.options.runs(usual) {
            for at in shuffle.order(self.contestants.len()) {
                let who = &self.contestants[at];
                let owner = if who.is_floor() { "dhow" } else { who.name };
                let id = format!("exec-{owner}");
                let one = sample(who.exec(&id, pids[owner], &self.cgroup(&id)))?;
                samples.add(0, name, who.name, "ms", one.wall);
                samples.add(1, &format!("{name}/cpu"), who.name, "ms", one.cpu);
                std::thread::sleep(pause);
            }
        }
        for who in &runtimes {
            let id = format!("exec-{}", who.name);
            sample(who.command(&["kill", &id, "KILL"]))?;
            wait_for(pids[who.name])?;
            sample(who.command(&["delete", &id]))?;
        }
        self.keep(samples);
        Ok(())
    }

    fn isolated(&mut self) -> Result<(), String> {
        if self.layout == Layout::V2 {
            return Ok(());
        }
        let pause = Duration::from_millis(300);
        self.run("isolated/run", false, pause, 50)?;
        self.exec("isolated/exec", pause, 50)
    }

    /// What a root of 30 layers adds to one that is a directory: `run` and `create` of both, one after
    /// the other. Only dhow mounts layers itself.
    fn layers(&mut self) -> Result<(), String> {
        const LAYERS: usize = 30;
        let layered = Bundle::plain(self.scratch.dir.join("layered"))?;
        let who = self.contestants.iter().find(|c| c.name == "dhow").ok_or("dhow is not there")?;
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        for _ in 0..self.options.runs(100) {
            for at in shuffle.order(2) {
                let all = [(&self.plain, "a directory"), (&layered, "30 layers")];
                let (bundle, part) = all[at];
                let cgroup = self.cgroup("layers");
                let layers = if at == 1 { LAYERS } else { 0 };
                bundle.write(&cgroup, |_| ());
                bundle.layer(layers)?;
                let one = sample(who.run(bundle, "layers", &cgroup))?;
                samples.add(at, &format!("layers/run {part}"), who.name, "ms", one.wall);
                bundle.write(&cgroup, |c| {
                    c.args(&["/bin/sleep", "1000"]);
                });
                bundle.layer(layers)?;
                let pid_file = self.scratch.dir.join("pid");
                let words =
                    ["create", "--bundle", path(&bundle.dir), "--pid-file", path(&pid_file), "layers"];
                samples.add(
                    at + 2,
                    &format!("layers/create {part}"),
                    who.name,
                    "ms",
                    sample(who.command(&words))?.wall,
                );
                let pid = fs::read_to_string(&pid_file).map_err(|e| e.to_string())?;
                sample(who.command(&["kill", "layers", "KILL"]))?;
                wait_for(pid.trim().parse().map_err(|_| pid.clone())?)?;
                sample(who.command(&["delete", "layers"]))?;
            }
        }
        self.keep(samples);
        Ok(())
    }

    /// 100 runs, so many at a time: the time for all.
    fn parallel(&mut self) -> Result<(), String> {
        const ALL: usize = 100;
        let mut samples = Samples::default();
        let mut shuffle = Shuffle::new();
        // Containers at the same time need bundles of their own.
        let bundles: Vec<Bundle> = (0..8)
            .map(|n| Bundle::plain(self.scratch.dir.join(format!("parallel-{n}"))))
            .collect::<Result<_, _>>()?;
        for (order, workers) in [1, 2, 8].into_iter().enumerate() {
            for _ in 0..self.options.runs(5).min(5) {
                for at in shuffle.order(self.contestants.len()) {
                    let who = &self.contestants[at];
                    let wall = self.all_at(who, &bundles[..workers], ALL)?;
                    samples.add(order, &format!("parallel/100 by {workers}"), who.name, "ms", wall);
                }
            }
        }
        self.keep(samples);
        Ok(())
    }

    /// Runs `all` containers, one worker per bundle; answers the time for all.
    fn all_at(&self, who: &Contestant, bundles: &[Bundle], all: usize) -> Result<f64, String> {
        let next = AtomicUsize::new(0);
        for (n, bundle) in bundles.iter().enumerate() {
            bundle.write(&self.cgroup(&format!("p{n}")), |_| ());
        }
        let start = Instant::now();
        let outcomes: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (bundles.iter().enumerate())
                .map(|(n, bundle)| {
                    let (next, id) = (&next, format!("p{n}"));
                    scope.spawn(move || {
                        while next.fetch_add(1, Ordering::Relaxed) < all {
                            sample(who.run(bundle, &id, &self.cgroup(&id)))?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker does not panic")).collect()
        });
        outcomes.into_iter().collect::<Result<(), String>>()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// list and state among many containers, which have ended but not been deleted.
    fn list(&mut self) -> Result<(), String> {
        let many = if self.options.quick { 100 } else { 1000 };
        let runtimes: Vec<&Contestant> = self.contestants.iter().filter(|c| !c.is_floor()).collect();
        let mut samples = Samples::default();
        for who in runtimes {
            for n in 0..many {
                let id = format!("many-{n}");
                let (pid, _) = self.create(who, false, &id)?;
                sample(who.command(&["kill", &id, "KILL"]))?;
                wait_for(pid)?;
            }
            for _ in 0..self.options.runs(20) {
                samples.add(
                    0,
                    &format!("list of {many}"),
                    who.name,
                    "ms",
                    sample(who.command(&["list"]))?.wall,
                );
                let state = sample(who.command(&["state", "many-50"]))?.wall;
                samples.add(1, &format!("state among {many}"), who.name, "ms", state);
            }
            for n in 0..many {
                sample(who.command(&["delete", &format!("many-{n}")]))?;
            }
        }
        self.keep(samples);
        Ok(())
    }

    fn usage(&mut self) -> Result<(), String> {
        let mut samples = Samples::default();
        let floor = self.options.out.join("floor");
        for who in &self.contestants {
            let cgroup = self.cgroup("usage");
            self.plain.write(&cgroup, |_| ());
            let run = who.run(&self.plain, "usage", &cgroup);
            for _ in 0..self.options.runs(10) {
                // The small spawner: the kernel counts its own peak as the child's too.
                let out =
                    wrap(Command::new(&floor), &["measure"], &run).output().map_err(|e| e.to_string())?;
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                let rss = said.lines().last().and_then(|l| l.split(' ').next()?.parse::<f64>().ok());
                samples.add(0, "peak RSS", who.name, "KiB", rss.ok_or(format!("{}: {said}", who.name))?);
            }
            let trace = self.scratch.dir.join("strace");
            let words = ["-f", "-c", "-U", "calls,name", "-o", path(&trace)];
            let status = wrap(Command::new("strace"), &words, &run).status();
            if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
                eprintln!("{}: syscalls are not counted: strace answered {status:?}", who.name);
                continue;
            }
            let table = fs::read_to_string(&trace).map_err(|e| e.to_string())?;
            samples.add(1, "syscalls", who.name, "", count(&table, &["total"]));
            samples.add(2, "clones", who.name, "", count(&table, &["clone", "clone3", "fork", "vfork"]));
        }
        self.keep(samples);
        Ok(())
    }

    /// Bisects the limit between one that fails and one that works.
    fn memory(&mut self) -> Result<(), String> {
        if self.layout == Layout::V2 {
            return Ok(());
        }
        let mut samples = Samples::default();
        for who in self.contestants.iter().filter(|c| !c.is_floor()) {
            let (mut fails, mut works) = (0, 16 * 1024);
            // A limit under which it works must work three times: reclaim has its luck.
            let good = |kib: u64| {
                (0..3).all(|_| {
                    let cgroup = self.cgroup("memory");
                    self.plain.write(&cgroup, |c| {
                        c.set("/linux/resources/memory", serde_json::json!({ "limit": kib * 1024 }));
                    });
                    let ok = sample(who.run(&self.plain, "memory", &cgroup)).is_ok();
                    if !ok {
                        let _ = sample(who.command(&["delete", "--force", "memory"]));
                    }
                    ok
                })
            };
            if !good(works) {
                return Err(format!("{}: run with a limit of 16 MiB fails", who.name));
            }
            while works - fails > 4 {
                let middle = u64::midpoint(works, fails);
                if good(middle) { works = middle } else { fails = middle }
            }
            #[allow(clippy::cast_precision_loss)]
            samples.add(0, "smallest memory limit", who.name, "KiB", works as f64);
        }
        self.keep(samples);
        Ok(())
    }
}

/// `command` run by another program.
fn wrap(mut wrapper: Command, words: &[&str], command: &Command) -> Command {
    wrapper.args(words).arg(command.get_program()).args(command.get_args());
    wrapper.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    wrapper
}

/// The sum of these lines of strace's table of calls and names.
fn count(table: &str, names: &[&str]) -> f64 {
    let rows = table.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    rows.filter(|(_, name)| names.contains(&name.trim()))
        .filter_map(|(calls, _)| calls.parse::<f64>().ok())
        .sum()
}

/// Waits for a container's process, which fell to this process when its runtime ended.
fn wait_for(pid: i32) -> Result<(), String> {
    waitpid(Pid::from_raw(pid), None).map(|_| ()).map_err(|e| format!("wait for {pid}: {e}"))
}
