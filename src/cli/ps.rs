//! `dhow ps`

use super::list::print;
use super::table::{Args, Command, ID, Positional, option};
use super::unknown;
use crate::error::Result;
use crate::runtime::{self, Context, PsFormat};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "ps",
    about: "List the processes of a container",
    details: "",
    positionals: &[
        ID,
        Positional {
            name: "ps options",
            required: false,
            required_unless: None,
            rest: true,
            greedy: true,
            many: false,
            last: false,
            help: "options of ps(1) [default: -ef]",
        },
    ],
    flags: &[option("format", "FORMAT", "table or json [default: table]").short('f')],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let format = match args.value("format") {
        None | Some("table") => PsFormat::Table(args.positionals.iter().skip(1).cloned().collect()),
        Some("json") => PsFormat::Json,
        Some(other) => return Err(unknown("--format", other)),
    };
    print(&runtime::ps(context, args.id(), &format)?)
}
