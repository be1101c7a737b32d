//! What the tests of cgroups share.
#![allow(dead_code, clippy::missing_panics_doc)]

use dhow::cgroups::{Driver, Manager, Record};
use dhow::spec::Resources;
use dhow::sys::clone::before_exec;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// A container's cgroup that is removed at the end of the test, also of one that fails.
pub struct Test {
    pub manager: Manager,
    pub children: Vec<Child>,
}

impl Drop for Test {
    fn drop(&mut self) {
        let _ = self.manager.kill_all(9);
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.manager.destroy();
    }
}

pub fn name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("dhow-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

pub fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A cgroup as this host has them.
pub fn usual() -> Option<Test> {
    if !can_run() {
        return None;
    }
    let mut manager = Manager::plan(Driver::Cgroupfs, None, &name(), false).unwrap();
    manager.create().unwrap();
    Some(Test { manager, children: Vec::new() })
}

/// A cgroup on v1, or nothing on a host without.
pub fn v1() -> Option<Test> {
    let test = usual()?;
    if matches!(test.manager, Manager::V1(_)) {
        return Some(test);
    }
    eprintln!("skipped: this host has no cgroup v1");
    None
}

/// A cgroup on cgroup v2, also on a hybrid host.
pub fn v2() -> Option<Test> {
    if !can_run() {
        return None;
    }
    let mount =
        ["/sys/fs/cgroup", UNIFIED].into_iter().find(|m| Path::new(m).join("cgroup.controllers").exists());
    let Some(mount) = mount else {
        eprintln!("skipped: no cgroup2 is mounted");
        return None;
    };
    let record = format!(r#"{{"kind":"v2","nodes":[{{"m":"{mount}","p":"/{}"}}]}}"#, name());
    let record: Record = serde_json::from_str(&record).unwrap();
    let mut manager = Manager::from_record(&record);
    manager.create().unwrap();
    Some(Test { manager, children: Vec::new() })
}

impl Test {
    /// Runs a shell command inside the cgroup.
    pub fn spawn(&mut self, script: &str) -> &mut Child {
        let placement = self.manager.placement().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        before_exec(&mut command, move || {
            placement.enter_self_fully().map_err(|error| error.errno.unwrap_or(libc::EINVAL))
        });
        self.children.push(command.spawn().unwrap());
        self.children.last_mut().unwrap()
    }

    /// Runs a shell command inside to its end: whether it succeeded, and what it wrote.
    pub fn run(&mut self, script: &str) -> (bool, String) {
        self.spawn(script);
        let output = self.children.pop().unwrap().wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }

    pub fn dirs(&self) -> Vec<String> {
        self.manager.record().directories()
    }
}

pub fn resources(json: &str) -> Resources {
    serde_json::from_str(json).unwrap()
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    // As many times as long on an emulated machine.
    let slower = std::env::var("DHOW_SLOWER").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(10) * slower, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub const BUSY: &str = "while :; do :; done";
