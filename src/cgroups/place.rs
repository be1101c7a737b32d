//! Where a container's cgroup is: `linux.cgroupsPath` read for either driver. Pure.

use crate::error::{Error, Result};

const FIELD: &str = "linux.cgroupsPath";

/// Where a container's cgroup goes on a host whose cgroups are directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// From the root of each mounted hierarchy.
    FromRoot(String),
    /// Below the runtime's own cgroup.
    BelowOwn(String),
}

impl Place {
    /// Reads `linux.cgroupsPath`. Both kinds hold a path of at least one name, beginning with
    /// `/`, without empty names, `.` or `..`.
    ///
    /// Without a path it is `/<id>`; rootless, where nothing may be made at the root, it is the
    /// id below the runtime's own cgroup.
    ///
    /// # Errors
    /// A path that climbs with `..`, that names the root, or that the kernel could not hold.
    pub(super) fn read(cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<Place> {
        match cgroups_path.filter(|path| !path.is_empty()) {
            None if rootless => Ok(Place::BelowOwn(format!("/{id}"))),
            None => Ok(Place::FromRoot(format!("/{id}"))),
            Some(path) => {
                let clean = clean(path).map_err(|why| Error::config(FIELD, format!("{path:?} {why}")))?;
                Ok(if path.starts_with('/') { Place::FromRoot(clean) } else { Place::BelowOwn(clean) })
            }
        }
    }
}

/// Brings a path into the form `/a/b`.
fn clean(path: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(path.len() + 1);
    for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
        check_name(name)?;
        out.push('/');
        out.push_str(name);
    }
    if out.is_empty() { Err("names the root cgroup, which belongs to the host") } else { Ok(out) }
}

fn check_name(name: &str) -> Result<(), &'static str> {
    if name == ".." {
        return Err("climbs with \"..\": a container's cgroup must stay below the root");
    }
    if name.len() > 255 {
        return Err("has a name longer than 255 bytes");
    }
    // The kernel refuses a newline, because it would break /proc/PID/cgroup.
    if name.bytes().any(|b| b == b'\n' || b == 0) {
        return Err("has a newline or NUL in it");
    }
    Ok(())
}

/// A path inside a container's cgroup, as `exec --cgroup` takes it: `a/b`, `/a` or `/`, in the
/// form `/a/b`, or empty for the container's cgroup itself.
///
/// # Errors
/// A path that climbs.
pub(super) fn inside(path: &str) -> Result<String> {
    if path.split('/').all(|name| name.is_empty() || name == ".") {
        return Ok(String::new());
    }
    clean(path).map_err(|why| Error::config("exec --cgroup", format!("bad sub cgroup path {path:?}: {why}")))
}

/// A systemd unit's name and the slice that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnitPlace {
    /// The slice, with its suffix: `system.slice`, or `-.slice` for the root.
    pub slice: String,
    /// `prefix-name.scope`, or a slice of its own.
    pub unit: String,
}

impl UnitPlace {
    /// Reads `linux.cgroupsPath` for the systemd driver: `slice:prefix:name`.
    ///
    /// # Errors
    /// Another form, or names that systemd does not take.
    pub(super) fn read(cgroups_path: Option<&str>, id: &str, rootless: bool) -> Result<UnitPlace> {
        let usual = if rootless { "user.slice" } else { "system.slice" };
        let Some(path) = cgroups_path.filter(|path| !path.is_empty()) else {
            return Ok(UnitPlace { slice: usual.into(), unit: format!("dhow-{id}.scope") });
        };
        let bad = |why: &str| Error::config(FIELD, format!("{path:?} {why}"));
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(bad("must have the form slice:prefix:name for the systemd cgroup manager"));
        };
        let slice = if slice.is_empty() { usual } else { slice };
        slice_directory(slice).map_err(bad)?;
        let name = if name.is_empty() { id } else { name };
        let unit = match (name.ends_with(".slice"), prefix) {
            (true, _) => name.to_owned(),
            (false, "") => format!("{name}.scope"),
            (false, prefix) => format!("{prefix}-{name}.scope"),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if unit.len() > 255 || !unit.chars().all(legal) {
            return Err(bad("gives no valid unit name: letters, digits and :-_.\\@ are allowed, up to 255"));
        }
        Ok(UnitPlace { slice: slice.to_owned(), unit })
    }

