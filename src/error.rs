//! The one error of dhow.
//!
//! An error is data until the very end: it crosses the socket between parent and
//! init whole, keeps its class and errno, and is rendered once, in `main`. Its class
//! fixes the exit code and the words that engines look for (`docs/errors.md`).

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What dhow's fallible functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure an [`Error`] is. Decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Class {
    /// The command line is wrong.
    Usage,
    /// config.json, the bundle, or another input is wrong.
    Config,
    /// The input is right, but this version of dhow or this kernel cannot carry it out.
    Unsupported,
    /// There is no such container.
    NoContainer,
    /// There already is a container of that name.
    ContainerExists,
    /// The container is in a state that does not allow the operation.
    WrongState,
    /// The process that was meant has ended.
    NoProcess,
    /// The payload's executable, or something that it needs, is not there.
    CommandNotFound,
    /// The payload's executable is there, but may not or cannot be executed.
    CommandDenied,
    /// A hook failed or took too long.
    Hook,
    /// What is stored on disk cannot be trusted.
    Corrupt,
    /// The kernel refused.
    System,
    /// dhow contradicts itself: a bug.
    Internal,
}

/// A failure: what was being done, to what, why it failed, and what can be done about it.
///
/// ```
/// let error = dhow::signal("NOSUCH").unwrap_err();
/// assert_eq!(error.class, dhow::Class::Usage);
/// assert_eq!(error.subject.as_deref(), Some("\"NOSUCH\""));
/// assert_eq!(error.to_string(), "unknown signal: \"NOSUCH\"");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Error {
    /// The kind of failure.
    pub class: Class,
    /// What was being done, as a phrase: `mount tmpfs`, `read config.json`.
    pub doing: String,
    /// What it was being done to: a path, an id, a field's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Why it failed, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The errno behind it, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// What a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

// For the rooms of dhow itself: who uses the library is given errors, and makes none.
#[doc(hidden)]
impl Error {
    /// A failure of `class` while `doing` something.
    pub fn new(class: Class, doing: impl Into<String>) -> Self {
        Error { class, doing: doing.into(), subject: None, cause: None, errno: None, hint: None }
    }

    /// A wrong value in the input: `subject` names the field, `cause` says what is wrong with it.
    pub fn config(subject: impl Into<String>, cause: impl Into<String>) -> Self {
        Error::new(Class::Config, "invalid configuration").on(subject).because(cause)
    }

    /// A syscall that failed.
    pub fn system(doing: impl Into<String>, errno: Errno) -> Self {
        Error::new(Class::System, doing).errno(errno)
    }

    /// Names what the operation was about.
    #[must_use]
    pub fn on(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Says why it failed.
    #[must_use]
    pub fn because(mut self, cause: impl Into<String>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Keeps the errno that the kernel answered.
    #[must_use]
    pub fn errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno as i32);
        self
    }

    /// Says what a person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Gives the failure another class.
    #[must_use]
    pub fn class(mut self, class: Class) -> Self {
        self.class = class;
        self
    }
}

/// An errno's description as the field writes it: lower case, as Go's and crun's messages are,
/// because engines search for these words.
pub fn describe(errno: Errno) -> String {
    let text = errno.desc();
    let mut chars = text.chars();
    let second_is_lower = text.chars().nth(1).is_none_or(|c| !c.is_uppercase());
    match chars.next() {
        Some(first) if second_is_lower => first.to_lowercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

impl fmt::Display for Error {
    /// One line: `doing: subject: cause: errno's words (hint)`. Of a payload that cannot be
    /// executed the errno's words come before the cause: right behind the program's name is where
    /// engines, and people, look for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.doing)?;
        let words = self.errno.map(|errno| describe(Errno::from_raw(errno)));
        let words_first = matches!(self.class, Class::CommandNotFound | Class::CommandDenied);
        let (first, second) = match words_first {
            true => (words.as_ref(), self.cause.as_ref()),
            false => (self.cause.as_ref(), words.as_ref()),
        };
        for part in [self.subject.as_ref(), first, second].into_iter().flatten() {
            write!(f, ": {part}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Turns a failed syscall or read into an [`Error`] that says what was being done.
pub trait Context<T> {
    /// Says what was being done when the call failed.
    fn doing(self, doing: impl Into<String>) -> Result<T>;
    /// Says what was being done, and to what. The strings are made only on failure.
    fn doing_on<S: Into<String>>(self, doing: &str, subject: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: IntoErrno> Context<T> for std::result::Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|e| e.into_error(doing.into()))
    }

    fn doing_on<S: Into<String>>(self, doing: &str, subject: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| e.into_error(doing.to_owned()).on(subject()))
    }
}

/// What the syscall wrappers in use answer on failure.
pub trait IntoErrno {
    /// The failure as a [`Class::System`] error.
    fn into_error(self, doing: String) -> Error;
}

impl IntoErrno for Errno {
    fn into_error(self, doing: String) -> Error {
        Error::system(doing, self)
    }
}

impl IntoErrno for rustix::io::Errno {
    fn into_error(self, doing: String) -> Error {
        Error::system(doing, Errno::from_raw(self.raw_os_error()))
    }
}

impl IntoErrno for std::io::Error {
    fn into_error(self, doing: String) -> Error {
        match self.raw_os_error() {
            Some(code) => Error::system(doing, Errno::from_raw(code)),
            None => Error::new(Class::System, doing).because(self.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_with_every_part() {
        let error =
            Error::system("mount tmpfs", Errno::EPERM).on("/dev").because("no room").hint("try again");
        assert_eq!(error.to_string(), "mount tmpfs: /dev: no room: operation not permitted (try again)");
    }

    #[test]
    fn crosses_a_socket_whole() {
        let error = Error::config("process.cwd", "must be absolute").errno(Errno::EINVAL);
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
    }

    #[test]
    fn words_are_the_fields_words() {
        assert_eq!(describe(Errno::EACCES), "permission denied");
        assert_eq!(describe(Errno::ENOENT), "no such file or directory");
        assert_eq!(describe(Errno::ENOTDIR), "not a directory");
        assert_eq!(describe(Errno::EISDIR), "is a directory");
        assert_eq!(describe(Errno::ESRCH), "no such process");
    }
}
