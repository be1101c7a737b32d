//! dhow's filters against libseccomp's, for the engines' default profiles and random ones.
//!
//! Needs a C compiler, libseccomp's headers and the profiles, which it gets from Debian's packages by
//! apt: `cargo test --test seccomp_oracle -- --ignored`.

mod profiles;

use dhow::seccomp::vm::{Data, run};
use dhow::seccomp::{Abi, Native, Options, compile, names};
use dhow::spec::Seccomp;
use profiles::Machine;
use seccompiler::sock_filter;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The C helper, built once for all tests.
fn oracle() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(build_oracle).clone()
}

/// Builds the C helper; installs what it needs when it is not there.
fn build_oracle() -> PathBuf {
    let binary = profiles::work_dir().join("oracle");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp_oracle/oracle.c");
    let script = format!(
        "test -e /usr/include/seccomp.h || apt-get install -y --no-install-recommends libseccomp-dev gcc >&2\n\
         cc -O2 -o {0}.new {source} -lseccomp && mv {0}.new {0}",
        binary.display()
    );
    let done = Command::new("sh").arg("-ec").arg(script).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    binary
}

fn ret(name: &str, errno: Option<&Value>) -> u32 {
    let errno = errno.and_then(Value::as_u64).map_or(1, |e| u32::try_from(e).unwrap());
    match name {
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        "SCMP_ACT_ERRNO" => 0x5_0000 | errno,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x3_0000,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | errno,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        other => panic!("{other}"),
    }
}

const OPS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];

/// What runc and crun tell libseccomp: rules that do what the default does are left out, and a rule
/// with two conditions on one argument becomes one rule for each condition.
fn script(profile: &Value, machine: Machine) -> String {
    let mut out = String::new();
    let native = if machine == Machine::Amd64 { "x86_64" } else { "aarch64" };
    let default = ret(profile["defaultAction"].as_str().unwrap(), profile.get("defaultErrnoRet"));
    writeln!(out, "native {native}\ndefault {default}\noptimize 2").unwrap();
    for arch in profile["architectures"].as_array().unwrap() {
        writeln!(out, "arch {}", arch.as_str().unwrap()["SCMP_ARCH_".len()..].to_lowercase()).unwrap();
    }
    for rule in profile["syscalls"].as_array().unwrap() {
        let action = ret(rule["action"].as_str().unwrap(), rule.get("errnoRet"));
        if action == default {
            continue;
        }
        let args = rule["args"].as_array().map_or(&[][..], Vec::as_slice);
        let words: Vec<String> = args
            .iter()
            .map(|arg| {
                let op = arg["op"].as_str().unwrap().trim_start_matches("SCMP_CMP_");
                let op = 1 + OPS.iter().position(|o| *o == op).unwrap();
                let two = arg.get("valueTwo").and_then(Value::as_u64).unwrap_or(0);
                format!("{} {op} {} {two}", arg["index"], arg["value"])
            })
            .collect();
        let indices: BTreeSet<String> = args.iter().map(|arg| arg["index"].to_string()).collect();
        for name in rule["names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            if indices.len() == args.len() {
                writeln!(out, "rule {action} {name} {} {}", args.len(), words.join(" ")).unwrap();
            } else {
                for word in &words {
                    writeln!(out, "rule {action} {name} 1 {word}").unwrap();
                }
            }
        }
    }
    out
}

/// What libseccomp makes of a list of rules.
struct Theirs {
    code: Vec<sock_filter>,
    /// The names that it does not know.
    unknown: BTreeSet<String>,
    /// How long it took.
    nanoseconds: u64,
}

fn libseccomp(oracle: &Path, script: &str) -> Result<Theirs, String> {
    let mut child = Command::new(oracle)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(done.stderr).unwrap();
    if !done.status.success() {
        return Err(stderr);
    }
    let code = done
        .stdout
        .chunks_exact(8)
        .map(|i| sock_filter {
            code: u16::from_le_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_le_bytes(i[4..8].try_into().unwrap()),
        })
        .collect();
    let unknown = stderr.lines().filter_map(|l| l.strip_prefix("unknown ")).map(str::to_owned).collect();
    let nanoseconds = stderr.lines().find_map(|l| l.strip_prefix("ns ")).unwrap().parse().unwrap();
    Ok(Theirs { code, unknown, nanoseconds })
}

