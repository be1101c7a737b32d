//! From the profile's words to values, with every wrong word named by its place.

use super::arch::{self, Abi, AbiSet, Native};
use super::names::{self, Id};
use super::{Options, flag, ret};
use crate::error::{Class, Error, Result};
use crate::spec::{Seccomp, SeccompArg, SeccompRule};

/// What a condition compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
}

/// One condition: `argument & mask op value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cond {
    pub arg: u8,
    pub op: Op,
    pub mask: u64,
    pub value: u64,
}

/// An action with the conditions under which it is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    /// What the filter returns.
    pub ret: u32,
    /// The rule's conditions, as a range of [`Profile::conds`].
    pub conds: (u16, u16),
    /// Whether each condition stands alone: what runc and crun make of a rule that has two
    /// conditions on one argument, since libseccomp cannot hold them together.
    pub any: bool,
}

/// A profile, understood.
#[derive(Debug)]
pub(super) struct Profile {
    pub default: u32,
    pub abis: AbiSet,
    pub native: Native,
    pub flags: u32,
    pub rules: Vec<Rule>,
    pub conds: Vec<Cond>,
    /// Every known name of every rule, with the rule it stands in.
    pub calls: Vec<(Id, u16)>,
    /// Whether a syscall newer than those that the profile names fails with ENOSYS.
    pub enosys: bool,
}

/// Rules, conditions and names are counted in 16 bits; no real profile comes near.
const LIMIT: usize = 0x7fff;

const PREFIX: &str = "linux.seccomp";

/// The error for a value, which names its place below `linux.seccomp`.
fn wrong(place: std::fmt::Arguments<'_>, cause: impl Into<String>) -> Error {
    Error::config(format!("{PREFIX}.{place}"), cause)
}

/// Understands a profile or says what is wrong with it.
pub(super) fn parse(profile: &Seccomp, options: &Options) -> Result<Profile> {
    let default = action(&profile.default_action, profile.default_errno_ret)
        .map_err(|e| e.at(format_args!("defaultAction"), format_args!("defaultErrnoRet")))?;
    if default == ret::USER_NOTIF {
        return Err(wrong(
            format_args!("defaultAction"),
            "SCMP_ACT_NOTIFY cannot be the default action: the listener could never be handed over",
        ));
    }
    let mut out = Profile {
        default,
        abis: abis(&profile.architectures, options.native)?,
        native: options.native,
        flags: flags(profile.flags.as_deref())?,
        rules: Vec::with_capacity(profile.syscalls.len()),
        conds: Vec::new(),
        calls: Vec::with_capacity(profile.syscalls.iter().map(|rule| rule.names.len()).sum()),
        // A tracer, a log or an allowed call lets the kernel answer for itself.
        enosys: !matches!(default & ret::ACTION, ret::ALLOW | ret::LOG | ret::TRACE),
    };
    for (i, rule) in profile.syscalls.iter().enumerate() {
        out.add_rule(i, rule, options)?;
    }
    out.check_notify(profile)?;
    Ok(out)
}

