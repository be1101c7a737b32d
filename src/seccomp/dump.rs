//! A filter as text.

use super::arch::Abi;
use super::emit::{AND, JA, JEQ, JGE, JGT, JSET, LD, RET};
use super::{Program, names, ret};
use nix::errno::Errno;
use seccompiler::sock_filter;
use std::fmt::Write as _;

/// A filter's return value in the profile's words.
pub fn action(value: u32) -> String {
    let data = value & ret::DATA;
    match value & ret::ACTION {
        ret::KILL_PROCESS => "SCMP_ACT_KILL_PROCESS".into(),
        ret::KILL_THREAD => "SCMP_ACT_KILL".into(),
        ret::TRAP => "SCMP_ACT_TRAP".into(),
        ret::ERRNO => match Errno::from_raw(data.cast_signed()) {
            Errno::UnknownErrno => format!("SCMP_ACT_ERRNO ({data})"),
            errno => format!("SCMP_ACT_ERRNO ({errno:?})"),
        },
        ret::USER_NOTIF => "SCMP_ACT_NOTIFY".into(),
        ret::TRACE => format!("SCMP_ACT_TRACE ({data})"),
        ret::LOG => "SCMP_ACT_LOG".into(),
        ret::ALLOW => "SCMP_ACT_ALLOW".into(),
        _ => format!("{value:#x}"),
    }
}

/// What a load reads.
fn word(offset: u32) -> String {
    match offset {
        0 => "number".into(),
        4 => "arch".into(),
        8 | 12 => "ip".into(),
        _ => {
            let half = if offset.is_multiple_of(8) { "low" } else { "high" };
            format!("arg{}.{half}", (offset - 16) / 8)
        }
    }
}

/// What is known of the accumulator and the architecture on the way to each instruction, so that a
/// number can be given its name.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    held: Option<u32>,
    arch: Option<u32>,
}

/// The filter's instructions, one per line; jumps show both targets, numbers their names.
pub fn dump(program: &Program) -> String {
    let code = program.code();
    let mut ways: Vec<Option<Known>> = vec![None; code.len()];
    if let Some(first) = ways.first_mut() {
        *first = Some(Known { held: None, arch: None });
    }
    let mut out = String::with_capacity(code.len() * 32);
    for (at, i) in code.iter().enumerate() {
        let known = ways[at].unwrap_or(Known { held: None, arch: None });
        let (yes, no) = (at + 1 + usize::from(i.jt), at + 1 + usize::from(i.jf));
        let mut lead = |to: usize, new: Known| {
            if let Some(way) = ways.get_mut(to) {
                *way = Some(match *way {
                    Some(old) => Known {
                        held: old.held.filter(|h| new.held == Some(*h)),
                        arch: old.arch.filter(|a| new.arch == Some(*a)),
                    },
                    None => new,
                });
            }
        };
        match i.code {
            LD => lead(at + 1, Known { held: Some(i.k), ..known }),
            AND => lead(at + 1, Known { held: None, ..known }),
            JA => lead(at + 1 + i.k as usize, known),
            RET => {}
            _ => {
                let arch = if i.code == JEQ && known.held == Some(4) { Some(i.k) } else { known.arch };
                lead(yes, Known { arch, ..known });
                lead(no, known);
            }
        }
        let _ = writeln!(out, "{at:>4}  {}", line(i, at, known));
    }
    out
}

fn line(i: &sock_filter, at: usize, known: Known) -> String {
    let operand = || match (known.held, known.arch) {
        (Some(0), Some(arch)) => number(arch, i.k),
        (Some(4), _) => Abi::ALL
            .iter()
            .find(|abi| abi.audit() == i.k)
            .map_or_else(|| format!("{:#x}", i.k), |abi| abi.oci_name()["SCMP_ARCH_".len()..].to_lowercase()),
        _ => format!("{:#x}", i.k),
    };
    let jump = |op: &str| {
        format!(
            "if {op} {} goto {} else {}",
            operand(),
            at + 1 + usize::from(i.jt),
            at + 1 + usize::from(i.jf)
        )
    };
    match i.code {
        LD => format!("load {}", word(i.k)),
        AND => format!("and {:#x}", i.k),
        JA => format!("goto {}", at + 1 + i.k as usize),
        JEQ => jump("=="),
        JGT => jump(">"),
        JGE => jump(">="),
        JSET => jump("&"),
        RET => format!("return {}", action(i.k)),
        other => format!("{other:#x} {:#x}", i.k),
    }
}

/// A syscall number with its name, where the architecture has one.
fn number(arch: u32, number: u32) -> String {
    let name = Abi::ALL.iter().filter(|abi| abi.audit() == arch).find_map(|abi| names::name_of(*abi, number));
    match name {
        Some(name) => format!("{number} ({name})"),
        None if number >= 0x1000 => format!("{number:#x}"),
        None => number.to_string(),
    }
}
