//! How this host has its cgroups mounted: read from mountinfo once, by a plain scan.
//!
//! `/sys/fs/cgroup` is where every distribution has them, and what hides below another mount there
//! is left out. Where nothing of cgroups is mounted there, cgroup mounts elsewhere are taken.

use super::controller::Set;
use crate::error::{Class, Context, Error, Result};
use rustix::fs::{Mode, OFlags};

/// Where distributions mount cgroups.
const USUAL_PLACE: &str = "/sys/fs/cgroup";

/// The `f_type` of cgroup and cgroup2 (linux/magic.h).
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// A cgroup filesystem that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where.
    pub at: String,
    /// Which directory of the hierarchy is mounted there: `/`, but for mounts inside containers.
    pub root: String,
    /// The hierarchy: `cpu,cpuacct` or `name=systemd` as in `/proc/self/cgroup`; empty for cgroup2.
    pub hierarchy: String,
    /// Its controllers; empty for cgroup2, where each directory tells its own.
    pub controllers: Set,
}

/// What a host can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Hierarchies of cgroup v1. On a hybrid host the last one is the cgroup2 mount, for
    /// processes only (its `hierarchy` is empty).
    V1(Vec<Mount>),
    /// cgroup v2 alone.
    V2(Mount),
}

impl Layout {
    /// Reads the host's layout. With `need_root` the roots of the mounts are known too; without,
    /// mountinfo is read only on hosts that do not mount their cgroups as all do: the kernel takes
    /// more than a microsecond for each of its lines, and a busy host has thousands.
    ///
    /// # Errors
    /// When nothing of cgroups is mounted, or mountinfo cannot be read.
    pub(super) fn of_host(need_root: bool) -> Result<Layout> {
        if !need_root {
            if is_mounted(USUAL_PLACE, CGROUP2_SUPER_MAGIC) {
                return Ok(Layout::V2(usual_mount(USUAL_PLACE.to_owned(), "")));
            }
            let hierarchies = read_proc("/proc/self/cgroup")?;
            if let Some(layout) = Layout::by_convention(&hierarchies, is_mounted) {
                return Ok(layout);
            }
        }
        Layout::parse(&read_proc("/proc/self/mountinfo")?).ok_or_else(|| {
            Error::new(Class::Unsupported, "find the cgroups")
                .on(USUAL_PLACE)
                .because("no cgroup filesystem is mounted")
                .hint("mount cgroup2 there, or use --cgroup-manager disabled")
        })
    }

    /// The layout of a host whose hierarchies, as `/proc/self/cgroup` lists them, are all mounted
    /// where they usually are; `None` if one is not.
    fn by_convention(proc_cgroup: &str, is_mounted: impl Fn(&str, u64) -> bool) -> Option<Layout> {
        let mut mounts = Vec::with_capacity(12);
        let mut unified = None;
        for line in proc_cgroup.lines() {
            let name = line.split(':').nth(1)?;
            if name.is_empty() {
                let at = format!("{USUAL_PLACE}/unified");
                unified = is_mounted(&at, CGROUP2_SUPER_MAGIC).then(|| usual_mount(at, name));
                continue;
            }
            let at = format!("{USUAL_PLACE}/{}", name.strip_prefix("name=").unwrap_or(name));
            if !is_mounted(&at, CGROUP_SUPER_MAGIC) {
                return None;
            }
            mounts.push(usual_mount(at, name));
        }
        let is_v1 = !mounts.is_empty();
        mounts.extend(unified);
        is_v1.then_some(Layout::V1(mounts))
    }

    /// The layout that a mountinfo describes (proc_pid_mountinfo(5)); `None` without any cgroup mount.
    pub(super) fn parse(mountinfo: &str) -> Option<Layout> {
        let lines: Vec<Line<'_>> = mountinfo.lines().filter_map(Line::parse).collect();
        let mut found: Vec<&Line<'_>> =
            lines.iter().filter(|line| line.is_cgroup() && line.is_below_usual_place()).collect();
        if found.is_empty() {
            found = lines.iter().filter(|line| line.is_cgroup()).collect();
        } else {
            found.retain(|line| !is_hidden(line, &lines));
        }
        let mut mounts: Vec<Mount> = Vec::with_capacity(found.len());
        for line in found {
            let mount = line.mount();
            // A second mount of a hierarchy shows the same directories.
            if !mounts.iter().any(|m| m.hierarchy == mount.hierarchy) {
                mounts.push(mount);
            }
        }
        let unified = mounts.iter().position(|m| m.hierarchy.is_empty());
        let unified = unified.map(|i| mounts.remove(i));
        match (mounts.is_empty(), unified) {
            (true, None) => None,
            (true, Some(mount)) => Some(Layout::V2(mount)),
            (false, unified) => {
                mounts.extend(unified);
                Some(Layout::V1(mounts))
            }
        }
    }
}

