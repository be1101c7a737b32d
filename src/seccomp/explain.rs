//! What a profile does with a syscall, and which of its rules decides.
//!
//! This reads the profile itself, one rule after the other, and shares nothing with the compiler but
//! the words' meaning and the table of names: the tests hold the compiled program against it.

use super::arch::{ARM_PRIVATE, Abi, X32_BIT};
use super::profile;
use super::{Native, Options, is_absent, names, ret};
use crate::error::Result;
use crate::spec::{Seccomp, SeccompArg, SeccompRule};

/// Why a profile decides as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no filter.
    NoFilter,
    /// No rule decides: the default action.
    Default,
    /// Neither the profile nor its default covers this architecture.
    Architecture,
    /// The syscall is newer than any that the profile names.
    Newer,
    /// The rule `linux.seccomp.syscalls[rule].names[name]` decides.
    Rule {
        /// The rule's place.
        rule: usize,
        /// The name's place in the rule.
        name: usize,
        /// Whether its arguments mattered.
        conditional: bool,
    },
}

/// What a profile does with a syscall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// `SECCOMP_RET_*` with its data.
    pub ret: u32,
    /// Why.
    pub why: Why,
}

/// Decides about a syscall: its ABI, its number as the kernel sees it, its arguments.
pub fn decide(
    profile: &Seccomp,
    options: &Options,
    abi: Abi,
    number: u32,
    args: &[u64; 6],
) -> Result<Decision> {
    if is_absent(profile) {
        return Ok(Decision { ret: ret::ALLOW, why: Why::NoFilter });
    }
    // Every wrong word is found first; what follows may rely on all of them.
    profile::parse(profile, options)?;
    let default = action(&profile.default_action, profile.default_errno_ret);
    let covered = |abi: Abi| {
        let listed = profile.architectures.iter().any(|name| name == abi.oci_name());
        match options.native {
            Native::X86_64 => abi == Abi::X86_64 || (listed && matches!(abi, Abi::X32 | Abi::X86)),
            Native::Aarch64 => abi == Abi::Aarch64 || (listed && abi == Abi::Arm),
        }
    };
    // The kernel tells x32 from x86_64 by the number alone.
    let abi = match abi {
        Abi::X86_64 | Abi::X32 if number >= X32_BIT && (number != u32::MAX || covered(Abi::X32)) => Abi::X32,
        Abi::X86_64 | Abi::X32 => Abi::X86_64,
        other => other,
    };
    if !covered(abi) {
        return Ok(Decision { ret: ret::KILL_THREAD, why: Why::Architecture });
    }
    if let Some(decision) = by_rule(profile, abi, number, args, default) {
        return Ok(decision);
    }
    let permissive = matches!(default & ret::ACTION, ret::ALLOW | ret::LOG | ret::TRACE);
    let newest = newest(profile, abi);
    let skipped = abi == Abi::X86_64 && number == u32::MAX;
    let private = abi == Abi::Arm && (ARM_PRIVATE..ARM_PRIVATE + 8).contains(&number);
    if !permissive && !skipped && !private && newest.is_some_and(|newest| number > newest) {
        return Ok(Decision { ret: ret::ERRNO | libc::ENOSYS.cast_unsigned(), why: Why::Newer });
    }
    Ok(Decision { ret: default, why: Why::Default })
}

/// The rule that decides: the first that names the syscall without conditions; else the first whose
/// conditions hold. A rule that does what would be done anyway does not count.
fn by_rule(profile: &Seccomp, abi: Abi, number: u32, args: &[u64; 6], default: u32) -> Option<Decision> {
    let mut first_match = None;
    for (i, rule) in profile.syscalls.iter().enumerate() {
        let ret = action(&rule.action, rule.errno_ret);
        if ret == default {
            continue;
        }
        for (j, name) in rule.names.iter().enumerate() {
            let Some(id) = names::find(name) else { continue };
            if id.number(abi) == Some(number) {
                if is_free(rule, abi) {
                    let why = Why::Rule { rule: i, name: j, conditional: false };
                    return Some(Decision { ret, why });
                }
                if first_match.is_none() && holds(rule, abi, args, None) {
                    let why = Why::Rule { rule: i, name: j, conditional: true };
                    first_match = Some(Decision { ret, why });
                }
            }
            let Some(call) = id.multiplexed().filter(|call| abi == Abi::X86 && call.through == number) else {
                continue;
            };
            if first_match.is_none() && holds(rule, abi, args, Some(call.selector)) {
                let why = Why::Rule { rule: i, name: j, conditional: true };
                first_match = Some(Decision { ret, why });
            }
        }
    }
    first_match
}

/// The greatest number that the profile names; ARM's private numbers are older than any rule.
fn newest(profile: &Seccomp, abi: Abi) -> Option<u32> {
    let named = profile.syscalls.iter().flat_map(|rule| &rule.names);
    named
        .filter_map(|name| names::number_of(abi, name))
        .filter(|number| abi != Abi::Arm || *number < ARM_PRIVATE)
        .max()
        .filter(|number| number & !X32_BIT != 0)
}

fn action(name: &str, errno: Option<u32>) -> u32 {
    profile::action(name, errno).unwrap_or(ret::KILL_PROCESS)
}

/// Whether two conditions are on one argument, so that any one of the conditions is enough.
fn is_any(rule: &SeccompRule) -> bool {
    rule.args.iter().enumerate().any(|(i, arg)| rule.args[..i].iter().any(|other| other.index == arg.index))
}

/// Whether a rule's conditions ask nothing.
fn is_free(rule: &SeccompRule, abi: Abi) -> bool {
    let void = |arg: &SeccompArg| arg.op == "SCMP_CMP_MASKED_EQ" && seen(abi, arg.value) == 0;
    if is_any(rule) { rule.args.iter().any(void) } else { rule.args.iter().all(void) }
}

/// As much of a value as is compared.
fn seen(abi: Abi, value: u64) -> u64 {
    if abi.is_32() { value & 0xffff_ffff } else { value }
}

fn holds(rule: &SeccompRule, abi: Abi, args: &[u64; 6], selector: Option<u8>) -> bool {
    if selector.is_some_and(|selector| seen(abi, args[0]) != u64::from(selector)) {
        return false;
    }
    let one = |arg: &SeccompArg| {
        if selector.is_some() && arg.index == 0 {
            return true; // the selector's place
        }
        let Some(given) = args.get(arg.index as usize) else { return false };
        let (given, value) = (seen(abi, *given), seen(abi, arg.value));
        match arg.op.as_str() {
            "SCMP_CMP_NE" => given != value,
            "SCMP_CMP_LT" => given < value,
            "SCMP_CMP_LE" => given <= value,
            "SCMP_CMP_EQ" => given == value,
            "SCMP_CMP_GE" => given >= value,
            "SCMP_CMP_GT" => given > value,
            "SCMP_CMP_MASKED_EQ" => given & value == arg.value_two & value,
            _ => false,
        }
    };
    if is_any(rule) { rule.args.iter().any(one) } else { rule.args.iter().all(one) }
}
