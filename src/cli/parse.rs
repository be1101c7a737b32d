//! The parser of the calls that engines make: a pass over argv by the table, some microseconds.
//!
//! It takes what is right. Whatever is not (an unknown option, a missing value, a request for
//! help) it leaves to clap, which is slower and has the better words ([`super::help`]).

use super::table::{Args, Command, Flag, Positional, is_boolean};

/// A call that was understood.
#[derive(Debug)]
pub struct Parsed {
    /// The global options.
    pub globals: Args,
    /// The command.
    pub command: &'static Command,
    /// Its options and arguments.
    pub args: Args,
}

/// Parses argv without the program's name. `None` when clap has to have a look.
pub fn parse(argv: &[String], globals: &'static [Flag], commands: &'static [Command]) -> Option<Parsed> {
    let mut words = argv.iter();
    let mut parsed_globals = Args::default();
    let command = loop {
        let word = words.next()?;
        if word.starts_with('-') {
            take_flag(word, &mut words, globals, &mut parsed_globals)?;
        } else {
            break commands.iter().find(|command| command.name == *word)?;
        }
    };
    let mut args = Args::default();
    while let Some(word) = words.next() {
        let next = command.positionals.get(args.positionals.len());
        if next.is_some_and(|positional| positional.greedy) {
            args.positionals.push(word.clone());
            args.positionals.extend(words.by_ref().cloned());
        } else if word == "--" && command.positionals.last().is_some_and(|positional| positional.last) {
            args.last.extend(words.by_ref().cloned());
        } else if word == "--" {
            args.positionals.extend(words.by_ref().cloned());
        } else if word.starts_with('-') && word.len() > 1 {
            // A global option may also come after the command.
            let taken = take_flag(word, &mut words, command.flags, &mut args)
                .or_else(|| take_flag(word, &mut words, globals, &mut parsed_globals));
            taken?;
        } else {
            args.positionals.push(word.clone());
            let place = command.positionals.get(args.positionals.len() - 1);
            let takes_rest = place.is_some_and(|positional| positional.rest && !positional.last);
            if takes_rest {
                args.positionals.extend(words.by_ref().cloned());
            }
        }
    }
    let in_order = || command.positionals.iter().filter(|positional| !positional.last);
    let is_given = |name: &str| args.given.iter().any(|(given, _)| *given == name);
    let must_be = |p: &&Positional| p.required && !p.required_unless.is_some_and(is_given);
    if args.positionals.is_empty() && in_order().next().as_ref().is_some_and(must_be) {
        // `create -- ID`: what follows is a command only where there is an image to run it in.
        args.positionals = std::mem::take(&mut args.last);
    }
    let most = if in_order().any(|p| p.rest || p.many) { usize::MAX } else { in_order().count() };
    let least = in_order().filter(must_be).count();
    (least..=most).contains(&args.positionals.len()).then_some(Parsed {
        globals: parsed_globals,
        command,
        args,
    })
}

/// Takes one option, and its value when that is a word of its own.
fn take_flag<'a>(
    word: &'a str,
    words: &mut (impl Iterator<Item = &'a String> + Clone),
    flags: &'static [Flag],
    args: &mut Args,
) -> Option<()> {
    let (flag, attached) = find(word, flags)?;
    let value = match (flag.value, attached) {
        (None, None) => None,
        (None, Some(value)) => Some(value.to_owned()).filter(|value| is_boolean(value)).map(Some)?,
        (Some(_), Some(value)) => Some(value.to_owned()),
        (Some(_), None) if flag.optional => None,
        (Some(_), None) => {
            // A value that looks like an option is more likely a forgotten value.
            let next = words.next()?;
            if next.starts_with('-') && next.len() > 1 && next.parse::<i64>().is_err() {
                return None;
            }
            Some(next.clone())
        }
    };
    if !flag.many && args.given.iter().any(|(name, _)| *name == flag.long) {
        args.given.retain(|(name, _)| *name != flag.long);
    }
    args.given.push((flag.long, value));
    Some(())
}

/// The option that a word names, and the value that is attached to it: `--long`, `--long=value`,
/// Go's `-long`, `-s`, `-svalue`, `-s=value`.
fn find<'a>(word: &'a str, flags: &'static [Flag]) -> Option<(&'static Flag, Option<&'a str>)> {
    let bare = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
    let (name, attached) = match bare.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    let is_short_form = !word.starts_with("--");
    if let Some(flag) = flags.iter().find(|flag| flag.long == name && (name.len() > 1 || !is_short_form)) {
        return Some((flag, attached));
    }
    if !is_short_form {
        return None;
    }
    let letter = bare.chars().next()?;
    let flag = flags.iter().find(|flag| flag.short == Some(letter))?;
    let rest = &bare[letter.len_utf8()..];
    match rest.strip_prefix('=').unwrap_or(rest) {
        "" => Some((flag, None)),
        // Several switches in one word are left to clap.
        _ if flag.value.is_none() => None,
        value => Some((flag, Some(value))),
    }
}

/// argv in the form that clap understands: Go's `-long` as `--long`.
pub fn with_double_dashes(argv: &[String], globals: &[Flag], flags: &[Flag]) -> Vec<String> {
    let is_long = |word: &str| {
        let name = word.split('=').next().unwrap_or_default();
        name.len() > 1 && globals.iter().chain(flags).any(|flag| flag.long == name)
    };
    let mut done = false;
    argv.iter()
        .map(|word| {
            done |= word == "--";
            match word.strip_prefix('-') {
                Some(bare) if !done && !bare.starts_with('-') && is_long(bare) => format!("--{bare}"),
                _ => word.clone(),
            }
        })
        .collect()
}
