//! `dhow kill`

use super::table::{Args, Command, ID, Positional, switch};
use crate::error::Result;
use crate::runtime::{self, Context, parse_signal};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "kill",
    about: "Send a signal to a container",
    details: "",
    positionals: &[
        ID,
        Positional {
            name: "signal",
            required: false,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "its name or number [default: SIGTERM]",
        },
    ],
    flags: &[switch("all", "send it to every process of the container").short('a')],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let signal = parse_signal(args.positional(1).unwrap_or("SIGTERM"))?;
    runtime::kill(context, args.id(), signal, args.is_on("all")).map(|()| 0)
}
