//! Which namespaces to create and which to join, by which process, in which order.
//!
//! The kernel's rules that fix the order:
//! - a namespace is owned by the user namespace that its creator is in, so the user namespace
//!   comes first among those that are created;
//! - joining asks for CAP_SYS_ADMIN over the namespace's owner, which a process that has already
//!   entered a new user namespace has lost, so the user namespace comes last among those that
//!   are joined;
//! - a pid namespace, and the offsets of a time namespace, take effect only for children.

mod devices;
mod idmap;

pub use devices::move_devices;
pub use idmap::{Maps, write_maps};

use crate::error::{Class, Context, Error, Result};
use crate::spec::{Linux, NamespaceKind, TimeOffset};
use crate::sys::clone::CLONE_NEWTIME;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A namespace that is there already.
#[derive(Debug)]
pub struct Join {
    /// Its kind.
    pub kind: NamespaceKind,
    /// Where config.json says it is.
    pub path: String,
}

/// Who does what to bring the init into its namespaces.
#[derive(Debug, Default)]
pub struct Plan {
    /// To join, the user namespace last.
    pub join: Vec<Join>,
    /// Created by the very clone3(2) that makes the init: user and pid, and time without offsets.
    pub at_clone: Vec<NamespaceKind>,
    /// Created by the init for itself: network, ipc, uts, mount.
    pub by_init: Vec<NamespaceKind>,
    /// Whether the init makes its cgroup namespace, once it is in its cgroup.
    pub new_cgroup: bool,
    /// The offsets of a new time namespace.
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// Whether a short-lived process stands between the runtime and the init, because something
    /// takes effect only for children, or must be joined before the user namespace is entered.
    pub staged: bool,
}

impl Plan {
    /// The plan for a configuration. Pure.
    pub fn new(linux: &Linux) -> Plan {
        let mut plan = Plan { time_offsets: linux.time_offsets.clone(), ..Plan::default() };
        for kind in NamespaceKind::ALL {
            let Some(namespace) = linux.namespace(kind) else { continue };
            if !namespace.path.is_empty() {
                plan.join.push(Join { kind, path: namespace.path.clone() });
                continue;
            }
            match kind {
                NamespaceKind::User | NamespaceKind::Pid | NamespaceKind::Time => plan.at_clone.push(kind),
                NamespaceKind::Cgroup => plan.new_cgroup = true,
                _ => plan.by_init.push(kind),
            }
        }
        plan.join.sort_by_key(|join| join.kind == NamespaceKind::User);
        let joins = |kind| plan.join.iter().any(|join| join.kind == kind);
        let new_user = plan.at_clone.contains(&NamespaceKind::User);
        plan.staged = joins(NamespaceKind::Pid)
            || joins(NamespaceKind::User)
            || (new_user && !plan.join.is_empty())
            || !plan.time_offsets.is_empty();
        plan
    }

    /// Whether the init gets a user namespace of its own, whose maps somebody has to write.
    pub fn creates_user(&self) -> bool {
        self.at_clone.contains(&NamespaceKind::User)
    }

    /// The flags of the clone3(2) that makes the init.
    pub fn clone_flags(&self) -> (CloneFlags, u64) {
        let mut flags = CloneFlags::empty();
        let mut more = 0;
        for kind in &self.at_clone {
            match kind {
                // The process between has unshared it, with its offsets.
                NamespaceKind::Time if !self.time_offsets.is_empty() => {}
                NamespaceKind::Time => more |= CLONE_NEWTIME,
                kind => flags |= flag(*kind),
            }
        }
        (flags, more)
    }

    /// The flags of the unshare(2) by which the init makes the rest.
    pub fn unshare_flags(&self) -> CloneFlags {
        self.by_init.iter().map(|&kind| flag(kind)).collect()
    }

    /// Opens what is to be joined, and makes sure that each is what config.json says it is.
    ///
    /// # Errors
    /// [`Class::Config`] when a path is not a namespace of its kind.
    pub fn open(&self) -> Result<Vec<(NamespaceKind, OwnedFd)>> {
        self.join.iter().map(|join| Ok((join.kind, open_namespace(join)?))).collect()
    }
}

