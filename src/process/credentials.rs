//! What the payload may do: limits, ids, capabilities, labels; the last things before it runs.

use crate::error::{Class, Context, Error, Result};
use crate::log;
use crate::spec::{Capabilities, Process, Rlimit};
use crate::sys::cred::{self, CapBits};
use crate::sys::procfs::Proc;
use crate::sys::{self, prctl};
use caps::Capability;
use nix::errno::Errno;
use std::ffi::CString;
use std::path::Path;
use std::str::FromStr;

/// The five sets as bits, decided before the process exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    bounding: CapBits,
    effective: CapBits,
    inheritable: CapBits,
    permitted: CapBits,
    ambient: CapBits,
}

impl Sets {
    /// The sets of a configuration. A name that is unknown is a warning, as with runc: a
    /// configuration for a newer kernel should still start.
    pub fn new(capabilities: Option<&Capabilities>) -> Sets {
        let Some(capabilities) = capabilities else { return Sets::default() };
        let mut unknown = Vec::new();
        let mut bits = |names: &[String]| -> CapBits {
            names.iter().fold(0, |bits, name| match Capability::from_str(name) {
                Ok(capability) => bits | capability.bitmask(),
                Err(_) => {
                    unknown.push(name.clone());
                    bits
                }
            })
        };
        let sets = Sets {
            bounding: bits(&capabilities.bounding),
            effective: bits(&capabilities.effective),
            inheritable: bits(&capabilities.inheritable),
            permitted: bits(&capabilities.permitted),
            ambient: bits(&capabilities.ambient),
        };
        warn_of(unknown);
        sets
    }

    /// Adds capabilities by name to every set but the inheritable one, as `exec --cap` does
    /// (CVE-2022-29162: the inheritable set stays as it is). One that this dhow does not know is warned of
    /// and left out, as it is in a config.json.
    pub fn add(&mut self, names: &[String]) {
        let mut unknown = Vec::new();
        for name in names {
            let Ok(capability) = Capability::from_str(name) else {
                unknown.push(name.clone());
                continue;
            };
            let bit = capability.bitmask();
            for set in [&mut self.bounding, &mut self.effective, &mut self.permitted] {
                *set |= bit;
            }
            // The ambient form keeps it for a user who is not root. An ambient capability must be
            // inheritable; it is so only when the configuration's own inheritable set has it.
            self.ambient |= bit & self.inheritable;
        }
        warn_of(unknown);
    }

    fn drop_bounding(self) -> Result<()> {
        let doing = "drop capabilities from the bounding set";
        for number in 0..64 {
            if self.bounding & 1 << number != 0 {
                continue;
            }
            match cred::drop_from_bounding_set(number) {
                Ok(()) => {}
                // The first number that this kernel does not know: all are done.
                Err(Errno::EINVAL) => break,
                // Without the privilege, what is not there need not be dropped.
                Err(Errno::EPERM) if matches!(cred::is_in_bounding_set(number), Ok(false)) => {}
                Err(errno) => return Err(Error::system(doing, errno).on("process.capabilities.bounding")),
            }
        }
        Ok(())
    }

    /// `kept` stays until execve(2), which takes it.
    fn set(self, kept: CapBits) -> Result<()> {
        cred::capset(self.effective | kept, self.permitted | kept, self.inheritable).map_err(|errno| {
            let error = Error::system("set capabilities", errno).on("process.capabilities");
            match missing(self.permitted | self.inheritable) {
                Some(names) if errno == Errno::EPERM => {
                    error.because(format!("dhow itself does not have {names}"))
                }
                _ => error,
            }
        })?;
        match cred::clear_ambient() {
            // Kernels before 4.3 have no ambient set, and nothing to clear.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(Error::system("clear ambient capabilities", errno)),
        }
        for number in (0..64).filter(|number| self.ambient & 1 << number != 0) {
            // runc warns and goes on: an ambient capability that is not also permitted and
            // inheritable is a mistake in many configurations.
            if let Err(errno) = cred::raise_ambient(number) {
                let name = caps::all().into_iter().find(|capability| capability.index() == number);
                let name = name.map_or_else(|| number.to_string(), |capability| capability.to_string());
                let why = crate::error::describe(errno);
                log::warn(&format!("can't raise ambient capability {name}: {why}"));
            }
        }
        Ok(())
    }
}

/// A capability, if this process is permitted to have it.
fn held(capability: Capability) -> CapBits {
    cred::capget().map_or(0, |(_, permitted, _)| permitted & capability.bitmask())
}

fn warn_of(mut unknown: Vec<String>) {
    unknown.sort_unstable();
    unknown.dedup();
    if !unknown.is_empty() {
        log::warn(&format!("ignoring unknown or unavailable capabilities: {}", unknown.join(", ")));
    }
}

