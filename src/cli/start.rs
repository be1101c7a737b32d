//! `dhow start`

use super::table::{Args, Command, ID};
use crate::error::Result;
use crate::runtime::{self, Context};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "start",
    about: "Run the payload of a created container",
    details: "",
    positionals: &[ID],
    flags: &[],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    runtime::start(context, args.id()).map(|()| 0)
}
