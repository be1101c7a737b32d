//! `dhow seccomp explain`: what a profile does, for people.

use super::arch::{self, Abi, Native};
use super::dump::action;
use super::explain::{Decision, Why, decide};
use super::names::{self, Id};
use super::{Options, compile, is_absent};
use crate::error::{Class, Error, Result};
use crate::spec::{Seccomp, SeccompArg, SeccompRule};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The ABIs that a profile's filter covers, the native one first.
fn covered(profile: &Seccomp, native: Native) -> Vec<Abi> {
    let runs: &[Abi] = match native {
        Native::X86_64 => &[Abi::X86_64, Abi::X32, Abi::X86],
        Native::Aarch64 => &[Abi::Aarch64, Abi::Arm],
    };
    let listed = |abi: &&Abi| profile.architectures.iter().any(|name| name == abi.oci_name());
    runs.iter().enumerate().filter(|(i, abi)| *i == 0 || listed(abi)).map(|(_, abi)| *abi).collect()
}

/// An ABI by the profile's name for it, with or without `SCMP_ARCH_`, in any case.
pub fn abi_by_name(name: &str) -> Result<Abi> {
    let full = format!("SCMP_ARCH_{}", name.to_uppercase().trim_start_matches("SCMP_ARCH_"));
    arch::parse(&full).flatten().ok_or_else(|| {
        Error::new(Class::Usage, "unknown architecture")
            .on(format!("{name:?}"))
            .hint("x86_64, x86, x32, aarch64 or arm")
    })
}

/// The whole profile in a few lines.
pub fn overview(profile: &Seccomp, options: &Options) -> Result<String> {
    if is_absent(profile) {
        return Ok("no filter: every syscall is allowed\n".into());
    }
    let program = compile(profile, options)?;
    let mut out = String::new();
    let _ = writeln!(out, "{} instructions, flags {:#x}", program.code().len(), program.flags());
    if program.needs_listener() {
        let _ = writeln!(out, "notifies the listener at {}", profile.listener_path);
    }
    for abi in covered(profile, options.native) {
        let mut by_action: BTreeMap<String, usize> = BTreeMap::new();
        let mut on_arguments: Vec<&str> = Vec::new();
        for id in names::all() {
            let Some(number) = id.number(abi) else { continue };
            if is_conditional(profile, id) {
                on_arguments.push(id.name());
                continue;
            }
            let decision = decide(profile, options, abi, number, &[0; 6])?;
            *by_action.entry(action(decision.ret)).or_default() += 1;
        }
        let _ = writeln!(out, "{}:", abi.oci_name());
        for (action, count) in by_action {
            let _ = writeln!(out, "  {count:>4} syscalls  {action}");
        }
        if !on_arguments.is_empty() {
            let _ = writeln!(out, "  by arguments: {}", on_arguments.join(", "));
        }
    }
    let unknown: Vec<&str> = unknown_names(profile).collect();
    if !unknown.is_empty() {
        let _ = writeln!(out, "unknown names, ignored: {}", unknown.join(", "));
    }
    Ok(out)
}

/// Whether only rules with conditions name a syscall.
fn is_conditional(profile: &Seccomp, id: Id) -> bool {
    let mut naming =
        profile.syscalls.iter().filter(|rule| rule.names.iter().any(|name| name == id.name())).peekable();
    naming.peek().is_some() && naming.all(|rule| !rule.args.is_empty())
}

/// The names in a profile that no architecture has: they are ignored.
pub fn unknown_names(profile: &Seccomp) -> impl Iterator<Item = &str> {
    profile
        .syscalls
        .iter()
        .flat_map(|rule| &rule.names)
        .map(String::as_str)
        .filter(|n| names::find(n).is_none())
}

