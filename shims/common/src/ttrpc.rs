//! ttrpc, as containerd speaks it over a unix socket: frames with a header of ten bytes, requests
//! and answers (github.com/containerd/ttrpc, PROTOCOL.md).

use crate::wire::{Message, Writer};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

const HEADER: usize = 10;
/// The longest message that ttrpc allows, in bytes.
const LONGEST: usize = 4 << 20;
/// How many bytes of answers wait for somebody to take them.
const MOST_OUTPUT: usize = 256 * 1024;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// gRPC's status codes, those that containerd tells apart.
#[allow(missing_docs, reason = "they are gRPC's own names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Unknown = 2,
    InvalidArgument = 3,
    NotFound = 5,
    AlreadyExists = 6,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// Why a request failed.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its kind.
    pub code: Code,
    /// What was wrong.
    pub message: String,
}

impl Status {
    /// One of a kind.
    pub fn new(code: Code, message: impl Into<String>) -> Status {
        Status { code, message: message.into() }
    }
}

/// One frame as it came.
#[derive(Debug)]
pub struct Frame {
    /// The number of the exchange that it belongs to.
    pub stream: u32,
    /// Whether it asks; it answers otherwise.
    pub is_request: bool,
    /// A `ttrpc.Request` or `ttrpc.Response`.
    pub payload: Vec<u8>,
}

/// A frame that is longer than ttrpc allows, 4 MB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// A request: `ttrpc.Request`.
#[derive(Debug)]
pub struct Request<'a> {
    /// The service with its package.
    pub service: &'a str,
    /// What is to be done.
    pub method: &'a str,
    /// The method's own message.
    pub payload: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads one; `None` when it is none.
    pub fn read(payload: &'a [u8]) -> Option<Request<'a>> {
        let message = Message::read(payload)?;
        Some(Request { service: message.text(1), method: message.text(2), payload: message.bytes(3) })
    }
}

/// One connection: what has come of the next frame, and what has not gone yet.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Connection {
    /// The stream must not block.
    pub fn new(stream: UnixStream) -> Connection {
        Connection { stream, input: Vec::new(), output: Vec::new() }
    }

    /// Whether something waits to be sent.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether the other side takes no answers, of which there are many.
    pub fn is_stuck(&self) -> bool {
        self.output.len() > MOST_OUTPUT
    }

    /// Reads what is there, a part at a time; `false` when the other side has gone or talks nonsense.
    pub fn fill(&mut self) -> bool {
        let mut buffer = [0; 4096];
        for _ in 0..64 {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// The next frame, once it is whole.
    ///
    /// # Errors
    /// It is longer than may be.
    pub fn frame(&mut self) -> Result<Option<Frame>, TooLong> {
        let Some(header) = self.input.get(..HEADER) else { return Ok(None) };
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, stream, kind) = (number(0) as usize, number(4), header[8]);
        if length > LONGEST {
            return Err(TooLong);
        }
        if self.input.len() < HEADER + length {
            return Ok(None);
        }
        let payload = self.input[HEADER..HEADER + length].to_vec();
        self.input.drain(..HEADER + length);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        Ok(Some(Frame { stream, is_request: kind == REQUEST, payload }))
    }

    fn send(&mut self, stream: u32, kind: u8, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(&stream.to_be_bytes());
        self.output.extend_from_slice(&[kind, 0]);
        self.output.extend_from_slice(payload);
    }

    /// Queues an answer: `ttrpc.Response`.
    pub fn answer(&mut self, stream: u32, result: Result<Writer, Status>) {
        let response = match result {
            Ok(payload) => Writer::new().bytes(2, payload.finish()),
            Err(Status { code, message }) => {
                Writer::new().message(1, &Writer::new().number(1, code as u32).bytes(2, message))
            }
        };
        self.send(stream, RESPONSE, &response.finish());
    }

    /// Queues a request.
    pub fn ask(&mut self, stream: u32, service: &str, method: &str, payload: Writer) {
        let request = Writer::new().bytes(1, service).bytes(2, method).bytes(3, payload.finish());
        self.send(stream, REQUEST, &request.finish());
    }

    /// Sends what the socket takes; `false` when the other side has gone.
    pub fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.output = Vec::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, Connection) {
        let (one, two) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        (Connection::new(one), Connection::new(two))
    }

    #[test]
    fn a_request_and_its_answer_cross() {
        let (mut client, mut server) = pair();
        client.ask(7, "a.Service", "Do", Writer::new().bytes(1, "id"));
        assert!(client.flush() && server.fill());
        let frame = server.frame().unwrap().unwrap();
        let request = Request::read(&frame.payload).unwrap();
        assert_eq!((frame.stream, request.service, request.method), (7, "a.Service", "Do"));
        assert_eq!(Message::read(request.payload).unwrap().text(1), "id");
        server.answer(7, Err(Status::new(Code::NotFound, "no such thing")));
        assert!(server.flush() && client.fill());
        let frame = client.frame().unwrap().unwrap();
        let response = Message::read(&frame.payload).unwrap();
        let status = Message::read(response.bytes(1)).unwrap();
        assert_eq!((frame.is_request, status.number(1), status.text(2)), (false, 5, "no such thing"));
    }

    #[test]
    fn frames_come_in_pieces() {
        let (mut client, mut server) = pair();
        client.ask(1, "s", "m", Writer::new());
        let bytes = client.output.clone();
        for (at, byte) in bytes.iter().enumerate() {
            assert!(server.frame().unwrap().is_none(), "{at}");
            client.stream.write_all(&[*byte]).unwrap();
            assert!(server.fill());
        }
        assert!(server.frame().unwrap().is_some());
        assert!(server.frame().unwrap().is_none());
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused() {
        let (mut client, mut server) = pair();
        client.stream.write_all(&[0x7f, 0, 0, 0, 0, 0, 0, 1, 1, 0]).unwrap();
        assert!(server.fill());
        assert!(server.frame().is_err());
    }
}
