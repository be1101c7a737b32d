//! Processes named by a pidfd, or by pid and start time: never by pid alone.

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// Opens a pidfd of a process that exists.
///
/// # Errors
/// ESRCH when there is no such process.
pub fn open(pid: Pid) -> nix::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(Errno::ESRCH)?;
    pidfd_open(pid, PidfdFlags::empty()).map_err(super::errno)
}

/// pidfd_send_signal(2); `signal` may be a real-time one, or 0 to ask whether it lives.
///
/// # Errors
/// ESRCH when the process has ended, EPERM, EINVAL for an unknown signal.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo makes the kernel fill in its own; nothing else is pointed to.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    Errno::result(result).map(drop)
}

/// Waits until the process has ended (it may still be a zombie), or until `timeout`; whether it
/// has ended.
///
/// # Errors
/// poll(2)'s.
pub fn wait_ended(pidfd: BorrowedFd<'_>, timeout: Option<Duration>) -> nix::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let timeout = timeout.map_or(PollTimeout::NONE, |t| PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX));
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => {}
            result => return result.map(|ready| ready > 0),
        }
    }
}

/// How a process ended, of which only a pidfd is left: its exit code, 128 + N for signal N. `None`
/// when it has not been waited for, or the kernel keeps no such thing (before Linux 6.15).
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    /// `struct pidfd_info`, linux/pidfd.h, up to `exit_code`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const PIDFD_INFO_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`, for the 64 bytes of the first version.
    const PIDFD_GET_INFO: u64 = 0xc040_ff0b;
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the kernel writes at most the 64 bytes that the request's number says, which the
    // structure has.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result != 0 || info.mask & PIDFD_INFO_EXIT == 0 {
        return None;
    }
    Some(shell_code(info.exit_code))
}

/// A wait status as a shell's exit code: 128 + N for signal N.
fn shell_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// What `/proc/PID/stat` tells of a process that a record may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// proc_pid_stat(5) field 3: `R`, `S`, `Z`, …
    pub state: u8,
    /// Field 22, in clock ticks since boot; with the pid it names a process.
    pub start_time: u64,
    /// The signal that is ending it or has ended it; 0 for none, or where the kernel does not show
    /// field 52.
    pub end_signal: i32,
    /// How a zombie has ended, by the same field: its exit code, 128 + N for signal N.
    pub exit_code: Option<i32>,
    /// Whether it has called execve(2) since it was forked (PF_FORKNOEXEC, field 9): an init that has
    /// is the payload.
    pub has_executed: bool,
}

impl Stat {
    /// Whether it has ended, though nobody may have waited for it yet.
    pub fn has_ended(self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// Reads `/proc/PID/stat`. `None` when there is no such process, and only then: to take a process
/// for dead because the machine is out of file descriptors would be to lose it.
///
/// # Errors
/// EMFILE, ENOMEM, EIO; EINVAL for a text that is none of procfs's.
pub fn stat(pid: Pid) -> nix::Result<Option<Stat>> {
    let mut buffer = [0_u8; 1024];
    let path = format!("/proc/{pid}/stat");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let read = rustix::fs::open(path, flags, 0.into()).and_then(|file| rustix::io::read(&file, &mut buffer));
    match read {
        Ok(length) => parse_stat(&buffer[..length]).map(Some).ok_or(Errno::EINVAL),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => Ok(None),
        Err(errno) => Err(super::errno(errno)),
    }
}

/// A flag of field 9: do_exit() has begun.
const PF_EXITING: u32 = 4;

/// Another: forked, and no execve(2) since.
const PF_FORKNOEXEC: u32 = 0x40;

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.trim_end().parse().ok()
}

/// The fields that are needed. The command name may hold anything, also `) `, so the fields are
/// counted from the last parenthesis.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let after_name = text.iter().rposition(|&byte| byte == b')')?;
    let mut fields = text.get(after_name + 2..)?.split(|&byte| byte == b' ');
    let state = *fields.next()?.first()?;
    let flags: u32 = number(fields.nth(5)?)?;
    let start_time = number(fields.nth(12)?)?;
    let status: i32 = if fields.clone().count() == 30 { number(fields.next_back()?)? } else { 0 };
    let ends = flags & PF_EXITING != 0 || matches!(state, b'Z' | b'X' | b'x');
    let end_signal = if ends { status & 0x7f } else { 0 };
    let exit_code = (state == b'Z').then(|| shell_code(status));
    Some(Stat { state, start_time, end_signal, exit_code, has_executed: flags & PF_FORKNOEXEC == 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_trap() {
        let text = b"42 (a) Z 1 (b) S 1 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                state: b'S',
                start_time: 987_654,
                end_signal: 0,
                exit_code: None,
                has_executed: true
            })
        );
        let tail = "0 ".repeat(29);
        let killed = format!("42 (x) Z 1 42 42 0 -1 4227084 1 2 3 4 5 6 7 8 20 0 1 0 987654 {tail}31\n");
        assert_eq!(parse_stat(killed.as_bytes()).unwrap().end_signal, libc::SIGSYS);
        assert_eq!(parse_stat(killed.as_bytes()).unwrap().exit_code, Some(128 + libc::SIGSYS));
        let exited = killed.replace(" 0 31\n", " 0 1792\n");
        assert_eq!(parse_stat(exited.as_bytes()).unwrap().exit_code, Some(7));
        let lives = killed.replace(" Z ", " S ").replace("4227084", "4194304");
        assert_eq!(parse_stat(lives.as_bytes()).unwrap().end_signal, 0);
        assert_eq!(parse_stat(b"42 (a"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn this_process_lives_and_keeps_its_start_time() {
        let first = stat(Pid::this()).unwrap().unwrap();
        assert!(!first.has_ended() && first.has_executed);
        assert_eq!(first.start_time, stat(Pid::this()).unwrap().unwrap().start_time);
        assert!(stat(Pid::from_raw(i32::MAX)).unwrap().is_none());
    }

    #[test]
    fn a_pidfd_tells_life_from_death() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(Pid::from_raw(i32::try_from(child.id()).unwrap())).unwrap();
        assert!(!wait_ended(pidfd.as_fd(), Some(Duration::ZERO)).unwrap());
        send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert!(wait_ended(pidfd.as_fd(), None).unwrap());
        child.wait().unwrap();
        assert_eq!(send_signal(pidfd.as_fd(), 0), Err(Errno::ESRCH));
    }
}
