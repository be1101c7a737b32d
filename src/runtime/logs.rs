//! `logs`: what a container has written, from the file that its monitor keeps.

use super::container::{Container, Context};
use crate::error::{Class, Context as _, Error, Result};
use crate::state::{Log, Status};
use serde::Deserialize;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// How often a log that is followed is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// Which lines are asked for.
#[derive(Debug, Clone, Default)]
pub struct LogRequest {
    /// Goes on until the container has ended.
    pub follow: bool,
    /// At most so many of the last lines.
    pub tail: Option<usize>,
    /// None that was written before this moment, RFC 3339 in UTC.
    pub since: Option<String>,
}

/// A line, or a part of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was written, RFC 3339.
    pub time: String,
    /// Whether it came from standard error.
    pub is_error: bool,
    /// What was written, with its newline unless it is a part.
    pub text: String,
}

#[derive(Deserialize)]
struct JsonLine<'a> {
    log: String,
    stream: &'a str,
    time: &'a str,
}

/// Reads one line of the file; `None` for one that is not whole.
fn parse(driver: &str, line: &str) -> Option<Line> {
    if driver == "json-file" {
        let json: JsonLine<'_> = serde_json::from_str(line).ok()?;
        let is_error = json.stream == "stderr";
        return Some(Line { time: json.time.to_owned(), is_error, text: json.log });
    }
    let mut words = line.splitn(4, ' ');
    let (time, stream, kind, text) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let end = if kind == "P" { "" } else { "\n" };
    Some(Line { time: time.to_owned(), is_error: stream == "stderr", text: format!("{text}{end}") })
}

/// Gives the lines of a container's log to `tell`, the oldest first.
///
/// # Errors
/// [`Class::Unsupported`] when it has no log; what `tell` answers.
pub fn logs(
    context: &Context,
    id: &str,
    request: &LogRequest,
    tell: &mut dyn FnMut(&Line) -> Result<()>,
) -> Result<()> {
    let container = Container::open(context, id)?;
    let log = container.record.supervision.and_then(|supervision| supervision.log);
    let log = log.filter(|log| log.driver != "none").ok_or_else(|| {
        Error::new(Class::Unsupported, "read the log")
            .on(id)
            .because("the container has none")
            .hint("`dhow run --detach --log-driver json-file` keeps one")
    })?;
    let mut reader = Reader::open(&log)?;
    let wanted =
        |line: &Line| request.since.as_ref().is_none_or(|since| line.time.as_str() >= since.as_str());
    let mut last: VecDeque<Line> = VecDeque::new();
    while let Some(line) = reader.next()? {
        if !wanted(&line) {
            continue;
        }
        match request.tail {
            Some(tail) => {
                last.push_back(line);
                if last.len() > tail {
                    last.pop_front();
                }
            }
            None => tell(&line)?,
        }
    }
    last.iter().try_for_each(&mut *tell)?;
    if !request.follow {
        return Ok(());
    }
    loop {
        // Asked before the file is read: what was written before the end is shown.
        let is_over = match Container::open(context, id) {
            Ok(container) => matches!(container.status, Status::Exited | Status::Dead | Status::Removing),
            Err(error) if error.class == Class::NoContainer => true,
            Err(error) => return Err(error),
        };
        if is_over {
            // The monitor may still be moving the last of it.
            std::thread::sleep(PAUSE);
        }
        while let Some(line) = reader.next()? {
            if wanted(&line) {
                tell(&line)?;
            }
        }
        if is_over {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Reads the files from the oldest on, and goes on in the new one when the monitor turns over.
struct Reader<'a> {
    log: &'a Log,
    older: Vec<PathBuf>,
    file: BufReader<File>,
    inode: u64,
    /// A line that is not whole yet.
    begun: String,
}

impl<'a> Reader<'a> {
    fn open(log: &'a Log) -> Result<Reader<'a>> {
        let numbered = |number: u32| PathBuf::from(format!("{}.{number}", log.path.display()));
        // The next one is the last.
        let mut older: Vec<PathBuf> = vec![log.path.clone()];
        older.extend((1..log.most_files).map(numbered).filter(|path| path.exists()));
        let first = older.pop().unwrap_or_else(|| log.path.clone());
        let (file, inode) = open(&first)?;
        Ok(Reader { log, older, file, inode, begun: String::new() })
    }

    fn next(&mut self) -> Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            let read = self.file.read_until(b'\n', &mut bytes).doing("read the log")?;
            self.begun.push_str(&String::from_utf8_lossy(&bytes));
            if self.begun.ends_with('\n') {
                let text = std::mem::take(&mut self.begun);
                match parse(&self.log.driver, text.trim_end_matches('\n')) {
                    Some(line) => return Ok(Some(line)),
                    None => continue,
                }
            }
            if read > 0 {
                continue;
            }
            let next = match self.older.pop() {
                Some(next) => next,
                // It is read to its end; another one of its name is a newer one.
                None if std::fs::metadata(&self.log.path).is_ok_and(|now| now.ino() != self.inode) => {
                    self.log.path.clone()
                }
                None => return Ok(None),
            };
            (self.file, self.inode) = open(&next)?;
            self.begun.clear();
        }
    }
}

fn open(path: &std::path::Path) -> Result<(BufReader<File>, u64)> {
    let file = File::open(path).doing_on("open the log", || path.display().to_string())?;
    let inode = file.metadata().doing("open the log")?.ino();
    Ok((BufReader::new(file), inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_formats() {
        let json = r#"{"log":"a \"b\"\n","stream":"stderr","time":"2026-01-01T00:00:00.000000001Z"}"#;
        let line = parse("json-file", json).unwrap();
        assert_eq!((line.text.as_str(), line.is_error), ("a \"b\"\n", true));
        let line = parse("k8s-file", "2026-01-01T00:00:00.000000001Z stdout F a  b").unwrap();
        assert_eq!((line.text.as_str(), line.is_error), ("a  b\n", false));
        let part = parse("k8s-file", "2026-01-01T00:00:00.000000001Z stdout P a").unwrap();
        assert_eq!(part.text, "a");
        assert!(parse("json-file", "{\"log\":").is_none() && parse("k8s-file", "a b").is_none());
    }
}
