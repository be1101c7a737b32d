//! `dhow-monitor` stays with one container that was started with `dhow run --detach` and
//! `--monitor`, `--restart` or `--log-driver`. It reaps the init and has `dhow exited` write down
//! how it ended, copies the output into a log file, and starts the container anew when
//! `dhow exited` says so. It decides nothing itself.
//!
//! ```text
//! dhow-monitor FORMAT PATH MAX-BYTES MAX-FILES ID N WORD… COMMAND…
//! ```
//! FORMAT is `inherit`, `none`, `json-file` or `k8s-file`; the N WORDs are the dhow binary and its
//! global options, COMMAND is its first command: it creates the container. Once the payload runs
//! the monitor says `ok` on its standard output and lets go of the caller.
//!
//! It has no `main` of Rust's own: the standard library's start would double its memory.
#![no_main]
#![allow(unsafe_code)]

use dhow_shim_common::logfile::{Format, LogFile, Stream};
use dhow_shim_common::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The C library's way in.
///
/// # Safety
/// Called once, by the C library, with argv as execve(2) makes it.
// SAFETY: no other function of this program has this name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    let count = usize::try_from(argc).unwrap_or(0);
    let word = |index: usize| {
        // SAFETY: argv has argc entries.
        let place = unsafe { argv.add(index) };
        // SAFETY: the entry is there.
        let text = unsafe { *place };
        // SAFETY: it is a C string, which lives as long as the process.
        unsafe { CStr::from_ptr(text) }.to_owned()
    };
    let words: Vec<CString> = (1..count).map(word).collect();
    match Monitor::new(&words) {
        Some(mut monitor) => monitor.stay(),
        None => {
            sys::write_all(2, b"dhow-monitor is started by `dhow run --detach`, not by hand\n");
            2
        }
    }
}

/// Where a container's output goes.
enum Output {
    /// Where the caller's goes.
    Inherit,
    /// Nowhere.
    None(OwnedFd),
    /// Through pipes into a file.
    Log(Box<Log>),
}

/// Where the log is, and how much of it there may be.
struct Place {
    path: CString,
    format: Format,
    most_bytes: u64,
    files: u32,
}

struct Log {
    place: Place,
    /// Opened once the container is created: the log's directory may be the container's own.
    file: Option<LogFile>,
    stdout: (OwnedFd, OwnedFd, Stream),
    stderr: (OwnedFd, OwnedFd, Stream),
    buffer: [u8; 4096],
}

struct Monitor {
    id: CString,
    dhow: Vec<CString>,
    first: Vec<CString>,
    output: Output,
    signals: OwnedFd,
    null: OwnedFd,
    /// What has come while nobody looked.
    woken: bool,
    /// Whether the caller has been let go.
    is_alone: bool,
    told_to_end: bool,
}

/// What `dhow exited` says is to be done.
enum Next {
    End,
    /// It was another process.
    Stay,
    /// Start it anew after so many milliseconds.
    Restart(u64),
}

