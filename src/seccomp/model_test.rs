//! The compiled program against the reading of the profile by `explain`, on random profiles.

use super::arch::{Abi, X32_BIT};
use super::sample::{Random, profile, value};
use super::vm::{Data, run};
use super::{Native, Options, compile, explain, names};
use crate::spec::Seccomp;

/// How many cases: `DHOW_CASES` for the long job.
fn cases(default: usize) -> usize {
    std::env::var("DHOW_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A syscall worth asking about: mostly one that the profile names, with arguments at its values.
fn call(r: &mut Random, profile: &Seccomp, abi: Abi) -> (u32, [u64; 6]) {
    let named: Vec<&String> = profile.syscalls.iter().flat_map(|rule| &rule.names).collect();
    let number = match r.below(10) {
        0 => u32::try_from(r.next() & 0xffff_ffff).unwrap(),
        1 => {
            r.of(&[u32::MAX, X32_BIT, X32_BIT - 1, 0, 102, 117, 0xf0000, 0xf0005, 0xf0007, 0xf0008, 567, 568])
        }
        2 | 3 => u32::try_from(r.below(600)).unwrap() | if r.chance(30) { X32_BIT } else { 0 },
        _ if named.is_empty() => 1,
        _ => names::number_of(abi, named[r.below(named.len())]).unwrap_or(102),
    };
    let number = if r.chance(10) { number.wrapping_add(1) } else { number };
    let values: Vec<u64> = profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.args)
        .flat_map(|arg| [arg.value, arg.value_two])
        .collect();
    let mut args = [0; 6];
    for arg in &mut args {
        *arg = if values.is_empty() || r.chance(20) { value(r) } else { r.of(&values) };
        *arg = arg.wrapping_add(r.of(&[0, 0, 0, 1, u64::MAX, 1 << 32, 1 << 63]));
    }
    if r.chance(20) {
        args[0] = r.below(26) as u64;
    }
    (number, args)
}

#[test]
fn the_program_does_what_the_profile_says() {
    let seed = std::env::var("DHOW_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut asked = 0;
    for case in 0..cases(1500) as u64 {
        let mut r = Random::new(seed + (case << 20));
        let profile = profile(&mut r);
        let native = r.of(&[Native::X86_64, Native::X86_64, Native::Aarch64]);
        let options = Options { native, ..Options::default() };
        let program = match compile(&profile, &options) {
            Ok(program) => program,
            Err(e) => panic!("seed {seed} case {case}: {e}\n{profile:#?}"),
        };
        for _ in 0..40 {
            let abi = match native {
                Native::X86_64 => r.of(&[Abi::X86_64, Abi::X86_64, Abi::X32, Abi::X86]),
                Native::Aarch64 => r.of(&[Abi::Aarch64, Abi::Arm]),
            };
            let abi = if r.chance(2) { r.of(&Abi::ALL) } else { abi };
            let (number, args) = call(&mut r, &profile, abi);
            let said = explain::decide(&profile, &options, abi, number, &args).unwrap();
            let done = run(program.code(), &Data { number, arch: abi.audit(), args });
            if !program.is_empty() {
                asked += 1;
                assert_eq!(
                    done,
                    Some(said.ret),
                    "seed {seed} case {case}: {abi:?} {number:#x} {args:#x?}\nsaid {said:x?}\n{profile:#?}"
                );
            }
        }
    }
    println!("{asked} verdicts compared");
}
