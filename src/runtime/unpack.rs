//! `image unpack`: the files of an image in a directory of their own.

use super::container::Context;
use crate::error::{Context as _, Result};
use crate::image::archive::Found;
use crate::image::store::Use;
use crate::image::tree::{Owner, copy_into};
use crate::image::{Store, fill, owners};
use crate::rootfs::Overlay;
use crate::sys::path::stat;
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsFd;
use std::path::Path;

/// Copies the files of an image, as its layers together make them, into a new directory.
///
/// # Errors
/// [`Class::Config`] when there is no such image, or the directory is not empty.
pub fn unpack(context: &Context, image: &str, directory: &Path) -> Result<()> {
    // Files of all owners, which a user without root's rights has in another namespace only.
    owners::as_root(|| copy_out(context, image, directory).map(|()| String::new())).map(drop)
}

fn copy_out(context: &Context, image: &str, directory: &Path) -> Result<()> {
    let doing = "unpack the image";
    let shown = || directory.display().to_string();
    let store = Store::open(&context.images, Use::Shared)?;
    let image = store.find(image)?;
    fill(directory, doing, || {
        let ids = store.layer_ids(&image.config)?;
        let lower: Vec<_> = ids.iter().rev().map(|id| store.tree(*id)).collect();
        if lower.is_empty() {
            return Ok(());
        }
        let layers = Overlay { lower, userxattr: !owners::is_root(), ..Overlay::default() };
        let root = layers.view()?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::open(directory, flags, Mode::empty()).doing_on(doing, shown)?;
        let top = stat(root.as_fd()).doing(doing)?;
        let from = root.as_fd().try_clone_to_owned().doing(doing)?;
        copy_into(&Found::of(from).doing(doing)?, to.as_fd(), Owner::Kept)?;
        rustix::fs::fchmod(&to, Mode::from_raw_mode(top.st_mode & 0o7777)).doing_on(doing, shown)
    })
}
