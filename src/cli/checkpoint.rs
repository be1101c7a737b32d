//! `dhow checkpoint` and `dhow restore`

use super::create::{self, BUNDLE, CONSOLE_SOCKET, NO_PIVOT, PID_FILE};
use super::number;
use super::table::{Args, Command, Flag, ID, option, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, CheckpointOptions, Context, RunOptions};
use std::path::PathBuf;

const IMAGE_PATH: Flag = option("image-path", "DIR", "where the image is [default: checkpoint]");
const WORK_PATH: Flag = option("work-path", "DIR", "where criu's logs go [default: the image's directory]");
const LINK_REMAP: Flag = switch("link-remap", "give files without a name one");
const TCP_ESTABLISHED: Flag = switch("tcp-established", "keep TCP connections");
const EXT_UNIX_SK: Flag = switch("ext-unix-sk", "allow unix sockets that lead outside");
const SHELL_JOB: Flag = switch("shell-job", "allow the session of a shell outside");
const LAZY_PAGES: Flag = switch("lazy-pages", "bring memory over when it is touched");
const FILE_LOCKS: Flag = switch("file-locks", "keep file locks");
const CGROUPS_MODE: Flag =
    option("manage-cgroups-mode", "MODE", "what criu does with cgroups: soft, full, strict or ignore");
const EMPTY_NS: Flag = option("empty-ns", "KIND", "a namespace that is taken to be empty: network").many();
const AUTO_DEDUP: Flag = switch("auto-dedup", "punch out pages that a later image has");

/// The command.
pub(super) const CHECKPOINT: Command = Command {
    name: "checkpoint",
    about: "Write the processes of a container into files, by criu",
    details: "The container goes when its processes are written, unless they are to go on.",
    positionals: &[ID],
    flags: &[
        IMAGE_PATH,
        WORK_PATH,
        option("parent-path", "DIR", "an earlier pre-dump, relative to --image-path"),
        switch("leave-running", "let the processes go on"),
        TCP_ESTABLISHED,
        switch("tcp-skip-in-flight", "leave out connections that are being made"),
        LINK_REMAP,
        EXT_UNIX_SK,
        SHELL_JOB,
        LAZY_PAGES,
        option("status-fd", "FD", "where criu says that the page server is there"),
        option("page-server", "ADDRESS:PORT", "send the memory to a page server"),
        FILE_LOCKS,
        switch("pre-dump", "write the memory alone, for a checkpoint that follows"),
        CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
    ],
    enters: false,
    run: checkpoint,
};

/// The command.
pub(super) const RESTORE: Command = Command {
    name: "restore",
    about: "Make a container from the files that checkpoint has written",
    details: "The bundle is that of the container; the exit status is as of `run`.",
    positionals: &[ID],
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PID_FILE,
        NO_PIVOT,
        IMAGE_PATH,
        WORK_PATH,
        TCP_ESTABLISHED,
        LINK_REMAP,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
        LAZY_PAGES,
        option("lsm-profile", "TYPE:NAME", "an LSM profile in place of the stored one"),
        option("lsm-mount-context", "CONTEXT", "an SELinux mount context in place of the stored one"),
        switch("detach", "return as soon as the processes run").short('d'),
        switch("no-subreaper", "taken for compatibility: dhow never becomes one").hidden(),
    ],
    enters: false,
    run: restore,
};

fn checkpoint(context: &Context, args: &Args) -> Result<i32> {
    runtime::checkpoint(context, args.id(), &options(args)?).map(|()| 0)
}

fn restore(context: &Context, args: &Args) -> Result<i32> {
    let how = RunOptions { detach: args.is_on("detach"), ..RunOptions::default() };
    runtime::restore(context, &create::request(args)?, &options(args)?, how)
}

fn options(args: &Args) -> Result<CheckpointOptions> {
    let wrong = |flag: &str, value: &str, cause: &str| {
        Error::new(Class::Usage, format!("invalid value of --{flag}")).on(format!("{value:?}")).because(cause)
    };
    let manage_cgroups = match args.value("manage-cgroups-mode") {
        None => None,
        // The values of `enum criu_cg_mode`.
        Some("ignore") => Some(0),
        Some("soft") => Some(3),
        Some("full") => Some(4),
        Some("strict") => Some(5),
        Some(other) => {
            return Err(wrong("manage-cgroups-mode", other, "it must be soft, full, strict or ignore"));
        }
    };
    let page_server = args.value("page-server").map(|text| {
        let parts =
            text.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        parts.ok_or_else(|| wrong("page-server", text, "it must be ADDRESS:PORT"))
    });
    if let Some(other) = args.values("empty-ns").iter().find(|kind| *kind != "network") {
        return Err(wrong("empty-ns", other, "only network can be"));
    }
    Ok(CheckpointOptions {
        image: args.value("image-path").map_or_else(|| PathBuf::from("checkpoint"), PathBuf::from),
        work: args.value("work-path").map(PathBuf::from),
        parent: args.value("parent-path").map(PathBuf::from),
        leave_running: args.is_on("leave-running"),
        pre_dump: args.is_on("pre-dump"),
        tcp_established: args.is_on("tcp-established"),
        tcp_skip_in_flight: args.is_on("tcp-skip-in-flight"),
        link_remap: args.is_on("link-remap"),
        external_unix_sockets: args.is_on("ext-unix-sk"),
        shell_job: args.is_on("shell-job"),
        file_locks: args.is_on("file-locks"),
        lazy_pages: args.is_on("lazy-pages"),
        status_fd: number(args, "status-fd")?,
        page_server: page_server.transpose()?,
        empty_network: !args.values("empty-ns").is_empty(),
        auto_dedup: args.is_on("auto-dedup"),
        manage_cgroups,
        lsm_profile: args.value("lsm-profile").map(str::to_owned),
        lsm_mount_context: args.value("lsm-mount-context").map(str::to_owned),
    })
}
