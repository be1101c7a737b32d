//! What can be said about an executable before it is executed.
//!
//! The kernel's exec decides, and this only explains: a file is refused here for nothing but what
//! execve(2) would certainly fail for, an interpreter that is not there or may not be executed.
//! Formats that the kernel may have learnt by binfmt_misc are left to it; what they fail with is
//! explained afterwards ([`super::explain`]).

use super::format::{self, Format};
use super::{explain, lookup};
use crate::error::Result;
use crate::log;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, faccessat};
use std::path::Path;

/// How many interpreters of interpreters the kernel follows before it says ELOOP (exec.c).
const MOST_INTERPRETERS: usize = 5;

/// Looks whether the interpreters of a program are there, as the user that will execute it.
///
/// # Errors
/// [`crate::error::Class::CommandNotFound`] and `CommandDenied`, naming the interpreter.
pub fn check(name: &str, path: &Path, environment: &[String]) -> Result<()> {
    let mut path = path.to_owned();
    for _ in 0..MOST_INTERPRETERS {
        // What cannot be read can still be executed: nothing is known about it.
        let Some(format) = format::of(&path) else { return Ok(()) };
        let interpreter = match &format {
            Format::Script { interpreter, argument } => {
                warn_of_env(&path, interpreter, argument.as_deref(), environment);
                interpreter
            }
            Format::Elf { machine: format::NATIVE, wide: true, loader: Some(loader) } => loader,
            _ => return Ok(()),
        };
        // The effective ids and capabilities decide, as they do in execve(2).
        let flags = nix::fcntl::AtFlags::AT_EACCESS;
        match faccessat(nix::fcntl::AT_FDCWD, interpreter, AccessFlags::X_OK, flags) {
            Err(errno @ (Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES)) => {
                return Err(explain::interpreter(name, &path, &format, errno));
            }
            _ if matches!(format, Format::Elf { .. }) => return Ok(()),
            _ => path.clone_from(interpreter),
        }
    }
    Ok(())
}

/// `#!/usr/bin/env NAME`: the kernel runs env, which then does not find NAME and ends with 127.
/// That is no reason to refuse, but one to say so.
fn warn_of_env(script: &Path, interpreter: &Path, argument: Option<&str>, environment: &[String]) {
    let is_env = interpreter.file_name().is_some_and(|name| name == "env");
    let Some(wanted) = argument.filter(|_| is_env).and_then(env_argument) else { return };
    if lookup::find(wanted, environment).is_ok() {
        return;
    }
    let carriage_return = match wanted.ends_with('\r') {
        true => ", because its first line ends with a carriage return (saved with Windows line ends)",
        false => "",
    };
    log::warn(&format!(
        "{}: its first line asks env for {wanted:?}, which PATH does not have{carriage_return}: \
         install it, or name another interpreter",
        script.display()
    ));
}

/// The program that env is asked for: without `-S` the whole argument is its name.
fn env_argument(argument: &str) -> Option<&str> {
    let Some(split) = argument.strip_prefix("-S").or_else(|| argument.strip_prefix("--split-string=")) else {
        return (!argument.starts_with('-') && !argument.contains('=')).then_some(argument);
    };
    let mut words = split.split([' ', '\t']).filter(|word| !word.is_empty());
    words.find(|word| !word.contains('=')).filter(|word| !word.starts_with(['-', '\'', '"', '$', '\\']))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    #[test]
    fn programs_of_this_machine_pass_and_a_missing_loader_is_named() {
        for program in ["/bin/sh", "/proc/self/exe", "/bin/ls"] {
            check("x", Path::new(program), &[]).unwrap();
        }
        let broken = std::env::temp_dir().join(format!("dhow-preflight-{}", std::process::id()));
        let mut text = std::fs::read("/bin/ls").unwrap();
        let at = text.windows(9).position(|window| window == b"/ld-linux").unwrap();
        let end = at + text[at..].iter().position(|byte| *byte == 0).unwrap();
        text[end - 1] = b'9';
        std::fs::write(&broken, text).unwrap();
        let error = check("x", &broken, &[]).unwrap_err();
        assert_eq!(error.class, Class::CommandNotFound);
        let text = error.to_string();
        assert!(text.starts_with("exec: \"x\": no such file or directory: "), "{text}");
        assert!(text.contains("needs /lib") && text.contains(".so.9"), "{text}");
        assert!(text.contains("built for glibc"), "{text}");
        std::fs::remove_file(broken).unwrap();
    }

    #[test]
    fn what_env_is_asked_for() {
        assert_eq!(env_argument("python3"), Some("python3"));
        assert_eq!(env_argument("python3 -u"), Some("python3 -u"));
        assert_eq!(env_argument("-S A=1 python3 -u"), Some("python3"));
        assert_eq!(env_argument("-Sperl -w"), Some("perl"));
        assert_eq!(env_argument("-i"), None);
        assert_eq!(env_argument("A=1"), None);
    }
}
