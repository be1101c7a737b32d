//! The log of a container, line by line, in the formats that `docker logs` and the kubelet read.

use crate::sys;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

/// The longest line that is kept whole: what Docker and CRI runtimes take. A longer one is cut into
/// partial ones.
pub const LONGEST: usize = 16 * 1024;

/// The form of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Docker's `json-file`: `{"log":"text\n","stream":"stdout","time":"…"}`; a partial line has no
    /// `\n` in it.
    Json,
    /// The kubelet's, also Podman's `k8s-file`: `TIME stdout F text`, with `P` for a partial line.
    Cri,
}

/// One of a container's two outputs, with what it wrote and did not end with a newline.
#[derive(Debug)]
pub struct Stream {
    name: &'static str,
    rest: Vec<u8>,
}

impl Stream {
    /// An output called `stdout` or `stderr`.
    pub fn new(name: &'static str) -> Stream {
        Stream { name, rest: Vec::with_capacity(LONGEST) }
    }
}

/// The file, and those that it was before: `PATH.1` is the youngest.
#[derive(Debug)]
pub struct LogFile {
    path: CString,
    format: Format,
    file: OwnedFd,
    size: u64,
    /// The size in bytes at which a new file is begun; 0 for never.
    most_bytes: u64,
    /// How many files there may be, this one among them.
    most_files: u32,
    line: Vec<u8>,
}

impl LogFile {
    /// Opens the file, to go on where it ends.
    ///
    /// # Errors
    /// errno of open(2).
    pub fn open(path: CString, format: Format, most_bytes: u64, most_files: u32) -> Result<LogFile, i32> {
        let file = sys::open_log(&path)?;
        let size = sys::size(&file);
        let line = Vec::with_capacity(LONGEST + 256);
        Ok(LogFile { path, format, file, size, most_bytes, most_files: most_files.max(1), line })
    }

    /// Takes what an output wrote: whole lines go to the file, and what is longer than [`LONGEST`].
    pub fn take(&mut self, stream: &mut Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LONGEST - stream.rest.len();
            let end = bytes.iter().position(|&byte| byte == b'\n');
            let (length, ends) = match end {
                Some(end) if end <= room => (end, true),
                _ => (room.min(bytes.len()), false),
            };
            stream.rest.extend_from_slice(&bytes[..length]);
            bytes = &bytes[length + usize::from(ends)..];
            if ends || stream.rest.len() == LONGEST {
                self.write(stream, !ends);
            }
        }
    }

    /// Writes what an output said last and did not end.
    pub fn finish(&mut self, stream: &mut Stream) {
        if !stream.rest.is_empty() {
            self.write(stream, true);
        }
    }

    fn write(&mut self, stream: &mut Stream, partial: bool) {
        self.line.clear();
        format_line(&mut self.line, self.format, stream.name, &stream.rest, partial, sys::now());
        stream.rest.clear();
        let length = self.line.len() as u64;
        if self.most_bytes > 0 && self.size > 0 && self.size + length > self.most_bytes {
            self.rotate();
        }
        // A disk that is full loses lines; it must not stop the container.
        if sys::write_all(self.file.as_raw_fd(), &self.line) {
            self.size += length;
        }
    }

    fn numbered(&self, number: u32) -> CString {
        let mut name = self.path.as_bytes().to_vec();
        if number > 0 {
            let _ = write!(name, ".{number}");
        }
        CString::new(name).unwrap_or_default()
    }

    fn rotate(&mut self) {
        if self.most_files == 1 {
            sys::unlink(&self.path);
        }
        for number in (0..self.most_files - 1).rev() {
            sys::rename(&self.numbered(number), &self.numbered(number + 1));
        }
        if let Ok(file) = sys::open_log(&self.path) {
            (self.file, self.size) = (file, 0);
        }
    }
}

/// Appends one line in its final form.
pub fn format_line(line: &mut Vec<u8>, format: Format, stream: &str, text: &[u8], partial: bool, now: u64) {
    // Writing to memory does not fail.
    match format {
        Format::Cri => {
            time(line, now);
            let _ = write!(line, " {stream} {} ", if partial { 'P' } else { 'F' });
            line.extend_from_slice(text);
        }
        Format::Json => {
            line.extend_from_slice(b"{\"log\":\"");
            escape(line, text);
            line.extend_from_slice(if partial { b"" } else { b"\\n" });
            let _ = write!(line, "\",\"stream\":\"{stream}\",\"time\":\"");
            time(line, now);
            line.extend_from_slice(b"\"}");
        }
    }
    line.push(b'\n');
}

/// RFC 3339 with nanoseconds.
fn time(line: &mut Vec<u8>, now: u64) {
    let [year, month, day, hour, minute, second] = sys::utc((now / 1_000_000_000).cast_signed());
    let fraction = now % 1_000_000_000;
    let _ = write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:09}Z");
}

/// A JSON string's inside. What is not UTF-8 becomes U+FFFD, as Docker has it.
fn escape(line: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
                b'\r' => line.extend_from_slice(b"\\r"),
                b'\t' => line.extend_from_slice(b"\\t"),
                // `<`, `>` and `&` are escaped as Go's encoder does.
                0..0x20 | b'<' | b'>' | b'&' | 0x7f => drop(write!(line, "\\u{byte:04x}")),
                _ => line.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice(b"\\ufffd");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format, text: &[u8], partial: bool) -> String {
        let mut line = Vec::new();
        format_line(&mut line, format, "stdout", text, partial, 951_827_696_000_000_007);
        String::from_utf8(line).unwrap_or_default()
    }

    #[test]
    fn lines_as_docker_and_the_kubelet_read_them() {
        assert_eq!(
            line(Format::Json, b"a \"b\"\t<\x01\xff", false),
            "{\"log\":\"a \\\"b\\\"\\t\\u003c\\u0001\\ufffd\\n\",\"stream\":\"stdout\",\"time\":\"2000-02-29T12:34:56.000000007Z\"}\n"
        );
        assert!(line(Format::Json, b"a", true).starts_with("{\"log\":\"a\",\"stream\""));
        assert_eq!(line(Format::Cri, b"a b", false), "2000-02-29T12:34:56.000000007Z stdout F a b\n");
        assert_eq!(line(Format::Cri, b"a b", true), "2000-02-29T12:34:56.000000007Z stdout P a b\n");
    }

    #[test]
    fn long_lines_are_cut_and_files_turn_over() {
        let path = std::env::temp_dir().join(format!("dhow-log-{}", std::process::id()));
        let name = |n: u32| if n == 0 { path.clone() } else { path.with_extension(n.to_string()) };
        let c_path = CString::new(path.to_str().unwrap_or_default()).unwrap_or_default();
        let Ok(mut log) = LogFile::open(c_path, Format::Cri, 40_000, 2) else { panic!("open") };
        let mut stream = Stream::new("stderr");
        let long = vec![b'x'; LONGEST + 10];
        log.take(&mut stream, &long);
        log.take(&mut stream, b"\nshort\nlast");
        log.finish(&mut stream);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let kinds: Vec<(&str, usize)> = text
            .lines()
            .filter_map(|line| line.split_once(" stderr ")?.1.split_once(' '))
            .map(|(kind, text)| (kind, text.len()))
            .collect();
        assert_eq!(kinds, [("P", LONGEST), ("F", 10), ("F", 5), ("P", 4)]);
        for _ in 0..3 {
            log.take(&mut stream, &long);
        }
        assert!(name(1).exists() && !name(2).exists(), "two files, and no third");
        for number in 0..2 {
            let _ = std::fs::remove_file(name(number));
        }
    }
}
