//! bpf(2), as far as device control of cgroup v2 needs it.

use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One instruction (kernel: Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// The operation.
    pub code: u8,
    registers: u8,
    /// A jump's distance, or a memory offset.
    pub offset: i16,
    /// The constant.
    pub constant: i32,
}

impl Insn {
    /// An instruction on a destination and a source register.
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, constant: i32) -> Insn {
        // The two four-bit fields follow the machine's byte order.
        let registers = if cfg!(target_endian = "little") {
            destination & 15 | source << 4
        } else {
            destination << 4 | source & 15
        };
        Insn { code, registers, offset, constant }
    }

    /// The destination register.
    pub const fn destination(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 15 } else { self.registers >> 4 }
    }

    /// The source register.
    pub const fn source(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 15 }
    }
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;

const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const F_ALLOW_MULTI: u32 = 2;
const F_REPLACE: u32 = 4;

/// A program's name, as `bpftool` shows it.
pub type Name = [u8; 16];

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: Name,
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    pointers: [u64; 2],
    load_time: u64,
    created_by_uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: Name,
}

/// The size of one of the structures here, all of which are small.
#[expect(clippy::cast_possible_truncation)]
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// bpf(2) with one of the structures of this file, whose pointers are valid for the call.
fn call<T>(command: libc::c_int, attr: &mut T) -> nix::Result<libc::c_long> {
    let attr = std::ptr::from_mut(attr);
    // SAFETY: `attr` is a live structure of the size given; the kernel reads it, and writes at
    // most into it and into the buffers that the callers put there and keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size::<T>()) };
    Errno::result(result)
}

fn call_for_fd<T>(command: libc::c_int, attr: &mut T) -> nix::Result<OwnedFd> {
    let fd = i32::try_from(call(command, attr)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN or CAP_SYS_ADMIN, EINVAL or EACCES when the kernel's
/// verifier refuses it, ENOSYS without eBPF.
pub fn load_device_program(program: &[Insn], name: Name) -> nix::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        prog_name: name,
        expected_attach_type: ATTACH_CGROUP_DEVICE,
        ..LoadAttr::default()
    };
    call_for_fd(PROG_LOAD, &mut attr)
}

/// Attaches a device program to a cgroup beside those that are there, or in place of one of them.
///
/// # Errors
/// EPERM; EINVAL where the kernel (before 5.6) cannot replace; ENOENT when `replace` is not attached.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> nix::Result<()> {
    let mut attr = AttachAttr {
        target_fd: fd_number(cgroup),
        attach_bpf_fd: fd_number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: F_ALLOW_MULTI | if replace.is_some() { F_REPLACE } else { 0 },
        replace_bpf_fd: replace.map_or(0, fd_number),
    };
    call(PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches a device program from a cgroup.
///
/// # Errors
/// EPERM; ENOENT when it is not attached.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> nix::Result<()> {
    let mut attr = AttachAttr {
        target_fd: fd_number(cgroup),
        attach_bpf_fd: fd_number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    call(PROG_DETACH, &mut attr).map(drop)
}

/// The device programs attached to a cgroup itself, by id.
///
/// # Errors
/// EPERM; EINVAL on kernels that have none.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> nix::Result<Vec<u32>> {
    // The kernel allows 64 programs of a type on one cgroup.
    let mut ids = vec![0_u32; 64];
    let mut attr = QueryAttr {
        target_fd: fd_number(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: 64,
        ..QueryAttr::default()
    };
    call(PROG_QUERY, &mut attr)?;
    ids.truncate(attr.prog_cnt as usize);
    Ok(ids)
}

/// Opens a loaded program.
///
/// # Errors
/// EPERM; ENOENT when it is gone.
pub fn program_by_id(id: u32) -> nix::Result<OwnedFd> {
    call_for_fd(PROG_GET_FD_BY_ID, &mut IdAttr { prog_id: id, ..IdAttr::default() })
}

/// The name that a program was loaded with.
///
/// # Errors
/// EPERM; EINVAL on kernels that cannot tell.
pub fn program_name(program: BorrowedFd<'_>) -> nix::Result<Name> {
    let mut info = ProgInfo::default();
    let mut attr = InfoAttr {
        bpf_fd: fd_number(program),
        info_len: size::<ProgInfo>(),
        info: std::ptr::from_mut(&mut info) as u64,
    };
    call(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_the_kernels() {
        assert_eq!(size::<Insn>(), 8);
        assert_eq!(std::mem::offset_of!(LoadAttr, prog_name), 48);
        assert_eq!(std::mem::offset_of!(LoadAttr, expected_attach_type), 68);
        assert_eq!(std::mem::offset_of!(QueryAttr, prog_ids), 16);
        assert_eq!(std::mem::offset_of!(ProgInfo, name), 64);
    }

    #[test]
    fn registers_come_back() {
        let insn = Insn::new(0x61, 2, 1, 4, 0);
        assert_eq!((insn.destination(), insn.source()), (2, 1));
    }
}
