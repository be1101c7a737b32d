//! CRIU, criu.org: freezes processes into files and thaws them again. It is driven as its own tools
//! do it: `criu swrk` reads requests from a socket, in protobuf (criu's `rpc.proto`).
//!
//! As much of protobuf as it takes is written here: the crate for it would bring a code generator
//! and more code than the rest of dhow's checkpoint.

use crate::error::{Class, Context as _, Error, Result};
use crate::sys::clone::before_exec;
use crate::sys::{fd, io_errno, socket};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The longest message of criu's own service.
const MOST_BYTES: usize = 10 * 4096;

/// `enum criu_req_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Write an image, and end the processes unless they are to go on.
    Dump = 1,
    /// Start processes from an image.
    Restore = 2,
    /// Write the memory alone, for a dump that follows.
    PreDump = 4,
}

/// The type of a notification and of the answer to it.
const NOTIFY: u64 = 6;

/// A message of protobuf's wire format under construction.
#[derive(Debug, Default, Clone)]
pub struct Fields(Vec<u8>);

impl Fields {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    /// An integer, an enumeration's value or a boolean.
    pub fn number(&mut self, field: u32, value: u64) -> &mut Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// A switch; criu takes what is not there as off.
    pub fn switch(&mut self, field: u32, on: bool) -> &mut Self {
        if on { self.number(field, 1) } else { self }
    }

    /// A string or a message.
    pub fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// A message.
    pub fn message(&mut self, field: u32, inner: &Fields) -> &mut Self {
        self.bytes(field, &inner.0)
    }

    /// A message of two strings, or of a string and a number.
    pub fn pair(&mut self, field: u32, first: &str, second: Second<'_>) -> &mut Self {
        let mut inner = Fields::default();
        inner.bytes(1, first.as_bytes());
        match second {
            Second::Text(text) => inner.bytes(2, text.as_bytes()),
            Second::Number(number) => inner.number(2, number),
        };
        self.bytes(field, &inner.0)
    }
}

/// The second part of a [`Fields::pair`].
#[derive(Debug, Clone, Copy)]
pub enum Second<'a> {
    /// A string.
    Text(&'a str),
    /// An integer.
    Number(u64),
}

/// One field of a message that was read.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message; `None` when it is none.
fn read(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value)
            }
            1 => {
                bytes = bytes.get(8..)?;
                continue;
            }
            5 => {
                bytes = bytes.get(4..)?;
                continue;
            }
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

/// What criu says while it works. The answer is awaited.
#[derive(Debug)]
pub struct Notification {
    /// Which point was reached: `setup-namespaces`, `post-restore`, `orphan-pts-master`, …
    pub script: String,
    /// The root process.
    pub pid: i32,
    /// The master of the terminal, with `orphan-pts-master`.
    pub fd: Option<OwnedFd>,
}

/// A criu that waits for one request.
#[derive(Debug)]
pub struct Criu {
    child: Child,
    socket: OwnedFd,
    what: &'static str,
}

impl Drop for Criu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Criu {
    /// Starts criu, in the cgroups whose files are given. `kept` are the fds that requests will name;
    /// they have the same numbers there.
    ///
    /// # Errors
    /// [`Class::Unsupported`] when there is no criu.
    pub fn start(
        program: &Path,
        what: &'static str,
        cgroups: Vec<OwnedFd>,
        kept: &[&OwnedFd],
    ) -> Result<Criu> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .doing("make a socket pair")?;
        let mut numbers: Vec<i32> = kept.iter().map(|fd| fd.as_raw_fd()).collect();
        numbers.push(theirs.as_raw_fd());
        let mut command = Command::new(program);
        command.arg("swrk").arg(theirs.as_raw_fd().to_string());
        before_exec(&mut command, move || {
            for file in &cgroups {
                rustix::io::write(file, b"0").map_err(rustix::io::Errno::raw_os_error)?;
            }
            numbers.iter().try_for_each(|&number| fd::keep_on_exec(number)).map_err(|errno| errno as i32)
        });
        let spawned =
            command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit()).spawn();
        let child = spawned.map_err(|error| {
            Error::system(what, io_errno(&error))
                .on(program.display().to_string())
                .class(Class::Unsupported)
                .hint("checkpoint and restore need criu, version 3.17 or later")
        })?;
        Ok(Criu { child, socket: ours, what })
    }

    /// criu's own pid. All that it starts is born into its cgroups.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a request and answers notifications until it is done. Answers the root process of what
    /// was restored, 0 for others.
    ///
    /// # Errors
    /// criu's, with the log that tells more.
    pub fn request(
        &mut self,
        kind: Kind,
        options: &Fields,
        log: &Path,
        mut notified: impl FnMut(Notification) -> Result<()>,
    ) -> Result<i32> {
        let mut request = Fields::default();
        request.number(1, kind as u64).bytes(2, &options.0);
        match socket::send(self.socket.as_fd(), &[&request.0], &[]) {
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(self.failed(log, "it ended at once")),
            sent => sent.doing(self.what)?,
        }
        let mut buffer = vec![0; MOST_BYTES];
        loop {
            let received = socket::receive(self.socket.as_fd(), &mut buffer);
            // Killed with the request unread: gone as well.
            let (length, fds) = match received {
                Err(Errno::ECONNRESET) => (0, Vec::new()),
                received => received.doing(self.what)?,
            };
            if length == 0 {
                return Err(self.failed(log, "it ended without an answer"));
            }
            let Some(answer) = Answer::read(&buffer[..length]) else {
                return Err(self.failed(log, "its answer cannot be read"));
            };
            if let (NOTIFY, Some((script, pid))) = (answer.kind, answer.notification) {
                let outcome = notified(Notification { script, pid, fd: fds.into_iter().next() });
                let mut reply = Fields::default();
                reply.number(1, NOTIFY).number(3, u64::from(outcome.is_ok()));
                socket::send(self.socket.as_fd(), &[&reply.0], &[]).doing(self.what)?;
                outcome?;
                continue;
            }
            if answer.success {
                return Ok(answer.pid);
            }
            let words = if answer.message.is_empty() { "it failed".to_owned() } else { answer.message };
            return Err(self.failed(log, &words));
        }
    }

    /// criu's own log says why.
    fn failed(&self, log: &Path, words: &str) -> Error {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let line = cause_in(&text);
        let cause = if line.is_empty() { words.to_owned() } else { format!("criu failed: {line}") };
        Error::new(Class::System, self.what).because(cause).hint(format!("{} tells more", log.display()))
    }
}

