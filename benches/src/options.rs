//! The command line.

use std::fmt;
use std::path::PathBuf;

/// Which cgroup file systems are mounted while measuring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only the v1 hierarchies.
    V1,
    /// Only cgroup2.
    V2,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Layout::V1 { "v1" } else { "v2" })
    }
}

/// Every scenario, in the order in which they run.
pub const SCENARIOS: [(&str, &str); 11] = [
    ("run", "run of /bin/true in the plain bundle, in a loop"),
    ("docker", "the same with Docker's config (--seccomp adds its profile)"),
    ("steps", "create, start, state, exec, kill, delete, each by itself"),
    ("limits", "create with all of Docker's limits and with none; pause, resume, update"),
    ("exec", "exec of /bin/true into a running container: wall and processor time"),
    ("parallel", "100 containers, 1, 2 and 8 at a time"),
    ("list", "list and state with 1000 containers"),
    ("usage", "peak RSS, syscalls and clones of run"),
    ("memory", "smallest memory limit under which run /bin/true works (v1)"),
    ("isolated", "run and exec with 0.3 s between them (v1)"),
    ("layers", "what a root of 30 layers adds to run and create"),
];

/// What to measure, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Fewer runs: for a first look.
    pub quick: bool,
    /// Only these scenarios.
    pub only: Vec<String>,
    /// Only this layout.
    pub layout: Option<Layout>,
    /// Docker's seccomp profile in the `docker` scenario.
    pub seccomp: bool,
    /// How often each contestant runs; `None` for the scenario's usual number.
    pub runs: Option<usize>,
    /// An earlier JSON to compare with.
    pub compare: Option<PathBuf>,
    /// The binary under test.
    pub dhow: PathBuf,
    /// Where results go.
    pub out: PathBuf,
    /// Images are measured, and nothing else.
    pub images: bool,
    /// This process takes one sample of a script.
    pub sample: Option<String>,
    /// This process measures one layout for another one, and writes its results here.
    pub worker: Option<(Layout, PathBuf)>,
}

impl Options {
    /// Parses the arguments; the error is what to print.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let root = crate::workshop::workspace();
        let mut options = Options {
            quick: false,
            only: Vec::new(),
            layout: None,
            seccomp: false,
            runs: None,
            compare: None,
            dhow: root.join("bin/dhow"),
            out: root.join("target/bench"),
            images: false,
            sample: None,
            worker: None,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value\n{}", usage()));
            match arg.as_str() {
                "--quick" => options.quick = true,
                "--seccomp" => options.seccomp = true,
                "--only" => options.only.extend(value()?.split(',').map(str::to_owned)),
                "--layout" => options.layout = Some(layout(&value()?)?),
                "--runs" => options.runs = Some(value()?.parse().map_err(|_| "--runs needs a number")?),
                "--compare" => options.compare = Some(value()?.into()),
                "--dhow" => options.dhow = value()?.into(),
                "--out" => options.out = value()?.into(),
                "--images" => options.images = true,
                "--sample" => options.sample = Some(value()?),
                "--worker" => options.worker = Some((layout(&value()?)?, value()?.into())),
                _ => return Err(usage()),
            }
        }
        match options.only.iter().find(|name| !SCENARIOS.iter().any(|(known, _)| known == name)) {
            Some(name) => Err(format!("there is no scenario {name}\n{}", usage())),
            None => Ok(options),
        }
    }

    /// The layouts to measure.
    pub fn layouts(&self) -> Vec<Layout> {
        self.layout.map_or_else(|| vec![Layout::V2, Layout::V1], |one| vec![one])
    }

    /// Whether a scenario is to be run.
    pub fn wants(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == scenario)
    }

    /// How often, where `usual` is the number for a full run.
    pub fn runs(&self, usual: usize) -> usize {
        self.runs.unwrap_or(if self.quick { (usual / 5).max(5) } else { usual })
    }

    /// The arguments that make a worker of this program.
    pub fn for_worker(&self, layout: Layout, output: &std::path::Path) -> Vec<String> {
        let text = |path: &std::path::Path| path.display().to_string();
        let mut args = vec!["--worker".to_owned(), layout.to_string(), text(output)];
        args.extend(["--dhow".to_owned(), text(&self.dhow), "--out".to_owned(), text(&self.out)]);
        for (flag, set) in [("--quick", self.quick), ("--seccomp", self.seccomp)] {
            args.extend(set.then(|| flag.to_owned()));
        }
        if let Some(runs) = self.runs {
            args.extend(["--runs".to_owned(), runs.to_string()]);
        }
        if !self.only.is_empty() {
            args.extend(["--only".to_owned(), self.only.join(",")]);
        }
        args
    }
}

fn layout(name: &str) -> Result<Layout, String> {
    match name {
        "v1" => Ok(Layout::V1),
        "v2" => Ok(Layout::V2),
        _ => Err(format!("a layout is v1 or v2, not {name}")),
    }
}

fn usage() -> String {
    let mut text = String::from(
        "usage: dhow-bench [--images] [--quick] [--runs N] [--only SCENARIO,…] [--layout v1|v2] [--seccomp]\n\
         \x20                 [--compare OLD.json] [--dhow FILE] [--out DIR]\nscenarios:\n",
    );
    for (name, what) in SCENARIOS {
        text.push_str(&format!("  {name:<9} {what}\n"));
    }
    text
}
