//! What `create` knows before it touches anything: the plan of a container.

use super::container::{self, Context};
use super::create::{Request, StartedBy};
use super::{filter, joined, notify_socket, resctrl, sockets};
use crate::cgroups::{CgroupMount, Manager};
use crate::error::{Class, Context as _, Error, Result};
use crate::namespaces::{self, Maps};
use crate::process::credentials::Sets;
use crate::process::hooks;
use crate::process::protocol::{Message, out_of_turn};
use crate::process::spawn;
use crate::rootfs::{CgroupView, Hierarchy, Overlay, Plan as RootfsPlan};
use crate::seccomp::Program;
use crate::spec::load::Loaded;
use crate::spec::{self, IdMapping, Mount, NamespaceKind, Process, Resources, Spec, State, annotations};
use crate::state::Undo;
use crate::sys::clone::exit_now;
use crate::sys::mount::{Propagation, set_propagation};
use crate::sys::{path, selfexe};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Everything that can be decided before anything exists.
pub(super) struct Planned {
    pub(super) config: Loaded,
    pub(super) bundle: PathBuf,
    pub(super) process: Process,
    pub(super) preserved_fds: u32,
    pub(super) namespaces: namespaces::Plan,
    pub(super) joins: Vec<(NamespaceKind, OwnedFd)>,
    pub(super) rootfs: RootfsPlan,
    pub(super) capabilities: Sets,
    pub(super) filter: Option<Program>,
    pub(super) hook_files: hooks::Files,
    pub(super) cgroup: std::cell::Cell<Option<Manager>>,
    pub(super) service: Option<resctrl::Service>,
    pub(super) rootless: bool,
}

impl Planned {
    pub(super) fn new(
        context: &Context,
        request: &Request,
        console: &Option<OwnedFd>,
        started_by: StartedBy,
    ) -> Result<Planned> {
        let bundle = std::fs::canonicalize(&request.bundle)
            .doing_on("open the bundle", || request.bundle.display().to_string())
            .map_err(|error| error.class(Class::Config))?;
        let mut config = spec::load::load(&bundle)?;
        let shared = joined::resolve(context, &request.id, &mut config.spec)?;
        spec::validate(&config.spec)?;
        let service = resctrl::plan(&config.spec, &request.id, request.again)?;
        let mut process = config
            .spec
            .process
            .take()
            .ok_or_else(|| Error::config("process", "is missing: it must say what to run"))?;
        check_terminal(&process, console.is_some(), started_by)?;
        if started_by == StartedBy::Caller && console.is_none() {
            super::foreground::size_as_caller(&mut process);
        }
        let preserved_fds = request.preserve_fds.saturating_add(sockets::pass_on(&mut process));
        let mut rootfs = RootfsPlan::new(&config.spec, &bundle)?;
        // Only the annotation makes anyone look for the file.
        if config.spec.annotations.contains_key(Overlay::ANNOTATION) {
            rootfs.overlay = Overlay::load(&bundle)?;
        }
        if notify_socket::is_wanted() {
            rootfs.steps.push(notify_socket::mount(&context.store.directory(&request.id)));
            notify_socket::announce(&mut process);
        }
        rootfs_is_there(&rootfs.rootfs)?;
        let namespaces = namespaces::Plan::new(&config.spec.linux);
        let joins = namespaces.open()?;
        joined::verify(context, &shared)?;
        let filter = filter::compile(&config.spec)?;
        let cgroups_path = config.spec.linux.cgroups_path.as_deref();
        let mut cgroup = Manager::plan(context.cgroups, cgroups_path, &request.id, context.rootless)?;
        if let Some(name) = config.spec.annotations.get(annotations::SUBGROUP) {
            cgroup.set_subgroup(name)?;
        }
        cgroup.set_properties(&config.spec.annotations)?;
        Ok(Planned {
            capabilities: Sets::new(process.capabilities.as_ref()),
            hook_files: hooks::Files::open(&config.spec.annotations)?,
            filter,
            cgroup: std::cell::Cell::new(Some(cgroup)),
            service,
            rootless: context.rootless,
            config,
            bundle,
            process,
            preserved_fds,
            namespaces,
            joins,
            rootfs,
        })
    }