/// The first thing that criu's log gives as an error of its own. It tries more than it needs: what a machine
/// lacks is in every log of it. And the programs that it calls write there too, as ip(8) does that the
/// kernel has given a loopback device its addresses before it.
fn cause_in(log: &str) -> &str {
    let harmless = ["RLIMIT_NOFILE", "Unable to create tun"];
    let is_cause =
        |line: &&str| line.contains("Error (") && !harmless.iter().any(|words| line.contains(words));
    let line = log.lines().find(is_cause).unwrap_or_default();
    line.split_once(") ").filter(|(time, _)| time.starts_with('(')).map_or(line, |(_, rest)| rest).trim()
}

/// The parts of `message criu_resp` that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    kind: u64,
    success: bool,
    pid: i32,
    notification: Option<(String, i32)>,
    message: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Answer> {
        let mut answer = Answer::default();
        let pid = |number: u64| i32::try_from(number).ok();
        for (field, value) in read(bytes)? {
            match (field, value) {
                (1, Value::Number(kind)) => answer.kind = kind,
                (2, Value::Number(success)) => answer.success = success != 0,
                (4, Value::Bytes(restored)) => {
                    for (field, value) in read(restored)? {
                        if let (1, Value::Number(number)) = (field, value) {
                            answer.pid = pid(number)?;
                        }
                    }
                }
                (5, Value::Bytes(notification)) => {
                    let mut told = (String::new(), 0);
                    for (field, value) in read(notification)? {
                        match (field, value) {
                            (1, Value::Bytes(script)) => {
                                told.0 = String::from_utf8_lossy(script).into_owned();
                            }
                            (2, Value::Number(number)) => told.1 = pid(number)?,
                            _ => {}
                        }
                    }
                    answer.notification = Some(told);
                }
                (9, Value::Bytes(message)) => answer.message = String::from_utf8_lossy(message).into_owned(),
                _ => {}
            }
        }
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_bytes_of_protobuf() {
        let mut fields = Fields::default();
        fields.number(2, 300).switch(3, false).switch(7, true).bytes(10, b"log");
        fields.pair(23, "/a", Second::Text("/b")).pair(27, "x", Second::Number(5));
        let expected =
            b"\x10\xac\x02\x38\x01\x52\x03log\xba\x01\x08\x0a\x02/a\x12\x02/b\xda\x01\x05\x0a\x01x\x10\x05";
        assert_eq!(fields.0, expected);
    }

    #[test]
    fn the_cause_is_criu_s_own_and_not_that_of_its_helpers() {
        let log = "(00.004208) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: x\n\
                   Error: ipv4: Address already assigned.\n\
                   Error: ipv6: address already assigned.\n\
                   (00.248125) Error (criu/uffd.c:1306): uffd: Broken pipe\n\
                   (00.248813) Error (criu/cr-restore.c:2331): Restoring FAILED.\n";
        assert_eq!(cause_in(log), "Error (criu/uffd.c:1306): uffd: Broken pipe");
        assert_eq!(cause_in("(00.1) pie: 1: Error (criu/x.c:1): y\n"), "pie: 1: Error (criu/x.c:1): y");
        assert_eq!(cause_in("Error: ipv4: Address already assigned.\n"), "");
    }

    #[test]
    fn answers_are_read_and_nonsense_is_none() {
        let notify = b"\x08\x06\x10\x01\x2a\x09\x0a\x04post\x10\xac\x02";
        let answer = Answer::read(notify).unwrap();
        assert_eq!((answer.kind, answer.success), (6, true));
        assert_eq!(answer.notification, Some(("post".into(), 300)));
        assert_eq!(Answer::read(b"\x08\x02\x10\x01\x22\x02\x08\x07").unwrap().pid, 7);
        let failed = Answer::read(b"\x08\x01\x10\x00\x4a\x03why").unwrap();
        assert_eq!((failed.success, failed.message.as_str()), (false, "why"));
        for nonsense in [
            &b"\x08"[..],
            b"\x0a\xff\x01",
            b"\x0b",
            b"\x2a\x05\x0a",
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        ] {
            assert!(Answer::read(nonsense).is_none(), "{nonsense:?}");
        }
    }
}
