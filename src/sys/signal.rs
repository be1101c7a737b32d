//! Signals: dispositions and masks that the payload must not inherit.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction, sigprocmask};

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
