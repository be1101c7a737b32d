//! The attacks on runtimes that are known, performed: each test is the attack of a CVE, and fails
//! where the defence is missing. What the container may do is not the point; what reaches the host is.

use dhow_integration::{Runner, Scene, Terminal, machine, skip_unless};
use serde_json::json;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A directory beside the containers that nothing may be made in.
fn outside(scene: &Scene) -> PathBuf {
    let path = scene.dir().join("outside");
    fs::create_dir_all(&path).unwrap();
    path
}

#[track_caller]
fn untouched(outside: &Path) {
    let names: Vec<_> = fs::read_dir(outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.is_empty(), "made outside of the rootfs: {names:?}");
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561: labels and masks that go to files of the image.
#[test]
fn an_image_whose_proc_or_sys_is_a_link_is_refused() {
    for place in ["proc", "sys"] {
        for target in ["elsewhere", "/elsewhere", "../../../outside"] {
            let scene = Scene::new();
            let outside = outside(&scene);
            let c = scene.payload(&["exit", "0"]);
            fs::create_dir(c.rootfs().join("elsewhere")).unwrap();
            symlink(target, c.rootfs().join(place)).unwrap();
            c.run().fails(&[&format!("/{place}"), "symlink"]);
            untouched(&outside);
            scene.is_clean();
        }
    }
}

/// CVE-2026-41579, CVE-2026-47766: device nodes and links of /dev made on the host.
#[test]
fn an_image_whose_dev_is_a_link_makes_nothing_outside() {
    let scene = Scene::new();
    let outside = outside(&scene);
    for target in [outside.to_str().unwrap(), "../../../../../../../../tmp", "../../outside"] {
        for own_mount in [true, false] {
            let c = scene.container(|c| {
                if !own_mount {
                    for place in ["/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
                        c.without_mount(place);
                    }
                    c.writable();
                }
                c.payload(&["exit", "0"]);
            });
            symlink(target, c.rootfs().join("dev")).unwrap();
            let before = fs::read_dir("/tmp").unwrap().count();
            // Refusing it and resolving it inside the rootfs are both right.
            let _ = c.run();
            untouched(&outside);
            assert!(!fs::exists("/tmp/null").unwrap() && !fs::exists("/tmp/ptmx").unwrap(), "{before}");
        }
    }
    scene.is_clean();
}

/// CVE-2024-45310, CVE-2021-30465: mount points made, or mounts put, where a link of the image leads.
#[test]
fn mount_targets_behind_links_stay_inside() {
    let scene = Scene::new();
    let outside = outside(&scene);
    let file = scene.dir().join("file");
    fs::write(&file, "bound").unwrap();
    for target in [outside.to_str().unwrap(), "../../outside", "../../../../../../../../../../tmp/../outside"]
    {
        let c = scene.container(|c| {
            c.bind(&file, "/link/made/file", &[]).mount("/link/dir", "tmpfs", "tmpfs", &[]).payload(&[
                "cat",
                "/link/made/file",
                "--",
                "mounts",
            ]);
        });
        symlink(target, c.rootfs().join("link")).unwrap();
        let seen = c.run();
        untouched(&outside);
        assert!(seen.code != 0 || seen.stdout.starts_with("bound"), "{seen}");
    }
    scene.is_clean();
}

/// CVE-2025-31133: with /dev/null replaced by a link, the file that it leads to is bound over each
/// masked path, writable.
#[test]
fn a_replaced_dev_null_is_not_what_masks() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().without_mount("/dev/pts").without_mount("/dev/shm").without_mount("/dev/mqueue");
        c.without_mount("/dev").set("/linux/maskedPaths", json!(["/secret"]));
        c.payload(&["cat", "/secret", "--", "stat", "/secret"]);
    });
    c.file("/secret", "secret", 0o644);
    c.file("/bait", "bait", 0o644);
    fs::create_dir(c.rootfs().join("dev")).unwrap();
    symlink("/bait", c.rootfs().join("dev/null")).unwrap();
    let seen = c.run();
    // A /dev/null of the image that is none may also be refused.
    assert!(!seen.stdout.contains("secret\n") && !seen.stdout.contains("bait"), "{seen}");
    assert!(seen.code != 0 || seen.stdout.contains("/secret char") && seen.stdout.contains("1:3"), "{seen}");
}