/// A whole hierarchy mounted at a place.
fn usual_mount(at: String, hierarchy: &str) -> Mount {
    let controllers = Set::parse(hierarchy, ',');
    Mount { at, root: "/".to_owned(), hierarchy: hierarchy.to_owned(), controllers }
}

/// Whether a filesystem of the kind is mounted there.
fn is_mounted(at: &str, magic: u64) -> bool {
    rustix::fs::statfs(at).is_ok_and(|fs| fs.f_type.cast_unsigned() == magic)
}

/// The fields of a mountinfo line that matter here.
struct Line<'a> {
    id: &'a str,
    parent: &'a str,
    root: &'a str,
    at: &'a str,
    fstype: &'a str,
    options: &'a str,
}

impl<'a> Line<'a> {
    /// Splits a line; lines that are neither of a cgroup nor above or below the usual place are of
    /// no interest and give `None`.
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let mut fields = line.split(' ');
        let (id, parent) = (fields.next()?, fields.next()?);
        let (root, at) = (fields.nth(1)?, fields.next()?);
        let related = USUAL_PLACE.starts_with(at) || at.starts_with(USUAL_PLACE);
        if !related && !line.contains(" - cgroup") {
            return None;
        }
        let fstype = fields.by_ref().skip_while(|field| *field != "-").nth(1)?;
        let options = fields.nth(1)?;
        Some(Line { id, parent, root, at, fstype, options })
    }

    fn is_cgroup(&self) -> bool {
        matches!(self.fstype, "cgroup" | "cgroup2")
    }

    fn is_below_usual_place(&self) -> bool {
        is_at_or_below(self.at, USUAL_PLACE)
    }

    fn mount(&self) -> Mount {
        // A v1 superblock's options name its controllers, and name= where the hierarchy has a name.
        let (hierarchy, controllers) = if self.fstype == "cgroup2" {
            (String::new(), Set::EMPTY)
        } else {
            let is_id =
                |o: &&str| Set::parse(o, ',') != Set::EMPTY || o.starts_with("name=") || *o == "debug";
            let names: Vec<&str> = self.options.split(',').filter(is_id).collect();
            (names.join(","), Set::parse(self.options, ','))
        };
        Mount { at: unescape(self.at), root: unescape(self.root), hierarchy, controllers }
    }
}

/// Whether another mount lies over the mount point, or over a directory on the way to it.
fn is_hidden(line: &Line<'_>, lines: &[Line<'_>]) -> bool {
    let mut chain = vec![line];
    while let Some(up) = chain.last().and_then(|last| lines.iter().find(|l| l.id == last.parent)) {
        // The topmost mount of a namespace can be its own parent.
        if chain.iter().any(|l| l.id == up.id) {
            break;
        }
        chain.push(up);
    }
    lines.iter().any(|over| {
        is_at_or_below(line.at, over.at)
            && chain.iter().any(|l| l.id == over.parent)
            && !chain.iter().any(|l| l.id == over.id)
    })
}

fn is_at_or_below(path: &str, directory: &str) -> bool {
    directory == "/"
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Undoes mountinfo's octal escapes of blank, tab, newline and backslash.
fn unescape(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| first == b'\\');
        out.push(code.unwrap_or(first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The path of the calling process in a hierarchy (as [`Mount::hierarchy`]), from the text of
/// `/proc/self/cgroup` (cgroups(7)).
pub(super) fn own_path<'a>(proc_cgroup: &'a str, hierarchy: &str) -> Option<&'a str> {
    proc_cgroup.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        (names == hierarchy).then_some(path)
    })
}

