//! docs/errors.md is what the binary prints: every failure on the page is provoked here, and its
//! message held against the page. What preflight says is also held against the kernel.

use dhow_integration::command::{Outcome, Runner, workspace};
use dhow_integration::{
    Config, Container, Scene, cgroup, holds_within, image, is_dhow, machine, skip_unless,
};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

/// Provokes one failure; `None` when this machine cannot have it.
type Provoke = fn(&Scene) -> Option<Outcome>;

/// The headings of the page, and what provokes each.
const FAILURES: &[(&str, Provoke)] = &[
    ("No executable bit", |scene| run_file(scene, "/while.sh", b"#!/payload exit\n", 0o644)),
    ("Not the user's to execute", not_the_users),
    ("A directory", |scene| run(scene, |c| c.args(&["/tmp"]))),
    ("Windows line ends", |scene| run_file(scene, "/start.sh", b"#!/payload\r\necho\r\n", 0o755)),
    ("A missing interpreter", |scene| run_file(scene, "/start.py", b"#!/usr/bin/python3 -u\n", 0o755)),
    ("What env does not find", |scene| run_file(scene, "/start.py", b"#!/env python3\n", 0o755)),
    ("A program for another libc", |scene| run_file(scene, "/app", &for_musl(), 0o755)),
    ("A program for another machine", |scene| run_file(scene, "/app", &foreign(scene), 0o755)),
    ("No first line", |scene| run_file(scene, "/start.sh", b"echo hello\n", 0o755)),
    ("A noexec mount", noexec),
    ("Not found in PATH", |scene| {
        run(scene, |c| c.args(&["payloda"]).set("/process/env", json!(["PATH=/bin:/"])))
    }),
    ("No such file", |scene| run(scene, |c| c.args(&["/paylaod"]))),
    ("A link that leads nowhere", dangling),
    ("An empty argv", |scene| run(scene, |c| c.args(&[]))),
    ("A program that is being written", busy),
    ("No working directory", |scene| run(scene, |c| c.set("/process/cwd", "/proc/no/such"))),
    ("A working directory of somebody else", closed_cwd),
    ("A bind source that does not exist", |scene| {
        run(scene, |c| c.bind("/no/such/source".as_ref(), "/tmp", &[]))
    }),
    ("A directory mounted onto a file", |scene| run(scene, |c| c.bind("/usr".as_ref(), "/payload", &[]))),
    ("A file mounted onto a directory", |scene| {
        run(scene, |c| c.bind("/etc/hostname".as_ref(), "/tmp", &[]))
    }),
    ("A missing cgroup controller", |scene| {
        // On cgroup v2 the words are others: there it is switched on from directory to directory.
        if machine::has_controller("rdma") || !std::path::Path::new("/sys/fs/cgroup/pids").exists() {
            return None;
        }
        run(scene, |c| c.set("/linux/resources/rdma", json!({"mlx5_1": {"hcaHandles": 3}})))
    }),
    ("Out of memory before it began", |scene| {
        if !machine::has_controller("memory") {
            return None;
        }
        let c = container(scene, |c| c.set("/linux/resources/memory", json!({"limit": 4096})));
        Some(c.create())
    }),
    ("A user that passwd does not have", |scene| from_image(scene, &["--user", "nobdy"])),
    ("A device that is not there", |scene| {
        run(scene, |c| c.bind("/dev/nvidia99".as_ref(), "/dev/nvidia99", &[]))
    }),
    ("A CNI plugin that is not there", cni),
    ("A CNI network that nobody has described", |scene| {
        fs::create_dir(scene.dir().join("empty")).unwrap();
        let directory = scene.dir().join("empty");
        from_image(scene, &["--network", "cni:web", "--cni-conf-dir", directory.to_str().unwrap()])
    }),
    ("A port without a network", |scene| from_image(scene, &["-p", "8080:80"])),
    ("A mount point in a read-only rootfs", read_only_rootfs),
    ("A syscall that seccomp denies", seccomp),
    ("A security module that is not there", |scene| {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
        if enabled.starts_with('Y') {
            None
        } else {
            run(scene, |c| c.set("/process/apparmorProfile", "docker-default"))
        }
    }),
    ("A limit of namespaces", namespace_limit),
    ("A limit of processes", process_limit),
];

/// The usual container, bent.
fn container<'s>(scene: &'s Scene, edit: impl FnOnce(&mut Config) -> &mut Config) -> Container<'s> {
    scene.container(|c| {
        edit(c);
    })
}

fn run(scene: &Scene, edit: impl FnOnce(&mut Config) -> &mut Config) -> Option<Outcome> {
    Some(container(scene, edit).run())
}

/// Runs a file of the rootfs.
fn run_file(scene: &Scene, path: &str, content: &[u8], mode: u32) -> Option<Outcome> {
    Some(with_file(scene, path, content, mode).run())
}