/// The same, swapped after the devices were made: a hook, which runs then, stands for another container
/// that has the same /dev.
#[test]
fn a_dev_null_that_is_swapped_before_the_masks_is_not_what_masks() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().set("/linux/maskedPaths", json!(["/secret"]));
        c.hook("createContainer", "rm dev/null && ln -s /bait dev/null");
        c.payload(&["stat", "/dev/null", "--", "cat", "/secret", "--", "stat", "/secret"]);
    });
    c.file("/secret", "secret", 0o644);
    c.file("/bait", "bait", 0o644);
    let seen = c.run().ok();
    assert!(seen.stdout.contains("/dev/null link"), "the attack did not take place: {seen}");
    assert!(!seen.stdout.contains("secret\n") && !seen.stdout.contains("bait\n"), "{seen}");
    assert!(seen.stdout.contains("/secret char") && seen.stdout.contains("1:3"), "{seen}");
}

/// CVE-2019-5736: the image's program is a link to /proc/self/exe, or has it as its interpreter, so
/// that the runtime runs itself inside; and a process there opens that file and writes to it.
#[test]
fn the_runtimes_own_binary_is_not_overwritten() {
    let scene = Scene::new();
    // A copy: should the attack succeed, it hits nobody else.
    let copy = scene.dir().join("victim");
    fs::copy(dhow_integration::command::binary(), &copy).unwrap();
    let before = fs::read(&copy).unwrap();
    let victim = |words: &[&str]| {
        Runner::new(&copy).args(["--root", scene.state_dir().to_str().unwrap()]).args(words).run()
    };
    for program in ["/entry", "/script"] {
        let c = scene.container(|c| {
            c.args(&[program, "--version"]);
        });
        symlink("/proc/self/exe", c.rootfs().join("entry")).unwrap();
        c.file("/script", "#!/proc/self/exe\n", 0o755);
        victim(&["run", "--bundle", c.bundle().to_str().unwrap(), c.id()]);
        assert!(fs::read(&copy).unwrap() == before, "overwritten by {program}");
    }
    let c = scene.container(|c| {
        for set in ["bounding", "effective", "permitted"] {
            for capability in ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN"] {
                c.push(&format!("/process/capabilities/{set}"), capability);
            }
        }
        c.payload(&["overwrite-exe", "4"]);
    });
    c.up().until_it_says("attacking");
    for _ in 0..10 {
        victim(&["exec", c.id(), "/proc/self/exe", "--version"]);
    }
    c.reap();
    assert!(c.output().contains("held"), "the attack never got hold of the file: {}", c.output());
    assert!(!c.output().contains("WROTE"), "{}", c.output());
    assert!(fs::read(&copy).unwrap() == before, "overwritten");
}

/// CVE-2024-21626: a leaked fd of the host as working directory.
#[test]
fn a_working_directory_through_a_descriptor_does_not_reach_the_host() {
    let scene = Scene::new();
    // What a careless caller leaves open, without close-on-exec.
    let host: OwnedFd = fs::File::open("/").unwrap().into();
    let kept = rustix::io::dup(&host).unwrap();
    for fd in (3..20).chain([kept.as_raw_fd()]) {
        let c = scene.container(|c| {
            c.set("/process/cwd", format!("/proc/self/fd/{fd}")).payload(&[
                "ls",
                "../../../../..",
                "--",
                "cwd",
            ]);
        });
        let seen = c.run();
        // Standing in a directory of the rootfs itself would be no escape.
        assert!(!seen.stdout.contains("work") && !seen.stdout.contains("root "), "fd {fd}: {seen}");
        assert!(seen.code != 0 || seen.stdout.contains("payload"), "fd {fd}: {seen}");
    }
    scene.is_clean();
}

#[test]
fn an_exec_with_a_working_directory_through_a_descriptor_does_not_reach_the_host() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    for fd in 3..16 {
        let cwd = format!("/proc/self/fd/{fd}");
        let seen = c.exec_with(&["--cwd", &cwd], &["/payload", "ls", "../../../../.."]).run();
        assert!(seen.code != 0 || seen.stdout.contains("payload"), "fd {fd}: {seen}");
    }
    c.kill("KILL").ok();
}

