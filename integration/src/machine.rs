//! What this machine can do, asked of the kernel and never assumed.

use rustix::thread::{CapabilitySet, capabilities};
use std::io::Write;
use std::path::Path;

/// Says, past the test harness's capture, that a test cannot run here and why.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}

/// Ends a test early when the machine lacks something; the reason names what.
#[macro_export]
macro_rules! skip_unless {
    ($has:expr, $($reason:tt)*) => {
        if !$has {
            $crate::machine::skip(&format!($($reason)*));
            return;
        }
    };
}

/// Whether the tests themselves hold a capability.
pub fn has_capability(capability: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(capability))
}

/// Whether a mounted hierarchy has this controller.
pub fn has_controller(controller: &str) -> bool {
    crate::cgroup::hierarchies().iter().any(|h| h.controllers.iter().any(|c| c == controller))
}

/// Whether cgroups can be frozen here: a v1 freezer, or any v2 hierarchy.
pub fn has_freezer() -> bool {
    has_controller("freezer") || crate::cgroup::hierarchies().iter().any(|h| h.v2)
}

/// Whether the kernel has namespaces of this kind (`user`, `time`, `cgroup`…).
pub fn has_namespace(kind: &str) -> bool {
    Path::new("/proc/self/ns").join(kind).exists()
}

/// Whether the kernel is of this version or later.
pub fn linux_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Whether a program is in PATH.
pub fn has_program(name: &str) -> bool {
    program(name).is_some()
}

/// Where a program is.
pub fn program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