fn with_file<'s>(scene: &'s Scene, path: &str, content: &[u8], mode: u32) -> Container<'s> {
    let c = container(scene, |c| c.args(&[path]).set("/process/env", json!(["PATH=/bin"])));
    fs::copy(c.rootfs().join("payload"), c.rootfs().join("env")).unwrap();
    let file = c.file(path, "", mode);
    fs::write(&file, content).unwrap();
    c
}

fn not_the_users(scene: &Scene) -> Option<Outcome> {
    let c = container(scene, |c| c.args(&["/app"]).set("/process/user", json!({"uid": 1000, "gid": 1000})));
    c.file("/app", "#!/payload exit\n", 0o744);
    Some(c.run())
}

/// The loaders of this machine's glibc and musl, and what its ELF header says of another machine.
#[cfg(target_arch = "x86_64")]
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"];
#[cfg(target_arch = "aarch64")]
const LOADERS: [&str; 2] = ["/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1"];
const ANOTHER_MACHINE: u8 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };

/// What the page, which was written on x86_64, says on this machine.
fn here(message: &str) -> String {
    if cfg!(target_arch = "x86_64") {
        return message.to_owned();
    }
    message
        .replace("ld-musl-x86_64", "ld-musl-aarch64")
        .replace("an aarch64 binary on x86_64", "an x86_64 binary on aarch64")
}

/// A dynamic program of this machine that asks for musl's loader.
fn for_musl() -> Vec<u8> {
    let mut program = fs::read("/bin/ls").unwrap();
    let [theirs, ours] = LOADERS.map(str::as_bytes);
    let at = program.windows(theirs.len()).position(|window| window == theirs).expect("a dynamic /bin/ls");
    program[at..at + theirs.len()].fill(0);
    program[at..at + ours.len()].copy_from_slice(ours);
    program
}

/// The payload as if it were another machine's.
fn foreign(scene: &Scene) -> Vec<u8> {
    let mut program = fs::read(scene.payload_program()).unwrap();
    program[18] = ANOTHER_MACHINE;
    program
}

fn noexec(scene: &Scene) -> Option<Outcome> {
    let data = scene.dir().join("data");
    fs::create_dir(&data).unwrap();
    fs::copy(scene.payload_program(), data.join("app")).unwrap();
    run(scene, |c| c.args(&["/data/app"]).writable().bind(&data, "/data", &["noexec"]))
}

fn dangling(scene: &Scene) -> Option<Outcome> {
    let c = container(scene, |c| c.args(&["/link"]));
    symlink("/nowhere", c.rootfs().join("link")).unwrap();
    Some(c.run())
}

fn busy(scene: &Scene) -> Option<Outcome> {
    let c = with_file(scene, "/app", &fs::read(scene.payload_program()).unwrap(), 0o755);
    let _writer = fs::OpenOptions::new().write(true).open(c.rootfs().join("app")).unwrap();
    Some(c.run())
}

fn closed_cwd(scene: &Scene) -> Option<Outcome> {
    let c = container(scene, |c| {
        let user = json!({"uid": 1000, "gid": 1000});
        c.set("/process/cwd", "/private/work").set("/process/user", user).user_namespace(100_000, 65_536)
    });
    fs::create_dir_all(c.rootfs().join("private/work")).unwrap();
    fs::set_permissions(c.rootfs().join("private"), fs::Permissions::from_mode(0o700)).unwrap();
    // The container's root has no rights over files of the host's.
    std::os::unix::fs::chown(c.rootfs().join("private"), Some(0), Some(0)).unwrap();
    Some(c.run())
}

fn from_image(scene: &Scene, options: &[&str]) -> Option<Outcome> {
    let archive = scene.dir().join("image.tar");
    image::save(
        &archive,
        "web",
        &[image::base(scene.payload_program())],
        &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}),
    );
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    Some(scene.dhow(["run", "--image", "web"]).args(options).run())
}

fn cni(scene: &Scene) -> Option<Outcome> {
    let directory = scene.dir().join("net.d");
    fs::create_dir(&directory).unwrap();
    let list = json!({"cniVersion": "1.0.0", "name": "web", "plugins": [{"type": "no-such-plugin"}]});
    fs::write(directory.join("10-web.conflist"), list.to_string()).unwrap();
    from_image(scene, &["--network", "cni:web", "--cni-conf-dir", directory.to_str().unwrap()])
}

