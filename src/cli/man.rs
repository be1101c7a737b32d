//! man/, made from the table of commands so that it cannot lie: dhow.8, the overview, and a page for
//! every command. `DHOW_WRITE=1 cargo test --lib man` writes them anew.

use super::table::{Command, Flag};
use super::{COMMANDS, GLOBALS};
use std::collections::BTreeMap;
use std::fmt::Write;

const HEAD: &str = r#".TH DHOW 8 "" "dhow" "Container runtime"
.SH NAME
dhow \- a low-level OCI runtime
.SH SYNOPSIS
.B dhow
.RI [ "global options" ]
.I command
.RI [ options ]
.RI [ arguments ]
.SH DESCRIPTION
.B dhow
creates and runs containers from bundles: directories with a configuration,
.IR config.json ,
and a root filesystem, as the Open Container Initiative's runtime specification describes them.
Engines call it in place of
.BR runc (8);
its commands, options, output and exit codes are runc's.
.PP
Options may stand before and after arguments, as
.BI \-\-name= value
or
.BI \-\-name " value" ,
and with one dash as well as with two.
"#;

const STATUS: &str = r".SH EXIT STATUS
0 on success;
.B run
and
.B exec
answer the payload's own status, 128 + N when signal N ended it.
1 when dhow failed, 255 when
.B exec
did. The reason is one line on standard error and in the log.
";

const TAIL: &str = r".SH FILES
.TP
.I /run/dhow
The state of containers; for users
.IR $XDG_RUNTIME_DIR/dhow .
.TP
.I /var/lib/dhow/images
Images; for users
.I $XDG_DATA_HOME/dhow/images
or
.IR ~/.local/share/dhow/images .
.SH SEE ALSO
.BR namespaces (7),
.BR cgroups (7),
.BR capabilities (7),
.BR seccomp (2)
";

/// Text with what roff would take for its own escaped.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn flags(page: &mut String, flags: &[Flag]) {
    for flag in flags.iter().filter(|flag| !flag.hidden) {
        let short = flag.short.map(|short| format!("\\-{short}, ")).unwrap_or_default();
        let value = match flag.value {
            Some(value) if flag.optional => format!("[=\\fI{}\\fR]", escaped(value)),
            Some(value) => format!(" \\fI{}\\fR", escaped(value)),
            None => String::new(),
        };
        let _ =
            writeln!(page, ".TP\n\\fB{short}\\-\\-{}\\fR{value}\n{}", escaped(flag.long), escaped(flag.help));
    }
}

fn positionals(command: &Command) -> String {
    let one = |positional: &super::table::Positional| {
        let dots = if positional.rest || positional.many { "…" } else { "" };
        let name = escaped(positional.name);
        if positional.last {
            format!(" [\\-\\- \\fI{name}\\fR{dots}]")
        } else if positional.required && positional.required_unless.is_none() {
            format!(" \\fI{name}\\fR{dots}")
        } else {
            format!(" [\\fI{name}\\fR{dots}]")
        }
    };
    command.positionals.iter().map(one).collect()
}

/// A command of `image` or `volume`, as a section of its page.
fn part(page: &mut String, command: &Command) {
    let (name, about) = (command.name, escaped(command.about));
    let _ = writeln!(page, ".SS \\fB{name}\\fR [options]{}\n{about}.", positionals(command));
    if !command.details.is_empty() {
        let _ = writeln!(page, "{}", escaped(command.details));
    }
    flags(page, command.flags);
}

fn page(command: &Command) -> String {
    let name = command.name;
    let mut page = format!(
        ".TH DHOW\\-{} 8 \"\" \"dhow\" \"Container runtime\"\n.SH NAME\ndhow\\-{name} \\- {}\n.SH SYNOPSIS\n\
         \\fBdhow {name}\\fR [options]{}\n.SH DESCRIPTION\n{}.\n",
        name.to_uppercase(),
        escaped(&command.about.to_lowercase()),
        positionals(command),
        escaped(command.about)
    );
    if !command.details.is_empty() {
        let _ = writeln!(page, "{}", escaped(command.details));
    }
    let arguments: Vec<_> = command.positionals.iter().filter(|one| !one.help.is_empty()).collect();
    if !arguments.is_empty() {
        page.push_str(".SH ARGUMENTS\n");
        for one in arguments {
            let _ = writeln!(page, ".TP\n\\fI{}\\fR\n{}", escaped(one.name), escaped(one.help));
        }
    }
    if command.flags.iter().any(|flag| !flag.hidden) {
        page.push_str(".SH OPTIONS\nThe global options are in\n.BR dhow (8).\n");
        flags(&mut page, command.flags);
    }
    let commands = super::nested::commands(name);
    if !commands.is_empty() {
        page.push_str(".SH COMMANDS\n");
        commands.iter().for_each(|command| part(&mut page, command));
    }
    page.push_str(STATUS);
    page + ".SH SEE ALSO\n.BR dhow (8)\n"
}

fn overview() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(".SH GLOBAL OPTIONS\n");
    flags(&mut page, GLOBALS);
    page.push_str(".SH COMMANDS\nEach has a page of its own.\n");
    for one in COMMANDS.iter().filter(|one| !one.is_hidden()) {
        let _ = writeln!(page, ".TP\n.BR dhow\\-{} (8)\n{}", one.name, escaped(one.about));
    }
    page + STATUS + TAIL
}

#[test]
fn the_man_pages_are_current() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let mut pages = BTreeMap::from([("dhow.8".to_owned(), overview())]);
    let shown = COMMANDS.iter().filter(|one| !one.is_hidden());
    pages.extend(shown.map(|command| (format!("dhow-{}.8", command.name), page(command))));
    if std::env::var_os("DHOW_WRITE").is_some() {
        for (name, page) in &pages {
            std::fs::write(directory.join(name), page).unwrap();
        }
    }
    let written: BTreeMap<String, String> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    let names = |pages: &BTreeMap<String, String>| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&written), names(&pages), "run `DHOW_WRITE=1 cargo test --lib man`");
    for (name, page) in &pages {
        assert!(&written[name] == page, "{name}: run `DHOW_WRITE=1 cargo test --lib man`");
    }
}
