//! What gives a container power over its host.

use super::Remarks;
use super::Severity::{self, High, Low, Medium};
use crate::spec::{Capabilities, HookPoint, Linux, Mount, NamespaceKind, Process, Spec};
use std::collections::BTreeSet;
use std::path::Path;

/// Capabilities that are as good as root on the host, or nearly.
const STRONG: [(&str, Severity, &str); 14] = [
    ("CAP_SYS_ADMIN", High, "mounts, namespaces, and most of what root may do"),
    ("CAP_SYS_MODULE", High, "loads code into the kernel"),
    ("CAP_SYS_RAWIO", High, "reads and writes memory and I/O ports"),
    ("CAP_SYS_PTRACE", High, "reads and changes other processes"),
    ("CAP_DAC_READ_SEARCH", High, "opens files of the host by handle"),
    ("CAP_BPF", High, "loads programs into the kernel"),
    ("CAP_MAC_ADMIN", High, "changes the policy of security modules"),
    ("CAP_SYS_BOOT", High, "reboots the host, loads another kernel"),
    ("CAP_PERFMON", Medium, "watches the whole host"),
    ("CAP_NET_ADMIN", Medium, "changes interfaces, routes and firewall of its network namespace"),
    ("CAP_SYS_TIME", Medium, "sets the host's clock"),
    ("CAP_SYSLOG", Medium, "reads the kernel's log and addresses"),
    ("CAP_SYS_RESOURCE", Medium, "goes beyond resource limits"),
    ("CAP_MKNOD", Low, "makes device nodes, which the device rules alone hold back"),
];

/// Sockets that command an engine, and with it the host.
const ENGINES: [&str; 7] = [
    "docker.sock",
    "containerd.sock",
    "containerd.sock.ttrpc",
    "crio.sock",
    "podman.sock",
    "buildkitd.sock",
    "dockershim.sock",
];

/// Directories of the host by which it can be taken over when they may be written.
const SENSITIVE: [&str; 12] = [
    "/etc",
    "/root",
    "/boot",
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/usr",
    "/lib/modules",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/var/lib/kubelet",
];

/// Reads a configuration for what it gives away.
pub(super) fn look(spec: &Spec, remarks: &mut Remarks) {
    let has_user_namespace = spec.linux.has(NamespaceKind::User);
    if let Some(process) = &spec.process {
        rights(process, has_user_namespace, remarks);
    }
    namespaces(&spec.linux, remarks);
    kernel_files(spec, remarks);
    for (index, mount) in spec.mounts.iter().enumerate() {
        bind(&format!("mounts[{index}] ({})", mount.destination), mount, remarks);
    }
    devices(&spec.linux, remarks);
    limits(&spec.linux, remarks);
    for point in HookPoint::ALL {
        for hook in spec.hooks.at(point).iter().filter(|_| point != HookPoint::StartContainer) {
            let what = format!("{} runs on the host, with dhow's rights", hook.path);
            remarks.risk(Low, format!("hooks.{}", point.name()), what, "be sure who wrote it");
        }
    }
}

fn rights(process: &Process, has_user_namespace: bool, remarks: &mut Remarks) {
    let given: BTreeSet<&str> = process.capabilities.iter().flat_map(names).collect();
    for (name, severity, what) in STRONG {
        if given.contains(name) {
            // In a user namespace it holds for what belongs to that.
            let severity = if has_user_namespace { Low } else { severity };
            remarks.risk(severity, "process.capabilities", format!("{name}: {what}"), "leave it out");
        }
    }
    if !process.no_new_privileges {
        let what = "noNewPrivileges is off: setuid programs give more rights";
        remarks.risk(Low, "process.noNewPrivileges", what, "set it to true");
    }
    if process.user.uid == 0 && !has_user_namespace {
        let what = "root in the container is root on the host, but for what else is taken away";
        remarks.risk(Low, "process.user", what, "use another user, or a user namespace");
    }
}

fn names(capabilities: &Capabilities) -> impl Iterator<Item = &str> {
    let sets =
        [&capabilities.bounding, &capabilities.permitted, &capabilities.effective, &capabilities.ambient];
    sets.into_iter().flatten().map(String::as_str)
}

fn namespaces(linux: &Linux, remarks: &mut Remarks) {
    for (kind, severity, what) in [
        (NamespaceKind::Mount, High, "mounts are made among the host's"),
        (NamespaceKind::Pid, High, "it sees the host's processes"),
        (NamespaceKind::Network, Medium, "it has the host's network, abstract sockets of services too"),
        (NamespaceKind::Ipc, Medium, "it has the host's shared memory"),
        (NamespaceKind::Uts, Low, "it has the host's name"),
        (NamespaceKind::Cgroup, Low, "it sees the host's cgroups"),
    ] {
        let field = format!("linux.namespaces ({})", kind.name());
        let namespace = linux.namespace(kind);
        let joined = namespace.map_or("", |namespace| namespace.path.as_str());
        if namespace.is_none() || joined.starts_with("/proc/1/ns") || joined.starts_with("/proc/self/ns") {
            remarks.risk(
                severity,
                field,
                format!("the host's own: {what}"),
                "give it a namespace of its own",
            );
        }
    }
    if linux.rootfs_propagation.trim_start_matches('r') == "shared" {
        let what = "mounts made inside appear on the host";
        remarks.risk(High, "linux.rootfsPropagation", what, "private or slave");
    }
    let Some(seccomp) = &linux.seccomp else {
        let hint = "images get a profile of Docker's strength; `dhow seccomp` shows it";
        return remarks.risk(Medium, "linux.seccomp", "no seccomp profile: every syscall is allowed", hint);
    };
    if seccomp.default_action == "SCMP_ACT_ALLOW" && seccomp.syscalls.is_empty() {
        remarks.risk(
            Medium,
            "linux.seccomp",
            "the profile allows every syscall",
            "use a list of what is allowed",
        );
    }
}