/// CVE-2022-29162: inheritable capabilities let a program with file capabilities have them.
#[test]
fn exec_cap_sets_no_inheritable_capability() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    let seen = c.exec_with(&["--cap", "CAP_NET_RAW"], &["/payload", "caps"]).run().ok();
    assert!(seen.line("permitted=").contains("CAP_NET_RAW"), "{seen}");
    assert_eq!((seen.line("inheritable="), seen.line("ambient=")), ("", ""), "{seen}");
    c.kill("KILL").ok();
}

/// CVE-2026-30892: a user that is no number taken for root; CVE-2024-40635: an id that wraps to it.
#[test]
fn a_user_that_is_none_is_not_root() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    for user in
        ["x", "", ":", "0x0", "1000:", ":0", "-1", "4294967296", "4294967295", "2147483648", "0 ", "1;0"]
    {
        let seen = c.exec_with(&["--user", user], &["/payload", "ids"]).run();
        assert!(seen.code != 0 && !seen.stdout.contains("uid="), "{user:?}: {seen}");
    }
    c.kill("KILL").ok();
}

/// CVE-2016-9962: the files and the memory of a process that is about to enter are the host's.
#[test]
fn an_entering_process_shows_no_file_of_the_host() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    // As root of a user namespace with CAP_SYS_PTRACE, all that keeps it away is that the process is
    // not dumpable: it is memory that the host's user namespace owns.
    let c = scene.container(|c| {
        for set in ["bounding", "effective", "permitted"] {
            c.push(&format!("/process/capabilities/{set}"), "CAP_SYS_PTRACE");
        }
        c.user_namespace(100_000, 65536).payload(&["spy", "600"]);
    });
    c.up().until_it_says("spying");
    for _ in 0..30 {
        c.exec(&["/payload", "exit", "0"]).ok();
    }
    c.kill("KILL").ok();
    assert!(!c.output().contains("SEEN"), "{}", c.output());
}

/// The same without a user namespace: the process has the spy's user and capabilities while it looks for its
/// program, which the spy's PATH makes it do for long.
#[test]
fn a_process_that_looks_for_its_program_shows_no_file_of_the_host() {
    let scene = Scene::new();
    let c = scene.payload(&["spy", "600"]);
    c.up().until_it_says("spying");
    let path: String = (0..6000).map(|n| format!("/no{n}:")).collect();
    for _ in 0..20 {
        c.exec_with(&["--env", &format!("PATH={path}/")], &["payload", "exit", "0"]).run().ok();
    }
    c.kill("KILL").ok();
    assert!(!c.output().contains("SEEN"), "{}", c.output());
}

/// What a container has made of its /etc/passwd is no reason to wait, to fail, or to take more than a line.
#[test]
fn a_hostile_passwd_keeps_no_exec_from_running() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().payload(&["sleep", "100"]);
    });
    let passwd = c.file("/etc/passwd", "", 0o644);
    c.up();
    let long = "a".repeat(200_000);
    for (what, text) in [
        ("a NUL", "root:x:0:0:root:/a\0b:/bin/sh\n".to_owned()),
        ("a long path", format!("root:x:0:0:root:/{long}:/bin/sh\n")),
        ("many lines", "x:x:1:1::/x:/x\n".repeat(500_000)),
        ("no text", "\u{fffd}\0\n:::::::\n".to_owned()),
    ] {
        fs::write(&passwd, text).unwrap();
        let seen = c.exec(&["/payload", "env"]);
        assert!(seen.code == 0 && seen.stdout.contains("HOME=/\n"), "{what}: {}", seen.stderr);
    }
    for (what, target) in [("a device without end", "/dev/zero"), ("a link to itself", "/etc/passwd")] {
        fs::remove_file(&passwd).unwrap();
        symlink(target, &passwd).unwrap();
        let seen = c.exec(&["/payload", "env"]);
        assert!(seen.code == 0 && seen.stdout.contains("HOME=/\n"), "{what}: {seen}");
    }
    fs::remove_file(&passwd).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o666),
        0,
    )
    .unwrap();
    let seen = c.exec(&["/payload", "env"]).ok();
    assert!(seen.stdout.contains("HOME=/\n"), "{seen}");
    c.kill("KILL").ok();
}

