//! Signals: dispositions and masks that the payload must not inherit.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The signal that has asked this process to end, 0 for none.
static ASKED: AtomicI32 = AtomicI32::new(0);

/// The pidfd of the process that ends with this one, -1 for none.
static COMPANION: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(signal: libc::c_int) {
    ASKED.store(signal, Ordering::SeqCst);
    let companion = COMPANION.load(Ordering::SeqCst);
    if companion >= 0 {
        let errno = Errno::last_raw();
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a plain system call, safe in a handler; the null siginfo makes the kernel fill in
        // its own.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, companion, libc::SIGKILL, no_info, 0) };
        Errno::set_raw(errno);
    }
}

/// From here on SIGTERM, SIGINT and SIGHUP do not end this process but are noted, so that it can
/// take back what it has begun; the companion is killed at once, and whoever waits for it goes on.
/// Those that the caller ignores stay ignored.
///
/// # Errors
/// None for these signals.
pub fn take_requests() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler stores a number and makes one system call.
        let before = unsafe { sigaction(signal, &action)? };
        if matches!(before.handler(), SigHandler::SigIgn) {
            // SAFETY: what was there before.
            unsafe { sigaction(signal, &before)? };
        }
    }
    Ok(())
}

/// Names the process that is to end when this one is asked to.
pub fn set_companion(pidfd: Option<BorrowedFd<'_>>) {
    COMPANION.store(pidfd.map_or(-1, |fd| fd.as_raw_fd()), Ordering::SeqCst);
}

/// A companion for a while: the one before comes back in its place.
#[derive(Debug)]
pub struct Companion {
    before: i32,
}

impl Companion {
    /// Names the process that is to end in place of the one before.
    pub fn instead(pidfd: BorrowedFd<'_>) -> Companion {
        Companion { before: COMPANION.swap(pidfd.as_raw_fd(), Ordering::SeqCst) }
    }
}

impl Drop for Companion {
    fn drop(&mut self) {
        COMPANION.store(self.before, Ordering::SeqCst);
    }
}

/// The signal that has asked this process to end.
pub fn asked_to_end() -> Option<i32> {
    Some(ASKED.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// A process that is PID 1 of its namespace ignores every signal that it has no handler for,
/// even from outside; while it waits for `start`, a plain `kill` must still end it.
extern "C" fn leave(signal: libc::c_int) {
    super::clone::exit_now(128 + signal);
}

/// Makes the usual requests to terminate end this process. exec(2) resets them by itself.
///
/// # Errors
/// None for these signals.
pub fn end_on_request() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(leave), SaFlags::empty(), SigSet::empty());
    for signal in
        [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        // SAFETY: the handler only calls _exit(2), which is async-signal-safe.
        unsafe { sigaction(signal, &action)? };
    }
    Ok(())
}

/// Lets the kernel wait for children of this process: none stays as a zombie. exec(2) ends it.
///
/// # Errors
/// None for this signal.
pub fn forget_children() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::SA_NOCLDWAIT, SigSet::empty());
    // SAFETY: the default disposition runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &action).map(drop) }
}

/// Takes back [`forget_children`], for who wants to wait for the next child.
///
/// # Errors
/// None for this signal.
pub fn remember_children() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default disposition runs no code of ours.
    unsafe { sigaction(Signal::SIGCHLD, &action).map(drop) }
}

/// Blocks every signal that can be blocked, to be taken by [`wait_any`].
///
/// # Errors
/// None.
pub fn block_all() -> nix::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
}

/// Waits for the next signal; its number, which need not have a name.
///
/// # Errors
/// EINTR.
pub fn wait_any() -> nix::Result<i32> {
    let all = SigSet::all();
    // SAFETY: reads the set, and writes no siginfo through the null pointer.
    Errno::result(unsafe { libc::sigwaitinfo(all.as_ref(), std::ptr::null_mut()) })
}

/// kill(2) by number.
///
/// # Errors
/// ESRCH, EPERM.
pub fn send_to(process: nix::unistd::Pid, number: i32) -> nix::Result<()> {
    // SAFETY: takes two numbers.
    Errno::result(unsafe { libc::kill(process.as_raw(), number) }).map(drop)
}

/// Unblocks every signal and gives every disposition its default: the caller's caller may have
/// ignored some (Rust's runtime ignores SIGPIPE, nohup SIGHUP), and ignored ones survive exec(2).
///
/// # Errors
/// None.
pub fn reset_for_payload() -> nix::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: the default disposition runs no code of ours. The C library refuses the signals
        // that cannot be caught and the two that it keeps for itself, which stay as they are.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
}
