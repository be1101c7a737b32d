//! Watches every syscall of a command and of the processes that it makes (ptrace(2)), and at one of
//! them ends the process that makes it, or has the syscall fail.
//!
//! A process is known by its role: 0 is the command itself, then its children in the order in which
//! they were made (or one that was there before, such as the init for `start`). A role's syscalls
//! come in the same order every time but for the odd race, so that role and number name a point.

use crate::command::{binary, limit};
use crate::scene::Scene;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::process::{Command, Stdio};
use std::sync::mpsc;

/// One syscall of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Which process.
    pub role: usize,
    /// Which of its syscalls, from 0.
    pub nth: usize,
    /// The number of the syscall that is expected there. Should a race have brought another one, an
    /// error that it cannot answer is not made up.
    pub syscall: u64,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// The process gets this signal before the syscall is made.
    Signal(Signal),
    /// The syscall is not made, and answers this.
    Fail(Errno),
    /// The process waits until the command has ended, which is killed once it has nothing to do but listen.
    Orphan,
}

/// What came of a traced command.
#[derive(Debug)]
pub struct Traced {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// What it and its children wrote to standard error.
    pub stderr: String,
    /// The numbers of the syscalls that each role made.
    pub syscalls: Vec<Vec<u64>>,
    /// Whether it took too long and was killed for it.
    pub hung: bool,
    /// The processes that it made. Who outlived it is this process's to reap, as its subreaper.
    pub orphans: Vec<i32>,
}

/// A process under watch.
#[derive(Debug, Default)]
struct Tracee {
    role: usize,
    /// Between a syscall's entry and its exit.
    inside: bool,
    /// What the syscall that is under way has to answer.
    answer: Option<Errno>,
}

/// A command's processes, while it runs.
struct Watch {
    root: Pid,
    deed: Option<(Point, Deed)>,
    tracees: HashMap<Pid, Tracee>,
    syscalls: Vec<Vec<u64>>,
    seen: Vec<i32>,
    /// The process that waits for the command's end.
    held: Option<Pid>,
}

