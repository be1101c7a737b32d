//! `restore`: a container's processes from an image that `checkpoint` has written.

use super::checkpoint::{
    CheckpointOptions, DESCRIPTORS, Place, cgroup_binds, common, external_namespaces, is_bind, plan_of,
};
use super::container::{self, Context};
use super::create::{Recorded, Request, StartedBy, run_hooks};
use super::foreground::{Signals, stay};
use super::handover::{connect_console_socket, send_console, write_pid_file};
use super::planned::Planned;
use super::resctrl;
use super::run::{RunOptions, delete_after_last_life};
use crate::cgroups::Placement;
use crate::error::{Class, Context as _, Error, Result};
use crate::process::criu::{Criu, Fields, Kind, Second};
use crate::rootfs::Overlay;
use crate::rootfs::plan::{Source, Step};
use crate::spec::{NamespaceKind, Spec};
use crate::state::{Init, Locked, Phase, Undo};
use crate::sys::clone::Child;
use crate::sys::mount::{self, Propagation};
use crate::sys::path::{Leaf, Root, is_directory};
use crate::sys::{fd, pidfd};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use rustix::fs::{CWD, Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The largest file of descriptors that is believed.
const MOST_DESCRIPTORS: u64 = 64 * 1024;

/// Restores a container. Answers the payload's exit status, 0 when detached.
///
/// # Errors
/// Those of create; criu's, with its log. Nothing is left behind.
pub fn restore(
    context: &Context,
    request: &Request,
    options: &CheckpointOptions,
    how: RunOptions,
) -> Result<i32> {
    context.store.check_free(&request.id)?;
    let console = request.console_socket.as_deref().map(connect_console_socket).transpose()?;
    let started_by = if how.detach { StartedBy::Start } else { StartedBy::Caller };
    let planned = Planned::new(context, request, &console, started_by)?;
    let mut recorded = planned.record(context, request)?;
    let placement = recorded.enter_cgroup(&planned)?;
    let root = CriuRoot::prepare(&planned, &recorded)?;
    // In the new mount namespace: criu mounts below its work directory.
    let place = Place::open(options, "restore.log", false)?;
    let joined = open_joined(planned.spec())?;
    let kept: Vec<&OwnedFd> = joined.iter().map(|(_, fd)| fd).chain([&place.images, &place.work]).collect();
    let mut criu = Criu::start(Path::new("criu"), "restore the container", files(placement)?, &kept)?;
    recorded.adopt(&planned, criu.pid())?;
    let fields = describe(&planned, &recorded, options, (&place, &root.0), &joined)?;
    let mut master = None;
    let pid = criu.request(Kind::Restore, &fields, &place.log, |notification| {
        match notification.script.as_str() {
            "setup-namespaces" => run_hooks(&planned, &request.id, notification.pid),
            "orphan-pts-master" => {
                master = notification.fd;
                Ok(())
            }
            _ => Ok(()),
        }
    })?;
    drop((criu, root));
    let restored = Restored::open(pid)?;
    let kept = match (master, console) {
        (Some(master), Some(socket)) => {
            send_console(&socket, &master)?;
            None
        }
        (master, _) => master,
    };
    let child = recorded.settle(restored, request.pid_file.as_deref())?;
    if how.detach {
        return Ok(0);
    }
    let status = stay(&child, &Signals::hold()?, kept)?;
    if !how.keep {
        delete_after_last_life(context, &request.id)?;
    }
    Ok(status)
}

/// What criu has started. Dropped before the record tells of it, it ends.
struct Restored(Option<Child>);

impl Drop for Restored {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            let _ = pidfd::send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            let _ = nix::sys::wait::waitpid(child.pid, None);
        }
    }
}

impl Restored {
    fn open(pid: i32) -> Result<Restored> {
        let pid = Pid::from_raw(pid);
        let pidfd = pidfd::open(pid).doing("open the restored process")?;
        Ok(Restored(Some(Child { pid, pidfd })))
    }
}

impl Recorded {
    /// Makes the cgroup, with its limits. From here on delete ends all that is in it: a runtime that
    /// is killed between criu's work and the record of it knows no init.
    fn enter_cgroup(&mut self, planned: &Planned) -> Result<Placement> {
        self.record.restored = true;
        self.locked()?.write(&self.record)?;
        if let Some(service) = &planned.service {
            service.prepare()?;
            // What criu starts inherits it from criu, and criu from this process.
            resctrl::enter(&self.record, std::process::id())?;
        }
        self.cgroup.create()?;
        self.cgroup.apply(&planned.resources())?;
        self.cgroup.placement()
    }

