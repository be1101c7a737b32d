//! Generates `table.rs`, and proves that the one checked in is current.

use super::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Name -> number, for one ABI.
type Column = BTreeMap<String, u16>;

macro_rules! column {
    ($arch:ident) => {
        syscalls::$arch::Sysno::iter()
            .map(|nr| (nr.name().to_owned(), u16::try_from(nr.id()).unwrap_or(ABSENT)))
            .collect::<Column>()
    };
}

/// What x32 numbers otherwise than x86_64 (the kernel's syscall_64.tbl, entries of ABI `x32`), from 512.
#[rustfmt::skip]
const X32_OWN: [&str; 36] = [
    "rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom", "sendmsg", "recvmsg", "execve",
    "ptrace", "rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo", "sigaltstack", "timer_create",
    "mq_notify", "kexec_load", "waitid", "set_robust_list", "get_robust_list", "vmsplice", "move_pages",
    "preadv", "pwritev", "rt_tgsigqueueinfo", "recvmmsg", "sendmmsg", "process_vm_readv",
    "process_vm_writev", "setsockopt", "getsockopt", "io_setup", "io_submit", "execveat", "preadv2",
    "pwritev2",
];

/// What x86_64 has and x32 has not (entries of ABI `64`).
#[rustfmt::skip]
const NOT_X32: [&str; 14] = [
    "uselib", "_sysctl", "create_module", "get_kernel_syms", "query_module", "nfsservctl",
    "set_thread_area", "get_thread_area", "epoll_ctl_old", "epoll_wait_old", "vserver", "uretprobe",
    "uprobe", "map_shadow_stack",
];

/// `socketcall`'s selectors from 1 (linux/net.h), and `ipc`'s (linux/ipc.h).
#[rustfmt::skip]
const SOCKETCALL: [&str; 20] = [
    "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send",
    "recv", "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4",
    "recvmmsg", "sendmmsg",
];
#[rustfmt::skip]
const IPCS: [(&str, u8); 12] = [
    ("semop", 1), ("semget", 2), ("semctl", 3), ("semtimedop", 4), ("msgsnd", 11), ("msgrcv", 12),
    ("msgget", 13), ("msgctl", 14), ("shmat", 21), ("shmdt", 22), ("shmget", 23), ("shmctl", 24),
];

/// The five columns, with what the crate lacks or has wrong put right.
fn columns() -> [Column; 5] {
    let x86_64 = column!(x86_64);
    let mut x32 = x86_64.clone();
    x32.retain(|name, _| !NOT_X32.contains(&name.as_str()));
    for (number, name) in (512..).zip(X32_OWN) {
        x32.insert(name.into(), number);
    }
    let mut x86 = column!(x86);
    x86.insert("break".into(), 17);
    let mut aarch64 = column!(aarch64);
    // The crate lists the 32-bit ABIs' time64 calls, and knows 79 by a name that no header has.
    aarch64.retain(|name, nr| !(403..=423).contains(nr) && name != "fstatat");
    aarch64.insert("newfstatat".into(), 79);
    let mut arm = column!(arm);
    let private = ["breakpoint", "cacheflush", "usr26", "usr32", "set_tls", "get_tls"];
    for (number, name) in (PRIVATE + 1..).zip(private) {
        arm.insert(name.into(), number);
    }
    [x86_64, x32, x86, aarch64, arm]
}

/// Names that only other architectures have: known, though never in a filter of ours.
fn foreign() -> impl Iterator<Item = String> {
    [
        column!(loongarch64),
        column!(mips),
        column!(mips64),
        column!(powerpc),
        column!(powerpc64),
        column!(riscv64),
        column!(s390x),
    ]
    .into_iter()
    .flat_map(Column::into_keys)
}

/// Every name once, in order.
fn all_names(columns: &[Column; 5]) -> Vec<String> {
    let mut names: Vec<String> = columns.iter().flat_map(|c| c.keys().cloned()).chain(foreign()).collect();
    names.extend(SOCKETCALL.iter().copied().chain(IPCS.iter().map(|(name, _)| *name)).map(str::to_owned));
    names.sort();
    names.dedup();
    names
}

fn array<T: std::fmt::Display>(out: &mut String, doc: &str, name: &str, kind: &str, items: &[T]) {
    writeln!(out, "\n/// {doc}\n#[rustfmt::skip]\npub(super) static {name}: [{kind}; {}] = [", items.len())
        .unwrap();
    rows(out, items);
    out.push_str("];\n");
}

