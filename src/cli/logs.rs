//! `dhow logs`

use super::number;
use super::table::{Args, Command, ID, option, switch};
use crate::error::{Class, Context as _, Error, Result};
use crate::runtime::{self, Context, LogLine, LogRequest};
use crate::sys::time::rfc3339;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "logs",
    about: "Print what a container has written, where a log is kept",
    details: "What it wrote to standard error goes to standard error.",
    positionals: &[ID],
    flags: &[
        switch("follow", "go on until it has ended").short('f'),
        option("tail", "N", "the last N lines only"),
        option("since", "TIME", "only what was written since: RFC 3339 in UTC, or a duration such as 10m"),
        switch("timestamps", "with the time before each line").short('t'),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let tail = match args.value("tail") {
        Some("all") => None,
        _ => number(args, "tail")?,
    };
    let since = args.value("since").map(since).transpose()?;
    let request = LogRequest { follow: args.is_on("follow"), tail, since };
    let with_time = args.is_on("timestamps");
    let mut begins = true;
    let mut tell = |line: &LogLine| {
        let time = if with_time && begins { format!("{} ", line.time) } else { String::new() };
        begins = line.text.ends_with('\n');
        let text = format!("{time}{}", line.text);
        match line.is_error {
            true => std::io::stderr().write_all(text.as_bytes()).doing("write to standard error"),
            false => std::io::stdout().write_all(text.as_bytes()).doing("write to standard output"),
        }
    };
    runtime::logs(context, args.id(), &request, &mut tell)?;
    std::io::stdout().flush().doing("write to standard output").map(|()| 0)
}

fn since(text: &str) -> Result<String> {
    if let Some(duration) = super::events::parse_duration(text) {
        let moment = SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH);
        return Ok(rfc3339(moment));
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
    }
    let looks_right = text.len() >= 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-';
    if looks_right && (text.len() == 10 || text.ends_with('Z')) {
        // The log's own times have all digits; a shorter one compares by its beginning.
        return Ok(text.trim_end_matches('Z').to_owned());
    }
    Err(Error::new(Class::Usage, "invalid value of --since")
        .on(format!("{text:?}"))
        .hint("2026-11-21T10:00:00Z, seconds since 1970, or a duration such as 10m"))
}
