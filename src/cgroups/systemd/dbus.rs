//! As much of D-Bus as it takes to ask systemd for a scope: one connection, calls, one signal.
//!
//! zbus would do it too, but brings an executor with threads of its own, and dhow has to be
//! single-threaded when it clones the container's init; it also more than doubles the binary.
//! The D-Bus specification's "Message Protocol" says what the bytes mean.

use super::variant::Variant;
use crate::error::{Class, Context, Error, Result};
use std::borrow::Cow;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take: as long as systemd's own clients wait.
const PATIENCE: Duration = Duration::from_secs(25);

/// The longest message that the specification allows.
const LONGEST: usize = 128 << 20;

/// A value of a unit's property.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    U64(u64),
    Text(String),
    /// Process ids.
    U32s(Vec<u32>),
    Bytes(Vec<u8>),
    Texts(Vec<String>),
    TextPairs(Vec<(String, String)>),
    /// Device nodes with a rate or weight.
    TextNumbers(Vec<(String, u64)>),
    /// What an annotation gave.
    Given(Variant),
}

impl Value {
    fn signature(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Value::Bool(_) => "b",
            Value::U64(_) => "t",
            Value::Text(_) => "s",
            Value::U32s(_) => "au",
            Value::Bytes(_) => "ay",
            Value::Texts(_) => "as",
            Value::TextPairs(_) => "a(ss)",
            Value::TextNumbers(_) => "a(st)",
            Value::Given(variant) => return Cow::Owned(variant.signature()),
        })
    }
}

/// A name and a value.
pub(super) type Property = (&'static str, Value);

/// Bytes under construction, aligned from the beginning of the message's part that they are.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        let length = self.bytes.len().next_multiple_of(to);
        self.bytes.resize(length, 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend_from_slice(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.bytes.extend_from_slice(&value.to_ne_bytes());
    }

    pub(super) fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    pub(super) fn text(&mut self, value: &str) {
        // Lengths are far below 4 GiB: messages are limited to 128 MiB.
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    fn signature(&mut self, value: &str) {
        self.bytes.push(u8::try_from(value.len()).unwrap_or(u8::MAX));
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    /// An array whose elements begin at multiples of `align`.
    fn array<T>(&mut self, align: usize, items: &[T], mut write: impl FnMut(&mut Writer, &T)) {
        self.u32(0);
        let length_at = self.bytes.len() - 4;
        self.align(align);
        let start = self.bytes.len();
        for item in items {
            self.align(align);
            write(self, item);
        }
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(&value.signature());
        match value {
            Value::Bool(value) => self.bool(*value),
            Value::U64(value) => self.u64(*value),
            Value::Text(value) => self.text(value),
            Value::U32s(list) => self.array(4, list, |w, v| w.u32(*v)),
            Value::Bytes(list) => self.array(1, list, |w, v| w.bytes.push(*v)),
            Value::Texts(list) => self.array(4, list, |w, v| w.text(v)),
            Value::TextPairs(list) => self.array(8, list, |w, (a, b)| {
                w.text(a);
                w.text(b);
            }),
            Value::TextNumbers(list) => self.array(8, list, |w, (a, b)| {
                w.text(a);
                w.u64(*b);
            }),
            Value::Given(variant) => self.given(variant),
        }
    }

    fn given(&mut self, variant: &Variant) {
        match variant {
            Variant::Bool(value) => self.bool(*value),
            Variant::Byte(value) => self.bytes.push(*value),
            Variant::I16(value) => self.number(value.to_ne_bytes()),
            Variant::U16(value) => self.number(value.to_ne_bytes()),
            Variant::I32(value) => self.number(value.to_ne_bytes()),
            Variant::U32(value) => self.u32(*value),
            Variant::I64(value) => self.number(value.to_ne_bytes()),
            Variant::U64(value) => self.u64(*value),
            Variant::Double(value) => self.number(value.to_ne_bytes()),
            Variant::Text(value) => self.text(value),
            Variant::Array(of, list) => {
                // The specification's table of alignments.
                let align = match of.as_bytes().first() {
                    Some(b'y') => 1,
                    Some(b'n' | b'q') => 2,
                    Some(b'x' | b't' | b'd' | b'(') => 8,
                    _ => 4,
                };
                self.array(align, list, Writer::given);
            }
            Variant::Tuple(list) => {
                self.align(8);
                list.iter().for_each(|value| self.given(value));
            }
        }
    }

    /// A number, aligned to its own size.
    fn number<const N: usize>(&mut self, bytes: [u8; N]) {
        self.align(N);
        self.bytes.extend_from_slice(&bytes);
    }

    /// `a(sv)`: dhow's own properties, and then those that were given.
    pub(super) fn properties<N: AsRef<str>>(&mut self, list: &[(N, Value)], more: &[(String, Value)]) {
        let own = list.iter().map(|(name, value)| (name.as_ref(), value));
        let all: Vec<_> = own.chain(more.iter().map(|(name, value)| (name.as_str(), value))).collect();
        self.array(8, &all, |w, (name, value)| {
            w.text(name);
            w.variant(value);
        });
    }

    /// `a(sa(sv))` without elements: no auxiliary units.
    pub(super) fn no_units(&mut self) {
        self.array::<()>(8, &[], |_, ()| {});
    }
}

/// A cursor over received bytes. Everything it gives is checked to be there.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let part = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(part)
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        Some(u32::from_ne_bytes(self.take(4)?.try_into().ok()?))
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }

    fn signature(&mut self) -> Option<&'a str> {
        let length = usize::from(self.byte()?);
        let text = std::str::from_utf8(self.take(length)?).ok()?;
        self.take(1)?;
        Some(text)
    }
}

