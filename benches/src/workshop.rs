//! The places and tools of the bench: the floor program, scratch folders, cgroups of its own.

use crate::options::Layout;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("benches/ has a parent").to_owned()
}

/// Where `peers.sh` puts the other runtimes.
pub fn peers() -> PathBuf {
    std::env::var_os("DHOW_PEERS").map_or_else(|| "/var/tmp/dhow-peers".into(), PathBuf::from)
}

/// Compiles the floor program into `out`, with musl's compiler where it is there.
pub fn build_floor(out: &Path) -> Result<(), String> {
    let source = workspace().join("benches/floor.c");
    let floor = out.join("floor");
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    if modified(&floor) > modified(&source) {
        return Ok(());
    }
    for compiler in ["musl-gcc", "cc"] {
        let mut command = Command::new(compiler);
        command.args(["-O2", "-static", "-Wall", "-o"]).arg(&floor).arg(&source);
        if compiler == "musl-gcc" {
            // musl has no headers of the kernel's own; the distribution's come last.
            command.args(["-idirafter", "/usr/include", "-idirafter"]);
            command.arg(format!("/usr/include/{}-linux-gnu", std::env::consts::ARCH));
        }
        if command.status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(format!("cannot compile {}: neither musl-gcc nor cc did", source.display()))
}

/// Scratch space that goes when it is dropped: a folder on disk for bundles, a tmpfs for state,
/// as /run is one, and a parent cgroup in every mounted hierarchy.
pub struct Scratch {
    /// The folder.
    pub dir: PathBuf,
    /// The tmpfs.
    pub state: PathBuf,
    /// The parent cgroup, relative to the mounts.
    pub cgroup: String,
    mounts: Vec<PathBuf>,
}

impl Scratch {
    /// Makes it.
    pub fn new(layout: Layout) -> Result<Self, String> {
        let cgroup = format!("dhow-bench-{}", std::process::id());
        let dir = std::env::temp_dir().join(&cgroup);
        let state = dir.join("state");
        fs::create_dir_all(&state).map_err(|e| format!("{}: {e}", state.display()))?;
        let scratch = Scratch { dir, state, cgroup, mounts: hierarchies(layout) };
        // The mount namespace is the worker's own: the mount ends with it.
        nix::mount::mount(
            Some("tmpfs"),
            &scratch.state,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("mode=0711"),
        )
        .map_err(|e| format!("mount a tmpfs at {}: {e}", scratch.state.display()))?;
        for mount in &scratch.mounts {
            let parent = mount.join(&scratch.cgroup);
            fs::create_dir(&parent).map_err(|e| format!("{}: {e}", parent.display()))?;
            // A v1 cpuset is empty until filled, and a child can have no more than its parent.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if parent.join(file).exists() && layout == Layout::V1 {
                    let all = fs::read(mount.join(file)).map_err(|e| e.to_string())?;
                    fs::write(parent.join(file), all).map_err(|e| format!("{file}: {e}"))?;
                }
            }
        }
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for mount in &self.mounts {
            remove_cgroups(&mount.join(&self.cgroup));
        }
        let _ = nix::mount::umount2(&self.state, nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends what is left in a cgroup of the bench, and removes it from the leaves up.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Ok(pid) = pid.parse() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    for _ in 0..100 {
        match fs::remove_dir(dir) {
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn hierarchies(layout: Layout) -> Vec<PathBuf> {
    if layout == Layout::V2 {
        return vec!["/sys/fs/cgroup".into()];
    }
    fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
