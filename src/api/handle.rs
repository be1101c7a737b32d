//! Where containers and images are, and who makes cgroups.

use super::container::Container;
use super::create::Create;
use super::images::Images;
use crate::cgroups::Driver;
use crate::error::Result;
use crate::log;
use crate::runtime::Context;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Who makes the cgroups of containers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CgroupManager {
    /// dhow itself, by mkdir(2).
    #[default]
    Cgroupfs,
    /// systemd, as a scope.
    Systemd,
    /// Nobody: containers stay in their creator's cgroup, without limits.
    Disabled,
}

/// The containers below one directory, and the images beside them. It holds nothing open: any number
/// of them may be made, cloned, and used by any thread.
///
/// ```
/// use dhow::{CgroupManager, Runtime};
///
/// let runtime = Runtime::at("/tmp/dhow-doc-nothing-here").cgroup_manager(CgroupManager::Systemd);
/// assert!(runtime.containers().unwrap().is_empty());
/// let error = runtime.container("web").state().unwrap_err();
/// assert_eq!(error.class, dhow::Class::NoContainer);
/// assert_eq!(error.to_string(), "container \"web\" does not exist");
/// ```
#[derive(Clone)]
pub struct Runtime {
    pub(super) context: Context,
    pub(super) program: Option<PathBuf>,
    pub(super) warned: Option<Tell>,
}

/// Who is told of warnings.
type Tell = Arc<dyn Fn(&str) + Send + Sync>;

impl Runtime {
    /// The usual places, as for the `dhow` command without `--root`: containers in /run/dhow
    /// ($XDG_RUNTIME_DIR/dhow of an ordinary user), images in /var/lib/dhow/images
    /// ($XDG_DATA_HOME/dhow/images, or ~/.local/share/dhow/images).
    pub fn new() -> Runtime {
        Runtime::over(None)
    }

    /// Everything below a directory, as with `--root`. It is made when the first container is.
    pub fn at(root: impl AsRef<Path>) -> Runtime {
        Runtime::over(Some(root.as_ref().to_owned()))
    }

    fn over(root: Option<PathBuf>) -> Runtime {
        // What commands tell a person in passing is no business of the caller's standard error.
        log::init(log::Sink { file: None, format: None, level: log::Level::Error });
        let rootless = !nix::unistd::geteuid().is_root();
        let context = Context::usual(root, Driver::Cgroupfs, rootless);
        Runtime { context, program: None, warned: None }
    }

    /// Who makes cgroups; [`CgroupManager::Cgroupfs`] unless this is called.
    #[must_use]
    pub fn cgroup_manager(mut self, manager: CgroupManager) -> Runtime {
        self.context.cgroups = match manager {
            CgroupManager::Cgroupfs => Driver::Cgroupfs,
            CgroupManager::Systemd => Driver::Systemd,
            CgroupManager::Disabled => Driver::Disabled,
        };
        self
    }

    /// The program that is run as the helper, in place of the caller's own: one whose `main` begins
    /// with [`helper`](super::helper). For plugins, and for tests, whose `main` is not theirs.
    #[must_use]
    pub fn helper_program(mut self, program: impl AsRef<Path>) -> Runtime {
        self.program = Some(program.as_ref().to_owned());
        self
    }

    /// Who is told what is likely not meant and no error, such as a capability that the kernel does not
    /// know. Called by the thread that made the call, before it returns.
    #[must_use]
    pub fn on_warning(mut self, tell: impl Fn(&str) + Send + Sync + 'static) -> Runtime {
        self.warned = Some(Arc::new(tell));
        self
    }

    /// Begins to describe a new container, from a bundle: a directory with a config.json, and
    /// usually a rootfs.
    pub fn create(&self, id: impl Into<String>, bundle: impl Into<PathBuf>) -> Create {
        Create::new(self.clone(), id.into(), bundle.into())
    }

    /// A container by its id. Nothing is looked at before a method is called.
    pub fn container(&self, id: impl Into<String>) -> Container {
        Container::new(self.clone(), id.into())
    }

    /// All containers, by id. One that is deleted meanwhile answers
    /// [`Class::NoContainer`](crate::Class::NoContainer).
    ///
    /// # Errors
    /// When the directory is there and cannot be read.
    pub fn containers(&self) -> Result<Vec<Container>> {
        Ok(self.context.store.ids()?.into_iter().map(|id| self.container(id)).collect())
    }

    /// The images.
    pub fn images(&self) -> Images {
        Images::new(self.clone())
    }
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime::new()
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("root", &self.context.store.root())
            .field("images", &self.context.images)
            .field("cgroups", &self.context.cgroups)
            .field("helper_program", &self.program)
            .finish_non_exhaustive()
    }
}
