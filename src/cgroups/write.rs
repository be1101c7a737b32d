//! Limits as data, a list of files and values, and the short code that writes them.

use super::controller::Controller;
use super::dir::{Dir, read_all, write_once};
use crate::error::{Class, Error, Result};
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::borrow::Cow;

/// What a file takes back to have its old value again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// What was read from it.
    Whole,
    /// The last word of the first line: files that read `key value` and take the value.
    Field,
    /// The line with the same key, or the key with this value where there was none.
    Key(&'static str),
}

/// One value for one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// Whose file it is; `None` for the cgroup core's.
    pub controller: Option<Controller>,
    /// The field of the configuration that asks for it.
    pub field: Cow<'static, str>,
    /// The file's name.
    pub file: Cow<'static, str>,
    /// What is written.
    pub value: Cow<'static, str>,
    /// Another file and value where the kernel does not have the first file.
    pub or: Option<(&'static str, String)>,
    /// Whether a kernel without the file may go without: the value asks for what it does anyway.
    pub optional: bool,
    /// Consecutive writes of one group (not 0) depend on each other: each order is tried.
    pub group: u8,
    /// How it is undone.
    pub undo: Undo,
    /// The range to name when the kernel finds the value invalid.
    pub range: &'static str,
}

impl Write {
    /// A value for a file.
    pub(super) fn new(
        controller: Controller,
        field: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Write {
        Write {
            controller: Some(controller),
            field: Cow::Borrowed(field),
            file: file.into(),
            value: value.into(),
            or: None,
            optional: false,
            group: 0,
            undo: Undo::Whole,
            range: "",
        }
    }

    /// Puts it into a group.
    pub(super) fn group(mut self, group: u8) -> Write {
        self.group = group;
        self
    }

    /// Lets a kernel without the file go without.
    pub(super) fn optional_if(mut self, optional: bool) -> Write {
        self.optional = optional;
        self
    }

    /// Names another file for kernels without the first.
    pub(super) fn or(mut self, file: &'static str, value: String) -> Write {
        self.or = Some((file, value));
        self
    }

    /// Says that the file holds a line per key, and what resets one.
    pub(super) fn keyed(mut self, reset: &'static str) -> Write {
        self.undo = Undo::Key(reset);
        self
    }

    /// Says which values are valid.
    pub(super) fn range(mut self, range: &'static str) -> Write {
        self.range = range;
        self
    }
}

/// Finds the directory that has a controller's files.
pub(super) type Find<'a> = &'a dyn Fn(Option<Controller>) -> Option<&'a Dir>;

/// What was in a file before.
struct Old<'a> {
    dir: &'a Dir,
    file: &'a str,
    value: String,
}

/// Writes the list in order. Stops at the first failure and leaves what was written: for a cgroup
/// that is new and will be removed then.
///
/// # Errors
/// One that names field, value and range.
pub(super) fn apply<'a>(writes: &'a [Write], find: Find<'a>) -> Result<()> {
    run(writes, find, &mut None)
}

/// Writes the list in order and does what is to be done `then`; if something fails, the files get
/// their old values back.
///
/// # Errors
/// As [`apply`].
pub(super) fn apply_or_restore<'a>(
    writes: &'a [Write],
    find: Find<'a>,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let mut old = Some(Vec::new());
    let result = run(writes, find, &mut old).and_then(|()| then());
    if result.is_err() {
        restore(old.unwrap_or_default());
    }
    result
}

fn run<'a>(writes: &'a [Write], find: Find<'a>, old: &mut Option<Vec<Old<'a>>>) -> Result<()> {
    for chunk in writes.chunk_by(|a, b| a.group != 0 && a.group == b.group) {
        // Within a group a value may be valid only after another has been written.
        let mut pending: Vec<&Write> = chunk.iter().collect();
        while !pending.is_empty() {
            let before = pending.len();
            let mut first = None;
            let mut left = Vec::new();
            for write in pending {
                let Err((dir, errno)) = write_one(write, find, old) else { continue };
                if chunk.len() == 1 || !matches!(errno, Errno::INVAL | Errno::BUSY) {
                    return Err(explain(write, dir, errno));
                }
                first.get_or_insert((write, dir, errno));
                left.push(write);
            }
            if let Some((write, dir, errno)) = first.filter(|_| left.len() == before) {
                return Err(explain(write, dir, errno));
            }
            pending = left;
        }
    }
    Ok(())
}

fn write_one<'a>(
    write: &'a Write,
    find: Find<'a>,
    old: &mut Option<Vec<Old<'a>>>,
) -> Result<(), (Option<&'a Dir>, Errno)> {
    let Some(dir) = find(write.controller) else {
        return if write.optional { Ok(()) } else { Err((None, Errno::NOENT)) };
    };
    match write_file(dir, &write.file, &write.value, write.undo, old) {
        Err(Errno::NOENT) => {}
        Err(errno) => return Err((Some(dir), errno)),
        Ok(()) => return Ok(()),
    }
    let result = match &write.or {
        Some((file, value)) => write_file(dir, file, value, write.undo, old),
        None => Err(Errno::NOENT),
    };
    match result {
        Err(Errno::NOENT) if write.optional => Ok(()),
        result => result.map_err(|errno| (Some(dir), errno)),
    }
}

