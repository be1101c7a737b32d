//! clap: for help, for errors, and for the rarer ways to write a call.

use super::parse::{Parsed, with_double_dashes};
use super::table::{Args, Command, Flag};
use clap::{Arg, ArgAction, ArgMatches};

/// clap's form of an option.
fn arg(flag: &'static Flag) -> Arg {
    let arg = Arg::new(flag.long).long(flag.long).help(flag.help).hide(flag.hidden);
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    match flag.value {
        Some(value) if flag.optional => arg
            .value_name(value)
            .action(ArgAction::Append)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Some(value) => arg.value_name(value).action(ArgAction::Append).allow_negative_numbers(true),
        // Go's switches take a value too, but only behind an equals sign.
        None => arg
            .action(ArgAction::Append)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(clap::builder::BoolishValueParser::new().map(|on| on.to_string()))
            .hide_possible_values(true)
            .value_name("BOOL"),
    }
}

use clap::builder::TypedValueParser as _;

/// clap's form of one command.
fn subcommand(command: &'static Command) -> clap::Command {
    let positionals = command.positionals.iter().map(|positional| {
        let arg = Arg::new(positional.name).help(positional.help);
        let arg = match positional.required_unless {
            Some(option) => arg.required_unless_present(option),
            None => arg.required(positional.required),
        };
        match (positional.rest, positional.many) {
            (true, _) if positional.last => arg.num_args(0..).last(true),
            (true, _) => arg.num_args(0..).trailing_var_arg(true).allow_hyphen_values(true),
            (false, true) => arg.num_args(1..),
            (false, false) => arg,
        }
    });
    clap::Command::new(command.name)
        .about(command.about)
        .after_help(command.details)
        .hide(command.is_hidden())
        .args(command.flags.iter().map(arg))
        .args(positionals)
}

/// What clap is to know: the program itself, or a command that has commands of its own.
pub struct Face {
    /// As it is called.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// What `--version` prints behind the name.
    pub version: &'static str,
    /// The options of all its commands.
    pub globals: &'static [Flag],
    /// Its commands.
    pub commands: &'static [Command],
}

/// The whole command line as clap knows it: also what completions and man pages are made from.
pub fn build(face: &Face) -> clap::Command {
    let Face { globals, commands, .. } = *face;
    clap::Command::new(face.name)
        .bin_name(face.name)
        .about(face.about)
        .version(face.version)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(false)
        .args(globals.iter().map(|flag| arg(flag).global(is_everywhere(flag, commands))))
        .subcommands(commands.iter().map(subcommand))
}

/// A global option may come after any command, unless one has an option of the same name:
/// `spec --rootless` is another matter than `--rootless=true`.
fn is_everywhere(flag: &Flag, commands: &[Command]) -> bool {
    !commands.iter().any(|command| command.flags.iter().any(|own| own.long == flag.long))
}

/// Parses with clap.
///
/// # Errors
/// clap's own error, which is also how it answers `--help` and `--version`.
pub fn parse(argv: &[String], face: &Face) -> Result<Parsed, clap::Error> {
    let Face { globals, commands, .. } = *face;
    let named = argv.iter().find_map(|word| commands.iter().find(|command| command.name == *word));
    let flags = named.map_or(&[][..], |command| command.flags);
    let words = std::iter::once(face.name.to_owned()).chain(with_double_dashes(argv, globals, flags));
    let matches = build(face).try_get_matches_from(words)?;
    let (name, sub) =
        matches.subcommand().ok_or_else(|| clap::Error::new(clap::error::ErrorKind::MissingSubcommand))?;
    let command = commands
        .iter()
        .find(|command| command.name == name)
        .ok_or_else(|| clap::Error::new(clap::error::ErrorKind::InvalidSubcommand))?;
    let mut args = Args { given: given(sub, command.flags.iter().collect()), ..Args::default() };
    for positional in command.positionals {
        let list = if positional.last { &mut args.last } else { &mut args.positionals };
        list.extend(sub.get_many::<String>(positional.name).into_iter().flatten().cloned());
    }
    let (everywhere, before): (Vec<&Flag>, Vec<&Flag>) =
        globals.iter().partition(|flag| is_everywhere(flag, commands));
    let mut all = given(sub, everywhere);
    all.extend(given(&matches, before));
    Ok(Parsed { globals: Args { given: all, ..Args::default() }, command, args })
}

