//! Device rules as an eBPF program for cgroup v2. Making it is pure; the kernel asks it for every
//! opening of a device and every mknod(2), and it answers 1 for yes.

use super::devices::{ALL, Kind, Policy, Rule};
use super::dir::Dir;
use super::limits::Mode;
use crate::error::{Class, Context, Error, Result};
use crate::sys::bpf::{self, Insn, Name};
use nix::errno::Errno;
use rustix::fd::{AsFd, OwnedFd};

/// Tells dhow's programs from those that systemd attaches to the same cgroup.
const NAME: Name = *b"dhow_devices\0\0\0\0";

/// The registers: r1 points to the question, r0 is the answer.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
/// The kinds of access that are asked for.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operation codes (instruction-set.rst).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_IF: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP_IF_ANY: u8 = 0x45;
const EXIT: u8 = 0x95;

/// A device program; `None` stands for one that would allow everything.
pub(super) type Program = Option<Vec<Insn>>;

/// The program for a policy.
pub(super) fn of_policy(policy: &Policy) -> Program {
    (!policy.allows_all()).then(|| compile(policy))
}

/// The rules as a tree of comparisons: kind, major, minor, and at each leaf what is allowed there.
///
/// The kernel's verifier follows every path, so paths must not meet again: testing rule by rule
/// instead takes it ten times as long (330 µs for 13 rules), and grows with the square of them.
fn compile(policy: &Policy) -> Vec<Insn> {
    let mut code = Vec::with_capacity(16 + policy.rules.len() * 4);
    // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
    code.push(Insn::new(LOAD_WORD, KIND, QUESTION, 0, 0));
    code.push(Insn::new(MOVE, WANTED, KIND, 0, 0));
    code.push(Insn::new(SHIFT_RIGHT, WANTED, 0, 0, 16));
    code.push(Insn::new(AND, KIND, 0, 0, 0xffff));
    code.push(Insn::new(LOAD_WORD, MAJOR, QUESTION, 4, 0));
    code.push(Insn::new(LOAD_WORD, MINOR, QUESTION, 8, 0));
    code.push(Insn::new(SET, ANSWER, 0, 0, 0));
    // What is no block device is a character device.
    let block = of_kind(policy, Kind::Block);
    code.push(Insn::new(JUMP_IF_NOT, KIND, 0, distance(block.len()), 1));
    code.extend(block);
    code.extend(of_kind(policy, Kind::Char));
    code
}

/// The code for one kind of device; every path in it ends with an answer.
fn of_kind(policy: &Policy, kind: Kind) -> Vec<Insn> {
    let mut majors: Vec<u32> = policy
        .rules
        .iter()
        .filter(|rule| rule.devices.kind == kind)
        .filter_map(|rule| rule.devices.major)
        .collect();
    majors.sort_unstable();
    majors.dedup();
    let mut code = Vec::new();
    for major in majors {
        let block = of_major(policy, kind, Some(major));
        code.push(Insn::new(JUMP_IF_NOT, MAJOR, 0, distance(block.len()), major.cast_signed()));
        code.extend(block);
    }
    code.extend(of_major(policy, kind, None));
    code
}

/// The code for one major number, or for those that no rule names.
fn of_major(policy: &Policy, kind: Kind, major: Option<u32>) -> Vec<Insn> {
    let mut minors: Vec<u32> = policy
        .rules
        .iter()
        .filter(|rule| applies(rule, kind, major))
        .filter_map(|rule| rule.devices.minor)
        .collect();
    minors.sort_unstable();
    minors.dedup();
    let others = allowed(policy, kind, major, None);
    // Minors with the same answer share its code, behind that for all others.
    let named: Vec<(u32, u8)> = minors
        .into_iter()
        .map(|minor| (minor, allowed(policy, kind, major, Some(minor))))
        .filter(|(_, access)| *access != others)
        .collect();
    let mut answers: Vec<u8> = named.iter().map(|(_, access)| *access).collect();
    answers.sort_unstable();
    answers.dedup();
    let mut code = Vec::with_capacity(named.len() + 4);
    for (index, (minor, access)) in named.iter().enumerate() {
        let before = answers.iter().take_while(|a| *a != access).map(|a| answer(*a).len()).sum::<usize>();
        let to = named.len() - index - 1 + answer(others).len() + before;
        code.push(Insn::new(JUMP_IF, MINOR, 0, distance(to), minor.cast_signed()));
    }
    code.extend(answer(others));
    code.extend(answers.into_iter().flat_map(answer));
    code
}

