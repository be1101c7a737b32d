//! A process' stdio: containerd's fifos, files and loggers on one side, pipes or a terminal on the
//! other, and the copying between.

use crate::options::Options;
use dhow_shim_common::sys;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

/// Where a process reads and writes, as containerd says it; empty for nowhere.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    In,
    Out,
}

/// Bytes on their way from one file to another.
#[derive(Debug)]
pub struct Copy {
    /// The process that it belongs to.
    pub process: u64,
    pub way: Way,
    pub from: File,
    pub to: File,
    /// What was read and could not be written yet.
    rest: Vec<u8>,
    /// Whether it ends when there is nothing to read now, rather than when all writers have gone.
    pub is_ending: bool,
}

/// The largest piece that is copied at once.
const PIECE: usize = 16 * 1024;

impl Copy {
    pub fn new(process: u64, way: Way, from: File, to: File) -> Copy {
        Copy { process, way, from, to, rest: Vec::new(), is_ending: false }
    }

    /// Whether it waits for the reader.
    pub fn is_full(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Copies what there is, up to some pieces, so that others have their turn; `false` at the end.
    pub fn step(&mut self) -> bool {
        let mut buffer = [0; PIECE];
        for _ in 0..8 {
            while !self.rest.is_empty() {
                match self.to.write(&self.rest) {
                    Ok(length) => drop(self.rest.drain(..length)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return false,
                }
            }
            self.rest = Vec::new();
            match self.from.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => match self.to.write(&buffer[..length]) {
                    Ok(written) => self.rest = buffer[written..length].to_vec(),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.rest = buffer[..length].to_vec();
                        return true;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {
                        self.rest = buffer[..length].to_vec();
                    }
                    Err(_) => return false,
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return !self.is_ending,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // EIO: nobody has the terminal open any more.
                Err(_) => return false,
            }
        }
        true
    }
}

/// What a process is given, and the copies that feed it.
#[derive(Debug)]
pub struct Prepared {
    /// Its stdin, stdout and stderr; the shim closes them once the process has them.
    pub files: [OwnedFd; 3],
    pub copies: Vec<Copy>,
    /// Readable, or closed at the other end, when the logging program is ready.
    pub ready: Option<OwnedFd>,
    /// Where a logging program reads what a terminal says.
    pub output: Option<OwnedFd>,
}

/// Opens all that a process without a terminal needs.
///
/// # Errors
/// What cannot be opened, and why.
pub fn prepare(process: u64, places: &Places, options: &Options, about: &Logger) -> Result<Prepared, String> {
    let null = || sys::null().map_err(|errno| format!("open /dev/null: errno {errno}"));
    let mut copies = Vec::new();
    let mut files = [null()?, null()?, null()?];
    if places.terminal {
        let mut prepared = Prepared { files, copies, ready: None, output: None };
        if places.stdout.starts_with("binary://") {
            let ([output, _], ready) = about.start(&places.stdout)?;
            blocks(&output, false);
            (prepared.output, prepared.ready) = (Some(output), Some(ready));
        }
        return Ok(prepared);
    }
    let own = |end: &OwnedFd| {
        if options.io_uid != 0 || options.io_gid != 0 {
            let (uid, gid) = (Uid::from_raw(options.io_uid), Gid::from_raw(options.io_gid));
            let _ = rustix::fs::fchown(end, Some(uid), Some(gid));
        }
    };
    if !places.stdin.is_empty() {
        let (reader, writer) = pipe()?;
        own(&reader);
        blocks(&reader, true);
        blocks(&writer, false);
        copies.push(Copy::new(process, Way::In, open_input(&places.stdin)?, writer.into()));
        files[0] = reader;
    }
    if places.stdout.starts_with("binary://") {
        let ready;
        ([files[1], files[2]], ready) = about.start(&places.stdout)?;
        return Ok(Prepared { files, copies, ready: Some(ready), output: None });
    }
    for (place, file) in [&places.stdout, &places.stderr].into_iter().zip(&mut files[1..]) {
        if place.is_empty() {
            continue;
        }
        let output = open_output(place)?;
        let (reader, writer) = pipe()?;
        own(&writer);
        copies.push(Copy::new(process, Way::Out, reader.into(), output));
        *file = writer;
    }
    Ok(Prepared { files, copies, ready: None, output: None })
}

/// The copies between a terminal and containerd's fifos, or the logging program's pipe.
///
/// # Errors
/// What cannot be opened, and why.
pub fn join_terminal(
    process: u64,
    places: &Places,
    master: &OwnedFd,
    output: Option<OwnedFd>,
) -> Result<Vec<Copy>, String> {
    blocks(master, false);
    let again = || master.try_clone().map(File::from).map_err(|error| format!("copy the terminal: {error}"));
    let mut copies = Vec::new();
    if !places.stdin.is_empty() {
        copies.push(Copy::new(process, Way::In, open_input(&places.stdin)?, again()?));
    }
    let output = match output {
        Some(output) => Some(output.into()),
        None if places.stdout.is_empty() => None,
        None => Some(open_output(&places.stdout)?),
    };
    if let Some(output) = output {
        copies.push(Copy::new(process, Way::Out, again()?, output));
    }
    Ok(copies)
}

fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    sys::pipe().map_err(|errno| format!("make a pipe: errno {errno}"))
}

fn blocks(file: &OwnedFd, blocks: bool) {
    let flags = rustix::fs::fcntl_getfl(file).unwrap_or(OFlags::empty());
    let _ = rustix::fs::fcntl_setfl(
        file,
        if blocks { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK },
    );
}

fn path_of(place: &str) -> &str {
    place.strip_prefix("file://").or_else(|| place.strip_prefix("fifo://")).unwrap_or(place)
}

/// A fifo is opened without waiting for a writer: poll(2) tells "none yet" from "none any more".
fn open_input(place: &str) -> Result<File, String> {
    let path = path_of(place);
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| format!("open stdin {path}: {error}"))
}

