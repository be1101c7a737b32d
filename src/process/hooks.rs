//! Hooks: programs of the engine, run at points of the container's life.

use crate::error::{Class, Error, Result};
use crate::seccomp::Program;
use crate::spec::annotations::{HOOKS_STDERR, HOOKS_STDOUT};
use crate::spec::{Hook, HookPoint};
use crate::sys::clone::before_exec;
use crate::sys::signal::{self, Companion};
use crate::sys::{self, pidfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How much of what a hook says is kept for the error.
const MOST_OUTPUT: usize = 8 * 1024;

/// Where hooks write, when annotations name files. They are opened on the host, before the
/// container can have a hand in what their paths lead to.
#[derive(Debug, Default)]
pub struct Files {
    stdout: Option<File>,
    stderr: Option<File>,
}

impl Files {
    /// Those that are open, for who closes all others.
    pub fn open_fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.stdout.iter().chain(&self.stderr).map(AsFd::as_fd)
    }

    /// Opens what `run.oci.hooks.stdout` and `run.oci.hooks.stderr` name, to append to it.
    ///
    /// # Errors
    /// When a file cannot be opened or made.
    pub fn open(annotations: &BTreeMap<String, String>) -> Result<Files> {
        let file = |name: &str| {
            let Some(path) = annotations.get(name) else { return Ok(None) };
            File::options().append(true).create(true).open(path).map(Some).map_err(|error| {
                Error::system("open the file for the output of hooks", sys::io_errno(&error))
                    .on(format!("annotation {name} {path:?}"))
                    .class(Class::Config)
            })
        };
        Ok(Files { stdout: file(HOOKS_STDOUT)?, stderr: file(HOOKS_STDERR)? })
    }
}

/// Runs the hooks of one point, one after the other, each with the state on its standard input.
///
/// # Errors
/// [`Class::Hook`] at the first that cannot be run, exits with another status than 0, or takes
/// longer than its timeout; what it said is in the error.
pub fn run_all(point: HookPoint, hooks: &[Hook], state: &str, files: &Files) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run(point, index, hook, state, files, None))
}

/// As [`run_all`], each under a seccomp filter: hooks in the container have no more rights than the
/// payload. This process is not under it: what dhow itself does is no concern of the profile's.
///
/// # Errors
/// As of [`run_all`].
pub fn run_all_filtered(
    point: HookPoint,
    hooks: &[Hook],
    state: &str,
    files: &Files,
    filter: Option<&Program>,
) -> Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run(point, index, hook, state, files, filter))
}

fn run(
    point: HookPoint,
    index: usize,
    hook: &Hook,
    state: &str,
    files: &Files,
    filter: Option<&Program>,
) -> Result<()> {
    let failed = |cause: String| {
        Error::new(Class::Hook, format!("error running {} hook #{index}", point.name()))
            .on(&hook.path)
            .because(cause)
    };
    let (mut output, writer) = std::io::pipe().map_err(|error| failed(error.to_string()))?;
    let other_writer = writer.try_clone().map_err(|error| failed(error.to_string()))?;
    let instead = |file: &Option<File>, pipe: std::io::PipeWriter| match file {
        Some(file) => file.try_clone().map(Stdio::from).map_err(|error| failed(error.to_string())),
        None => Ok(Stdio::from(pipe)),
    };
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    let environment = hook.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    command.env_clear().envs(environment).stdin(Stdio::piped());
    command.stdout(instead(&files.stdout, writer)?).stderr(instead(&files.stderr, other_writer)?);
    if let Some(filter) = filter.cloned() {
        before_exec(&mut command, move || match filter.install() {
            Ok(_) => Ok(()),
            Err(error) => Err(error.errno.unwrap_or(libc::EINVAL)),
        });
    }
    let mut child = command
        .spawn()
        .map_err(|error| failed("it could not be started".to_owned()).errno(sys::io_errno(&error)))?;
    // The writing ends belong to the hook alone now, so that reading ends when it does.
    drop(command);
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it, and may have ended already.
        let _ = stdin.write_all(state.as_bytes());
    }
    let deadline = hook.timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds.unsigned_abs()));
    // What cleans up is not cut short by the signal that has it clean up.
    let gives_way = point != HookPoint::Poststop;
    let (status, said) = wait(&mut child, &mut output, deadline, gives_way).map_err(|errno| {
        // Nobody would wait for it.
        let _ = child.kill();
        let _ = child.wait();
        failed("wait for it".into()).errno(errno)
    })?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(describe(status, &said))),
        None => {
            let _ = child.kill();
            let _ = child.wait();
            let limit = hook.timeout.unwrap_or_default();
            Err(failed(format!("it took longer than its timeout of {limit} s and was killed")))
        }
    }
}

