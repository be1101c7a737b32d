//! `dhow create`

use super::from_image::{self, from_image};
use super::number;
use super::table::{Args, Command, Flag, option, switch};
use crate::error::{Class, Error, Result};
use crate::rootfs::Pivot;
use crate::runtime::{self, Context, Request, StartedBy};
use crate::state::Supervision;
use std::path::PathBuf;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "create",
    about: "Create a container from a bundle or an image; its payload waits for `start`",
    details: "The bundle is a directory with a config.json (`dhow spec` writes one) and a rootfs. \
              With --image a bundle is made in the image store; it goes with the container.",
    positionals: &[from_image::ID, from_image::COMMAND],
    flags: &from_image::with::<8, { 8 + from_image::COUNT }>([
        BUNDLE,
        CONSOLE_SOCKET,
        PID_FILE,
        PIDFD_SOCKET,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        option("supervision", "JSON", "what the monitor that asks for it is to do").hidden(),
    ]),
    enters: true,
    run,
};

pub(super) const BUNDLE: Flag = option("bundle", "DIR", "the bundle's directory [default: .]").short('b');
pub(super) const CONSOLE_SOCKET: Flag =
    option("console-socket", "PATH", "a unix socket that gets the master end of the terminal");
pub(super) const PID_FILE: Flag = option("pid-file", "FILE", "where the process's pid is written");
pub(super) const PIDFD_SOCKET: Flag =
    option("pidfd-socket", "PATH", "a unix socket that gets a pidfd of the process");
pub(super) const NO_PIVOT: Flag =
    switch("no-pivot", "do not use pivot_root(2): for a rootfs on an initramfs");
pub(super) const NO_NEW_KEYRING: Flag = switch("no-new-keyring", "share the caller's session keyring");
pub(super) const PRESERVE_FDS: Flag =
    option("preserve-fds", "N", "how many fds after standard error the payload gets [default: 0]");

/// What the options of `create` and `run` ask for.
pub(super) fn request(args: &Args) -> Result<Request> {
    let supervision: Option<Box<Supervision>> = match args.value("supervision") {
        Some(text) => Some(serde_json::from_str(text).map_err(|error| {
            Error::new(Class::Usage, "invalid value of --supervision").because(error.to_string())
        })?),
        None => None,
    };
    Ok(Request {
        supervision,
        again: false,
        id: args.id().to_owned(),
        bundle: args.value("bundle").map_or_else(|| PathBuf::from("."), PathBuf::from),
        console_socket: args.value("console-socket").map(PathBuf::from),
        pidfd_socket: args.value("pidfd-socket").map(PathBuf::from),
        pid_file: args.value("pid-file").map(PathBuf::from),
        pivot: if args.is_on("no-pivot") { Pivot::Move } else { Pivot::Root },
        new_keyring: !args.is_on("no-new-keyring"),
        preserve_fds: number(args, "preserve-fds")?.unwrap_or(0),
        undo: Vec::new(),
        network: None,
    })
}

fn run(context: &Context, args: &Args) -> Result<i32> {
    let mut request = request(args)?;
    if let Some(supervision) = &mut request.supervision {
        supervision.monitor = runtime::caller()?;
        let undo = std::mem::take(&mut supervision.undo);
        (request.network, request.undo) = runtime::CniNetwork::split(undo, &request.id)?;
    }
    let create = |request: &Request| runtime::create(context, request, StartedBy::Start).map(|_| 0);
    let Some(from) = from_image(args)? else { return create(&request) };
    runtime::with_image(context, &from, request, |request| {
        create(request)?;
        if from.id.is_none() {
            println!("{}", request.id);
        }
        Ok(0)
    })
}