/// Leaves out the names that libseccomp is too old for.
fn without(profile: &Value, unknown: &BTreeSet<String>) -> Value {
    let mut profile = profile.clone();
    let rules = profile["syscalls"].as_array_mut().unwrap();
    for rule in rules.iter_mut() {
        rule["names"].as_array_mut().unwrap().retain(|name| !unknown.contains(name.as_str().unwrap()));
    }
    rules.retain(|rule| !rule["names"].as_array().unwrap().is_empty());
    profile
}

/// Arguments at, below and above every value in the profile, on each place.
fn arguments(profile: &Seccomp) -> Vec<[u64; 6]> {
    let mut values: BTreeSet<u64> = [0, 1, 9, 16, 40, u64::MAX, 1 << 32].into();
    for arg in profile.syscalls.iter().flat_map(|rule| &rule.args) {
        for value in [arg.value, arg.value_two] {
            values.extend([
                value,
                value.wrapping_add(1),
                value.wrapping_sub(1),
                value | 1 << 40,
                value ^ 1 << 31,
            ]);
        }
    }
    let mut all = Vec::new();
    for first in &values {
        all.push([*first; 6]);
        all.push([*first, 2, 9, 0, 0, 0]);
        all.push([16, *first, *first, 0, 0, 0]);
    }
    all
}

/// The greatest number that a profile names in an ABI: runc's rule is not libseccomp's, so the test
/// puts it in front, as runc does.
fn newest(profile: &Seccomp, abi: Abi) -> u32 {
    let all = profile.syscalls.iter().flat_map(|rule| &rule.names);
    all.filter_map(|name| names::number_of(abi, name))
        .filter(|n| n & 0x3fff_ffff < 0xf0000)
        .max()
        .unwrap_or(0)
}

/// Every number that an ABI may have, and its neighbours.
fn numbers(abi: Abi) -> impl Iterator<Item = u32> {
    let base = if abi == Abi::X32 { 0x4000_0000 } else { 0 };
    let odd =
        [u32::MAX, 0x3fff_ffff, 0x7fff_ffff, 0x8000_0000, 0xf_0000, 0xf_0001, 0xf_0005, 0xf_0006, 0xf_0009];
    (0..1200).map(move |n| n + base).chain(odd.into_iter().map(move |n| n | base))
}

/// Compares two filters on every number of every ABI; returns how many verdicts it compared.
fn compare(name: &str, profile: &Seccomp, machine: Machine, theirs: &[sock_filter]) -> usize {
    let native = if machine == Machine::Amd64 { Native::X86_64 } else { Native::Aarch64 };
    let ours = compile(profile, &Options { native, ..Options::default() }).unwrap();
    let abis: &[Abi] = if machine == Machine::Amd64 {
        &[Abi::X86_64, Abi::X86, Abi::X32]
    } else {
        &[Abi::Aarch64, Abi::Arm]
    };
    let permissive = ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"].contains(&&*profile.default_action);
    let listed = |abi: Abi| abi == native.abi() || profile.architectures.iter().any(|a| a == abi.oci_name());
    let mut compared = 0;
    for abi in abis {
        let newest = newest(profile, *abi);
        for number in numbers(*abi) {
            // ARM's private numbers are never newer than a profile for dhow; for runc they are
            // what makes a profile that names them newer than anything.
            let private = *abi == Abi::Arm && (0xf_0000..0xf_0008).contains(&number);
            let enosys =
                !permissive && listed(*abi) && newest & 0x3fff_ffff != 0 && number > newest && !private;
            for args in arguments(profile) {
                let data = Data { number, arch: abi.audit(), args };
                let wanted = if enosys { Some(0x5_0026) } else { run(theirs, &data) };
                let got = run(ours.code(), &data);
                assert_eq!(
                    got, wanted,
                    "{name} {machine:?} {abi:?} {number:#x} {args:#x?}: ours, libseccomp's"
                );
                compared += 1;
            }
        }
    }
    compared
}