/// Joins namespaces, in the order of the plan. One that is refused is tried again after the user
/// namespace was joined: it may belong to that one.
///
/// # Errors
/// EPERM and EINVAL of setns(2), with the kind of namespace.
pub fn join(namespaces: &[(NamespaceKind, OwnedFd)]) -> Result<()> {
    let mut refused = Vec::new();
    for (kind, fd) in namespaces {
        match setns(fd.as_fd(), flag(*kind)) {
            Ok(()) => {}
            Err(Errno::EPERM) if *kind != NamespaceKind::User => refused.push((*kind, fd)),
            Err(errno) => return Err(join_failed(*kind, errno)),
        }
    }
    for (kind, fd) in refused {
        setns(fd.as_fd(), flag(kind)).map_err(|errno| join_failed(kind, errno))?;
    }
    Ok(())
}

/// Makes new namespaces for this process.
///
/// # Errors
/// unshare(2)'s; the limits of /proc/sys/user are named as such.
pub fn create(flags: CloneFlags) -> Result<()> {
    if flags.is_empty() {
        return Ok(());
    }
    unshare(flags).map_err(|errno| create_failed("create namespaces", errno))
}

/// The error for namespaces that could not be made, with the limit that is the usual cause.
pub fn create_failed(doing: &str, errno: Errno) -> Error {
    let error = Error::system(doing, errno);
    match errno {
        Errno::ENOSPC | Errno::EUSERS => error
            .because("a limit of namespaces is reached")
            .hint("see /proc/sys/user/max_*_namespaces, and that of every user namespace around this one"),
        Errno::EPERM => error.hint("without root, a user namespace is needed: add one to linux.namespaces"),
        Errno::EINVAL => error.hint("the kernel may lack a kind of namespace: see /proc/self/ns"),
        _ => error,
    }
}

/// Makes a time namespace for the children of this process, and sets its clocks before one enters.
///
/// # Errors
/// EPERM, ERANGE for an offset beyond the clock's range, EINVAL on kernels before 5.6.
pub fn create_time(offsets: &BTreeMap<String, TimeOffset>) -> Result<()> {
    unshare(flag(NamespaceKind::Time)).map_err(|errno| create_failed("create a time namespace", errno))?;
    for (clock, offset) in offsets {
        let line = format!("{clock} {} {}\n", offset.secs, offset.nanosecs);
        std::fs::write("/proc/self/timens_offsets", line).map_err(|error| {
            Error::system("set the clock of the time namespace", crate::sys::io_errno(&error))
                .on(format!("linux.timeOffsets.{clock}"))
        })?;
    }
    Ok(())
}

/// Does something in the mount namespace of a process, with all the rights of this one, and comes
/// back. The working directory is the same afterwards; in between it is the root.
///
/// # Errors
/// setns(2)'s, and what `work` says.
pub fn within_mounts_of(process: BorrowedFd<'_>, work: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let doing = "enter the container's mount namespace";
    let open = |path, flags| rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).doing(doing);
    let own = open("/proc/self/ns/mnt", OFlags::RDONLY)?;
    let directory = open(".", OFlags::PATH | OFlags::DIRECTORY)?;
    setns(process, CloneFlags::CLONE_NEWNS).doing(doing)?;
    let result = work();
    setns(own.as_fd(), CloneFlags::CLONE_NEWNS).doing("come back to the host's mount namespace")?;
    nix::unistd::fchdir(directory.as_fd()).doing("come back to the working directory")?;
    result
}

/// The flag of clone(2), unshare(2) and setns(2) for a kind.
pub fn flag(kind: NamespaceKind) -> CloneFlags {
    match kind {
        NamespaceKind::User => CloneFlags::CLONE_NEWUSER,
        NamespaceKind::Pid => CloneFlags::CLONE_NEWPID,
        NamespaceKind::Network => CloneFlags::CLONE_NEWNET,
        NamespaceKind::Ipc => CloneFlags::CLONE_NEWIPC,
        NamespaceKind::Uts => CloneFlags::CLONE_NEWUTS,
        NamespaceKind::Mount => CloneFlags::CLONE_NEWNS,
        NamespaceKind::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        // Fits: it is bit 7.
        NamespaceKind::Time => CloneFlags::from_bits_retain(i32::try_from(CLONE_NEWTIME).unwrap_or(0)),
    }
}