/// Runs a command of the binary under watch; `also` is watched too, as role 1.
pub fn run(scene: &Scene, args: &[&str], also: Option<i32>, deed: Option<(Point, Deed)>) -> Traced {
    let (mut stderr, mut command) = (crate::command::scratch(), Command::new(scene.payload_program()));
    command.arg("traced").arg(binary()).args(["--root", scene.state_dir().to_str().unwrap()]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().unwrap());
    #[expect(clippy::zombie_processes, reason = "follow() waits for it, as its tracer")]
    let child = command.spawn().unwrap();
    let root = Pid::from_raw(child.id().cast_signed());
    let (tracees, syscalls, seen) = (HashMap::new(), Vec::new(), Vec::new());
    let mut watch = Watch { root, deed, tracees, syscalls, seen, held: None };
    let first = waitpid(root, None).expect("waitpid");
    assert!(matches!(first, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{first:?}");
    // Its first stop behind the exec is the exit of execve(2).
    watch.adopt(root, true);
    ptrace::setoptions(root, options() | Options::PTRACE_O_EXITKILL).unwrap();
    ptrace::cont(root, None).unwrap();
    if let Some(pid) = also {
        watch.attach(Pid::from_raw(pid));
    }
    let (ended, watchdog) = mpsc::channel::<()>();
    let guard = std::thread::spawn(move || {
        let late = watchdog.recv_timeout(limit()) == Err(mpsc::RecvTimeoutError::Timeout);
        if late {
            let _ = kill(root, Signal::SIGKILL);
        }
        late
    });
    let code = watch.follow();
    drop(ended);
    let hung = guard.join().unwrap();
    if let Some(pid) = watch.held.take() {
        let _ = ptrace::syscall(pid, None);
    }
    watch.let_go();
    let mut text = Vec::new();
    stderr.seek(SeekFrom::Start(0)).and_then(|_| stderr.read_to_end(&mut text)).unwrap();
    let stderr = String::from_utf8_lossy(&text).into_owned();
    Traced { code, stderr, syscalls: watch.syscalls, hung, orphans: watch.seen }
}

fn options() -> Options {
    Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
}

/// Whether a process runs a program of dhow's: itself, or the monitor.
fn is_dhows(pid: Pid) -> bool {
    let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    exe == binary() || exe == binary().with_file_name("dhow-monitor")
}

/// The next event of a process that this thread traces.
fn next(pid: Option<Pid>) -> nix::Result<WaitStatus> {
    waitpid(pid, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD))
}

impl Watch {
    fn adopt(&mut self, pid: Pid, inside: bool) {
        let role = self.syscalls.len();
        self.syscalls.push(Vec::new());
        if pid != self.root {
            self.seen.push(pid.as_raw());
        }
        self.tracees.insert(pid, Tracee { role, inside, answer: None });
    }

    /// Takes a process that is there already, waiting in some syscall, which it then begins anew.
    fn attach(&mut self, pid: Pid) {
        ptrace::attach(pid).expect("attach");
        while !matches!(next(Some(pid)).expect("wait"), WaitStatus::Stopped(_, Signal::SIGSTOP)) {}
        ptrace::setoptions(pid, options()).unwrap();
        self.adopt(pid, false);
        ptrace::syscall(pid, None).unwrap();
    }

    /// Follows all until the command ends; its exit code.
    fn follow(&mut self) -> i32 {
        loop {
            let event = next(None).expect("the command is there until it ends");
            match event {
                WaitStatus::Exited(pid, code) => {
                    self.tracees.remove(&pid);
                    if pid == self.root {
                        return code;
                    }
                }
                WaitStatus::Signaled(pid, signal, _) => {
                    self.tracees.remove(&pid);
                    if pid == self.root {
                        return 128 + signal as i32;
                    }
                }
                WaitStatus::PtraceEvent(pid, _, event) => self.event(pid, event),
                WaitStatus::PtraceSyscall(pid) => self.syscall(pid),
                // A new child's first stop; the event at its parent may come later.
                WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                    if pid != self.root && !self.seen.contains(&pid.as_raw()) {
                        self.adopt(pid, false);
                    }
                    let _ = ptrace::syscall(pid, None);
                }
                WaitStatus::Stopped(pid, signal) => drop(ptrace::syscall(pid, signal)),
                _ => {}
            }
        }
    }

    fn event(&mut self, pid: Pid, event: i32) {
        if event == libc::PTRACE_EVENT_EXEC && pid != self.root && !is_dhows(pid) {
            // It has become the payload, or a hook: no part of the runtime any more.
            self.tracees.remove(&pid);
            let _ = ptrace::detach(pid, None);
            return;
        }
        let forks = [libc::PTRACE_EVENT_FORK, libc::PTRACE_EVENT_VFORK, libc::PTRACE_EVENT_CLONE];
        if forks.contains(&event)
            && let Ok(child) = ptrace::getevent(pid)
        {
            // Known from here on: should the command end next, its child is still to be let go.
            let child = Pid::from_raw(i32::try_from(child).unwrap());
            if !self.seen.contains(&child.as_raw()) {
                self.adopt(child, false);
            }
        }
        let _ = ptrace::syscall(pid, None);
    }

    fn syscall(&mut self, pid: Pid) {
        let Some(tracee) = self.tracees.get_mut(&pid) else {
            let _ = ptrace::syscall(pid, None);
            return;
        };
        tracee.inside = !tracee.inside;
        if tracee.inside {
            let Ok(mut registers) = ptrace::getregs(pid) else { return };
            let made = &mut self.syscalls[tracee.role];
            let here = Point { role: tracee.role, nth: made.len(), syscall: registers.orig_rax };
            made.push(registers.orig_rax);
            let is_here = |(point, deed): &(Point, Deed)| {
                let same = point.role == here.role && point.nth == here.nth;
                same && (point.syscall == here.syscall || matches!(deed, Deed::Signal(_)))
            };
            match self.deed.filter(is_here) {
                Some((_, Deed::Signal(signal))) => {
                    let _ = kill(pid, signal);
                }
                Some((_, Deed::Fail(errno))) => {
                    tracee.answer = Some(errno);
                    registers.orig_rax = u64::MAX;
                    let _ = ptrace::setregs(pid, registers);
                }
                Some((_, Deed::Orphan)) => self.held = Some(pid),
                None => {}
            }
            if self.held.is_some() && self.listens() {
                let _ = kill(self.root, Signal::SIGKILL);
            }
            if self.held == Some(pid) {
                return;
            }
        } else if let Some(errno) = tracee.answer.take()
            && let Ok(mut registers) = ptrace::getregs(pid)
        {
            registers.rax = i64::from(-(errno as i32)).cast_unsigned();
            let _ = ptrace::setregs(pid, registers);
        }
        let _ = ptrace::syscall(pid, None);
    }

    /// Whether the command waits for another process.
    fn listens(&self) -> bool {
        let inside = self.tracees.get(&self.root).is_some_and(|root| root.inside);
        let waits = [libc::SYS_recvmsg, libc::SYS_poll, libc::SYS_ppoll].map(libc::c_long::cast_unsigned);
        inside && self.syscalls[0].last().is_some_and(|last| waits.contains(last))
    }

    /// What outlives the command goes on alone.
    fn let_go(&mut self) {
        while let Some(pid) = self.tracees.keys().next().copied() {
            self.tracees.remove(&pid);
            let _ = kill(pid, Signal::SIGSTOP);
            loop {
                match next(Some(pid)) {
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => break,
                    Ok(WaitStatus::PtraceEvent(_, _, event)) if event != libc::PTRACE_EVENT_EXEC => {
                        self.event(pid, event);
                    }
                    Ok(_) => {
                        let _ = ptrace::detach(pid, None);
                        // Should the stop have been another one, SIGSTOP is still to come.
                        let _ = kill(pid, Signal::SIGCONT);
                        break;
                    }
                }
            }
        }
    }
}

