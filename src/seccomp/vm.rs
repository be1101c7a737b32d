//! Runs a filter as the kernel does: for `explain`, for hints, and for the tests.

use super::emit::{AND, JA, JEQ, JGE, JGT, JSET, LD, RET};
use seccompiler::sock_filter;

/// `struct seccomp_data`: what a filter sees of a syscall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Data {
    /// The syscall's number.
    pub number: u32,
    /// The `AUDIT_ARCH_*` number.
    pub arch: u32,
    /// The arguments.
    pub args: [u64; 6],
}

impl Data {
    /// The word at an offset; the instruction pointer reads as zero.
    fn word(&self, offset: u32) -> Option<u32> {
        match offset {
            0 => Some(self.number),
            4 => Some(self.arch),
            8 | 12 => Some(0),
            16..64 if offset.is_multiple_of(4) => {
                let arg = self.args[(offset as usize - 16) / 8];
                let shift = if offset.is_multiple_of(8) { 0 } else { 32 };
                u32::try_from((arg >> shift) & 0xffff_ffff).ok()
            }
            _ => None,
        }
    }
}

/// What a filter returns for a syscall; `None` for a program that the kernel would not have taken.
pub fn run(code: &[sock_filter], data: &Data) -> Option<u32> {
    run_counted(code, data).map(|(value, _)| value)
}

/// As [`run`], with the number of instructions that it took.
pub fn run_counted(code: &[sock_filter], data: &Data) -> Option<(u32, usize)> {
    let mut held = 0u32;
    let mut at = 0usize;
    let mut steps = 0;
    loop {
        let i = code.get(at)?;
        at += 1;
        steps += 1;
        let holds = match i.code {
            LD => {
                held = data.word(i.k)?;
                continue;
            }
            AND => {
                held &= i.k;
                continue;
            }
            JA => {
                at += i.k as usize;
                continue;
            }
            RET => return Some((i.k, steps)),
            JEQ => held == i.k,
            JGT => held > i.k,
            JGE => held >= i.k,
            JSET => held & i.k != 0,
            _ => return None,
        };
        at += usize::from(if holds { i.jt } else { i.jf });
    }
}