    /// Has systemd make the cgroup around criu, where it is systemd's: what criu starts is in it too.
    fn adopt(&mut self, planned: &Planned, criu: i32) -> Result<()> {
        if !self.cgroup.needs_adopt() {
            return Ok(());
        }
        self.cgroup.adopt(criu, &planned.resources(), planned.rootless)?;
        self.record.replace_undo(Undo::Cgroup(container::stored(&self.cgroup)?));
        self.locked()?.write(&self.record)
    }

    /// criu goes on with the clocks of the checkpoint, in a time namespace of its own making: an exec has to
    /// join it, and the next checkpoint cannot take processes of two.
    fn note_time_namespace(&mut self, pid: Pid) {
        let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/time")).ok();
        let time = NamespaceKind::Time.name();
        let is_known = self.record.namespaces.iter().any(|name| name == time);
        if !is_known && link(&pid.to_string()) != link("self") {
            self.record.namespaces.push(time.to_owned());
        }
    }

    /// Writes down that the container runs. From here on it stays.
    fn settle(mut self, mut restored: Restored, pid_file: Option<&Path>) -> Result<Child> {
        let ended = || Error::new(Class::System, "look at the restored process").because("it ended at once");
        let child = restored.0.as_ref().ok_or_else(ended)?;
        let pid = child.pid;
        let stat = pidfd::stat(pid).ok().flatten().ok_or_else(ended)?;
        self.record.init = Some(Init { pid: pid.as_raw(), start_time: stat.start_time });
        self.note_time_namespace(pid);
        self.record.phase = Phase::Started;
        if let Some(file) = pid_file {
            write_pid_file(file, pid.as_raw())?;
        }
        if let Err(error) = self.locked().and_then(|locked| locked.write(&self.record)) {
            if let Some(file) = pid_file {
                let _ = std::fs::remove_file(file);
            }
            return Err(error);
        }
        drop::<Option<Locked>>(self.locked.take());
        restored.0.take().ok_or_else(ended)
    }
}

/// The rootfs as a mount of its own, as criu wants it: in a mount namespace of this process's, so that
/// nothing of it is ever seen outside.
struct CriuRoot(PathBuf);

