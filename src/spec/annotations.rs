//! Annotations that are asked of the runtime: those of crun that podman and users rely on.
//!
//! They are control input, so they are trusted as config.json is; who writes a config.json from an
//! image must not let the image's labels become these.

use std::collections::BTreeMap;

/// The supplementary groups of the caller stay.
pub const KEEP_GROUPS: &str = "run.oci.keep_original_groups";
/// The file to which hooks' standard output is appended.
pub const HOOKS_STDOUT: &str = "run.oci.hooks.stdout";
/// The file to which hooks' standard error is appended.
pub const HOOKS_STDERR: &str = "run.oci.hooks.stderr";
/// The cgroup inside systemd's unit that is the container's.
pub const SUBGROUP: &str = "run.oci.systemd.subgroup";
/// The cgroup inside the container's that is all its own, on cgroup v2.
pub const DELEGATE: &str = "run.oci.delegate-cgroup";
/// The unix socket to which a pidfd of the init is sent.
pub const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";

/// Whether an unknown syscall in the seccomp profile is an error.
pub const FAIL_UNKNOWN: &str = "run.oci.seccomp_fail_unknown_syscall";
/// The file with CRIU's own configuration.
pub const CRIU_CONFIG: &str = "org.criu.config";
/// The image of a bundle: its rootfs is then the overlay that a file beside config.json describes.
pub const IMAGE: &str = "org.dhow.image.name";

/// Whether an init of dhow's own is PID 1, before the payload.
pub const INIT: &str = "org.dhow.init";
/// Beginning of the names by which a container shares namespaces of another, whose id is the value:
/// `org.dhow.join.network` and `org.dhow.join.pid`. They are looked up each time that it is made anew.
pub const JOIN: &str = "org.dhow.join.";

/// Annotations by which dhow does something on the host: who takes a config.json from a stranger must
/// not let these through (features.md, `potentiallyUnsafeConfigAnnotations`). One that ends with a dot
/// stands for all that begin so.
pub const UNSAFE: [&str; 11] = [
    CRIU_CONFIG,
    IMAGE,
    JOIN,
    "org.systemd.property.",
    DELEGATE,
    HOOKS_STDERR,
    HOOKS_STDOUT,
    KEEP_GROUPS,
    PIDFD_RECEIVER,
    FAIL_UNKNOWN,
    SUBGROUP,
];

/// Beginnings of names by which runtimes and engines are asked for something: dhow, crun, systemd's
/// unit, podman, cri-o, CRIU.
const CONTROLS: [&str; 10] = [
    "run.oci.",
    "org.dhow.",
    "org.systemd.property.",
    "org.criu.",
    "io.containers.",
    "io.container.",
    "io.podman.",
    "io.kubernetes.",
    "module.wasm.",
    "org.opencontainers.runtime",
];

/// Whether an annotation of this name asks something of a runtime, so that it must not come from an
/// image.
pub fn is_control(name: &str) -> bool {
    let name = name.trim_start().to_ascii_lowercase();
    CONTROLS.iter().any(|control| name.starts_with(control))
}

/// Whether an annotation is there and does not say no.
pub fn is_on(annotations: &BTreeMap<String, String>, name: &str) -> bool {
    annotations.get(name).is_some_and(|value| !matches!(value.as_str(), "" | "0" | "false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_annotation_may_say_no() {
        let of = |value: &str| BTreeMap::from([(KEEP_GROUPS.to_owned(), value.to_owned())]);
        assert!(is_on(&of("1"), KEEP_GROUPS) && is_on(&of("true"), KEEP_GROUPS));
        assert!(!is_on(&of("0"), KEEP_GROUPS) && !is_on(&of("false"), KEEP_GROUPS));
        assert!(!is_on(&BTreeMap::new(), KEEP_GROUPS));
    }
}
