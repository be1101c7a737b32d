//! `dhow cp`

use super::table::{Args, Command, Positional, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context, Copy, CopyOptions};
use std::path::PathBuf;

const fn path(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        required: true,
        required_unless: None,
        rest: false,
        greedy: false,
        many: false,
        last: false,
        help,
    }
}

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "cp",
    about: "Copy files between a container and the host: ID:PATH is the container's",
    details: "A directory that is there is copied into; DIR/. means what is in DIR. `-` is a tar archive on \
              standard input or output. Paths are as the container's processes see them, volumes included; \
              of a stopped one, what it had in memory (tmpfs) is gone.",
    positionals: &[path("from", "ID:PATH, PATH or -"), path("to", "ID:PATH, PATH or -")],
    flags: &[
        switch("archive", "keep owners, set-id bits and extended attributes").short('a'),
        switch("follow-link", "follow a symlink at the end of the source").short('L'),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let (from, to) = (args.id(), args.positional(1).unwrap_or_default());
    let what = match (of_container(from), of_container(to)) {
        (Some((id, path)), None) => Copy::Out(id, path, to.into()),
        (None, Some((id, path))) => Copy::In(from.into(), id, path),
        (Some(_), Some(_)) => return Err(usage("both are a container's")),
        (None, None) => return Err(usage("neither is a container's")),
    };
    let options = CopyOptions { archive: args.is_on("archive"), follow: args.is_on("follow-link") };
    runtime::copy(context, &what, options).map(|()| 0)
}

fn usage(cause: &str) -> Error {
    Error::new(Class::Usage, "copy")
        .because(cause)
        .hint("one of the two is ID:PATH; ./A:B is a file of the host")
}

/// `ID:PATH`; a slash before the colon makes it a path of the host.
fn of_container(word: &str) -> Option<(String, PathBuf)> {
    let (id, path) = word.split_once(':')?;
    let is_id = !id.is_empty() && !id.contains('/') && !id.starts_with('.');
    is_id.then(|| (id.to_owned(), if path.is_empty() { "/".into() } else { path.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_tells_the_container() {
        assert_eq!(of_container("web:/etc/x"), Some(("web".into(), "/etc/x".into())));
        assert_eq!(of_container("web:a:b"), Some(("web".into(), "a:b".into())));
        for word in ["-", "/a:b", "./a:b", "../a:b", "a", ":a"] {
            assert_eq!(of_container(word), None, "{word}");
        }
    }
}