/// The rootfs lies on a filesystem that is mounted read-only.
fn read_only_rootfs(scene: &Scene) -> Option<Outcome> {
    let c = container(scene, |c| c.mount("/data", "tmpfs", "tmpfs", &[]));
    for directory in ["proc", "dev", "sys"] {
        fs::create_dir_all(c.rootfs().join(directory)).unwrap();
    }
    let (rootfs, words) = (c.rootfs(), c.run_with(&[]).line().join(" "));
    let rootfs = rootfs.display();
    let script =
        format!("mount --bind {rootfs} {rootfs} && mount -o remount,ro,bind {rootfs} && exec {words}");
    Some(Runner::new("unshare").args(["--mount", "/bin/sh", "-c", &script]).run())
}

fn seccomp(scene: &Scene) -> Option<Outcome> {
    let rule = json!({"names": ["execve"], "action": "SCMP_ACT_ERRNO"});
    run(scene, |c| c.set("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})))
}

/// The limit is lowered in a user namespace of its own, so that nobody else feels it.
fn namespace_limit(scene: &Scene) -> Option<Outcome> {
    let c = container(scene, |c| {
        c.user_namespace(0, 1).remove("/linux/resources").without_mount("/sys/fs/cgroup")
    });
    let words = c.run_with(&[]).line().join(" ").replacen(" --root", " --cgroup-manager disabled --root", 1);
    let script = format!("echo 0 > /proc/sys/user/max_user_namespaces && exec {words}");
    Some(
        Runner::new("unshare").args(["--user", "--map-root-user", "--mount", "/bin/sh", "-c", &script]).run(),
    )
}

/// dhow runs in a cgroup that has room for itself alone.
fn process_limit(scene: &Scene) -> Option<Outcome> {
    // On v2 a process is made in the container's cgroup, and dhow's is not charged for it.
    let (directory, _) =
        cgroup::directory("pids", &format!("{}-narrow", scene.tag())).filter(|(_, is_v2)| !is_v2)?;
    fs::create_dir(&directory).unwrap();
    let c = container(scene, |c| c);
    let words = c.run_with(&[]).line().join(" ");
    let at = directory.display();
    let script = format!("echo $$ > {at}/cgroup.procs && echo 1 > {at}/pids.max && exec {words}");
    let outcome = Runner::new("/bin/sh").args(["-c", &script]).run();
    assert!(holds_within(Duration::from_secs(3), || fs::remove_dir(&directory).is_ok()), "{at} is in use");
    Some(outcome)
}

/// The page's headings with the message below each.
fn page() -> Vec<(String, String)> {
    let text = fs::read_to_string(workspace().join("docs/errors.md")).unwrap();
    let sections = text.split("\n### ").skip(1).map(|section| {
        let (heading, rest) = section.split_once('\n').unwrap();
        let message = rest.split("```text\n").nth(1).and_then(|rest| rest.split("\n```").next());
        (heading.to_owned(), message.unwrap_or_else(|| panic!("{heading}: no message")).to_owned())
    });
    sections.collect()
}

/// Whether a text is what a message with placeholders (`<id>`, `<path>`) says.
fn matches(message: &str, text: &str) -> bool {
    let mut rest = text;
    let mut parts = message.split('<');
    let first = parts.next().unwrap_or_default();
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    for part in parts {
        let (_, literal) = part.split_once('>').expect("a placeholder ends");
        if literal.is_empty() {
            return true;
        }
        let Some(at) = rest.find(literal) else { return false };
        rest = &rest[at + literal.len()..];
    }
    rest.is_empty()
}

#[test]
fn every_message_of_the_page_is_what_the_binary_prints() {
    skip_unless!(is_dhow(), "the page is dhow's");
    let page = page();
    let headings: Vec<&str> = page.iter().map(|(heading, _)| heading.as_str()).collect();
    let provoked: Vec<&str> = FAILURES.iter().map(|(heading, _)| *heading).collect();
    assert_eq!(headings, provoked, "every failure of the page is provoked, in its order");
    let mut wrong = Vec::new();
    for ((heading, message), (_, provoke)) in page.iter().zip(FAILURES) {
        let scene = Scene::new();
        let Some(outcome) = provoke(&scene) else {
            machine::skip(heading);
            continue;
        };
        scene.is_clean();
        let said = outcome.stderr.lines().find(|line| !line.is_empty()).unwrap_or_default();
        if outcome.code == 0 || !matches(&here(message), said) {
            wrong
                .push(format!("{heading} ({})\n  page: {message}\n  said: {}", outcome.code, outcome.stderr));
        }
    }
    assert!(wrong.is_empty(), "{} are not as on the page:\n{}", wrong.len(), wrong.join("\n"));
}

/// What the kernel itself makes of a file: chroot(8) into the rootfs and execute it.
fn kernel_runs(c: &Container<'_>, path: &str, uid: u32) -> bool {
    let user = format!("--userspec={uid}:{uid}");
    Runner::new("chroot").args([&user, c.rootfs().to_str().unwrap(), path]).run().code == 0
}

/// Nothing is refused that the kernel would run, and nothing gets through that it would not.
#[test]
fn preflight_agrees_with_the_kernel() {
    skip_unless!(is_dhow(), "other runtimes have no preflight");
    let scene = Scene::new();
    let payload = fs::read(scene.payload_program()).unwrap();
    let long = format!("#!/{}\n", "x".repeat(300));
    let script = |text: &str| text.as_bytes().to_vec();
    let files: Vec<(&str, Vec<u8>, u32)> = vec![
        ("static", payload.clone(), 0o755),
        ("execute-only", payload.clone(), 0o111),
        ("for-others-alone", payload.clone(), 0o601),
        ("for-the-owner-alone", payload.clone(), 0o700),
        ("not-executable", payload.clone(), 0o644),
        ("script", script("#!/payload pid\n"), 0o755),
        ("blanks", script("#! \t /payload  pid \n"), 0o755),
        ("without-newline", script("#!/payload pid"), 0o755),
        ("nul", script("#!/payload\0pid\n"), 0o755),
        ("carriage-return", script("#!/payload pid\r\n"), 0o755),
        ("carriage-return-in-the-name", script("#!/payload\r\npid\n"), 0o755),
        ("such-an-interpreter", script("#!/odd\r\n"), 0o755),
        ("script-of-a-script", script("#!/bin/script\n"), 0o755),
        ("interpreter-missing", script("#!/no/such\n"), 0o755),
        ("interpreter-below-a-file", script("#!/payload/x\n"), 0o755),
        ("interpreter-not-executable", script("#!/bin/not-executable\n"), 0o755),
        ("interpreter-a-directory", script("#!/bin\n"), 0o755),
        ("interpreter-relative", script("#!payload pid\n"), 0o755),
        ("itself", script("#!/bin/itself\n"), 0o755),
        ("no-interpreter", script("#!\n"), 0o755),
        ("too-long", long.into_bytes(), 0o755),
        ("empty", Vec::new(), 0o755),
        ("text", script("payload pid\n"), 0o755),
        ("byte-order-mark", script("\u{feff}#!/payload pid\n"), 0o755),
        ("musl", for_musl(), 0o755),
        ("dynamic", fs::read("/bin/true").unwrap(), 0o755),
        ("foreign", foreign(&scene), 0o755),
        ("cut-off", payload[..100].to_vec(), 0o755),
        ("only-the-magic", payload[..20].to_vec(), 0o755),
    ];
    let mut wrong = Vec::new();
    for uid in [0, 1000] {
        for (name, _, _) in &files {
            let path = format!("/bin/{name}");
            // A program of the payload needs a verb; a script brings its own.
            let capabilities = if uid == 0 { full() } else { json!({}) };
            let c = container(&scene, |c| {
                c.args(&[&path])
                    .set("/process/user", json!({"uid": uid, "gid": uid}))
                    .set("/process/capabilities", capabilities)
            });
            fill(&c, &files);
            let (kernel, outcome) = (kernel_runs(&c, &path, uid), c.run());
            // Without a verb the payload says so: it was run.
            let ran =
                outcome.stdout.contains("no verb") || outcome.code == 0 || outcome.stdout.starts_with('!');
            let words = Runner::new("chroot")
                .args([&format!("--userspec={uid}:{uid}"), c.rootfs().to_str().unwrap(), &path])
                .run();
            let kernel = kernel || words.stdout.contains("no verb") || words.stdout.starts_with('!');
            if kernel != ran {
                wrong.push(format!("{name} as {uid}: the kernel runs it: {kernel}; {words}{outcome}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What root has on the host, so that both judges have the same rights.
fn full() -> serde_json::Value {
    let list =
        json!(["CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_CHROOT"]);
    json!({"bounding": list, "effective": list, "permitted": list})
}

fn fill(c: &Container<'_>, files: &[(&str, Vec<u8>, u32)]) {
    for (name, content, mode) in files {
        let file = c.file(&format!("/bin/{name}"), "", 0o755);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
    }
    fs::write(c.rootfs().join("bin/script"), "#!/payload pid\n").unwrap();
    fs::copy(c.rootfs().join("payload"), c.rootfs().join("odd\r")).unwrap();
}

/// exec says the same as create, and with its own exit code.
#[test]
fn exec_explains_too() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.file("/while.sh", "#!/payload exit\n", 0o644);
    c.file("/start.py", "#!/usr/bin/python3\n", 0o755);
    c.up();
    c.exec(&["/while.sh"])
        .exits(255)
        .fails(&["exec: \"/while.sh\": permission denied: /while.sh has mode 0644"]);
    c.exec(&["/start.py"])
        .exits(255)
        .fails(&["exec: \"/start.py\": no such file or directory: the first line"]);
    c.exec(&["payloda"])
        .exits(255)
        .fails(&["exec: \"payloda\": executable file not found in $PATH: searched"]);
}
