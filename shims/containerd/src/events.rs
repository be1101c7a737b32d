//! What happens, told to containerd in the order in which it happened.
//!
//! One event is under way at a time: containerd handles requests at once, and two of them could
//! overtake each other. While containerd is away they wait, for it asks its shims when it is back.

use dhow_shim_common::sys;
use dhow_shim_common::ttrpc::Connection;
use dhow_shim_common::wire::{Message, Writer};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// More than these are not kept: containerd has been away for long, and asks for states anyway.
const MOST: usize = 4096;
/// How long containerd may take over one, and after how long it is tried again, in milliseconds.
const PATIENCE: u64 = 5000;
const PAUSE: u64 = 500;

/// The queue and the way to containerd.
#[derive(Debug)]
pub struct Publisher {
    address: String,
    namespace: String,
    queue: VecDeque<Vec<u8>>,
    pub connection: Option<Connection>,
    /// The stream of the request under way, and when it is given up.
    under_way: Option<(u32, u64)>,
    next_stream: u32,
    /// When to try again, after a failure.
    not_before: u64,
}

impl Publisher {
    /// `address` is that of containerd's ttrpc socket; when it is empty nobody is told.
    pub fn new(address: &str, namespace: &str) -> Publisher {
        Publisher {
            address: address.trim_start_matches("unix://").to_owned(),
            namespace: namespace.to_owned(),
            queue: VecDeque::new(),
            connection: None,
            under_way: None,
            next_stream: 1,
            not_before: 0,
        }
    }

    /// Adds an event: `containerd.events.KIND`, of the topic that belongs to it.
    pub fn publish(&mut self, topic: &str, kind: &str, event: Writer) {
        if self.address.is_empty() {
            return;
        }
        let envelope = Writer::new().time(1, sys::now()).bytes(2, &self.namespace).bytes(3, topic).any(
            4,
            &format!("containerd.events.{kind}"),
            event.finish(),
        );
        if self.queue.len() == MOST {
            self.queue.pop_front();
        }
        self.queue.push_back(Writer::new().message(1, &envelope).finish());
        self.go_on();
    }

    /// Whether all has been told.
    pub fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// In how many milliseconds it wants to go on by itself; `None` when it does not.
    pub fn timeout(&self) -> Option<u64> {
        let due = match self.under_way {
            Some((_, due)) => due,
            None if self.queue.is_empty() => return None,
            None => self.not_before,
        };
        Some(due.saturating_sub(sys::milliseconds()))
    }

    /// Sends the next event if it is time.
    pub fn go_on(&mut self) {
        let now = sys::milliseconds();
        if self.under_way.is_some_and(|(_, due)| now >= due) {
            self.fail();
        }
        let Some(event) = self.queue.front() else { return };
        if self.under_way.is_some() || now < self.not_before {
            return;
        }
        if self.connection.is_none() {
            self.connection = connect(&self.address).map(Connection::new);
        }
        let Some(connection) = &mut self.connection else {
            self.not_before = now + PAUSE;
            return;
        };
        let stream = self.next_stream;
        // A client's streams are odd, and each is used once.
        self.next_stream = self.next_stream.wrapping_add(2);
        connection.ask(stream, SERVICE, "Forward", Writer::raw(event.clone()));
        self.under_way = Some((stream, now + PATIENCE));
        if !connection.flush() {
            self.fail();
        }
    }

    /// Takes what containerd has answered.
    pub fn heard(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let is_there = connection.fill() && connection.flush();
        let mut failed = false;
        while let Ok(Some(frame)) = connection.frame() {
            if self.under_way.is_some_and(|(stream, _)| stream == frame.stream) {
                let status = Message::read(&frame.payload).map_or(0, |response| {
                    Message::read(response.bytes(1)).map_or(0, |status| status.number(1))
                });
                self.under_way = None;
                // Unavailable, or its deadline exceeded: containerd is on its way down or up. What
                // it does not like for another reason it will not like later.
                if matches!(status, 4 | 14) {
                    failed = true;
                    break;
                }
                self.queue.pop_front();
            }
        }
        if !is_there || failed {
            self.fail();
        }
        self.go_on();
    }

    fn fail(&mut self) {
        (self.connection, self.under_way) = (None, None);
        self.not_before = sys::milliseconds() + PAUSE;
    }
}

/// Connects without waiting: containerd may have stopped in the middle of something.
fn connect(path: &str) -> Option<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    Some(socket.into())
}
