//! `--security-opt`: the seccomp profile, and whether privileges may be gained.

use super::options::{Options, wrong};
use crate::error::{Class, Error, Result};
use crate::spec::{Seccomp, defaults, load};
use serde_json::{Value, json};
use std::path::Path;

/// Puts into a configuration what `--security-opt` and the capabilities say.
///
/// # Errors
/// For an unknown option, and a profile that cannot be read.
pub(super) fn apply(options: &Options, capabilities: &[String], config: &mut Value) -> Result<()> {
    let mut seccomp = if options.privileged { None } else { Some(None) };
    if options.privileged {
        config["process"]["noNewPrivileges"] = json!(false);
    }
    for text in &options.security {
        let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
        match (key, value) {
            ("seccomp", "unconfined") => seccomp = None,
            ("seccomp", "builtin" | "default") => seccomp = Some(None),
            ("seccomp", file) if !file.is_empty() => seccomp = Some(Some(file)),
            ("no-new-privileges", "" | "true") => config["process"]["noNewPrivileges"] = json!(true),
            ("no-new-privileges", "false") => config["process"]["noNewPrivileges"] = json!(false),
            ("apparmor", "unconfined") | ("label", "disable") => {}
            ("apparmor", name) if !name.is_empty() => config["process"]["apparmorProfile"] = json!(name),
            _ => {
                return Err(wrong(
                    "security-opt",
                    text,
                    "it is not one of seccomp=unconfined|FILE, \
                    no-new-privileges[=true|false], apparmor=PROFILE|unconfined, label=disable",
                ));
            }
        }
    }
    match seccomp {
        None => {}
        Some(None) => config["linux"]["seccomp"] = defaults::seccomp(capabilities),
        Some(Some(file)) => config["linux"]["seccomp"] = from_file(Path::new(file), capabilities)?,
    }
    Ok(())
}

/// A profile from a file: as config.json has it, or in Docker's form, whose rules may depend on the
/// machine and on capabilities.
fn from_file(path: &Path, capabilities: &[String]) -> Result<Value> {
    let text = load::read(path)?;
    let failed = |cause: String| {
        Error::new(Class::Config, "read the seccomp profile").on(path.display().to_string()).because(cause)
    };
    let mut profile: Value = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    for_this_container(&mut profile, capabilities);
    // Whether it is one at all is said here, where the file's name is known.
    let read: Seccomp = serde_json::from_value(profile.clone()).map_err(|error| failed(error.to_string()))?;
    match read.default_action.is_empty() {
        true => Err(failed("it has no defaultAction".into())),
        false => Ok(profile),
    }
}

