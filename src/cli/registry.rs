//! `dhow image pull` and `dhow image push`.

use super::image::{backing, imported, is_json, platform, store};
use super::table::{Args, Flag, option, switch};
use crate::error::Result;
use crate::image::documents::Platform;
use crate::image::registry::{self, Access};
use crate::image::store::Use;
use crate::image::{ImportRequest, Limits, Reference};
use crate::runtime::Context;
use std::path::Path;
use std::sync::Arc;

pub(super) const CA_FILE: Flag = option("ca-file", "FILE", "certificates that are trusted too, PEM");
pub(super) const PLAIN_HTTP: Flag = switch("plain-http", "no TLS; registries on loopback need not be told");
pub(super) const MIRROR: Flag = option("mirror", "HOST", "a registry that is asked first").many();

fn access(args: &Args, name: &Reference) -> Result<Access> {
    let mut access = Access::load(Path::new(Access::FILE))?;
    let registry = name.registry().to_owned();
    if args.is_on("plain-http") {
        access.plain_http.push(registry.clone());
    }
    if let Some(file) = args.value("ca-file") {
        access.ca_file = Some(file.into());
    }
    let mirrors = args.values("mirror");
    if !mirrors.is_empty() {
        access.mirrors.insert(registry, mirrors);
    }
    Ok(access)
}

pub(super) fn pull(context: &Context, args: &Args) -> Result<i32> {
    let name = Reference::parse(args.id())?;
    let request = ImportRequest {
        from: "".into(),
        name: None,
        platform: platform(args)?.unwrap_or_else(Platform::host),
        limits: Limits::default(),
        backing: backing(args)?,
        progress: Arc::default(),
    };
    let access = access(args, &name)?;
    let store = store(context, Use::Shared)?;
    let bar = super::progress::Bar::start(&request.progress, args);
    let pulled = registry::pull(&store, &name, &access, &request);
    drop(bar);
    imported(&[pulled?], args)
}

pub(super) fn push(context: &Context, args: &Args) -> Result<i32> {
    let json = is_json(args)?;
    let store = store(context, Use::Shared)?;
    let image = store.find(args.id())?;
    let name = Reference::parse(args.positional(1).unwrap_or(&image.name))?;
    let progress = Arc::default();
    let access = access(args, &name)?;
    let bar = super::progress::Bar::start(&progress, args);
    let pushed = registry::push(&store, &image, &name, &access, &progress);
    drop(bar);
    pushed?;
    match (args.is_on("quiet"), json) {
        (true, _) => Ok(0),
        (false, true) => {
            let document = serde_json::json!({"name": name.to_string(), "digest": image.digest});
            super::list::print(&format!("{document}\n"))
        }
        (false, false) => super::list::print(&format!("{name}: {}\n", image.digest)),
    }
}
