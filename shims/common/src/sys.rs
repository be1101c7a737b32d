//! The few syscalls, over libc. The only place with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// The errno of the last call.
pub fn errno() -> i32 {
    // SAFETY: takes nothing, answers a pointer.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: the pointer is to this thread's errno.
    unsafe { *place }
}

/// Nanoseconds since 1970.
pub fn now() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

/// Milliseconds of a clock that nobody sets.
pub fn milliseconds() -> u64 {
    clock(libc::CLOCK_MONOTONIC) / 1_000_000
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one structure that outlives the call.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A moment as `(year, month, day, hour, minute, second)` in UTC.
pub fn utc(seconds: i64) -> [i32; 6] {
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: reads one number, writes one structure; both outlive the call.
    unsafe { libc::gmtime_r(&raw const seconds, tm.as_mut_ptr()) };
    // SAFETY: zeroes are a valid tm, should the year have been out of its range.
    let tm = unsafe { tm.assume_init() };
    [tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec]
}

/// Makes the orphans below this process its own (prctl(2), PR_SET_CHILD_SUBREAPER), in a session
/// and a directory that keep nobody from anything.
pub fn stay_behind() {
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    // SAFETY: takes nothing.
    unsafe { libc::setsid() };
    // SAFETY: a C string.
    unsafe { libc::chdir(c"/".as_ptr()) };
}

/// Makes this process end with its parent, or takes that back (prctl(2), PR_SET_PDEATHSIG).
pub fn end_with_parent(ends: bool) {
    let signal = if ends { libc::SIGKILL } else { 0 };
    // SAFETY: takes numbers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0) };
}

/// Whether nobody can read from a pipe any more of which this is the writing end.
pub fn is_deserted(fd: RawFd) -> bool {
    let mut pipe = libc::pollfd { fd, events: 0, revents: 0 };
    // SAFETY: one structure, which outlives the call.
    unsafe { libc::poll(&raw mut pipe, 1, 0) };
    pipe.revents & libc::POLLERR != 0
}

/// The signals that wake the monitor, held back and readable as a file.
///
/// # Errors
/// errno, EMFILE above all.
pub fn signal_file(signals: &[i32]) -> Result<OwnedFd, i32> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set outlives the call.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was made by sigemptyset.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: reads the set; no old one is asked for.
    unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
    // SAFETY: reads the set.
    own(unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) })
}

/// Reads the number of one signal.
pub fn read_signal(file: &OwnedFd) -> Option<u32> {
    let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: writes at most the structure's size into it.
    let got = unsafe { libc::read(file.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    // SAFETY: plain numbers, for which zeroes are valid.
    let info = unsafe { info.assume_init() };
    (usize::try_from(got) == Ok(size)).then_some(info.ssi_signo)
}

fn own(fd: RawFd) -> Result<OwnedFd, i32> {
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: a new fd, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A pipe whose reader does not wait: (reader, writer).
///
/// # Errors
/// errno.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), i32> {
    let mut fds = [-1; 2];
    // SAFETY: writes two numbers.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(errno());
    }
    let (reader, writer) = (own(fds[0])?, own(fds[1])?);
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    Ok((reader, writer))
}

/// read(2); `None` when there is nothing now, 0 at the end.
pub fn read(fd: RawFd, buffer: &mut [u8]) -> Option<usize> {
    // SAFETY: writes at most the buffer's length into it.
    let got = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) };
    usize::try_from(got).ok()
}

/// write(2) of all; whether all went.
pub fn write_all(fd: RawFd, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        // SAFETY: reads at most the slice's length from it.
        let put = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(put) {
            Ok(0) => return false,
            Ok(put) => bytes = &bytes[put..],
            Err(_) if errno() == libc::EINTR => {}
            Err(_) => return false,
        }
    }
    true
}

/// Opens a file to append to, close-on-exec; private to its owner when it is new.
///
/// # Errors
/// errno.
pub fn open_log(path: &CStr) -> Result<OwnedFd, i32> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND | libc::O_CLOEXEC;
    // SAFETY: a C string and numbers.
    own(unsafe { libc::open(path.as_ptr(), flags, 0o640) })
}

/// Opens the file that swallows everything.
///
/// # Errors
/// errno.
pub fn null() -> Result<OwnedFd, i32> {
    // SAFETY: a C string and numbers.
    own(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) })
}

/// A file's size, 0 when it cannot be told.
pub fn size(file: &OwnedFd) -> u64 {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: writes one structure that outlives the call.
    unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) };
    // SAFETY: plain numbers, for which zeroes are valid.
    unsafe { stat.assume_init() }.st_size.try_into().unwrap_or(0)
}

/// rename(2), and nothing more to say when it fails.
pub fn rename(from: &CStr, to: &CStr) {
    // SAFETY: two C strings.
    unsafe { libc::rename(from.as_ptr(), to.as_ptr()) };
}

