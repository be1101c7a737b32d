//! Profiles for tests: random ones, from a seed.

use crate::spec::{Seccomp, SeccompArg, SeccompRule};

/// A small random number generator (splitmix64): reproducible, without a dependency.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Values near which comparisons go wrong.
pub const EDGES: [u64; 14] = [
    0,
    1,
    2,
    5,
    8,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x1_0000_0000,
    0x1_0000_0001,
    0x5_0000_0005,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

pub fn value(r: &mut Random) -> u64 {
    match r.below(4) {
        0 => r.next() >> r.below(64),
        1 => r.of(&EDGES).wrapping_add(r.below(3) as u64).wrapping_sub(1),
        _ => r.of(&EDGES),
    }
}

const OPS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

const ARCHES: [&str; 6] = [
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_RISCV64",
];

/// An action with its errno.
fn action(r: &mut Random) -> (String, Option<u32>) {
    let name = r.of(&[
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_LOG",
    ]);
    let takes = matches!(name, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
    let errno = (takes && r.chance(60)).then(|| u32::try_from(r.below(5)).unwrap());
    (name.to_owned(), errno)
}

fn arg(r: &mut Random) -> SeccompArg {
    let op = r.of(&OPS);
    let masked = op == "SCMP_CMP_MASKED_EQ";
    let value = if masked && r.chance(30) { 1 << r.below(64) } else { value(r) };
    let value_two = match r.below(3) {
        0 => 0,
        1 => value & r.next(),
        _ => self::value(r),
    };
    let index = if r.chance(70) { r.below(2) } else { r.below(6) };
    SeccompArg { index: u32::try_from(index).unwrap(), value, value_two, op: op.to_owned() }
}

fn rule(r: &mut Random, names: &[&'static str]) -> SeccompRule {
    let (action, errno_ret) = action(r);
    let count = if r.chance(30) { 1 + r.below(40) } else { 1 + r.below(3) };
    let names =
        (0..count).map(|_| if r.chance(2) { "no_such_call" } else { r.of(names) }.to_owned()).collect();
    let args = if r.chance(50) { (0..=r.below(3)).map(|_| arg(r)).collect() } else { Vec::new() };
    SeccompRule { names, action, errno_ret, args }
}

/// A valid profile. Some draw on few names, so that many rules fall on one syscall.
pub fn profile(r: &mut Random) -> Seccomp {
    let all: Vec<&str> = super::names::all().map(super::names::Id::name).collect();
    let few: Vec<&str> = ["socket", "clone", "ioctl", "socketcall", "ipc", "shmget", "read", "set_tls"]
        .into_iter()
        .chain((0..4).map(|_| all[r.below(all.len())]))
        .collect();
    let names = if r.chance(60) { &few } else { &all };
    let (default_action, default_errno_ret) = action(r);
    let rules = if r.chance(20) { r.below(60) } else { r.below(10) };
    Seccomp {
        default_action,
        default_errno_ret,
        architectures: (0..r.below(6)).map(|_| r.of(&ARCHES).to_owned()).collect(),
        flags: None,
        syscalls: (0..rules).map(|_| rule(r, names)).collect(),
        ..Seccomp::default()
    }
}
