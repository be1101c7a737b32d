//! The uid and gid maps of a user namespace, user_namespaces(7).

use crate::error::{Class, Error, Result};
use crate::spec::{IdMapping, Linux};
use nix::errno::Errno;
use nix::unistd::{Pid, getegid, geteuid};
use std::fmt::Write;
use std::process::Command;

/// The two maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Maps {
    /// Of uids.
    pub uids: Vec<IdMapping>,
    /// Of gids.
    pub gids: Vec<IdMapping>,
}

impl Maps {
    /// The maps of a configuration.
    pub fn of(linux: &Linux) -> Maps {
        Maps { uids: linux.uid_mappings.clone(), gids: linux.gid_mappings.clone() }
    }

    /// The ids that a user and a group of the namespace have outside; those that are not mapped stay as
    /// they are.
    pub fn outside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let id = |map: &[IdMapping], id| find(map, id, |one| (one.container_id, one.host_id));
        (id(&self.uids, uid), id(&self.gids, gid))
    }

    /// The ids that a user and a group have in the namespace, as [`Maps::outside`].
    pub fn inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        let id = |map: &[IdMapping], id| find(map, id, |one| (one.host_id, one.container_id));
        (id(&self.uids, uid), id(&self.gids, gid))
    }
}

/// What a map makes of an id; `ends` says where an entry begins, on either side.
fn find(map: &[IdMapping], id: u32, ends: impl Fn(&IdMapping) -> (u32, u32)) -> u32 {
    let other = |one: &IdMapping| {
        let (from, to) = ends(one);
        id.checked_sub(from).filter(|at| *at < one.size).and_then(|at| to.checked_add(at))
    };
    map.iter().find_map(other).unwrap_or(id)
}

/// The text for `/proc/PID/uid_map`.
fn text(map: &[IdMapping]) -> String {
    map.iter().fold(String::new(), |mut text, entry| {
        let _ = writeln!(text, "{} {} {}", entry.container_id, entry.host_id, entry.size);
        text
    })
}

/// Whether an unprivileged process may write the map itself: its own id alone.
fn is_only(map: &[IdMapping], own: u32) -> bool {
    matches!(map, [entry] if entry.size == 1 && entry.host_id == own)
}

/// Writes the maps of a process that has just entered a new user namespace.
///
/// Root writes them itself; anyone else may map only their own id, and for more asks
/// newuidmap(1) and newgidmap(1), which look at /etc/subuid and /etc/subgid.
///
/// # Errors
/// [`Class::Config`] when the kernel or the helpers refuse a map.
pub fn write_maps(pid: Pid, maps: &Maps) -> Result<()> {
    let privileged = geteuid().is_root();
    // gid first: once the uids are mapped, the setgroups file can no longer be written.
    if privileged {
        write_map(pid, "gid_map", &maps.gids)?;
        return write_map(pid, "uid_map", &maps.uids);
    }
    if is_only(&maps.gids, getegid().as_raw()) {
        // Without privilege a gid map is only taken after setgroups(2) was given up (CVE-2014-8989).
        write_proc(pid, "setgroups", "deny").map_err(|errno| failed("setgroups", errno))?;
        write_map(pid, "gid_map", &maps.gids)?;
    } else {
        ask_helper("newgidmap", pid, &maps.gids)?;
    }
    if is_only(&maps.uids, geteuid().as_raw()) {
        write_map(pid, "uid_map", &maps.uids)
    } else {
        ask_helper("newuidmap", pid, &maps.uids)
    }
}

fn write_map(pid: Pid, file: &str, map: &[IdMapping]) -> Result<()> {
    write_proc(pid, file, &text(map)).map_err(|errno| failed(file, errno))
}

fn failed(file: &str, errno: Errno) -> Error {
    let field = if file == "uid_map" { "linux.uidMappings" } else { "linux.gidMappings" };
    // user_namespaces(7), "Defining user and group ID mappings"
    let hint = match errno {
        Errno::EINVAL => "a map has at most 340 entries, in less than 4096 bytes",
        _ => "a map may only name ids that the caller has: see /proc/self/uid_map and gid_map",
    };
    Error::system("write the id map of the user namespace", errno).on(field).class(Class::Config).hint(hint)
}

fn write_proc(pid: Pid, file: &str, text: &str) -> nix::Result<()> {
    std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|error| crate::sys::io_errno(&error))
}

fn ask_helper(helper: &str, pid: Pid, map: &[IdMapping]) -> Result<()> {
    let mut command = Command::new(helper);
    command.arg(pid.to_string());
    for entry in map {
        command.args([entry.container_id, entry.host_id, entry.size].map(|number| number.to_string()));
    }
    let refused = |cause: String| {
        Error::new(Class::Config, "write the id map of the user namespace")
            .on(helper)
            .because(cause)
            .hint("more than one's own id needs uidmap's helpers and entries in /etc/subuid and /etc/subgid")
    };
    let output = command.output().map_err(|error| refused(error.to_string().to_lowercase()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_range() {
        let map = [
            IdMapping { container_id: 0, host_id: 100_000, size: 1000 },
            IdMapping { container_id: 1000, host_id: 1000, size: 1 },
        ];
        assert_eq!(text(&map), "0 100000 1000\n1000 1000 1\n");
        assert!(!is_only(&map, 1000));
        assert!(is_only(&map[1..], 1000));
        assert!(!is_only(&map[1..], 1001));
    }

    #[test]
    fn ids_inside_and_outside() {
        let entry = |container_id, host_id, size| IdMapping { container_id, host_id, size };
        let maps =
            Maps { uids: vec![entry(0, 100_000, 10), entry(10, 7, 1)], gids: vec![entry(0, u32::MAX, 2)] };
        assert_eq!(maps.outside(3, 0), (100_003, u32::MAX));
        assert_eq!(maps.outside(10, 1), (7, 1), "past the last id there is none");
        assert_eq!(maps.inside(100_009, 5), (9, 5));
        assert_eq!(maps.inside(100_010, 5), (100_010, 5));
        assert_eq!(Maps::default().outside(1, 2), (1, 2));
    }
}
