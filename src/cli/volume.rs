//! `dhow volume`: the named volumes of containers.

use super::image::{FORMAT, QUIET, is_json, name, store, table, with_owners};
use super::list::{print, to_text};
use super::nested;
use super::table::{Args, Command, Positional, switch};
use crate::error::{Class, Result};
use crate::image::store::{Store, Use};
use crate::image::volumes::{self, Volume};
use crate::runtime::Context;
use serde_json::{Value, json};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "volume",
    about: "List and manage named volumes: `dhow volume --help` has its commands",
    details: "`--volume NAME:DIR` of `run` and `create` makes one where there is none; it begins with what \
the image has in DIR, and outlives the container. Volumes are kept in the image store.",
    positionals: &[Positional {
        required: false,
        rest: true,
        greedy: true,
        ..name("command", "create, ls, inspect or rm, and its arguments")
    }],
    flags: &[],
    enters: false,
    run: |context, args| nested::run("volume", context, args),
};

const NAMES: Positional = Positional { many: true, ..name("name", "its name; there may be more") };

const fn command(
    name: &'static str,
    about: &'static str,
    positionals: &'static [Positional],
    flags: &'static [super::table::Flag],
    run: fn(&Context, &Args) -> Result<i32>,
) -> Command {
    Command { name, about, details: "", positionals, flags, enters: false, run }
}

pub(super) const COMMANDS: &[Command] = &[
    command("create", "Make a volume, unless it is there", &[name("name", "its name")], &[], create),
    command("ls", "List the volumes", &[], &[FORMAT, QUIET], list),
    command("inspect", "Show all that is known of volumes, as JSON", &[NAMES], &[], inspect),
    command(
        "rm",
        "Remove volumes that no container has, with all that is in them",
        &[NAMES],
        &[switch("force", "one that is not there is no error").short('f')],
        |context, args| with_owners(|| remove(context, args)),
    ),
];

fn create(context: &Context, args: &Args) -> Result<i32> {
    volumes::create(&store(context, Use::Shared)?, args.id())?;
    print(&format!("{}\n", args.id()))
}

fn document(store: &Store, volume: &Volume) -> Result<Value> {
    Ok(
        json!({"name": volume.name, "created": volume.created, "mountpoint": volumes::data(store, &volume.name),
        "containers": volumes::users(store, &volume.name)?}),
    )
}

fn list(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let all = volumes::list(&store)?;
    if args.is_on("quiet") {
        return print(&all.iter().map(|volume| format!("{}\n", volume.name)).collect::<String>());
    }
    if is_json(args)? {
        let documents = all.iter().map(|volume| document(&store, volume)).collect::<Result<Vec<_>>>()?;
        return print(&to_text(serde_json::to_string(&documents))?);
    }
    let mut rows = vec![["NAME", "CREATED", "CONTAINERS"].map(str::to_owned)];
    for volume in all {
        let users = volumes::users(&store, &volume.name)?.join(", ");
        rows.push([volume.name, volume.created, users]);
    }
    print(&table(&rows))
}

fn inspect(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let documents = args.positionals.iter().map(|name| document(&store, &volumes::find(&store, name)?));
    print(&to_text(serde_json::to_string_pretty(&documents.collect::<Result<Vec<_>>>()?))?)
}

fn remove(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Exclusive)?;
    for name in &args.positionals {
        match volumes::remove(&store, name) {
            Err(error) if error.class == Class::Config && args.is_on("force") => {}
            removed => removed?,
        }
    }
    Ok(0)
}
