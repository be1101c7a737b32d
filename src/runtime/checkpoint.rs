//! `checkpoint` and `restore`: a container's processes as files, by CRIU.

use super::container::{Container, Context};
use super::create::CONFIG;
use super::delete::remove;
use super::planned::Planned;
use crate::cgroups::{CgroupMount, Manager};
use crate::error::{Class, Context as _, Error, Result};
use crate::process::criu::{Criu, Fields, Kind, Second};
use crate::rootfs::Plan as RootfsPlan;
use crate::rootfs::plan::{Source, Step};
use crate::spec::annotations::CRIU_CONFIG;
use crate::spec::{self, Linux, NamespaceKind, Spec};
use crate::state::{Operation, Status};
use crate::sys::path::{Root, file_type, stat};
use nix::unistd::Pid;
use rustix::fs::{FileType, Mode, OFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What standard input, output and error were, in the image: runc's name and form.
pub(super) const DESCRIPTORS: &str = "descriptors.json";

/// How `checkpoint` and `restore` are to go about it. The defaults are criu's.
#[derive(Debug, Clone, Default)]
pub struct CheckpointOptions {
    /// Where the image is.
    pub image: PathBuf,
    /// Where logs and what is passing are; the image's directory otherwise.
    pub work: Option<PathBuf>,
    /// The image of an earlier pre-dump, relative to this one.
    pub parent: Option<PathBuf>,
    /// The container goes on.
    pub leave_running: bool,
    /// Write the memory alone, for a checkpoint that follows.
    pub pre_dump: bool,
    /// Connections of TCP are kept.
    pub tcp_established: bool,
    /// Connections that are being made are left out.
    pub tcp_skip_in_flight: bool,
    /// Files without a name get one.
    pub link_remap: bool,
    /// Unix sockets that lead out of the container are allowed.
    pub external_unix_sockets: bool,
    /// The container's session may be that of a shell outside.
    pub shell_job: bool,
    /// File locks are kept.
    pub file_locks: bool,
    /// Memory is fetched when it is touched.
    pub lazy_pages: bool,
    /// What is said there when the page server can be asked.
    pub status_fd: Option<i32>,
    /// Where memory is sent: address and port.
    pub page_server: Option<(String, u16)>,
    /// The network namespace is taken to be empty.
    pub empty_network: bool,
    /// Pages that a later image has are punched out of earlier ones.
    pub auto_dedup: bool,
    /// `enum criu_cg_mode`.
    pub manage_cgroups: Option<u64>,
    /// An AppArmor or SELinux profile in place of the stored one.
    pub lsm_profile: Option<String>,
    /// A mount context in place of the stored one.
    pub lsm_mount_context: Option<String>,
}

/// Directories of an image, opened for criu.
pub(super) struct Place {
    pub images: OwnedFd,
    pub work: OwnedFd,
    pub log: PathBuf,
}

impl Place {
    /// Opens them; that of the image must be there already unless it `is_new`.
    pub(super) fn open(options: &CheckpointOptions, log: &str, is_new: bool) -> Result<Place> {
        let open = |path: &Path| {
            if is_new || options.work.as_deref() == Some(path) {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.doing_on("make the directory for the image", || path.display().to_string())?;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty())
                .doing_on("open the directory of the image", || path.display().to_string())
        };
        let work = options.work.as_deref().unwrap_or(&options.image);
        Ok(Place { images: open(&options.image)?, work: open(work)?, log: work.join(log) })
    }
}

/// The part of criu's options that both directions have.
pub(super) fn common(options: &CheckpointOptions, place: &Place, spec: &Spec) -> Fields {
    let mut fields = Fields::default();
    let fd = |fd: &OwnedFd| u64::try_from(fd.as_raw_fd()).unwrap_or_default();
    let log = place.log.file_name().unwrap_or_default().as_encoded_bytes();
    fields.number(1, fd(&place.images)).number(17, fd(&place.work)).number(9, 4).bytes(10, log);
    fields.switch(4, options.external_unix_sockets).switch(5, options.tcp_established);
    fields.switch(7, options.shell_job).switch(8, options.file_locks).switch(12, true);
    fields.switch(16, options.auto_dedup).switch(18, options.link_remap).switch(24, true);
    fields.switch(46, options.tcp_skip_in_flight).switch(48, options.lazy_pages).switch(50, true);
    if let Some(mode) = options.manage_cgroups {
        fields.number(34, mode);
    }
    if options.empty_network {
        fields.number(38, u64::from(libc::CLONE_NEWNET.cast_unsigned()));
    }
    if let Some(file) = spec.annotations.get(CRIU_CONFIG).filter(|file| !file.is_empty()) {
        fields.bytes(51, file.as_bytes());
    }
    fields
}

/// Writes a container's processes into an image. They end, and the container goes, unless it is to
/// go on.
///
/// # Errors
/// [`Class::WrongState`]; [`Class::Unsupported`] without criu; criu's, with its log.
pub fn checkpoint(context: &Context, id: &str, options: &CheckpointOptions) -> Result<()> {
    let parent = options.parent.as_deref().map(|parent| check_parent(parent, &options.image)).transpose()?;
    let (locked, container) = Container::lock(context, id)?;
    // criu takes them frozen or not, and leaves them as it has found them: containerd and Docker pause first.
    if container.status != Status::Paused {
        container.allow(Operation::Pause)?;
    }
    let config: Spec = spec::load::parse(&context.store.read_file(id, CONFIG)?, Path::new(CONFIG))?;
    let plan = RootfsPlan::new(&config, &container.record.bundle)?;
    let pid = container.pid();
    let place = Place::open(options, "dump.log", true)?;
    let mut fields = common(options, &place, &config);
    fields.number(2, u64::from(pid.unsigned_abs()));
    fields.bytes(13, container.record.rootfs.as_os_str().as_encoded_bytes());
    fields.switch(3, options.leave_running || options.pre_dump).switch(15, options.pre_dump);
    if let Some(parent) = parent {
        fields.bytes(14, parent.as_os_str().as_encoded_bytes()).switch(15, true);
    }
    if let Some((address, port)) = &options.page_server {
        let mut server = Fields::default();
        server.bytes(1, address.as_bytes()).number(2, u64::from(*port));
        fields.message(11, &server);
    }
    if let Some(fd) = options.status_fd {
        fields.number(49, u64::from(fd.unsigned_abs()));
    }
    let cgroup = container.cgroup()?;
    if let Some(freezer) = freezer(&cgroup) {
        fields.bytes(44, freezer.as_bytes());
    }
    for (key, _) in external_namespaces(&config.linux)? {
        fields.bytes(37, key.as_bytes());
    }
    for point in mount_points(&plan, &config.linux, &cgroup, pid)? {
        fields.pair(23, &point, Second::Text(&point));
    }
    if !options.pre_dump {
        write_descriptors(&options.image, pid)?;
    }
    let kind = if options.pre_dump { Kind::PreDump } else { Kind::Dump };
    let mut criu = Criu::start(
        Path::new("criu"),
        "checkpoint the container",
        Vec::new(),
        &[&place.images, &place.work],
    )?;
    criu.request(kind, &fields, &place.log, |_| Ok(()))?;
    if options.leave_running || options.pre_dump {
        return Ok(());
    }
    // criu has killed them all.
    if let Ok(init) = crate::sys::pidfd::open(Pid::from_raw(pid)) {
        let _ = crate::sys::pidfd::wait_ended(init.as_fd(), Some(std::time::Duration::from_secs(10)));
    }
    remove(locked, container.record, false)
}

/// criu takes it relative to the image, and fails late when it is not there.
fn check_parent(parent: &Path, image: &Path) -> Result<PathBuf> {
    let wrong = |cause: &str| {
        Error::new(Class::Usage, "invalid value of --parent-path").on(format!("{parent:?}")).because(cause)
    };
    if parent.is_absolute() {
        return Err(wrong("it must be relative to --image-path"));
    }
    if !image.join(parent).is_dir() {
        return Err(wrong("there is no such directory below --image-path"));
    }
    Ok(parent.to_owned())
}

/// The cgroup by which criu stops all processes at once, and lets them go on when they were frozen
/// before: that of v1's freezer, or where there is none, of v2.
fn freezer(cgroup: &Manager) -> Option<String> {
    let mounts = cgroup.mounts();
    let find = |name: &str| mounts.iter().find(|mount| mount.hierarchy.split(',').any(|one| one == name));
    let freezer = find("freezer").or_else(|| find(""))?;
    Some(format!("{}{}", freezer.at, freezer.path))
}

/// Namespaces that were joined: they are no part of an image. The name that criu gives each, and its
/// path.
pub(super) fn external_namespaces(linux: &Linux) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for namespace in &linux.namespaces {
        let (word, key) = match NamespaceKind::from_name(&namespace.kind) {
            Some(NamespaceKind::Network) => ("net", "extRootNetNS"),
            Some(NamespaceKind::Pid) => ("pid", "extRootPidNS"),
            _ => continue,
        };
        if !namespace.path.is_empty() {
            let metadata = std::fs::metadata(&namespace.path)
                .doing_on("look at the namespace", || namespace.path.clone())?;
            all.push((format!("{word}[{}]:{key}", metadata.ino()), namespace.path.clone()));
        }
    }
    Ok(all)
}

