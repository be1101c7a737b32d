//! What a helper process is asked for, what it answers, and how it does it: by the same functions as
//! the commands.

use super::images::{BundleOptions, Image};
use crate::cgroups::Driver;
use crate::error::{Class, Error, Result};
use crate::image::documents::Platform;
use crate::image::store::Use;
use crate::image::{Backing, ImportRequest, Limits, Reference, Store, bundle, import, owners};
use crate::rootfs::Pivot;
use crate::runtime::{self, Context, ExecRequest, Request, StartedBy};
use crate::state::{Init, Supervision};
use crate::sys::clone::Child;
use crate::sys::pidfd;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A request: where, and what.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Job {
    root: PathBuf,
    images: PathBuf,
    cgroups: char,
    rootless: bool,
    pub work: Work,
}

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Work {
    Create(New),
    Start { id: String },
    Delete { id: String, force: bool },
    Exec { id: String, process: Box<Inside> },
    Import { from: PathBuf, name: Option<String> },
    Bundle { image: String, directory: PathBuf, options: BundleOptions },
    Unpack { image: String, directory: PathBuf },
}

/// A container that is to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct New {
    pub id: String,
    pub bundle: PathBuf,
    pub console_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub no_pivot: bool,
    pub share_keyring: bool,
}

/// A process that is to run in a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Inside {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub groups: Vec<u32>,
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub console_socket: Option<PathBuf>,
    pub document: Option<PathBuf>,
}

/// What a helper says first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    /// What it would have told a person in passing.
    pub warnings: Vec<String>,
    pub outcome: Result<Answer, Error>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Started(Init),
    Images(Vec<Image>),
}

/// What a helper says when the process that it has stayed for has ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ended {
    pub code: i32,
}

/// What is left to do after the answer: to wait for a child.
pub(super) enum After {
    Nothing,
    /// The init of this container: its end is written down.
    Container(String, Child),
    /// A process in a container: its end is told.
    Process(Child),
}

impl Work {
    /// Whether a process enters a container, so that the program must be protected from it.
    pub(super) fn enters(&self) -> bool {
        matches!(self, Work::Create(_) | Work::Exec { .. })
    }

    /// Whether the helper stays with a process, as its parent.
    pub(super) fn stays(&self) -> bool {
        self.enters()
    }
}

impl Job {
    pub(super) fn new(context: &Context, work: Work) -> Job {
        let cgroups = match context.cgroups {
            Driver::Cgroupfs => 'c',
            Driver::Systemd => 's',
            Driver::Disabled => 'd',
        };
        let (root, images) = (context.store.root().to_owned(), context.images.clone());
        Job { root, images, cgroups, rootless: context.rootless, work }
    }

    pub(super) fn context(&self) -> Context {
        let driver = match self.cgroups {
            's' => Driver::Systemd,
            'd' => Driver::Disabled,
            _ => Driver::Cgroupfs,
        };
        Context { images: self.images.clone(), ..Context::new(&self.root, driver, self.rootless) }
    }
}

/// Carries a request out.
pub(super) fn carry_out(context: &Context, work: Work) -> Result<(Answer, After)> {
    let done = |()| (Answer::Done, After::Nothing);
    match work {
        Work::Create(new) => create(context, new),
        Work::Start { id } => runtime::start(context, &id).map(done),
        Work::Delete { id, force } => runtime::delete(context, &id, force).map(done),
        Work::Exec { id, process } => exec(context, &id, *process),
        Work::Import { from, name } => import_images(context, &from, name.as_deref()),
        Work::Bundle { image, directory, options } => {
            let store = Store::open(&context.images, Use::Shared)?;
            let image = store.find(&image)?;
            bundle::bundle(&store, &image, &directory, &options.options()).map(done)
        }
        Work::Unpack { image, directory } => runtime::unpack(context, &image, &directory).map(done),
    }
}

/// The helper stays with the container as its monitor: so its exit code is kept, and told to every
/// `wait`, here and by other programs.
fn create(context: &Context, new: New) -> Result<(Answer, After)> {
    let supervision = Supervision { monitor: Some(own()?), ..Supervision::default() };
    let request = Request {
        id: new.id,
        bundle: new.bundle,
        console_socket: new.console_socket,
        pidfd_socket: None,
        pid_file: new.pid_file,
        pivot: if new.no_pivot { Pivot::Move } else { Pivot::Root },
        new_keyring: !new.share_keyring,
        preserve_fds: 0,
        supervision: Some(Box::new(supervision)),
        again: false,
        undo: Vec::new(),
        network: None,
    };
    let created = runtime::create(context, &request, StartedBy::Start)?;
    Ok((Answer::Done, After::Container(request.id, created.child)))
}

fn exec(context: &Context, id: &str, inside: Inside) -> Result<(Answer, After)> {
    let request = ExecRequest {
        process: inside.document,
        args: inside.args,
        tty: inside.console_socket.is_some(),
        user: inside.user,
        cwd: inside.cwd,
        env: inside.env,
        capabilities: inside.capabilities,
        additional_gids: inside.groups,
        no_new_privileges: inside.no_new_privileges,
        console_socket: inside.console_socket,
        detach: true,
        ..ExecRequest::default()
    };
    let child = runtime::exec_as_child(context, id, &request)?;
    // Nobody has waited for it yet, so its pid is still its own.
    let stat = pidfd::stat(child.pid).map_err(|errno| Error::system("look at the process", errno))?;
    let start_time = stat.map_or(0, |stat| stat.start_time);
    Ok((Answer::Started(Init { pid: child.pid.as_raw(), start_time }), After::Process(child)))
}

/// This process, as the monitor of a container.
fn own() -> Result<Init> {
    let pid = nix::unistd::getpid();
    let stat = pidfd::stat(pid).map_err(|errno| Error::system("look at this process", errno))?;
    let start_time = stat
        .ok_or_else(|| Error::new(Class::Internal, "look at this process").because("it is not in /proc"))?
        .start_time;
    Ok(Init { pid: pid.as_raw(), start_time })
}

fn import_images(context: &Context, from: &Path, name: Option<&str>) -> Result<(Answer, After)> {
    let name = name.map(Reference::parse).transpose()?;
    // Files of all owners, which a user without root's rights has in another namespace only.
    let names = owners::as_root(|| {
        let request = ImportRequest {
            from: from.to_owned(),
            name: name.clone(),
            platform: Platform::host(),
            limits: Limits::default(),
            backing: Backing::default(),
            progress: Arc::default(),
        };
        let store = Store::open(&context.images, Use::Shared)?;
        let names = import(&store, &request)?.into_iter().flat_map(|one| one.names);
        Ok(names.map(|name| format!("{name}\n")).collect())
    })?;
    let store = Store::open(&context.images, Use::Shared)?;
    let images = names.lines().map(|name| store.find(name).map(|image| Image::of(&image)));
    Ok((Answer::Images(images.collect::<Result<_>>()?), After::Nothing))
}
