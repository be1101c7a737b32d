//! Commands that have commands of their own.

use super::table::Command;
use super::{image, volume};

/// The commands of a command; most have none.
pub(super) fn commands(name: &str) -> &'static [Command] {
    match name {
        "image" => image::COMMANDS,
        "volume" => volume::COMMANDS,
        _ => &[],
    }
}
