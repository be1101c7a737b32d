//! The compiled program against seccompiler's, as far as that can say the same: one ABI, one action
//! for all rules, conditions that all have to hold.

use super::sample::{Random, value};
use super::vm::{Data, run};
use super::{Abi, Native, Options, compile, names};
use crate::spec::{Seccomp, SeccompArg, SeccompRule};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule as PeerRule, TargetArch,
};
use std::collections::BTreeMap;

const ABI: Abi = Native::HOST.abi();

fn peer_condition(arg: &SeccompArg) -> SeccompCondition {
    let (op, value) = match arg.op.as_str() {
        "SCMP_CMP_NE" => (SeccompCmpOp::Ne, arg.value),
        "SCMP_CMP_LT" => (SeccompCmpOp::Lt, arg.value),
        "SCMP_CMP_LE" => (SeccompCmpOp::Le, arg.value),
        "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, arg.value),
        "SCMP_CMP_GE" => (SeccompCmpOp::Ge, arg.value),
        "SCMP_CMP_GT" => (SeccompCmpOp::Gt, arg.value),
        _ => (SeccompCmpOp::MaskedEq(arg.value), arg.value_two & arg.value),
    };
    SeccompCondition::new(u8::try_from(arg.index).unwrap(), SeccompCmpArgLen::Qword, op, value).unwrap()
}

/// What seccompiler makes of a profile that allows by default and denies by its rules.
fn peer(profile: &Seccomp) -> BpfProgram {
    let mut rules: BTreeMap<i64, Vec<PeerRule>> = BTreeMap::new();
    let mut free: Vec<i64> = Vec::new();
    for rule in &profile.syscalls {
        for number in rule.names.iter().filter_map(|name| names::number_of(ABI, name)).map(i64::from) {
            let of_number = rules.entry(number).or_default();
            if rule.args.is_empty() {
                free.push(number);
            } else {
                of_number.push(PeerRule::new(rule.args.iter().map(peer_condition).collect()).unwrap());
            }
        }
    }
    // An empty list means "always".
    for number in free {
        rules.insert(number, Vec::new());
    }
    let arch = match Native::HOST {
        Native::X86_64 => TargetArch::x86_64,
        Native::Aarch64 => TargetArch::aarch64,
    };
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(7), arch)
        .unwrap()
        .try_into()
        .unwrap()
}

fn profile(r: &mut Random) -> Seccomp {
    const NAMES: [&str; 6] = ["read", "clone", "socket", "ioctl", "openat", "getppid"];
    const OPS: [&str; 7] = super::profile::OPERATORS;
    let rule = |r: &mut Random| {
        let places = r.below(16);
        let args = (0..4).filter(|i| places & (1 << i) != 0).map(|index| {
            let op = r.of(&OPS).to_owned();
            // A mask of nothing is no condition for us, and one that always holds for the peer.
            SeccompArg { index, value: value(r).max(1), value_two: value(r), op }
        });
        SeccompRule {
            args: args.collect(),
            names: vec![r.of(&NAMES).to_owned()],
            action: "SCMP_ACT_ERRNO".into(),
            errno_ret: Some(7),
        }
    };
    Seccomp {
        default_action: "SCMP_ACT_ALLOW".into(),
        syscalls: (0..1 + r.below(8)).map(|_| rule(r)).collect(),
        ..Seccomp::default()
    }
}

#[test]
fn seccompiler_says_the_same() {
    for case in 0..400 {
        let mut r = Random::new(case << 20);
        let profile = profile(&mut r);
        let (ours, theirs) = (compile(&profile, &Options::default()).unwrap(), peer(&profile));
        let values: Vec<u64> = profile
            .syscalls
            .iter()
            .flat_map(|rule| &rule.args)
            .flat_map(|arg| [arg.value, arg.value_two])
            .collect();
        for number in 0..500 {
            let mut args = [0; 6];
            for arg in &mut args {
                let near = if values.is_empty() { 0 } else { r.of(&values) };
                *arg = if r.chance(70) { near.wrapping_add(r.of(&[0, 1, u64::MAX])) } else { value(&mut r) };
            }
            let data = Data { number, arch: ABI.audit(), args };
            let (got, wanted) = (run(ours.code(), &data), run(&theirs, &data));
            assert!(wanted.is_some());
            assert_eq!(got, wanted, "case {case}: {number} {args:#x?}\n{profile:#?}");
        }
    }
}
