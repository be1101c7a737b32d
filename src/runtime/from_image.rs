//! A container from an image: the image is found or imported, a bundle is made of it in the image
//! store, and from there on it is a container as any other.

use super::cni::Network;
use super::container::Context;
use super::create::Request;
use super::joined::running;
use crate::cgroups::Driver;
use crate::error::{Class, Error, Result};
use crate::image::documents::Platform;
use crate::image::store::{Image, Store, Use};
use crate::image::{
    Backing, ImportRequest, Imported, Limits, Options, Reference, container, import, owners, with_room_hint,
};
use crate::state::Undo;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is asked of `create --image` and `run --image`.
#[derive(Debug, Clone, Default)]
pub struct FromImage {
    /// The image's name, or the path of an archive or a layout that is imported first.
    pub image: String,
    /// The container's id; one is made up when there is none.
    pub id: Option<String>,
    /// How the container differs from what the image says.
    pub options: Options,
    /// `none`, `host`, `container:ID` or `cni:NAME`.
    pub network: Option<String>,
    /// Where CNI networks are described.
    pub cni_directory: Option<PathBuf>,
    /// Ports: `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`.
    pub publish: Vec<String>,
    /// The cgroup that the container's is made in: a path, or with systemd a slice.
    pub cgroup_parent: Option<String>,
    /// Which image of an archive or a layout; this machine's when nothing is said.
    pub platform: Option<Platform>,
}

/// Makes a bundle of an image and goes on with it. When that fails, the bundle goes too.
///
/// # Errors
/// Those of the image, of the options, and of what is done with the bundle.
pub fn with_image<T>(
    context: &Context,
    from: &FromImage,
    request: Request,
    go: impl FnOnce(&Request) -> Result<T>,
) -> Result<T> {
    let request = prepare(context, from, request).map_err(with_room_hint)?;
    let result = go(&request);
    // What has a record is taken back by that.
    if result.is_err() && context.store.check_free(&request.id).is_ok() {
        let _ = container::remove(&request.bundle);
    }
    result
}

fn prepare(context: &Context, from: &FromImage, request: Request) -> Result<Request> {
    let id = match &from.id {
        Some(id) => id.clone(),
        None => free_name(context)?,
    };
    context.store.check_free(&id)?;
    let mut options = from.options.clone();
    refuse_maps_without_rights(context, &options)?;
    if let Some(other) = options.pid.as_deref().and_then(|asked| asked.strip_prefix("container:")) {
        refuse_to_share(context, "processes", other)?;
    }
    let network = network(context, from, &mut options)?;
    options.cgroups_path =
        from.cgroup_parent.as_deref().map(|parent| cgroup(context, parent, &id)).transpose()?;
    let store = Store::open(&context.images, Use::Shared)?;
    let platform = from.platform.clone().unwrap_or_else(Platform::host);
    let image = find(&store, &from.image, &platform)?;
    let bundle = container::make(&store, &image, &id, &options)?;
    Ok(Request { id, undo: vec![Undo::Directory(bundle.clone())], bundle, network, ..request })
}

/// Without root's rights a container has a user namespace anyway, with the ids that are the user's.
fn refuse_maps_without_rights(context: &Context, options: &Options) -> Result<()> {
    let asked = options.userns.as_deref().is_some_and(|asked| !matches!(asked, "host" | ""));
    match context.rootless && (asked || !options.uid_maps.is_empty() || !options.gid_maps.is_empty()) {
        true => Err(Error::new(Class::Unsupported, "choose the ids of the user namespace").because(
            "without root's rights they are those of /etc/subuid and /etc/subgid, and nothing is asked for",
        )),
        false => Ok(()),
    }
}

fn network(context: &Context, from: &FromImage, options: &mut Options) -> Result<Option<Network>> {
    let asked = from.network.as_deref().unwrap_or("none");
    if let Some(name) = asked.strip_prefix("cni:") {
        if context.rootless {
            return Err(Error::new(Class::Unsupported, "join a CNI network")
                .on(name)
                .because("its plugins change the host's network, which takes root's rights")
                .hint("give --network none or --network host"));
        }
        return Network::find(name, from.cni_directory.as_deref(), &from.publish).map(Some);
    }
    if !from.publish.is_empty() {
        return Err(Error::new(Class::Usage, "publish a port")
            .on(format!("--network {asked}"))
            .because("only a CNI network can publish ports")
            .hint("give --network cni:NAME too"));
    }
    if let Some(other) = asked.strip_prefix("container:") {
        share_network(context, from, other, options)?;
        return Ok(None);
    }
    match asked {
        "none" => {}
        "host" => options.host_network = true,
        other => {
            return Err(Error::new(Class::Usage, "unknown value of --network")
                .on(format!("{other:?}"))
                .hint("it is none, host, container:ID or cni:NAME"));
        }
    }
    Ok(None)
}

fn refuse_to_share(context: &Context, what: &str, other: &str) -> Result<()> {
    if !context.rootless {
        return Ok(());
    }
    Err(Error::new(Class::Unsupported, format!("share the {what} of another container"))
        .on(other)
        .because(format!("without root's rights each container has a user namespace, which owns its {what}")))
}