impl Profile {
    fn add_rule(&mut self, i: usize, rule: &SeccompRule, options: &Options) -> Result<()> {
        let ret = action(&rule.action, rule.errno_ret).map_err(|e| {
            e.at(format_args!("syscalls[{i}].action"), format_args!("syscalls[{i}].errnoRet"))
        })?;
        let first = self.conds.len();
        let mut seen = 0u8;
        let mut any = false;
        for (j, arg) in rule.args.iter().enumerate() {
            let cond = cond(i, j, arg)?;
            any |= seen & (1 << cond.arg) != 0;
            seen |= 1 << cond.arg;
            self.conds.push(cond);
        }
        if rule.names.is_empty() {
            return Err(wrong(format_args!("syscalls[{i}].names"), "is empty: a rule must name a syscall"));
        }
        let place = u16::try_from(i).ok().filter(|i| usize::from(*i) < LIMIT);
        let (Some(place), true) = (place, self.conds.len() < LIMIT && rule.names.len() < LIMIT) else {
            return Err(wrong(format_args!("syscalls[{i}]"), "too many rules, conditions or names"));
        };
        #[expect(clippy::cast_possible_truncation, reason = "both are below LIMIT")]
        let conds = (first as u16, self.conds.len() as u16);
        self.rules.push(Rule { ret, conds, any });
        for (j, name) in rule.names.iter().enumerate() {
            if ret == ret::USER_NOTIF && name == "write" {
                return Err(wrong(
                    format_args!("syscalls[{i}].names[{j}]"),
                    "SCMP_ACT_NOTIFY cannot be used for the write syscall: the listener could never be handed over",
                ));
            }
            match names::find(name) {
                Some(id) => self.calls.push((id, place)),
                None if name.is_empty() => {
                    return Err(wrong(format_args!("syscalls[{i}].names[{j}]"), "is empty"));
                }
                None if options.unknown_syscall_fails => {
                    return Err(wrong(
                        format_args!("syscalls[{i}].names[{j}]"),
                        format!("unknown syscall {name:?}"),
                    )
                    .hint("the annotation run.oci.seccomp_fail_unknown_syscall asks for this error"));
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A listener is wanted exactly when a rule notifies, and must have somewhere to go.
    fn check_notify(&mut self, profile: &Seccomp) -> Result<()> {
        if profile.listener_path.is_empty() {
            if !profile.listener_metadata.is_empty() {
                return Err(wrong(format_args!("listenerMetadata"), "is set, but listenerPath is not"));
            }
            if let Some(i) = self.rules.iter().position(|rule| rule.ret == ret::USER_NOTIF) {
                return Err(wrong(
                    format_args!("syscalls[{i}].action"),
                    "SCMP_ACT_NOTIFY needs linux.seccomp.listenerPath",
                ));
            }
        } else if !profile.listener_path.starts_with('/') {
            return Err(wrong(format_args!("listenerPath"), "must be absolute"));
        }
        if self.rules.iter().any(|rule| rule.ret == ret::USER_NOTIF) {
            self.flags |= flag::NEW_LISTENER;
            if self.flags & flag::TSYNC != 0 {
                // The kernel takes both only when a failed sync is an errno and not a thread's id.
                self.flags |= flag::TSYNC_ESRCH;
            }
        } else {
            // Says how a listener is waited for; the kernel refuses it where there is none.
            self.flags &= !flag::WAIT_KILLABLE_RECV;
        }
        Ok(())
    }

    /// The conditions of a rule.
    pub fn conds_of(&self, rule: &Rule) -> &[Cond] {
        &self.conds[usize::from(rule.conds.0)..usize::from(rule.conds.1)]
    }
}

fn abis(list: &[String], native: Native) -> Result<AbiSet> {
    let mut set = AbiSet::default();
    set.insert(native.abi());
    for (i, name) in list.iter().enumerate() {
        match arch::parse(name) {
            Some(Some(abi)) => set.insert(abi),
            Some(None) => {}
            None => {
                return Err(wrong(
                    format_args!("architectures[{i}]"),
                    format!("unknown architecture {name:?}"),
                ));
            }
        }
    }
    Ok(set)
}

/// The flags that a profile may name.
pub(super) const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", flag::LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", flag::SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", flag::TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", flag::WAIT_KILLABLE_RECV),
];

/// The actions that a profile may name; [`action`] says what they mean.
pub(super) const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// The operators that a condition may name.
pub(super) const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The flags of seccomp(2). Without a list, what runc and crun do: no mitigation of speculative
/// store bypass, which costs much and has long been left to prctl(2) by the kernel's default too.
fn flags(list: Option<&[String]>) -> Result<u32> {
    let Some(list) = list else { return Ok(flag::SPEC_ALLOW | flag::DEFAULTED) };
    let mut flags = 0;
    for (i, name) in list.iter().enumerate() {
        flags |= match FLAGS.iter().find(|(known, _)| known == name) {
            Some((_, flag)) => *flag,
            None => return Err(wrong(format_args!("flags[{i}]"), format!("unknown flag {name:?}"))),
        };
    }
    Ok(flags)
}

/// What is wrong with an action: with its name, or with the number that goes with it.
pub(super) enum BadAction {
    Name(String),
    Errno(String),
}

impl BadAction {
    fn at(self, name: std::fmt::Arguments<'_>, errno: std::fmt::Arguments<'_>) -> Error {
        match self {
            BadAction::Name(cause) => wrong(name, cause),
            BadAction::Errno(cause) => wrong(errno, cause),
        }
    }
}

/// The kernel's greatest errno.
const MAX_ERRNO: u32 = 4095;

/// The value that the filter returns for an action.
pub(super) fn action(name: &str, errno: Option<u32>) -> std::result::Result<u32, BadAction> {
    let plain = match name {
        "SCMP_ACT_ALLOW" => ret::ALLOW,
        "SCMP_ACT_ERRNO" => return with_data(ret::ERRNO, errno, MAX_ERRNO, "an errno"),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ret::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => ret::KILL_PROCESS,
        "SCMP_ACT_TRAP" => ret::TRAP,
        "SCMP_ACT_TRACE" => return with_data(ret::TRACE, errno, ret::DATA, "a tracer's message"),
        "SCMP_ACT_LOG" => ret::LOG,
        "SCMP_ACT_NOTIFY" => ret::USER_NOTIF,
        "" => return Err(BadAction::Name("is missing".into())),
        _ => return Err(BadAction::Name(format!("unknown action {name:?}"))),
    };
    match errno {
        None => Ok(plain),
        // The specification: an errno for an action that has none must fail.
        Some(_) => Err(BadAction::Errno(format!("{name} takes no errno"))),
    }
}

fn with_data(action: u32, data: Option<u32>, max: u32, what: &str) -> std::result::Result<u32, BadAction> {
    let data = data.unwrap_or(libc::EPERM.cast_unsigned());
    if data > max {
        return Err(BadAction::Errno(format!("{data} is out of range: {what} is at most {max}")));
    }
    Ok(action | data)
}

fn cond(i: usize, j: usize, arg: &SeccompArg) -> Result<Cond> {
    let Some(index) = u8::try_from(arg.index).ok().filter(|index| *index < 6) else {
        return Err(wrong(
            format_args!("syscalls[{i}].args[{j}].index"),
            format!("{} is out of range: a syscall has arguments 0 to 5", arg.index),
        ));
    };
    let op = match arg.op.as_str() {
        "SCMP_CMP_NE" => Op::Ne,
        "SCMP_CMP_LT" => Op::Lt,
        "SCMP_CMP_LE" => Op::Le,
        "SCMP_CMP_EQ" => Op::Eq,
        "SCMP_CMP_GE" => Op::Ge,
        "SCMP_CMP_GT" => Op::Gt,
        "SCMP_CMP_MASKED_EQ" => {
            return Ok(Cond { arg: index, op: Op::Eq, mask: arg.value, value: arg.value_two & arg.value });
        }
        "" => return Err(wrong(format_args!("syscalls[{i}].args[{j}].op"), "is missing")),
        other => {
            return Err(wrong(
                format_args!("syscalls[{i}].args[{j}].op"),
                format!("unknown operator {other:?}"),
            ));
        }
    };
    Ok(Cond { arg: index, op, mask: u64::MAX, value: arg.value })
}

impl Cond {
    /// The condition as a 32-bit ABI sees it: libseccomp compares the low halves.
    pub fn narrow(self) -> Cond {
        Cond { mask: self.mask & 0xffff_ffff, value: self.value & 0xffff_ffff, ..self }
    }

    /// A mask of nothing: libseccomp takes such a condition as absent.
    pub fn is_void(self) -> bool {
        self.mask == 0
    }
}

/// The error for a filter that the kernel would not take.
pub(super) fn too_long(len: usize) -> Error {
    Error::config(
        format!("{PREFIX}.syscalls"),
        format!("the filter needs {len} instructions, the kernel takes 4096"),
    )
    .class(Class::Config)
}

impl Abi {
    /// Whether the profile's filter covers this ABI on its kernel.
    pub(super) fn in_profile(self, profile: &Profile) -> bool {
        let runs = match profile.native {
            Native::X86_64 => matches!(self, Abi::X86_64 | Abi::X32 | Abi::X86),
            Native::Aarch64 => matches!(self, Abi::Aarch64 | Abi::Arm),
        };
        runs && profile.abis.has(self)
    }
}

#[cfg(test)]
#[path = "profile_test.rs"]
mod tests;
