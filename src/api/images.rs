//! Images: in, out, and as bundles.

use super::handle::Runtime;
use super::helper::{Streams, ask};
use super::job::{Answer, Work};
use crate::error::{Class, Error, Result};
use crate::image::store::Use;
use crate::image::{Options, Reference, Store, store};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Image {
    /// Its full name: `docker.io/library/debian:latest`.
    pub name: String,
    /// The digest of its manifest, `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// Its id: the digest of its configuration.
    pub id: String,
    /// How many layers it has.
    pub layers: usize,
    /// The sizes of its blobs together, in bytes.
    pub size: u64,
}

impl Image {
    pub(super) fn of(image: &store::Image) -> Image {
        Image {
            name: image.name.clone(),
            digest: image.digest.to_string(),
            id: image.id().to_string(),
            layers: image.manifest.layers.len(),
            size: image.size(),
        }
    }
}

/// How a bundle differs from what its image says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleOptions {
    /// What is run in place of the image's Cmd.
    pub command: Vec<String>,
    /// What is run in place of the image's Entrypoint; its Cmd is then left out too.
    pub entrypoint: Option<String>,
    /// `NAME=VALUE`, added to the image's environment.
    pub env: Vec<String>,
    /// `USER[:GROUP]`, names or numbers.
    pub user: Option<String>,
    /// The working directory, made when it is missing.
    pub workdir: Option<String>,
    /// Whether the payload gets a terminal.
    pub terminal: bool,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Whether the network is the host's; otherwise there is the loopback alone.
    pub host_network: bool,
    /// `SOURCE:PLACE[:OPTIONS]`: directories and files of the host.
    pub volumes: Vec<String>,
    /// The limit of memory, in bytes.
    pub memory: Option<i64>,
    /// The most processes and threads.
    pub processes: Option<i64>,
}

impl BundleOptions {
    /// In the words of the commands.
    pub(super) fn options(self) -> Options {
        let options = self;
        Options {
            command: options.command,
            entrypoint: options.entrypoint,
            env: options.env,
            user: options.user,
            workdir: options.workdir,
            terminal: options.terminal,
            read_only: options.read_only,
            host_network: options.host_network,
            volumes: options.volumes,
            memory: options.memory,
            pids_limit: options.processes,
            ..Options::default()
        }
    }
}

/// The image store. Everything in an image is untrusted: digests, sizes and paths are checked, and an
/// image that is refused leaves the store as it was.
///
/// Images are named as in Docker: `debian` is `docker.io/library/debian:latest`. The beginning of
/// an id, of four digits and more, names one too.
#[derive(Debug, Clone)]
pub struct Images {
    runtime: Runtime,
}

impl Images {
    pub(super) fn new(runtime: Runtime) -> Images {
        Images { runtime }
    }

    /// Takes every image of an OCI layout (a directory or an archive) or of a `docker save` archive into the
    /// store; of an index, those for this machine. `name` is for one that has none of its own. By a helper
    /// process.
    ///
    /// # Errors
    /// [`Class::Config`] when it is refused, with what is wrong; [`Class::Usage`] when it has no name, or a
    /// name was given to several.
    pub fn import(&self, from: impl Into<PathBuf>, name: Option<&str>) -> Result<Vec<Image>> {
        let work = Work::Import { from: from.into(), name: name.map(str::to_owned) };
        match ask(&self.runtime, work, Streams::default())?.0 {
            Answer::Images(images) => Ok(images),
            other => Err(Error::new(Class::Internal, "import an image").because(format!("{other:?}"))),
        }
    }

    /// All images, by name.
    ///
    /// # Errors
    /// When the store cannot be made or read.
    pub fn list(&self) -> Result<Vec<Image>> {
        let store = self.store()?;
        store.tags()?.iter().map(|tag| store.image(tag).map(|image| Image::of(&image))).collect()
    }

    /// An image by its name, its digest, or the beginning of its id.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none, or more than one.
    pub fn find(&self, name: &str) -> Result<Image> {
        self.store()?.find(name).map(|image| Image::of(&image))
    }

    /// Takes a name away. What no name leads to goes with the next `dhow image gc`.
    ///
    /// # Errors
    /// [`Class::Config`] when there is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.store()?.untag(&Reference::parse(name)?)
    }

    /// Makes a bundle of an image in a new directory: a config.json with Docker's defaults, and a rootfs that
    /// is an overlay of the image's layers, which stay in the store as long as the directory is there. For
    /// [`Runtime::create`]. By a helper process.
    ///
    /// # Errors
    /// [`Class::Config`] when there is no such image, the directory is not empty, or the image names a user
    /// that it does not have; [`Class::Usage`] for an option that is wrong.
    pub fn bundle(&self, image: &str, directory: impl Into<PathBuf>, options: &BundleOptions) -> Result<()> {
        let (image, options) = (image.to_owned(), options.clone());
        let work = Work::Bundle { image, directory: directory.into(), options };
        ask(&self.runtime, work, Streams::default()).map(drop)
    }

    /// Writes an image's files into a new directory, as plain files that are no part of the store any more,
    /// with their owners, modes and extended attributes. Devices are left out with a warning; hard links
    /// become copies. By a helper process.
    ///
    /// # Errors
    /// [`Class::Config`] when there is no such image, or the directory is not empty.
    pub fn unpack(&self, image: &str, directory: impl Into<PathBuf>) -> Result<()> {
        let work = Work::Unpack { image: image.to_owned(), directory: directory.into() };
        ask(&self.runtime, work, Streams::default()).map(drop)
    }

    fn store(&self) -> Result<Store> {
        Store::open(&self.runtime.context.images, Use::Shared)
    }
}
