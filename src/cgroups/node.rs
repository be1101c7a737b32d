//! A container's cgroup in one hierarchy: making it, removing it, and who is in it.

use super::dir::Dir;
use super::layout::{Mount, own_path};
use super::place::Place;
use crate::error::{Class, Context, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long `destroy` waits for processes that were killed and are still dying.
const DYING: Duration = Duration::from_secs(10);

/// A container's cgroup in one hierarchy.
#[derive(Debug)]
pub(super) struct Node {
    /// Where the hierarchy is mounted.
    pub mount: String,
    /// The cgroup below the mount, `/a/b`.
    pub path: String,
    /// How many of the path's directories above the last one are the container's own, because they
    /// were not there before it.
    pub parents: usize,
    /// The cgroup's directory.
    pub dir: Dir,
}

/// What [`Node::make`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Made {
    /// The cgroup is new.
    Fresh,
    /// It was there already.
    Found,
}

impl Node {
    /// The node as a record or a plan has it.
    pub(super) fn new(mount: String, path: String, parents: usize) -> Node {
        let dir = Dir::new(format!("{mount}{path}"));
        Node { mount, path, parents, dir }
    }

    /// Decides where the cgroup is in a mounted hierarchy; `own` is the text of `/proc/self/cgroup`
    /// (needed for paths below the runtime's own), and `levels_up` how far above its own cgroup the
    /// runtime begins.
    pub(super) fn plan(mount: &Mount, place: &Place, own: &str, levels_up: usize) -> Node {
        let path = match place {
            Place::FromRoot(path) => path.clone(),
            Place::BelowOwn(path) => {
                let own = own_path(own, &mount.hierarchy).unwrap_or("/");
                let mut own = own.strip_prefix(mount.root.trim_end_matches('/')).unwrap_or(own);
                for _ in 0..levels_up {
                    own = own.rfind('/').map_or("", |slash| &own[..slash]);
                }
                format!("{}{path}", own.trim_end_matches('/'))
            }
        };
        let mut node = Node::new(mount.at.clone(), path, 0);
        node.parents = node.missing_parents();
        node
    }

    /// How many of the directories above the last are not there yet. They are looked for only where
    /// there are any, and before they are made, so that the journal can name them.
    fn missing_parents(&self) -> usize {
        let whole = self.dir.path();
        let mut end = whole.len();
        let mut missing = 0;
        while let Some(slash) = whole[..end].rfind('/').filter(|slash| *slash > self.mount.len()) {
            end = slash;
            if rustix::fs::accessat(CWD, &whole[..end], Access::EXISTS, AtFlags::empty()).is_ok() {
                break;
            }
            missing += 1;
        }
        missing
    }

    /// The directories that are the container's own, the deepest last.
    pub(super) fn own_directories(&self) -> Vec<&str> {
        let mut list = vec![self.dir.path()];
        while let (Some(last), true) = (list.last(), list.len() <= self.parents) {
            let Some(slash) = last.rfind('/').filter(|slash| *slash > self.mount.len()) else { break };
            list.push(&last[..slash]);
        }
        list.reverse();
        list
    }

    /// Makes the cgroup, and the directories above it that are missing.
    pub(super) fn make(&mut self) -> rustix::io::Result<Made> {
        let mut result = if self.parents > 0 { self.make_path() } else { mkdir(self.dir.path()) };
        if result == Err(Errno::NOENT) {
            // Another container has removed its parents since the plan, and they were ours too.
            self.parents = self.missing_parents();
            result = self.make_path();
        }
        match result {
            Ok(()) => Ok(Made::Fresh),
            Err(Errno::EXIST) => Ok(Made::Found),
            Err(errno) => Err(errno),
        }
    }

