//! `dhow inspect`

use super::list::{print, to_text};
use super::table::{Args, Command, ID};
use crate::error::Result;
use crate::runtime::{self, Context};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "inspect",
    about: "Print all that is known of a container, as JSON",
    details: "Its state is one of creating, created, running, paused, restarting, exited, removing and dead.",
    positionals: &[ID],
    flags: &[],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    print(&to_text(serde_json::to_string_pretty(&runtime::inspect(context, args.id())?))?)
}