/// Reads a file of procfs whole.
///
/// # Errors
/// The system's, or text that is not UTF-8.
pub(super) fn read_proc(path: &str) -> Result<String> {
    let fd =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing_on("open", || path)?;
    let mut text = Vec::with_capacity(8192);
    loop {
        text.reserve(4096);
        let got =
            rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut text)).doing_on("read", || path)?;
        if got == 0 {
            break;
        }
    }
    String::from_utf8(text).map_err(|_| Error::new(Class::System, "read").on(path).because("is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
23 1 0:20 / / rw - ext4 /dev/vda rw
25 23 0:21 / /sys rw - sysfs sysfs rw
31 25 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:4 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn mount(at: &str, root: &str, hierarchy: &str) -> Mount {
        let controllers = Set::parse(hierarchy, ',');
        Mount { at: at.into(), root: root.into(), hierarchy: hierarchy.into(), controllers }
    }

    #[test]
    fn a_hybrid_host_is_v1_with_the_unified_one_last() {
        let expected = Layout::V1(vec![
            mount("/sys/fs/cgroup/cpu,cpuacct", "/", "cpu,cpuacct"),
            mount("/sys/fs/cgroup/systemd", "/", "name=systemd"),
            mount("/sys/fs/cgroup/unified", "/", ""),
        ]);
        assert_eq!(Layout::parse(HYBRID), Some(expected));
    }

    #[test]
    fn the_usual_places_need_no_mountinfo() {
        let text = "2:cpu,cpuacct:/x\n1:name=systemd:/\n0::/\n";
        assert_eq!(Layout::by_convention(text, |_, _| true), Layout::parse(HYBRID));
        let v1_only = Layout::by_convention(text, |at, _| !at.ends_with("unified"));
        assert!(matches!(v1_only, Some(Layout::V1(mounts)) if mounts.len() == 2));
        assert_eq!(Layout::by_convention(text, |at, _| !at.ends_with("cpuacct")), None);
        assert_eq!(Layout::by_convention("0::/\n", |_, _| true), None);
    }

    #[test]
    fn a_mount_over_the_tree_hides_what_is_below() {
        let text = format!("{HYBRID}90 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(Layout::parse(&text), Some(Layout::V2(mount("/sys/fs/cgroup", "/", ""))));
        let text = format!("{HYBRID}90 25 0:77 / /sys/fs rw - tmpfs tmpfs rw\n");
        assert_eq!(Layout::parse(&text), None);
    }

    #[test]
    fn roots_of_mounts_inside_containers_and_second_mounts() {
        let text = "\
10 1 0:20 / / rw - overlay o rw
25 10 0:21 / /sys rw - sysfs sysfs rw
30 25 0:29 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw
31 10 0:29 / /var/lib/other rw - cgroup2 cgroup rw
";
        assert_eq!(Layout::parse(text), Some(Layout::V2(mount("/sys/fs/cgroup", "/docker/abc", ""))));
    }

    #[test]
    fn elsewhere_only_when_the_usual_place_has_none() {
        let text =
            "23 1 0:20 / / rw - ext4 /dev/vda rw\n50 23 0:31 / /my\\040cg rw - cgroup cgroup rw,pids\n";
        assert_eq!(Layout::parse(text), Some(Layout::V1(vec![mount("/my cg", "/", "pids")])));
        assert_eq!(Layout::parse("23 1 0:20 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn a_root_that_is_mounted_later_hides_nothing() {
        // An initramfs mounts /sys first and moves it below the real root afterwards.
        let text = "\
20 28 0:19 / /sys rw - sysfs sysfs rw
24 20 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
28 1 8:1 / / rw - ext4 /dev/sda1 rw
";
        assert_eq!(Layout::parse(text), Some(Layout::V2(mount("/sys/fs/cgroup", "/", ""))));
    }

    #[test]
    fn finds_its_own_path() {
        let text = "9:name=systemd:/a:b\n1:cpu,cpuacct:/x\n0::/y\n";
        assert_eq!(own_path(text, "name=systemd"), Some("/a:b"));
        assert_eq!(own_path(text, "cpu,cpuacct"), Some("/x"));
        assert_eq!(own_path(text, ""), Some("/y"));
        assert_eq!(own_path(text, "pids"), None);
    }
}