fn write_file<'a>(
    dir: &'a Dir,
    file: &'a str,
    value: &str,
    undo: Undo,
    old: &mut Option<Vec<Old<'a>>>,
) -> rustix::io::Result<()> {
    let Some(old) = old else { return dir.write(file, value) };
    let before = match dir.open(file, OFlags::RDONLY) {
        Ok(fd) => Some(old_value(&read_all(fd.as_fd())?, value, undo)),
        // Some files can only be written to; there is nothing to restore then.
        Err(Errno::ACCESS) => None,
        Err(errno) => return Err(errno),
    };
    let fd = dir.open(file, OFlags::WRONLY)?;
    write_once(fd.as_fd(), value)?;
    old.extend(before.map(|value| Old { dir, file, value }));
    Ok(())
}

/// What to write to have the file as it was, from its text before and the value written to it.
fn old_value(text: &str, value: &str, undo: Undo) -> String {
    match undo {
        Undo::Whole => text.trim_end().to_owned(),
        Undo::Field => {
            text.lines().next().and_then(|line| line.split(' ').next_back()).unwrap_or_default().to_owned()
        }
        Undo::Key(reset) => {
            let key = value.split(' ').next().unwrap_or_default();
            let line = text.lines().find(|line| line.split(' ').next() == Some(key));
            line.map_or_else(|| format!("{key} {reset}"), str::to_owned)
        }
    }
}

/// Puts the old values back, the last first. Values that depend on each other may need a second
/// look; what still fails then has no remedy, and the caller already reports the cause.
fn restore(mut old: Vec<Old<'_>>) {
    for _ in 0..3 {
        let mut failed = Vec::new();
        while let Some(one) = old.pop() {
            // An empty list (a cpuset's) is written as a newline: a write of nothing is none.
            let value = if one.value.is_empty() { "\n" } else { &one.value };
            if one.dir.write(one.file, value).is_err() {
                failed.push(one);
            }
        }
        failed.reverse();
        old = failed;
    }
}

/// The error for a value that was not taken: names the field, the value, and why.
fn explain(write: &Write, dir: Option<&Dir>, errno: Errno) -> Error {
    let base = Error::new(Class::Config, "set a cgroup limit").on(format!("{} {}", write.field, write.value));
    let kernel = nix::errno::Errno::from_raw(errno.raw_os_error());
    let Some(dir) = dir else {
        let name = write.controller.map_or("cgroup v2", Controller::name);
        return base
            .class(Class::Unsupported)
            .because(format!("the container has no cgroup with the {name} controller"))
            .hint("the kernel or its command line leaves it out, or it is not mounted: see /proc/cgroups");
    };
    match errno {
        Errno::NOENT if !is_enabled(write, dir) => {
            let name = write.controller.map_or("its", Controller::name);
            base.class(Class::Unsupported)
                .because(format!("{name} controller not enabled in {}", dir.path()))
                .hint("cgroup.subtree_control of the cgroup above must have it, which systemd does with Delegate=")
        }
        Errno::NOENT => base.class(Class::Unsupported).because(format!(
            "this kernel has no {} in {}",
            write.file,
            dir.path()
        )),
        Errno::BUSY if write.controller == Some(Controller::Memory) => {
            let usage = dir.number("memory.usage_in_bytes").or_else(|_| dir.number("memory.current"));
            let usage = usage.map_or_else(|_| "unknown".into(), |bytes| bytes.to_string());
            base.because(format!("is below the current use of {usage} bytes, which could not be reclaimed"))
                .errno(kernel)
        }
        // cgroup v1's answer to a cpuset beyond the parent's.
        Errno::ACCESS if write.controller == Some(Controller::Cpuset) => base.because(available(write, dir)),
        Errno::INVAL | Errno::RANGE | Errno::NODEV | Errno::NXIO | Errno::OPNOTSUPP | Errno::NOSPC => {
            let why = match (write.controller, write.range) {
                (Some(Controller::Cpuset), _) => available(write, dir),
                (_, "") => format!("the kernel does not take it in {}", write.file),
                (_, range) => format!("the kernel takes {range} in {}", write.file),
            };
            base.because(why).errno(kernel)
        }
        _ => base.class(Class::System).because(format!("write {}/{}", dir.path(), write.file)).errno(kernel),
    }
}

/// Whether the directory has any file of the write's controller.
fn is_enabled(write: &Write, dir: &Dir) -> bool {
    let Some(controller) = write.controller else { return true };
    // On v1 the hierarchy was found by its controller, so it is there.
    match dir.read("cgroup.controllers") {
        Ok(list) => super::controller::Set::parse(&list, ' ').has(controller),
        Err(_) => true,
    }
}

/// What a cpuset may consist of.
fn available(write: &Write, dir: &Dir) -> String {
    let what = if write.file.ends_with("cpus") { "cpus" } else { "mems" };
    match parents_cpuset(dir, what) {
        Ok(list) => format!("only {what} {} are available to this cgroup", list.trim_end()),
        Err(_) => format!("not all of these {what} are available to this cgroup"),
    }
}

