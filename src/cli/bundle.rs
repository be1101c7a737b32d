//! `dhow bundle`

use super::image::store;
use super::table::{Args, Command, Positional};
use crate::error::Result;
use crate::image::bundle::bundle;
use crate::image::store::Use;
use crate::image::{Options, with_room_hint};
use crate::runtime::Context;
use std::path::Path;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "bundle",
    about: "Make a bundle of an image: config.json, and a rootfs that is an overlay of its layers",
    details: "`dhow run --bundle DIR ID` runs it. What is written goes into DIR/upper.",
    positionals: &[
        Positional {
            name: "image",
            required: true,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "the image's name",
        },
        Positional {
            name: "dir",
            required: true,
            required_unless: None,
            rest: false,
            greedy: false,
            many: false,
            last: false,
            help: "a new directory",
        },
        Positional {
            name: "command",
            required: false,
            required_unless: None,
            rest: true,
            greedy: false,
            many: false,
            last: false,
            help: "what to run in place of the image's Cmd",
        },
    ],
    flags: &[],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let image = store.find(args.id())?;
    let directory = Path::new(args.positional(1).unwrap_or_default());
    let command = args.positionals.get(2..).unwrap_or_default().to_vec();
    let options = Options { command, ..Options::default() };
    bundle(&store, &image, directory, &options).map(|()| 0).map_err(with_room_hint)
}
