//! The runtime's own binary, which no container may overwrite (CVE-2019-5736).
//!
//! A process that enters a container is, until its exec, this binary, and `/proc/PID/exe` leads
//! to it: an image whose entrypoint is `/proc/self/exe`, or a process inside that waits for an
//! exec, can get hold of the file and write to it once it is idle. So commands that enter
//! containers first run themselves anew from a place that cannot be written: a detached read-only
//! mount of the file, which copies nothing, or where that may not be made, a sealed copy in memory.

use super::mount::{self, Attributes, Change};
use super::{errno, io_errno};
use nix::errno::Errno;
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use std::convert::Infallible;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Where the kernel shows the file that this process runs from.
const SELF: &str = "/proc/self/exe";

/// Every way to change a file in memory.
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Sees to it that this process runs from a file that cannot be written. Returns when it does;
/// otherwise it runs the program anew, with the same arguments and environment.
///
/// # Errors
/// When neither a read-only mount nor a sealed copy can be made.
pub fn protect() -> nix::Result<()> {
    let own = rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(errno)?;
    if is_unwritable(own.as_fd())? {
        return Ok(());
    }
    let copy = match readonly_mount() {
        // Without the right to mount.
        Err(Errno::EPERM | Errno::ENOSYS | Errno::EINVAL) => sealed_copy(own)?,
        copy => copy?,
    };
    run_from(copy.as_fd()).map(|never| match never {})
}

/// Whether nobody can write the file through the mount that it was reached by, or at all.
fn is_unwritable(own: BorrowedFd<'_>) -> nix::Result<bool> {
    let mount = rustix::fs::fstatvfs(own).map_err(errno)?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    if rustix::fs::fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SEALS)) {
        return Ok(true);
    }
    // Someone who is not root maps at most their own ids into a container: what they cannot
    // write, and do not own, a container cannot write either.
    let user = rustix::process::geteuid();
    let owner = rustix::fs::fstat(own).map_err(errno)?.st_uid;
    let may_write =
        rustix::fs::accessat(rustix::fs::CWD, SELF, rustix::fs::Access::WRITE_OK, AtFlags::EACCESS);
    Ok(!user.is_root() && owner != user.as_raw() && may_write.is_err())
}

/// A detached read-only mount of the file alone.
fn readonly_mount() -> nix::Result<OwnedFd> {
    let tree = mount::open_tree(rustix::fs::CWD, Path::new(SELF), false, true)?;
    let set = Attributes::MOUNT_ATTR_RDONLY | Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    mount::change(tree.as_fd(), Change { set, ..Change::none() }, false)?;
    // Looked at again: were it not read-only after all, running it anew would never end.
    let mounted = rustix::fs::fstatvfs(&tree).map_err(errno)?;
    if mounted.f_flag.contains(StatVfsMountFlags::RDONLY) { Ok(tree) } else { Err(Errno::EINVAL) }
}

/// A copy in memory that can never be changed.
fn sealed_copy(own: OwnedFd) -> nix::Result<OwnedFd> {
    let memory =
        rustix::fs::memfd_create("dhow", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(errno)?;
    let mut source = std::fs::File::from(own);
    let mut copy = std::fs::File::from(memory);
    std::io::copy(&mut source, &mut copy).map_err(|error| io_errno(&error))?;
    let memory = OwnedFd::from(copy);
    rustix::fs::fcntl_add_seals(&memory, SEALS).map_err(errno)?;
    Ok(memory)
}

/// The file that this process runs from, to be run anew in a container by [`run_as`].
///
/// # Errors
/// ENOENT without /proc.
pub fn open() -> nix::Result<OwnedFd> {
    rustix::fs::open(SELF, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(errno)
}

/// fexecve(3) with this process's own arguments and environment.
fn run_from(file: BorrowedFd<'_>) -> nix::Result<Infallible> {
    let word = |text: &OsStr| CString::new(text.as_bytes()).map_err(|_| Errno::EINVAL);
    let arguments = std::env::args_os().map(|text| word(&text)).collect::<nix::Result<Vec<CString>>>()?;
    let variables = std::env::vars_os().map(|(name, value)| {
        let mut text = name;
        text.push("=");
        text.push(value);
        word(&text)
    });
    run_as(file, &arguments, &variables.collect::<nix::Result<Vec<CString>>>()?)
}

/// fexecve(3).
///
/// # Errors
/// execveat(2)'s.
pub fn run_as(
    file: BorrowedFd<'_>,
    arguments: &[CString],
    environment: &[CString],
) -> nix::Result<Infallible> {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let path = c"".as_ptr();
    // SAFETY: a C string and two null-terminated arrays of C strings, all of which outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            path,
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(Errno::result(result).err().unwrap_or(Errno::ENOEXEC))
}
