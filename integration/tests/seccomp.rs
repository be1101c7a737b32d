//! seccomp: the filter is there, at the right moment, and an error says what it did.

use dhow_integration::{Container, Scene, is_dhow};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;

/// What dhow does itself between the filter's place in other runtimes and the payload. A profile
/// need not know of it.
const OWN: [&str; 26] = [
    "accept4",
    "recvmsg",
    "sendmsg",
    "setresuid",
    "setresgid",
    "setuid",
    "setgid",
    "setgroups",
    "capset",
    "prctl",
    "close_range",
    "chdir",
    "umask",
    "pivot_root",
    "mount",
    "umount2",
    "clone3",
    "seccomp",
    "setsid",
    "faccessat2",
    "openat2",
    "socket",
    "connect",
    "capget",
    "unshare",
    "setns",
];

fn rule(names: &[&str], action: &str) -> Value {
    json!({"names": names, "action": action})
}

/// A container whose profile allows all but what the rules say.
fn under<'s>(scene: &'s Scene, verbs: &[&str], no_new_privileges: bool, rules: &[Value]) -> Container<'s> {
    scene.container(|c| {
        c.payload(verbs);
        c.set("/process/noNewPrivileges", no_new_privileges);
        c.set("/root/readonly", false);
        c.set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": rules,
            }),
        );
    })
}

const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];

#[test]
fn a_rule_holds_in_run_start_and_exec() {
    let scene = Scene::new();
    let denied = json!({"names": MKDIR, "action": "SCMP_ACT_ERRNO", "errnoRet": 18});
    for no_new_privileges in [true, false] {
        let rules = std::slice::from_ref(&denied);
        let c = under(&scene, &["mkdir", "/tmp/a", "--", "touch", "/tmp/b"], no_new_privileges, rules);
        let seen = c.run().exits(1);
        assert_eq!(seen.stdout, "! mkdir: EXDEV\n");
        assert!(c.rootfs().join("tmp/b").exists());

        let c = under(&scene, &["sleep", "1000"], no_new_privileges, rules);
        c.create().ok();
        c.start().ok();
        c.exec(&["/payload", "mkdir", "/tmp/c"]).exits(1).says("! mkdir: EXDEV");
        assert_eq!(c.exec(&["/payload", "status", "Seccomp"]).ok().line("Seccomp:"), "2");
    }
}

#[test]
fn what_dhow_does_itself_is_no_concern_of_the_profile() {
    if !is_dhow() {
        return;
    }
    let scene = Scene::new();
    for no_new_privileges in [true, false] {
        let c = under(&scene, &["sleep", "1000"], no_new_privileges, &[rule(&OWN, "SCMP_ACT_KILL_PROCESS")]);
        c.create().ok();
        c.start().ok();
        c.exec(&["/payload", "echo", "hi"]).ok().says("hi");
    }
}

#[test]
fn the_capability_for_the_filter_does_not_reach_the_payload() {
    let scene = Scene::new();
    for uid in [0, 1000] {
        let c = scene.container(|c| {
            c.payload(&["caps"]);
            c.set("/process/noNewPrivileges", false);
            c.set("/process/user/uid", uid);
            c.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}));
        });
        let seen = c.run().ok();
        for set in ["effective", "permitted", "inheritable", "bounding", "ambient"] {
            assert!(!seen.field(set).contains("CAP_SYS_ADMIN"), "uid {uid}: {seen}");
        }
    }
}

#[test]
fn a_denied_exec_is_an_error_that_says_so() {
    let scene = Scene::new();
    let c = under(&scene, &["exit", "0"], true, &[rule(&["execve"], "SCMP_ACT_ERRNO")]);
    c.run().fails(&["/payload", "seccomp profile denies execve"]);
    let c = under(&scene, &["exit", "0"], true, &[rule(&["execve"], "SCMP_ACT_KILL_PROCESS")]);
    c.run().fails(&["seccomp profile killed it for calling execve"]);
    let c = under(&scene, &["exit", "0"], false, &[rule(&["execve"], "SCMP_ACT_KILL_PROCESS")]);
    c.create().ok();
    c.start().fails(&["seccomp profile killed it for calling execve"]);
}

/// The kernel writes at most ten such lines in five seconds (printk_ratelimit), and other tests cause
/// some too: a lost line is said to be lost, and asked for again.
#[test]
fn a_payload_that_the_filter_kills_is_told_of() {
    let scene = Scene::new();
    for _ in 0..5 {
        let c = under(&scene, &["mkdir", "/tmp/x"], true, &[rule(&MKDIR, "SCMP_ACT_KILL_PROCESS")]);
        let seen = c.run();
        assert_eq!(seen.code, 159, "{seen}");
        if seen.stderr.contains("seccomp profile killed it for calling mkdir") {
            return;
        }
        assert!(seen.stderr.contains("the kernel's log does not say"), "{seen}");
        std::thread::sleep(std::time::Duration::from_secs(6));
    }
    panic!("the kernel's log never told of the syscall");
}

#[test]
fn a_wrong_profile_leaves_nothing() {
    let scene = Scene::new();
    for (rule, words) in [
        (json!({"names": ["read"], "action": "SCMP_ACT_NOPE"}), "linux.seccomp.syscalls[0].action"),
        (json!({"names": [], "action": "SCMP_ACT_ALLOW"}), "linux.seccomp.syscalls[0].names"),
        (json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"}), "listenerPath"),
        (json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5000}), "syscalls[0].errnoRet"),
    ] {
        let c = under(&scene, &["exit", "0"], true, &[rule]);
        c.create().fails(&[words]);
        scene.is_clean();
    }
}