/// Has the container be in the network of another, with that one's name and /etc/hosts.
fn share_network(context: &Context, from: &FromImage, other: &str, options: &mut Options) -> Result<()> {
    refuse_to_share(context, "network", other)?;
    let own = [
        ("hostname", options.hostname.is_some()),
        ("dns", !options.dns.is_empty()),
        ("dns-search", !options.dns_search.is_empty()),
        ("add-host", !options.add_hosts.is_empty()),
    ];
    if let Some((option, _)) = own.iter().find(|(_, is_given)| *is_given) {
        return Err(Error::new(Class::Usage, format!("--{option} and --network container:{other}"))
            .because("exclude each other: the names are those of the other container"));
    }
    let id = from.id.as_deref().unwrap_or_default();
    let place = container::directory(&context.images, &running(context, id, "network", other)?.record.id);
    options.hostname = Some(container::hostname(&place).unwrap_or_else(|| other.to_owned()));
    options.etc_of = Some(place).filter(|place| place.join("hosts").exists());
    options.joins.insert("network".into(), other.to_owned());
    Ok(())
}

/// `linux.cgroupsPath` for `--cgroup-parent`.
fn cgroup(context: &Context, parent: &str, id: &str) -> Result<String> {
    let refuse = |cause: &str, hint: &str| {
        Err(Error::new(Class::Usage, "invalid value of --cgroup-parent")
            .on(format!("{parent:?}"))
            .because(cause.to_owned())
            .hint(hint.to_owned()))
    };
    match context.cgroups {
        Driver::Systemd if !parent.ends_with(".slice") || parent.contains(['/', ':']) => {
            refuse("systemd makes the cgroups, and it is no slice", "give the name of one: batch.slice")
        }
        Driver::Systemd => Ok(format!("{parent}:dhow:{id}")),
        _ if parent.trim_matches('/').is_empty() => {
            refuse("it is the root, in which containers are anyway", "give a path: /batch")
        }
        // Docker counts it from the root. Without root's rights nothing can be made there.
        _ if context.rootless => Ok(format!("{}/{id}", parent.trim_matches('/'))),
        _ => Ok(format!("/{}/{id}", parent.trim_matches('/'))),
    }
}

/// An image by its name; what looks like a path, or is one and no name, is imported first.
fn find(store: &Store, name: &str, platform: &Platform) -> Result<Image> {
    let transported = ["oci:", "docker-archive:"].iter().find_map(|transport| name.strip_prefix(transport));
    let is_path = transported.is_some() || name.starts_with(['/', '.']);
    let path = Path::new(transported.unwrap_or(name));
    if !is_path {
        return match store.find(name) {
            Err(error) if error.class == Class::Config && path.exists() => bring(store, path, platform),
            found => found,
        };
    }
    bring(store, path, platform)
}

/// Imports the one image of an archive or a layout.
fn bring(store: &Store, path: &Path, platform: &Platform) -> Result<Image> {
    let request = |name| ImportRequest {
        from: path.to_owned(),
        name,
        platform: platform.clone(),
        limits: Limits::default(),
        backing: Backing::default(),
        progress: Arc::default(),
    };
    let import_all = || match import(store, &request(None)) {
        // It has no name of its own: its file's has to do.
        Err(error) if error.class == Class::Usage => {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            import(store, &request(Some(Reference::parse(&stem.to_lowercase())?)))
        }
        imported => imported,
    };
    // Image by image, their names.
    let imported = owners::as_root(|| {
        let names = |one: &Imported| one.names.iter().map(|name| format!("{name} ")).collect::<String>();
        import_all().map(|all| all.iter().map(|one| names(one) + "\n").collect())
    })?;
    match &imported.lines().collect::<Vec<_>>()[..] {
        [only] => store.find(only.split(' ').next().unwrap_or_default()),
        several => {
            let names: Vec<&str> = several.iter().flat_map(|line| line.split_whitespace()).collect();
            Err(Error::new(Class::Usage, "there is more than one image")
                .on(path.display().to_string())
                .because(format!("all are imported now: {}", names.join(", ")))
                .hint("give one of these names"))
        }
    }
}

/// A name that no container has.
fn free_name(context: &Context) -> Result<String> {
    const HOW: [&str; 16] = [
        "agile", "brave", "bright", "calm", "clever", "eager", "gentle", "happy", "keen", "kind", "lively",
        "merry", "nimble", "quiet", "swift", "witty",
    ];
    const WHO: [&str; 16] = [
        "badger", "crane", "dolphin", "falcon", "heron", "ibex", "lynx", "marten", "newt", "otter", "puffin",
        "raven", "seal", "stoat", "tern", "wren",
    ];
    use std::hash::BuildHasher;
    for _ in 0..100 {
        // Seeded by the kernel's random numbers; a name has to be free, not secret.
        let number = std::hash::RandomState::new().hash_one(std::process::id());
        let pick =
            |shift: usize, list: [&'static str; 16]| list[usize::from(number.to_le_bytes()[shift] % 16)];
        let name = format!("{}-{}-{:04x}", pick(0, HOW), pick(1, WHO), (number >> 16) & 0xffff);
        let place = container::directory(&context.images, &name);
        if context.store.check_free(&name).is_ok() && !place.exists() {
            return Ok(name);
        }
    }
    Err(Error::new(Class::Internal, "find a free name for the container"))
}