/// The options in the order in which they stood in argv.
fn given(matches: &ArgMatches, flags: Vec<&'static Flag>) -> Vec<(&'static str, Option<String>)> {
    let mut found = Vec::new();
    for flag in flags {
        let Some(indices) = matches.indices_of(flag.long) else { continue };
        let values = matches.get_many::<String>(flag.long).into_iter().flatten();
        let all: Vec<_> =
            indices.zip(values).map(|(index, value)| (index, flag.long, value.clone())).collect();
        let kept = if flag.many { 0 } else { all.len().saturating_sub(1) };
        found.extend(all.into_iter().skip(kept).map(|(index, long, value)| {
            // A bare switch was given no value; clap stands in "true" for it.
            let value = (flag.value.is_some() && !flag.optional || value != "true").then_some(value);
            (index, long, value)
        }));
    }
    found.sort_by_key(|(index, ..)| *index);
    found.into_iter().map(|(_, long, value)| (long, value)).collect()
}

/// What `dhow help TOPIC` says of what is no command.
pub(super) const TOPICS: &[(&str, &str)] = &[
    (
        "topics",
        "dhow help TOPIC, besides the commands of dhow help:
  bundles      what a container is made of
  errors       how an error is to be read
  exit-status  what dhow answers
  files        where things are
  rootless     without root
  speed        where the time goes
",
    ),
    (
        "bundles",
        "A bundle is a directory with config.json and a root filesystem.
  dhow spec                         writes a config.json to start from
  dhow check DIR                    reads it before it runs
  dhow run --bundle DIR ID          creates, starts, stays, deletes
  dhow run --image NAME             the same from an image, without a bundle
config.json is the runtime specification's: github.com/opencontainers/runtime-spec.
",
    ),
    (
        "errors",
        "An error is one line: what was being done, to what, why it failed, and what to do (in
parentheses). It is also in the file of --log, as JSON with --log-format json.
  --debug           says how each step is done
  dhow check DIR    says what will fail before it does
  dhow doctor       finds what killed commands have left
The common ones, with causes and cures, are in docs/errors.md.
",
    ),
    (
        "exit-status",
        "0     success
1     dhow failed; check: something is grave; doctor: something is left
255   exec failed
run and exec answer the payload's own status, 128 + N when signal N ended it.
A create or run that SIGTERM, SIGINT or SIGHUP ends takes back what it did, and answers
128 + the signal.
",
    ),
    (
        "files",
        "/run/dhow               the state of containers; users: $XDG_RUNTIME_DIR/dhow
/var/lib/dhow/images    images; users: $XDG_DATA_HOME/dhow/images, or ~/.local/share/dhow/images
/etc/cni/net.d          networks of --network cni:NAME
/etc/dhow/registries.json    mirrors of registries
--root DIR moves the first to DIR, and images to DIR/@images.
",
    ),
    (
        "rootless",
        "Without root a container needs a user namespace:
  dhow spec --rootless              writes such a config.json
  dhow run --image NAME             makes one by itself
More ids than one's own come from /etc/subuid and /etc/subgid, through newuidmap and newgidmap.
Limits need a delegated cgroup: --systemd-cgroup, or systemd-run --user --scope -p Delegate=yes.
",
    ),
    (
        "speed",
        "dhow --timings COMMAND shows where the time of a command went, in microseconds, in dhow and in
the container's process. --timings=FILE also writes a trace that ui.perfetto.dev opens.
A payload that starts slowly is not in it: the last step ends when the payload runs.
",
    ),
];

/// `help TOPIC`, for what is no command.
pub(super) fn topic(argv: &[String]) -> Option<String> {
    let [word, topic] = argv else { return None };
    let found = TOPICS.iter().find(|(name, _)| name == topic).filter(|_| word == "help");
    found.map(|(_, text)| (*text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::COMMANDS;
    use super::*;

    #[test]
    fn topics_are_no_commands() {
        for (name, text) in TOPICS {
            assert!(!COMMANDS.iter().any(|command| command.name == *name), "{name}");
            assert!(text.ends_with('\n') && text.lines().all(|line| line.len() <= 100), "{name}");
        }
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(topic(&words("help topics")).is_some_and(|text| text.contains("exit-status")));
        assert_eq!(topic(&words("help run")), None);
        assert_eq!(topic(&words("run topics")), None);
    }
}