    pub(super) fn spec(&self) -> &Spec {
        &self.config.spec
    }

    /// Whether this process mounts the overlay that is to be the root, while the init makes its
    /// namespaces: as a detached mount, which is nowhere on the host. Without root's rights only the init
    /// can, in its user namespace.
    pub(super) fn makes_root(&self) -> bool {
        self.rootfs.overlay.is_some() && !self.rootless
    }

    /// Goes where the overlay is to be mounted, until what is answered is dropped, when the init will be
    /// root of a user namespace: it cannot search the image store, but a working directory comes with it into
    /// its mount namespace.
    pub(super) fn stand_in_rootfs(&self) -> Result<Option<Elsewhere>> {
        match self.makes_root() && self.spec().linux.has(NamespaceKind::User) {
            true => Elsewhere::go(&self.rootfs.rootfs).map(Some),
            false => Ok(None),
        }
    }

    /// Mounts it. With a user namespace of the container's own, its files show the owners that this one has.
    pub(super) fn mount_root(&self, overlay: &Overlay, init: Pid) -> Result<OwnedFd> {
        let maps = Maps::of(&self.spec().linux);
        let root = |map: &[IdMapping]| map.iter().find(|one| one.container_id == 0).map(|one| one.host_id);
        match (root(&maps.uids), root(&maps.gids)) {
            (Some(uid), Some(gid)) if self.namespaces.creates_user() => {
                let namespace = std::fs::File::open(format!("/proc/{init}/ns/user"))
                    .doing("open the container's user namespace")?;
                match overlay.mount_mapped(namespace.as_fd(), uid, gid) {
                    Err(error) if error.errno == Some(libc::EINVAL) => {
                        mounted_by_child(|| overlay.mount_mapped_in_place(namespace.as_fd(), uid, gid))
                    }
                    mounted => mounted,
                }
            }
            _ => overlay.mount(),
        }
    }

    /// The program that is to be PID 1 before the payload, when the configuration asks for one.
    pub(super) fn stand_in(&self) -> Result<Option<OwnedFd>> {
        match annotations::is_on(&self.spec().annotations, annotations::INIT) {
            true => selfexe::open().doing("open dhow's own program").map(Some),
            false => Ok(None),
        }
    }

    pub(super) fn resources(&self) -> std::borrow::Cow<'_, Resources> {
        match &self.spec().linux.resources {
            Some(resources) => std::borrow::Cow::Borrowed(resources),
            None => std::borrow::Cow::Owned(Resources::default()),
        }
    }

    /// How to take back what is made outside the state directory.
    pub(super) fn journal(&self, request: &Request, cgroup: &Manager) -> Result<Vec<Undo>> {
        let mut journal = request.undo.clone();
        if !self.spec().linux.has(NamespaceKind::Mount) {
            let at = self.rootfs.rootfs.clone();
            let below = path::mount_id(&at).doing_on("look at the rootfs", || at.display().to_string())?;
            journal.push(Undo::Mount { at, below });
        }
        journal.push(Undo::Cgroup(container::stored(cgroup)?));
        journal.extend(self.service.as_ref().map(resctrl::Service::undo));
        if let Some(network) = &request.network {
            journal.push(network.undo(&request.id)?);
        }
        Ok(journal)
    }

    /// Whose the cgroup is to be: that of the container's root, when it sees its cgroups as their
    /// root and may write to them (config-linux.md, "Cgroup ownership").
    pub(super) fn cgroup_owner(&self) -> Option<u32> {
        let linux = &self.spec().linux;
        let is_writable = |mount: &Mount| {
            matches!(mount.kind.as_str(), "cgroup" | "cgroup2")
                && !mount.options.iter().any(|word| word == "ro")
        };
        let may_manage = self.namespaces.new_cgroup && self.spec().mounts.iter().any(is_writable);
        let root = linux.uid_mappings.iter().find(|map| map.container_id == 0);
        root.filter(|_| may_manage && linux.has(NamespaceKind::User)).map(|map| map.host_id)
    }

    pub(super) fn bundle(&self) -> &str {
        self.bundle.to_str().unwrap_or_default()
    }
    /// The state of the container while it is made, as hooks and those who are told of it see it.
    pub(super) fn state<'a>(&'a self, id: &'a str, pid: i32) -> State<'a> {
        let spec = self.spec();
        State {
            oci_version: &spec.oci_version,
            id,
            status: "creating",
            pid,
            bundle: self.bundle(),
            annotations: &spec.annotations,
        }
    }
}