/// What arrived: the parts of a message that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    kind: u8,
    reply_to: u32,
    member: String,
    error: String,
    body: Vec<u8>,
}

const CALL: u8 = 1;
const REPLY: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

const ENDIAN: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };

/// The lengths that the first 16 bytes of a message announce: of its header fields, padded, and of
/// its body.
fn announced(fixed: &[u8; 16]) -> Option<(usize, usize)> {
    let mut reader = Reader { bytes: fixed, at: 4 };
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = (reader.u32()? as usize).next_multiple_of(8);
    (fixed[0] == ENDIAN && fixed[3] == 1 && fields < LONGEST && body < LONGEST).then_some((fields, body))
}

impl Message {
    /// Reads a message from its fixed part and the rest, of the lengths that were announced.
    fn parse(fixed: &[u8; 16], rest: &[u8]) -> Option<Message> {
        let (fields, body) = announced(fixed)?;
        let length = u32::from_ne_bytes(fixed[12..].try_into().ok()?) as usize;
        let mut message =
            Message { kind: fixed[1], body: rest.get(fields..fields + body)?.to_vec(), ..Message::default() };
        let mut reader = Reader { bytes: rest.get(..length)?, at: 0 };
        while reader.at < length {
            reader.align(8);
            let code = reader.byte()?;
            match reader.signature()? {
                "s" | "o" => {
                    let text = reader.text()?;
                    match code {
                        3 => text.clone_into(&mut message.member),
                        4 => text.clone_into(&mut message.error),
                        _ => {}
                    }
                }
                "u" => {
                    let number = reader.u32()?;
                    if code == 5 {
                        message.reply_to = number;
                    }
                }
                "g" => _ = reader.signature()?,
                _ => return None,
            }
        }
        Some(message)
    }
}

/// A method call as bytes.
fn call_bytes(serial: u32, to: &Target, member: &str, signature: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes.extend_from_slice(&[ENDIAN, CALL, 0, 1]);
    out.u32(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.u32(serial);
    let mut fields: Vec<(u8, &str, &str)> =
        vec![(1, "o", to.path), (2, "s", to.interface), (3, "s", member), (6, "s", to.name)];
    if !signature.is_empty() {
        fields.push((8, "g", signature));
    }
    out.array(8, &fields, |w, (code, kind, value)| {
        w.bytes.push(*code);
        w.signature(kind);
        if *kind == "g" { w.signature(value) } else { w.text(value) }
    });
    out.align(8);
    out.bytes.extend_from_slice(body);
    out.bytes
}

/// Whom a call is for.
#[derive(Debug)]
pub(super) struct Target {
    name: &'static str,
    path: &'static str,
    interface: &'static str,
}

/// systemd's manager object (org.freedesktop.systemd1(5)).
pub(super) const MANAGER: Target = Target {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

const BUS: Target =
    Target { name: "org.freedesktop.DBus", path: "/org/freedesktop/DBus", interface: "org.freedesktop.DBus" };

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The other side says so: the error's name and its words.
    Refused(String, String),
    /// The connection broke.
    Broken(Error),
}

/// A connection to systemd: its own socket, or the bus that it is on.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    serial: u32,
    /// `JobRemoved` signals that came between: job and result.
    finished: Vec<(String, String)>,
}

