//! `dhow commit`

use super::image::with_owners;
use super::list::print;
use super::table::{Args, Command, ID, Positional, option, switch};
use crate::error::Result;
use crate::image::commit::CommitRequest;
use crate::image::with_room_hint;
use crate::runtime::{self, Context};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "commit",
    about: "Make an image of a container: its writable layer becomes the topmost layer",
    details: "Prints the image's id. A running container is paused meanwhile.",
    positionals: &[
        ID,
        Positional {
            name: "name",
            required: true,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "the new image's name",
        },
    ],
    flags: &[
        option(
            "change",
            "LINE",
            "change the configuration as a line of a Dockerfile does: CMD, ENTRYPOINT, ENV, \
            EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR",
        )
        .short('c')
        .many(),
        option("message", "TEXT", "what the layer is for").short('m'),
        option("author", "TEXT", "who made it").short('a'),
        switch("no-pause", "do not pause the container"),
    ],
    enters: false,
    run: |context, args| with_owners(|| run(context, args)),
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let text = |name: &str| args.value(name).unwrap_or_default().to_owned();
    let request =
        CommitRequest { message: text("message"), author: text("author"), changes: args.values("change") };
    let name = runtime::image_name(args.positional(1).unwrap_or_default())?;
    let image = runtime::commit(context, args.id(), &name, &request, !args.is_on("no-pause"))
        .map_err(with_room_hint)?;
    print(&format!("{}\n", image.id))
}
