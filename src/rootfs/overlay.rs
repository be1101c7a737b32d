//! A rootfs that is an overlay of an image's layers, mounted in the container's mount namespace:
//! nothing of it is ever seen on the host.

use crate::error::{Class, Context as _, Error, Result};
use crate::sys::mount::{Attributes, Filesystem};
use crate::sys::path::Root;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What the rootfs is an overlay of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The layers, the topmost first: directories, and metadata of EROFS.
    pub lower: Vec<PathBuf>,
    /// The writable layer.
    pub upper: PathBuf,
    /// overlayfs's own directory, on the same filesystem.
    pub work: PathBuf,
    /// Whether overlayfs's own marks are `user.overlay.*`: those of a user without rights.
    #[serde(default)]
    pub userxattr: bool,
    /// Whether what is written need never reach the disk: then the end of the container does not wait
    /// for it, as overlayfs otherwise does for the whole filesystem of the writable layer.
    #[serde(default)]
    pub volatile: bool,
}

impl Overlay {
    /// The file in a bundle that says so.
    pub const FILE: &str = "overlay.json";
    /// The annotation of a bundle that has an overlay.
    pub const ANNOTATION: &str = "org.dhow.image.name";

    /// A bundle's overlay; `None` when its rootfs is a plain directory.
    ///
    /// # Errors
    /// [`Class::Config`] when the file cannot be read.
    pub fn load(bundle: &Path) -> Result<Option<Overlay>> {
        let path = bundle.join(Overlay::FILE);
        let shown = || path.display().to_string();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.doing_on("read", shown)?,
        };
        let overlay = serde_json::from_slice(&text)
            .map_err(|error| Error::new(Class::Config, "read").on(shown()).because(error.to_string()))?;
        Ok(Some(overlay))
    }

    /// The layers with the writable one, as a detached mount: seen by whoever has the fd.
    ///
    /// # Errors
    /// overlayfs's, in the kernel's own words.
    pub fn mount(&self) -> Result<OwnedFd> {
        self.assemble(&[("upperdir", &self.upper), ("workdir", &self.work)])
    }

    /// The same once more, after a container has ended: what is not on the disk yet is still in
    /// memory, unless the host has been booted since.
    ///
    /// # Errors
    /// As for [`Overlay::mount`]; EINVAL for a volatile layer of another boot.
    pub fn mount_again(&self, same_boot: bool) -> Result<OwnedFd> {
        if same_boot {
            self.allow_again();
        }
        self.mount()
    }

    /// Removes overlayfs's mark that forbids to mount a volatile layer once more. Only right in the boot
    /// in which it was last mounted.
    pub fn allow_again(&self) {
        if self.volatile {
            let _ = std::fs::remove_dir_all(self.work.join("work/incompat/volatile"));
        }
    }

    /// Whether some mount has the writable layer, in whatever namespace. overlayfs refuses it to a second
    /// one that keeps an index; a first one is gone again at once, and leaves an empty index in `work`.
    pub fn is_mounted(&self) -> bool {
        let tried = (|| {
            let filesystem = Filesystem::open("overlay")?;
            filesystem.set("index", "on")?;
            let lower = self.lower.iter().map(|path| ("lowerdir+", path));
            for (key, path) in lower.chain([("upperdir", &self.upper), ("workdir", &self.work)]) {
                filesystem.set_fd(key, open_layer(path)?.as_fd())?;
            }
            filesystem.mount(Attributes::empty()).map(drop)
        })();
        tried == Err(Errno::EBUSY)
    }

    /// The layers alone, to be read.
    ///
    /// # Errors
    /// As for [`Overlay::mount`].
    pub fn view(&self) -> Result<Root> {
        match &self.lower[..] {
            // overlayfs wants two.
            [only] => open_layer(only).map_err(|errno| {
                Error::system("open a layer", errno).on(only.display().to_string()).class(Class::Config)
            }),
            _ => self.assemble(&[]).map(Root::from),
        }
    }

    /// Layers go in one by one: 500 of them fit, however long their paths are.
    fn assemble(&self, writable: &[(&str, &PathBuf)]) -> Result<OwnedFd> {
        let doing = "mount the overlay of the image's layers";
        let filesystem = Filesystem::open("overlay").doing(doing)?;
        let failed = |errno: Errno, what: &Path| {
            let error = Error::system(doing, errno).on(what.display().to_string());
            match filesystem.complaint() {
                Some(complaint) if complaint.contains("not supported as upperdir") => error
                    .because(complaint)
                    .hint("overlayfs writes to ext4, xfs, btrfs or tmpfs, say: --root DIR has the image store in DIR"),
                Some(complaint) => error.because(complaint),
                None => error,
            }
        };
        if self.userxattr {
            filesystem.set_flag("userxattr").doing(doing)?;
        } else {
            // The writable layer is to be read by itself later: whole files, each where it belongs.
            filesystem.set("redirect_dir", "off").doing(doing)?;
            filesystem.set("metacopy", "off").doing(doing)?;
        }
        if self.volatile && !writable.is_empty() {
            filesystem.set_flag("volatile").doing(doing)?;
        }
        let layers = self.lower.iter().map(|path| ("lowerdir+", path));
        for (key, path) in layers.chain(writable.iter().copied()) {
            // What the kernel takes by name costs one call in place of three. Why it refuses one is found
            // out by the other way.
            if key == "lowerdir+" && by_name(path).is_some_and(|name| filesystem.set(key, name).is_ok()) {
                continue;
            }
            let directory = open_layer(path).map_err(|errno| failed(errno, path).class(Class::Config))?;
            filesystem.set_fd(key, directory.as_fd()).map_err(|errno| failed(errno, path))?;
        }
        filesystem.mount(Attributes::empty()).map_err(|errno| failed(errno, &self.upper))
    }
}

/// The name by which the kernel finds a layer that is a directory: fsconfig(2) takes 255 bytes.
fn by_name(path: &Path) -> Option<&str> {
    path.to_str().filter(|name| name.len() < 256 && path.is_absolute() && !is_erofs(path))
}

fn is_erofs(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == super::erofs::SUFFIX)
}

/// A layer as a directory: what it is, or a detached mount of what it describes.
///
/// # Errors
/// open(2)'s, and those of [`super::erofs::mount`].
pub fn open_layer(path: &Path) -> nix::Result<Root> {
    match is_erofs(path) {
        true => super::erofs::mount(path).map(Root::from),
        false => Root::at(path),
    }
}
