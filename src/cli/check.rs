//! `dhow check`

use super::list::{print, to_text};
use super::table::{Args, Command, Positional, option};
use super::unknown;
use crate::error::Result;
use crate::runtime::{self, Context, Matter, Remark, Severity};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "check",
    about: "Read a bundle or an image as a careful reviewer does",
    details: "What will fail on this host, what gives the container power over it, and what is deprecated, the gravest first. Nothing is run. Exits with 1 when something will fail or is of high severity.",
    positionals: &[Positional {
        name: "bundle-or-image",
        required: false,
        help: "a bundle's directory, or an image of the store [default: .]",
        ..super::table::ID
    }],
    flags: &[
        option("severity", "LEVEL", "the least that is shown: low, medium, high or error [default: low]"),
        option("format", "FORMAT", "table or json [default: table]").short('f'),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let least = match args.value("severity") {
        None | Some("low") => Severity::Low,
        Some("medium") => Severity::Medium,
        Some("high") => Severity::High,
        Some("error") => Severity::Error,
        Some(other) => return Err(unknown("--severity", other)),
    };
    let as_json = match args.value("format") {
        None | Some("table") => false,
        Some("json") => true,
        Some(other) => return Err(unknown("--format", other)),
    };
    let mut remarks = runtime::check(context, args.positional(0).unwrap_or("."))?;
    let is_grave = remarks.iter().any(|remark| remark.severity >= Severity::High);
    remarks.retain(|remark| remark.severity >= least);
    match as_json {
        true => print(&to_text(serde_json::to_string_pretty(&remarks))?)?,
        false => print(&remarks.iter().map(line).collect::<String>())?,
    };
    Ok(i32::from(is_grave))
}

fn line(remark: &Remark) -> String {
    let severity = match remark.severity {
        Severity::Error => "error",
        Severity::High => "high",
        Severity::Medium => "medium",
        Severity::Low => "low",
    };
    let deprecated = if remark.matter == Matter::Deprecated { "deprecated: " } else { "" };
    format!("{severity:<7} {}: {deprecated}{} ({})\n", remark.field, remark.what, remark.hint)
}