/// /proc and /sys, by which the host's kernel is set.
fn kernel_files(spec: &Spec, remarks: &mut Remarks) {
    let covers = |list: &[String], path: &str| list.iter().any(|entry| Path::new(path).starts_with(entry));
    for (index, mount) in spec.mounts.iter().enumerate() {
        let field = format!("mounts[{index}] ({})", mount.destination);
        let is_read_only = mount.options.iter().any(|word| word == "ro" || word == "rro");
        match mount.kind.as_str() {
            "sysfs" if !is_read_only => {
                remarks.risk(
                    High,
                    field,
                    "a writable /sys: the host's devices and kernel are set there",
                    "add ro",
                );
            }
            "cgroup" if !is_read_only => {
                remarks.risk(Medium, field, "writable cgroup v1 files, release_agent among them", "add ro");
            }
            "cgroup2" if !is_read_only && !spec.linux.has(NamespaceKind::Cgroup) => {
                remarks.risk(Medium, field, "writable cgroups without a cgroup namespace", "add ro");
            }
            "proc" if !is_read_only => {
                if !covers(&spec.linux.readonly_paths, "/proc/sys") {
                    let what =
                        "a writable /proc/sys: kernel.core_pattern and modprobe run programs on the host";
                    remarks.risk(High, "linux.readonlyPaths", what, "add /proc/sys");
                }
                if !covers(&spec.linux.readonly_paths, "/proc/sysrq-trigger") {
                    let what = "a writable /proc/sysrq-trigger reboots the host";
                    remarks.risk(High, "linux.readonlyPaths", what, "add /proc/sysrq-trigger");
                }
                if !covers(&spec.linux.masked_paths, "/proc/kcore") {
                    let what = "/proc/kcore shows the host's memory to root";
                    remarks.risk(Medium, "linux.maskedPaths", what, "add /proc/kcore");
                }
            }
            _ => {}
        }
    }
}

fn bind(field: &str, mount: &Mount, remarks: &mut Remarks) {
    let has = |words: &[&str]| mount.options.iter().any(|option| words.contains(&option.as_str()));
    if mount.kind != "bind" && !has(&["bind", "rbind"]) {
        return;
    }
    let source = Path::new(&mount.source);
    let name = source.file_name().unwrap_or_default().to_string_lossy();
    let is_read_only = has(&["ro", "rro"]);
    if ENGINES.contains(&name.as_ref()) {
        // Read-only does not help: a socket is not written to as a file is.
        let what = format!("{} commands an engine of the host", source.display());
        remarks.risk(High, field, what, "give it to nobody who is not root on the host anyway");
    } else if source == Path::new("/") {
        remarks.risk(High, field, "the whole of the host's files", "mount what is needed");
    } else if let Some(place) = SENSITIVE.iter().find(|place| source == Path::new(place)) {
        let severity = if is_read_only { Medium } else { High };
        remarks.risk(severity, field, format!("{place} of the host"), "mount what is needed, with ro");
    }
    if has(&["shared", "rshared"]) {
        let what = "shared propagation: mounts made inside appear on the host";
        remarks.risk(Medium, field, what, "rslave lets the host's mounts in, and none out");
    }
}

fn devices(linux: &Linux, remarks: &mut Remarks) {
    let rules = linux.resources.iter().flat_map(|resources| &resources.devices);
    // A later rule wins over an earlier one.
    let mut all = true;
    for rule in rules {
        let is_any = |number: Option<i64>| number.is_none_or(|number| number < 0);
        let every_kind = rule.kind.as_deref().is_none_or(|kind| kind == "a");
        if every_kind && is_any(rule.major) && is_any(rule.minor) {
            all = rule.allow;
        }
    }
    if all && linux.resources.as_ref().is_some_and(|resources| !resources.devices.is_empty()) {
        let what = "every device of the host may be used";
        remarks.risk(High, "linux.resources.devices", what, "begin with a rule that denies all");
    }
    for device in &linux.devices {
        let is_memory = ["/dev/mem", "/dev/kmem", "/dev/port"].contains(&device.path.as_str());
        if device.kind == "b" || is_memory {
            let what = format!("{} gives what lies under the host's filesystems", device.path);
            remarks.risk(High, "linux.devices", what, "mount a filesystem of it instead");
        }
    }
}

fn limits(linux: &Linux, remarks: &mut Remarks) {
    let resources = linux.resources.as_ref();
    let memory = resources.and_then(|resources| resources.memory.as_ref()).and_then(|memory| memory.limit);
    if memory.is_none_or(|limit| limit <= 0) {
        remarks.risk(Low, "linux.resources.memory", "no limit: it can use up the host's memory", "set limit");
    }
    let pids = resources.and_then(|resources| resources.pids.as_ref()).and_then(|pids| pids.limit);
    if pids.is_none_or(|limit| limit <= 0) {
        remarks.risk(
            Low,
            "linux.resources.pids",
            "no limit: a fork bomb uses up the host's processes",
            "set limit",
        );
    }
}
