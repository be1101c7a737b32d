//! `dhow seccomp explain`

use super::list::print;
use super::table::{Args, Command, Positional, option, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context, ExplainRequest};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "seccomp",
    about: "Explain what a seccomp profile does",
    details: "With a configuration alone, says what its profile does on the whole. With a syscall, which \
              rules speak about it. With arguments too, what happens and which rule decides.\n\n\
              Example: dhow seccomp explain config.json personality 0xffffffff",
    positionals: &[
        Positional {
            name: "explain",
            required: true,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "what to do: the word \"explain\"",
        },
        Positional {
            name: "config",
            required: true,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "config.json, a bundle, or a profile alone",
        },
        Positional {
            name: "syscall",
            required: false,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "a syscall's name or number",
        },
        Positional {
            name: "args",
            required: false,
            required_unless: None,
            rest: true,
            greedy: false,
            many: false,
            last: false,
            help: "its arguments, decimal or 0x…",
        },
    ],
    flags: &[
        option("arch", "ARCH", "whose syscall: x86_64, x86, x32, aarch64 or arm [default: the machine's]"),
        switch("dump", "print the filter's instructions"),
    ],
    enters: false,
    run,
};

fn run(_: &Context, args: &Args) -> Result<i32> {
    if args.positional(0) != Some("explain") {
        return Err(Error::new(Class::Usage, "understand the command")
            .on(format!("seccomp {}", args.positional(0).unwrap_or_default()))
            .because("there is only `seccomp explain`"));
    }
    let request = ExplainRequest {
        config: args.positional(1).unwrap_or_default().into(),
        syscall: args.positional(2).map(str::to_owned),
        arguments: args.positionals.iter().skip(3).cloned().collect(),
        arch: args.value("arch").map(str::to_owned),
        dump: args.is_on("dump"),
    };
    print(&runtime::explain_seccomp(&request)?)
}