/// Ends the program: yes if nothing but `access` is wanted. The answer is preset to no.
fn answer(access: u8) -> Vec<Insn> {
    let yes = Insn::new(SET, ANSWER, 0, 0, 1);
    let exit = Insn::new(EXIT, 0, 0, 0, 0);
    match access {
        0 => vec![exit],
        ALL => vec![yes, exit],
        access => vec![Insn::new(JUMP_IF_ANY, WANTED, 0, 1, i32::from(ALL & !access)), yes, exit],
    }
}

/// Whether a rule is about a major number; `None` stands for one that no rule names.
fn applies(rule: &Rule, kind: Kind, major: Option<u32>) -> bool {
    rule.devices.kind == kind && (rule.devices.major.is_none() || rule.devices.major == major)
}

/// The access that the policy allows to a device, the last word on each kind of access.
fn allowed(policy: &Policy, kind: Kind, major: Option<u32>, minor: Option<u32>) -> u8 {
    let start = if policy.default_allow { ALL } else { 0 };
    policy
        .rules
        .iter()
        .filter(|rule| {
            applies(rule, kind, major) && (rule.devices.minor.is_none() || rule.devices.minor == minor)
        })
        .fold(start, |access, rule| if rule.allow { access | rule.access } else { access & !rule.access })
}

/// A jump over so many instructions. The kernel refuses programs in which one would be too far, and
/// does so with this distance too, which leads out of the program.
fn distance(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

/// Puts the program into force for a cgroup: on a new one it is attached, on one in use it takes
/// the place of dhow's earlier one without a moment in between.
pub(super) fn install(dir: &Dir, program: &Program, mode: Mode, rootless: bool) -> Result<()> {
    let cgroup = dir.fd().doing_on("open cgroup", || dir.path())?;
    let earlier = match mode {
        Mode::Create => Vec::new(),
        Mode::Update => {
            earlier_programs(cgroup).doing_on("list the device programs of cgroup", || dir.path())?
        }
    };
    if let Some(program) = program {
        let loaded = match bpf::load_device_program(program, NAME) {
            Ok(loaded) => loaded,
            // A user's container can use no device that its user could not use without it.
            Err(Errno::EPERM) if rootless => return Ok(()),
            Err(errno) => return Err(refused(errno)),
        };
        let replace = earlier.first().map(AsFd::as_fd);
        match bpf::attach_device_program(cgroup, loaded.as_fd(), replace) {
            Err(Errno::EINVAL) if replace.is_some() => {
                // Before Linux 5.6: both for a moment, and then the new one alone.
                bpf::attach_device_program(cgroup, loaded.as_fd(), None)
                    .doing_on("attach the device program to cgroup", || dir.path())?;
            }
            result => {
                result.doing_on("attach the device program to cgroup", || dir.path())?;
                return detach(dir, earlier.get(1..).unwrap_or_default());
            }
        }
    }
    detach(dir, &earlier)
}

fn detach(dir: &Dir, programs: &[OwnedFd]) -> Result<()> {
    let cgroup = dir.fd().doing_on("open cgroup", || dir.path())?;
    for program in programs {
        bpf::detach_device_program(cgroup, program.as_fd())
            .doing_on("detach the device program from cgroup", || dir.path())?;
    }
    Ok(())
}

/// dhow's programs that are attached to the cgroup.
fn earlier_programs(cgroup: rustix::fd::BorrowedFd<'_>) -> nix::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for id in bpf::device_programs(cgroup)? {
        let program = match bpf::program_by_id(id) {
            Err(Errno::ENOENT) => continue,
            other => other?,
        };
        if bpf::program_name(program.as_fd())? == NAME {
            found.push(program);
        }
    }
    Ok(found)
}

