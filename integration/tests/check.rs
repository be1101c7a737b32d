//! `dhow check`: what a reviewer would mark in a bundle or an image.

use dhow_integration::command::Outcome;
use dhow_integration::{Config, Container, Scene, image, is_dhow, skip_unless};
use serde_json::{Value, json};

fn check(scene: &Scene, c: &Container<'_>) -> Vec<Value> {
    let outcome = scene.dhow(["check", "--format", "json", c.bundle().to_str().unwrap()]).run();
    assert_eq!(outcome.stderr, "", "{outcome}");
    let remarks: Vec<Value> =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome}"));
    let is_grave = remarks.iter().any(|r| r["severity"] == "error" || r["severity"] == "high");
    assert_eq!(outcome.code, i32::from(is_grave), "{outcome}");
    remarks
}

fn has(remarks: &[Value], severity: &str, matter: &str, words: &str) -> bool {
    remarks.iter().any(|remark| {
        let text = format!("{}: {}", remark["field"].as_str().unwrap(), remark["what"].as_str().unwrap());
        remark["severity"] == severity && remark["matter"] == matter && text.contains(words)
    })
}

/// The usual config with what a careful person adds to it.
fn careful(c: &mut Config) -> &mut Config {
    c.payload(&["exit", "0"])
        .set("/linux/resources/memory", json!({"limit": 67_108_864}))
        .set("/linux/resources/pids", json!({"limit": 100}))
        .set("/linux/readonlyPaths", json!(["/proc/sys", "/proc/sysrq-trigger", "/proc/bus"]))
        .set("/linux/maskedPaths", json!(["/proc/kcore", "/proc/keys"]))
        .set("/process/noNewPrivileges", true)
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["execve", "exit_group"], "action": "SCMP_ACT_ALLOW"}]}),
        )
}

type Edit = fn(&mut Config) -> &mut Config;

/// Each risk, as the only change to a careful bundle, is remarked upon, and nothing else is.
#[test]
fn every_risk_is_seen_alone() {
    skip_unless!(is_dhow(), "other runtimes have no check");
    let scene = Scene::new();
    let c = scene.container(|c| {
        careful(c);
    });
    assert_eq!(check(&scene, &c), Vec::<Value>::new(), "a careful bundle has nothing to remark upon");
    let cases: [(&str, &str, Edit); 21] = [
        ("high", "CAP_SYS_ADMIN", |c| c.push("/process/capabilities/bounding", "CAP_SYS_ADMIN")),
        ("medium", "CAP_NET_ADMIN", |c| c.push("/process/capabilities/ambient", "CAP_NET_ADMIN")),
        ("low", "noNewPrivileges", |c| c.set("/process/noNewPrivileges", false)),
        ("low", "root in the container", |c| c.set("/process/user", json!({"uid": 0, "gid": 0}))),
        ("high", "linux.namespaces (pid)", |c| c.without_namespace("pid")),
        ("medium", "linux.namespaces (network)", |c| c.without_namespace("network")),
        ("medium", "linux.namespaces (ipc)", |c| c.namespace("ipc", Some("/proc/1/ns/ipc"))),
        ("high", "linux.rootfsPropagation", |c| c.set("/linux/rootfsPropagation", "rshared")),
        ("medium", "no seccomp profile", |c| c.remove("/linux/seccomp")),
        ("medium", "allows every syscall", |c| {
            c.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"}))
        }),
        ("high", "a writable /proc/sys:", |c| c.set("/linux/readonlyPaths", json!(["/proc/sysrq-trigger"]))),
        ("high", "/proc/sysrq-trigger", |c| c.set("/linux/readonlyPaths", json!(["/proc/sys"]))),
        ("medium", "/proc/kcore", |c| c.set("/linux/maskedPaths", json!([]))),
        ("high", "a writable /sys", |c| c.without_mount("/sys").mount("/sys", "sysfs", "sysfs", &["nosuid"])),
        ("high", "docker.sock", |c| c.mount("/d", "bind", "/tmp/docker.sock", &["bind", "ro"])),
        ("high", "the whole of the host's files", |c| c.bind("/".as_ref(), "/host", &["ro"])),
        ("medium", "/etc of the host", |c| c.bind("/etc".as_ref(), "/host", &["ro"])),
        ("medium", "shared propagation", |c| c.bind("/srv".as_ref(), "/srv", &["rshared"])),
        ("high", "every device", |c| {
            c.push("/linux/resources/devices", json!({"allow": true, "access": "rwm"}))
        }),
        ("low", "linux.resources.memory", |c| c.remove("/linux/resources/memory")),
        ("low", "hooks.poststart", |c| c.hook("poststart", "true")),
    ];
    for (severity, words, edit) in cases {
        let c = scene.container(|c| {
            edit(careful(c));
        });
        let mut remarks = check(&scene, &c);
        assert!(has(&remarks, severity, "risk", words), "{severity} {words}: {remarks:#?}");
        // The socket is not there: that is another matter.
        remarks.retain(|remark| remark["matter"] == "risk");
        assert_eq!(remarks.len(), 1, "{words}: {remarks:#?}");
    }
}

