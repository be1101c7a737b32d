//! `linux.intelRdt`: classes of service of cache and memory bandwidth, by the kernel's resctrl filesystem
//! (Documentation/filesystems/resctrl.rst; runtime-spec config-linux.md, "Intel RDT").
//!
//! A class is a directory of resctrl: whoever is in its `tasks` has what its `schemata` grant. Nothing here
//! is looked at for a container whose configuration does not ask for it.

use super::dir::{read_all, write_once};
use crate::error::{Class, Context, Error, Result};
use crate::spec::IntelRdt;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where resctrl is mounted unless somebody chose otherwise.
const USUAL: &str = "/sys/fs/resctrl";

/// RDTGROUP_SUPER_MAGIC of linux/magic.h.
const MAGIC: u64 = 0x0765_5821;

/// The directory of a class in which its monitoring groups are.
const MONITORS: &str = "mon_groups";

/// Where the container's processes belong, and what that place must grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The class of service; empty is the default one, resctrl's root.
    pub class: String,
    /// Whether the class is the container's alone, and goes with it.
    pub own: bool,
    /// The container's monitoring group in that class.
    pub monitor: Option<String>,
    /// The lines for `schemata`.
    lines: Vec<String>,
}

impl Membership {
    /// What `linux.intelRdt` asks for the container `id`.
    pub fn new(asked: &IntelRdt, id: &str) -> Membership {
        let class = match asked.clos_id.as_str() {
            "" => id,
            "/" => "",
            named => named,
        };
        Membership {
            class: class.to_owned(),
            own: asked.clos_id.is_empty(),
            monitor: (asked.enable_monitoring || asked.enable_cmt || asked.enable_mbm).then(|| id.to_owned()),
            lines: schemata(asked),
        }
    }

    /// That of a container which is there already.
    pub fn known(class: String, own: bool, monitor: Option<String>) -> Membership {
        Membership { class, own, monitor, lines: Vec::new() }
    }
}