/// The CPUs (`cpus`) or memory nodes (`mems`) that the parent cgroup has.
fn parents_cpuset(dir: &Dir, what: &str) -> rustix::io::Result<String> {
    let parent = Dir::new(dir.path().rsplit_once('/').map_or("/", |(parent, _)| parent).to_owned());
    parent
        .read(&format!("cpuset.{what}.effective"))
        .or_else(|_| parent.read(&format!("cpuset.effective_{what}")))
        .or_else(|_| parent.read(&format!("cpuset.{what}")))
}

/// Refuses cpusets with CPUs or nodes that the parent has not. cgroup v2 would take them, and give
/// the processes all that the parent has.
pub(super) fn refuse_foreign_cpusets(writes: &[Write], dir: &Dir) -> Result<()> {
    for write in writes {
        let Some(what) = write.file.strip_prefix("cpuset.").filter(|what| matches!(*what, "cpus" | "mems"))
        else {
            continue;
        };
        // Where it cannot be read, the write itself will say why.
        let Ok(have) = parents_cpuset(dir, what) else { continue };
        if !is_part(&write.value, &have) {
            return Err(explain(write, Some(dir), Errno::RANGE));
        }
    }
    Ok(())
}

/// Whether every number of one list (`0-3,7`) is in the other. Lists with strides are left to the
/// kernel.
fn is_part(list: &str, of: &str) -> bool {
    let ranges = |text: &str| -> Option<Vec<(u32, u32)>> {
        let parts = text.trim().split(',').filter(|part| !part.is_empty());
        parts
            .map(|part| {
                let (low, high) = part.split_once('-').unwrap_or((part, part));
                Some((low.parse().ok()?, high.parse().ok()?))
            })
            .collect()
    };
    let (Some(list), Some(of)) = (ranges(list), ranges(of)) else { return true };
    // The kernel prints ranges joined, so each wanted one lies within one that is there.
    list.iter().all(|(low, high)| of.iter().any(|(from, to)| from <= low && high <= to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_values_of_whole_and_keyed_files() {
        assert_eq!(old_value("max 100000\n", "5 6", Undo::Whole), "max 100000");
        let text = "8:0 rbps=1 wbps=max\n8:16 rbps=2 wbps=max\n";
        assert_eq!(old_value(text, "8:16 rbps=9", Undo::Key("rbps=max")), "8:16 rbps=2 wbps=max");
        assert_eq!(old_value(text, "8:32 rbps=9", Undo::Key("rbps=max")), "8:32 rbps=max");
    }

    /// A plain directory stands in for a cgroup: files exist, take every value, and nothing more.
    fn directory(files: &[(&str, &str)]) -> (std::path::PathBuf, Dir) {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("dhow-write-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        for (file, text) in files {
            std::fs::write(path.join(file), text).unwrap();
        }
        let dir = Dir::new(path.to_str().unwrap().to_owned());
        (path, dir)
    }

    #[test]
    fn a_failure_half_way_restores_what_was_written() {
        let (path, dir) = directory(&[("a.x", "1\n"), ("b.y", "2\n")]);
        let writes = [
            Write::new(Controller::Cpu, "f.a", "a.x", "7"),
            Write::new(Controller::Cpu, "f.b", "b.y", "8"),
            Write::new(Controller::Cpu, "f.c", "missing", "9"),
        ];
        let error = apply_or_restore(&writes, &|_| Some(&dir), || Ok(())).unwrap_err().to_string();
        assert!(error.contains("f.c 9") && error.contains("missing"), "{error}");
        assert_eq!(std::fs::read_to_string(path.join("a.x")).unwrap().trim(), "1");
        assert_eq!(std::fs::read_to_string(path.join("b.y")).unwrap().trim(), "2");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn alternatives_and_optional_files() {
        let (path, dir) = directory(&[("second", "")]);
        let writes = [
            Write::new(Controller::Io, "f", "first", "1").or("second", "2".into()),
            Write::new(Controller::Io, "f", "third", "1").optional_if(true),
        ];
        apply(&writes, &|_| Some(&dir)).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("second")).unwrap(), "2");
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn lists_within_lists() {
        for (list, of, expected) in [
            ("0", "0-1\n", true),
            ("0-1", "0-1", true),
            ("0,2", "0-1", false),
            ("1-2", "0-1,3", false),
            ("3,0", "0-1,3", true),
            ("", "0", true),
            ("0-7:2", "0", true),
        ] {
            assert_eq!(is_part(list, of), expected, "{list} of {of}");
        }
    }

    #[test]
    fn no_hierarchy_is_no_bare_enoent() {
        let writes = [Write::new(Controller::Memory, "linux.resources.memory.limit", "f", "1")];
        let error = apply(&writes, &|_| None).unwrap_err().to_string();
        assert!(
            error.contains("linux.resources.memory.limit 1: the container has no cgroup with the memory"),
            "{error}"
        );
    }
}
