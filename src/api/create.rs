//! A new container.

use super::container::Container;
use super::handle::Runtime;
use super::helper::{Streams, ask};
use super::job::{New, Work};
use crate::error::Result;
use std::path::PathBuf;
use std::process::Stdio;

/// How a new container is made. Ends with [`create`](Create::create) or [`run`](Create::run).
///
/// ```no_run
/// # fn main() -> dhow::Result<()> {
/// # dhow::helper();
/// use std::fs::File;
/// use std::process::Stdio;
///
/// let log = File::create("/var/log/web.log").expect("a log");
/// let container = dhow::Runtime::new()
///     .create("web", "/srv/bundle")
///     .stdin(Stdio::null())
///     .stdout(log)
///     .run()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is made before create or run is called"]
pub struct Create {
    runtime: Runtime,
    new: New,
    streams: Streams,
}

impl Create {
    pub(super) fn new(runtime: Runtime, id: String, bundle: PathBuf) -> Create {
        let new =
            New { id, bundle, console_socket: None, pid_file: None, no_pivot: false, share_keyring: false };
        Create { runtime, new, streams: Streams::default() }
    }

    /// The payload's standard input; the caller's own unless this is called. Besides files and
    /// sockets, [`std::io::pipe`] gives what to pass here. [`Stdio::piped`] makes no sense here: the
    /// other end would be nobody's.
    pub fn stdin(mut self, stream: impl Into<Stdio>) -> Create {
        self.streams.stdin = Some(stream.into());
        self
    }

    /// The payload's standard output; the caller's own unless this is called.
    pub fn stdout(mut self, stream: impl Into<Stdio>) -> Create {
        self.streams.stdout = Some(stream.into());
        self
    }

    /// The payload's standard error; the caller's own unless this is called.
    pub fn stderr(mut self, stream: impl Into<Stdio>) -> Create {
        self.streams.stderr = Some(stream.into());
        self
    }

    /// A unix socket on which somebody listens for the master of the payload's terminal, SCM_RIGHTS. It
    /// is needed when `process.terminal` is true, and wrong otherwise. At most 107 bytes.
    pub fn console_socket(mut self, path: impl Into<PathBuf>) -> Create {
        self.new.console_socket = Some(path.into());
        self
    }

    /// Where the init's pid is written, as decimal digits.
    pub fn pid_file(mut self, path: impl Into<PathBuf>) -> Create {
        self.new.pid_file = Some(path.into());
        self
    }

    /// Enters the root by moving it onto `/`, not by pivot_root(2), which a host whose own root is an
    /// initramfs cannot do. Weaker: for such hosts alone.
    pub fn no_pivot_root(mut self) -> Create {
        self.new.no_pivot = true;
        self
    }

    /// Shares the caller's session keyring, keyrings(7), in place of a new one.
    pub fn share_keyring(mut self) -> Create {
        self.new.share_keyring = true;
        self
    }

    /// Makes the container. Its init waits for [`Container::start`]; its status is
    /// [`Status::Created`](super::Status::Created).
    ///
    /// # Errors
    /// [`Class::Usage`](crate::Class::Usage) for an id that is no name;
    /// [`Class::ContainerExists`](crate::Class::ContainerExists);
    /// [`Class::Config`](crate::Class::Config) when config.json is wrong, with the field as subject;
    /// [`Class::CommandNotFound`](crate::Class::CommandNotFound) and
    /// [`Class::CommandDenied`](crate::Class::CommandDenied) when its program cannot be executed;
    /// [`Class::System`](crate::Class::System) when the kernel refuses. Nothing is left behind.
    pub fn create(self) -> Result<Container> {
        let container = Container::new(self.runtime.clone(), self.new.id.clone());
        ask(&self.runtime, Work::Create(self.new), self.streams)?;
        Ok(container)
    }

    /// Makes the container and runs its payload.
    ///
    /// # Errors
    /// Those of [`create`](Create::create) and [`Container::start`]. Nothing is left behind.
    pub fn run(self) -> Result<Container> {
        let container = self.create()?;
        match container.start() {
            Ok(()) => Ok(container),
            Err(error) => {
                // The reason why it did not start says more than what hinders its removal.
                let _ = container.destroy();
                Err(error)
            }
        }
    }
}