/// The lines for `schemata`, in the order in which they hold: the bandwidth of `memBwSchema` instead of
/// any in `l3CacheSchema`, and `schemata` last.
fn schemata(asked: &IntelRdt) -> Vec<String> {
    let bandwidth = asked.mem_bw_schema.trim();
    let cache = asked.l3_cache_schema.lines().filter(|line| bandwidth.is_empty() || !line.starts_with("MB:"));
    cache
        .chain([bandwidth])
        .chain(asked.schemata.iter().map(String::as_str))
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

/// Where resctrl is mounted.
///
/// # Errors
/// [`Class::Unsupported`] when it is nowhere.
pub fn mounted() -> Result<PathBuf> {
    let is_usual = rustix::fs::statfs(USUAL).is_ok_and(|found| u64::try_from(found.f_type) == Ok(MAGIC));
    let found = if is_usual {
        Some(PathBuf::from(USUAL))
    } else {
        mount_point(&std::fs::read_to_string("/proc/self/mountinfo").doing("read the mounts")?)
    };
    found.ok_or_else(|| {
        Error::new(Class::Unsupported, "use Intel RDT")
            .on("linux.intelRdt")
            .because("resctrl is not mounted")
            .hint("`mount -t resctrl resctrl /sys/fs/resctrl` where the CPU and the kernel have it")
    })
}

/// The first mount of resctrl in /proc/self/mountinfo (proc_pid_mountinfo(5)).
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let line = mountinfo.lines().find(|line| {
        line.split_once(" - ").is_some_and(|(_, kind)| kind.split(' ').next() == Some("resctrl"))
    })?;
    let place = line.split(' ').nth(4)?;
    Some(PathBuf::from(place.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")))
}

/// A mounted resctrl.
#[derive(Debug)]
pub struct Resctrl {
    fd: OwnedFd,
    at: PathBuf,
}

impl Resctrl {
    /// That which is mounted at a place.
    ///
    /// # Errors
    /// openat(2)'s.
    pub fn open(at: &Path) -> Result<Resctrl> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(at, flags, Mode::empty())
            .doing_on("open resctrl", || at.display().to_string())?;
        Ok(Resctrl { fd, at: at.to_owned() })
    }

    /// Whether a class that is to be the container's alone can be made.
    ///
    /// # Errors
    /// There is one of its name.
    pub fn check_free(&self, member: &Membership) -> Result<()> {
        if !member.own || rustix::fs::statat(&self.fd, &member.class, AtFlags::empty()).is_err() {
            return Ok(());
        }
        Err(Error::config(
            "linux.intelRdt",
            format!("there is a class {:?} in resctrl already", member.class),
        )
        .hint("name it by closID to use it"))
    }

    /// Makes the class and the monitoring group that are missing, and sets what the class grants. A class
    /// that others have made must grant it already; one of which nothing is said must be there.
    ///
    /// # Errors
    /// What the kernel says against a line; a class that is missing or grants something else.
    pub fn prepare(&self, member: &Membership) -> Result<()> {
        let is_new = self.make_class(member)?;
        if !member.lines.is_empty() {
            if is_new || member.own {
                self.grant(member)?;
            } else {
                self.compare(member)?;
            }
        }
        match &member.monitor {
            Some(name) => {
                self.make(&place(&member.class, &format!("{MONITORS}/{name}")), "enableMonitoring").map(drop)
            }
            None => Ok(()),
        }
    }

    /// Puts a process, and what it will start, into the class and the monitoring group.
    ///
    /// # Errors
    /// write(2)'s.
    pub fn add(&self, member: &Membership, pid: u32) -> Result<()> {
        let pid = pid.to_string();
        // The class first: a monitoring group takes only what its class has.
        self.write(&place(&member.class, "tasks"), &pid)?;
        match &member.monitor {
            Some(name) => self.write(&place(&member.class, &format!("{MONITORS}/{name}/tasks")), &pid),
            None => Ok(()),
        }
    }

    /// Changes what the class grants.
    ///
    /// # Errors
    /// What the kernel says against a line.
    pub fn change(&self, class: &str, asked: &IntelRdt) -> Result<()> {
        let member = Membership { class: class.to_owned(), own: true, monitor: None, lines: schemata(asked) };
        self.grant(&member)
    }

    /// Removes the monitoring group, and the class where it was the container's own. What is gone is no error.
    ///
    /// # Errors
    /// rmdir(2)'s.
    pub fn remove(&self, member: &Membership) -> Result<()> {
        if let Some(name) = &member.monitor {
            self.remove_directory(&place(&member.class, &format!("{MONITORS}/{name}")))?;
        }
        if member.own { self.remove_directory(&member.class) } else { Ok(()) }
    }

    /// Whether the class was not there before.
    fn make_class(&self, member: &Membership) -> Result<bool> {
        let must_be_there = member.class.is_empty() || (!member.own && member.lines.is_empty());
        if !must_be_there {
            return self.make(&member.class, "closID");
        }
        if rustix::fs::statat(&self.fd, place(&member.class, "tasks"), AtFlags::empty()).is_ok() {
            return Ok(false);
        }
        Err(Error::config(
            "linux.intelRdt.closID",
            format!("there is no class {:?} in resctrl", member.class),
        )
        .hint("make it, or give a schema by which dhow can"))
    }

    /// Whether the directory was not there before.
    fn make(&self, name: &str, field: &str) -> Result<bool> {
        match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(Errno::NOSPC) => {
                Err(Error::config(format!("linux.intelRdt.{field}"), "the CPU has no class or monitor left")
                    .hint("delete containers that have one of their own, or share one by closID"))
            }
            Err(errno) => Err(self.failed("make a group in resctrl", name, errno)),
        }
    }

    fn grant(&self, member: &Membership) -> Result<()> {
        let mut text = member.lines.join("\n");
        text.push('\n');
        self.write(&place(&member.class, "schemata"), &text)
    }

    fn compare(&self, member: &Membership) -> Result<()> {
        let name = place(&member.class, "schemata");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let text = rustix::fs::openat(&self.fd, name.as_str(), flags, Mode::empty())
            .and_then(|file| read_all(file.as_fd()))
            .map_err(|errno| self.failed("read", &name, errno))?;
        let granted = grants(&text);
        let differs = |asked: &&(String, String)| granted.get(&asked.0) != Some(&asked.1);
        let asked: Vec<_> = member.lines.iter().flat_map(|line| grants(line)).collect();
        match asked.iter().find(differs) {
            None => Ok(()),
            Some((what, value)) => Err(Error::config(
                "linux.intelRdt.closID",
                format!(
                    "the class {:?} is there, and grants {} for {what}, not {value}",
                    member.class,
                    granted.get(what).map_or("nothing", String::as_str)
                ),
            )
            .hint("leave the schema out to use the class as it is, or take another closID")),
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<()> {
        rustix::fs::openat(&self.fd, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| write_once(file.as_fd(), value))
            .map_err(|errno| {
                self.failed("write", name, errno).because(format!("{:?}: {errno}", value.trim_end()))
            })
    }

    fn remove_directory(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove a group from resctrl", name, errno)),
        }
    }

    /// The error, with the kernel's own words where it has some.
    fn failed(&self, doing: &'static str, name: &str, errno: Errno) -> Error {
        let error = Error::system(doing, nix::errno::Errno::from_raw(errno.raw_os_error())).on(self
            .at
            .join(name)
            .display()
            .to_string());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let words = rustix::fs::openat(&self.fd, "info/last_cmd_status", flags, Mode::empty())
            .and_then(|file| read_all(file.as_fd()))
            .map(|words| words.trim().to_owned());
        match words {
            Ok(words) if !words.is_empty() && words != "ok" => {
                error.hint(format!("the kernel says: {words}"))
            }
            _ => error,
        }
    }
}

/// A file of a class. That of the default one is resctrl's own.
fn place(class: &str, file: &str) -> String {
    if class.is_empty() { file.to_owned() } else { format!("{class}/{file}") }
}

/// What lines of a `schemata` grant: `L3:0=0f;1=f0` as `L3:0` → `f`, `L3:1` → `f0`. The kernel writes masks
/// with leading zeros, pads with spaces, and sorts as it likes.
fn grants(text: &str) -> BTreeMap<String, String> {
    let mut granted = BTreeMap::new();
    for (kind, domains) in text.lines().filter_map(|line| line.split_once(':')) {
        for (domain, value) in domains.split(';').filter_map(|domain| domain.split_once('=')) {
            let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
            granted.insert(format!("{}:{}", kind.trim(), domain.trim()), value);
        }
    }
    granted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A directory that stands in for resctrl. The kernel would put the files into each new group.
    struct Fake(PathBuf);

    impl Fake {
        fn new(name: &str) -> (Fake, Resctrl) {
            let at = std::env::temp_dir().join(format!("dhow-resctrl-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&at);
            fs::create_dir_all(at.join("info")).unwrap();
            fs::create_dir(at.join(MONITORS)).unwrap();
            fs::write(at.join("tasks"), "").unwrap();
            let resctrl = Resctrl::open(&at).unwrap();
            (Fake(at), resctrl)
        }

        fn group(&self, name: &str, schemata: &str) {
            let group = self.0.join(name);
            fs::create_dir_all(group.join(MONITORS)).unwrap();
            fs::write(group.join("tasks"), "").unwrap();
            fs::write(group.join("schemata"), schemata).unwrap();
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn asked(class: &str, cache: &str, bandwidth: &str) -> IntelRdt {
        IntelRdt {
            clos_id: class.into(),
            l3_cache_schema: cache.into(),
            mem_bw_schema: bandwidth.into(),
            ..IntelRdt::default()
        }
    }

    #[test]
    fn the_lines_are_those_of_the_specification() {
        let of = |cache: &str, bandwidth: &str, more: &[&str]| {
            let more = more.iter().map(|&line| line.to_owned()).collect();
            schemata(&IntelRdt { schemata: more, ..asked("", cache, bandwidth) }).join("|")
        };
        assert_eq!(of("L3:0=f;1=f0", "MB:0=20", &[]), "L3:0=f;1=f0|MB:0=20");
        // "the value written to schemata file MUST be the non-MB: lines in l3CacheSchema and the line in
        // memBwSchema"
        assert_eq!(of("L3:0=f\nMB:0=10\n", "MB:0=20", &[]), "L3:0=f|MB:0=20");
        assert_eq!(of("L3:0=f\nMB:0=10", "", &[]), "L3:0=f|MB:0=10");
        assert_eq!(of("L3:0=f", "", &["L3:0=ff", "L2:0=1"]), "L3:0=f|L3:0=ff|L2:0=1");
        assert_eq!(of("", "", &[]), "");
    }

    #[test]
    fn a_class_of_its_own_has_the_containers_name_and_goes_with_it() {
        let (fake, resctrl) = Fake::new("own");
        let member = Membership::new(&asked("", "L3:0=f", ""), "c1");
        assert!(member.own);
        // The directory is made; the kernel's files are not there.
        let error = resctrl.prepare(&member).unwrap_err().to_string();
        assert!(error.contains("c1/schemata"), "{error}");
        fake.group("c1", "");
        resctrl.prepare(&member).unwrap();
        assert_eq!(fake.read("c1/schemata"), "L3:0=f\n");
        resctrl.add(&member, 42).unwrap();
        assert_eq!(fake.read("c1/tasks"), "42");

        resctrl.change("c1", &asked("", "L3:0=3", "MB:0=30")).unwrap();
        assert_eq!(fake.read("c1/schemata"), "L3:0=3\nMB:0=30\n");

        fs::remove_dir_all(fake.0.join("c1")).unwrap();
        fs::create_dir(fake.0.join("c1")).unwrap();
        resctrl.remove(&member).unwrap();
        assert!(!fake.0.join("c1").exists());
        resctrl.remove(&member).unwrap();
    }

    #[test]
    fn a_class_that_is_named_and_says_nothing_must_be_there_and_stays() {
        let (fake, resctrl) = Fake::new("named");
        let member = Membership::new(&asked("gold", "", ""), "c1");
        let error = resctrl.prepare(&member).unwrap_err().to_string();
        assert!(error.contains("there is no class \"gold\""), "{error}");
        assert!(!fake.0.join("gold").exists());
        fake.group("gold", "L3:0=ff\n");
        resctrl.prepare(&member).unwrap();
        resctrl.add(&member, 7).unwrap();
        assert_eq!((fake.read("gold/tasks"), fake.read("gold/schemata")), ("7".into(), "L3:0=ff\n".into()));
        resctrl.remove(&member).unwrap();
        assert!(fake.0.join("gold").exists());
    }

    #[test]
    fn a_class_that_is_there_must_grant_what_is_asked() {
        let (fake, resctrl) = Fake::new("compare");
        fake.group("gold", "    MB:0=100;1= 90\n    L3:0=00ff;1=0f0\n");
        for (cache, bandwidth) in [("L3:0=ff;1=F0", ""), ("L3:1=f0", "MB:1=90;0=100"), ("", "MB:0=100")] {
            let member = Membership::new(&asked("gold", cache, bandwidth), "c1");
            resctrl.prepare(&member).unwrap_or_else(|error| panic!("{cache} {bandwidth}: {error}"));
        }
        let error = resctrl.prepare(&Membership::new(&asked("gold", "L3:0=f", ""), "c1")).unwrap_err();
        assert!(error.to_string().contains("grants ff for L3:0, not f"), "{error}");
        let error = resctrl.prepare(&Membership::new(&asked("gold", "L3:2=f", ""), "c1")).unwrap_err();
        assert!(error.to_string().contains("grants nothing for L3:2, not f"), "{error}");
        assert!(fake.read("gold/schemata").contains("00ff"));
    }

    #[test]
    fn monitoring_has_a_group_in_the_class() {
        let (fake, resctrl) = Fake::new("monitor");
        let spec = IntelRdt { enable_monitoring: true, ..asked("/", "", "") };
        let member = Membership::new(&spec, "c1");
        assert_eq!((member.class.as_str(), member.own), ("", false));
        resctrl.prepare(&member).unwrap();
        assert!(fake.0.join("mon_groups/c1").is_dir());
        fs::write(fake.0.join("mon_groups/c1/tasks"), "").unwrap();
        resctrl.add(&member, 9).unwrap();
        assert_eq!((fake.read("tasks"), fake.read("mon_groups/c1/tasks")), ("9".into(), "9".into()));
        fs::remove_file(fake.0.join("mon_groups/c1/tasks")).unwrap();
        resctrl.remove(&member).unwrap();
        assert!(!fake.0.join("mon_groups/c1").exists());
    }

    #[test]
    fn the_kernels_own_words_are_passed_on() {
        let (fake, resctrl) = Fake::new("words");
        fs::write(fake.0.join("info/last_cmd_status"), "Mask out of range\n").unwrap();
        let error = resctrl.change("none", &asked("", "L3:0=ffffffff", "")).unwrap_err();
        assert!(format!("{error:?}").contains("the kernel says: Mask out of range"), "{error:?}");
    }

    #[test]
    fn it_is_found_wherever_it_is_mounted() {
        let text = "22 1 0:21 / /sys rw shared:2 - sysfs sysfs rw\n\
                    40 22 0:35 / /mnt/re\\040sctrl rw,relatime shared:9 - resctrl none rw\n";
        assert_eq!(mount_point(text), Some(PathBuf::from("/mnt/re sctrl")));
        assert_eq!(mount_point("22 1 0:21 / /resctrl rw - sysfs resctrl rw\n"), None);
    }
}
