//! The architectures a filter can speak about, and how each of them numbers its syscalls.

/// The calling conventions that a kernel dhow runs on can present to a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    /// 64-bit x86.
    X86_64,
    /// x86_64's 32-bit pointers: x86_64's audit number, syscalls with bit 30 set.
    X32,
    /// 32-bit x86.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI).
    Arm,
}

/// The bit that tells an x32 syscall from one of x86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// Where ARM's private syscalls (`set_tls`, `cacheflush`, …) begin.
pub(super) const ARM_PRIVATE: u32 = 0x000f_0000;

impl Abi {
    /// Every ABI, in the order of the columns of the syscall table.
    pub const ALL: [Abi; 5] = [Abi::X86_64, Abi::X32, Abi::X86, Abi::Aarch64, Abi::Arm];

    /// The kernel's `AUDIT_ARCH_*` number, which a filter reads from `seccomp_data.arch`.
    pub const fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared by their low 32 bits only, as libseccomp does.
    pub const fn is_32(self) -> bool {
        matches!(self, Abi::X32 | Abi::X86 | Abi::Arm)
    }

    /// What every syscall number of this ABI has set.
    pub(super) const fn base(self) -> u32 {
        if matches!(self, Abi::X32) { X32_BIT } else { 0 }
    }

    /// The name that a profile uses.
    pub const fn oci_name(self) -> &'static str {
        match self {
            Abi::X86_64 => "SCMP_ARCH_X86_64",
            Abi::X32 => "SCMP_ARCH_X32",
            Abi::X86 => "SCMP_ARCH_X86",
            Abi::Aarch64 => "SCMP_ARCH_AARCH64",
            Abi::Arm => "SCMP_ARCH_ARM",
        }
    }
}

/// The architecture of the kernel that the filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// An x86_64 kernel: runs x86_64, x86 and x32.
    X86_64,
    /// An aarch64 kernel: runs aarch64 and arm.
    Aarch64,
}

impl Native {
    /// The architecture that this binary was built for.
    pub const HOST: Native = if cfg!(target_arch = "aarch64") { Native::Aarch64 } else { Native::X86_64 };

    /// The ABI that is always part of a filter.
    pub const fn abi(self) -> Abi {
        match self {
            Native::X86_64 => Abi::X86_64,
            Native::Aarch64 => Abi::Aarch64,
        }
    }

    /// The ABI with an audit number of its own that this kernel may run besides.
    pub const fn compat(self) -> Abi {
        match self {
            Native::X86_64 => Abi::X86,
            Native::Aarch64 => Abi::Arm,
        }
    }
}

/// Which ABIs a filter covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct AbiSet(u8);

impl AbiSet {
    pub fn insert(&mut self, abi: Abi) {
        self.0 |= 1 << abi as u8;
    }

    pub fn has(self, abi: Abi) -> bool {
        self.0 & (1 << abi as u8) != 0
    }
}

/// Every architecture that runtime-spec 1.3 names, without `SCMP_ARCH_`. A profile may list any of
/// them; only those that the kernel can run have an effect.
#[rustfmt::skip]
const SPEC_ARCHES: [&str; 23] = [
    "X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL", "MIPSEL64",
    "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC", "PARISC64", "RISCV64",
    "LOONGARCH64", "M68K", "SH", "SHEB",
];

/// The names of the specification's architectures.
pub(super) fn spec_names() -> impl Iterator<Item = String> {
    SPEC_ARCHES.iter().map(|name| format!("SCMP_ARCH_{name}"))
}

/// What a profile's architecture means: `None` when there is no such name, `Some(None)` when it is
/// one that neither kind of kernel runs.
pub(super) fn parse(name: &str) -> Option<Option<Abi>> {
    if let Some(abi) = Abi::ALL.into_iter().find(|abi| abi.oci_name() == name) {
        return Some(Some(abi));
    }
    let short = name.strip_prefix("SCMP_ARCH_")?;
    SPEC_ARCHES.contains(&short).then_some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_spec() {
        assert_eq!(parse("SCMP_ARCH_X32"), Some(Some(Abi::X32)));
        assert_eq!(parse("SCMP_ARCH_S390X"), Some(None));
        assert_eq!(parse("SCMP_ARCH_SHEB"), Some(None));
        assert_eq!(parse("X86_64"), None);
        assert_eq!(parse("SCMP_ARCH_"), None);
        assert_eq!(parse("SCMP_ARCH_Z80"), None);
    }

    #[test]
    fn audit_numbers_are_the_kernels() {
        // EM_X86_64 62, EM_386 3, EM_AARCH64 183, EM_ARM 40; bit 31: 64-bit, bit 30: little endian.
        assert_eq!(Abi::X86_64.audit(), 62 | 0xc000_0000);
        assert_eq!(Abi::X86.audit(), 3 | 0x4000_0000);
        assert_eq!(Abi::Aarch64.audit(), 183 | 0xc000_0000);
        assert_eq!(Abi::Arm.audit(), 40 | 0x4000_0000);
    }
}
