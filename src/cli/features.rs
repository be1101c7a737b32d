//! `dhow features`

use super::list::{print, to_text};
use super::table::{Args, Command};
use crate::error::Result;
use crate::runtime::{self, Context};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "features",
    about: "Print what this dhow can do, as the specification's features document",
    details: "",
    positionals: &[],
    flags: &[],
    enters: false,
    run,
};

fn run(_: &Context, _: &Args) -> Result<i32> {
    print(&to_text(serde_json::to_string_pretty(&runtime::features()))?)
}
