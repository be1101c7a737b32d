//! `dhow state`

use super::list::{print, to_text};
use super::table::{Args, Command, ID};
use crate::error::Result;
use crate::runtime::{Container, Context, Listing};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "state",
    about: "Print the state of a container as JSON",
    details: "",
    positionals: &[ID],
    flags: &[],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let listing = Listing::from(Container::open(context, args.id())?);
    print(&to_text(serde_json::to_string_pretty(&listing))?)
}
