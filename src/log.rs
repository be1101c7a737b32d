//! What dhow says besides its results: one line per event, to stderr or to `--log`.
//!
//! Errors are returned, not logged; `main` hands the one error of a command to [`error`] at the
//! very end. Warnings and debug lines are for what a person may want to know and no caller can
//! act on.

use crate::sys::{fd, time};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::SystemTime;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Only the failure of the command.
    Error,
    /// What is likely not meant; the default.
    Warning,
    /// What a command does.
    Info,
    /// How it does it.
    Debug,
}

impl Level {
    /// The word in the log, as logrus writes it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }

    /// The level of a `--log-level` value.
    pub fn parse(text: &str) -> Option<Level> {
        match text {
            "panic" | "fatal" | "error" => Some(Level::Error),
            "warn" | "warning" => Some(Level::Warning),
            "info" => Some(Level::Info),
            "debug" | "trace" => Some(Level::Debug),
            _ => None,
        }
    }
}

/// The form of a line in the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `time="…" level=error msg="…"`
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`
    Json,
}

/// Where lines go, and which.
#[derive(Debug)]
pub struct Sink {
    /// The file of `--log`; stderr when absent.
    pub file: Option<File>,
    /// The form of a line in the file; stderr gets plain text for people unless a format was
    /// asked for.
    pub format: Option<Format>,
    /// The least important level that is written.
    pub level: Level,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Sets where lines go. Once per process; what is said before goes to stderr.
pub fn init(sink: Sink) {
    let _ = SINK.set(sink);
}

/// Whether debug lines are wanted: spares the caller from making them.
pub fn is_debug() -> bool {
    SINK.get().is_some_and(|sink| sink.level >= Level::Debug)
}

/// Says what is likely not meant.
pub fn warn(message: &str) {
    write(Level::Warning, message);
}

/// Says what a command does.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Says how it does it; the message is made only when it is wanted.
pub fn debug<S: AsRef<str>>(message: impl FnOnce() -> S) {
    if is_debug() {
        write(Level::Debug, message().as_ref());
    }
}

/// Says why the command failed: in the log, and on stderr for whoever looks there.
pub fn error(message: &str) {
    write(Level::Error, message);
    if SINK.get().is_some_and(|sink| sink.file.is_some()) {
        let _ = writeln!(std::io::stderr(), "dhow: {message}");
    }
}

fn write(level: Level, message: &str) {
    let sink = SINK.get();
    if level > sink.map_or(Level::Warning, |sink| sink.level) {
        return;
    }
    let file = sink.and_then(|sink| sink.file.as_ref());
    let format = sink.and_then(|sink| sink.format).or(file.map(|_| Format::Text));
    let line = line(format, level, message, SystemTime::now());
    // A log that cannot be written must not stop a container. One write(2): lines of parallel
    // commands on one file, opened for appending, do not mix.
    let _ = match file {
        Some(mut file) => file.write_all(line.as_bytes()),
        None => std::io::stderr().write_all(line.as_bytes()),
    };
}

/// The fd of the log's file, for a child that closes what it does not need.
pub fn file() -> Option<BorrowedFd<'static>> {
    SINK.get().and_then(|sink| sink.file.as_ref()).map(AsFd::as_fd)
}

/// The options by which another call of dhow logs as this one does.
pub fn options() -> Vec<String> {
    let Some(sink) = SINK.get() else { return Vec::new() };
    let mut words = vec![format!("--log-level={}", sink.level.name())];
    let path = sink.file.as_ref().and_then(|file| std::fs::read_link(fd::proc_path(file.as_fd())).ok());
    words.extend(path.map(|path| format!("--log={}", path.display())));
    words.extend(sink.format.map(|format| {
        let name = match format {
            Format::Text => "text",
            Format::Json => "json",
        };
        format!("--log-format={name}")
    }));
    words
}

/// The line for the log. Control characters never reach a terminal or a line-based reader raw.
fn line(format: Option<Format>, level: Level, message: &str, now: SystemTime) -> String {
    match format {
        Some(Format::Json) => {
            let message = serde_json::Value::from(message);
            format!(
                "{{\"level\":\"{}\",\"msg\":{message},\"time\":\"{}\"}}\n",
                level.name(),
                time::rfc3339(now)
            )
        }
        Some(Format::Text) => {
            let message = serde_json::Value::from(message);
            format!("time=\"{}\" level={} msg={message}\n", time::rfc3339(now), level.name())
        }
        None => {
            let plain: String = message.chars().flat_map(printable).collect();
            let prefix = if level == Level::Error { "" } else { level.name() };
            let separator = if prefix.is_empty() { "" } else { ": " };
            format!("dhow: {prefix}{separator}{plain}\n")
        }
    }
}

/// A control character as its escape, all others as they are.
fn printable(c: char) -> Box<dyn Iterator<Item = char>> {
    if c.is_control() { Box::new(c.escape_default()) } else { Box::new(std::iter::once(c)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_epoch(format: Option<Format>, level: Level, message: &str) -> String {
        line(format, level, message, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn json_is_what_engines_parse() {
        let text = at_epoch(Some(Format::Json), Level::Error, "no \"x\"\nhere");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "no \"x\"\nhere");
        assert_eq!(value["time"], "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text.matches('\n').count(), 1);
    }

    #[test]
    fn text_and_stderr_are_one_line_each() {
        assert_eq!(at_epoch(None, Level::Error, "a\nb\x1b[1m"), "dhow: a\\nb\\u{1b}[1m\n");
        assert_eq!(at_epoch(None, Level::Warning, "a"), "dhow: warning: a\n");
        assert_eq!(
            at_epoch(Some(Format::Text), Level::Error, "a b"),
            "time=\"1970-01-01T00:00:00.000000000Z\" level=error msg=\"a b\"\n"
        );
    }
}