    fn make_path(&self) -> rustix::io::Result<()> {
        let directories = self.own_directories();
        let (last, above) = directories.split_last().ok_or(Errno::INVAL)?;
        for directory in above {
            match mkdir(directory) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        mkdir(last)
    }

    /// Takes back what [`Node::make`] just made; failures are of no interest, the caller is already
    /// reporting one.
    pub(super) fn unmake(&self) {
        for directory in self.own_directories().iter().rev() {
            let _ = rustix::fs::rmdir(*directory);
        }
    }

    /// Removes the cgroup, those made inside it, and the parents that were made for it. Waits for
    /// processes that are dying. One that is not there is fine; parents in use by others stay.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.dir.close();
        let deadline = Instant::now() + DYING;
        remove_tree(self.dir.path(), deadline)?;
        let directories = self.own_directories();
        for parent in directories.iter().rev().skip(1) {
            if rustix::fs::rmdir(*parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Refuses a cgroup that was there before and has processes in it.
pub(super) fn refuse_occupied(dir: &Dir, pids: &[i32]) -> Result<()> {
    let Some(first) = pids.first() else { return Ok(()) };
    Err(Error::new(Class::Config, "create the container's cgroup")
        .on(dir.path())
        .because(format!(
            "container's cgroup is not empty: it already holds {} process(es), {first} among them",
            pids.len()
        ))
        .hint("is another container using this linux.cgroupsPath?"))
}

fn mkdir(path: &str) -> rustix::io::Result<()> {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
}

/// Removes a cgroup depth-first, waiting until `deadline` for processes that still die.
fn remove_tree(path: &str, deadline: Instant) -> Result<()> {
    let mut pause = Duration::from_micros(50);
    loop {
        match rustix::fs::rmdir(path) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(errno) => return Err(errno).doing_on("remove cgroup", || path),
        }
        let dir = Dir::new(path.to_owned());
        let children = match dir.children() {
            Ok(children) => children,
            Err(Errno::NOENT | Errno::NODEV) => continue,
            Err(errno) => return Err(errno).doing_on("list cgroup", || path),
        };
        for child in &children {
            remove_tree(dir.child(child).path(), deadline)?;
        }
        if !children.is_empty() {
            continue;
        }
        if Instant::now() >= deadline {
            return Err(still_busy(&dir));
        }
        wait_until_emptier(&dir, pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Removes a cgroup of which nothing is known but its place.
///
/// # Errors
/// Processes that do not end.
pub(super) fn remove_abandoned(path: &str) -> Result<()> {
    remove_tree(path, Instant::now() + DYING)
}

fn still_busy(dir: &Dir) -> Error {
    let pids = pids_below(dir).unwrap_or_default();
    let list: Vec<String> = pids.iter().take(8).map(ToString::to_string).collect();
    Error::new(Class::System, "remove cgroup")
        .on(dir.path())
        .because(format!("processes are still in it after {} s: {}", DYING.as_secs(), list.join(" ")))
        .errno(nix::errno::Errno::EBUSY)
}

/// Waits at most `pause`, on cgroup v2 only until the kernel says that the last process is gone.
fn wait_until_emptier(dir: &Dir, pause: Duration) {
    let Ok(events) = dir.open("cgroup.events", OFlags::RDONLY) else {
        std::thread::sleep(pause);
        return;
    };
    match super::dir::read_all(rustix::fd::AsFd::as_fd(&events)) {
        // Empty, and still not removable: the kernel is a moment behind.
        Ok(text) if text.contains("populated 0") => std::thread::sleep(pause),
        Ok(_) => wait_for_change(&events, Duration::from_millis(100)),
        Err(_) => std::thread::sleep(pause),
    }
}

/// Waits until a kernfs file that was read announces a change, at most `limit`.
pub(super) fn wait_for_change(file: &rustix::fd::OwnedFd, limit: Duration) {
    let timeout = Timespec::try_from(limit).ok();
    let mut fds = [PollFd::new(file, PollFlags::PRI)];
    // A signal or an early return only makes the caller look again.
    let _ = rustix::event::poll(&mut fds, timeout.as_ref());
}

/// The processes in a cgroup and in those below it, each once.
///
/// # Errors
/// The system's; a cgroup that is not there has none.
pub(super) fn pids_below(dir: &Dir) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    collect_pids(dir, &mut pids).doing_on("list the processes of cgroup", || dir.path())?;
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn collect_pids(dir: &Dir, pids: &mut Vec<i32>) -> rustix::io::Result<()> {
    let text = match dir.read("cgroup.procs") {
        // A threaded cgroup lists threads only; the caller removes what it sees twice.
        Err(Errno::OPNOTSUPP) => dir.read("cgroup.threads"),
        other => other,
    };
    match text {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    for child in dir.children()? {
        collect_pids(&dir.child(&child), pids)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::controller::Set;
    use super::*;

    fn mount(at: &str, root: &str, hierarchy: &str) -> Mount {
        Mount { at: at.into(), root: root.into(), hierarchy: hierarchy.into(), controllers: Set::EMPTY }
    }

    fn planned(mount: &Mount, place: &Place, own: &str, up: usize) -> String {
        Node::plan(mount, place, own, up).dir.path().to_owned()
    }

    #[test]
    fn from_the_root_or_below_the_runtimes_own() {
        let pids = mount("/cg/pids", "/", "pids");
        let own = "8:pids:/user/me\n0::/user/session/scope\n";
        assert_eq!(planned(&pids, &Place::FromRoot("/a".into()), own, 0), "/cg/pids/a");
        assert_eq!(planned(&pids, &Place::BelowOwn("/a".into()), own, 0), "/cg/pids/user/me/a");
        let unified = mount("/cg", "/", "");
        assert_eq!(planned(&unified, &Place::BelowOwn("/a".into()), own, 1), "/cg/user/session/a");
        assert_eq!(planned(&unified, &Place::BelowOwn("/a".into()), "0::/\n", 1), "/cg/a");
        let inner = mount("/cg/pids", "/user", "pids");
        assert_eq!(planned(&inner, &Place::BelowOwn("/a".into()), own, 0), "/cg/pids/me/a");
    }

    #[test]
    fn own_directories_have_the_deepest_last() {
        let node = Node::new("/cg".into(), "/a/b/c".into(), 1);
        assert_eq!(node.own_directories(), ["/cg/a/b", "/cg/a/b/c"]);
        let node = Node::new("/cg".into(), "/a/b/c".into(), 9);
        assert_eq!(node.own_directories(), ["/cg/a", "/cg/a/b", "/cg/a/b/c"]);
        let node = Node::new("/cg".into(), "/a".into(), 0);
        assert_eq!(node.own_directories(), ["/cg/a"]);
    }
}
