//! Runs a bundle to its end: `run_bundle ID BUNDLE`, as root. Its exit code is the payload's.

use dhow::{Class, Runtime};
use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: the library runs this program once more, to fork in its place.
    dhow::helper();
    let mut words = std::env::args().skip(1);
    let (Some(id), Some(bundle)) = (words.next(), words.next()) else {
        eprintln!("usage: run_bundle ID BUNDLE");
        return ExitCode::from(2);
    };
    match run(&id, &bundle) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("run_bundle: {error}");
            // What a shell answers for a program that is not there, or that it may not execute.
            ExitCode::from(match error.class {
                Class::CommandNotFound => 127,
                Class::CommandDenied => 126,
                _ => 125,
            })
        }
    }
}

fn run(id: &str, bundle: &str) -> dhow::Result<u8> {
    let runtime = runtime().on_warning(|warning| eprintln!("run_bundle: warning: {warning}"));
    let container = runtime.create(id, bundle).run()?;
    let exit = container.wait()?;
    if exit.out_of_memory {
        eprintln!("run_bundle: its memory ran out");
    }
    container.delete()?;
    Ok(u8::try_from(exit.code).unwrap_or(255))
}

/// The usual places, or those below $DHOW_ROOT.
fn runtime() -> Runtime {
    std::env::var_os("DHOW_ROOT").map_or_else(Runtime::new, Runtime::at)
}