impl Connection {
    /// Connects to the system's manager, or to the user's.
    ///
    /// systemd's own socket is tried first: it saves the way through dbus-daemon and works where
    /// there is none.
    ///
    /// # Errors
    /// No systemd, or no right to talk to it.
    pub(super) fn open(user: bool) -> Result<Connection> {
        let (own, bus) = if user { user_sockets()? } else { (OWN_SOCKET.to_owned(), SYSTEM_BUS.to_owned()) };
        if let Ok(connection) =
            UnixStream::connect(&own).map_err(drop).and_then(|s| Self::greet(s).map_err(drop))
        {
            return Ok(connection);
        }
        let doing = "connect to systemd";
        let socket = connect(&bus).map_err(|error| {
            let hint = if user { "is there a systemd user session?" } else { "is systemd running?" };
            Err::<(), _>(error)
                .doing_on(doing, || bus.clone())
                .map_or_else(|e| e, |()| no_answer())
                .hint(hint)
        })?;
        let mut connection = Self::greet(socket)?;
        connection.call_checked(&BUS, "Hello", "", &Writer::default())?;
        let mut rule = Writer::default();
        rule.text("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'");
        connection.call_checked(&BUS, "AddMatch", "s", &rule)?;
        connection.call_checked(&MANAGER, "Subscribe", "", &Writer::default())?;
        Ok(connection)
    }

    /// Authenticates by the socket's credentials.
    fn greet(mut socket: UnixStream) -> Result<Connection> {
        let doing = "connect to systemd";
        socket.set_read_timeout(Some(PATIENCE)).doing(doing)?;
        socket.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").doing(doing)?;
        // Read by the byte: what follows the last line is messages already.
        let mut line = Vec::with_capacity(64);
        loop {
            let mut byte = [0_u8];
            socket.read_exact(&mut byte).doing(doing)?;
            line.push(byte[0]);
            if !line.ends_with(b"\r\n") {
                continue;
            }
            if line.starts_with(b"OK ") {
                return Ok(Connection { socket, serial: 0, finished: Vec::new() });
            }
            if !line.starts_with(b"DATA") {
                return Err(Error::new(Class::System, doing).because(format!(
                    "authentication failed: {}",
                    String::from_utf8_lossy(&line).trim_end()
                )));
            }
            line.clear();
        }
    }

    /// Calls a method and gives the first string or object path of the answer, if it has one.
    pub(super) fn call(
        &mut self,
        to: &Target,
        member: &str,
        signature: &str,
        body: &Writer,
    ) -> Result<String, CallError> {
        self.serial += 1;
        let serial = self.serial;
        let bytes = call_bytes(serial, to, member, signature, &body.bytes);
        self.socket.write_all(&bytes).doing("talk to systemd").map_err(CallError::Broken)?;
        loop {
            let message = self.receive().map_err(CallError::Broken)?;
            let first = Reader { bytes: &message.body, at: 0 }.text().unwrap_or_default().to_owned();
            match message.kind {
                REPLY if message.reply_to == serial => return Ok(first),
                ERROR if message.reply_to == serial => return Err(CallError::Refused(message.error, first)),
                _ => self.note(&message),
            }
        }
    }

    fn call_checked(&mut self, to: &Target, member: &str, signature: &str, body: &Writer) -> Result<String> {
        self.call(to, member, signature, body).map_err(|error| match error {
            CallError::Refused(name, words) => Error::new(Class::System, format!("call {member} of systemd"))
                .because(format!("{words} ({name})")),
            CallError::Broken(error) => error,
        })
    }

    /// Waits until a job is done; gives its result: `done`, `failed`, `canceled`, …
    pub(super) fn wait_for(&mut self, job: &str) -> Result<String> {
        loop {
            if let Some(index) = self.finished.iter().position(|(path, _)| path == job) {
                return Ok(self.finished.swap_remove(index).1);
            }
            let message = self.receive()?;
            self.note(&message);
        }
    }

    /// Keeps what a signal says of finished jobs: `JobRemoved(u id, o job, s unit, s result)`.
    fn note(&mut self, message: &Message) {
        if message.kind != SIGNAL || message.member != "JobRemoved" {
            return;
        }
        let mut reader = Reader { bytes: &message.body, at: 0 };
        let job = reader.u32().and_then(|_| reader.text());
        let result = job.and_then(|_| reader.text()).and_then(|_| reader.text());
        if let (Some(job), Some(result)) = (job, result) {
            self.finished.push((job.to_owned(), result.to_owned()));
        }
    }