#[test]
#[ignore = "needs Debian packages"]
fn the_engines_profiles_mean_what_libseccomp_makes_of_them() {
    let oracle = oracle();
    for machine in [Machine::Amd64, Machine::Arm64] {
        for (name, profile) in profiles::all(machine) {
            let Theirs { code, unknown, nanoseconds } =
                libseccomp(&oracle, &script(&profile, machine)).unwrap();
            let known = without(&profile, &unknown);
            let parsed: Seccomp = serde_json::from_value(known).unwrap();
            let compared = compare(name, &parsed, machine, &code);
            println!(
                "{name} {machine:?}: {compared} verdicts alike; libseccomp {} instructions, {} µs; not in it: {unknown:?}",
                code.len(),
                nanoseconds / 1000,
            );
            if machine == Machine::Amd64 {
                // For examples/seccomp_cost.rs.
                let dir = profiles::work_dir();
                std::fs::write(dir.join(format!("{name}.json")), profile.to_string()).unwrap();
                let bytes: Vec<u8> = code
                    .iter()
                    .flat_map(|i| [&i.code.to_le_bytes()[..], &[i.jt, i.jf], &i.k.to_le_bytes()].concat())
                    .collect();
                std::fs::write(dir.join(format!("{name}.libseccomp.bpf")), bytes).unwrap();
            }
        }
    }
}

/// A small random number generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.next() % list.len() as u64).unwrap()]
    }
}

/// A profile that libseccomp gets right. Of several rules on one syscall's arguments it loses some
/// (2.5.4: `arg0 < 2^32` beside `arg2 >= n and arg0 < 0`), and between such rules that do different
/// things it chooses by an order of its own. So: one rule a syscall with any conditions on different
/// arguments, or several that ask whether one argument equals a value.
fn random_profile(r: &mut Random, machine: Machine) -> Value {
    const NAMES: [&str; 10] =
        ["read", "clone", "socket", "shmat", "ioctl", "openat", "execve", "rseq", "set_tls", "fcntl"];
    const VALUES: [u64; 9] =
        [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0005, 0x8000_0000, u64::MAX, 0x7f00_0000_0000];
    let defaults = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_LOG"];
    let mut rules = Vec::new();
    for (name, errno) in NAMES.iter().zip(40..) {
        let mut rule = |args: Vec<Value>| {
            rules.push(json!({"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args}));
        };
        match r.next() % 4 {
            0 => {
                for _ in 0..1 + r.next() % 5 {
                    rule(vec![json!({"index": 1, "value": r.of(&VALUES), "op": "SCMP_CMP_EQ"})]);
                }
            }
            1 => rule(Vec::new()),
            2 => {}
            _ => {
                let places = r.next();
                let args = (0..4).filter(|i| places & (1 << i) != 0).map(|index| {
                    let op = format!("SCMP_CMP_{}", r.of(&OPS));
                    json!({"index": index, "value": r.of(&VALUES), "valueTwo": r.of(&VALUES), "op": op})
                });
                rule(args.collect());
            }
        }
    }
    json!({"defaultAction": r.of(&defaults), "architectures": machine.arches(), "syscalls": rules})
}

#[test]
#[ignore = "needs Debian packages"]
fn random_profiles_mean_what_libseccomp_makes_of_them() {
    let oracle = oracle();
    let cases = std::env::var("DHOW_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200u64);
    let (mut compared, mut refused) = (0, 0);
    for case in 0..cases {
        let mut r = Random(case << 32);
        let machine = r.of(&[Machine::Amd64, Machine::Arm64]);
        let profile = random_profile(&mut r, machine);
        let Ok(theirs) = libseccomp(&oracle, &script(&profile, machine)) else {
            refused += 1;
            continue;
        };
        let parsed: Seccomp = serde_json::from_value(profile.clone()).unwrap();
        compared += compare(&format!("case {case} {profile}"), &parsed, machine, &theirs.code);
    }
    println!("{compared} verdicts alike; libseccomp refused {refused} of {cases} profiles");
}
