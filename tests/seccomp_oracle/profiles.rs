//! The engines' default profiles, from the Debian packages of their sources.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an unprivileged container has by default; the profiles ask for it.
const CAPS: [&str; 5] = ["CAP_SYS_CHROOT", "CAP_AUDIT_WRITE", "CAP_MKNOD", "CAP_NET_RAW", "CAP_DAC_OVERRIDE"];

/// An architecture as the profiles name it: Docker's, and Go's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    Amd64,
    Arm64,
}

impl Machine {
    fn go(self) -> &'static str {
        match self {
            Machine::Amd64 => "amd64",
            Machine::Arm64 => "arm64",
        }
    }

    pub fn arches(self) -> &'static [&'static str] {
        match self {
            Machine::Amd64 => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            Machine::Arm64 => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        }
    }
}

/// A directory of this test's, below cargo's.
pub fn work_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("seccomp");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// Unpacks a Debian package and returns a file of it.
fn from_package(package: &str, file: &str) -> String {
    let dir = work_dir().join(package);
    let path = dir.join(file);
    if !path.exists() {
        std::fs::create_dir_all(&dir).unwrap();
        let script = format!("apt-get download {package} && dpkg -x {package}_*.deb .");
        let done = Command::new("sh").arg("-ec").arg(script).current_dir(&dir).output().unwrap();
        assert!(done.status.success(), "{package}: {}", String::from_utf8_lossy(&done.stderr));
    }
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every profile for a machine, as OCI objects with names.
pub fn all(machine: Machine) -> Vec<(&'static str, Value)> {
    let docker = from_package(
        "golang-github-docker-docker-dev",
        "usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
    );
    let podman = from_package("golang-github-containers-common", "usr/share/containers/seccomp.json");
    let containerd = from_package(
        "golang-github-containerd-containerd-dev",
        "usr/share/gocode/src/github.com/containerd/containerd/contrib/seccomp/seccomp_default.go",
    );
    let mut profiles = vec![
        ("docker", resolve(&serde_json::from_str(&docker).unwrap(), machine)),
        ("podman", resolve(&serde_json::from_str(&podman).unwrap(), machine)),
        ("containerd", containerd_profile(&containerd, machine)),
    ];
    // Whatever else is at hand: profiles in Docker's or in the OCI's form.
    if let Some(more) = std::env::var_os("DHOW_SECCOMP_PROFILES") {
        for entry in std::fs::read_dir(more).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned().leak();
            let value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            profiles.push((name, resolve(&value, machine)));
        }
    }
    profiles
}

/// What Docker and Podman make of their own form of a profile before the runtime sees it.
fn resolve(profile: &Value, machine: Machine) -> Value {
    let listed = |filter: &Value, key: &str, mine: &[&str]| {
        let list = filter[key].as_array().map_or(&[][..], Vec::as_slice);
        (list.is_empty(), list.iter().any(|v| mine.iter().any(|m| v == m)))
    };
    let machine_names = [machine.go()];
    let rules: Vec<Value> = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| {
            let (no_arch, arch) = listed(&rule["includes"], "arches", &machine_names);
            let (no_cap, cap) = listed(&rule["includes"], "caps", &CAPS);
            let excluded = listed(&rule["excludes"], "arches", &machine_names).1
                || listed(&rule["excludes"], "caps", &CAPS).1;
            (no_arch || arch) && (no_cap || cap) && !excluded
        })
        .map(|rule| {
            let mut out = json!({"names": rule["names"], "action": rule["action"], "args": rule["args"]});
            if let Some(errno) = rule.get("errnoRet") {
                out["errnoRet"] = errno.clone();
            }
            out
        })
        .collect();
    let mut out = json!({
        "defaultAction": profile["defaultAction"],
        "architectures": machine.arches(),
        "syscalls": rules,
    });
    if let Some(errno) = profile.get("defaultErrnoRet") {
        out["defaultErrnoRet"] = errno.clone();
    }
    out
}

