//! Commands and their options as data.
//!
//! One table serves the fast parser ([`super::parse`]), clap (help, errors, completions) and the
//! man pages, so that they cannot disagree; a test holds the two parsers against each other.

use crate::error::Result;
use crate::runtime::Context;

/// An option of a command.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its long name, without dashes.
    pub long: &'static str,
    /// Its one-letter name.
    pub short: Option<char>,
    /// The word for its value in the help; `None` for a switch.
    pub value: Option<&'static str>,
    /// Whether the value may be left out; it then only comes behind an equals sign.
    pub optional: bool,
    /// One line of help.
    pub help: &'static str,
    /// Whether it may be given more than once, each time with another value.
    pub many: bool,
    /// Taken for compatibility, not shown.
    pub hidden: bool,
}

/// A switch.
pub const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: None, optional: false, help, many: false, hidden: false }
}

/// An option with a value.
pub const fn option(long: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: Some(value), optional: false, help, many: false, hidden: false }
}

impl Flag {
    /// With a one-letter name.
    pub const fn short(mut self, short: char) -> Flag {
        self.short = Some(short);
        self
    }

    /// Its value may be left out.
    pub const fn optional(mut self) -> Flag {
        self.optional = true;
        self
    }

    /// May be given several times.
    pub const fn many(mut self) -> Flag {
        self.many = true;
        self
    }

    /// Not shown in the help.
    pub const fn hidden(mut self) -> Flag {
        self.hidden = true;
        self
    }
}

/// A positional argument.
#[derive(Debug, Clone, Copy)]
pub struct Positional {
    /// Its name in the help.
    pub name: &'static str,
    /// Whether it must be there.
    pub required: bool,
    /// The option that makes it one that need not be there.
    pub required_unless: Option<&'static str>,
    /// Whether it takes all that follows, options of another program included.
    pub rest: bool,
    /// Whether it does so from its first word on, which may then look like an option of dhow's
    /// own: `ps ID -f`.
    pub greedy: bool,
    /// Whether there may be several words of it, with options before, between and after them.
    pub many: bool,
    /// Whether it only comes after `--`.
    pub last: bool,
    /// One line of help.
    pub help: &'static str,
}

/// The id that most commands begin with.
pub const ID: Positional = Positional {
    name: "container-id",
    required: true,
    required_unless: None,
    rest: false,
    greedy: false,
    many: false,
    last: false,
    help: "the name of the container",
};

/// A command.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// Its name.
    pub name: &'static str,
    /// One line of help; empty for a command of dhow's own programs, which is shown nowhere.
    pub about: &'static str,
    /// More help, by paragraphs.
    pub details: &'static str,
    /// Its positional arguments, in order.
    pub positionals: &'static [Positional],
    /// Its options.
    pub flags: &'static [Flag],
    /// Whether it runs inside a container, where its own binary must be protected.
    pub enters: bool,
    /// Carries it out; the answer is the exit code.
    pub run: fn(&Context, &Args) -> Result<i32>,
}

impl Command {
    /// Whether it is for dhow's own programs alone, and no part of help and man page.
    pub const fn is_hidden(&self) -> bool {
        self.about.is_empty()
    }
}

/// What was given to a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// Options in the order in which they came: long name and value; a switch has none.
    pub given: Vec<(&'static str, Option<String>)>,
    /// The positional arguments.
    pub positionals: Vec<String>,
    /// What came after `--`, where a command tells it from the others.
    pub last: Vec<String>,
}

impl Args {
    /// The value of an option; the last one counts.
    pub fn value(&self, long: &str) -> Option<&str> {
        self.given.iter().rev().find(|(name, _)| *name == long).and_then(|(_, value)| value.as_deref())
    }

    /// Every value of an option that may be given several times.
    pub fn values(&self, long: &str) -> Vec<String> {
        self.given.iter().filter(|(name, _)| *name == long).filter_map(|(_, value)| value.clone()).collect()
    }

    /// Whether a switch is on: the last word about it counts (`--debug=false`).
    pub fn is_on(&self, long: &str) -> bool {
        self.given
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .is_some_and(|(_, value)| is_true(value.as_deref()))
    }

    /// The positional argument at a place.
    pub fn positional(&self, index: usize) -> Option<&str> {
        self.positionals.get(index).map(String::as_str)
    }

    /// The container's id, which the table says must be there.
    pub fn id(&self) -> &str {
        self.positional(0).unwrap_or_default()
    }
}

fn is_true(value: Option<&str>) -> bool {
    !matches!(value, Some("false" | "False" | "FALSE" | "f" | "F" | "0"))
}

/// Whether a text is a value that a switch may have, as Go's flags do.
pub fn is_boolean(value: &str) -> bool {
    matches!(
        value,
        "true" | "True" | "TRUE" | "t" | "T" | "1" | "false" | "False" | "FALSE" | "f" | "F" | "0"
    )
}