fn open_namespace(join: &Join) -> Result<OwnedFd> {
    let field = || format!("linux.namespaces: {} namespace {}", join.kind.name(), join.path);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(join.path.as_str(), flags, Mode::empty()).map_err(|errno| {
        Error::system("open a namespace", crate::sys::errno(errno)).on(field()).class(Class::Config)
    })?;
    let wrong = |cause: String| Err(Error::new(Class::Config, "open a namespace").on(field()).because(cause));
    match crate::sys::clone::namespace_kind(fd.as_fd()) {
        Ok(found) if found == flag(join.kind) => Ok(fd),
        Ok(_) => wrong(format!("it is a namespace, but not a {} namespace", join.kind.name())),
        Err(_) => wrong("it is not a namespace".to_owned()),
    }
}

fn join_failed(kind: NamespaceKind, errno: Errno) -> Error {
    Error::system("join a namespace", errno).on(kind.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use NamespaceKind::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};

    fn plan(namespaces: impl serde::Serialize) -> Plan {
        let linux: Linux = serde_json::from_value(serde_json::json!({ "namespaces": namespaces })).unwrap();
        Plan::new(&linux)
    }

    fn kinds(kinds: &[&str]) -> serde_json::Value {
        kinds.iter().map(|kind| serde_json::json!({ "type": kind })).collect()
    }

    #[test]
    fn the_usual_container_takes_one_clone() {
        let plan = plan(kinds(&["mount", "network", "uts", "pid", "ipc", "cgroup"]));
        assert_eq!(plan.at_clone, [Pid]);
        assert_eq!(plan.by_init, [Network, Ipc, Uts, Mount]);
        assert!(plan.new_cgroup && !plan.staged);
        assert_eq!(plan.clone_flags(), (CloneFlags::CLONE_NEWPID, 0));
        assert!(!plan.unshare_flags().contains(CloneFlags::CLONE_NEWCGROUP));
        assert!(!plan.by_init.contains(&Cgroup));
    }

    #[test]
    fn a_user_namespace_is_made_first_and_joined_last() {
        let new = plan(kinds(&["mount", "user", "pid"]));
        assert_eq!(new.at_clone, [User, Pid]);
        assert!(new.creates_user() && !new.staged);
        let joined = plan(serde_json::json!([
            {"type": "user", "path": "/u"}, {"type": "network", "path": "/n"}, {"type": "mount"}, {"type": "pid"}
        ]));
        assert_eq!(joined.join.iter().map(|join| join.kind).collect::<Vec<_>>(), [Network, User]);
        assert!(joined.staged);
    }

    #[test]
    fn only_what_needs_a_child_is_staged() {
        let path = |kind: &str| serde_json::json!([{"type": "mount"}, {"type": kind, "path": "/x"}]);
        assert!(plan(path("pid")).staged);
        assert!(!plan(path("network")).staged);
        assert!(!plan(path("ipc")).staged);
        assert!(!plan(path("time")).staged);
        let time = plan(kinds(&["mount", "time"]));
        assert_eq!((time.at_clone.as_slice(), time.staged), (&[Time][..], false));
        assert_eq!(time.clone_flags().1, CLONE_NEWTIME);
        assert_eq!(time.by_init, [Mount]);
        assert!(!time.by_init.contains(&Uts) && !time.by_init.contains(&Ipc));
    }

    #[test]
    fn a_path_that_is_no_such_namespace_is_named() {
        for (path, words) in [
            ("/proc/self/ns/net", "not a uts namespace"),
            ("/dev/null", "it is not a namespace"),
            ("/nonexistent", "no such file or directory"),
        ] {
            let plan = plan(serde_json::json!([{"type": "mount"}, {"type": "uts", "path": path}]));
            let error = plan.open().unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(path), "{error}");
        }
        assert_eq!(
            plan(serde_json::json!([{"type": "uts", "path": "/proc/self/ns/uts"}])).open().unwrap().len(),
            1
        );
    }
}
