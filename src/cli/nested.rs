//! Commands that have commands of their own.

use super::help::Face;
use super::list::print;
use super::table::{Args, Command};
use super::{Told, VERSION, help, image, parse, told, volume};
use crate::error::{Class, Error, Result};
use crate::image::with_room_hint;
use crate::runtime::Context;

const FACES: [(&str, Face); 2] = [
    ("image", face("dhow image", "Images: import, list and manage them", image::COMMANDS)),
    ("volume", face("dhow volume", "Named volumes: list and manage them", volume::COMMANDS)),
];

const fn face(name: &'static str, about: &'static str, commands: &'static [Command]) -> Face {
    Face { name, about, version: VERSION, globals: &[], commands }
}

/// The commands of a command; most have none.
pub(super) fn commands(name: &str) -> &'static [Command] {
    FACES.iter().find(|(own, _)| *own == name).map_or(&[], |(_, face)| face.commands)
}

/// Runs the one that is named.
///
/// # Errors
/// The command's; [`Class::Usage`] for a call that cannot be understood.
pub(super) fn run(name: &str, context: &Context, args: &Args) -> Result<i32> {
    let Some((_, face)) = FACES.iter().find(|(own, _)| *own == name) else {
        return Err(Error::new(Class::Internal, "find the commands of a command").on(name));
    };
    let carry_out =
        |parsed: &parse::Parsed| (parsed.command.run)(context, &parsed.args).map_err(with_room_hint);
    let words = &args.positionals;
    if let Some(parsed) = parse::parse(words, face.globals, face.commands) {
        return carry_out(&parsed);
    }
    match help::parse(words, face) {
        Ok(parsed) => carry_out(&parsed),
        Err(error) => match told(&error, face) {
            Told::Help(text) => print(&text),
            Told::Usage(text) => {
                eprint!("{text}");
                Ok(1)
            }
            Told::Mistake(words) => Err(Error::new(Class::Usage, words)),
        },
    }
}