/// Mounts in a child that is alone in its mount namespace; what it has mounted comes from there.
fn mounted_by_child(mount: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let mounter = spawn((CloneFlags::CLONE_NEWNS, 0), None, |channel| {
        set_propagation(Path::new("/"), Propagation::Private, true).doing("leave the host's mounts alone")?;
        channel.send(&Message::Root(mount()?))?;
        exit_now(0)
    })?;
    let message = mounter.channel.expect();
    let _ = waitpid(mounter.child.pid, None);
    match message? {
        Message::Root(root) => Ok(root),
        other => Err(out_of_turn(&other)),
    }
}

/// A working directory for a while.
pub(super) struct Elsewhere {
    before: path::Root,
}

impl Elsewhere {
    fn go(to: &Path) -> Result<Elsewhere> {
        let doing = "change to the rootfs";
        let before = path::Root::at(Path::new(".")).doing(doing)?;
        nix::unistd::chdir(to).doing_on(doing, || to.display().to_string())?;
        Ok(Elsewhere { before })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It was there a moment ago; all paths that are used from here on are absolute, too.
        let _ = nix::unistd::fchdir(self.before.as_fd());
    }
}

/// What the container sees of its cgroups, in the words of the rootfs room.
pub(super) fn cgroup_view(cgroup: &Manager, namespaced: bool) -> CgroupView {
    let mounts = cgroup.mounts();
    let directory = |mount: &CgroupMount| PathBuf::from(format!("{}{}", mount.at, mount.path));
    match cgroup {
        Manager::Disabled => CgroupView::None,
        _ if mounts.is_empty() => CgroupView::None,
        // On v1 each hierarchy has a name; systemd may be on either.
        _ if !mounts[0].hierarchy.is_empty() => CgroupView::Legacy {
            hierarchies: mounts
                .iter()
                .filter(|mount| !mount.hierarchy.is_empty())
                .map(|mount| hierarchy(mount, directory(mount)))
                .collect(),
            namespaced,
        },
        _ => CgroupView::Unified { directory: directory(&mounts[0]), namespaced },
    }
}

fn hierarchy(mount: &CgroupMount, directory: PathBuf) -> Hierarchy {
    let name =
        Path::new(&mount.at).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut options: Vec<String> = mount.hierarchy.split(',').map(str::to_owned).collect();
    if mount.hierarchy.starts_with("name=") {
        // A hierarchy without controllers is asked for by name, and by saying so.
        options.insert(0, "none".into());
    }
    Hierarchy { name, options, directory }
}

fn rootfs_is_there(rootfs: &Path) -> Result<()> {
    let failed = |errno| {
        Error::system("open the rootfs", errno)
            .on(format!("root.path {}", rootfs.display()))
            .class(Class::Config)
    };
    match std::fs::metadata(rootfs) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(failed(Errno::ENOTDIR)),
        Err(error) => Err(failed(crate::sys::io_errno(&error))),
    }
}

/// A terminal needs somebody outside who holds its other end.
fn check_terminal(process: &Process, console_socket: bool, started_by: StartedBy) -> Result<()> {
    match (process.terminal, console_socket, started_by) {
        (true, false, StartedBy::Start) => Err(Error::new(Class::Config, "cannot allocate tty")
            .on("process.terminal")
            .because("dhow will detach without setting console socket")
            .hint("give --console-socket, or set process.terminal to false")),
        (false, true, _) => Err(Error::new(Class::Config, "cannot use console socket")
            .because("process.terminal is false, so dhow will not detach or allocate tty")
            .hint("leave out --console-socket, or set process.terminal to true")),
        _ => Ok(()),
    }
}
