//! The `dhow` binary: one command, one error, one exit code.

use dhow::cli::{self, Call, Parsed};
use dhow::log;
use dhow::sys::alloc::ArenaThenSystem;
use dhow::sys::clone::exit_now;
use std::ffi::OsString;
use std::io::Write;

#[global_allocator]
static ALLOCATOR: ArenaThenSystem = ArenaThenSystem;

fn main() {
    let argv: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let code = match cli::understand(&argv) {
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
    parsed.set_up_log().and_then(|()| parsed.run()).unwrap_or_else(|error| {
        log::error(&error.to_string());
        cli::exit_code(parsed.command)
    })
}
