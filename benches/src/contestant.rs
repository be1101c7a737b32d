//! Who is measured: runtimes, and the floor.

use crate::bundle::Bundle;
use crate::options::{Layout, Options};
use crate::workshop::{Scratch, peers};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A runtime, or the floor.
#[derive(Debug, Clone)]
pub struct Contestant {
    /// Its name in the tables.
    pub name: &'static str,
    binary: PathBuf,
    root: PathBuf,
    layout: Layout,
}

impl Contestant {
    /// All that are there. dhow and the floor must be; a peer that is not is told on stderr.
    pub fn all(options: &Options, layout: Layout, scratch: &Scratch) -> Result<Vec<Self>, String> {
        let peers = peers().join("bin");
        let places = [
            ("floor", options.out.join("floor")),
            ("dhow", options.dhow.clone()),
            ("crun-static", peers.join("crun-static")),
            ("crun", peers.join("crun")),
            ("runc", peers.join("runc")),
        ];
        let mut found = Vec::new();
        for (name, binary) in places {
            if binary.is_file() {
                found.push(Contestant { name, binary, root: scratch.state.join(name), layout });
            } else if matches!(name, "floor" | "dhow") {
                return Err(format!("{} is not there: run `make build`", binary.display()));
            } else if name != "crun-static" {
                eprintln!(
                    "{name} is left out: {} is not there (integration/peers.sh bench)",
                    binary.display()
                );
            }
        }
        Ok(found)
    }

    /// Whether this is the floor, which only knows run and exec.
    pub fn is_floor(&self) -> bool {
        self.name == "floor"
    }

    /// A command of it, silent, with its own state root.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        if !self.is_floor() {
            command.arg("--root").arg(&self.root);
        }
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `run` of the bundle under `id`. Its config must have been written for `cgroup`.
    pub fn run(&self, bundle: &Bundle, id: &str, cgroup: &str) -> Command {
        if self.is_floor() {
            let layout = self.layout.to_string();
            return self.command(&["run", &layout, path(&bundle.rootfs()), cgroup, "/bin/true"]);
        }
        self.command(&["run", "--bundle", path(&bundle.dir), id])
    }

    /// `exec` of /bin/true into the container `id`, whose process is `pid`.
    pub fn exec(&self, id: &str, pid: i32, cgroup: &str) -> Command {
        if self.is_floor() {
            return self.command(&["exec", &self.layout.to_string(), &pid.to_string(), cgroup, "/bin/true"]);
        }
        self.command(&["exec", id, "/bin/true"])
    }
}

/// A path as an argument.
pub fn path(path: &std::path::Path) -> &str {
    path.to_str().expect("the bench's paths are UTF-8")
}
