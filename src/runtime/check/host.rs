//! What will fail on this host.

use super::Remarks;
use crate::process::format::{self, Format};
use crate::process::lookup;
use crate::rootfs::plan::{Plan, Source};
use crate::spec::{Linux, NamespaceKind, Process, Spec};
use crate::sys::fd;
use crate::sys::path::{self, Root};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Holds a configuration against the machine.
pub(super) fn look(spec: &Spec, root: Option<&Root>, remarks: &mut Remarks) {
    if !nix::unistd::geteuid().is_root() && !spec.linux.has(NamespaceKind::User) {
        let hint = "`dhow spec --rootless` writes such a configuration";
        remarks.fails("linux.namespaces", "without root a user namespace is needed", hint);
    }
    namespaces(&spec.linux, remarks);
    controllers(&spec.linux, remarks);
    mounts(spec, remarks);
    let Some(process) = &spec.process else { return };
    security_modules(process, remarks);
    if let Some(root) = root {
        program(spec, process, root, remarks);
    }
}

fn namespaces(linux: &Linux, remarks: &mut Remarks) {
    for namespace in &linux.namespaces {
        let Some(kind) = NamespaceKind::from_name(&namespace.kind) else { continue };
        let field = format!("linux.namespaces ({})", namespace.kind);
        if !namespace.path.is_empty() && !Path::new(&namespace.path).exists() {
            remarks.fails(
                field,
                format!("{} is not there", namespace.path),
                "the process that held it has ended",
            );
        } else if !Path::new("/proc/self/ns").join(kind.proc_name()).exists() {
            remarks.fails(field, "the kernel has no such namespaces", "see /proc/self/ns");
        } else if limit(kind.proc_name()) == Some(0) {
            let name = kind.proc_name();
            let what = format!("/proc/sys/user/max_{name}_namespaces is 0");
            remarks.fails(field, what, "raise it with sysctl");
        }
    }
}

fn limit(kind: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/sys/user/max_{kind}_namespaces")).ok()?;
    text.trim().parse().ok()
}

/// The controllers that limits need, by the names of /proc/cgroups.
fn controllers(linux: &Linux, remarks: &mut Remarks) {
    let Some(resources) = &linux.resources else { return };
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let has = |name: &str| {
        known.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.next_back() == Some("1")
        })
    };
    let cpu = resources.cpu.as_ref();
    let needed = [
        ("memory", resources.memory.is_some()),
        ("cpu", cpu.is_some_and(|cpu| cpu.shares.is_some() || cpu.quota.is_some())),
        ("cpuset", cpu.is_some_and(|cpu| !cpu.cpus.is_empty() || !cpu.mems.is_empty())),
        ("pids", resources.pids.is_some()),
        ("blkio", resources.block_io.is_some()),
        ("hugetlb", !resources.hugepage_limits.is_empty()),
        ("rdma", !resources.rdma.is_empty()),
    ];
    for (name, is_needed) in needed {
        if is_needed && !has(name) {
            let what = format!("this kernel has no {name} controller");
            remarks.fails("linux.resources", what, "it may be switched off by cgroup_disable= at boot");
        }
    }
}

fn mounts(spec: &Spec, remarks: &mut Remarks) {
    // Where the rootfs is does not matter for what is looked at here.
    let Ok(plan) = Plan::new(spec, Path::new("/")) else { return };
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for step in &plan.steps {
        match &step.source {
            Source::Bind { source, .. } if !source.exists() => {
                let what = format!("bind source {} is not there", source.display());
                remarks.fails(step.field.clone(), what, "make it, or take the mount out");
            }
            Source::Filesystem { kind, .. }
                if !filesystems.lines().any(|line| line.split_whitespace().last() == Some(kind)) =>
            {
                let what = format!("the kernel does not have the filesystem {kind:?} at the moment");
                remarks.fails(step.field.clone(), what, "its module may have to be loaded: modprobe");
            }
            _ => {}
        }
    }
}

fn security_modules(process: &Process, remarks: &mut Remarks) {
    let has = |file: &str| Path::new(file).exists();
    let profile = process.apparmor_profile.as_str();
    if !matches!(profile, "" | "unconfined")
        && !has("/sys/kernel/security/apparmor")
        && !has("/sys/module/apparmor")
    {
        let what = format!("{profile:?} is asked for, and the kernel has no AppArmor");
        remarks.fails("process.apparmorProfile", what, "leave it out on this host");
    }
    if !process.selinux_label.is_empty() && !has("/sys/fs/selinux/enforce") {
        let what = format!("{:?} is asked for, and the kernel has no SELinux", process.selinux_label);
        remarks.fails("process.selinuxLabel", what, "leave it out on this host");
    }
}

/// A file of the rootfs, and how it can be opened by path.
fn file(root: &Root, path: &Path) -> Option<(OwnedFd, PathBuf)> {
    let found = root.resolve(path).ok()?;
    let path = PathBuf::from(fd::proc_path(found.as_fd()));
    Some((found, path))
}

/// The program, its mode and its interpreters, as far as they do not lie on a mount.
fn program(spec: &Spec, process: &Process, root: &Root, remarks: &mut Remarks) {
    let Some(name) = process.args.first().filter(|name| !name.is_empty()) else { return };
    let is_mounted = |path: &Path| {
        spec.mounts.iter().any(|mount| path.starts_with(&mount.destination) && mount.destination != "/")
    };
    let field = "process.args[0]";
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![Path::new(&process.cwd).join(name)]
    } else {
        let path = lookup::variable(&process.env, "PATH").unwrap_or(lookup::DEFAULT_PATH);
        path.split(':').map(|directory| Path::new(directory).join(name)).collect()
    };
    if candidates.iter().any(|candidate| is_mounted(candidate)) {
        return;
    }
    let found = candidates.iter().find_map(|candidate| Some((candidate, file(root, candidate)?)));
    let Some((path, (found, opened))) = found else {
        let what = format!("the rootfs has no {name}");
        return remarks.fails(field, what, "name a program of the rootfs, or set PATH in process.env");
    };
    let Ok(stat) = path::stat(found.as_fd()) else { return };
    if path::file_type(&stat) != rustix::fs::FileType::RegularFile {
        return remarks.fails(field, format!("{} is no file", path.display()), "name a program");
    }
    if stat.st_mode & 0o111 == 0 {
        let what =
            format!("{} has mode {:04o}, without the executable bit", path.display(), stat.st_mode & 0o7777);
        return remarks.fails(field, what, "chmod +x it in the image");
    }
    let Some(format) = format::of(&opened) else { return };
    let needed = match &format {
        Format::Elf { machine, .. } if *machine != format::NATIVE && *machine != format::I386 => {
            let what = format!("{} is a program for {}", path.display(), format::machine_name(*machine));
            return remarks.fails(field, what, "use an image for this machine, or qemu-user-static");
        }
        Format::Elf { loader: Some(needed), .. } | Format::Script { interpreter: needed, .. } => needed,
        _ => return,
    };
    if !is_mounted(needed) && file(root, needed).is_none() {
        let what = format!(
            "{} needs {:?}, which the rootfs does not have",
            path.display(),
            needed.display().to_string()
        );
        remarks.fails(field, what, "install it, or use a static program");
    }
}
