//! `dhow image`: commands of its own, in a table of their own.

use super::list::{print, to_text};
use super::progress::Bar;
use super::registry;
use super::table::{Args, Command, Flag, Positional, option, switch};
use super::{nested, unknown};
use crate::error::{Class, Error, Result};
use crate::image::documents::Platform;
use crate::image::store::Use;
use crate::image::{
    Backing, ImportRequest, Imported, Limits, Reference, Store, bundle, container, import, manage, owners,
    save,
};
use crate::runtime::{self, Context};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "image",
    about: "Import, list and manage images: `dhow image --help` has its commands",
    details: "Names are Docker's: debian is docker.io/library/debian:latest. Images are kept in \
/var/lib/dhow/images, an ordinary user's in $XDG_DATA_HOME/dhow/images or \
~/.local/share/dhow/images, and with --root below that. \
pull and push use the credentials that `docker login` or `podman login` stored, and \
/etc/dhow/registries.json for mirrors.",
    positionals: &[Positional {
        name: "command",
        required: false,
        required_unless: None,
        rest: true,
        greedy: true,
        many: false,
        last: false,
        help: "import, pull, push, ls, inspect, history, tag, rm, gc, verify, du, unpack or save, and its arguments",
    }],
    flags: &[],
    enters: false,
    run: |context, args| nested::run("image", context, args),
};

pub(super) const FORMAT: Flag = option("format", "FORMAT", "table or json [default: table]");
const BACKING: Flag = option(
    "backing",
    "KIND",
    "how layers are kept: dir unpacks them; erofs points into plain archives (root, Linux 6.12); auto tries [default: dir]",
);
pub(super) const QUIET: Flag = switch("quiet", "print ids only").short('q');

pub(super) const fn name(name: &'static str, help: &'static str) -> Positional {
    Positional {
        name,
        required: true,
        required_unless: None,
        rest: false,
        greedy: false,
        many: false,
        last: false,
        help,
    }
}

const IMAGE: Positional = name("image", "its name, its digest, or the beginning of its id");

const fn command(
    name: &'static str,
    about: &'static str,
    positionals: &'static [Positional],
    flags: &'static [Flag],
    run: fn(&Context, &Args) -> Result<i32>,
) -> Command {
    Command { name, about, details: "", positionals, flags, enters: false, run }
}

pub(super) const COMMANDS: &[Command] = &[
    command(
        "import",
        "Take an OCI layout (directory or archive) or a docker save archive into the store",
        &[name("from", "a directory, an archive, or - for standard input")],
        &[
            option("name", "NAME", "what the image is called here [default: its own name]"),
            option("platform", "OS/ARCH", "which image of several [default: this machine's]"),
            option("max-layer-size", "BYTES", "the most that a layer may have unpacked [default: 64 GiB]"),
            option("max-ratio", "N", "how many times its own size a layer may have unpacked [default: 200]"),
            BACKING,
            FORMAT,
            QUIET,
        ],
        |context, args| with_owners(|| import_image(context, args)),
    ),
    command(
        "pull",
        "Fetch an image from a registry",
        &[name("name", "its name; a digest asks for exactly that one")],
        &[
            option("platform", "OS/ARCH", "which image of several [default: this machine's]"),
            registry::MIRROR,
            registry::CA_FILE,
            registry::PLAIN_HTTP,
            BACKING,
            FORMAT,
            QUIET,
        ],
        |context, args| with_owners(|| registry::pull(context, args)),
    ),
    command(
        "push",
        "Send an image to a registry",
        &[
            IMAGE,
            Positional { required: false, ..name("name", "what it is called there [default: its name]") },
        ],
        &[registry::CA_FILE, registry::PLAIN_HTTP, FORMAT, QUIET],
        registry::push,
    ),
    command("ls", "List the images", &[], &[FORMAT, QUIET], list),
    command("inspect", "Show all that is known of an image, as JSON", &[IMAGE], &[], inspect),
    command("history", "Show how an image was made", &[IMAGE], &[FORMAT, QUIET], history),
    command(
        "tag",
        "Give an image another name",
        &[IMAGE, name("name", "the new name")],
        &[FORMAT, QUIET],
        tag,
    ),
    command(
        "rm",
        "Remove names; `gc` removes what no name leads to",
        &[Positional { many: true, ..IMAGE }],
        &[switch("force", "all names of an image that is given by its id").short('f'), FORMAT, QUIET],
        untag,
    ),
    command("gc", "Remove blobs and layers that no name leads to", &[], &[FORMAT, QUIET], |context, args| {
        with_owners(|| collect(context, args))
    }),
    command(
        "verify",
        "Read an image's blobs again, and check every digest",
        &[IMAGE],
        &[FORMAT, QUIET],
        verify,
    ),
    command("du", "Show what images take on disk", &[], &[FORMAT], usage),
    command(
        "unpack",
        "Write an image's files into a new directory, apart from the store",
        &[IMAGE, name("dir", "a new directory")],
        &[],
        |context, args| {
            let directory = args.positional(1).unwrap_or_default();
            runtime::unpack(context, args.id(), directory.as_ref()).map(|()| 0)
        },
    ),
    command(
        "save",
        "Write an image as an archive that is an OCI layout and a docker save archive at once",
        &[IMAGE],
        &[option("output", "FILE", "where to [default: standard output]").short('o'), FORMAT, QUIET],
        save_image,
    ),
];

