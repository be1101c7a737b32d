//! `dhow run`

use super::create::{
    self, BUNDLE, CONSOLE_SOCKET, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS,
};
use super::from_image::{self, from_image};
use super::table::{Args, Command, switch};
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context, RunOptions};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "run",
    about: "Create and start a container, and stay with it until it ends",
    details: "The exit status is the payload's; 128 + N when signal N ended it. With --image the \
              container is made from an image: its own writable layer goes when it is deleted.",
    positionals: &[from_image::ID, from_image::COMMAND],
    flags: &from_image::with::<11, { 11 + from_image::COUNT }>([
        BUNDLE,
        CONSOLE_SOCKET,
        PID_FILE,
        PIDFD_SOCKET,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        switch("detach", "return as soon as the payload runs").short('d'),
        switch("keep", "leave the container there, stopped, when it has ended"),
        switch("rm", "with --detach: delete the container when it has ended; without, that is so anyway"),
        switch("no-subreaper", "taken for compatibility: dhow never becomes one").hidden(),
    ]),
    enters: true,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let (detach, keep, remove) = (args.is_on("detach"), args.is_on("keep"), args.is_on("rm"));
    if keep && remove {
        return Err(Error::new(Class::Usage, "--keep and --rm exclude each other"));
    }
    let options = RunOptions { detach, keep, remove };
    let request = create::request(args)?;
    let Some(mut from) = from_image(args)? else { return runtime::run(context, &request, options) };
    from.options.ephemeral = if detach { remove } else { !keep };
    runtime::with_image(context, &from, request, |request| {
        let status = runtime::run(context, request, options)?;
        if detach && from.id.is_none() {
            println!("{}", request.id);
        }
        Ok(status)
    })
}
