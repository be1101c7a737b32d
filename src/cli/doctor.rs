//! `dhow doctor`

use super::list::{print, to_text};
use super::table::{Args, Command, option, switch};
use super::unknown;
use crate::error::Result;
use crate::runtime::{self, Context, Finding};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "doctor",
    about: "Find what is left of containers that are no more",
    details: "State directories, cgroups, monitors and mounts that carry dhow's mark and the name of this --root, and belong to no container. Exits with 1 while something is left.",
    positionals: &[],
    flags: &[
        switch("fix", "remove it"),
        option("format", "FORMAT", "table or json [default: table]").short('f'),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let as_json = match args.value("format") {
        None | Some("table") => false,
        Some("json") => true,
        Some(other) => return Err(unknown("--format", other)),
    };
    let findings = runtime::doctor(context, args.is_on("fix"))?;
    match as_json {
        true => print(&to_text(serde_json::to_string_pretty(&findings))?)?,
        false => print(&findings.iter().map(line).collect::<String>())?,
    };
    Ok(i32::from(findings.iter().any(|finding| finding.outcome != "removed")))
}

fn line(finding: &Finding) -> String {
    let hint = finding.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{} {}: {}: {}{hint}\n", finding.kind, finding.what, finding.why, finding.outcome)
}