/// Has a command deal with files of all owners, which a user without root's rights has elsewhere.
pub(super) fn with_owners(work: impl FnOnce() -> Result<i32>) -> Result<i32> {
    let code = owners::as_root(|| work().map(|code| code.to_string()))?;
    code.parse().map_err(|_| Error::new(Class::Internal, "tell the exit code"))
}

/// The store of this call.
pub(super) fn store(context: &Context, how: Use) -> Result<Store> {
    Store::open(&context.images, how)
}

pub(super) fn is_json(args: &Args) -> Result<bool> {
    match args.value("format") {
        None | Some("table") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(unknown("--format", other)),
    }
}

/// The platform that is asked for.
pub(super) fn platform(args: &Args) -> Result<Option<Platform>> {
    let parsed = |text| Platform::parse(text).ok_or_else(|| unknown("--platform", text));
    args.value("platform").map(parsed).transpose()
}

fn import_image(context: &Context, args: &Args) -> Result<i32> {
    let defaults = Limits::default();
    let limits = Limits {
        layer: super::number(args, "max-layer-size")?.unwrap_or(defaults.layer),
        ratio: super::number::<u64>(args, "max-ratio")?.unwrap_or(defaults.ratio).max(1),
        ..defaults
    };
    let from = args.positional(0).unwrap_or_default();
    let from = from.strip_prefix("oci:").or_else(|| from.strip_prefix("docker-archive:")).unwrap_or(from);
    let request = ImportRequest {
        from: PathBuf::from(from),
        name: args.value("name").map(runtime::image_name).transpose()?,
        platform: platform(args)?.unwrap_or_else(Platform::host),
        limits,
        backing: backing(args)?,
        progress: Arc::default(),
    };
    let store = store(context, Use::Shared)?;
    let bar = Bar::start(&request.progress, args);
    let all = import(&store, &request);
    drop(bar);
    imported(&all?, args)
}

/// Says what came.
pub(super) fn imported(all: &[Imported], args: &Args) -> Result<i32> {
    let json = is_json(args)?;
    let mut text = String::new();
    for image in all {
        let names: Vec<String> = image.names.iter().map(ToString::to_string).collect();
        let (id, layers, shared) = (image.id, image.layers, image.shared);
        text += &if args.is_on("quiet") {
            format!("{id}\n")
        } else if json {
            let document = json!({"names": names, "digest": image.manifest, "id": id,
                "layers": layers, "shared": shared});
            format!("{document}\n")
        } else {
            format!("{}: {layers} layers, {shared} of them there already, {id}\n", names.join(", "))
        };
    }
    print(&text)
}

pub(super) fn backing(args: &Args) -> Result<Backing> {
    match args.value("backing") {
        None | Some("dir") => Ok(Backing::Directory),
        Some("erofs") => Ok(Backing::Erofs),
        Some("auto") => Ok(Backing::Auto),
        Some(other) => Err(unknown("--backing", other)),
    }
}

fn list(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let mut rows = vec![["NAME", "ID", "LAYERS", "SIZE", "CREATED"].map(str::to_owned)];
    let mut documents = Vec::new();
    for tag in store.tags()? {
        let image = store.image(&tag)?;
        let created = image.config.created.clone().unwrap_or_default();
        let layers = image.manifest.layers.len();
        documents
            .push(json!({"name": image.name, "id": image.id(), "digest": image.digest, "layers": layers,
            "size": image.size(), "created": created}));
        let shown = Reference::parse(&image.name)?.familiar();
        rows.push([
            shown,
            image.id().hex()[..12].to_owned(),
            layers.to_string(),
            bytes(image.size()),
            created,
        ]);
    }
    if args.is_on("quiet") {
        let ids: BTreeSet<String> =
            documents.iter().filter_map(|one| Some(one["id"].as_str()?.to_owned() + "\n")).collect();
        return print(&ids.into_iter().collect::<String>());
    }
    if is_json(args)? {
        return print(&to_text(serde_json::to_string(&documents))?);
    }
    print(&table(&rows))
}

/// Rows in columns that are as wide as their widest cell.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0) + 2;
    let line = |row: &[String; N]| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:0$}", width(column)));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn bytes(count: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10;
    while tenths >= 10_000 && unit + 1 < units.len() {
        tenths /= 1000;
        unit += 1;
    }
    match unit {
        0 => format!("{count} B"),
        _ => format!("{}.{} {}", tenths / 10, tenths % 10, units[unit]),
    }
}

