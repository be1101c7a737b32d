//! `dhow spec`

use super::table::{Args, Command, option, switch};
use crate::error::Result;
use crate::runtime::{self, Context};
use std::path::Path;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "spec",
    about: "Write a config.json to start from",
    details: "",
    positionals: &[],
    flags: &[
        option("bundle", "DIR", "where to write it [default: .]").short('b'),
        switch("rootless", "make it one that a user without rights can run"),
    ],
    enters: false,
    run,
};

fn run(_: &Context, args: &Args) -> Result<i32> {
    runtime::write_spec(Path::new(args.value("bundle").unwrap_or(".")), args.is_on("rootless")).map(|()| 0)
}
