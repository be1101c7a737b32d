//! `features`: what this dhow carries out (runtime-spec features.md).

use crate::rootfs::known_words;
use crate::seccomp;
use crate::spec::{HookPoint, NamespaceKind};
use serde_json::{Value, json};

/// The flags of seccomp(2) that a profile may ask for.
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

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
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"
                ],
                "archs": seccomp::arch_names(),
                "knownFlags": FLAGS,
                "supportedFlags": FLAGS
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
            "netDevices": {"enabled": false}
        },
        "annotations": {
            "org.dhow.version": env!("CARGO_PKG_VERSION"),
            "org.dhow.commit": env!("DHOW_COMMIT")
        }
    })
}