impl Drop for CriuRoot {
    fn drop(&mut self) {
        let _ = mount::detach(&self.0);
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl CriuRoot {
    fn prepare(planned: &Planned, recorded: &Recorded) -> Result<CriuRoot> {
        let doing = "prepare the root for criu";
        unshare(CloneFlags::CLONE_NEWNS).doing(doing)?;
        mount::set_propagation(Path::new("/"), Propagation::Slave, true).doing(doing)?;
        let (plan, _) = plan_of(planned);
        let directory = recorded.path()?.join("criu-root");
        std::fs::create_dir(&directory).doing(doing)?;
        let directory = CriuRoot(directory);
        let tree = match &plan.overlay {
            Some(overlay) => Overlay::mount(overlay)?,
            None => mount::open_tree(CWD, &plan.rootfs, true, true)
                .doing_on(doing, || plan.rootfs.display().to_string())?,
        };
        let root = Root::from(tree);
        let target = Root::at(&directory.0).doing(doing)?;
        mount::attach(root.as_fd(), target.as_fd()).doing(doing)?;
        let mut bound: Vec<(&Path, Root)> = Vec::new();
        for step in plan.steps.iter().filter(|step| is_bind(step) && !in_tmpfs(&plan.steps, step)) {
            if let Source::Bind { source, .. } = &step.source {
                let source = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .doing_on("mount", || &*step.field)?;
                let is_directory = is_directory(source.as_fd()).doing_on("mount", || &*step.field)?;
                let leaf = if is_directory { Leaf::Directory } else { Leaf::File };
                // Below another one, its place is in what is bound there.
                let above = bound.iter().rev().find_map(|(target, root)| {
                    let rest = step.target.strip_prefix(target).ok()?;
                    Some((root, rest)).filter(|(_, rest)| !rest.as_os_str().is_empty())
                });
                let (place, target) = above.unwrap_or((&root, &step.target));
                place.make(target, leaf).doing_on("make the mount point", || &*step.field)?;
                if is_directory {
                    bound.push((&step.target, Root::from(source)));
                }
            }
        }
        Ok(directory)
    }
}

/// Whether a tmpfs of the container holds the place: criu brings its content, mount points too.
fn in_tmpfs(steps: &[Step], step: &Step) -> bool {
    let is_tmpfs =
        |other: &&Step| matches!(&other.source, Source::Filesystem { kind, .. } if kind == "tmpfs");
    steps.iter().filter(is_tmpfs).any(|tmpfs| step.target.starts_with(&tmpfs.target))
}

/// The namespaces that the container joins, under criu's names for them.
fn open_joined(spec: &Spec) -> Result<Vec<(String, OwnedFd)>> {
    let open = |(key, path): (String, String)| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened =
            rustix::fs::open(path.as_str(), flags, Mode::empty()).doing_on("open the namespace", || path)?;
        let name = key.split_once(':').map_or(key.as_str(), |(_, name)| name);
        Ok((name.to_owned(), opened))
    };
    external_namespaces(&spec.linux)?.into_iter().map(open).collect()
}

/// criu's options.
fn describe(
    planned: &Planned,
    recorded: &Recorded,
    options: &CheckpointOptions,
    (place, directory): (&Place, &Path),
    joined: &[(String, OwnedFd)],
) -> Result<Fields> {
    let (plan, spec) = plan_of(planned);
    let mut fields = common(options, place, spec);
    fields.bytes(13, directory.as_os_str().as_encoded_bytes()).switch(6, true).switch(26, true);
    for (field, text) in [(53, &options.lsm_profile), (63, &options.lsm_mount_context)] {
        if let Some(text) = text {
            fields.bytes(field, text.as_bytes());
        }
    }
    let root = Root::at(directory).doing("open the root for criu")?;
    let mut external = |inside: String, outside: &str| {
        fields.pair(23, &inside, Second::Text(outside));
    };
    for step in plan.steps.iter().filter(|step| is_bind(step)) {
        if let Source::Bind { source, .. } = &step.source {
            external(real_place(&root, directory, &step.target), &source.display().to_string());
        }
    }
    for (inside, outside) in cgroup_binds(plan, &spec.linux, &recorded.cgroup.mounts()) {
        external(inside.display().to_string(), &outside);
    }
    for path in &spec.linux.masked_paths {
        external(path.clone(), "/dev/null");
    }
    for mount in recorded.cgroup.mounts().iter().filter(|mount| !mount.hierarchy.is_empty()) {
        fields.pair(25, &mount.hierarchy, Second::Text(&mount.path));
    }
    for (name, opened) in joined {
        fields.pair(27, name, Second::Number(u64::try_from(opened.as_raw_fd()).unwrap_or_default()));
    }
    for (number, link) in descriptors(&options.image).into_iter().enumerate().take(3) {
        // Pipes of whoever made the container; those of whoever restores it take their place.
        if link.starts_with("pipe:") {
            fields.pair(27, &link, Second::Number(number as u64));
        }
    }
    Ok(fields)
}

/// A destination without its symlinks: criu knows mounts by where they really are.
fn real_place(root: &Root, directory: &Path, target: &Path) -> String {
    let found =
        root.resolve(target).ok().and_then(|found| std::fs::read_link(fd::proc_path(found.as_fd())).ok());
    let inside = found.as_deref().and_then(|path| path.strip_prefix(directory).ok());
    inside.map_or_else(|| target.display().to_string(), |path| format!("/{}", path.display()))
}

/// What the image says of standard input, output and error. Names, and nothing else, are taken from
/// it: an image may come from anywhere.
fn descriptors(image: &Path) -> Vec<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(image.join(DESCRIPTORS))
        .and_then(|file| file.take(MOST_DESCRIPTORS).read_to_string(&mut text));
    read.ok().and_then(|_| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// The files by which criu, and with it all that it starts, gets into the cgroup.
fn files(placement: Placement) -> Result<Vec<OwnedFd>> {
    let procs = |directory: &OwnedFd| {
        rustix::fs::openat(directory, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .doing("enter the cgroup")
    };
    Ok(match placement {
        Placement::None => Vec::new(),
        Placement::Tasks(tasks) => tasks,
        Placement::IntoCgroup(directory) => vec![procs(&directory)?],
        Placement::Hybrid(directory, mut tasks) => {
            tasks.push(procs(&directory)?);
            tasks
        }
    })
}
