//! The `dhow` binary: one command, one error, one exit code.

use dhow::cli::{self, Call, Parsed};
use dhow::log;
use dhow::process::reaper;
use dhow::sys::alloc::ArenaThenSystem;
use dhow::sys::clone::exit_now;
use dhow::sys::signal;
use std::ffi::OsString;
use std::io::Write;

#[global_allocator]
static ALLOCATOR: ArenaThenSystem = ArenaThenSystem;

fn main() {
    reaper::be_it_if_asked();
    // Ids, options and JSON are UTF-8; a word that is not would be changed on its way.
    let argv: Result<Vec<String>, OsString> =
        std::env::args_os().skip(1).map(OsString::into_string).collect();
    let call = match &argv {
        Ok(argv) => cli::understand(argv),
        Err(word) => Call::Wrong(format!("dhow: the argument {word:?} is not UTF-8\n")),
    };
    let code = match call {
        Call::Command(parsed) => carry_out(&parsed),
        Call::Text(text) => {
            let written = std::io::stdout().write_all(text.as_bytes());
            i32::from(written.is_err())
        }
        Call::Wrong(text) => {
            let _ = std::io::stderr().write_all(text.as_bytes());
            1
        }
    };
    // What is open is the kernel's to close: no destructor here has more to do.
    exit_now(code)
}

fn carry_out(parsed: &Parsed) -> i32 {
    let outcome = parsed
        .set_up_log()
        .and_then(|()| parsed.protect())
        .and_then(|()| parsed.take_times())
        .and_then(|()| parsed.run());
    // Also of a command that failed: where it hung before that is what one wants to know.
    let shown = parsed.show_times();
    outcome.and_then(|code| shown.map(|()| code)).unwrap_or_else(|error| {
        log::error(&error.to_string());
        // As a shell says of a program that a signal has ended.
        signal::asked_to_end().map_or_else(|| cli::exit_code(parsed.command), |signal| 128 + signal)
    })
}