/// Which of these capabilities this process does not have.
fn missing(wanted: CapBits) -> Option<String> {
    let (_, permitted, _) = cred::capget().ok()?;
    let names: Vec<String> = caps::all()
        .into_iter()
        .filter(|capability| wanted & !permitted & capability.bitmask() != 0)
        .map(|capability| capability.to_string())
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Resource limits in the order of their numbers, the same on every architecture that dhow runs on
/// (asm-generic/resource.h).
const RLIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// The number of a resource limit, getrlimit(2).
pub fn rlimit_number(name: &str) -> Option<u32> {
    let name = name.strip_prefix("RLIMIT_")?;
    (0..).zip(RLIMITS).find_map(|(number, limit)| (limit == name).then_some(number))
}

fn set_rlimits(limits: &[Rlimit]) -> Result<()> {
    for limit in limits {
        let number = rlimit_number(&limit.kind)
            .ok_or_else(|| Error::config("process.rlimits", format!("unknown type {:?}", limit.kind)))?;
        prctl::set_rlimit(number, limit.soft, limit.hard).map_err(|errno| {
            let error = Error::system("set the resource limit", errno).on(&limit.kind);
            match errno {
                Errno::EPERM => error.hint("to raise a hard limit takes CAP_SYS_RESOURCE"),
                _ => error,
            }
        })?;
    }
    Ok(())
}

/// What [`apply`] needs to know besides the process.
#[derive(Debug)]
pub struct Identity<'a> {
    /// The process as it is described.
    pub process: &'a Process,
    /// Its capability sets.
    pub sets: Sets,
    /// Whether it is in a user namespace where setgroups(2) may be denied.
    pub in_user_namespace: bool,
    /// Whether the supplementary groups of the caller stay (`run.oci.keep_original_groups`).
    pub keep_groups: bool,
    /// Whether a seccomp filter is still to be installed.
    pub awaits_filter: bool,
}

/// Turns this process into the user that the payload runs as: limits, bounding set, groups, ids,
/// working directory, capabilities, umask, in the order in which each is still allowed.
///
/// A filter that is still to come needs CAP_SYS_ADMIN when `noNewPrivileges` is off: it then stays in
/// the permitted and effective sets. execve(2) computes these anew from the bounding, inheritable and
/// ambient sets, which it is not kept in, so that the payload does not have it.
///
/// # Errors
/// The first step that fails, named.
pub fn apply(identity: &Identity<'_>) -> Result<()> {
    let process = identity.process;
    set_rlimits(&process.rlimits)?;
    identity.sets.drop_bounding()?;
    let uid = process.user.uid;
    // Without this, a change from root to another user would clear all sets; with it the
    // permitted set stays until capset(2) below.
    let keeps = uid != 0;
    if keeps {
        nix::sys::prctl::set_keepcaps(true).doing("keep capabilities over the change of user")?;
    }
    let in_root_time = enter_cwd(&process.cwd);
    super::stdio::give_to(uid);
    become_user(identity)?;
    if keeps {
        nix::sys::prctl::set_keepcaps(false).doing("keep capabilities over the change of user")?;
    }
    let kept = match identity.awaits_filter && !process.no_new_privileges {
        true => held(Capability::CAP_SYS_ADMIN),
        false => 0,
    };
    identity.sets.set(kept)?;
    // A directory that only the user may enter (NFS without root) is tried again as that user.
    match in_root_time {
        Err(Errno::EACCES) => enter_cwd(&process.cwd),
        other => other,
    }
    .map_err(|errno| super::explain::cwd_failed(&process.cwd, errno))?;
    umask(process.user.umask.unwrap_or(0o022));
    if process.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().doing("set noNewPrivileges")?;
    }
    Ok(())
}

fn umask(mask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
}

fn become_user(identity: &Identity<'_>) -> Result<()> {
    let user = &identity.process.user;
    let id_failed = |field: &str, errno| {
        let error = Error::system("change the user", errno).on(field.to_owned());
        match errno {
            Errno::EINVAL => {
                error.class(Class::Config).hint("the id is not mapped in the container's user namespace")
            }
            _ => error,
        }
    };
    if !identity.keep_groups {
        match cred::set_groups(&user.additional_gids) {
            // A rootless container whose owner could not have the groups written: none are asked
            // for, and none can be dropped.
            Err(Errno::EPERM) if identity.in_user_namespace && user.additional_gids.is_empty() => {}
            result => result.map_err(|errno| id_failed("process.user.additionalGids", errno))?,
        }
    }
    cred::set_gid(user.gid).map_err(|errno| id_failed("process.user.gid", errno))?;
    cred::set_uid(user.uid).map_err(|errno| id_failed("process.user.uid", errno))
}

/// Enters the working directory, and makes sure that it lies in the container: with a leaked fd,
/// `/proc/self/fd/7` as cwd would lead to the host (CVE-2024-21626).
fn enter_cwd(cwd: &str) -> nix::Result<()> {
    nix::unistd::chdir(cwd)?;
    let reached = nix::unistd::getcwd()?;
    if reached.is_absolute() { Ok(()) } else { Err(Errno::EXDEV) }
}