fn refused(errno: Errno) -> Error {
    let error =
        Error::new(Class::System, "load the device program").on("linux.resources.devices").errno(errno);
    match errno {
        Errno::EPERM => {
            error.hint("device rules on cgroup v2 need CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN")
        }
        Errno::ENOSYS | Errno::EINVAL => error.hint("the kernel needs CONFIG_CGROUP_BPF"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::super::devices::{MKNOD, READ, WRITE, default_device_rules};
    use super::*;
    use crate::spec::DeviceRule;

    fn of_rules(rules: &[DeviceRule]) -> Program {
        of_policy(&Policy::read(rules).unwrap())
    }

    /// Runs a program as the kernel would; a jump out of it or a missing answer is a panic.
    fn run(program: &[Insn], kind: u32, access: u8, major: u32, minor: u32) -> bool {
        let question = [u32::from(access) << 16 | kind, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_usize;
        for _ in 0..100_000 {
            let insn = program[at];
            let (d, s) = (usize::from(insn.destination()), usize::from(insn.source()));
            let constant = i64::from(insn.constant).cast_unsigned();
            let mut jump = false;
            match insn.code {
                LOAD_WORD => registers[d] = u64::from(question[usize::try_from(insn.offset).unwrap() / 4]),
                MOVE => registers[d] = registers[s],
                SET => registers[d] = constant,
                AND => registers[d] &= constant,
                SHIFT_RIGHT => registers[d] >>= constant,
                JUMP_IF => jump = registers[d] == constant,
                JUMP_IF_NOT => jump = registers[d] != constant,
                JUMP_IF_ANY => jump = registers[d] & constant != 0,
                EXIT => return registers[usize::from(ANSWER)] == 1,
                code => panic!("unknown operation {code:#x}"),
            }
            at = at + 1 + if jump { usize::try_from(insn.offset).unwrap() } else { 0 };
        }
        panic!("endless");
    }

    /// What the rules mean, written down as directly as can be.
    fn meaning(policy: &Policy, kind: u32, access: u8, major: u32, minor: u32) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            let applies = |rule: &&Rule| {
                let rule_kind = if rule.devices.kind == Kind::Block { 1 } else { 2 };
                rule_kind == kind
                    && rule.access & bit != 0
                    && rule.devices.major.is_none_or(|m| m == major)
                    && rule.devices.minor.is_none_or(|m| m == minor)
            };
            policy.rules.iter().rev().find(applies).map_or(policy.default_allow, |rule| rule.allow)
        })
    }

    fn program(json: &str) -> Vec<Insn> {
        let rules: Vec<DeviceRule> = serde_json::from_str(json).unwrap();
        of_rules(&rules).unwrap()
    }

    #[test]
    fn the_defaults_allow_what_the_specification_promises() {
        let code = of_rules(&default_device_rules()).unwrap();
        assert!(run(&code, 2, READ | WRITE, 1, 3), "/dev/null");
        assert!(run(&code, 2, READ | WRITE, 136, 7), "/dev/pts/7");
        assert!(run(&code, 1, MKNOD, 8, 0), "mknod of a disk");
        assert!(!run(&code, 1, READ, 8, 0), "reading a disk");
        assert!(!run(&code, 2, READ, 1, 1), "/dev/mem");
        assert!(!run(&code, 2, READ | MKNOD, 1, 1));
    }

    #[test]
    fn holes_and_partial_access() {
        let json = r#"[{"allow":true},{"allow":false,"type":"c","major":10},
            {"allow":true,"type":"c","major":10,"minor":200,"access":"rw"},{"allow":false,"type":"b","access":"w"}]"#;
        let code = program(json);
        assert!(run(&code, 2, READ | WRITE, 10, 200));
        assert!(!run(&code, 2, READ | MKNOD, 10, 200));
        assert!(!run(&code, 2, READ, 10, 201));
        assert!(run(&code, 1, READ, 8, 0));
        assert!(!run(&code, 1, READ | WRITE, 8, 0));
        assert!(run(&code, 2, ALL, 9, 9));
    }

    #[test]
    fn split_access_is_allowed_together() {
        let code = program(
            r#"[{"allow":true,"type":"c","major":1,"access":"r"},{"allow":true,"type":"c","minor":3,"access":"w"}]"#,
        );
        assert!(run(&code, 2, READ | WRITE, 1, 3));
        assert!(!run(&code, 2, READ | WRITE, 1, 4));
    }

    #[test]
    fn everything_allowed_needs_no_program() {
        let rules: Vec<DeviceRule> = serde_json::from_str(r#"[{"allow":true,"access":"rwm"}]"#).unwrap();
        assert_eq!(of_rules(&rules), None);
        let denied = program(r#"[{"allow":false}]"#);
        assert!(!run(&denied, 2, READ, 1, 3));
    }

    #[test]
    fn random_rules_mean_what_they_say() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..300 {
            let rules: Vec<DeviceRule> = (0..next(8))
                .map(|_| DeviceRule {
                    allow: next(2) == 0,
                    kind: Some(["a", "b", "c", "c"][usize::try_from(next(4)).unwrap()].to_owned()),
                    major: (next(3) > 0).then(|| i64::try_from(next(3)).unwrap()),
                    minor: (next(3) > 0).then(|| i64::try_from(next(3)).unwrap()),
                    access: Some(
                        ["r", "w", "m", "rw", "rwm", "wm"][usize::try_from(next(6)).unwrap()].to_owned(),
                    ),
                })
                .collect();
            let policy = Policy::read(&rules).unwrap();
            let code = compile(&policy);
            for question in 0..2 * 7 * 9_u32 {
                let (kind, access) = (question % 2 + 1, u8::try_from(question / 2 % 7 + 1).unwrap());
                let (major, minor) = (question / 14 % 3, question / 42 % 3);
                let expected = meaning(&policy, kind, access, major, minor);
                assert_eq!(run(&code, kind, access, major, minor), expected, "{rules:?} {question}");
            }
        }
    }
}
