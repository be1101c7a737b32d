//! `dhow run`

use super::create::{
    self, BUNDLE, CONSOLE_SOCKET, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS,
};
use super::table::{Args, Command, ID, switch};
use crate::error::Result;
use crate::runtime::{self, Context, RunOptions};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "run",
    about: "Create and start a container, and stay with it until it ends",
    details: "The exit status is the payload's; 128 + N when signal N ended it.",
    positionals: &[ID],
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PID_FILE,
        PIDFD_SOCKET,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        switch("detach", "return as soon as the payload runs").short('d'),
        switch("keep", "leave the container there, stopped, when it has ended"),
        switch("no-subreaper", "taken for compatibility: dhow never becomes one").hidden(),
    ],
    enters: true,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let options = RunOptions { detach: args.is_on("detach"), keep: args.is_on("keep") };
    runtime::run(context, &create::request(args)?, options)
}
