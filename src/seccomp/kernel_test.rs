//! Filters in the running kernel, each in a forked child.

use super::arch::X32_BIT;
use super::sample::{Random, profile as random_profile, value};
use super::vm::{Data, run};
use super::{Abi, Native, Options, Program, compile, names, ret};
use crate::spec::Seccomp;
use crate::sys::clone::{Forked, clone3};
use crate::sys::seccomp::probe;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};

/// Runs `body` in a child, which ends by how `body` says it went.
fn in_child(body: impl FnOnce() -> bool) -> (i32, WaitStatus) {
    match clone3(CloneFlags::empty(), 0, None).unwrap() {
        Forked::Child => {
            let well = nix::sys::prctl::set_no_new_privs().is_ok() && body();
            probe::end(well)
        }
        Forked::Parent(child) => (child.pid.as_raw(), waitpid(child.pid, None).unwrap()),
    }
}

fn is_signal(status: WaitStatus, signal: Signal) -> bool {
    matches!(status, WaitStatus::Signaled(_, s, _) if s == signal)
}

fn went_well(status: WaitStatus) -> bool {
    is_signal(status, Signal::SIGILL)
}

fn profile(text: &str) -> Seccomp {
    serde_json::from_str(text).unwrap()
}

fn compiled(text: &str) -> Program {
    compile(&profile(text), &Options::default()).unwrap()
}

/// Makes each verdict an errno of its own, so that nothing is carried out.
fn only_errnos(profile: &mut Seccomp) {
    profile.default_action = "SCMP_ACT_ERRNO".into();
    profile.default_errno_ret = Some(200);
    profile.architectures.push("SCMP_ARCH_X86".into());
    for (rule, errno) in profile.syscalls.iter_mut().zip(300..) {
        // A few rules share a verdict; some have the default's.
        rule.errno_ret = Some(if errno % 7 == 0 { 200 } else { errno % 11 + 300 });
        rule.action = "SCMP_ACT_ERRNO".into();
    }
}

/// A call and the errno that the filter is to answer; by way of 32-bit x86 or not.
type Call = (bool, u32, [u64; 6], i32);

fn is_as_wanted((x86, number, args, wanted): &Call) -> bool {
    #[cfg(target_arch = "x86_64")]
    if *x86 {
        let low = |i: usize| u32::try_from(args[i]).unwrap_or(0);
        return probe::denied_32(*number, [low(0), low(1), low(2)]) == *wanted;
    }
    !*x86 && probe::denied(*number, args) == *wanted
}

#[test]
fn the_kernel_does_what_the_profile_says() {
    let cases = std::env::var("DHOW_KERNEL_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(60u64);
    let mut asked = 0;
    for case in 0..cases {
        let mut r = Random::new((case << 24) | 7);
        let mut profile = random_profile(&mut r);
        only_errnos(&mut profile);
        let program = compile(&profile, &Options::default()).unwrap();
        let mut calls = Vec::new();
        for _ in 0..100 {
            let named = profile.syscalls.iter().flat_map(|rule| &rule.names).collect::<Vec<_>>();
            let x86 = Native::HOST == Native::X86_64 && r.chance(30);
            let abi = if x86 { Abi::X86 } else { Native::HOST.abi() };
            let number = match named.len() {
                n if n > 0 && r.chance(80) => names::number_of(abi, named[r.below(n)]).unwrap_or(102),
                _ => u32::try_from(r.below(600)).unwrap(),
            };
            let number = if !x86 && r.chance(10) { number | X32_BIT } else { number };
            let mut args = std::array::from_fn(|_| value(&mut r));
            if x86 {
                // What this way of calling can pass: three words.
                args = std::array::from_fn(|i| if i < 3 { args[i] & 0xffff_ffff } else { 0 });
                if r.chance(30) {
                    args[0] = r.below(26) as u64;
                }
            }
            // The frame pointer is a sixth argument that this process does not choose.
            let uses_fifth =
                x86 && profile.syscalls.iter().any(|rule| rule.args.iter().any(|a| a.index == 5));
            let verdict = run(program.code(), &Data { number, arch: abi.audit(), args }).unwrap();
            // uretprobe and uprobe belong to the kernel, which no longer asks filters about them.
            if !x86 && matches!(number, 335 | 336) {
                continue;
            }
            if verdict & ret::ACTION == ret::ERRNO && verdict & ret::DATA != 0 && !uses_fifth {
                calls.push((x86, number, args, i32::try_from(verdict & ret::DATA).unwrap()));
            }
        }
        asked += calls.len();
        let (_, status) = in_child(|| program.install().is_ok() && calls.iter().all(is_as_wanted));
        if !went_well(status) {
            let alone = |call| in_child(|| program.install().is_ok() && is_as_wanted(call)).1;
            let bad: Vec<_> = calls.iter().filter(|call| !went_well(alone(call))).collect();
            panic!("case {case}: {status:?}\n{bad:x?}\n{profile:#?}");
        }
    }
    println!("{asked} syscalls made");
}

#[test]
fn kill_process_ends_it_and_the_log_says_why() {
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls":[{"names":["getppid"],"action":"SCMP_ACT_KILL_PROCESS"}]}"#,
    );
    let (pid, status) = in_child(|| {
        let _ = program.install();
        nix::unistd::getppid().as_raw() == 0
    });
    assert!(is_signal(status, Signal::SIGSYS), "{status:?}");
    // Where the kernel has auditing and its log may be read; else there is nothing to be told.
    if let Some(killed) = super::killed(pid) {
        assert_eq!(killed.describe(), "getppid");
    }
}

