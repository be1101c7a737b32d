//! `dhow diff`

use super::image::with_owners;
use super::list::to_text;
use super::table::{Args, Command, ID, option};
use super::unknown;
use crate::error::{Context as _, Result};
use crate::image::changes::shown;
use crate::runtime::{self, Context};
use serde_json::json;
use std::io::Write;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "diff",
    about: "Show what a container has changed of its image: A added, C changed, D deleted",
    details: "",
    positionals: &[ID],
    flags: &[option("format", "FORMAT", "text or json [default: text]").short('f')],
    enters: false,
    run: |context, args| with_owners(|| run(context, args)),
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let json = match args.value("format") {
        None | Some("text" | "table") => false,
        Some("json") => true,
        Some(other) => return Err(unknown("--format", other)),
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut all = Vec::new();
    runtime::diff(context, args.id(), &mut |kind, path| match json {
        true => {
            all.push(json!({"kind": kind.letter().to_string(), "path": String::from_utf8_lossy(path)}));
            Ok(())
        }
        false => writeln!(out, "{} {}", kind.letter(), shown(path)).doing("write to standard output"),
    })?;
    if json {
        out.write_all(to_text(serde_json::to_string(&all))?.as_bytes()).doing("write to standard output")?;
    }
    out.flush().doing("write to standard output").map(|()| 0)
}
