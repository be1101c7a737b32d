//! A rootfs that is an overlay of an image's layers, mounted in the container's mount namespace:
//! nothing of it is ever seen on the host.

use crate::error::{Class, Context as _, Error, Result};
use crate::sys::cred;
use crate::sys::mount::{self, Attributes, Filesystem};
use crate::sys::path::Root;
use nix::errno::Errno;
use nix::unistd::{chdir, fchdir};
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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
    pub const ANNOTATION: &str = crate::spec::annotations::IMAGE;

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

    /// The same with the owners of all files mapped as a user namespace maps its ids: those in the layers,
    /// and of what is written. The layers are shared, and stay as they are. `uid` and `gid` are those of
    /// the namespace's root: overlayfs makes files of its own as whoever mounts it, and the host's root has
    /// no place in such a mount.
    ///
    /// # Errors
    /// As for [`Overlay::mount`]; EINVAL for a filesystem that has no idmapped mounts.
    pub fn mount_mapped(&self, user_namespace: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<OwnedFd> {
        self.mount_with(Mapping { user_namespace, in_place: false }, uid, gid)
    }

    /// The same for kernels before 6.15, whose overlayfs takes only layers that are mounted somewhere: each is
    /// mounted over itself. To be called where nobody else sees that, in a mount namespace that is left then.
    ///
    /// # Errors
    /// As for [`Overlay::mount_mapped`].
    pub fn mount_mapped_in_place(
        &self,
        user_namespace: BorrowedFd<'_>,
        uid: u32,
        gid: u32,
    ) -> Result<OwnedFd> {
        self.mount_with(Mapping { user_namespace, in_place: true }, uid, gid)
    }

    fn mount_with(&self, mapping: Mapping<'_>, uid: u32, gid: u32) -> Result<OwnedFd> {
        let writable = [("upperdir", &self.upper), ("workdir", &self.work)];
        cred::as_owner(uid, gid, || self.assemble_with(&writable, Some(mapping)))
            .doing("mount the overlay of the image's layers")?
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
        let writable = [("upperdir", &self.upper), ("workdir", &self.work)];
        let tried = self.attempt(&writable, &|filesystem| filesystem.set("index", "on"), None);
        matches!(tried, Err(failure) if failure.errno == Errno::EBUSY)
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

    fn assemble(&self, writable: &[(&str, &PathBuf)]) -> Result<OwnedFd> {
        self.assemble_with(writable, None)
    }

    fn assemble_with(&self, writable: &[(&str, &PathBuf)], mapping: Option<Mapping<'_>>) -> Result<OwnedFd> {
        let options = |filesystem: &Filesystem| {
            if self.userxattr {
                filesystem.set_flag("userxattr")?;
            } else {
                // The writable layer is to be read by itself later: whole files, each where it belongs.
                filesystem.set("redirect_dir", "off")?;
                filesystem.set("metacopy", "off")?;
            }
            if self.volatile && !writable.is_empty() {
                filesystem.set_flag("volatile")?;
            }
            Ok(())
        };
        self.attempt(writable, &options, mapping).map_err(|failure| {
            let error = Error::system("mount the overlay of the image's layers", failure.errno)
                .on(failure.what.display().to_string());
            let error = if failure.is_opening { error.class(Class::Config) } else { error };
            match failure.complaint {
                Some(complaint) if complaint.contains("not supported as upperdir") => error
                    .because(complaint)
                    .hint("overlayfs writes to ext4, xfs, btrfs or tmpfs, say: --root DIR has the image store in DIR"),
                Some(complaint) => error.because(complaint),
                None => error,
            }
        })
    }

    /// Mounts by names and fds, one by one, where overlayfs takes them (Linux 6.13): 500 layers fit. By the
    /// fds' numbers elsewhere.
    fn attempt(
        &self,
        writable: &[(&str, &PathBuf)],
        options: Options<'_>,
        mapping: Option<Mapping<'_>>,
    ) -> Result<OwnedFd, Failure> {
        let failed =
            |path: &Path, errno| Failure { errno, what: path.to_owned(), complaint: None, is_opening: true };
        // overlayfs wants both of its writable directories in one mount.
        let own = match mapping.zip(self.upper.parent().filter(|_| !writable.is_empty())) {
            Some((mapping, parent)) => {
                Some((parent, mapping.of(parent).map_err(|errno| failed(parent, errno))?))
            }
            None => None,
        };
        let open = |path: &PathBuf| {
            let opened = match (&own, mapping) {
                (Some((parent, root)), _) if path.starts_with(parent) && !self.lower.contains(path) => {
                    root.resolve(path.strip_prefix(parent).unwrap_or(path)).map(Root::from)
                }
                (_, Some(mapping)) => mapping.of(path),
                (_, None) => open_layer(path),
            };
            opened.map_err(|errno| failed(path, errno))
        };
        if mapping.is_some_and(|mapping| mapping.in_place) {
            return self.attempt_by_number(writable, options, &open);
        }
        let filesystem = self.begin(options)?;
        // A detached mount goes with its last fd, and the overlay takes its copy at the end.
        let mut kept = Vec::new();
        let layers = self.lower.iter().map(|path| ("lowerdir+", path));
        for (key, path) in layers.chain(writable.iter().copied()) {
            // What the kernel takes by name costs one call in place of three. Why it refuses one is found
            // out by the other way.
            if key == "lowerdir+"
                && mapping.is_none()
                && by_name(path).is_some_and(|name| filesystem.set(key, name).is_ok())
            {
                continue;
            }
            let layer = open(path)?;
            let taken = filesystem.set_fd(key, layer.as_fd());
            kept.push(layer);
            match taken {
                Ok(()) => {}
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) => {
                    return self.attempt_by_number(writable, options, &open);
                }
                Err(errno) => return Err(Failure::of(&filesystem, errno, path)),
            }
        }
        match filesystem.mount(Attributes::empty()) {
            // Old kernels take any name at first.
            Err(Errno::EINVAL) if writable.is_empty() => self.attempt_by_number(writable, options, &open),
            mounted => mounted.map_err(|errno| Failure::of(&filesystem, errno, &self.upper)),
        }
    }

    fn begin(&self, options: Options<'_>) -> Result<Filesystem, Failure> {
        let failed = |errno| Failure { errno, what: self.upper.clone(), complaint: None, is_opening: false };
        let filesystem = Filesystem::open("overlay").map_err(failed)?;
        options(&filesystem).map_err(|errno| Failure::of(&filesystem, errno, &self.upper))?;
        Ok(filesystem)
    }

    /// Before Linux 6.8 all layers are one value, and fsconfig(2) takes 255 bytes. As numbers in
    /// /proc/self/fd some eighty of them fit.
    fn attempt_by_number(
        &self,
        writable: &[(&str, &PathBuf)],
        options: Options<'_>,
        open: &dyn Fn(&PathBuf) -> Result<Root, Failure>,
    ) -> Result<OwnedFd, Failure> {
        let lower = self.lower.iter().map(open).collect::<Result<Vec<_>, _>>()?;
        let upper = writable.iter().map(|(_, path)| open(path)).collect::<Result<Vec<_>, _>>()?;
        let number = |root: &Root| root.as_fd().as_raw_fd().to_string();
        let failed =
            |errno, what: &str| Failure { errno, what: what.into(), complaint: None, is_opening: false };
        let refused = |filesystem: &Filesystem, errno| {
            let failure = Failure::of(filesystem, errno, &self.upper);
            let too_many = || format!("{} layers are too many for a kernel before Linux 6.8", lower.len());
            let complaint = failure.complaint.or_else(|| (lower.len() > 60).then(too_many));
            Failure { complaint, ..failure }
        };
        let here = Root::at(Path::new(".")).map_err(|errno| failed(errno, "."))?;
        chdir("/proc/self/fd").map_err(|errno| failed(errno, "/proc/self/fd"))?;
        let mounted = (|| {
            let filesystem = self.begin(options)?;
            let joined = lower.iter().map(number).collect::<Vec<_>>().join(":");
            let fail = |errno| refused(&filesystem, errno);
            if filesystem.set("lowerdir", &joined).is_err() {
                for layer in &lower {
                    filesystem.set("lowerdir+", &number(layer)).map_err(fail)?;
                }
            }
            for ((key, _), root) in writable.iter().zip(&upper) {
                filesystem.set(key, &number(root)).map_err(fail)?;
            }
            filesystem.mount(Attributes::empty()).map_err(fail)
        })();
        fchdir(here.as_fd()).map_err(|errno| failed(errno, "."))?;
        mounted
    }
}

