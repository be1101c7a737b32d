//! `dhow completion`: what shells propose, from the table of commands.

use super::list::print;
use super::table::{Args, Command, Flag, ID, Positional};
use super::{COMMANDS, GLOBALS, unknown};
use crate::error::Result;
use crate::runtime::Context;
use std::fmt::Write;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "completion",
    about: "Print what makes a shell complete dhow's commands, options and containers",
    details: "For bash, `source <(dhow completion bash)`; `make install` puts the three where their shells look.",
    positionals: &[Positional { name: "shell", help: "bash, zsh or fish", ..ID }],
    flags: &[],
    enters: false,
    run,
};

fn run(_: &Context, args: &Args) -> Result<i32> {
    match args.id() {
        "bash" => print(&bash()),
        "zsh" => print(&zsh()),
        "fish" => print(&fish()),
        other => Err(unknown("the shell", other)),
    }
}

/// The options of a command as a shell would list them.
fn words(flags: &[Flag]) -> String {
    let shown = flags.iter().filter(|flag| !flag.hidden);
    let words =
        shown.flat_map(|flag| [Some(format!("--{}", flag.long)), flag.short.map(|c| format!("-{c}"))]);
    words.flatten().collect::<Vec<_>>().join(" ")
}

/// The options whose value is the next word.
fn with_value(flags: &[Flag]) -> String {
    let with = flags.iter().filter(|flag| flag.value.is_some() && !flag.optional);
    let words = with.flat_map(|flag| [Some(format!("--{}", flag.long)), flag.short.map(|c| format!("-{c}"))]);
    words.flatten().collect::<Vec<_>>().join("|")
}

/// Whether a command's arguments are containers that are there.
fn takes_container(command: &Command) -> bool {
    let makes = ["create", "run", "restore"].contains(&command.name);
    !makes && command.positionals.first().is_some_and(|first| first.name == ID.name)
}

fn names(commands: &[Command]) -> String {
    commands.iter().filter(|one| !one.is_hidden()).map(|command| command.name).collect::<Vec<_>>().join(" ")
}

/// What is proposed in place of a first argument.
fn arguments(command: &Command) -> String {
    match command.name {
        "help" => names(COMMANDS),
        "completion" => "bash zsh fish".to_owned(),
        other => names(super::nested::commands(other)),
    }
}

fn bash() -> String {
    let mut text = format!(
        "# bash completion for dhow, made by `dhow completion bash`.\n\
         _dhow() {{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} command= root= words= ids= i\n\
         \x20   for ((i = 1; i < COMP_CWORD; i++)); do\n        case ${{COMP_WORDS[i]}} in\n\
         \x20       --root) root=${{COMP_WORDS[i+1]}}; ((i++)) ;;\n\
         \x20       {}) ((i++)) ;;\n        -*) ;;\n        *) command=${{COMP_WORDS[i]}}; break ;;\n        esac\n    done\n\
         \x20   case $command in\n    '') words='{} {}' ;;\n",
        with_value(GLOBALS),
        names(COMMANDS),
        words(GLOBALS)
    );
    for command in COMMANDS.iter().filter(|one| !one.is_hidden()) {
        let values = with_value(command.flags);
        let _ = write!(text, "    {}) words='{} {}'", command.name, arguments(command), words(command.flags));
        if takes_container(command) {
            text.push_str("; ids=1");
        }
        if !values.is_empty() {
            let _ = write!(
                text,
                "\n        case $prev in {values}) COMPREPLY=($(compgen -f -- \"$cur\")); return ;; esac"
            );
        }
        text.push_str(" ;;\n");
    }
    text.push_str(
        "    esac\n    if [[ $ids && $cur != -* ]]; then\n        words+=\" $(dhow ${root:+--root \"$root\"} list -q 2>/dev/null)\"\n    fi\n\
         \x20   COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n\
         \x20   [[ ${#COMPREPLY[@]} -gt 0 || $cur == -* ]] || COMPREPLY=($(compgen -f -- \"$cur\"))\n}\n\
         complete -o filenames -F _dhow dhow\n",
    );
    text
}

/// Text inside single quotes of a shell.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