/// What it says will fail does fail.
#[test]
fn what_will_fail_is_told() {
    skip_unless!(is_dhow(), "other runtimes have no check");
    let scene = Scene::new();
    let cases: [(&str, Edit); 8] = [
        ("bind source /no/such is not there", |c| c.bind("/no/such".as_ref(), "/x", &[])),
        ("the filesystem \"nosuchfs\"", |c| c.mount("/x", "nosuchfs", "x", &[])),
        ("the rootfs has no /no/such/program", |c| c.args(&["/no/such/program"])),
        ("the rootfs has no program", |c| c.args(&["program"])),
        ("without the executable bit", |c| c.args(&["/text"])),
        ("needs \"/no/such/sh\"", |c| c.args(&["/script"])),
        ("/proc/1/ns/nothing is not there", |c| c.namespace("ipc", Some("/proc/1/ns/nothing"))),
        ("is not an absolute path", |c| c.set("/process/cwd", "relative")),
    ];
    for (words, edit) in cases {
        let c = scene.container(|c| {
            edit(careful(c)).set("/process/user", json!({"uid": 0, "gid": 0})).remove("/linux/seccomp");
        });
        c.file("/text", "text", 0o644);
        c.file("/script", "#!/no/such/sh\n", 0o755);
        let remarks = check(&scene, &c);
        assert!(has(&remarks, "error", "fails", words), "{words}: {remarks:#?}");
        c.run().fails(&[]);
        scene.is_clean();
    }
    let c = scene.container(|c| {
        careful(c).set("/hooks/prestart", json!([])).hook("prestart", "true");
    });
    assert!(has(&check(&scene, &c), "low", "deprecated", "hooks.prestart"));
}

#[test]
fn an_image_is_read_as_the_bundle_that_it_would_be() {
    skip_unless!(is_dhow(), "other runtimes have no check");
    let scene = Scene::new();
    let import = |name: &str, run: &Value| {
        let archive = scene.dir().join(format!("{name}.tar"));
        image::save(&archive, name, &[image::base(scene.payload_program())], run);
        scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    };
    let of = |name: &str| -> Outcome { scene.dhow(["check", name]).run() };
    import("good", &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
    let good = of("good").ok();
    assert!(!good.stdout.contains("seccomp") && good.stdout.contains("process.user"), "{good}");
    import("wrong", &json!({"Cmd": ["/no/such"], "Env": ["PATH=/bin"]}));
    let wrong = of("wrong").exits(1);
    assert!(wrong.stdout.starts_with("error   process.args[0]: the rootfs has no /no/such"), "{wrong}");
    import("nobody", &json!({"Cmd": ["sh"], "User": "nobdy"}));
    let nobody = of("nobody").exits(1);
    assert!(nobody.stdout.contains("its user \"nobdy\" is not in its passwd"), "{nobody}");
    of("no-such-image").fails(&["no-such-image"]);
    let least = scene.dhow(["check", "--severity", "high", "good"]).run().ok();
    assert_eq!(least.stdout, "");
}