type Options<'a> = &'a dyn Fn(&Filesystem) -> nix::Result<()>;

/// Why an overlay could not be mounted.
struct Failure {
    errno: Errno,
    what: PathBuf,
    complaint: Option<String>,
    is_opening: bool,
}

impl Failure {
    fn of(filesystem: &Filesystem, errno: Errno, what: &Path) -> Failure {
        Failure { errno, what: what.to_owned(), complaint: filesystem.complaint(), is_opening: false }
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

/// How layers show the owners of their files.
#[derive(Clone, Copy)]
struct Mapping<'n> {
    /// By the maps of this one.
    user_namespace: BorrowedFd<'n>,
    /// Whether what shows them so is mounted over the layer, or nowhere.
    in_place: bool,
}

impl Mapping<'_> {
    /// A directory or layer, as a mount that shows them so.
    fn of(self, path: &Path) -> nix::Result<Root> {
        let tree = match is_erofs(path) {
            true => super::erofs::mount(path)?,
            false => mount::open_tree(CWD, path, false, true)?,
        };
        mount::idmap(tree.as_fd(), self.user_namespace, false)?;
        if self.in_place {
            let place = if is_erofs(path) { path.parent().unwrap_or(path) } else { path };
            mount::attach(tree.as_fd(), Root::at(place)?.as_fd())?;
        }
        Ok(Root::from(tree))
    }
}
