//! Runs the binary, never for ever, and keeps what it said.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long one command of the runtime may take.
pub fn limit() -> Duration {
    crate::wait::slowly(Duration::from_secs(30))
}

/// What a command did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// All of stdout.
    pub stdout: String,
    /// All of stderr.
    pub stderr: String,
    /// From spawn to exit.
    pub took: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n  ended with {} after {:?}", self.command, self.code, self.took)?;
        writeln!(f, "  stdout: {}\n  stderr: {}", self.stdout.trim_end(), self.stderr.trim_end())
    }
}

impl Outcome {
    /// The command must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == 0, "should have succeeded: {self}");
        self
    }

    /// The command must have ended with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code == code, "should have ended with {code}: {self}");
        self
    }

    /// The command must have failed, by itself, and said why on exactly one line of stderr
    /// that holds every one of `words`, whatever their case. Of another runtime than dhow
    /// only the failure itself is asked.
    #[track_caller]
    pub fn fails(self, words: &[&str]) -> Self {
        if !is_dhow() {
            assert!(self.code != 0, "should have failed: {self}");
            return self;
        }
        // exec says 255, so that its own failure cannot be taken for the payload's.
        let own = (1..128).contains(&self.code) || self.code == 255;
        assert!(own, "should have failed by itself: {self}");
        let lines = self.stderr.lines().filter(|l| !l.trim().is_empty()).count();
        assert!(lines == 1, "one failure is one line: {self}");
        let text = self.stderr.to_lowercase();
        for word in words {
            assert!(text.contains(&word.to_lowercase()), "the error should say {word:?}: {self}");
        }
        self
    }

    /// Stdout must be `text`, but for the white space at its end.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.stdout.trim_end() == text.trim_end(), "should have said {text:?}: {self}");
        self
    }

    /// The value after `key=`, up to white space, in stdout.
    #[track_caller]
    pub fn field(&self, key: &str) -> &str {
        let found = self.stdout.split_whitespace().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no {key}= in: {self}"))
    }

    /// The line of stdout that starts with `key` and `sign`, without them.
    #[track_caller]
    pub fn line(&self, start: &str) -> &str {
        let found = self.stdout.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("no line starts with {start:?} in: {self}")).trim()
    }

    /// Stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("not JSON ({e}): {self}"))
    }
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The binary under test.
pub fn binary() -> PathBuf {
    let path = std::env::var_os("DHOW_BIN").map_or_else(|| workspace().join("bin/dhow"), PathBuf::from);
    assert!(path.is_file(), "{} is not there: run `make build`, or set DHOW_BIN", path.display());
    path
}

/// Whether the binary under test is dhow, whose messages are checked more strictly.
pub fn is_dhow() -> bool {
    binary().file_name().is_some_and(|name| name == "dhow")
}

/// A command line in the making, with its stdio in files: a container that outlives the
/// command keeps them open, and a pipe would then never end.
pub struct Runner {
    command: Command,
    words: Vec<String>,
    limit: Duration,
    stdin: Option<Stdio>,
}

impl Runner {
    /// Runs `program`.
    pub fn new(program: impl AsRef<Path>) -> Self {
        let program = program.as_ref();
        Runner {
            command: Command::new(program),
            words: vec![program.display().to_string()],
            limit: limit(),
            stdin: None,
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<str>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.command.arg(arg.as_ref());
            self.words.push(arg.as_ref().to_owned());
        }
        self
    }

    /// Its words, for another program that is to run it.
    pub fn line(&self) -> Vec<String> {
        self.words.clone()
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets how long it may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives it something else than /dev/null to read.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Gives it a text to read.
    #[must_use]
    pub fn input(self, text: &str) -> Self {
        let mut file = scratch();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        self.stdin(file)
    }

    /// Starts it and lets it run.
    #[must_use]
    pub fn spawn(mut self) -> Running {
        let (stdout, stderr) = (scratch(), scratch());
        self.command.stdin(self.stdin.take().unwrap_or_else(Stdio::null));
        self.command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let started = Instant::now();
        let command = self.words.join(" ");
        let child = loop {
            match self.command.spawn() {
                Ok(child) => break child,
                // A program that a test has just written: a child that another thread forked meanwhile
                // has it open for writing until its own exec.
                Err(error)
                    if error.kind() == ErrorKind::ExecutableFileBusy && started.elapsed() < limit() =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("cannot start {command}: {error}"),
            }
        };
        Running { child, command, stdout, stderr, started, limit: self.limit, ended: false }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        self.spawn().wait()
    }
}

/// A nameless file.
pub(crate) fn scratch() -> File {
    use rustix::fs::{MemfdFlags, memfd_create};
    File::from(memfd_create("dhow-test", MemfdFlags::CLOEXEC).expect("memfd_create"))
}

/// A command that has not ended, or not been waited for.
pub struct Running {
    child: Child,
    command: String,
    stdout: File,
    stderr: File,
    started: Instant,
    limit: Duration,
    ended: bool,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// What it, or the container that inherited its stdout, has printed so far.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What has been printed to stderr so far.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits until it has printed `text`.
    #[track_caller]
    pub fn until_it_says(&self, text: &str) {
        let said = crate::holds_within(crate::wait::PATIENCE, || self.stdout().contains(text));
        assert!(
            said,
            "{} should say {text:?}; it said {:?} {:?}",
            self.command,
            self.stdout(),
            self.stderr()
        );
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end; kills it and panics when that takes too long.
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        self.finish()
    }

    /// Waits as [`wait`](Self::wait), but keeps stdout and stderr readable afterwards.
    #[track_caller]
    pub fn finish(&mut self) -> Outcome {
        let in_time = self.ends_within(self.limit);
        if !in_time {
            let hangs_in = std::fs::read_to_string(format!("/proc/{}/stack", self.pid())).unwrap_or_default();
            let _ = self.child.kill();
            let outcome = self.outcome();
            panic!("took longer than {:?}: {outcome}\n{hangs_in}", self.limit);
        }
        self.outcome()
    }

    fn ends_within(&self, limit: Duration) -> bool {
        let pid = Pid::from_raw(self.pid()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => panic!("poll: {e}"),
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        let status: ExitStatus = self.child.wait().unwrap();
        self.ended = true;
        Outcome {
            command: self.command.clone(),
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// All of a scratch file, without moving the offset that the writers share.
fn contents(file: &File) -> String {
    // A second open of the same file has an offset of its own.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).expect("read a scratch file");
    String::from_utf8_lossy(&bytes).into_owned()
}
