//! `diff` and `commit`: what a container has changed of its image.

use super::container::{Container, Context};
use crate::error::{Class, Error, Result};
use crate::image::changes::{self, Kind};
use crate::image::commit::{self, CommitRequest};
use crate::image::container::directory;
use crate::image::store::Use;
use crate::image::{Imported, Reference, Store};
use std::path::PathBuf;

/// Visits what a container has changed, directories before what is in them: the kind of change, and
/// the path, which may be any bytes.
///
/// # Errors
/// [`Class::NoContainer`]; when the container was not made from an image; the visitor's own.
pub fn diff(context: &Context, id: &str, visitor: &mut dyn FnMut(Kind, &[u8]) -> Result<()>) -> Result<()> {
    let bundle = bundle_of(context, id)?;
    changes::visit(&bundle, &mut |change| visitor(change.kind, &[b"/", &change.path[..]].concat()))
}

/// Makes an image of a container. A running one is paused meanwhile, unless `pause` is off, so that
/// no file changes while it is read.
///
/// # Errors
/// [`Class::NoContainer`]; what is wrong with the request or the store.
pub fn commit(
    context: &Context,
    id: &str,
    name: &Reference,
    request: &CommitRequest,
    pause: bool,
) -> Result<Imported> {
    let bundle = bundle_of(context, id)?;
    let store = Store::open(&context.images, Use::Shared)?;
    let runs = Container::open(context, id).is_ok_and(|one| one.status == crate::state::Status::Running);
    let paused = pause && runs && super::pause(context, id).is_ok();
    let result = commit::commit(&store, &bundle, name, request);
    if paused {
        super::resume(context, id)?;
    }
    result
}

/// The bundle of a container, also of one whose record went with a reboot.
fn bundle_of(context: &Context, id: &str) -> Result<PathBuf> {
    match Container::open(context, id) {
        Ok(container) => Ok(container.record.bundle),
        Err(error) if error.class == Class::NoContainer => {
            crate::state::check_id(id)?;
            let left = directory(&context.images, id);
            if left.join("config.json").is_file() { Ok(left) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

/// The words of a name for a new image.
///
/// # Errors
/// [`Class::Usage`].
pub fn image_name(text: &str) -> Result<Reference> {
    let name = Reference::parse(text)?;
    match name.digest {
        None => Ok(name),
        Some(_) => Err(Error::new(Class::Usage, "name the image")
            .on(text)
            .because("a digest is no name for a new one")),
    }
}
