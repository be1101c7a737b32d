//! `dhow exec`

use super::create::{CONSOLE_SOCKET, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS};
use super::number;
use super::table::{Args, Command, ID, Positional, option, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context, ExecRequest};
use std::path::PathBuf;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "exec",
    about: "Run another process in a running container",
    details: "The exit status is the process's; 128 + N when signal N ended it; 255 when dhow could not run it.",
    positionals: &[
        ID,
        Positional {
            name: "command",
            required: false,
            required_unless: None,
            rest: true,
            greedy: false,
            many: false,
            last: false,
            help: "the program and its arguments",
        },
    ],
    flags: &[
        option("process", "FILE", "a file with the process, as JSON").short('p'),
        switch("tty", "give it a terminal").short('t'),
        switch("detach", "return as soon as it runs").short('d'),
        option("cwd", "DIR", "its working directory"),
        option("env", "NAME=VALUE", "add to its environment").short('e').many(),
        option("user", "UID[:GID]", "who it runs as").short('u'),
        option("additional-gids", "GID", "add a supplementary group").short('g').many(),
        option("cap", "CAPABILITY", "add a capability").short('c').many(),
        switch("no-new-privs", "set noNewPrivileges"),
        option("process-label", "LABEL", "its SELinux label"),
        option("apparmor", "PROFILE", "its AppArmor profile"),
        option("cgroup", "PATH", "run it in a cgroup below the container's").many(),
        switch("ignore-paused", "also into a paused container, where it waits"),
        CONSOLE_SOCKET,
        PID_FILE,
        PIDFD_SOCKET,
        PRESERVE_FDS,
    ],
    enters: true,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let process = args.value("process").map(PathBuf::from);
    let command: Vec<String> = args.positionals.iter().skip(1).cloned().collect();
    match (&process, command.is_empty()) {
        (None, true) => {
            return Err(Error::new(Class::Usage, "process args cannot be empty")
                .hint("give a command after the container's id, or --process"));
        }
        (Some(_), false) => {
            return Err(Error::new(Class::Usage, "a command and --process exclude each other"));
        }
        _ => {}
    }
    let gids = args.values("additional-gids").into_iter().map(|text| {
        text.parse().map_err(|_| {
            Error::new(Class::Usage, "invalid value of --additional-gids").on(format!("{text:?}"))
        })
    });
    let request = ExecRequest {
        process,
        args: command,
        tty: args.is_on("tty"),
        user: args.value("user").map(str::to_owned),
        cwd: args.value("cwd").map(str::to_owned),
        env: args.values("env"),
        capabilities: args.values("cap"),
        additional_gids: gids.collect::<Result<_>>()?,
        no_new_privileges: args.is_on("no-new-privs"),
        apparmor: args.value("apparmor").map(str::to_owned),
        selinux_label: args.value("process-label").map(str::to_owned),
        detach: args.is_on("detach"),
        pid_file: args.value("pid-file").map(PathBuf::from),
        console_socket: args.value("console-socket").map(PathBuf::from),
        pidfd_socket: args.value("pidfd-socket").map(PathBuf::from),
        preserve_fds: number(args, "preserve-fds")?.unwrap_or(0),
        cgroups: args.values("cgroup"),
        ignore_paused: args.is_on("ignore-paused"),
    };
    runtime::exec(context, args.id(), &request)
}
