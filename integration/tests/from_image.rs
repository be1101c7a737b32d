//! `run --image` and `create --image`: from an image to a container, and nothing left of it.

use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene, Terminal, eventually, machine, skip_unless};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Imports an image of a base layer and more, called `test`.
fn import(scene: &Scene, more: &[Layer], run: &Value) {
    let archive = scene.dir().join("image.tar");
    let layers = [&[image::base(scene.payload_program())], more].concat();
    image::save(&archive, "test", &layers, run);
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
}

fn usual(scene: &Scene) {
    import(scene, &[], &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
}

fn id(scene: &Scene) -> String {
    format!("{}-c", scene.tag())
}

/// `run --image test OPTIONS ID -- COMMAND`.
fn run(scene: &Scene, options: &[&str], command: &[&str]) -> Runner {
    let command = if command.is_empty() { vec![] } else { [&["--"], command].concat() };
    scene.dhow(["run", "--image", "test"]).args(options).args([id(scene)]).args(command)
}

/// Starts one that stays, and answers when its payload runs.
fn up(scene: &Scene, options: &[&str], command: &[&str]) {
    run(scene, &[&["--detach"], options].concat(), command).run().ok();
}

fn delete(scene: &Scene) {
    scene.dhow(["delete", "--force", &id(scene)]).run().ok();
}

fn containers(scene: &Scene) -> Vec<PathBuf> {
    let all = fs::read_dir(scene.state_dir().join("@images/containers"));
    all.into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Nothing of a container is left, in the store either.
#[track_caller]
fn is_gone(scene: &Scene) {
    assert_eq!(containers(scene), Vec::<PathBuf>::new());
    scene.is_clean();
}

#[test]
fn an_image_runs_as_it_says() {
    let scene = Scene::new();
    let say = "id -u; id -g; id -G; pwd; echo $A $HOME $HOSTNAME; cat /etc/hostname; ls -ld /data; exit 5";
    let run_config = json!({"Entrypoint": ["sh", "-c"], "Cmd": [say], "User": "app", "WorkingDir": "/work/dir",
        "Env": ["PATH=/bin", "A=1"], "Volumes": {"/data": {}}, "StopSignal": "SIGINT", "Labels": {"com.example": "x"}});
    import(&scene, &[], &run_config);
    let seen = run(&scene, &[], &[]).run().exits(5);
    let lines: Vec<&str> = seen.stdout.lines().collect();
    let name = id(&scene);
    assert_eq!(lines[..6], ["7", "8", "8 9", "/work/dir", &format!("1 /home/app {name}"), &name], "{seen}");
    assert!(lines[6].starts_with("drwxr-xr-x"), "{seen}");
    is_gone(&scene);
    // Another command, and what annotations tell of the image.
    up(&scene, &[], &["sleep 1000"]);
    let state = scene.dhow(["state", &name]).run().ok().json();
    assert_eq!(state["annotations"]["com.example"], "x");
    assert_eq!(state["annotations"]["org.opencontainers.image.stopSignal"], "SIGINT");
    scene.dhow(["image", "rm", "test"]).run().ok();
    // What a container needs stays.
    scene.dhow(["image", "gc"]).run().ok();
    scene.dhow(["exec", &name, "cat", "/etc/group"]).run().ok();
    delete(&scene);
    is_gone(&scene);
}

#[test]
fn options_say_more_than_the_image() {
    let scene = Scene::new();
    import(&scene, &[], &json!({"Cmd": ["false"], "Env": ["PATH=/bin", "A=1", "B=2"], "User": "app"}));
    let says = |options: &[&str], script: &str| {
        let seen = run(&scene, options, &["sh", "-c", script]).run().ok();
        is_gone(&scene);
        seen.stdout.trim_end().to_owned()
    };
    assert_eq!(says(&["--user", "0:more"], "id -u; id -g"), "0\n9");
    assert_eq!(says(&["-u", "1234"], "id -u; echo $HOME"), "1234\n/");
    let file = scene.dir().join("env");
    fs::write(&file, "# comment\nC=3\n\nA=5\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(says(&["-e", "A=9", "-e", "D", "--env-file", file], "echo $A $B $C"), "9 2 3");
    assert_eq!(says(&["--workdir", "/made/for/it"], "pwd"), "/made/for/it");
    assert_eq!(says(&["--hostname", "box"], "hostname; grep -c box /etc/hosts"), "box\n1");
    assert_eq!(says(&["--read-only"], "touch /x 2>/dev/null || echo read-only"), "read-only");
    assert_eq!(says(&["--read-only", "--tmpfs", "/t:size=1m,exec"], "touch /t/x && echo ok"), "ok");
    assert_eq!(
        says(&["--user", "0", "--cap-drop", "ALL", "--cap-add", "chown"], "grep CapEff /proc/self/status"),
        "CapEff:\t0000000000000001"
    );
    assert_eq!(says(&["--ulimit", "nofile=77:88"], "ulimit -n; ulimit -Hn"), "77\n88");
    assert_eq!(says(&["--name", &id(&scene)], "hostname"), id(&scene));
    let outcome = scene.dhow(["run", "--image", "test", "--entrypoint", "id", "--", "-u"]).run().ok();
    assert_eq!(outcome.stdout, "7\n");
    let shared = scene.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the host").unwrap();
    let volume = format!("{}:/v", shared.display());
    let script = "cat /v/in; echo out >/v/out";
    assert_eq!(says(&["--user", "0", "--volume", &volume], script), "from the host");
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "out\n");
    let read_only = format!("{volume}:ro");
    assert_eq!(
        says(&["--user", "0", "-v", &read_only], "echo x 2>/dev/null >/v/x || echo read-only"),
        "read-only"
    );
}

#[test]
fn limits_are_the_cgroups() {
    for controller in ["memory", "cpu", "pids"] {
        skip_unless!(machine::has_controller(controller), "no mounted hierarchy has memory, cpu and pids");
    }
    let scene = Scene::new();
    usual(&scene);
    up(&scene, &["--memory", "64m", "--cpus", "0.5", "--pids-limit", "20"], &["sleep", "1000"]);
    let config = fs::read_to_string(scene.state_dir().join(id(&scene)).join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
    let stats = scene.dhow(["events", "--stats", &id(&scene)]).run().ok().json();
    assert_eq!(stats["data"]["pids"]["limit"], 20, "{stats}");
    delete(&scene);
    is_gone(&scene);
}

#[test]
fn what_is_wrong_is_said_and_leaves_nothing() {
    let scene = Scene::new();
    usual(&scene);
    for (options, words) in [
        (&["--user", "nobody"][..], &["nobody", "passwd"][..]),
        (&["--volume", "da ta:/x"], &["--volume", "name"]),
        (&["--cap-add", "nonsense"], &["--cap-add", "nonsense"]),
        (&["--cpus", "x"], &["--cpus"]),
        (&["--memory", "1x"], &["--memory"]),
        (&["--label", "run.oci.keep_original_groups=1"], &["--label", "run.oci"]),
        (&["--network", "bridge"], &["--network", "cni:NAME"]),
        (&["--publish", "1:2"], &["cni"]),
        (&["--security-opt", "nonsense"], &["--security-opt", "nonsense"]),
        (&["--security-opt", "seccomp=/no/such/file"], &["/no/such/file"]),
        (&["--keep", "--rm"], &["--keep", "--rm"]),
        (&["--entrypoint", "/no/such"], &["/no/such", "no such file"]),
        (&["--name", "other"], &["two names"]),
        (&["--ulimit", "nonsense=1"], &["RLIMIT_NONSENSE"]),
    ] {
        run(&scene, options, &[]).run().fails(words);
        is_gone(&scene);
    }
    scene.dhow(["run", "--image", "nonsense"]).run().fails(&["no such image"]);
    scene.dhow(["run", "--memory", "1m", "x"]).run().fails(&["--memory needs --image"]);
    scene.dhow(["run", "x", "--", "ls"]).run().fails(&["needs --image"]);
    is_gone(&scene);
}

#[test]
fn create_start_exec_delete() {
    let scene = Scene::new();
    usual(&scene);
    let create = scene.dhow(["create", "--image", "test", "--", "sh", "-c", "echo begun; exec sleep 1000"]);
    let mut running = create.spawn();
    let name = running.finish().ok().stdout.trim_end().to_owned();
    assert!(name.split('-').count() == 3, "{name}");
    assert_eq!(scene.dhow(["state", &name]).run().ok().json()["status"], "created");
    scene.dhow(["start", &name]).run().ok();
    running.until_it_says("begun");
    scene.dhow(["exec", &name, "sh", "-c", "echo x >/new"]).run().ok();
    assert_eq!(containers(&scene).len(), 1);
    scene.dhow(["create", "--image", "test", &name]).run().fails(&["already exists"]);
    scene.dhow(["delete", &name]).run().fails(&["running"]);
    scene.dhow(["delete", "--force", &name]).run().ok();
    is_gone(&scene);
}

#[test]
fn kept_until_it_is_deleted_or_gone_by_itself() {
    let scene = Scene::new();
    usual(&scene);
    run(&scene, &["--keep"], &["sh", "-c", "echo x >/kept"]).run().ok();
    assert_eq!(fs::read_to_string(containers(&scene)[0].join("upper/kept")).unwrap(), "x\n");
    scene.dhow(["delete", &id(&scene)]).run().ok();
    is_gone(&scene);
    let seen = run(&scene, &["--detach", "--rm"], &["sleep", "0.2"]).run().ok();
    assert_eq!(seen.stdout, "");
    eventually("the container deletes itself", || containers(&scene).is_empty());
    is_gone(&scene);
}

/// A maker that was killed, and a reboot, leave a directory without a record.
/// overlayfs mounts a volatile layer once; a restart is the same boot, and loses nothing.
#[test]
fn a_container_that_goes_by_itself_can_be_restarted() {
    let scene = Scene::new();
    usual(&scene);
    let lives = ["sh", "-c", "echo x >> /lives; exec sleep 1000"];
    run(&scene, &["--detach", "--rm"], &lives).run().ok();
    let layer = containers(&scene).remove(0);
    let lives = layer.join("upper/lives");
    let is = |text: &str| fs::read_to_string(&lives).is_ok_and(|found| found == text);
    assert!(fs::read_to_string(layer.join("overlay.json")).unwrap().contains("\"volatile\": true"));
    eventually("it lives", || is("x\n"));
    for times in ["x\nx\n", "x\nx\nx\n"] {
        scene.dhow(["restart", "--time", "0", &id(&scene)]).run().ok();
        eventually("it lives again", || is(times));
    }
    scene.dhow(["kill", &id(&scene), "KILL"]).run().ok();
    eventually("it goes by itself", || containers(&scene).is_empty());
    is_gone(&scene);
    // One in the foreground stays with its next life, too.
    let script = "echo x >> /lives; exec sleep 1000";
    let front = run(&scene, &[], &["sh", "-c", script]).spawn();
    eventually("it lives", || is("x\n"));
    scene.dhow(["restart", "--time", "0", &id(&scene)]).run().ok();
    eventually("it lives again", || is("x\nx\n"));
    scene.dhow(["kill", &id(&scene), "KILL"]).run().ok();
    front.wait().exits(137);
    is_gone(&scene);
}

#[test]
fn doctor_removes_a_writable_layer_that_nobody_has() {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let scene = Scene::new();
    usual(&scene);
    up(&scene, &[], &["sleep", "1000"]);
    let layer = containers(&scene).remove(0);
    let record = scene.state_dir().join(id(&scene));
    let bundle = layer.display().to_string();
    let age = || {
        let old = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = Timestamps { last_access: old, last_modification: old };
        utimensat(CWD, &layer, &times, AtFlags::empty()).unwrap();
    };
    let doctor = |told: &str| {
        let seen = scene.dhow(["doctor", "--fix"]).run();
        assert!(seen.stdout.contains(told) && seen.stdout.contains(&bundle), "{seen}");
    };
    // Its container is there.
    age();
    scene.dhow(["doctor", "--fix"]).run().ok().says("");
    // A create may be at work on one that is new; an old one goes.
    scene.dhow(["stop", "--time", "0", &id(&scene)]).run().ok();
    fs::remove_dir_all(&record).unwrap();
    let now = std::time::SystemTime::now();
    fs::File::open(&layer).unwrap().set_modified(now).unwrap();
    doctor("when it is a minute old");
    assert!(layer.join("upper").is_dir());
    age();
    // Somebody has it mounted, elsewhere.
    let overlay: Value = serde_json::from_slice(&fs::read(layer.join("overlay.json")).unwrap()).unwrap();
    let place = scene.dir().join("mounted");
    fs::create_dir(&place).unwrap();
    let path = |value: &Value| value.as_str().unwrap().to_owned();
    let (upper, work) = (path(&overlay["upper"]), path(&overlay["work"]));
    let options = format!("lowerdir={},upperdir={upper},workdir={work}", path(&overlay["lower"][0]));
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &place, Some("overlay"), flags, Some(&options[..])).unwrap();
    doctor("it is mounted");
    nix::mount::umount(&place).unwrap();
    scene.dhow(["doctor"]).run().exits(1);
    assert!(layer.join("upper").is_dir());
    doctor("removed");
    is_gone(&scene);
    scene.dhow(["doctor"]).run().ok().says("");
}

#[test]
fn what_is_left_without_a_record_can_be_deleted() {
    let scene = Scene::new();
    usual(&scene);
    let name = id(&scene);
    let left = scene.state_dir().join("@images/containers").join(&name);
    fs::create_dir_all(left.join("upper/a")).unwrap();
    fs::write(left.join("config.json"), "{}").unwrap();
    run(&scene, &[], &["true"]).run().fails(&["already exists", "delete --force"]);
    assert!(left.exists());
    scene.dhow(["delete", "--force", &name]).run().ok();
    is_gone(&scene);
    // One that was never whole goes with gc too.
    fs::create_dir_all(left.join("upper")).unwrap();
    scene.dhow(["image", "gc"]).run().ok();
    is_gone(&scene);
    run(&scene, &[], &["true"]).run().ok();
}

/// `create` is killed at any moment: `delete --force` clears all that it left.
#[test]
fn a_killed_create_is_cleared() {
    let scene = Scene::new();
    usual(&scene);
    for delay in [0, 1, 2, 3, 5, 8, 12] {
        let running = scene.dhow(["create", "--image", "test", &id(&scene)]).spawn();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(running.pid()),
            nix::sys::signal::Signal::SIGKILL,
        );
        drop(running);
        eventually("what is left can be deleted", || {
            scene.dhow(["delete", "--force", &id(&scene)]).run().code == 0 && containers(&scene).is_empty()
        });
        is_gone(&scene);
    }
}

#[test]
fn an_archive_is_imported_on_the_way() {
    let scene = Scene::new();
    let archive = scene.dir().join("some.tar");
    image::save(
        &archive,
        "fresh:1",
        &[image::base(scene.payload_program())],
        &json!({"Cmd": ["/bin/id", "-u"]}),
    );
    let path = archive.to_str().unwrap().to_owned();
    for name in [path.clone(), format!("docker-archive:{path}"), "fresh:1".into()] {
        scene.dhow(["run", "--image", &name]).run().ok().says("0");
    }
    scene.dhow(["run", "--image", "./some.tar"]).cwd(scene.dir()).run().ok().says("0");
    is_gone(&scene);
}

#[test]
fn a_terminal_in_the_foreground() {
    let scene = Scene::new();
    usual(&scene);
    let (mut terminal, path) = Terminal::open();
    let script = format!(
        "exec {} --root {} run --image test -it -e TERM=vt100 {} -- /payload tty -- exit 3 <{tty} >{tty} 2>&1",
        dhow_integration::command::binary().display(),
        scene.state_dir().display(),
        id(&scene),
        tty = path.display(),
    );
    let keep_open = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let running = Runner::new("/bin/sh").args(["-c", &script]).spawn();
    terminal.until("isatty=true,true,true");
    running.wait().exits(3);
    drop(keep_open);
    is_gone(&scene);
}

#[test]
fn the_network_is_loopback_or_the_hosts() {
    let scene = Scene::new();
    usual(&scene);
    let links = |options: &[&str]| {
        let seen = run(
            &scene,
            options,
            &["sh", "-c", "ip -o link | wc -l; cat /sys/class/net/lo/flags; ls -l /proc/self/ns/net"],
        );
        seen.run().ok().stdout
    };
    let alone = links(&[]);
    assert!(alone.starts_with("1\n0x9\n"), "one interface, which is up: {alone}");
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    let shared = links(&["--network", "host"]);
    assert!(shared.contains(host.to_str().unwrap()) && !alone.contains(host.to_str().unwrap()), "{shared}");
}

/// The default profile denies what an administrator of the host does, and nothing else.
#[test]
fn the_default_seccomp_profile_holds() {
    let scene = Scene::new();
    usual(&scene);
    let of = |options: &[&str], command: &[&str]| -> Outcome {
        run(&scene, &[&["--cap-add", "ALL", "--cap-drop", "SYS_ADMIN"], options].concat(), command).run()
    };
    // The first has the capability to blame, the others have only the filter.
    for command in [
        &["mount", "-t", "tmpfs", "tmpfs", "/etc"][..],
        &["unshare", "-U", "true"],
        &["unshare", "-n", "true"],
        &["/payload", "personality", "262144"],
        &["/payload", "socket", "40"],
        &["swapon", "/payload"],
    ] {
        let seen = of(&[], command);
        assert_ne!(seen.code, 0, "{seen}");
        let said = format!("{}{}", seen.stdout, seen.stderr);
        let denied = ["not permitted", "EPERM", "are you root"].iter().any(|word| said.contains(word));
        assert!(denied, "{seen}");
    }
    // Without the filter the same is allowed: it was the filter that said no.
    for command in [&["unshare", "-U", "true"][..], &["/payload", "personality", "262144"]] {
        of(&["--security-opt", "seccomp=unconfined"], command).ok();
    }
    let admin = |command: &[&str]| run(&scene, &["--cap-add", "SYS_ADMIN"], command).run();
    admin(&["mount", "-t", "tmpfs", "tmpfs", "/etc"]).ok();
    admin(&["unshare", "-m", "true"]).ok();
    run(&scene, &["--cap-drop", "SYS_CHROOT"], &["chroot", "/", "/bin/true"]).run().exits(1);
    run(&scene, &[], &["chroot", "/", "/bin/true"]).run().ok();
    let common = "set -e; mkdir /d; echo a >/d/a; ln /d/a /d/b; tar cf /t.tar /d; gzip /t.tar; rm -r /d; \
        gzip -d /t.tar.gz; tar xf /t.tar -C /; cat /d/b; find / -xdev -name a | sort | xargs sha256sum >/dev/null; \
        sleep 0.01 & wait; date >/dev/null; ps >/dev/null; echo x | awk '{print $1}' | sed s/x/y/; \
        touch /d/t; chmod 700 /d/t; stat /d/t >/dev/null; ip a >/dev/null; id";
    let seen = run(&scene, &[], &["sh", "-c", common]).run().ok();
    assert!(seen.stdout.starts_with("a\ny\nuid=0"), "{seen}");
    // Also for what `exec` adds.
    up(&scene, &[], &["sleep", "1000"]);
    let seen = scene.dhow(["exec", &id(&scene), "/payload", "status", "Seccomp"]).run().ok();
    assert_eq!(seen.line("Seccomp:"), "2");
    delete(&scene);
    is_gone(&scene);
}

#[test]
fn a_seccomp_profile_of_the_callers_own() {
    let scene = Scene::new();
    usual(&scene);
    let profile = scene.dir().join("profile.json");
    // Docker's form: it depends on a capability.
    let rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 18,
        "excludes": {"caps": ["CAP_SYS_TIME"]}});
    let text = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}).to_string();
    fs::write(&profile, text).unwrap();
    let option = format!("seccomp={}", profile.display());
    let mkdir = ["/payload", "mkdir", "/tmp"];
    let seen = run(&scene, &["--security-opt", &option], &mkdir).run();
    assert_eq!(seen.stdout, "! mkdir: EXDEV\n", "{seen}");
    run(&scene, &["--security-opt", &option, "--cap-add", "SYS_TIME"], &mkdir).run().ok();
    fs::write(&profile, "{}").unwrap();
    run(&scene, &["--security-opt", &option], &mkdir).run().fails(&["profile.json", "defaultAction"]);
}

