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

use crate::error::{Class, Error};

/// An image, or a part of it, that is not taken.
pub(crate) fn refused(cause: impl Into<String>) -> Error {
    Error::new(Class::Config, "the image is refused").because(cause)
}

/// Puts where it happened before what it happened to.
pub(crate) fn within(place: &str, mut error: Error) -> Error {
    error.subject = Some(match error.subject.take() {
        Some(subject) => format!("{place}: {subject}"),
        None => place.to_owned(),
    });
    error
}
