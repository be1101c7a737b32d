//! A compiled filter: stored, loaded, installed.

use super::emit::MAX_LEN;
use super::{Native, flag, names, ret, vm};
use crate::error::{Class, Context, Error, Result};
use crate::sys;
use nix::errno::Errno;
use seccompiler::{BpfProgram, sock_filter};
use std::os::fd::OwnedFd;

/// A filter, ready for the kernel. Without instructions it stands for no filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Program {
    code: BpfProgram,
    flags: u32,
}

/// What a stored program begins with; the last byte is the format's version.
const MAGIC: [u8; 4] = *b"dsc\x01";
const HEADER: usize = 8;
const INSTRUCTION: usize = 8;

impl Program {
    pub(super) fn new(code: BpfProgram, flags: u32) -> Self {
        Program { code, flags }
    }

    /// The instructions.
    pub fn code(&self) -> &[sock_filter] {
        &self.code
    }

    /// Whether there is no filter to install.
    pub fn is_empty(&self) -> bool {
        self.code.is_empty()
    }

    /// Whether installing it yields a listener that has to be handed over.
    pub fn needs_listener(&self) -> bool {
        self.flags & flag::NEW_LISTENER != 0
    }

    /// The flags of seccomp(2).
    pub fn flags(&self) -> u32 {
        self.flags & !flag::DEFAULTED
    }

    /// The errno with which the filter answers a syscall of this kernel's own ABI, if it does so
    /// whatever the arguments are not: they are taken as zero.
    pub fn errno_of(&self, syscall: &str) -> Option<i32> {
        let value = self.answer_to(syscall)?;
        let errno = i32::try_from(value & ret::DATA).ok()?;
        (value & ret::ACTION == ret::ERRNO).then_some(errno)
    }

    /// Whether the filter kills for a syscall of this kernel's own ABI, all of whose arguments are zero.
    pub fn kills(&self, syscall: &str) -> bool {
        let action = self.answer_to(syscall).map(|value| value & ret::ACTION);
        matches!(action, Some(ret::KILL_PROCESS | ret::KILL_THREAD))
    }

    fn answer_to(&self, syscall: &str) -> Option<u32> {
        let abi = Native::HOST.abi();
        let number = names::number_of(abi, syscall)?;
        vm::run(&self.code, &vm::Data { number, arch: abi.audit(), args: [0; 6] })
    }

    /// The program as it is stored beside the container's record.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.code.len() * INSTRUCTION);
        out.extend(MAGIC);
        out.extend(self.flags.to_le_bytes());
        for i in &self.code {
            out.extend(i.code.to_le_bytes());
            out.extend([i.jt, i.jf]);
            out.extend(i.k.to_le_bytes());
        }
        out
    }

    /// Reads back what [`Program::to_bytes`] wrote. What the instructions mean is for the kernel to
    /// check: it does not trust anyone's program.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let corrupt =
            |cause: &str| Error::new(Class::Corrupt, "read the stored seccomp filter").because(cause);
        let body = bytes.strip_prefix(&MAGIC).ok_or_else(|| corrupt("it is of another version, or none"))?;
        let (flags, code) = body.split_first_chunk::<4>().ok_or_else(|| corrupt("it is cut short"))?;
        if code.len() % INSTRUCTION != 0 || code.len() / INSTRUCTION > MAX_LEN {
            return Err(corrupt("its length is impossible"));
        }
        let code = code
            .chunks_exact(INSTRUCTION)
            .map(|i| sock_filter {
                code: u16::from_le_bytes([i[0], i[1]]),
                jt: i[2],
                jf: i[3],
                k: u32::from_le_bytes([i[4], i[5], i[6], i[7]]),
            })
            .collect();
        Ok(Program { code, flags: u32::from_le_bytes(*flags) })
    }

    /// Puts the calling thread under the filter, for good. Returns the listener when one is needed.
    ///
    /// The kernel wants either `no_new_privs` or CAP_SYS_ADMIN: without `noNewPrivileges` this has to
    /// happen before capabilities are dropped, with it as late as can be.
    pub fn install(&self) -> Result<Option<OwnedFd>> {
        if self.is_empty() {
            return Ok(None);
        }
        let mut done = sys::seccomp::set_filter(self.flags(), &self.code);
        if matches!(done, Err(Errno::EINVAL)) && self.flags & flag::DEFAULTED != 0 {
            done = sys::seccomp::set_filter(self.flags() & !flag::SPEC_ALLOW, &self.code);
        }
        let listener =
            done.doing("install the seccomp filter").map_err(|e| match e.errno.map(Errno::from_raw) {
                Some(Errno::EACCES) => e.hint("it needs noNewPrivileges or CAP_SYS_ADMIN"),
                Some(Errno::EBUSY) => e.hint("the process is already under a filter that has a listener"),
                Some(Errno::EINVAL) => {
                    e.hint("is one of linux.seccomp.flags or the actions too new for this kernel?")
                }
                _ => e,
            })?;
        Ok(listener)
    }
}