/// Resolves what Docker's form leaves open: `archMap`, and `includes` and `excludes` of rules.
fn for_this_container(profile: &mut Value, capabilities: &[String]) {
    let (machine, architecture) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "SCMP_ARCH_AARCH64"),
        _ => ("amd64", "SCMP_ARCH_X86_64"),
    };
    let Some(all) = profile.as_object_mut() else { return };
    if let Some(map) = all.remove("archMap") {
        let own = map.as_array().into_iter().flatten().find(|entry| entry["architecture"] == architecture);
        let more = own.and_then(|entry| entry["subArchitectures"].as_array().cloned()).unwrap_or_default();
        all.insert("architectures".into(), [vec![json!(architecture)], more].concat().into());
    }
    let Some(rules) = all.get_mut("syscalls").and_then(Value::as_array_mut) else { return };
    let listed = |filter: &Value, key: &str, has: &dyn Fn(&str) -> bool| {
        let words = filter[key].as_array().into_iter().flatten().filter_map(Value::as_str);
        words.map(has).collect::<Vec<bool>>()
    };
    let has_capability = |name: &str| capabilities.iter().any(|one| one == name);
    let is_machine = |name: &str| name == machine;
    rules.retain(|rule| {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let wanted_arches = listed(includes, "arches", &is_machine);
        (wanted_arches.is_empty() || wanted_arches.contains(&true))
            && !listed(includes, "caps", &has_capability).contains(&false)
            && !listed(excludes, "arches", &is_machine).contains(&true)
            && !listed(excludes, "caps", &has_capability).contains(&true)
    });
    for rule in rules.iter_mut().filter_map(Value::as_object_mut) {
        for key in ["includes", "excludes", "comment"] {
            rule.remove(key);
        }
        // The form of old profiles: one name to a rule.
        if let Some(name) = rule.remove("name").filter(|_| !rule.contains_key("names")) {
            rule.insert("names".into(), json!([name]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::vm::{Data, run};
    use crate::seccomp::{Native, Options as Compile, compile, names};

    const ALLOWED: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    /// What a profile answers to a syscall.
    fn answer(profile: &Value, name: &str, args: [u64; 6]) -> u32 {
        let profile: Seccomp = serde_json::from_value(profile.clone()).unwrap();
        let abi = Native::HOST.abi();
        let number = names::number_of(abi, name);
        let number = number.unwrap_or_else(|| panic!("{name} has no number here"));
        let program =
            compile(&profile, &Compile { unknown_syscall_fails: true, ..Compile::default() }).unwrap();
        run(program.code(), &Data { number, arch: abi.audit(), args }).unwrap()
    }

    fn default_answer(capabilities: &[&str], name: &str, first: u64) -> u32 {
        let capabilities: Vec<String> = capabilities.iter().map(|one| (*one).to_owned()).collect();
        answer(&defaults::seccomp(&capabilities), name, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn what_only_an_administrator_needs_is_denied() {
        for name in [
            "mount",
            "umount2",
            "pivot_root",
            "unshare",
            "setns",
            "bpf",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "io_uring_setup",
            "io_uring_enter",
            "kexec_load",
            "init_module",
            "finit_module",
            "delete_module",
            "reboot",
            "swapon",
            "swapoff",
            "settimeofday",
            "clock_settime",
            "acct",
            "quotactl",
            "open_by_handle_at",
            "syslog",
            "chroot",
            "kcmp",
            "pidfd_getfd",
            "mbind",
            "move_pages",
            "fsopen",
            "fsconfig",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "sethostname",
            "setdomainname",
            "vhangup",
            "process_madvise",
            "nfsservctl",
            "lookup_dcookie",
        ] {
            assert_eq!(default_answer(&[], name, 0), EPERM, "{name}");
        }
        assert_eq!(default_answer(&[], "clone3", 0), ENOSYS);
    }

    #[test]
    fn what_programs_need_is_allowed() {
        for name in [
            "read",
            "write",
            "openat",
            "openat2",
            "execve",
            "execveat",
            "mmap",
            "futex",
            "epoll_pwait2",
            "statx",
            "prctl",
            "seccomp",
            "landlock_restrict_self",
            "ptrace",
            "rseq",
            "clock_gettime",
            "wait4",
            "setuid",
            "getrandom",
            "memfd_create",
            "pidfd_open",
            "close_range",
            "faccessat2",
            "mknodat",
            "setgroups",
        ] {
            assert_eq!(default_answer(&[], name, 0), ALLOWED, "{name}");
        }
    }

    #[test]
    fn arguments_decide_where_they_must() {
        for (name, allowed, denied) in [
            ("socket", &[1, 2, 10, 16, 17][..], &[40][..]),
            ("personality", &[0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff], &[0x4_0000, 1, 4]),
            // A thread; then each kind of namespace.
            (
                "clone",
                &[0x3d_0f00, 17, 0x4111],
                &[0x2_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0011],
            ),
        ] {
            for first in allowed {
                assert_eq!(default_answer(&[], name, *first), ALLOWED, "{name} {first:#x}");
            }
            for first in denied {
                assert_eq!(default_answer(&[], name, *first), EPERM, "{name} {first:#x}");
            }
        }
    }

    #[test]
    fn capabilities_add_what_they_are_for() {
        for (capability, name) in [
            ("CAP_SYS_ADMIN", "mount"),
            ("CAP_SYS_ADMIN", "clone3"),
            ("CAP_SYS_ADMIN", "setns"),
            ("CAP_BPF", "bpf"),
            ("CAP_PERFMON", "perf_event_open"),
            ("CAP_SYS_PTRACE", "pidfd_getfd"),
            ("CAP_SYS_CHROOT", "chroot"),
            ("CAP_SYSLOG", "syslog"),
            ("CAP_SYS_TIME", "clock_settime"),
            ("CAP_SYS_MODULE", "finit_module"),
            ("CAP_SYS_BOOT", "reboot"),
            ("CAP_SYS_NICE", "mbind"),
            ("CAP_SYS_PACCT", "acct"),
            ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
            ("CAP_SYS_TTY_CONFIG", "vhangup"),
        ] {
            assert_eq!(default_answer(&[capability], name, 0), ALLOWED, "{capability} {name}");
            assert_ne!(default_answer(&["CAP_CHOWN"], name, 0), ALLOWED, "{name}");
        }
        assert_eq!(default_answer(&["CAP_SYS_ADMIN"], "clone", 0x1000_0000), ALLOWED);
        // Not even with every capability: nothing in a container has a use for it.
        let all: Vec<String> = caps::all().into_iter().map(|one| one.to_string()).collect();
        assert_eq!(answer(&defaults::seccomp(&all), "kexec_load", [0; 6]), EPERM);
    }

    #[test]
    fn every_name_is_a_syscall() {
        let all: Vec<String> = caps::all().into_iter().map(|one| one.to_string()).collect();
        for capabilities in [&[][..], &all] {
            let profile: Seccomp = serde_json::from_value(defaults::seccomp(capabilities)).unwrap();
            compile(&profile, &Compile { unknown_syscall_fails: true, ..Compile::default() }).unwrap();
        }
    }

    #[test]
    fn dockers_form_is_understood() {
        let mut profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["dup"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
                {"name": "write", "action": "SCMP_ACT_ALLOW"}
            ]
        });
        let original = profile.clone();
        for_this_container(&mut profile, &[]);
        for (name, wanted) in
            [("read", true), ("write", true), ("clone", true), ("mount", false), ("dup", false)]
        {
            assert_eq!(answer(&profile, name, [0; 6]) == ALLOWED, wanted, "{name}");
        }
        let mut profile = original;
        for_this_container(&mut profile, &["CAP_SYS_ADMIN".into()]);
        assert_eq!(answer(&profile, "mount", [0; 6]), ALLOWED);
        assert_ne!(answer(&profile, "clone", [0; 6]), ALLOWED);
    }
}
