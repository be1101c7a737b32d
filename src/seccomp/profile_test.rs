//! Every kind of wrong profile is an error that names the place.

use super::super::{Options, compile, flag};
use super::*;

fn profile(text: &str) -> Seccomp {
    serde_json::from_str(text).unwrap()
}

/// A profile with one rule.
fn with_rule(rule: &str) -> Seccomp {
    profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#))
}

fn error(profile: &Seccomp) -> Error {
    compile(profile, &Options::default()).unwrap_err()
}

#[test]
fn a_wrong_word_is_named_by_its_place() {
    let whole = [
        (r#"{"defaultAction":"ALLOW"}"#, "defaultAction", "unknown action \"ALLOW\""),
        (r#"{"syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL"}]}"#, "defaultAction", "is missing"),
        (
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#,
            "defaultErrnoRet",
            "4096 is out of range",
        ),
        (r#"{"defaultAction":"SCMP_ACT_KILL","defaultErrnoRet":1}"#, "defaultErrnoRet", "takes no errno"),
        (
            r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/a"}"#,
            "defaultAction",
            "cannot be the default",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86","Z80"]}"#,
            "architectures[1]",
            "\"Z80\"",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG","X"]}"#,
            "flags[1]",
            "\"X\"",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}"#,
            "flags[0]",
            "unknown",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"agent"}"#, "listenerPath", "absolute"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#,
            "listenerMetadata",
            "listenerPath is not",
        ),
    ];
    for (text, place, cause) in whole {
        let error = error(&profile(text));
        assert_eq!(error.class, Class::Config, "{text}");
        assert_eq!(error.subject.as_deref(), Some(&*format!("linux.seccomp.{place}")), "{text}");
        assert!(error.cause.as_deref().unwrap().contains(cause), "{text}: {error}");
    }
}

#[test]
fn a_wrong_rule_is_named_by_its_place() {
    let rules = [
        (r#"{"names":[],"action":"SCMP_ACT_KILL"}"#, "names", "is empty"),
        (r#"{"action":"SCMP_ACT_KILL"}"#, "names", "is empty"),
        (r#"{"names":["read",""],"action":"SCMP_ACT_KILL"}"#, "names[1]", "is empty"),
        (r#"{"names":["read"]}"#, "action", "is missing"),
        (r#"{"names":["read"],"action":"SCMP_ACT_DENY"}"#, "action", "unknown action"),
        (r#"{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":5000}"#, "errnoRet", "at most 4095"),
        (r#"{"names":["read"],"action":"SCMP_ACT_TRACE","errnoRet":65536}"#, "errnoRet", "at most 65535"),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","errnoRet":1}"#,
            "errnoRet",
            "SCMP_ACT_ALLOW takes no errno",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}"#,
            "args[0].index",
            "6",
        ),
        (
            r#"{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"op":"=="}]}"#,
            "args[0].op",
            "unknown operator",
        ),
        (r#"{"names":["read"],"action":"SCMP_ACT_KILL","args":[{"index":1}]}"#, "args[0].op", "is missing"),
        (r#"{"names":["read"],"action":"SCMP_ACT_NOTIFY"}"#, "action", "needs linux.seccomp.listenerPath"),
    ];
    for (rule, place, cause) in rules {
        let good = r#"{"names":["write"],"action":"SCMP_ACT_ERRNO"}"#;
        let error = error(&with_rule(&format!("{good},{rule}")));
        assert_eq!(error.class, Class::Config, "{rule}");
        assert_eq!(error.subject.as_deref(), Some(&*format!("linux.seccomp.syscalls[1].{place}")), "{rule}");
        assert!(error.cause.as_deref().unwrap().contains(cause), "{rule}: {error}");
    }
}

#[test]
fn the_listener_must_be_able_to_leave() {
    let mut profile = with_rule(r#"{"names":["openat","write"],"action":"SCMP_ACT_NOTIFY"}"#);
    profile.listener_path = "/run/agent.sock".into();
    let error = error(&profile);
    assert_eq!(error.subject.as_deref(), Some("linux.seccomp.syscalls[0].names[1]"));
    profile.syscalls[0].names.pop();
    assert!(compile(&profile, &Options::default()).unwrap().needs_listener());
}

#[test]
fn a_filter_too_long_for_the_kernel_is_refused() {
    let arg =
        |i: u64| SeccompArg { index: 1, value: (i * 7) | (i << 33), value_two: 0, op: "SCMP_CMP_EQ".into() };
    let rule = |i| SeccompRule {
        names: vec!["ioctl".into()],
        action: "SCMP_ACT_ERRNO".into(),
        errno_ret: None,
        args: vec![arg(i)],
    };
    let mut profile = with_rule(r#"{"names":["read"],"action":"SCMP_ACT_KILL"}"#);
    profile.syscalls = (0..900).map(rule).collect();
    let program = compile(&profile, &Options::default()).unwrap();
    assert!(program.code().len() < 4096);
    profile.syscalls = (0..2000).map(rule).collect();
    let error = error(&profile);
    assert!(error.to_string().contains("the kernel takes 4096"), "{error}");
    profile.syscalls = (0..40_000).map(rule).collect();
    assert!(self::error(&profile).to_string().contains("too many"));
}

#[test]
fn unknown_syscalls_are_ignored_unless_asked_about() {
    let profile =
        with_rule(r#"{"names":["riscv_hwprobe","no_such_call","getppid"],"action":"SCMP_ACT_KILL"}"#);
    compile(&profile, &Options::default()).unwrap();
    let strict = Options { unknown_syscall_fails: true, ..Options::default() };
    let error = compile(&profile, &strict).unwrap_err();
    assert_eq!(error.subject.as_deref(), Some("linux.seccomp.syscalls[0].names[1]"));
    assert!(error.to_string().contains("run.oci.seccomp_fail_unknown_syscall"), "{error}");
}

#[test]
fn flags_become_the_kernels() {
    let flags = |list: &str, notify: bool| {
        let action = if notify { "SCMP_ACT_NOTIFY" } else { "SCMP_ACT_LOG" };
        let mut profile = with_rule(&format!(r#"{{"names":["read"],"action":"{action}"}}"#));
        profile.listener_path = "/a".into();
        profile.flags = serde_json::from_str(list).unwrap();
        compile(&profile, &Options::default()).unwrap().flags()
    };
    assert_eq!(flags("null", false), flag::SPEC_ALLOW);
    assert_eq!(flags("[]", false), 0);
    assert_eq!(flags(r#"["SECCOMP_FILTER_FLAG_LOG"]"#, false), flag::LOG);
    assert_eq!(flags("null", true), flag::SPEC_ALLOW | flag::NEW_LISTENER);
    let both = r#"["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#;
    assert_eq!(
        flags(both, true),
        flag::TSYNC | flag::TSYNC_ESRCH | flag::WAIT_KILLABLE_RECV | flag::NEW_LISTENER
    );
    assert_eq!(flags(both, false), flag::TSYNC, "there is no listener to wait for");
}

#[test]
fn every_word_that_features_names_is_understood() {
    for name in ACTIONS {
        assert!(action(name, None).is_ok(), "{name}");
    }
    for op in OPERATORS {
        assert!(cond(0, 0, &SeccompArg { op: op.into(), ..SeccompArg::default() }).is_ok(), "{op}");
    }
    let features = super::super::features();
    assert_eq!(features["enabled"], true);
    for arch in features["archs"].as_array().unwrap() {
        assert!(arch::parse(arch.as_str().unwrap()).is_some(), "{arch}");
    }
    // This kernel is new enough for each.
    assert_eq!(features["supportedFlags"], features["knownFlags"]);
}

#[test]
fn an_empty_object_is_no_filter() {
    assert!(compile(&profile("{}"), &Options::default()).unwrap().is_empty());
    assert!(
        !compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#), &Options::default()).unwrap().is_empty()
    );
}