    /// The unit's directory below the manager's root: `/a.slice/a-b.slice/x.scope`.
    pub(super) fn directory(&self) -> String {
        let slice = slice_directory(&self.slice).unwrap_or_default();
        // A slice as a unit lies where its own name says.
        match self.unit.ends_with(".slice") {
            true => slice_directory(&self.unit).unwrap_or_default(),
            false => format!("{slice}/{}", self.unit),
        }
    }
}

/// The directory of a slice: `a-b.slice` is `/a.slice/a-b.slice`, `-.slice` is the root
/// (systemd.slice(5)).
fn slice_directory(slice: &str) -> Result<String, &'static str> {
    const FORM: &str = "names no valid slice: it must end in .slice, without / and without empty parts";
    let stem = slice.strip_suffix(".slice").ok_or(FORM)?;
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.is_empty() || stem.contains('/') || stem.split('-').any(str::is_empty) {
        return Err(FORM);
    }
    let mut out = String::new();
    for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        out.push('/');
        out.push_str(&stem[..end]);
        out.push_str(".slice");
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str) -> Result<Place> {
        Place::read(Some(path), "id", false)
    }

    #[test]
    fn absolute_relative_and_absent() {
        assert_eq!(read("/docker/x").unwrap(), Place::FromRoot("/docker/x".into()));
        assert_eq!(read("//docker/./x/").unwrap(), Place::FromRoot("/docker/x".into()));
        assert_eq!(read("a/b").unwrap(), Place::BelowOwn("/a/b".into()));
        assert_eq!(Place::read(None, "id", false).unwrap(), Place::FromRoot("/id".into()));
        assert_eq!(Place::read(Some(""), "id", true).unwrap(), Place::BelowOwn("/id".into()));
    }

    #[test]
    fn paths_that_leave_the_tree_are_refused() {
        for path in ["..", "/a/../../b", "a/..", "/", ".", "/a\nb"] {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains("linux.cgroupsPath"), "{error}");
        }
        assert!(read(&"x".repeat(256)).is_err());
        assert!(inside("../x").is_err());
        assert_eq!(inside("/").unwrap(), "");
        assert_eq!(inside("a/b/").unwrap(), "/a/b");
    }

    #[test]
    fn systemd_names() {
        let unit = UnitPlace::read(Some("machine-web.slice:libpod:abc"), "id", false).unwrap();
        assert_eq!(unit.unit, "libpod-abc.scope");
        assert_eq!(unit.directory(), "/machine.slice/machine-web.slice/libpod-abc.scope");
        let unit = UnitPlace::read(None, "id", true).unwrap();
        assert_eq!(unit.directory(), "/user.slice/dhow-id.scope");
        let unit = UnitPlace::read(Some("-.slice::abc"), "id", false).unwrap();
        assert_eq!(unit.directory(), "/abc.scope");
        let unit = UnitPlace::read(Some(":crio:abc"), "id", false).unwrap();
        assert_eq!(unit.directory(), "/system.slice/crio-abc.scope");
        let unit = UnitPlace::read(Some("a.slice:x:a-b.slice"), "id", false).unwrap();
        assert_eq!(unit.directory(), "/a.slice/a-b.slice");
    }

    #[test]
    fn systemd_names_that_are_wrong() {
        for path in
            ["/docker/x", "a:b", "a:b:c", "a--b.slice:p:n", "a/b.slice:p:n", "s.slice:p:n/m", "-a.slice:p:n"]
        {
            let error = UnitPlace::read(Some(path), "id", false).unwrap_err().to_string();
            assert!(error.contains("linux.cgroupsPath") && error.contains(path), "{error}");
        }
    }
}