/// unlink(2), likewise.
pub fn unlink(path: &CStr) {
    // SAFETY: a C string.
    unsafe { libc::unlink(path.as_ptr()) };
}

/// Puts a file in the place of another fd: dup2(2).
pub fn replace(file: &OwnedFd, target: RawFd) {
    // SAFETY: takes numbers.
    unsafe { libc::dup2(file.as_raw_fd(), target) };
}

/// Takes a variable out of this process's environment, and so out of that of all it starts.
pub fn forget(name: &CStr) {
    // SAFETY: this process has one thread, so that nobody reads the environment meanwhile.
    unsafe { libc::unsetenv(name.as_ptr()) };
}

/// Starts a program with these as its stdin, stdout and stderr (-1 for the caller's own), which ends
/// with this process if it is `bound` to it; its pid.
///
/// # Errors
/// errno.
pub fn spawn(words: &[CString], stdio: [RawFd; 3], bound: bool) -> Result<i32, i32> {
    spawn_with(words, &stdio, &[], bound)
}

/// The same with more files, which become 3, 4 and so on, and with `NAME=value` words that are added
/// to the environment.
///
/// # Errors
/// errno.
pub fn spawn_with(
    words: &[CString],
    files: &[RawFd],
    environment: &[CString],
    bound: bool,
) -> Result<i32, i32> {
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(ptr::null());
    let parent = std::process::id().cast_signed();
    // SAFETY: this process has one thread, so that its child may go on as it likes.
    match unsafe { libc::fork() } {
        -1 => Err(errno()),
        0 => {
            end_with_parent(bound);
            // SAFETY: takes nothing.
            if bound && unsafe { libc::getppid() } != parent {
                // It had ended before that.
                // SAFETY: ends this process, which is the child.
                unsafe { libc::_exit(127) }
            }
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
            // SAFETY: the set outlives the call.
            unsafe { libc::sigemptyset(none.as_mut_ptr()) };
            // SAFETY: reads the set, which sigemptyset made.
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
            // Rust's start has it ignored, which execve(2) would hand on.
            // SAFETY: takes numbers.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            for (target, source) in (0..).zip(out_of_the_way(files)).filter(|(_, source)| *source >= 0) {
                // SAFETY: takes numbers.
                unsafe { libc::dup2(source, target) };
            }
            for word in environment {
                // SAFETY: a C string, which outlives the environment: execve(2) ends both.
                unsafe { libc::putenv(word.as_ptr().cast_mut()) };
            }
            // SAFETY: a null-terminated array of C strings, all of which outlive the call.
            unsafe { libc::execvp(argv[0], argv.as_ptr()) };
            write_all(2, b"dhow-monitor: dhow itself cannot be started: execve(2) failed\n");
            // SAFETY: ends this process, which is the child.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(pid),
    }
}

/// Looks for any child that has ended, and leaves it the zombie that it is: its pid and exit code,
/// 128 + N for signal N. `None` when there is none now.
pub fn look_for_ended() -> Option<(i32, i32)> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: writes one structure that outlives the call.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
    // SAFETY: plain numbers, for which zeroes are valid: what is there when no child has ended.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid(2) fills it in.
    let pid = unsafe { info.si_pid() };
    // SAFETY: likewise.
    let status = unsafe { info.si_status() };
    let code = if info.si_code == libc::CLD_EXITED { status } else { 128 + status };
    (result == 0 && pid > 0).then_some((pid, code))
}

/// Copies of files that none of the targets 0, 1, 2… takes the place of. With stdio alone there is
/// nothing to do: nobody has files there that are to become others.
fn out_of_the_way(files: &[RawFd]) -> Vec<RawFd> {
    let beyond = i32::try_from(files.len()).unwrap_or(i32::MAX);
    let copy = |&file: &RawFd| match file >= 0 && files.len() > 3 {
        // SAFETY: takes numbers.
        true => unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, beyond) },
        false => file,
    };
    files.iter().map(copy).collect()
}

/// Goes on as a child, while the parent does what it has left to do: whether this is the child.
///
/// # Errors
/// errno.
pub fn split() -> Result<bool, i32> {
    // SAFETY: this process has one thread, so that its child may go on as it likes.
    match unsafe { libc::fork() } {
        -1 => Err(errno()),
        pid => Ok(pid == 0),
    }
}

/// The user namespace that a namespace belongs to (`ioctl_nsfs(2)`, `NS_GET_USERNS`).
///
/// # Errors
/// errno.
pub fn owner_of(namespace: &OwnedFd) -> Result<OwnedFd, i32> {
    const GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: takes no argument.
    own(unsafe { libc::ioctl(namespace.as_raw_fd(), GET_USERNS as _) })
}

