//! `dhow list`

use super::table::{Args, Command, option, switch};
use super::unknown;
use crate::error::{Class, Context as _, Error, Result};
use crate::runtime::{self, Context, Listing};
use std::io::Write;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "list",
    about: "List the containers below --root",
    details: "",
    positionals: &[],
    flags: &[
        option("format", "FORMAT", "table or json [default: table]").short('f'),
        switch("quiet", "print ids only").short('q'),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    if args.is_on("quiet") {
        return print(&context.store.ids()?.into_iter().map(|id| id + "\n").collect::<String>());
    }
    let listings = runtime::list(context)?;
    match args.value("format") {
        None | Some("table") => print(&table(&listings)),
        Some("json") => print(&to_text(serde_json::to_string(&listings))?),
        Some(other) => Err(unknown("--format", other)),
    }
}

/// How many columns the table has: the first six are runc's.
const COLUMNS: usize = 11;

fn table(listings: &[Listing]) -> String {
    let header =
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER", "STATE", "SINCE", "EXIT", "RESTARTS", "IMAGE"]
            .map(str::to_owned);
    let dash = || "-".to_owned();
    let rows = listings.iter().map(|l| {
        [
            l.id.clone(),
            l.pid.to_string(),
            l.status.to_owned(),
            l.bundle.clone(),
            l.created.clone(),
            l.owner.clone(),
            l.state.to_owned(),
            l.since.clone().unwrap_or_else(dash),
            exit(l),
            l.restarts.map_or_else(dash, |restarts| restarts.to_string()),
            l.image.clone().unwrap_or_else(dash),
        ]
    });
    let rows: Vec<[String; COLUMNS]> = std::iter::once(header).chain(rows).collect();
    // As wide as the widest cell of a column, and at least twelve, as runc's table is.
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0).max(11) + 1;
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<String>().trim_end().to_owned() + "\n"
        })
        .collect()
}

/// `3`, `137 signal 9`, `137 signal 9 oom`, or a dash.
fn exit(listing: &Listing) -> String {
    let Some(code) = listing.exit_code else { return "-".to_owned() };
    let signal = listing.signal.map(|signal| format!(" signal {signal}")).unwrap_or_default();
    format!("{code}{signal}{}", if listing.oom { " oom" } else { "" })
}

/// A document as text with a newline at its end.
pub(super) fn to_text(document: serde_json::Result<String>) -> Result<String> {
    document
        .map(|text| text + "\n")
        .map_err(|error| Error::new(Class::Internal, "print").because(error.to_string()))
}

/// Writes to standard output; a reader that went away is an error like any other.
pub(super) fn print(text: &str) -> Result<i32> {
    std::io::stdout().write_all(text.as_bytes()).doing("write to standard output")?;
    Ok(0)
}
