//! `dhow events`

use super::list::{print, to_text};
use super::table::{Args, Command, ID, option, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context};
use std::time::Duration;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "events",
    about: "Tell what a container uses and when its memory runs out, as lines of JSON, until it ends",
    details: "",
    positionals: &[ID],
    flags: &[
        option("interval", "DURATION", "how often to tell what it uses [default: 5s]"),
        switch("stats", "tell once what it uses now"),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    if args.is_on("stats") {
        return print(&to_text(serde_json::to_string(&runtime::stats(context, args.id())?))?);
    }
    let interval = match args.value("interval") {
        None => Duration::from_secs(5),
        Some(text) => parse_duration(text).filter(|interval| !interval.is_zero()).ok_or_else(|| {
            Error::new(Class::Usage, "invalid value of --interval")
                .on(format!("{text:?}"))
                .because("it must be a duration greater than 0, such as 5s or 500ms")
        })?,
    };
    let mut tell = |event: &runtime::Event| print(&to_text(serde_json::to_string(event))?).map(drop);
    runtime::events(context, args.id(), interval, &mut tell).map(|()| 0)
}

/// A duration in Go's form: `1m30s`, `500ms`, `1.5s`.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut all = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let unit_end =
            rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        all = all.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        for (text, milliseconds) in
            [("5s", 5000), ("500ms", 500), ("1m30s", 90_000), ("1.5s", 1500), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["5", "s", "-5s", "5x", "1..5s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