/// An image asks, by labels, for files of the host and more.
#[test]
fn labels_of_an_image_reach_nothing() {
    let scene = Scene::new();
    let victim = scene.dir().join("victim");
    let socket = scene.dir().join("socket");
    let labels = json!({"run.oci.hooks.stdout": victim, "run.oci.hooks.stderr": victim,
        "run.oci.pidfd_receiver": socket, "run.oci.systemd.subgroup": "../../x", "org.dhow.image.name": "other",
        "RUN.OCI.hooks.stdout": victim, "run.oci.seccomp_fail_unknown_syscall": "1"});
    import(&scene, &[], &json!({"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"], "Labels": labels}));
    up(&scene, &[], &[]);
    let state = scene.dhow(["state", &id(&scene)]).run().ok().json();
    let found = state["annotations"].as_object().unwrap();
    assert!(!found.keys().any(|key| key.to_lowercase().starts_with("run.oci.")), "{found:?}");
    assert_eq!(found["org.dhow.image.name"], "docker.io/library/test:latest");
    assert!(!victim.exists());
    delete(&scene);
    is_gone(&scene);
}

/// A volume without a source begins with what the image has there, and goes with the container.
#[test]
fn volumes_are_the_containers_own() {
    let scene = Scene::new();
    let layer = Layer::default().directory("data/sub").file("data/sub/f", "image").symlink("data/l", "/etc");
    import(&scene, &[layer], &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": {"/data": {}}}));
    let script = "cat /data/sub/f; echo x >/data/new; echo y >/own/new; grep -c ' /data \\| /own ' /proc/self/mounts; \
        touch /data/l/through";
    run(&scene, &["--keep", "-v", "/own"], &["sh", "-c", script]).run().ok().says("image2");
    let place = &containers(&scene)[0];
    assert_eq!(fs::read_to_string(place.join("volumes/0/new")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(place.join("volumes/1/new")).unwrap(), "y\n");
    assert!(!Path::new("/etc/through").exists());
    scene.dhow(["diff", &id(&scene)]).run().ok().says("C /etc\nA /etc/through");
    delete(&scene);
    is_gone(&scene);
    run(&scene, &["-v", "/"], &["true"]).run().fails(&["--volume", "place"]);
    import(&scene, &[], &json!({"Cmd": ["sh"], "Volumes": {"/": {}}}));
    run(&scene, &[], &["true"]).run().fails(&["volume", "place"]);
    is_gone(&scene);
}

/// The image has links where dhow puts files and directories: all of it stays in the container.
#[test]
fn links_of_an_image_lead_nowhere() {
    let scene = Scene::new();
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let victim = outside.join("victim");
    let up_there = format!("../../../../../../..{}", outside.display());
    let hostile = Layer::default()
        .symlink("etc/hosts", victim.to_str().unwrap())
        .symlink("etc/hostname", &format!("{up_there}/victim"))
        .symlink("etc/resolv.conf", "/proc/1/root/etc/resolv.conf")
        .symlink("work", &up_there)
        .symlink("data", outside.to_str().unwrap());
    let config = json!({"Cmd": ["sh", "-c", "pwd; ls"], "Env": ["PATH=/bin"], "WorkingDir": "/work/sub",
        "Volumes": {"/data/volume": {}}});
    import(&scene, &[hostile], &config);
    // Refusing it and resolving it inside the rootfs are both right.
    let _ = run(&scene, &[], &[]).run();
    let _ = run(&scene, &["--workdir", "/data/x"], &[]).run();
    let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["victim"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    is_gone(&scene);
}

#[test]
fn privileged_is_kept_nothing_from() {
    let scene = Scene::new();
    usual(&scene);
    let says = |options: &[&str], script: &str| {
        let seen = run(&scene, options, &["sh", "-c", script]).run().ok();
        is_gone(&scene);
        seen.stdout.trim_end().to_owned()
    };
    let look = "grep -c '^Seccomp:.0' /proc/self/status; grep -c '^NoNewPrivs:.0' /proc/self/status; \
        grep CapEff /proc/self/status; ls /dev | wc -l; grep ' /proc/' /proc/mounts | wc -l; \
        grep -c ' /sys sysfs ro' /proc/mounts; unshare -m true && echo may unshare";
    let ordinary = run(&scene, &["--security-opt", "no-new-privileges=true"], &["sh", "-c", look]).run();
    let ordinary: Vec<&str> = ordinary.stdout.lines().collect();
    assert_eq!((ordinary[0], ordinary[1], ordinary[5], ordinary.len()), ("0", "0", "1", 6), "{ordinary:?}");
    assert_ne!(ordinary[4], "0");
    let seen = says(&["--privileged"], look);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!((lines[0], lines[1], lines[4], lines[5], lines[6]), ("1", "1", "0", "0", "may unshare"));
    let bounding = fs::read_to_string("/proc/self/status").unwrap();
    let bounding = bounding.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    assert_eq!(lines[2], format!("CapEff:\t{bounding}"), "all that this machine has");
    let number = |lines: &[&str]| lines[3].trim().parse::<usize>().unwrap();
    let of_host = fs::read_dir("/dev").unwrap().count();
    assert!(number(&lines) > number(&ordinary) && number(&lines) <= of_host + 8, "{seen}");
    // A device alone, under another name; without it the cgroup denies it, whatever node is made.
    let node = "cat /dev/null2 && echo read; stat -c %t:%T /dev/null2";
    assert_eq!(says(&["--device", "/dev/null:/dev/null2"], node), "read\n1:3");
    let denied = says(&[], "mknod /log c 1 11 && cat /log 2>&1 || true");
    assert!(denied.contains("not permitted"), "{denied}");
    run(&scene, &["--device", "/dev/nonsense"], &["true"]).run().fails(&["--device", "/dev/nonsense"]);
    is_gone(&scene);
}

#[test]
fn more_options_of_docker() {
    let scene = Scene::new();
    usual(&scene);
    let says = |options: &[&str], script: &str| {
        let seen = run(&scene, options, &["sh", "-c", script]).run().ok();
        is_gone(&scene);
        seen.stdout.trim_end().to_owned()
    };
    let shared = scene.dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the host").unwrap();
    let bind = format!("type=bind,source={},target=/m,readonly", shared.display());
    assert_eq!(says(&["--mount", &bind], "cat /m/in; touch /m/x 2>/dev/null || echo ro"), "from the hostro");
    assert_eq!(
        says(&["--mount", "type=tmpfs,dst=/t,tmpfs-size=64k"], "df -k /t | tail -1 | awk '{print $2}'"),
        "64"
    );
    assert_eq!(says(&["--mount", "dst=/v"], "touch /v/x && grep -c ' /v tmpfs' /proc/mounts || true"), "0");
    assert_eq!(says(&["--shm-size", "1m"], "df -k /dev/shm | tail -1 | awk '{print $2}'"), "1024");
    assert_eq!(says(&["-u", "app", "--group-add", "77"], "id -G"), "8 9 77");
    assert_eq!(says(&["--sysctl", "kernel.msgmax=4097"], "cat /proc/sys/kernel/msgmax"), "4097");
    assert_eq!(says(&["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj"), "321");
    let names = ["--add-host", "box:10.9.8.7", "--dns", "10.9.8.6", "--dns-search", "example.org"];
    let seen = says(&names, "cat /etc/hosts /etc/resolv.conf");
    for line in ["10.9.8.7\tbox", "nameserver 10.9.8.6", "search example.org"] {
        assert!(seen.lines().any(|one| one == line), "{line}: {seen}");
    }
    assert_eq!(seen.matches("nameserver").count(), 1, "{seen}");
    let of_host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    for kind in ["pid", "ipc", "uts"] {
        let script = format!("ls -l /proc/self/ns/{kind}");
        let option = format!("--{kind}");
        assert!(says(&[&option, "host"], &script).ends_with(&of_host(kind)), "{kind}");
        assert!(!says(&[&option, "private"], &script).ends_with(&of_host(kind)), "{kind}");
        run(&scene, &[&option, "nonsense"], &["true"]).run().fails(&[&option, "private", "host"]);
    }
    // The host's name stays the host's.
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(says(&["--uts", "host"], "hostname"), before.trim_end());
    let name = id(&scene);
    let script = "trap 'echo asked; exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    let options = ["--stop-signal", "USR1", "--detach", "--log-driver", "json-file"];
    run(&scene, &options, &["sh", "-c", script]).run().ok();
    eventually("it runs", || scene.dhow(["logs", &name]).run().stdout.contains("ready"));
    scene.dhow(["stop", &name]).run().ok();
    assert!(scene.dhow(["logs", &name]).run().ok().stdout.contains("asked"));
    delete(&scene);
    for (options, words) in [
        (&["--stop-signal", "NOSUCH"][..], &["signal", "NOSUCH"][..]),
        (&["--mount", "type=volume,src=na me,dst=/x"], &["--mount", "name"]),
        (&["--mount", "dst=x"], &["--mount", "absolute"]),
        (&["--group-add", "nobody"], &["nobody", "group file"]),
        (&["--add-host", "a:nonsense"], &["--add-host", "NAME:ADDRESS"]),
        (&["--sysctl", "x"], &["--sysctl", "KEY=VALUE"]),
        (&["--sysctl", "kernel.panic=1"], &["kernel.panic"]),
    ] {
        run(&scene, options, &["true"]).run().fails(words);
        is_gone(&scene);
    }
    run(&scene, &["--platform", "x"], &["true"]).run().fails(&["--platform"]);
    scene.dhow(["run", "--pid", "host", &name]).run().fails(&["--pid needs --image"]);
    is_gone(&scene);
}

/// The user's name is looked up in the image, whose files may be links to the host's.
#[test]
fn accounts_of_the_host_are_not_the_images() {
    let scene = Scene::new();
    let outside = scene.dir().join("passwd");
    fs::write(&outside, "hosts:x:42:42::/:/bin/sh\n").unwrap();
    let hostile = Layer::default().symlink("etc/passwd", outside.to_str().unwrap());
    import(&scene, &[hostile], &json!({"Cmd": ["id", "-u"], "Env": ["PATH=/bin"], "User": "hosts"}));
    run(&scene, &[], &[]).run().fails(&["\"hosts\"", "passwd"]);
    is_gone(&scene);
}

#[test]
fn a_user_without_rights_runs_an_image() {
    const UID: u32 = 54321;
    skip_unless!(machine::has_program("setpriv"), "no setpriv program (util-linux)");
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let home = scene.dir().join("home");
    fs::create_dir(&home).unwrap();
    fs::copy(dhow_integration::command::binary(), home.join("dhow")).unwrap();
    let archive = home.join("image.tar");
    let layer = image::filled(Layer::of(UID), scene.payload_program());
    image::save(&archive, "test", &[layer, Layer::of(UID).file("etc/motd", "old")], &json!({"Cmd": ["sh"]}));
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
    chown(&home, Some(UID), Some(UID)).unwrap();
    let dhow = |words: &[&str]| {
        let user = [format!("--reuid={UID}"), format!("--regid={UID}"), "--clear-groups".into()];
        let root = home.join("state").display().to_string();
        let own = [home.join("dhow").display().to_string(), "--root".into(), root];
        Runner::new("setpriv").args(user).args(own).args(words.iter().copied()).cwd(&home).run()
    };
    dhow(&["image", "import", "image.tar"]).ok();
    let name = id(&scene);
    let script = "id -u; echo new >/etc/motd; rm /etc/group; mkdir -p /a/b; cat /etc/hostname; ls /proc/self/ns >/dev/null";
    let seen = dhow(&["run", "--image", "test", "--keep", &name, "--", "sh", "-c", script]).ok();
    assert_eq!(seen.stdout, format!("0\n{name}\n"));
    let seen = dhow(&["diff", &name]).ok();
    assert_eq!(seen.stdout, "A /a\nA /a/b\nC /etc\nD /etc/group\nC /etc/motd\n");
    let own_file = home.join("file");
    fs::write(&own_file, "of the user").unwrap();
    chown(&own_file, Some(UID), Some(UID)).unwrap();
    let at = |path: &str| format!("{name}:{path}");
    // Of a stopped container, with its volumes, and of one that runs.
    let copies = || {
        dhow(&["cp", "file", &at("/a/b/file")]).ok();
        dhow(&["cp", &at("/a/b/file"), "back"]).ok();
        assert_eq!(fs::read_to_string(home.join("back")).unwrap(), "of the user");
        fs::remove_file(home.join("back")).unwrap();
        assert!(dhow(&["cp", &at("/etc/motd"), "-"]).ok().stdout.contains("new\n"));
        dhow(&["cp", &at("/nonsense"), "-"]).fails(&["/nonsense", "no such file"]);
        dhow(&["cp", "file", &at("/home-of-mine/copy")]).ok();
        assert_eq!(fs::read_to_string(home.join("shared/copy")).unwrap(), "of the user");
        fs::remove_file(home.join("shared/copy")).unwrap();
    };
    dhow(&["commit", &name, "changed"]).ok();
    dhow(&["delete", &name]).ok();
    for (script, says) in [("echo v >/kept/x", ""), ("cat /kept/x", "v\n")] {
        let run = ["run", "-v", "kept:/kept", "--image", "changed", &name, "--", "sh", "-c", script];
        assert_eq!(dhow(&run).ok().stdout, says);
    }
    fs::create_dir(home.join("shared")).unwrap();
    chown(home.join("shared"), Some(UID), Some(UID)).unwrap();
    let volume = format!("{}:/home-of-mine", home.join("shared").display());
    let sleep = ["-v", &volume, "--image", "changed", &name, "--", "sleep", "1000"];
    dhow(&[&["run", "--detach"][..], &sleep].concat()).ok();
    copies();
    dhow(&["kill", &name, "KILL"]).ok();
    eventually("it stops", || dhow(&["state", &name]).ok().json()["status"] == "stopped");
    copies();
    dhow(&["delete", &name]).ok();
    assert!(fs::read_dir(home.join("state/@images/containers")).unwrap().next().is_none());
    dhow(&["run", "--image", "test", "--user", "7", &name, "--", "true"]).fails(&["not mapped", "--user 0"]);
    dhow(&["run", "--image", "test", "--network", "cni:x", &name, "--", "true"]).fails(&["root's rights"]);
    scene.is_clean();
}

/// A user's entries in passwd(5), subuid(5) and subgid(5), for the test's processes alone.
fn set_aside(scene: &Scene, uid: u32) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap() + &format!("ranger:x:{uid}:{uid}::/:/bin/sh\n");
    fs::write(scene.dir().join("passwd"), passwd).unwrap();
    for (file, owner) in [("subuid", "ranger".to_owned()), ("subgid", uid.to_string())] {
        fs::write(scene.dir().join(file), format!("{owner}:3000000:65536\n")).unwrap();
        // Where the package has not made one there is nothing to mount on.
        let _ = fs::OpenOptions::new().create(true).append(true).open(format!("/etc/{file}")).unwrap();
    }
}

/// With ids that are set aside for the user, images with other users work too: import, run, diff,
/// commit, delete, gc.
#[test]
fn a_user_with_ranges_of_ids_runs_an_image_of_several_users() {
    const UID: u32 = 54323;
    skip_unless!(machine::has_program("setpriv"), "no setpriv program (util-linux)");
    skip_unless!(machine::has_program("newuidmap"), "no newuidmap program (uidmap)");
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let home = scene.dir().join("home");
    fs::create_dir(&home).unwrap();
    fs::copy(dhow_integration::command::binary(), home.join("dhow")).unwrap();
    let base = image::base(scene.payload_program());
    let others = Layer::of(7).directory("own").file("own/secret", "of app");
    image::save(&home.join("image.tar"), "test", &[base, others], &json!({"Cmd": ["sh"], "User": "app"}));
    let far = Layer::of(70_000).file("far", "");
    image::save(&home.join("far.tar"), "far", &[far], &json!({"Cmd": ["sh"]}));
    for name in ["image.tar", "far.tar"] {
        fs::set_permissions(home.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    chown(&home, Some(UID), Some(UID)).unwrap();
    set_aside(&scene, UID);
    let script = "for f in passwd subuid subgid; do mount --bind \"$1/$f\" /etc/$f; done; shift; exec \"$@\"";
    let within = |words: &[&str]| {
        let unshare = ["--mount", "--propagation", "private", "/bin/sh", "-c", script, "sh"];
        let user = ["setpriv", &format!("--reuid={UID}"), &format!("--regid={UID}"), "--clear-groups"];
        let unshare = Runner::new("unshare").args(unshare).args([scene.dir().to_str().unwrap()]);
        unshare.args(user).args(words).cwd(&home).run()
    };
    let dhow = |words: &[&str]| {
        let (program, root) = (home.join("dhow"), home.join("state"));
        within(&[&[program.to_str().unwrap(), "--root", root.to_str().unwrap()], words].concat())
    };
    dhow(&["image", "import", "image.tar"]).ok();
    let layer = dhow(&["image", "inspect", "test"]).ok().json()["layers"][1].as_str().unwrap().to_owned();
    use std::os::unix::fs::MetadataExt;
    let secret = fs::metadata(Path::new(&layer).join("own/secret")).unwrap();
    assert_eq!((secret.uid(), secret.gid()), (3_000_006, 3_000_006), "7 is the seventh of the ranges' ids");
    let name = id(&scene);
    let script = "id -u; id -G; cat /own/secret; echo -n mine >/own/secret; mkdir /own/d; echo x >/own/d/x; \
        chmod 700 /own/d; stat -c %u:%g /own/d/x /etc/passwd";
    let seen =
        dhow(&["run", "--image", "test", "--keep", "--user", "7:7", &name, "--", "sh", "-c", script]).ok();
    assert_eq!(seen.stdout, "7\n7\nof app7:7\n0:0\n", "{seen}");
    let seen = dhow(&["diff", &name]).ok();
    assert_eq!(seen.stdout, "C /own\nA /own/d\nA /own/d/x\nC /own/secret\n");
    // What belongs to another of the user's ids is copied too, out and in.
    let at = |path: &str| format!("{name}:{path}");
    let copies = || {
        dhow(&["cp", &at("/own/d/x"), "x"]).ok();
        assert_eq!(fs::metadata(home.join("x")).unwrap().uid(), UID);
        dhow(&["cp", "x", &at("/own/d/y")]).ok();
        dhow(&["cp", "-a", &at("/own/d"), "tree"]).ok();
        assert_eq!(fs::metadata(home.join("tree/x")).unwrap().uid(), 3_000_006);
        within(&["rm", "-f", "x"]).ok();
        fs::remove_dir_all(home.join("tree")).unwrap();
    };
    copies();
    dhow(&["commit", &name, "changed"]).ok();
    dhow(&["delete", &name]).ok();
    assert!(fs::read_dir(home.join("state/@images/containers")).unwrap().next().is_none());
    // The image's own user, with the groups that its group file gives.
    let seen = dhow(&["run", "--image", "changed", &name, "--", "sh", "-c", "id -u; id -G; cat /own/secret"]);
    assert_eq!(seen.ok().stdout, "7\n8 9\nmine");
    dhow(&["run", "-d", "--image", "changed", "--user", "7:7", &name, "--", "sleep", "1000"]).ok();
    copies();
    dhow(&["delete", "--force", &name]).ok();
    dhow(&["image", "import", "far.tar"]).fails(&["70000:70000", "/etc/subuid"]);
    dhow(&["run", "--image", "test", "--user", "70000", &name, "--", "true"]).fails(&["not mapped"]);
    for name in ["test", "changed"] {
        dhow(&["image", "rm", name]).ok();
    }
    dhow(&["image", "gc"]).ok();
    for place in ["layers", "tmp"] {
        assert_eq!(fs::read_dir(home.join("state/@images").join(place)).unwrap().count(), 0, "{place}");
    }
    scene.is_clean();
}

/// What `dhow bundle` makes has the same profile, and runs as any bundle.
#[test]
fn a_bundle_is_run_like_any_other() {
    let scene = Scene::new();
    usual(&scene);
    let bundle = scene.dir().join("bundle");
    let path = bundle.to_str().unwrap();
    scene.dhow(["bundle", "test", path, "unshare", "-U", "true"]).run().ok();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    let seen = scene.dhow(["run", "--bundle", path, &id(&scene)]).run().exits(1);
    assert!(seen.stderr.contains("not permitted"), "{seen}");
    assert!(Path::new(path).join("upper").is_dir());
    scene.is_clean();
}
