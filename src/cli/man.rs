//! man/dhow.8, made from the table of commands so that it cannot lie. `DHOW_WRITE=1 cargo test
//! --lib man` writes it anew.

use super::table::{Command, Flag};
use super::{COMMANDS, GLOBALS};
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

const TAIL: &str = r".SH EXIT STATUS
0 on success;
.B run
and
.B exec
answer the payload's own status, 128 + N when signal N ended it.
1 when dhow failed, 255 when
.B exec
did. The reason is one line on standard error and in the log.
.SH FILES
.TP
.I /run/dhow
The state of containers; for users
.IR $XDG_RUNTIME_DIR/dhow .
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

fn command(page: &mut String, prefix: &str, command: &Command) {
    let positionals: String = command
        .positionals
        .iter()
        .map(|positional| {
            let dots = if positional.rest || positional.many { "…" } else { "" };
            let name = escaped(positional.name);
            if positional.last {
                format!(" [\\-\\- \\fI{name}\\fR{dots}]")
            } else if positional.required && positional.required_unless.is_none() {
                format!(" \\fI{name}\\fR{dots}")
            } else {
                format!(" [\\fI{name}\\fR{dots}]")
            }
        })
        .collect();
    let _ = writeln!(
        page,
        ".SS \\fB{prefix}{}\\fR [options]{positionals}\n{}.",
        command.name,
        escaped(command.about)
    );
    if !command.details.is_empty() {
        let _ = writeln!(page, "{}", escaped(command.details));
    }
    flags(page, command.flags);
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str(".SH GLOBAL OPTIONS\n");
    flags(&mut page, GLOBALS);
    page.push_str(".SH COMMANDS\n");
    for one in COMMANDS {
        command(&mut page, "", one);
        if one.name == "image" {
            for part in super::image::COMMANDS {
                command(&mut page, "image ", part);
            }
        }
    }
    page + TAIL
}

#[test]
fn the_man_page_is_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man/dhow.8");
    if std::env::var_os("DHOW_WRITE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let is_current = std::fs::read_to_string(path).unwrap() == page();
    assert!(is_current, "run `DHOW_WRITE=1 cargo test --lib man`");
}
