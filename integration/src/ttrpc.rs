//! Requests to a shim by hand, in place of containerd.

use dhow_shim_common::ttrpc::Connection;
use dhow_shim_common::wire::{Message, Writer};
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The task service, as all containerds ask for it.
pub const TASK: &str = "containerd.task.v2.Task";
/// The sandbox service of containerd 2.
pub const SANDBOX: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// A connection to a shim.
pub struct Client {
    connection: Connection,
    last: u32,
    /// What came while something else was waited for.
    early: HashMap<u32, Vec<u8>>,
}

impl Client {
    /// Connects to the socket of a bundle's shim.
    #[track_caller]
    pub fn of(bundle: &Path) -> Client {
        let address = std::fs::read_to_string(bundle.join("address")).unwrap();
        Client::to(Path::new(address.trim_start_matches("unix://")))
    }

    /// Connects to a socket.
    #[track_caller]
    pub fn to(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        Client { connection: Connection::new(stream), last: 1, early: HashMap::new() }
    }

    /// Sends a request; answers its number.
    #[track_caller]
    pub fn send(&mut self, service: &str, method: &str, payload: Writer) -> u32 {
        self.last += 2;
        self.connection.ask(self.last, service, method, payload);
        assert!(self.connection.flush(), "{method} went out");
        self.last
    }

    /// Waits for the answer to one: the method's message, or gRPC's code and what was wrong.
    ///
    /// # Errors
    /// The request's own.
    #[track_caller]
    pub fn answer(&mut self, stream: u32) -> Result<Vec<u8>, (u64, String)> {
        let due = Instant::now() + Duration::from_secs(60);
        while Instant::now() < due {
            if let Some(payload) = self.early.remove(&stream) {
                let response = Message::read(&payload).unwrap();
                let status = response.message(1);
                return match status.number(1) {
                    0 => Ok(response.bytes(2).to_vec()),
                    code => Err((code, status.text(2).to_owned())),
                };
            }
            let is_there = self.connection.fill() && self.connection.flush();
            while let Some(frame) = self.connection.frame().unwrap() {
                self.early.insert(frame.stream, frame.payload);
            }
            assert!(is_there || self.early.contains_key(&stream), "the shim is there");
            if !self.early.contains_key(&stream) {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        panic!("no answer after a minute");
    }

    /// Waits for the answers to several, which must have these codes (0: it was done).
    #[track_caller]
    pub fn answers(&mut self, streams: &[u32], codes: &[u64]) {
        let got: Vec<_> = streams.iter().map(|stream| self.answer(*stream)).collect();
        let found: Vec<u64> = got.iter().map(|one| one.as_ref().err().map_or(0, |(code, _)| *code)).collect();
        assert_eq!(found, codes, "{got:?}");
    }

    /// Waits until the other side has gone.
    #[track_caller]
    pub fn until_it_ends(&mut self) {
        crate::eventually("the connection ends", || !self.connection.fill());
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The request's own.
    #[track_caller]
    pub fn ask(&mut self, service: &str, method: &str, payload: Writer) -> Result<Vec<u8>, (u64, String)> {
        let stream = self.send(service, method, payload);
        self.answer(stream)
    }
}