#[test]
fn trap_log_trace_and_errno() {
    let rule = |action: &str| {
        compiled(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["sched_yield"],"action":"{action}"}}]}}"#
        ))
    };
    let yields = || probe::denied(names::number_of(Native::HOST.abi(), "sched_yield").unwrap(), &[0; 6]);
    for (action, wanted) in [
        ("SCMP_ACT_LOG", 0),
        ("SCMP_ACT_ALLOW", 0),
        ("SCMP_ACT_ERRNO", libc::EPERM),
        // There is no tracer.
        ("SCMP_ACT_TRACE", libc::ENOSYS),
    ] {
        let program = rule(action);
        let (_, status) = in_child(|| program.install().is_ok() && yields() == wanted);
        assert!(went_well(status), "{action}: {status:?}");
    }
    for action in ["SCMP_ACT_TRAP", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"] {
        let program = rule(action);
        let (_, status) = in_child(|| program.install().is_ok() && yields() == 0);
        assert!(is_signal(status, Signal::SIGSYS), "{action}: {status:?}");
    }
}

#[test]
fn every_flag_is_taken() {
    for flags in [
        r#"["SECCOMP_FILTER_FLAG_TSYNC"]"#,
        r#"["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_SPEC_ALLOW"]"#,
        r#"["SECCOMP_FILTER_FLAG_TSYNC","SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]"#,
    ] {
        for action in ["SCMP_ACT_NOTIFY", "SCMP_ACT_LOG"] {
            let program = compiled(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":{flags},"listenerPath":"/agent",
                    "syscalls":[{{"names":["sched_yield"],"action":"{action}"}}]}}"#
            ));
            let wants = program.needs_listener();
            let (_, status) = in_child(|| program.install().is_ok_and(|fd| fd.is_some() == wants));
            assert!(went_well(status), "{flags} {action}: {status:?}");
        }
    }
}

#[test]
fn a_second_listener_is_refused_with_a_reason() {
    let program = compiled(
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/agent",
            "syscalls":[{"names":["sched_yield"],"action":"SCMP_ACT_NOTIFY"}]}"#,
    );
    let (_, status) = in_child(|| {
        let first = program.install();
        let second = program.install();
        first.is_ok() && second.is_err_and(|e| e.to_string().contains("already under a filter"))
    });
    assert!(went_well(status), "{status:?}");
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    let program = compiled(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let child = match clone3(CloneFlags::empty(), 0, None).unwrap() {
        Forked::Child => {
            let dropped = crate::sys::cred::set_uid(65534).is_ok() || !nix::unistd::geteuid().is_root();
            let error = program.install().err().map(|e| e.to_string()).unwrap_or_default();
            probe::end(dropped && error.contains("noNewPrivileges or CAP_SYS_ADMIN"))
        }
        Forked::Parent(child) => child,
    };
    assert!(went_well(waitpid(child.pid, None).unwrap()));
}

#[test]
fn a_stored_program_is_the_same_program() {
    let mut r = Random::new(5);
    for _ in 0..50 {
        let program = compile(&random_profile(&mut r), &Options::default()).unwrap();
        assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
    }
    let stored = Program::default().to_bytes();
    assert!(Program::from_bytes(&stored).unwrap().is_empty());
    for wrong in [&b""[..], b"dsc", b"dsc\x02\0\0\0\0", b"dsc\x01\0\0", b"dsc\x01\0\0\0\0\x06\0\0\0"] {
        assert!(Program::from_bytes(wrong).is_err(), "{wrong:?}");
    }
    let long = [stored, vec![0; 4097 * 8]].concat();
    assert!(Program::from_bytes(&long).unwrap_err().to_string().contains("length"));
}