#[test]
fn a_name_that_nobody_knows_may_be_an_error() {
    let scene = Scene::new();
    let unknown = rule(&["no_such_call"], "SCMP_ACT_KILL");
    under(&scene, &["exit", "0"], true, std::slice::from_ref(&unknown)).run().ok();
    let c = scene.container(|c| {
        c.payload(&["exit", "0"]);
        c.set("/annotations/run.oci.seccomp_fail_unknown_syscall", "1");
        c.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [unknown]}));
    });
    if is_dhow() {
        c.run().fails(&["syscalls[0].names[0]", "no_such_call"]);
    }
}

/// Takes one listener, looks at what comes with it, and closes it: the calls then fail with ENOSYS.
fn take_listener(agent: &UnixListener) -> Value {
    let (peer, _) = agent.accept().unwrap();
    let mut bytes = [0u8; 16384];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = message.unwrap();
    let mut received = Vec::new();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            received.extend(fds);
        }
    }
    let length = message.bytes;
    assert_eq!(received.len(), 1);
    let what = std::fs::read_link(format!("/proc/self/fd/{}", received[0])).unwrap();
    assert_eq!(what.to_str(), Some("anon_inode:seccomp notify"));
    nix::unistd::close(received[0]).unwrap();
    serde_json::from_slice(&bytes[..length]).unwrap()
}

#[test]
fn the_listener_goes_to_the_agent() {
    let scene = Scene::new();
    let path = scene.dir().join("agent.sock");
    let agent = UnixListener::bind(&path).unwrap();
    for no_new_privileges in [true, false] {
        let c = scene.container(|c| {
            c.payload(&["sleep", "1000"]);
            c.set("/process/noNewPrivileges", no_new_privileges);
            c.set(
                "/linux/seccomp",
                json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "listenerPath": path,
                    "listenerMetadata": "for the agent",
                    "syscalls": [rule(&MKDIR, "SCMP_ACT_NOTIFY")],
                }),
            );
            // Handing the listener over must not keep the init from waiting for its hooks.
            c.set("/hooks/startContainer", json!([{ "path": "/payload", "args": ["payload", "exit", "0"] }]));
        });
        let state = std::thread::scope(|scope| {
            let taken = scope.spawn(|| take_listener(&agent));
            c.create().ok();
            taken.join().unwrap()
        });
        let pid: i64 = std::fs::read_to_string(c.bundle().join("pid")).unwrap().parse().unwrap();
        assert_eq!(state["fds"], json!(["seccompFd"]));
        assert_eq!(state["metadata"], "for the agent");
        assert_eq!(state["pid"], pid);
        assert_eq!(state["state"]["id"], c.id());
        assert_eq!(state["state"]["status"], "creating");
        c.start().ok();
        let state = std::thread::scope(|scope| {
            let taken = scope.spawn(|| take_listener(&agent));
            // Nobody listens any more: the kernel answers ENOSYS.
            c.exec(&["/payload", "mkdir", "/tmp/x"]).exits(1).says("! mkdir: ENOSYS");
            taken.join().unwrap()
        });
        assert_eq!(state["state"]["status"], "running");
        assert_ne!(state["pid"], pid);
    }
}

#[test]
fn without_an_agent_nothing_starts() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "listenerPath": scene.dir().join("nobody.sock"),
                "syscalls": [rule(&MKDIR, "SCMP_ACT_NOTIFY")],
            }),
        );
    });
    c.create().fails(&["nobody.sock", "no such file or directory"]);
    scene.is_clean();
}

/// Hooks in the container have no more rights than the payload.
#[test]
fn start_container_hooks_run_under_the_filter() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["exit", "0"]).set(
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule(&MKDIR, "SCMP_ACT_KILL")] }),
        );
        let hook = json!([{ "path": "/payload", "args": ["payload", "mkdir", "/dev/shm/x"] }]);
        c.set("/hooks/startContainer", hook)
            .set("/process/rlimits", json!([{ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]));
    });
    c.run().fails(&["error running startContainer hook #0", "bad system call"]);
}

#[test]
fn explain_names_the_rule() {
    if !is_dhow() {
        return;
    }
    let scene = Scene::new();
    let c = under(
        &scene,
        &["exit", "0"],
        true,
        &[
            rule(&["getppid"], "SCMP_ACT_KILL"),
            json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
               "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}),
        ],
    );
    let config = c.bundle().join("config.json");
    let explain = |words: &[&str]| {
        scene.dhow(["seccomp", "explain"]).args([config.to_str().unwrap()]).args(words.iter().copied()).run()
    };
    for (words, said) in [
        (&[][..], if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }),
        (&["getppid"], "linux.seccomp.syscalls[0]"),
        (&["personality"], "arg0 == 0x8"),
        (&["personality", "8"], "SCMP_ACT_ERRNO (EINVAL)"),
        (&["personality", "0x9"], "linux.seccomp.defaultAction"),
        (&["64", "--arch", "x86"], "getppid"),
        (&["--dump"], "load arch"),
    ] {
        let seen = explain(words).ok();
        assert!(seen.stdout.contains(said), "{seen}");
    }
    explain(&["nonsense"]).fails(&["nonsense", "no such syscall"]);
    scene.dhow(["seccomp", "explain", "/no/such/file"]).run().fails(&["/no/such/file"]);
}
