//! The assembler: writes a program from its end to its beginning.
//!
//! BPF jumps only go forward, so a program written backwards knows every jump's target when it
//! writes the jump. A conditional jump reaches 255 instructions; what is further away is reached by
//! way of a stepping stone next to the jump: another copy of a return, or a long jump.

use seccompiler::{BpfProgram, sock_filter};

pub(super) const LD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(super) const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
pub(super) const JA: u16 = 0x05; // BPF_JMP | BPF_JA
pub(super) const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(super) const JGT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
pub(super) const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(super) const JSET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
pub(super) const RET: u16 = 0x06; // BPF_RET | BPF_K

/// The kernel's limit, BPF_MAXINSNS.
pub(super) const MAX_LEN: usize = 4096;

/// Where a jump leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Return this value.
    Ret(u32),
    /// An instruction, counted from the program's end.
    At(usize),
}

/// A program in the making, last instruction first.
pub(super) struct Assembler {
    code: BpfProgram,
    /// The copy of each return that is nearest to where is being written.
    rets: Vec<(u32, usize)>,
}

impl Assembler {
    pub fn new() -> Self {
        // Docker's profile with its three architectures fits.
        Assembler { code: Vec::with_capacity(448), rets: Vec::with_capacity(8) }
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> usize {
        self.code.push(sock_filter { code, jt, jf, k });
        self.code.len() - 1
    }

    /// Writes an instruction that goes on to the one written before it.
    pub fn then(&mut self, code: u16, k: u32) -> usize {
        self.push(code, k, 0, 0)
    }

    /// Writes a conditional jump.
    pub fn jump(&mut self, code: u16, k: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes);
        let no = self.near(no);
        let here = self.code.len();
        // `near` left room for the stones of both sides, so that these fit.
        let offset = |to: usize| u8::try_from(here - 1 - to).unwrap_or(u8::MAX);
        let (jt, jf) = (offset(yes), offset(no));
        Target::At(self.push(code, k, jt, jf))
    }

    /// Makes a target the next instruction, for code that falls through to it.
    pub fn fall_into(&mut self, target: Target) {
        match target {
            Target::Ret(value) => {
                self.push(RET, value, 0, 0);
            }
            Target::At(at) if at + 1 == self.code.len() => {}
            Target::At(at) => {
                self.long_jump(at);
            }
        }
    }

    fn long_jump(&mut self, to: usize) -> usize {
        let distance = self.code.len() - 1 - to;
        self.push(JA, u32::try_from(distance).unwrap_or(u32::MAX), 0, 0)
    }

    /// The place of a target that the next jump reaches, wherever the target itself is.
    fn near(&mut self, target: Target) -> usize {
        // Two less than a jump's reach: the other side may need a stone of its own.
        let reaches = |at: usize| self.code.len() - at <= 254;
        match target {
            Target::At(at) if reaches(at) => at,
            Target::At(at) => self.long_jump(at),
            Target::Ret(value) => match self.rets.iter().position(|(v, _)| *v == value) {
                Some(i) if reaches(self.rets[i].1) => self.rets[i].1,
                found => {
                    let at = self.push(RET, value, 0, 0);
                    match found {
                        Some(i) => self.rets[i].1 = at,
                        None => self.rets.push((value, at)),
                    }
                    at
                }
            },
        }
    }

    pub fn len(&self) -> usize {
        self.code.len()
    }

    /// The program, first instruction first.
    pub fn finish(mut self) -> BpfProgram {
        self.code.reverse();
        self.code
    }
}
