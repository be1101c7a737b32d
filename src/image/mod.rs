//! Images: a store of layered root filesystems, and what goes in and out of it.
//!
//! Everything in an image is untrusted. A blob is read once: hashed, decoded, hashed again and
//! unpacked while it streams by ([`layer`]), into a directory that is renamed into the store only
//! when every digest was right ([`import`]). Paths inside a layer go through fds ([`unpack`]).

mod accounts;
pub mod archive;
pub mod bundle;
pub mod changes;
pub mod commit;
pub mod container;
pub mod digest;
pub mod documents;
pub mod erofs;
pub mod import;
pub mod layer;
mod layers;
pub mod manage;
mod mount_option;
mod options;
pub mod owners;
mod privileges;
mod profile;
pub mod reference;
pub mod registry;
pub mod save;
mod security;
pub mod source;
pub mod store;
pub mod tar;
pub mod tree;
pub mod unpack;
mod userns;
pub mod volumes;

#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod testing;

pub use digest::Digest;
pub use import::{ImportRequest, Imported, import};
pub use layer::Limits;
pub use layers::{Backing, Progress};
pub use options::Options;
pub use reference::Reference;
pub use store::{Image, Store};

use crate::error::{Class, Context as _, Error, Result};
use nix::errno::Errno;
use std::path::Path;

/// An image, or a part of it, that is not taken.
pub(crate) fn refused(cause: impl Into<String>) -> Error {
    Error::new(Class::Config, "the image is refused").because(cause)
}

/// Says what makes room in the store, when there was none.
pub fn with_room_hint(error: Error) -> Error {
    let full = [Errno::ENOSPC, Errno::EDQUOT].iter().any(|errno| error.errno == Some(*errno as i32));
    match full && error.hint.is_none() {
        true => error.hint(MAKE_ROOM),
        false => error,
    }
}

const MAKE_ROOM: &str =
    "`dhow image gc` removes what no image needs, `dhow delete` a container with its files";

/// Makes something in a directory that is new or empty. When that fails, the directory is as it was.
///
/// # Errors
/// [`Class::Config`] when the directory is not empty; the work's own.
pub fn fill(directory: &Path, doing: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let shown = || directory.display().to_string();
    let is_new = !directory.exists();
    std::fs::create_dir_all(directory).doing_on(doing, shown)?;
    if std::fs::read_dir(directory).doing_on(doing, shown)?.next().is_some() {
        return Err(Error::new(Class::Config, doing).on(shown()).because("the directory is not empty"));
    }
    work().inspect_err(|_| {
        let _ = clear(directory);
        if is_new {
            let _ = std::fs::remove_dir(directory);
        }
    })
}

/// Removes all that is in a directory.
fn clear(directory: &Path) -> Result<()> {
    let doing = "clear a directory";
    for entry in std::fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        match entry.file_type().doing(doing)?.is_dir() {
            true => std::fs::remove_dir_all(entry.path()).doing(doing)?,
            false => std::fs::remove_file(entry.path()).doing(doing)?,
        }
    }
    Ok(())
}

/// Puts where it happened before what it happened to.
pub(crate) fn within(place: &str, mut error: Error) -> Error {
    error.subject = Some(match error.subject.take() {
        Some(subject) => format!("{place}: {subject}"),
        None => place.to_owned(),
    });
    error
}