/// CVE-2021-30465: while mounts are made, somebody who shares a volume with the container swaps a
/// directory in it for a symlink that leads out, again and again.
#[test]
fn a_mount_target_that_is_swapped_for_a_link_meanwhile_stays_inside() {
    let scene = Scene::new();
    let outside = outside(&scene);
    let volume = scene.dir().join("volume");
    fs::create_dir_all(volume.join("name")).unwrap();
    let c = scene.container(|c| {
        c.bind(&volume, "/vol", &["rbind"]);
        for n in 0..6 {
            c.mount(&format!("/vol/name/sub{n}"), "tmpfs", "tmpfs", &["size=4k"]);
        }
        c.writable().payload(&["mounts"]);
    });
    let swapped = std::sync::atomic::AtomicU64::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    let (mut worked, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        // Also when an assertion below fails: the scope waits for the thread.
        let _ends = Ends(&done);
        scope.spawn(|| {
            let (name, kept, link) = (volume.join("name"), volume.join("kept"), volume.join("link"));
            // As the container sees it, and as the host does.
            for target in ["/../../../outside", outside.to_str().unwrap()].iter().cycle() {
                if done.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let _ = symlink(target, &link);
                let _ = fs::rename(&name, &kept).and_then(|()| fs::rename(&link, &name));
                // As long the one as the other, or a mount would hardly ever meet the link.
                (0..20_000).for_each(|_| std::hint::spin_loop());
                let _ = fs::remove_file(&name).and_then(|()| fs::rename(&kept, &name));
                swapped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                (0..20_000).for_each(|_| std::hint::spin_loop());
            }
        });
        for _ in 0..60 {
            let seen = c.run();
            if seen.code == 0 {
                worked += 1;
            } else {
                refused += 1;
            }
            untouched(&outside);
        }
    });
    let swapped = swapped.into_inner();
    assert!(swapped > 200, "the attack itself was too slow: {swapped} swaps");
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!host.contains(scene.tag()), "{worked} worked, {refused} were refused: {host}");
    scene.is_clean();
}

/// Tells a thread to end when it goes.
struct Ends<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// CVE-2025-52881: what is written to procfs goes to a file of the image's instead, and the other way
/// round, when something else lies on /proc.
#[test]
fn kernel_parameters_are_not_written_to_files_of_the_image() {
    let scene = Scene::new();
    let bait = scene.dir().join("fake/sys/net/ipv4");
    fs::create_dir_all(&bait).unwrap();
    fs::write(bait.join("ip_forward"), "bait").unwrap();
    let fake = scene.dir().join("fake");
    let c = scene.container(|c| {
        c.without_mount("/proc")
            .bind(&fake, "/proc", &["rbind"])
            .set("/linux/maskedPaths", json!([]))
            .set("/linux/readonlyPaths", json!([]))
            .set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }))
            .payload(&["cat", "/proc/sys/net/ipv4/ip_forward"]);
    });
    let seen = c.run();
    assert_eq!(fs::read_to_string(bait.join("ip_forward")).unwrap(), "bait", "{seen}");
    // It goes to a procfs of dhow's own, so the container comes up as it was asked for.
    seen.ok().says("bait");
    // A parameter's name that climbs out of /proc/sys.
    for name in ["net/../../../self/oom_score_adj", "net...self", "kernel.../x"] {
        let c = scene.container(|c| {
            c.set("/linux/sysctl", json!({ name: "1" })).payload(&["exit", "0"]);
        });
        c.create().fails(&["linux.sysctl"]);
    }
    scene.is_clean();
}

/// CVE-2025-52565: the image has a /dev/pts of its own, whose terminal is a link to something else,
/// which is then bound, writable, at /dev/console.
#[test]
fn a_terminal_that_is_a_link_is_not_bound_as_the_console() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.without_mount("/dev/pts")
            .without_mount("/dev/shm")
            .without_mount("/dev/mqueue")
            .without_mount("/dev");
        c.writable().set("/process/terminal", true).payload(&["stat", "/dev/console"]);
    });
    c.file("/bait", "bait", 0o600);
    fs::create_dir_all(c.rootfs().join("dev/pts")).unwrap();
    for n in 0..40 {
        symlink("/bait", c.rootfs().join(format!("dev/pts/{n}"))).unwrap();
    }
    let seen = c.run();
    assert!(!seen.stdout.contains("file "), "{seen}");
    assert!(seen.code != 0 || seen.stdout.contains("char"), "{seen}");
    assert_eq!(fs::read_to_string(c.rootfs().join("bait")).unwrap(), "bait");
}

