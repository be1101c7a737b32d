//! `restore`: a container's processes from an image that `checkpoint` has written.

use super::checkpoint::{
    CheckpointOptions, DESCRIPTORS, Place, cgroup_binds, common, external_namespaces, is_bind, plan_of,
};
use super::container::Context;
use super::create::{
    Planned, Recorded, Request, StartedBy, connect_console_socket, run_hooks, send_console, write_pid_file,
};
use super::delete::delete;
use super::foreground::{Signals, stay};
use super::run::RunOptions;
use crate::cgroups::Placement;
use crate::error::{Class, Context as _, Error, Result};
use crate::process::criu::{Criu, Fields, Kind, Second};
use crate::rootfs::Overlay;
use crate::rootfs::plan::{Source, Step};
use crate::state::{Init, Phase};
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
    let place = Place::open(options, "restore.log", options.work.is_some())?;
    let (fields, kept) = describe(&planned, &recorded, options, &place, &root.0)?;
    let kept: Vec<&OwnedFd> = kept.iter().chain([&place.images, &place.work]).collect();
    let mut criu = Criu::start(Path::new("criu"), "restore the container", files(placement)?, &kept)?;
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
    let child = Child {
        pid: Pid::from_raw(pid),
        pidfd: pidfd::open(Pid::from_raw(pid)).doing("open the restored process")?,
    };
    let locked = recorded.settle(pid)?;
    if let Some(file) = &request.pid_file {
        write_pid_file(file, pid)?;
    }
    let kept = match (master, console) {
        (Some(master), Some(socket)) => {
            send_console(&socket, &master)?;
            None
        }
        (master, _) => master,
    };
    drop(locked);
    if how.detach {
        return Ok(0);
    }
    let status = stay(&child, &Signals::hold()?, kept)?;
    if !how.keep {
        delete(context, &request.id, false)?;
    }
    Ok(status)
}

impl Recorded {
    /// Makes the cgroup, with its limits.
    fn enter_cgroup(&mut self, planned: &Planned) -> Result<Placement> {
        self.cgroup.create()?;
        self.cgroup.apply(&planned.resources())?;
        self.cgroup.placement()
    }

    /// Writes down that the container runs. From here on it stays.
    fn settle(mut self, pid: i32) -> Result<crate::state::Locked> {
        let ended = || Error::new(Class::System, "look at the restored process").because("it ended at once");
        let stat = pidfd::stat(Pid::from_raw(pid)).ok().flatten().ok_or_else(ended)?;
        self.record.init = Some(Init { pid, start_time: stat.start_time });
        self.record.phase = Phase::Started;
        self.record.restored = true;
        let gone = || Error::new(Class::Internal, "use a container that was given away");
        let locked = self.locked.take().ok_or_else(gone)?;
        locked.write(&self.record)?;
        Ok(locked)
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
        for step in plan.steps.iter().filter(|step| is_bind(step) && !in_tmpfs(&plan.steps, step)) {
            if let Source::Bind { source, .. } = &step.source {
                let source = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                    .doing_on("mount", || &*step.field)?;
                let is_directory = is_directory(source.as_fd()).doing_on("mount", || &*step.field)?;
                let leaf = if is_directory { Leaf::Directory } else { Leaf::File };
                root.make(&step.target, leaf).doing_on("make the mount point", || &*step.field)?;
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

/// criu's options, and the fds that they name.
fn describe(
    planned: &Planned,
    recorded: &Recorded,
    options: &CheckpointOptions,
    place: &Place,
    directory: &Path,
) -> Result<(Fields, Vec<OwnedFd>)> {
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
    let mut kept = Vec::new();
    for (key, path) in external_namespaces(&spec.linux)? {
        let name = key.split_once(':').map_or(key.as_str(), |(_, name)| name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let opened =
            rustix::fs::open(path.as_str(), flags, Mode::empty()).doing_on("open the namespace", || path)?;
        fields.pair(27, name, Second::Number(u64::try_from(opened.as_raw_fd()).unwrap_or_default()));
        kept.push(opened);
    }
    for (number, link) in descriptors(&options.image).into_iter().enumerate().take(3) {
        // Pipes of whoever made the container; those of whoever restores it take their place.
        if link.starts_with("pipe:") {
            fields.pair(27, &link, Second::Number(number as u64));
        }
    }
    Ok((fields, kept))
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