fn inspect(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let image = store.find(args.id())?;
    let config: serde_json::Value =
        crate::image::documents::parse(&store.document(image.id())?, "configuration")?;
    let layers: Vec<_> = store.layer_ids(&image.config)?.iter().map(|id| store.tree(*id)).collect();
    let document = json!({"name": image.name, "digest": image.digest, "id": image.id(), "size": image.size(),
        "manifest": image.manifest, "config": config, "layers": layers});
    print(&to_text(serde_json::to_string_pretty(&document))?)
}

fn history(context: &Context, args: &Args) -> Result<i32> {
    let image = store(context, Use::Shared)?.find(args.id())?;
    let steps = image.config.history.clone().unwrap_or_default();
    if is_json(args)? {
        return print(&to_text(serde_json::to_string(&steps))?);
    }
    let mut layers = image.manifest.layers.iter();
    let mut rows = Vec::new();
    for step in &steps {
        let size = if step.empty_layer { 0 } else { layers.next().map_or(0, |layer| layer.size) };
        let by: String =
            step.created_by.clone().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        rows.push([step.created.clone().unwrap_or_default(), bytes(size), printable(&by)]);
    }
    rows.push(["CREATED", "SIZE", "CREATED BY"].map(str::to_owned));
    rows.reverse();
    print(&table(&rows))
}

/// Without what a terminal would obey: an image's words are not ours.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn tag(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let image = store.find(args.id())?;
    let name = runtime::image_name(args.positional(1).unwrap_or_default())?;
    let json = is_json(args)?;
    store.tag(&name, image.digest)?;
    told(args, json, &json!({"name": name.to_string(), "digest": image.digest, "id": image.id()}))
}

/// What was done, for a program that asks for it; people need no more than success.
fn told(args: &Args, json: bool, document: &serde_json::Value) -> Result<i32> {
    if json && !args.is_on("quiet") { print(&format!("{document}\n")) } else { Ok(0) }
}

fn untag(context: &Context, args: &Args) -> Result<i32> {
    let (store, json) = (store(context, Use::Shared)?, is_json(args)?);
    for word in &args.positionals {
        let names = store.names(word)?;
        if names.len() > 1 && !args.is_on("force") {
            let names: Vec<String> = names.iter().map(Reference::familiar).collect();
            return Err(Error::new(Class::WrongState, "remove an image")
                .on(word)
                .because(format!("it has several names: {}", names.join(", ")))
                .hint("give one of them, or --force for all"));
        }
        for name in names {
            store.untag(&name)?;
            told(args, json, &json!({"name": name.to_string()}))?;
        }
    }
    Ok(0)
}

fn collect(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Exclusive)?;
    container::clear_half_made(&store);
    let collected = manage::collect(&store, &bundle::kept(&store)?)?;
    if args.is_on("quiet") {
        return Ok(0);
    }
    if is_json(args)? {
        return print(&to_text(serde_json::to_string(&collected))?);
    }
    let manage::Collected { blobs, layers, blob_bytes } = collected;
    print(&format!("{blobs} blobs ({}) and {layers} layers removed\n", bytes(blob_bytes)))
}

fn verify(context: &Context, args: &Args) -> Result<i32> {
    let json = is_json(args)?;
    let store = store(context, Use::Shared)?;
    manage::verify(&store, args.id())?;
    match (args.is_on("quiet"), json) {
        (true, _) => Ok(0),
        (false, true) => print(&format!("{}\n", json!({"name": args.id(), "right": true}))),
        (false, false) => print("every digest is right\n"),
    }
}

fn usage(context: &Context, args: &Args) -> Result<i32> {
    let all = manage::usage(&store(context, Use::Shared)?)?;
    if is_json(args)? {
        return print(&to_text(serde_json::to_string(&all))?);
    }
    let mut rows = vec![["NAME", "BLOBS", "UNPACKED", "ITS OWN"].map(str::to_owned)];
    rows.extend(all.into_iter().map(|one| [one.name, bytes(one.blobs), bytes(one.layers), bytes(one.own)]));
    print(&table(&rows))
}

fn save_image(context: &Context, args: &Args) -> Result<i32> {
    let store = store(context, Use::Shared)?;
    let (image, json) = (store.find(args.id())?, is_json(args)?);
    match args.value("output") {
        None | Some("-") if json => Err(Error::new(Class::Usage, "save an image")
            .on("--format json")
            .because("standard output is the archive's")
            .hint("give --output FILE too")),
        None | Some("-") => save::save(&store, &image, std::io::stdout().lock()).map(|()| 0),
        Some(path) => {
            let size = save::save_as(&store, &image, path.as_ref())?;
            told(
                args,
                json,
                &json!({"name": image.name, "digest": image.digest, "output": path, "size": size}),
            )
        }
    }
}