/// Where the container's mounts of things outside are, as its own mount table has them.
fn mount_points(plan: &RootfsPlan, linux: &Linux, cgroup: &Manager, pid: i32) -> Result<Vec<String>> {
    let root = Root::at(Path::new(&format!("/proc/{pid}/root"))).doing("open the container's root")?;
    let table =
        std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).doing("read the container's mounts")?;
    let point_of = |path: &Path| {
        let found = root.resolve(path).ok()?;
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", found.as_raw_fd())).ok()?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
        let line = table.lines().find(|line| line.split(' ').next() == Some(&mount))?;
        line.split(' ').nth(4).map(str::to_owned)
    };
    let mut points: Vec<String> =
        plan.steps.iter().filter(|step| is_bind(step)).filter_map(|step| point_of(&step.target)).collect();
    for path in cgroup_binds(plan, linux, &cgroup.mounts()) {
        points.extend(point_of(&path.0));
    }
    points.extend(masked_files(&root, &linux.masked_paths));
    points.dedup();
    Ok(points)
}

pub(super) fn is_bind(step: &Step) -> bool {
    matches!(step.source, Source::Bind { .. })
}

/// On cgroup v1 without a cgroup namespace, the container's own directories are bound.
pub(super) fn cgroup_binds(
    plan: &RootfsPlan,
    linux: &Linux,
    mounts: &[CgroupMount],
) -> Vec<(PathBuf, String)> {
    if linux.has(NamespaceKind::Cgroup) {
        return Vec::new();
    }
    let steps = plan.steps.iter().filter(|step| matches!(step.source, Source::Cgroup));
    let legacy = mounts.iter().filter(|mount| !mount.hierarchy.is_empty());
    steps
        .flat_map(|step| {
            legacy.clone().filter_map(move |mount| {
                let name = Path::new(&mount.at).file_name()?;
                Some((step.target.join(name), format!("{}{}", mount.at, mount.path)))
            })
        })
        .collect()
}

/// The masked paths that the host's /dev/null covers.
fn masked_files(root: &Root, masked: &[String]) -> Vec<String> {
    let is_file = |path: &&String| {
        let found = root.resolve(Path::new(path)).ok();
        found
            .and_then(|fd| stat(fd.as_fd()).ok())
            .is_some_and(|stat| file_type(&stat) == FileType::CharacterDevice)
    };
    masked.iter().filter(is_file).cloned().collect()
}

fn write_descriptors(image: &Path, pid: i32) -> Result<()> {
    let links: Vec<String> = (0..3)
        .map(|fd| {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap_or_default();
            link.display().to_string()
        })
        .collect();
    let text = serde_json::to_string(&links).unwrap_or_default();
    std::fs::write(image.join(DESCRIPTORS), text)
        .doing_on("write", || image.join(DESCRIPTORS).display().to_string())
}

/// What restore needs of the plan of a container.
pub(super) fn plan_of(planned: &Planned) -> (&RootfsPlan, &Spec) {
    (&planned.rootfs, planned.spec())
}
