//! Commands that have commands of their own.

use super::list::print;
use super::table::{Args, Command};
use super::{help, image, one_line, parse, volume};
use crate::error::{Class, Error, Result};
use crate::runtime::Context;

/// The commands of a command; most have none.
pub(super) fn commands(name: &str) -> &'static [Command] {
    match name {
        "image" => image::COMMANDS,
        "volume" => volume::COMMANDS,
        _ => &[],
    }
}

/// Runs the one that is named.
pub(super) fn run(name: &str, context: &Context, args: &Args) -> Result<i32> {
    let (words, commands) = (&args.positionals, commands(name));
    if let Some(parsed) = parse::parse(words, &[], commands) {
        return (parsed.command.run)(context, &parsed.args);
    }
    match help::parse(words, &[], commands, super::VERSION) {
        Ok(parsed) => (parsed.command.run)(context, &parsed.args),
        Err(error) if error.use_stderr() => {
            let words = one_line(&error.to_string());
            let words = words.trim_end().trim_start_matches("dhow: ").to_owned();
            Err(Error::new(Class::Usage, format!("dhow {name}")).because(words))
        }
        Err(error) => print(&error.to_string().replace("dhow", &format!("dhow {name}"))),
    }
}
