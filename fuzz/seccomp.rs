// The profile's parser and the compiler: no input panics or hangs, and where a program comes out, it
// does what `explain` reads in the profile.
//
// The first byte chooses: the rest is JSON, or the choices of which a profile is made.

use dhow::seccomp::vm::{Data, run};
use dhow::seccomp::{Abi, Native, Options, Program, compile, dump, explain, names};
use dhow::spec::{Seccomp, SeccompArg, SeccompRule};

/// Any bytes.
pub fn profile(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let mut bytes = Bytes(rest);
    let profile = if first & 1 == 0 {
        let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
        bytes = Bytes(&rest[end..]);
        match serde_json::from_slice(&rest[..end]) {
            Ok(profile) => profile,
            Err(_) => return,
        }
    } else {
        made(&mut bytes)
    };
    for native in [Native::X86_64, Native::Aarch64] {
        check(&profile, native, bytes);
    }
}

fn check(profile: &Seccomp, native: Native, mut bytes: Bytes<'_>) {
    let options = Options { native, unknown_syscall_fails: false };
    let Ok(program) = compile(profile, &options) else { return };
    assert!(program.code().len() <= 4096);
    assert_eq!(Program::from_bytes(&program.to_bytes()).as_ref(), Ok(&program));
    let _ = dump(&program);
    if program.is_empty() {
        return;
    }
    let names: Vec<&String> = profile.syscalls.iter().flat_map(|rule| &rule.names).collect();
    for _ in 0..8 {
        let abi = Abi::ALL[usize::from(bytes.byte()) % 5];
        let named = names.get(usize::from(bytes.byte())).and_then(|name| names::number_of(abi, name));
        let number = named.unwrap_or_else(|| u32::try_from(bytes.number() & 0xffff_ffff).unwrap_or(0));
        let args = std::array::from_fn(|_| bytes.number());
        let said = explain::decide(profile, &options, abi, number, &args).expect("it compiles");
        assert_eq!(run(program.code(), &Data { number, arch: abi.audit(), args }), Some(said.ret));
    }
}

/// The fuzzer's bytes as choices; zeroes when they have run out.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number near an edge, or any.
    fn number(&mut self) -> u64 {
        let edge = [0, 1, 8, 0x8000_0000, 0xffff_ffff, 1 << 32, 0x4000_0000, u64::MAX];
        match self.byte() {
            kind @ 0..200 => edge[usize::from(kind) % 8].wrapping_add(u64::from(kind / 8 % 3)),
            _ => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    fn of<'l>(&mut self, list: &[&'l str]) -> &'l str {
        list[usize::from(self.byte()) % list.len()]
    }
}

fn made(bytes: &mut Bytes<'_>) -> Seccomp {
    const ACTIONS: [&str; 7] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_LOG",
    ];
    const ARCHES: [&str; 4] = ["SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_ARM", "SCMP_ARCH_MIPS"];
    const NAMES: [&str; 12] = [
        "read",
        "clone",
        "socket",
        "socketcall",
        "shmat",
        "ipc",
        "ioctl",
        "set_tls",
        "mseal",
        "execve",
        "rseq",
        "nonsense",
    ];
    const OPS: [&str; 7] = [
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ];
    let many = |bytes: &mut Bytes<'_>, most: u8| 0..usize::from(bytes.byte() % (most + 1));
    let mut profile = Seccomp { default_action: bytes.of(&ACTIONS).into(), ..Seccomp::default() };
    profile.architectures = many(bytes, 3).map(|_| bytes.of(&ARCHES).into()).collect();
    for _ in many(bytes, 40) {
        let args = many(bytes, 3)
            .map(|_| SeccompArg {
                index: u32::from(bytes.byte() % 6),
                value: bytes.number(),
                value_two: bytes.number(),
                op: bytes.of(&OPS).into(),
            })
            .collect();
        let names = (0..=bytes.byte() % 3).map(|_| bytes.of(&NAMES).into()).collect();
        profile.syscalls.push(SeccompRule {
            names,
            action: bytes.of(&ACTIONS).into(),
            errno_ret: None,
            args,
        });
    }
    profile
}