    fn receive(&mut self) -> Result<Message> {
        let doing = "hear from systemd";
        let mut fixed = [0_u8; 16];
        self.socket.read_exact(&mut fixed).doing(doing)?;
        let (fields, body) = announced(&fixed).ok_or_else(no_answer)?;
        let mut rest = vec![0_u8; fields + body];
        self.socket.read_exact(&mut rest).doing(doing)?;
        Message::parse(&fixed, &rest).ok_or_else(no_answer)
    }
}

fn no_answer() -> Error {
    Error::new(Class::System, "hear from systemd").because("what came is no D-Bus message")
}

const OWN_SOCKET: &str = "/run/systemd/private";
const SYSTEM_BUS: &str = "unix:path=/run/dbus/system_bus_socket";

/// The user manager's own socket, and the address of the session bus.
fn user_sockets() -> Result<(String, String)> {
    let runtime = std::env::var("XDG_RUNTIME_DIR").ok().filter(|dir| !dir.is_empty());
    let bus = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok().filter(|address| !address.is_empty());
    let Some(runtime) = runtime else {
        return bus.map(|bus| (String::new(), bus)).ok_or_else(|| {
            Error::new(Class::System, "connect to systemd")
                .because("neither XDG_RUNTIME_DIR nor DBUS_SESSION_BUS_ADDRESS is set")
                .hint("a rootless container needs a systemd user session")
        });
    };
    let bus = bus.unwrap_or_else(|| format!("unix:path={runtime}/bus"));
    Ok((format!("{runtime}/systemd/private"), bus))
}

/// Connects to the first address of a list that works (D-Bus specification, "Server Addresses").
fn connect(addresses: &str) -> std::io::Result<UnixStream> {
    use std::os::linux::net::SocketAddrExt;
    let mut failure = std::io::Error::from(std::io::ErrorKind::AddrNotAvailable);
    for address in addresses.split(';').filter_map(|a| a.strip_prefix("unix:")) {
        for (key, value) in address.split(',').filter_map(|pair| pair.split_once('=')) {
            let result = match key {
                "path" => UnixStream::connect(value),
                "abstract" => std::os::unix::net::SocketAddr::from_abstract_name(value)
                    .and_then(|address| UnixStream::connect_addr(&address)),
                _ => continue,
            };
            match result {
                Ok(socket) => return Ok(socket),
                Err(error) => failure = error,
            }
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8]) -> ([u8; 16], &[u8]) {
        (bytes[..16].try_into().unwrap(), &bytes[16..])
    }

    #[test]
    fn a_call_can_be_read_back() {
        let mut body = Writer::default();
        body.text("x.scope");
        body.properties(&[("Delegate", Value::Bool(true)), ("MemoryMax", Value::U64(5))], &[]);
        let bytes = call_bytes(7, &MANAGER, "StartTransientUnit", "sa(sv)", &body.bytes);
        let (fixed, rest) = split(&bytes);
        let (fields, length) = announced(&fixed).unwrap();
        assert_eq!((fields + length, length), (rest.len(), body.bytes.len()));
        let message = Message::parse(&fixed, rest).unwrap();
        assert_eq!((message.kind, message.member.as_str()), (CALL, "StartTransientUnit"));
        assert_eq!(Reader { bytes: &message.body, at: 0 }.text(), Some("x.scope"));
    }

    #[test]
    fn values_have_the_specified_bytes() {
        let mut writer = Writer::default();
        writer.properties(&[("A", Value::U64(1))], &[]);
        if cfg!(target_endian = "little") {
            let expected = [
                24, 0, 0, 0, 0, 0, 0, 0, // length, padding to the structure
                1, 0, 0, 0, b'A', 0, // name
                1, b't', 0, 0, 0, 0, 0, 0, 0, 0, // signature, padding
                1, 0, 0, 0, 0, 0, 0, 0,
            ];
            assert_eq!(writer.bytes, expected);
        }
        let mut writer = Writer::default();
        writer.variant(&Value::TextPairs(vec![]));
        assert_eq!(writer.bytes.len(), 16);
    }

    #[test]
    fn broken_messages_are_no_panics() {
        let mut body = Writer::default();
        body.text("/org/freedesktop/systemd1/job/1");
        let good = call_bytes(1, &MANAGER, "Reload", "s", &body.bytes);
        for i in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[i] = value;
                let (fixed, rest) = split(&bytes);
                if let Some((fields, body)) = announced(&fixed) {
                    let rest = rest.get(..fields + body).unwrap_or(rest);
                    let _ = Message::parse(&fixed, rest);
                }
            }
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_are_errors() {
        assert!(connect("unix:path=/nonexistent/socket;unix:abstract=dhow-test-nothing").is_err());
        assert!(connect("tcp:host=x").is_err());
    }
}
