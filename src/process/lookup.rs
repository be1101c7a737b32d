//! Which file the payload is: the look-up in PATH, as the field does it.

use super::explain;
use crate::error::Result;
use nix::errno::Errno;
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, faccessat};
use std::path::{Path, PathBuf};

/// What is searched when the environment has no PATH, as execvp(3) does.
pub const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The value of a variable in a list of `NAME=value`; the last one counts.
pub fn variable<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment.iter().rev().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Finds the executable of the payload, inside the container and as its user, so that what is
/// wrong with it is said by `create` and not by a container that dies without a word.
///
/// # Errors
/// [`crate::error::Class::CommandNotFound`] and `CommandDenied`, in the words that engines look for.
pub fn find(name: &str, environment: &[String]) -> Result<PathBuf> {
    if name.contains('/') {
        let path = Path::new(name);
        return check(path).map(|()| path.into()).map_err(|errno| explain::refused(name, path, errno));
    }
    let path = variable(environment, "PATH").unwrap_or(DEFAULT_PATH);
    let mut found_but = None;
    for directory in path.split(':') {
        // An empty entry is the working directory, as in every shell.
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(name);
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => found_but = found_but.or(Some((candidate, Errno::EACCES))),
            Err(_) => {}
        }
    }
    match found_but {
        Some((candidate, errno)) => Err(explain::refused(name, &candidate, errno)),
        None => Err(explain::not_in_path(name, environment)),
    }
}

/// Whether the kernel would let this process execute the file, as far as its mode tells.
fn check(path: &Path) -> nix::Result<()> {
    let found = stat(path)?;
    if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    // The effective ids and capabilities decide, as they do in execve(2).
    faccessat(nix::fcntl::AT_FDCWD, path, AccessFlags::X_OK, nix::fcntl::AtFlags::AT_EACCESS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;
    use std::os::unix::fs::PermissionsExt;

    fn path(directory: &Path) -> Vec<String> {
        vec!["PATH=/wrong".into(), format!("PATH=/nonexistent:{}", directory.display())]
    }

    #[test]
    fn found_in_path_or_by_name() {
        let directory = std::env::temp_dir().join(format!("dhow-lookup-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let program = directory.join("program");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = find("program", &path(&directory)).unwrap_err();
        assert_eq!(error.class, Class::CommandDenied);
        assert!(error.to_string().starts_with("exec: \"program\": permission denied: "), "{error}");
        assert!(error.to_string().contains("mode 0644, without the executable bit"), "{error}");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("program", &path(&directory)).unwrap(), program);
        assert_eq!(find(&program.display().to_string(), &[]).unwrap(), program);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_words_that_engines_look_for() {
        for (name, class, words) in [
            (
                "no-such-program",
                Class::CommandNotFound,
                "exec: \"no-such-program\": executable file not found in $PATH",
            ),
            ("/no/such", Class::CommandNotFound, "exec: \"/no/such\": no such file or directory"),
            ("/dev/null/x", Class::CommandNotFound, "exec: \"/dev/null/x\": not a directory"),
            ("/tmp", Class::CommandDenied, "exec: \"/tmp\": is a directory"),
        ] {
            let error = find(name, &[]).unwrap_err();
            assert_eq!(error.class, class, "{error}");
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn the_last_variable_counts() {
        let environment = ["A=1".to_owned(), "AB=2".into(), "A=3".into()];
        assert_eq!(variable(&environment, "A"), Some("3"));
        assert_eq!(variable(&environment, "B"), None);
    }
}