/// containerd writes its profile in Go. Its rules stand in composite literals of one shape; those
/// outside any `case` hold always, those in `case "<machine>"` for the machine, those in
/// `case "CAP_…"` with a capability, and the ones after `if !admin` without CAP_SYS_ADMIN.
fn containerd_profile(source: &str, machine: Machine) -> Value {
    let body = source.split("func DefaultProfile").nth(1).unwrap();
    let mut case: Option<Vec<String>> = None;
    let mut rules = Vec::new();
    let mut current: Option<Rule> = None;
    let mut list = false;
    for line in body.lines().map(str::trim) {
        if line.starts_with("switch ") || line == "default:" {
            case = None;
        } else if let Some(labels) = line.strip_prefix("case ") {
            case =
                Some(labels.trim_end_matches(':').split(", ").map(|l| l.trim_matches('"').into()).collect());
        } else if line.starts_with("if !admin")
            || line.starts_with("return")
            || line.starts_with("// clone3 is")
        {
            case = None;
        }
        let applies = case
            .as_ref()
            .is_none_or(|labels| labels.iter().any(|l| l == machine.go() || CAPS.contains(&l.as_str())));
        if let Some(rest) = line.strip_prefix("Names:") {
            rules.extend(current.take().map(Rule::value));
            let rule = current.insert(Rule::new(applies));
            rule.names(rest);
            list = !rest.contains('}');
        } else if let Some(rule) = &mut current {
            if list && line.starts_with('"') {
                rule.names(line);
            } else if list && line.starts_with('}') {
                list = false;
            } else {
                rule.field(line);
            }
        }
    }
    rules.extend(current.take().map(Rule::value));
    let rules: Vec<Value> = rules.into_iter().flatten().collect();
    assert!(rules.len() > 8, "containerd's source has another shape now");
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": machine.arches(), "syscalls": rules})
}

/// A rule of containerd's, as far as read.
struct Rule {
    applies: bool,
    names: Vec<String>,
    action: &'static str,
    errno: Option<u32>,
    args: Vec<Value>,
}

impl Rule {
    fn new(applies: bool) -> Self {
        Rule { applies, names: Vec::new(), action: "SCMP_ACT_ALLOW", errno: None, args: Vec::new() }
    }

    fn names(&mut self, text: &str) {
        self.names.extend(text.split('"').skip(1).step_by(2).map(str::to_owned));
    }

    fn field(&mut self, line: &str) {
        let Some((key, value)) = line.trim_end_matches(',').split_once(':') else { return };
        let value = value.trim();
        match key {
            "Action" if value == "specs.ActErrno" => self.action = "SCMP_ACT_ERRNO",
            "Action" => assert_eq!(value, "specs.ActAllow"),
            "ErrnoRet" => {
                assert_eq!(value, "&nosys");
                self.errno = Some(38);
            }
            "Index" => self.args.push(json!({"index": value.parse::<u32>().unwrap()})),
            "Value" => self.args.last_mut().unwrap()["value"] = json!(number(value)),
            "ValueTwo" => self.args.last_mut().unwrap()["valueTwo"] = json!(number(value)),
            "Op" => {
                let op = match value {
                    "specs.OpEqualTo" => "SCMP_CMP_EQ",
                    "specs.OpNotEqual" => "SCMP_CMP_NE",
                    "specs.OpMaskedEqual" => "SCMP_CMP_MASKED_EQ",
                    other => panic!("operator {other}"),
                };
                self.args.last_mut().unwrap()["op"] = json!(op);
            }
            _ => {}
        }
    }

    fn value(self) -> Option<Value> {
        let mut out = json!({"names": self.names, "action": self.action, "args": self.args});
        if let Some(errno) = self.errno {
            out["errnoRet"] = json!(errno);
        }
        self.applies.then_some(out)
    }
}

/// A Go number: plain, hexadecimal, or clone(2)'s flags.
fn number(text: &str) -> u64 {
    text.split('|')
        .map(|part| match part.trim() {
            "unix.CLONE_NEWNS" => 0x2_0000,
            "unix.CLONE_NEWCGROUP" => 0x200_0000,
            "unix.CLONE_NEWUTS" => 0x400_0000,
            "unix.CLONE_NEWIPC" => 0x800_0000,
            "unix.CLONE_NEWUSER" => 0x1000_0000,
            "unix.CLONE_NEWPID" => 0x2000_0000,
            "unix.CLONE_NEWNET" => 0x4000_0000,
            hex if hex.starts_with("0x") => u64::from_str_radix(&hex[2..], 16).unwrap(),
            plain => plain.parse().unwrap(),
        })
        .fold(0, |all, one| all | one)
}