fn describe(status: ExitStatus, said: &[u8]) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(libc::SIGSYS)) => "killed by seccomp: bad system call".to_owned(),
        (_, Some(signal)) => format!("killed by signal {signal}"),
        _ => "ended".to_owned(),
    };
    let said = String::from_utf8_lossy(said);
    let said = said.trim().replace('\n', "; ");
    if said.is_empty() { how } else { format!("{how}: {said}") }
}

/// Waits until the hook has ended, or until its deadline (then without a status), and reads what
/// it says meanwhile. A process that it leaves behind may hold the pipe open; that is not waited
/// for. One that `gives_way` is killed when this process is asked to end.
fn wait(
    child: &mut Child,
    output: &mut std::io::PipeReader,
    deadline: Option<Instant>,
    gives_way: bool,
) -> nix::Result<(Option<ExitStatus>, Vec<u8>)> {
    let ended = pidfd::open(Pid::from_raw(child.id().cast_signed()))?;
    // Whoever is asked to end does not wait for a hook, which may hang.
    let _companion = gives_way.then(|| Companion::instead(ended.as_fd()));
    if gives_way && signal::asked_to_end().is_some() {
        return Err(Errno::EINTR);
    }
    let mut said = Vec::new();
    let mut reading = true;
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok((None, said));
        }
        let timeout =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let mut fds =
            [PollFd::new(ended.as_fd(), PollFlags::POLLIN), PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        let watched = if reading { &mut fds[..] } else { &mut fds[..1] };
        match poll(watched, timeout) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let has_ended = fds[0].any().unwrap_or(false);
        if reading && fds[1].any().unwrap_or(false) {
            reading = take(output, &mut said);
        } else if has_ended {
            let status = child.wait().map_err(|error| sys::io_errno(&error))?;
            return Ok((Some(status), said));
        }
    }
}

/// Reads once; whether there can be more. The first kilobytes are kept, the rest is dropped.
fn take(output: &mut std::io::PipeReader, said: &mut Vec<u8>) -> bool {
    let mut buffer = [0_u8; 4096];
    match output.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(length) => {
            let room = MOST_OUTPUT.saturating_sub(said.len());
            said.extend_from_slice(&buffer[..length.min(room)]);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout: Option<i64>) -> Result<()> {
        let hook = Hook {
            path: "/bin/sh".into(),
            args: vec!["a name".into(), "-c".into(), script.into()],
            env: vec!["GREETING=hello".into()],
            timeout,
        };
        run_all(HookPoint::Poststart, &[hook], "{\"id\":\"x\"}", &Files::default())
    }

    #[test]
    fn it_gets_the_state_its_own_name_and_no_other_environment() {
        shell("test \"$(/bin/cat)\" = '{\"id\":\"x\"}'", None).unwrap();
        shell("test \"$0\" = 'a name' && test \"$GREETING\" = hello && test -z \"$HOME\"", None).unwrap();
        shell("exit 0", None).unwrap();
    }

    #[test]
    fn a_failure_says_how_and_what() {
        let error = shell("echo one; echo two >&2; exit 3", None).unwrap_err();
        assert_eq!(error.class, Class::Hook);
        let text = error.to_string();
        assert!(text.contains("error running poststart hook #0: /bin/sh: exit status 3: one; two"), "{text}");
        assert!(shell("kill -9 $$", None).unwrap_err().to_string().contains("killed by signal 9"));
        let missing = Hook { path: "/nonexistent".into(), ..Hook::default() };
        let error = run_all(HookPoint::Prestart, &[missing], "", &Files::default()).unwrap_err().to_string();
        assert!(error.contains("no such file or directory"), "{error}");
    }

    #[test]
    fn one_that_hangs_is_killed_and_one_that_leaves_a_child_is_not_waited_for() {
        let begun = Instant::now();
        let error = shell("sleep 60", Some(1)).unwrap_err().to_string();
        assert!(error.contains("timeout of 1 s"), "{error}");
        shell("sleep 60 & exit 0", Some(30)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn one_that_says_much_is_not_blocked() {
        shell("head -c 1000000 /dev/zero", Some(30)).unwrap();
    }
}