fn rows<T: std::fmt::Display>(out: &mut String, items: &[T]) {
    for row in items.chunks(20) {
        let row: Vec<String> = row.iter().map(ToString::to_string).collect();
        writeln!(out, "    {},", row.join(",")).unwrap();
    }
}

fn generate() -> String {
    let columns = columns();
    let names = all_names(&columns);
    let mut slots = vec![ABSENT; SLOTS.len()];
    let mut offsets = vec![0u16];
    let mut mux = Vec::new();
    for (id, name) in names.iter().enumerate() {
        let mut slot = hash(name.as_bytes());
        while slots[slot] != ABSENT {
            slot = (slot + 1) % slots.len();
        }
        slots[slot] = u16::try_from(id).unwrap();
        offsets.push(offsets[id] + u16::try_from(name.len()).unwrap());
        let socket = SOCKETCALL.iter().zip(1u8..).find(|(n, _)| *n == name).map(|(_, selector)| selector);
        let ipc = IPCS.iter().find(|(n, _)| n == name).map(|(_, selector)| selector | IPC);
        mux.push(socket.or(ipc).unwrap_or(0));
    }
    let mut out = String::from(
        "//! Generated from the crate `syscalls` by names_test.rs: DHOW_REGENERATE=1 cargo test table_is_current\n\n\
         /// Every name, one after the other, in alphabetical order.\n#[rustfmt::skip]\n\
         pub(super) static NAMES: &str = \"\\\n",
    );
    for row in names.chunks(6) {
        writeln!(out, "{}\\", row.concat()).unwrap();
    }
    out.push_str("\";\n");
    array(&mut out, "Where each name begins, and where the last one ends.", "OFFSETS", "u16", &offsets);
    array(&mut out, "The hash table: places of names, 65535 where there is none.", "SLOTS", "u16", &slots);
    array(&mut out, "Selectors of x86's `socketcall`, and of its `ipc` with bit 7 set.", "MUX", "u8", &mux);
    writeln!(
        out,
        "\n/// Numbers by ABI, in the order of `Abi::ALL`; 65535 where it has no such syscall.\n#[rustfmt::skip]\n\
         pub(super) static NUMBERS: [[u16; {}]; 5] = [",
        names.len()
    )
    .unwrap();
    for column in &columns {
        let numbers: Vec<u16> = names.iter().map(|n| column.get(n).copied().unwrap_or(ABSENT)).collect();
        out.push_str("    [\n");
        rows(&mut out, &numbers);
        out.push_str("    ],\n");
    }
    out.push_str("];\n");
    out
}

#[test]
fn table_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/table.rs");
    let wanted = generate();
    if std::env::var_os("DHOW_REGENERATE").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    assert!(
        wanted == include_str!("table.rs"),
        "table.rs is stale: DHOW_REGENERATE=1 cargo test table_is_current, twice"
    );
}

#[test]
fn finds_every_name_and_no_other() {
    for id in all() {
        assert_eq!(find(id.name()), Some(id));
    }
    for name in ["", "open_", "ope", "\u{fc}", "no_such_syscall"] {
        assert_eq!(find(name), None, "{name}");
    }
}

#[test]
fn numbers_are_the_kernels() {
    for (abi, name, number) in [
        (Abi::X86_64, "getppid", Some(110)),
        (Abi::X86, "getppid", Some(64)),
        (Abi::X32, "getppid", Some(0x4000_006e)),
        (Abi::X32, "execve", Some(0x4000_0208)),
        (Abi::X32, "pwritev2", Some(0x4000_0223)),
        (Abi::X32, "uselib", None),
        (Abi::Aarch64, "newfstatat", Some(79)),
        (Abi::Aarch64, "open", None),
        (Abi::Arm, "set_tls", Some(0x000f_0005)),
        (Abi::X86, "accept", None),
        (Abi::X86_64, "mseal", Some(462)),
    ] {
        assert_eq!(number_of(abi, name), number, "{abi:?} {name}");
    }
    assert_eq!(name_of(Abi::X86_64, 110), Some("getppid"));
    assert_eq!(find("accept").unwrap().multiplexed(), Some(Multiplexed { through: 102, selector: 5 }));
    assert_eq!(find("shmctl").unwrap().multiplexed(), Some(Multiplexed { through: 117, selector: 24 }));
    assert!(find("swapcontext").is_some(), "a name of another architecture is known");
}
