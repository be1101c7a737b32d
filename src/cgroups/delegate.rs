//! Cgroups that a container may manage itself: runtime-spec "Cgroup ownership", and crun's
//! annotation `run.oci.delegate-cgroup`. cgroup v2 alone; on v1 delegation is not safe.

use super::Manager;
use super::dir::Dir;
use super::place::inside;
use crate::error::{Class, Context as _, Error, Result};
use crate::spec::annotations;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, Uid};
use rustix::io::Errno;

/// The files besides the directory whose owner is who may manage a cgroup, where the kernel does not
/// tell them (cgroups(7), "Cgroups delegation").
const DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];

impl Manager {
    /// Gives the cgroup to a user, who may then make cgroups inside and move processes between them;
    /// its limits stay the host's. Nothing is done on cgroup v1.
    ///
    /// # Errors
    /// chown(2)'s.
    pub fn hand_to(&self, uid: u32) -> Result<()> {
        match self.unified() {
            Some(dir) => hand_to(dir, uid),
            None => Ok(()),
        }
    }

    /// Makes a cgroup inside that is all the container's, and opens the file by which its init
    /// enters it. `uid` is who gets it, if that is not the caller.
    ///
    /// # Errors
    /// [`Class::Unsupported`] on cgroup v1; a name that climbs out.
    pub fn delegate(&self, name: &str, uid: Option<u32>) -> Result<OwnedFd> {
        let field = || format!("annotation {} {name:?}", annotations::DELEGATE);
        let Some(dir) = self.unified() else {
            return Err(Error::new(Class::Unsupported, "delegate a cgroup")
                .on(field())
                .because("only cgroup v2 can be delegated to a container"));
        };
        let path = inside(name)?;
        if path.is_empty() {
            return Err(Error::config(field(), "it must name a cgroup inside the container's"));
        }
        let mut made = dir.path().to_owned();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            made = format!("{made}/{part}");
            match rustix::fs::mkdirat(CWD, made.as_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).doing_on("delegate a cgroup", || made.clone()),
            }
        }
        let below = Dir::new(made);
        if let Some(uid) = uid {
            hand_to(&below, uid)?;
        }
        below.open("cgroup.procs", OFlags::WRONLY).doing_on("delegate a cgroup", || below.path())
    }

    /// The directory in the unified hierarchy, where that is the whole of it.
    fn unified(&self) -> Option<&Dir> {
        match self {
            Manager::V2(v2) => v2.dir(),
            Manager::Systemd(unit) => unit.inner().unified(),
            Manager::V1(_) | Manager::Disabled => None,
        }
    }
}

fn hand_to(dir: &Dir, uid: u32) -> Result<()> {
    let give = |path: String| match rustix::fs::chown(path.as_str(), Some(Uid::from_raw(uid)), None) {
        // The kernel names files of controllers that are not enabled here too.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).doing_on("hand over the cgroup", || path),
    };
    give(dir.path().to_owned())?;
    let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate");
    let files: Vec<&str> = listed.as_ref().map_or_else(|_| DELEGATED.to_vec(), |text| text.lines().collect());
    files.into_iter().try_for_each(|file| give(format!("{}/{file}", dir.path())))
}
