//! `spec`: a config.json to start from.

use crate::error::{Class, Error, Result};
use crate::spec::defaults;
use nix::unistd::{getegid, geteuid};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// What a container may do by default: runc's default set.
const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Writes `config.json` into a bundle.
///
/// # Errors
/// [`Class::Config`] when there is one already.
pub fn write_spec(bundle: &Path, rootless: bool) -> Result<()> {
    let path = bundle.join("config.json");
    let failed = |error: std::io::Error| {
        let error = Error::system("write", crate::sys::io_errno(&error)).class(Class::Config);
        let error = error.on(path.display().to_string());
        match error.errno {
            Some(libc::EEXIST) => error.hint("remove it first"),
            _ => error,
        }
    };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    let mut config = default_config();
    // On v1 the mount of cgroups shows the container's own even without, as runc's `spec` has it.
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && let Some(namespaces) = config["linux"]["namespaces"].as_array_mut()
    {
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
    }
    if rootless {
        make_rootless(&mut config, geteuid().as_raw(), getegid().as_raw());
    }
    let text = serde_json::to_string_pretty(&config)
        .map_err(|error| Error::new(Class::Internal, "write").because(error.to_string()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).map_err(failed)
}

fn default_config() -> Value {
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [defaults::PATH, "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "dhow",
        "mounts": defaults::mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": defaults::namespaces(),
            "maskedPaths": defaults::MASKED_PATHS,
            "readonlyPaths": defaults::READONLY_PATHS
        }
    })
}

/// The configuration for a user without rights, who shares the host's network.
fn make_rootless(config: &mut Value, uid: u32, gid: u32) {
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
    }
    defaults::make_rootless(config, uid, gid);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Spec, validate};

    #[test]
    fn what_it_writes_is_valid_to_us_and_to_oci_spec() {
        let mut rootless = default_config();
        make_rootless(&mut rootless, 1000, 1000);
        for config in [default_config(), rootless] {
            let spec: Spec = serde_json::from_value(config.clone()).unwrap();
            validate(&spec).unwrap();
            serde_json::from_value::<oci_spec::runtime::Spec>(config).unwrap();
        }
    }
}
