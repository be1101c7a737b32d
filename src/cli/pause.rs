//! `dhow pause` and `dhow resume`

use super::table::{Args, Command, ID};
use crate::error::Result;
use crate::runtime::{self, Context};

/// `dhow pause`
pub(super) const PAUSE: Command = Command {
    name: "pause",
    about: "Freeze every process of a container",
    details: "",
    positionals: &[ID],
    flags: &[],
    enters: false,
    run: pause,
};

/// `dhow resume`
pub(super) const RESUME: Command = Command {
    name: "resume",
    about: "Let a paused container run on",
    details: "",
    positionals: &[ID],
    flags: &[],
    enters: false,
    run: resume,
};

fn pause(context: &Context, args: &Args) -> Result<i32> {
    runtime::pause(context, args.id()).map(|()| 0)
}

fn resume(context: &Context, args: &Args) -> Result<i32> {
    runtime::resume(context, args.id()).map(|()| 0)
}