impl Monitor {
    fn new(words: &[CString]) -> Option<Monitor> {
        let [format, path, most_bytes, most_files, id, length, rest @ ..] = words else { return None };
        let number = |word: &CString| word.to_str().ok()?.parse::<u64>().ok();
        let (dhow, first) = rest.split_at_checked(usize::try_from(number(length)?).ok()?)?;
        let format = match format.to_bytes() {
            b"inherit" | b"none" => None,
            b"json-file" => Some(Format::Json),
            b"k8s-file" => Some(Format::Cri),
            _ => return None,
        };
        let output = match format {
            None if words[0].to_bytes() == b"none" => Output::None(sys::null().ok()?),
            None => Output::Inherit,
            Some(format) => {
                let files = u32::try_from(number(most_files)?).ok()?;
                let place = Place { path: path.clone(), format, most_bytes: number(most_bytes)?, files };
                let (out, err) = (sys::pipe().ok()?, sys::pipe().ok()?);
                Output::Log(Box::new(Log {
                    place,
                    file: None,
                    stdout: (out.0, out.1, Stream::new("stdout")),
                    stderr: (err.0, err.1, Stream::new("stderr")),
                    buffer: [0; 4096],
                }))
            }
        };
        Some(Monitor {
            id: id.clone(),
            dhow: dhow.to_vec(),
            first: first.to_vec(),
            output,
            signals: sys::signal_file(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGUSR1]).ok()?,
            null: sys::null().ok()?,
            woken: false,
            is_alone: false,
            told_to_end: false,
        })
    }

    /// The whole story.
    fn stay(&mut self) -> i32 {
        // A caller that is killed now wants no container.
        sys::end_with_parent(true);
        sys::stay_behind();
        let first = std::mem::take(&mut self.first);
        let created = self.command(&first, true);
        if created != 0 {
            self.show_caller();
            return created;
        }
        let started = match self.open_log() {
            true => self.command(&[c"start".into(), self.id.clone()], false),
            false => 1,
        };
        if started != 0 {
            self.command(&[c"delete".into(), c"--force".into(), self.id.clone()], false);
            return started;
        }
        self.let_go();
        loop {
            let (pid, code) = self.next_end();
            let next = self.report(pid, code);
            // Only now: until its end is written down its zombie tells who asks.
            sys::reap(pid);
            match next {
                Next::Stay => {}
                Next::End => return 0,
                Next::Restart(delay) => {
                    if !self.restart(delay) {
                        return 0;
                    }
                }
            }
        }
    }

    fn open_log(&mut self) -> bool {
        let Output::Log(log) = &mut self.output else { return true };
        let Place { path, format, most_bytes, files } = &log.place;
        log.file = LogFile::open(path.clone(), *format, *most_bytes, *files).ok();
        if log.file.is_none() {
            sys::write_all(2, b"dhow: open the container's log: ");
            sys::write_all(2, path.to_bytes());
            sys::write_all(2, b": it cannot be written\n");
        }
        log.file.is_some()
    }

    /// From here on the caller is gone.
    fn let_go(&mut self) {
        sys::end_with_parent(false);
        self.is_alone = true;
        sys::write_all(1, b"ok\n");
        for fd in [0, 1] {
            sys::replace(&self.null, fd);
        }
        if !matches!(self.output, Output::Inherit) {
            sys::replace(&self.null, 2);
        }
    }

    /// Runs a command of dhow's and waits for it; its exit code.
    fn command(&mut self, words: &[CString], makes_container: bool) -> i32 {
        let stdio = match &self.output {
            _ if !makes_container => [self.null.as_raw_fd(), 2, -1],
            Output::Inherit => [-1, 2, -1],
            Output::None(null) => [null.as_raw_fd(), null.as_raw_fd(), -1],
            Output::Log(log) => [self.null.as_raw_fd(), log.stdout.1.as_raw_fd(), log.stderr.1.as_raw_fd()],
        };
        self.run(words, stdio)
    }

    fn run(&mut self, words: &[CString], stdio: [RawFd; 3]) -> i32 {
        let all: Vec<CString> = self.dhow.iter().chain(words).cloned().collect();
        let Ok(pid) = sys::spawn(&all, stdio, !self.is_alone) else { return 127 };
        loop {
            if let Some(code) = sys::reap(pid) {
                return code;
            }
            self.wait(-1);
        }
    }

    /// Waits for something to happen, and moves output on.
    fn wait(&mut self, timeout: i32) {
        let pipes = match &self.output {
            Output::Log(log) => [log.stdout.0.as_raw_fd(), log.stderr.0.as_raw_fd()],
            _ => [-1, -1],
        };
        let ready = sys::poll([self.signals.as_raw_fd(), pipes[0], pipes[1]], timeout);
        if let Output::Log(log) = &mut self.output {
            log.move_on();
        }
        if ready[0] {
            while let Some(signal) = sys::read_signal(&self.signals) {
                self.told_to_end |= signal == libc::SIGTERM.cast_unsigned();
                self.woken |= signal == libc::SIGUSR1.cast_unsigned();
            }
        }
    }

    fn next_end(&mut self) -> (i32, i32) {
        loop {
            match sys::look_for_ended() {
                Some(ended) => return ended,
                None => self.wait(-1),
            }
        }
    }

    /// Has it written down who ended how; dhow says what comes next.
    fn report(&mut self, pid: i32, code: i32) -> Next {
        if let Output::Log(log) = &mut self.output {
            log.move_on();
            log.finish();
        }
        let Ok((reader, writer)) = sys::pipe() else { return Next::End };
        let number = |number: i32| CString::new(number.to_string()).unwrap_or_default();
        let words = [c"exited".into(), self.id.clone(), number(pid), number(code)];
        let code = self.run(&words, [self.null.as_raw_fd(), writer.as_raw_fd(), self.null.as_raw_fd()]);
        drop(writer);
        let mut answer = [0; 64];
        let length = sys::read(reader.as_raw_fd(), &mut answer).unwrap_or(0);
        let answer = std::str::from_utf8(&answer[..length]).unwrap_or_default().trim_end();
        match (code, answer, answer.strip_prefix("restart ")) {
            (0, "stay", _) => Next::Stay,
            (0, _, Some(delay)) => delay.parse().map_or(Next::End, Next::Restart),
            _ => Next::End,
        }
    }

    /// Waits out the delay and starts the container anew; whether it runs. One that cannot be
    /// started waits again, as the policy says.
    fn restart(&mut self, mut delay: u64) -> bool {
        loop {
            let due = sys::milliseconds() + delay;
            while !self.told_to_end && !self.woken && sys::milliseconds() < due {
                let left = due.saturating_sub(sys::milliseconds());
                self.wait(i32::try_from(left).unwrap_or(i32::MAX));
                // No init is among them: strangers that the last life has left.
                while let Some((pid, _)) = sys::look_for_ended() {
                    sys::reap(pid);
                }
            }
            if self.told_to_end {
                return false;
            }
            self.woken = false;
            let revive = self.command(&[c"revive".into(), self.id.clone()], true);
            if revive == 0 && self.command(&[c"start".into(), self.id.clone()], false) == 0 {
                return true;
            }
            match self.report(0, 255) {
                Next::Restart(next) => delay = next,
                _ => return false,
            }
        }
    }

    /// Nothing ran, so what is in the pipes is dhow's own word to the caller.
    fn show_caller(&mut self) {
        let Output::Log(log) = &mut self.output else { return };
        while let Some(length @ 1..) = sys::read(log.stderr.0.as_raw_fd(), &mut log.buffer) {
            sys::write_all(2, &log.buffer[..length]);
        }
    }
}

impl Log {
    /// Moves all that is in the pipes into the file.
    fn move_on(&mut self) {
        let Some(file) = &mut self.file else { return };
        for (reader, _, stream) in [&mut self.stdout, &mut self.stderr] {
            while let Some(length @ 1..) = sys::read(reader.as_raw_fd(), &mut self.buffer) {
                file.take(stream, &self.buffer[..length]);
            }
        }
    }

    fn finish(&mut self) {
        let Some(file) = &mut self.file else { return };
        file.finish(&mut self.stdout.2);
        file.finish(&mut self.stderr.2);
    }
}
