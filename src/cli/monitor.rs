//! `dhow exited` and `dhow revive`: what a container's monitor asks. Not for people, so
//! without a word that help or man page would show.

use super::list::print;
use super::table::{Args, Command, ID, Positional};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context};
use crate::state::Next;

const fn word(name: &'static str) -> Positional {
    Positional { name, help: "", ..ID }
}

/// `exited ID PID CODE` prints `stay`, `end` or `restart MILLISECONDS`.
pub(super) const EXITED: Command = Command {
    name: "exited",
    about: "",
    details: "",
    positionals: &[ID, word("pid"), word("code")],
    flags: &[],
    enters: false,
    run: exited,
};

/// `revive ID`
pub(super) const REVIVE: Command = Command {
    name: "revive",
    about: "",
    details: "",
    positionals: &[ID],
    flags: &[],
    enters: true,
    run: revive,
};

fn exited(context: &Context, args: &Args) -> Result<i32> {
    let number = |index: usize| {
        let text = args.positional(index).unwrap_or_default();
        text.parse::<i32>().map_err(|_| Error::new(Class::Usage, "parse a number").on(format!("{text:?}")))
    };
    let answer = match runtime::exited(context, args.id(), number(1)?, number(2)?)? {
        None => "stay\n".to_owned(),
        Some(Next::End) => "end\n".to_owned(),
        Some(Next::Restart(delay)) => format!("restart {}\n", delay.as_millis()),
    };
    print(&answer)
}

fn revive(context: &Context, args: &Args) -> Result<i32> {
    runtime::revive(context, args.id(), true).map(|()| 0)
}