/// A user namespace with these maps, in the words of user_namespaces(7), for idmapped mounts: no process is in it.
///
/// # Errors
/// What the kernel refuses.
pub fn user_namespace(uids: &str, gids: &str) -> std::io::Result<OwnedFd> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: this process has one thread, and the child does nothing but wait to be killed; without a
    // stack of its own clone(2) is fork(2).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid < 0 {
        return Err(std::io::Error::last_os_error());
    }
    if pid == 0 {
        end_with_parent(true);
        loop {
            // SAFETY: takes nothing.
            unsafe { libc::pause() };
        }
    }
    let place = |name: &str| format!("/proc/{pid}/{name}");
    let made = std::fs::write(place("uid_map"), uids)
        .and_then(|()| std::fs::write(place("gid_map"), gids))
        .and_then(|()| std::fs::File::open(place("ns/user")));
    let pid = i32::try_from(pid).unwrap_or(0);
    // SAFETY: takes numbers; it is the child, which nobody has waited for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    // SAFETY: takes numbers; no status is asked for.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    made.map(OwnedFd::from)
}

/// Has a mount show its files' ids as a user namespace maps them, which must not be attached yet
/// (mount_setattr(2)), read-only if asked.
///
/// # Errors
/// errno.
pub fn map_ids(mount: &OwnedFd, users: &OwnedFd, is_read_only: bool) -> Result<(), i32> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | if is_read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::from(users.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: reads a C string and one structure, whose size is said; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 { Err(errno()) } else { Ok(()) }
}

/// kill(2). The pid of a child that has not been waited for is its own.
///
/// # Errors
/// errno.
pub fn kill(pid: i32, signal: i32) -> Result<(), i32> {
    // SAFETY: takes numbers.
    if unsafe { libc::kill(pid, signal) } < 0 { Err(errno()) } else { Ok(()) }
}

/// Waits for any child that has ended: its pid and wait status. `None` when there is none now.
pub fn reap_any() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: writes one number.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Takes a child that has ended: its exit code, as in [`look_for_ended`]. `None` while it lives.
pub fn reap(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: writes one number.
    let ended = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (ended == pid).then_some(exit_code(status))
}

/// A wait status as a shell's exit code: 128 + N for signal N.
pub fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Waits until one of the fds can be read, or for so many milliseconds (-1: for ever); which can.
pub fn poll<const N: usize>(fds: [RawFd; N], timeout: i32) -> [bool; N] {
    let mut set = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    // SAFETY: as many structures as are said, which outlive the call.
    let ready = unsafe { libc::poll(set.as_mut_ptr(), N as libc::nfds_t, timeout) };
    set.map(|one| ready > 0 && one.revents != 0)
}

/// `struct loop_config` of linux/loop.h, with what is not used here left at 0.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    numbers: [u64; 5],
    lo_number: u32,
    encryption: [u32; 2],
    flags: u32,
    names: [[u8; 64]; 2],
    key: [u8; 32],
    rest: [u64; 2 + 8],
}

/// Makes a block device of a file (loop(4)) that goes when nobody has it open or mounted. Answers its
/// path, and the device, which must stay open until it is mounted.
///
/// # Errors
/// errno: ENOENT where there are no loop devices.
pub fn loop_device(backing: &OwnedFd, is_read_only: bool) -> Result<(String, OwnedFd), i32> {
    const GET_FREE: libc::c_ulong = 0x4c82;
    const CONFIGURE: libc::c_ulong = 0x4c0a;
    const READ_ONLY: u32 = 1;
    const AUTOCLEAR: u32 = 4;
    let open = |path: &str, flags: i32| {
        let path = CString::new(path).map_err(|_| libc::EINVAL)?;
        // SAFETY: a C string that outlives the call.
        let fd = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
        // SAFETY: the file is new and nobody else's.
        if fd < 0 { Err(errno()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
    };
    let control = open("/dev/loop-control", libc::O_RDWR)?;
    for _ in 0..64 {
        // SAFETY: takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE as _) };
        if number < 0 {
            return Err(errno());
        }
        let path = format!("/dev/loop{number}");
        let device = open(&path, if is_read_only { libc::O_RDONLY } else { libc::O_RDWR })?;
        let config = LoopConfig {
            fd: backing.as_raw_fd().cast_unsigned(),
            block_size: 0,
            numbers: [0; 5],
            lo_number: 0,
            encryption: [0; 2],
            flags: AUTOCLEAR | if is_read_only { READ_ONLY } else { 0 },
            names: [[0; 64]; 2],
            key: [0; 32],
            rest: [0; 10],
        };
        // SAFETY: reads one structure, which outlives the call and is as the kernel has it.
        if unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE as _, &raw const config) } == 0 {
            return Ok((path, device));
        }
        // Somebody else took it in between.
        if errno() != libc::EBUSY {
            return Err(errno());
        }
    }
    Err(libc::EBUSY)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_loop_config_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<super::LoopConfig>(), 8 + 232 + 64);
    }
}