/// Makes the next exec enter the security labels of the process, where there are any.
///
/// # Errors
/// When the kernel does not have the security module that the label is for.
pub fn label_exec(process: &Process, proc: impl FnOnce() -> Result<Proc>) -> Result<()> {
    if process.apparmor_profile.is_empty() && process.selinux_label.is_empty() {
        return Ok(());
    }
    let proc = proc()?;
    let write = |file: &str, text: &str| proc.write(Path::new(file), text.as_bytes());
    if !process.apparmor_profile.is_empty() && process.apparmor_profile != "unconfined" {
        let text = format!("exec {}", process.apparmor_profile);
        // Since 5.8 each module has its own files; before, they share one.
        match write("thread-self/attr/apparmor/exec", &text) {
            Err(Errno::ENOENT) => write("thread-self/attr/exec", &text),
            result => result,
        }
        .map_err(|errno| no_label("process.apparmorProfile", &process.apparmor_profile, "AppArmor", errno))?;
    }
    if !process.selinux_label.is_empty() {
        write("thread-self/attr/exec", &process.selinux_label)
            .map_err(|errno| no_label("process.selinuxLabel", &process.selinux_label, "SELinux", errno))?;
    }
    Ok(())
}

fn no_label(field: &str, label: &str, module: &str, errno: Errno) -> Error {
    let error = Error::system("set the security label", errno).on(format!("{field} {label:?}"));
    match errno {
        // A kernel without AppArmor says EINVAL.
        Errno::ENOENT => error
            .because("the profile is not loaded")
            .hint("load it with `apparmor_parser -r FILE`; `aa-status` lists those that are"),
        Errno::EINVAL | Errno::EOPNOTSUPP => error
            .class(Class::Unsupported)
            .because(format!("{module} is not enabled in the kernel, or does not know the label")),
        _ => error,
    }
}

/// Gives the container a session keyring of its own, session-keyring(7), so that it does not see
/// the caller's keys.
///
/// # Errors
/// EDQUOT and their like; a kernel without keyrings is none.
pub fn new_session_keyring(id: &str) -> Result<()> {
    let Ok(name) = CString::new(format!("_ses.{id}")) else { return Ok(()) };
    let key = match cred::join_session_keyring(&name) {
        Err(Errno::ENOSYS) => return Ok(()),
        // The default seccomp profile of an engine around dhow may deny it; nothing of a caller
        // in such a place is worth hiding.
        Err(Errno::EPERM) => return Ok(()),
        result => result.map_err(|errno| {
            Error::system("make a session keyring", errno)
                .hint("--no-new-keyring shares the caller's; /proc/keys shows what uses up the quota")
        })?,
    };
    // A process that changes its uid keeps access to its session's keys.
    let _ = cred::let_owner_search_keyring(key);
    Ok(())
}

/// Writes `oom_score_adj` of a process, proc_pid_oom_score_adj(5). The parent does it: in a user
/// namespace, the file is not the process's own.
///
/// # Errors
/// EACCES to lower it without CAP_SYS_RESOURCE.
pub fn adjust_oom_score(pid: i32, adjust: i32) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), adjust.to_string()).map_err(|error| {
        Error::system("set process.oomScoreAdj", sys::io_errno(&error))
            .on(adjust.to_string())
            .hint("to lower it below the caller's own takes CAP_SYS_RESOURCE")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_bits() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let capabilities = Capabilities {
            bounding: names(&["CAP_CHOWN", "CAP_KILL", "CAP_NO_SUCH"]),
            permitted: names(&["CAP_CHECKPOINT_RESTORE"]),
            ..Capabilities::default()
        };
        let sets = Sets::new(Some(&capabilities));
        assert_eq!(sets.bounding, 1 | 1 << 5);
        assert_eq!(sets.permitted, 1 << 40);
        assert_eq!(Sets::new(None), Sets::default());
    }

    #[test]
    fn exec_cap_leaves_the_inheritable_set_alone() {
        let mut sets = Sets::default();
        sets.add(&["CAP_NET_RAW".to_owned(), "NET".to_owned()]);
        assert_eq!((sets.permitted, sets.inheritable, sets.ambient), (1 << 13, 0, 0));
    }

    #[test]
    fn limits_have_the_kernels_numbers() {
        assert_eq!(rlimit_number("RLIMIT_CPU"), Some(0));
        assert_eq!(rlimit_number("RLIMIT_NOFILE"), Some(7));
        assert_eq!(rlimit_number("RLIMIT_RTTIME"), Some(15));
        assert_eq!(rlimit_number("RLIMIT_BEER"), None);
        assert_eq!(rlimit_number("NOFILE"), None);
    }
}
