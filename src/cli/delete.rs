//! `dhow delete`

use super::table::{Args, Command, ID, switch};
use crate::error::Result;
use crate::runtime::{self, Context};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "delete",
    about: "Remove a container and all that was made for it",
    details: "",
    positionals: &[ID],
    flags: &[switch("force", "kill it first if it runs; no error if there is none").short('f')],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    runtime::delete(context, args.id(), args.is_on("force")).map(|()| 0)
}
