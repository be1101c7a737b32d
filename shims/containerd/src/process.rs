//! What the shim knows of containers and their processes.

use crate::oom::Watch;
use crate::options::Options;
use crate::runtime::{Config, Runtime};
use crate::shim::Caller;
use crate::stdio::Places;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// How far a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is being made, or is an exec that nobody has started.
    Made,
    /// The init waits for `start`.
    Created,
    /// dhow is at work on its start: what it does in the meantime is told after that.
    Starting,
    Running,
    Stopped,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Its exit code, or 128 + the signal that ended it.
    pub code: u32,
    /// Nanoseconds since 1970.
    pub at: u64,
}

/// The init of a container, or a process that was added to it.
#[derive(Debug)]
pub struct Process {
    /// The number by which its copies are known.
    pub number: u64,
    pub pid: i32,
    pub stage: Stage,
    pub places: Places,
    pub end: Option<End>,
    /// Who waits for its end.
    pub waiters: Vec<Caller>,
    /// The terminal's master, if it has one.
    pub terminal: Option<OwnedFd>,
    /// The `process` document of an exec.
    pub spec: Vec<u8>,
}

impl Process {
    pub fn new(number: u64, places: Places, spec: Vec<u8>) -> Process {
        Process {
            number,
            pid: 0,
            stage: Stage::Made,
            places,
            end: None,
            waiters: Vec::new(),
            terminal: None,
            spec,
        }
    }

    /// Its pid as messages have it.
    pub fn wire_pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }
}

/// A container.
#[derive(Debug)]
pub struct Container {
    pub bundle: PathBuf,
    pub runtime: Runtime,
    pub options: Options,
    pub init: Process,
    pub execs: BTreeMap<String, Process>,
    pub is_paused: bool,
    pub has_own_pids: bool,
    pub memory: Option<Watch>,
    /// The image that `start` makes its processes from, when it is a checkpoint that comes back.
    pub checkpoint: Option<PathBuf>,
}

impl Container {
    /// One that is about to be made.
    pub fn new(
        number: u64,
        bundle: &Path,
        runtime: &Runtime,
        options: &Options,
        places: Places,
    ) -> Container {
        Container {
            bundle: bundle.to_owned(),
            runtime: runtime.clone(),
            options: options.clone(),
            init: Process::new(number, places, Vec::new()),
            execs: BTreeMap::new(),
            is_paused: false,
            has_own_pids: Config::read(bundle).has_own_pids(),
            memory: None,
            checkpoint: None,
        }
    }

    /// Callers that have gone wait for no end any more.
    pub fn forget_waiters(&mut self, has_gone: impl Fn(&Caller) -> bool) {
        for process in self.execs.values_mut().chain([&mut self.init]) {
            process.waiters.retain(|caller| !has_gone(caller));
        }
    }

    /// A process by its exec id; the init's is empty.
    pub fn process(&mut self, exec: &str) -> Option<&mut Process> {
        if exec.is_empty() { Some(&mut self.init) } else { self.execs.get_mut(exec) }
    }
}

/// Where a terminal's master will come.
#[derive(Debug)]
pub struct Console {
    listener: UnixListener,
    pub path: PathBuf,
}

impl Console {
    /// # Errors
    /// Why there can be none.
    pub fn new(path: PathBuf) -> Result<Console, String> {
        let _ = std::fs::remove_file(&path);
        let listener =
            UnixListener::bind(&path).map_err(|error| format!("listen on {}: {error}", path.display()))?;
        let _ = listener.set_nonblocking(true);
        Ok(Console { listener, path })
    }

    /// Takes the master that dhow has sent before it ended.
    ///
    /// # Errors
    /// Why there is none.
    pub fn receive(&self) -> Result<OwnedFd, String> {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
        let (stream, _) = self.listener.accept().map_err(|error| format!("no terminal came: {error}"))?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [0; 4096];
        let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
        rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| format!("receive the terminal: {errno}"))?;
        let mut files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        files.next().ok_or("no terminal came".to_owned())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
