//! `dhow stop`, `dhow restart` and `dhow wait`.

use super::list::print;
use super::number;
use super::table::{Args, Command, Flag, ID, Positional, option};
use crate::error::Result;
use crate::log;
use crate::runtime::{self, Context};
use std::time::Duration;

const IDS: Positional = Positional { many: true, help: "the names of the containers", ..ID };

const TIME: Flag = option("time", "SECONDS", "how long to wait before SIGKILL [default: 10]").short('t');

/// `stop`
pub(super) const STOP: Command = Command {
    name: "stop",
    about: "Ask containers to end, and end those that do not",
    details: "They get the stop signal of their image or SIGTERM, and SIGKILL after the time. A restart policy does not start them again.",
    positionals: &[IDS],
    flags: &[TIME],
    enters: false,
    run: stop,
};

/// `restart`
pub(super) const RESTART: Command = Command {
    name: "restart",
    about: "Stop containers and run their payloads anew, from their bundles",
    details: "",
    positionals: &[IDS],
    flags: &[TIME],
    enters: true,
    run: restart,
};

/// `wait`
pub(super) const WAIT: Command = Command {
    name: "wait",
    about: "Wait until containers have ended for good, and print their exit codes",
    details: "",
    positionals: &[IDS],
    flags: &[],
    enters: false,
    run: wait,
};

/// Goes on with the others when one fails; the last error is the command's own.
fn each(args: &Args, mut one: impl FnMut(&str) -> Result<()>) -> Result<i32> {
    let mut outcome = Ok(0);
    for id in &args.positionals {
        if let Err(error) = one(id)
            && let Err(earlier) = std::mem::replace(&mut outcome, Err(error))
        {
            log::error(&earlier.to_string());
        }
    }
    outcome
}

fn patience(args: &Args) -> Result<Duration> {
    Ok(Duration::from_secs(number(args, "time")?.unwrap_or(10)))
}

fn stop(context: &Context, args: &Args) -> Result<i32> {
    let patience = patience(args)?;
    each(args, |id| runtime::stop(context, id, patience))
}

fn restart(context: &Context, args: &Args) -> Result<i32> {
    let patience = patience(args)?;
    each(args, |id| runtime::restart(context, id, patience))
}

fn wait(context: &Context, args: &Args) -> Result<i32> {
    each(args, |id| print(&format!("{}\n", runtime::wait(context, id)?)).map(drop))
}