fn zsh() -> String {
    // What _arguments takes for its own is escaped.
    let plain = |text: &str| quoted(text).replace('[', "\\[").replace(']', "\\]").replace(':', "\\:");
    let options = |flags: &[Flag]| -> String {
        let lines = flags.iter().filter(|flag| !flag.hidden).map(|flag| {
            let value = match flag.value {
                Some(value) if !flag.optional => format!(":{}:_files", plain(value)),
                _ => String::new(),
            };
            let many = if flag.many { "*" } else { "" };
            let short =
                flag.short.map(|c| format!(" '{many}-{c}[{}]{value}'", plain(flag.help))).unwrap_or_default();
            format!(" '{many}--{}[{}]{value}'{short}", flag.long, plain(flag.help))
        });
        lines.collect::<Vec<_>>().join(" \\\n            ")
    };
    let mut text = String::from(
        "#compdef dhow\n# zsh completion for dhow, made by `dhow completion zsh`.\n\
         _dhow_containers() { local -a ids; ids=(${(f)\"$(dhow list -q 2>/dev/null)\"}); compadd -a ids; }\n\
         _dhow() {\n    local curcontext=$curcontext state line\n    local -a commands\n    commands=(\n",
    );
    for command in COMMANDS.iter().filter(|one| !one.is_hidden()) {
        let _ = writeln!(text, "        '{}:{}'", command.name, plain(command.about));
    }
    let _ = write!(
        text,
        "    )\n    _arguments -C \\\n           {} \\\n        '1:command:->command' '*::argument:->arguments'\n\
         \x20   case $state in\n    command) _describe command commands ;;\n    arguments)\n        case $line[1] in\n",
        options(GLOBALS)
    );
    for command in COMMANDS.iter().filter(|one| !one.is_hidden()) {
        let own = arguments(command);
        let rest = match (takes_container(command), own.is_empty()) {
            (true, _) => "'*:container:_dhow_containers'".to_owned(),
            (false, false) => format!("'1:argument:({own})' '*:file:_files'"),
            (false, true) => "'*:file:_files'".to_owned(),
        };
        let flags = options(command.flags);
        let flags = if flags.is_empty() { flags } else { format!("{flags} \\\n            ") };
        let _ = writeln!(text, "        {}) _arguments {flags} {rest} ;;", command.name);
    }
    text + "        esac ;;\n    esac\n}\n_dhow \"$@\"\n"
}

fn fish() -> String {
    let mut text =
        String::from("# fish completion for dhow, made by `dhow completion fish`.\ncomplete -c dhow -f\n");
    let option = |condition: &str, flag: &Flag| {
        let short = flag.short.map(|c| format!(" -s {c}")).unwrap_or_default();
        let value = if flag.value.is_some() && !flag.optional { " -r -F" } else { "" };
        format!("complete -c dhow{condition} -l {}{short}{value} -d '{}'\n", flag.long, quoted(flag.help))
    };
    for flag in GLOBALS.iter().filter(|flag| !flag.hidden) {
        text.push_str(&option("", flag));
    }
    for command in COMMANDS.iter().filter(|one| !one.is_hidden()) {
        let (name, about) = (command.name, quoted(command.about));
        let _ = writeln!(text, "complete -c dhow -n __fish_use_subcommand -a {name} -d '{about}'");
        let condition = format!(" -n '__fish_seen_subcommand_from {name}'");
        for flag in command.flags.iter().filter(|flag| !flag.hidden) {
            text.push_str(&option(&condition, flag));
        }
        let own = arguments(command);
        if takes_container(command) {
            let _ = writeln!(text, "complete -c dhow{condition} -a '(dhow list -q 2>/dev/null)'");
        } else if own.is_empty() {
            let _ = writeln!(text, "complete -c dhow{condition} -F");
        } else {
            let _ = writeln!(text, "complete -c dhow{condition} -a '{own}'");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell that is not there cannot say so: braces of another language's templates.
    #[test]
    fn no_script_has_a_template_in_it() {
        for (shell, script) in [("bash", bash()), ("zsh", zsh()), ("fish", fish())] {
            assert!(!script.contains("{{") && !script.contains("}}"), "{shell}");
            assert_eq!(script.matches('{').count(), script.matches('}').count(), "{shell}");
        }
    }

    #[test]
    fn each_has_every_command_and_option() {
        for (shell, text) in [("bash", bash()), ("zsh", zsh()), ("fish", fish())] {
            for command in COMMANDS.iter().filter(|one| !one.is_hidden()) {
                assert!(text.contains(command.name), "{shell}: {}", command.name);
                for flag in command.flags.iter().filter(|flag| !flag.hidden) {
                    assert!(text.contains(flag.long), "{shell}: {} --{}", command.name, flag.long);
                }
            }
            // bash has to know that its value is no command.
            let proposed = text.lines().filter(|line| shell != "bash" || line.contains("words="));
            let proposed: String = proposed.collect();
            let is_hidden = !proposed.contains("--criu") && !proposed.contains("-l criu");
            assert!(is_hidden, "{shell}: what is hidden stays hidden");
        }
    }
}