/// Which of the four errors of a machine that is full or broken a syscall may answer, by its man page.
pub fn errors_of(syscall: u64) -> &'static [Errno] {
    use Errno::{EIO, EMFILE, ENOMEM, ENOSPC};
    let Ok(number) = libc::c_long::try_from(syscall) else { return &[] };
    match number {
        libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 | libc::SYS_creat => {
            &[ENOSPC, EMFILE, ENOMEM, EIO]
        }
        libc::SYS_write | libc::SYS_writev | libc::SYS_pwrite64 | libc::SYS_ftruncate => &[ENOSPC, EIO],
        libc::SYS_read | libc::SYS_readv | libc::SYS_pread64 | libc::SYS_getdents64 => &[EIO],
        libc::SYS_mkdir
        | libc::SYS_mkdirat
        | libc::SYS_symlink
        | libc::SYS_symlinkat
        | libc::SYS_mknod
        | libc::SYS_mknodat
        | libc::SYS_link
        | libc::SYS_linkat
        | libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2 => &[ENOSPC, ENOMEM, EIO],
        libc::SYS_bind | libc::SYS_fchmod | libc::SYS_fchmodat | libc::SYS_fchown | libc::SYS_fchownat => {
            &[ENOMEM, EIO]
        }
        libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_rmdir
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_statfs
        | libc::SYS_fstatfs
        | libc::SYS_readlink
        | libc::SYS_readlinkat
        | libc::SYS_access
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_chdir
        | libc::SYS_execve
        | libc::SYS_execveat => &[ENOMEM, EIO],
        libc::SYS_socket
        | libc::SYS_socketpair
        | libc::SYS_accept
        | libc::SYS_accept4
        | libc::SYS_pipe2
        | libc::SYS_eventfd2
        | libc::SYS_signalfd4
        | libc::SYS_memfd_create
        | libc::SYS_pidfd_open
        | libc::SYS_open_tree
        | libc::SYS_fsopen
        | libc::SYS_fsmount
        | libc::SYS_fspick => &[EMFILE, ENOMEM],
        libc::SYS_dup | libc::SYS_dup3 => &[EMFILE],
        libc::SYS_mmap
        | libc::SYS_fsconfig
        | libc::SYS_move_mount
        | libc::SYS_mount_setattr
        | libc::SYS_mount
        | libc::SYS_umount2
        | libc::SYS_pivot_root
        | libc::SYS_setns
        | libc::SYS_bpf
        | libc::SYS_seccomp
        | libc::SYS_sendmsg
        | libc::SYS_recvmsg
        | libc::SYS_setgroups
        | libc::SYS_flock
        | libc::SYS_poll
        | libc::SYS_keyctl => &[ENOMEM],
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_unshare => &[ENOSPC, ENOMEM, EMFILE],
        _ => &[],
    }
}