/// The same, where the links lie in front of a devpts that works: a hook, which runs then, stands for another
/// container that has the same /dev.
#[test]
fn a_terminal_whose_name_leads_elsewhere_is_not_opened_by_name() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.writable().set("/process/terminal", true);
        c.payload(&["stat", "/dev/console"]);
        c.hook(
            "createContainer",
            "mkdir -p fake/pts && mount --bind dev/pts fake/pts && mknod fake/ptmx c 5 2 && \
             for n in 0 1 2 3 4 5 6 7; do ln -s /bait fake/$n; done && mount --rbind fake dev/pts",
        );
    });
    c.file("/bait", "bait", 0o600);
    let seen = c.run().ok();
    assert!(seen.line("/dev/console ").starts_with("char"), "{seen}");
    assert_eq!(fs::read_to_string(c.rootfs().join("bait")).unwrap(), "bait");
    scene.is_clean();
}

/// A /dev that somebody else can write to, whose null device becomes something else at any moment.
#[test]
fn a_dev_null_that_is_swapped_meanwhile_is_no_standard_file() {
    let scene = Scene::new();
    let dev = scene.dir().join("dev");
    fs::create_dir(&dev).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    nix::sys::stat::mknod(&dev.join("null"), kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
    symlink("/bait", dev.join("link")).unwrap();
    let c = scene.container(|c| {
        for place in ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev"] {
            c.without_mount(place);
        }
        c.bind(&dev, "/dev", &["rbind"]).writable().payload(&["readlink", "/proc/self/fd/0"]);
    });
    c.file("/bait", "bait", 0o666);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = Ends(&done);
        scope.spawn(|| {
            let (null, link) = (dev.join("null"), dev.join("link"));
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &null, rustix::fs::CWD, &link, exchange).unwrap();
            }
        });
        for _ in 0..25 {
            let seen = c.run();
            assert_ne!(seen.stdout.trim_end(), "/bait", "{seen}");
        }
    });
    scene.is_clean();
}

/// CVE-2017-5226: a program that has the caller's terminal as its controlling one could type into
/// it (TIOCSTI). The payload may read and write it, but is in a session without a terminal.
#[test]
fn the_callers_terminal_is_not_the_payloads() {
    let scene = Scene::new();
    let c = scene.payload(&["cat", "/dev/tty", "--", "pid"]);
    let (mut terminal, slave) = Terminal::open();
    let script = format!(
        "exec setsid --ctty --wait {} --root {} run --bundle {} {} <{tty} >{tty} 2>&1",
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        c.bundle().display(),
        c.id(),
        tty = slave.display(),
    );
    let keep_open = fs::OpenOptions::new().read(true).write(true).open(&slave).unwrap();
    let running = Runner::new("/bin/sh").args(["-c", &script]).spawn();
    assert!(terminal.until("cat: ").contains("! cat: "));
    assert!(terminal.until("\r\n").contains("ENXIO"), "/dev/tty is somebody's");
    running.wait();
    drop(keep_open);
}

/// CVE-2024-25621, CVE-2020-15257: state that others may read, and sockets that they may reach.
#[test]
fn state_and_sockets_are_their_owners_alone() {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.create().ok();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(scene.state_dir()), 0o711);
    let directory = scene.state_dir().join(c.id());
    assert_eq!(mode(&directory), 0o700);
    let sockets = fs::read_dir(&directory).unwrap().filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
    });
    assert_eq!(sockets.count(), 1, "the init waits for start at a socket of the file system");
    let abstract_ones = fs::read_to_string("/proc/net/unix").unwrap();
    assert!(!abstract_ones.lines().any(|line| line.contains('@') && line.contains(c.id())));
    c.delete_force().ok();
}
