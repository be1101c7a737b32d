//! The payload's terminal: made in the container's devpts, by the init.

use crate::error::{Class, Context, Error, Result};
use crate::spec::ConsoleSize;
use crate::sys::path::{self, Leaf, Root};
use crate::sys::{fd, mount, tty};
use rustix::fs::{OFlags, makedev};
use rustix::termios::{OptionalActions, OutputModes};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Both ends of a pseudo-terminal.
#[derive(Debug)]
pub struct Terminal {
    /// For the engine, or for `run` in the foreground.
    pub master: OwnedFd,
    peer: OwnedFd,
}

impl Terminal {
    /// Makes a terminal in the devpts of a root. Its other end is opened from the master, not by
    /// a path (CVE-2025-52565).
    ///
    /// # Errors
    /// [`Class::Config`] when the container has no devpts.
    pub fn make(root: &Root, size: Option<ConsoleSize>) -> Result<Terminal> {
        let doing = "make a terminal";
        let no_devpts = |cause: &str| {
            Error::new(Class::Config, doing)
                .on("/dev/pts/ptmx")
                .because(cause)
                .hint("process.terminal needs a devpts mount at /dev/pts")
        };
        let master = root
            .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
            .map_err(|errno| no_devpts("cannot be opened").errno(errno))?;
        if path::stat(master.as_fd()).doing(doing)?.st_rdev != makedev(5, 2) {
            return Err(no_devpts("is not a terminal multiplexer"));
        }
        tty::unlock(master.as_fd()).doing(doing)?;
        let peer = tty::open_peer(master.as_fd()).doing(doing)?;
        leave_newlines_alone(&master).doing(doing)?;
        if let Some(size) = size.filter(|size| size.height != 0 || size.width != 0) {
            tty::set_window_size(peer.as_fd(), size.height, size.width).doing("set process.consoleSize")?;
        }
        Ok(Terminal { master, peer })
    }

    /// Shows the terminal as /dev/console.
    ///
    /// # Errors
    /// When /dev/console can neither be found nor made.
    pub fn bind_console(&self, root: &Root) -> Result<()> {
        let doing = "bind the terminal to /dev/console";
        let target = root.make(Path::new("/dev/console"), Leaf::File).doing(doing)?;
        let copy = mount::open_tree(self.peer.as_fd(), Path::new(""), false, false).doing(doing)?;
        mount::attach(copy.as_fd(), target.as_fd()).doing(doing)
    }

    /// Makes the terminal this session's, and standard input, output and error; answers the
    /// master, for whoever is outside.
    ///
    /// # Errors
    /// When this process is no session leader.
    pub fn install(self) -> Result<OwnedFd> {
        let doing = "take the terminal";
        tty::make_controlling(self.peer.as_fd()).doing(doing)?;
        for number in 0..3 {
            fd::install_as(self.peer.as_fd(), number).doing(doing)?;
        }
        Ok(self.master)
    }
}

/// Clears ONLCR, as runc does: engines pass the bytes on to a terminal that does it itself.
fn leave_newlines_alone(master: &OwnedFd) -> nix::Result<()> {
    let mut modes = rustix::termios::tcgetattr(master).map_err(crate::sys::errno)?;
    modes.output_modes.remove(OutputModes::ONLCR);
    rustix::termios::tcsetattr(master, OptionalActions::Now, &modes).map_err(crate::sys::errno)
}