/// A fifo is opened for reading as well: its reader may go and come again, when containerd does. A file
/// is the shim's alone: a container that had it could empty it, and criu does not dump what is not the
/// container's.
fn open_output(place: &str) -> Result<File, String> {
    let path = path_of(place);
    let is_fifo = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
    let mut open = OpenOptions::new();
    match is_fifo {
        true => open.read(true).write(true).custom_flags(libc::O_NONBLOCK),
        false => open.append(true).create(true).mode(0o640),
    };
    if place.starts_with("file://") {
        let parent = std::path::Path::new(path).parent().unwrap_or(std::path::Path::new("/"));
        std::fs::create_dir_all(parent).map_err(|error| format!("make {}: {error}", parent.display()))?;
    }
    open.open(path).map_err(|error| format!("open {path}: {error}"))
}

/// Whoever reads a process' output, at the other end of fifos.
///
/// Clients open them while the request is on its way. Output that comes before would be lost when the
/// process ends first, for a client opens nothing once it has deleted the process.
#[derive(Debug, Default)]
pub struct Readers {
    missing: Vec<String>,
    /// Open for writing, or a reader that has come would see the end.
    held: Vec<File>,
}

impl Readers {
    pub fn of(places: &Places) -> Readers {
        let outputs = [&places.stdout, &places.stderr].into_iter().map(|place| path_of(place).to_owned());
        let is_fifo = |path: &String| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
        let mut readers = Readers { missing: outputs.filter(is_fifo).collect(), held: Vec::new() };
        readers.are_there();
        readers
    }

    /// Whether all are there.
    pub fn are_there(&mut self) -> bool {
        self.missing.retain(|path| {
            let opened = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path);
            let waits = opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENXIO));
            self.held.extend(opened);
            waits
        });
        self.missing.is_empty()
    }
}

/// What a logging program is told: `binary:///PATH?WORD=VALUE…`.
#[derive(Debug)]
pub struct Logger<'a> {
    pub id: &'a str,
    pub namespace: &'a str,
}

impl Logger<'_> {
    /// Starts it with the outputs' readers as files 3 and 4. Answers the writers, and what can be read
    /// once it closes or writes to its file 5, which says that it is ready.
    fn start(&self, place: &str) -> Result<([OwnedFd; 2], OwnedFd), String> {
        let word = |text: &str| CString::new(text).map_err(|_| format!("{place}: a NUL byte"));
        let mut words = Vec::new();
        for text in logger_words(place) {
            words.push(word(&text)?);
        }
        let environment = [
            word(&format!("CONTAINER_ID={}", self.id))?,
            word(&format!("CONTAINER_NAMESPACE={}", self.namespace))?,
        ];
        let (out, err, ready) = (pipe()?, pipe()?, pipe()?);
        blocks(&out.0, true);
        blocks(&err.0, true);
        let files = [-1, -1, -1, out.0.as_raw_fd(), err.0.as_raw_fd(), ready.1.as_raw_fd()];
        sys::spawn_with(&words, &files, &environment, false)
            .map_err(|errno| format!("start the logger {place}: errno {errno}"))?;
        Ok(([out.1, err.1], ready.0))
    }
}

/// The program and its words: the query's names and values, in order.
fn logger_words(place: &str) -> Vec<String> {
    let place = place.strip_prefix("binary://").unwrap_or(place);
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    let parts = query.split('&').flat_map(|pair| pair.split('='));
    std::iter::once(path).chain(parts.filter(|part| !part.is_empty())).map(percent).collect()
}

fn percent(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (byte, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(code)) => (bytes.push(code), rest = &after[2..]).1,
            (b'+', _) => (bytes.push(b' '), rest = after).1,
            _ => (bytes.push(byte), rest = after).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The file through which the shim talks to containerd's log, in a bundle.
pub fn open_log(bundle: &std::path::Path) -> Option<File> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(bundle.join("log"), flags, Mode::empty()).ok()?);
    let stat = rustix::fs::fstat(file.as_fd()).ok()?;
    (rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loggers_words_are_its_query() {
        assert_eq!(logger_words("binary:///bin/log"), ["/bin/log"]);
        assert_eq!(logger_words("binary:///a%20b?x=1&-v=&y=a+b"), ["/a b", "x", "1", "-v", "y", "a b"]);
    }

    #[test]
    fn a_full_reader_holds_the_copy_up_and_nothing_is_lost() {
        let ((from, mut feed), (mut out, to)) = (sys_pipe(), sys_pipe());
        let text: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let expected = text.clone();
        blocks(&OwnedFd::from(feed.try_clone().unwrap()), true);
        let writer = std::thread::spawn(move || feed.write_all(&text).unwrap());
        let mut copy = Copy::new(1, Way::Out, from, to);
        let mut seen = Vec::new();
        let mut goes_on = true;
        while goes_on || seen.len() < expected.len() {
            goes_on = goes_on && copy.step();
            let mut buffer = [0; 1000];
            if let Ok(length) = out.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..length]);
            }
        }
        writer.join().unwrap();
        assert_eq!(seen, expected);
    }

    fn sys_pipe() -> (File, File) {
        let (reader, writer) = pipe().unwrap();
        blocks(&writer, false);
        (reader.into(), writer.into())
    }
}
