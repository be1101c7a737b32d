//! The other end of `--console-socket`, and of a terminal.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Whether `fd` has something to read within `limit`.
fn readable(fd: impl AsFd, limit: Duration) -> bool {
    let timeout = Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() };
    // An interrupted poll counts as nothing yet: the callers ask again until their deadline.
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap_or(0) > 0
}

/// A socket that waits for the master of a container's terminal.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at `path`.
    pub fn listen(path: PathBuf) -> Self {
        let listener =
            UnixListener::bind(&path).unwrap_or_else(|e| panic!("listen at {}: {e}", path.display()));
        ConsoleSocket { listener, path }
    }

    /// What to pass to `--console-socket`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody has connected within `limit`.
    pub fn has_caller(&self, limit: Duration) -> bool {
        readable(&self.listener, limit)
    }

    /// Takes the terminal that the runtime sent.
    #[track_caller]
    pub fn receive(&self) -> Terminal {
        assert!(self.has_caller(crate::wait::PATIENCE), "nobody connected to the console socket");
        let (stream, _) = self.listener.accept().unwrap();
        assert!(readable(&stream, crate::wait::PATIENCE), "nothing came over the console socket");
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0u8; 4096];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                fds.extend(sent);
            }
        }
        assert_eq!(fds.len(), 1, "exactly one fd is sent: the master of the terminal");
        Terminal::new(fds.remove(0))
    }
}

/// A terminal's master, and what has been read from it.
pub struct Terminal {
    master: File,
    seen: String,
}

impl Terminal {
    /// Takes over a master.
    pub fn new(master: OwnedFd) -> Self {
        assert!(rustix::termios::isatty(&master), "what came over the console socket is no terminal");
        Terminal { master: File::from(master), seen: String::new() }
    }

    /// A new terminal: its master and the slave's path.
    pub fn open() -> (Self, PathBuf) {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = PathBuf::from(ptsname(&master, Vec::new()).unwrap().into_string().unwrap());
        (Terminal::new(master), slave)
    }

    /// Types `text`.
    pub fn send(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("write to the terminal");
    }

    /// The leader of the process group that has the terminal now.
    pub fn foreground(&self) -> Option<i32> {
        rustix::termios::tcgetpgrp(&self.master).ok().map(|pid| pid.as_raw_nonzero().get())
    }

    /// Sets the window's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.master, size).expect("tcsetwinsize");
    }

    /// Reads until `text` has come; answers all that came so far.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> &str {
        let deadline = Instant::now() + crate::wait::PATIENCE;
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "the terminal never showed {text:?}, only {:?}", self.seen);
            assert!(self.read_some() != Some(0), "the terminal ended without {text:?}: {:?}", self.seen);
        }
        &self.seen
    }

    /// Reads until the last holder of the slave has gone; answers all that came.
    #[track_caller]
    pub fn until_end(&mut self) -> &str {
        let deadline = Instant::now() + crate::wait::PATIENCE;
        while self.read_some() != Some(0) {
            assert!(Instant::now() < deadline, "the terminal did not end; it showed {:?}", self.seen);
        }
        &self.seen
    }

    /// How many bytes came: `None` for not yet, 0 for the end.
    fn read_some(&mut self) -> Option<usize> {
        if !readable(&self.master, Duration::from_millis(200)) {
            return None;
        }
        let mut bytes = [0u8; 4096];
        // A master whose slave is closed answers EIO: that is a terminal's end of file.
        let n = self.master.read(&mut bytes).unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        Some(n)
    }
}