/// What the profile does with one syscall, given by name or number, on one ABI. With arguments: the
/// decision and the rule; without: every rule that has a say.
pub fn of_syscall(
    profile: &Seccomp,
    options: &Options,
    abi: Abi,
    syscall: &str,
    args: Option<&[u64; 6]>,
) -> Result<String> {
    let (name, number) = resolve(abi, syscall)?;
    let mut out = String::new();
    if let Some(args) = args {
        let decision = decide(profile, options, abi, number, args)?;
        let shown: Vec<String> = args.iter().map(|arg| format!("{arg:#x}")).collect();
        let _ = writeln!(out, "{name}({}): {}", shown.join(", "), action(decision.ret));
        let _ = writeln!(out, "  {}", why(profile, &decision, abi));
        return Ok(out);
    }
    let _ = writeln!(out, "{name} (number {number} on {}):", abi.oci_name());
    let free = decide(profile, options, abi, number, &[0; 6])?;
    if !matches!(free.why, Why::Rule { conditional: true, .. } | Why::Default | Why::Newer) {
        let _ = writeln!(out, "  {}: {}", action(free.ret), why(profile, &free, abi));
        return Ok(out);
    }
    for (i, rule) in profile.syscalls.iter().enumerate() {
        let direct = rule.names.iter().any(|n| names::number_of(abi, n) == Some(number));
        let selectors = rule.names.iter().filter_map(|n| {
            let call = names::find(n)?.multiplexed()?;
            (abi == Abi::X86 && call.through == number).then(|| format!("arg0 selects {n}"))
        });
        let mut ways: Vec<String> = selectors.collect();
        if direct {
            ways.insert(0, String::new());
        }
        for way in ways {
            let conditions = conditions(rule);
            let joined = [way, conditions].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
            let _ = writeln!(
                out,
                "  {} when {}: linux.seccomp.syscalls[{i}]",
                rule.action.as_str(),
                if joined.is_empty() { "called".into() } else { joined.join(", and ") },
            );
        }
    }
    let otherwise = if free.why == Why::Newer { free.ret } else { default_of(profile, options)? };
    let _ = writeln!(
        out,
        "  {} otherwise: {}",
        action(otherwise),
        if free.why == Why::Newer { NEWER } else { DEFAULT }
    );
    Ok(out)
}

const NEWER: &str = "it is newer than every syscall that the profile names";
const DEFAULT: &str = "linux.seccomp.defaultAction";

fn default_of(profile: &Seccomp, options: &Options) -> Result<u32> {
    let bare = Seccomp {
        syscalls: Vec::new(),
        listener_path: String::new(),
        listener_metadata: String::new(),
        ..profile.clone()
    };
    Ok(decide(&bare, options, options.native.abi(), 0, &[0; 6])?.ret)
}

fn resolve(abi: Abi, syscall: &str) -> Result<(String, u32)> {
    let parsed = match syscall.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => syscall.parse().ok(),
    };
    if let Some(number) = parsed {
        return Ok((
            names::name_of(abi, number).map_or_else(|| format!("syscall {number}"), str::to_owned),
            number,
        ));
    }
    names::number_of(abi, syscall).map(|number| (syscall.to_owned(), number)).ok_or_else(|| {
        let known = names::find(syscall).is_some();
        let cause =
            if known { format!("{} has no such syscall", abi.oci_name()) } else { "no such syscall".into() };
        Error::new(Class::Usage, "explain the syscall").on(syscall).because(cause)
    })
}

/// Why, as a phrase that names the rule.
fn why(profile: &Seccomp, decision: &Decision, abi: Abi) -> String {
    match decision.why {
        Why::NoFilter => "there is no filter".into(),
        Why::Default => DEFAULT.into(),
        Why::Architecture => format!("linux.seccomp.architectures lacks {}", abi.oci_name()),
        Why::Newer => NEWER.into(),
        Why::Rule { rule, name, conditional } => {
            let place = format!("linux.seccomp.syscalls[{rule}].names[{name}]");
            match conditional.then(|| profile.syscalls.get(rule)).flatten() {
                Some(rule) => format!("{place}: {}", conditions(rule)),
                None => place,
            }
        }
    }
}

/// A rule's conditions in a person's notation.
fn conditions(rule: &SeccompRule) -> String {
    let one = |arg: &SeccompArg| {
        let (index, value) = (arg.index, arg.value);
        let op = match arg.op.as_str() {
            "SCMP_CMP_NE" => "!=",
            "SCMP_CMP_LT" => "<",
            "SCMP_CMP_LE" => "<=",
            "SCMP_CMP_GE" => ">=",
            "SCMP_CMP_GT" => ">",
            "SCMP_CMP_MASKED_EQ" => {
                return format!("arg{index} & {value:#x} == {:#x}", arg.value_two & value);
            }
            _ => "==",
        };
        format!("arg{index} {op} {value:#x}")
    };
    let repeated = (0..6).any(|i| rule.args.iter().filter(|arg| arg.index == i).count() > 1);
    // Two conditions on one argument: each stands alone, as with runc and crun.
    rule.args.iter().map(one).collect::<Vec<_>>().join(if repeated { " or " } else { " and " })
}
