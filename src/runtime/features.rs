//! `features`: what this dhow carries out (runtime-spec features.md).

use crate::rootfs::known_words;
use crate::seccomp;
use crate::spec::{HookPoint, MEMORY_FLAGS, MEMORY_MODES, NamespaceKind, annotations};
use serde_json::{Value, json};

/// The features document. It says what is there, and nothing that is not.
pub fn features() -> Value {
    let mut hooks: Vec<&str> = HookPoint::ALL.map(HookPoint::name).to_vec();
    hooks.sort_unstable();
    let mut namespaces: Vec<&str> = NamespaceKind::ALL.map(NamespaceKind::name).to_vec();
    namespaces.sort_unstable();
    let mut capabilities: Vec<String> =
        caps::all().into_iter().map(|capability| capability.to_string()).collect();
    capabilities.sort_unstable();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": hooks,
        "mountOptions": known_words(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": seccomp::features(),
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "memoryPolicy": {"modes": MEMORY_MODES, "flags": MEMORY_FLAGS},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true}
        },
        "annotations": {
            "org.dhow.version": env!("CARGO_PKG_VERSION"),
            "org.dhow.commit": env!("DHOW_COMMIT")
        },
        "potentiallyUnsafeConfigAnnotations": annotations::UNSAFE
    })
}
