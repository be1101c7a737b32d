//! Options of `run --image` by which a container is placed beside others: limits, a cgroup, another's
//! namespaces, an init; and the choice of a platform.

use dhow_integration::command::binary;
use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene, cgroup, eventually, machine, skip_unless};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

fn scene() -> Scene {
    let scene = Scene::new();
    let archive = scene.dir().join("image.tar");
    let layers = [image::base(scene.payload_program())];
    image::save(&archive, "test", &layers, &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    scene
}

fn id(scene: &Scene, name: &str) -> String {
    format!("{}-{name}", scene.tag())
}

/// `run --image test OPTIONS ID -- COMMAND`.
fn run(scene: &Scene, name: &str, options: &[&str], command: &[&str]) -> Runner {
    let words = scene.dhow(["run", "--image", "test"]).args(options).args([id(scene, name)]);
    words.args(["--"]).args(command)
}

/// Starts one that stays.
fn up(scene: &Scene, name: &str, options: &[&str], command: &[&str]) {
    run(scene, name, &[&["--detach"], options].concat(), command).run().ok();
}

fn exec(scene: &Scene, name: &str, command: &[&str]) -> Outcome {
    scene.dhow(["exec", &id(scene, name)]).args(command).run()
}

fn delete(scene: &Scene, names: &[&str]) {
    for name in names {
        scene.dhow(["delete", "--force", &id(scene, name)]).run().ok();
    }
    scene.is_clean();
}

fn pid(scene: &Scene, name: &str) -> i32 {
    let state = scene.dhow(["state", &id(scene, name)]).run().ok().json();
    i32::try_from(state["pid"].as_i64().unwrap()).unwrap()
}

/// What the kernel holds for a container in a controller's file, by its name in v1 and in v2.
fn setting(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let paths = cgroup::of(pid);
    let named = paths.iter().find(|(names, _)| names.split(',').any(|name| name == controller));
    let unified = paths.iter().find(|(names, _)| names.is_empty());
    let (_, path) = named.or(unified).expect("the process is in a cgroup");
    let (directory, is_v2) = cgroup::directory(controller, path).unwrap();
    let file = directory.join(if is_v2 { v2 } else { v1 });
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

#[test]
fn memory_limits_are_the_kernels() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = scene();
    up(&scene, "c", &["--memory", "64m", "--memory-reservation", "32m"], &["sleep", "1000"]);
    let pid = pid(&scene, "c");
    assert_eq!(setting(pid, "memory", "memory.limit_in_bytes", "memory.max"), "67108864");
    assert_eq!(setting(pid, "memory", "memory.soft_limit_in_bytes", "memory.low"), "33554432");
    delete(&scene, &["c"]);
    run(&scene, "c", &["--memory", "16m"], &["/payload", "alloc", "64"]).run().exits(137);
    scene.is_clean();
}

#[test]
fn cpu_limits_are_the_kernels() {
    skip_unless!(machine::has_controller("cpu"), "no mounted hierarchy has the cpu controller");
    let scene = scene();
    up(&scene, "c", &["--cpus", "0.5", "--cpu-shares", "512"], &["sleep", "1000"]);
    let pid = pid(&scene, "c");
    let quota = setting(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(matches!(&*quota, "50000" | "50000 100000"), "{quota}");
    if cgroup::directory("cpu", "/").is_some_and(|(_, is_v2)| !is_v2) {
        assert_eq!(setting(pid, "cpu", "cpu.shares", ""), "512");
    }
    delete(&scene, &["c"]);
}

#[test]
fn the_cpuset_is_the_kernels() {
    skip_unless!(machine::has_controller("cpuset"), "no mounted hierarchy has the cpuset controller");
    let scene = scene();
    up(&scene, "c", &["--cpuset-cpus", "0"], &["sleep", "1000"]);
    assert_eq!(setting(pid(&scene, "c"), "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    delete(&scene, &["c"]);
}

#[test]
fn the_limit_of_processes_is_the_kernels() {
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    let scene = scene();
    up(&scene, "c", &["--pids-limit", "17"], &["sleep", "1000"]);
    assert_eq!(setting(pid(&scene, "c"), "pids", "pids.max", "pids.max"), "17");
    scene.dhow(["update", "--pids-limit", "18", &id(&scene, "c")]).run().ok();
    assert_eq!(setting(pid(&scene, "c"), "pids", "pids.max", "pids.max"), "18");
    delete(&scene, &["c"]);
}

#[test]
fn a_container_is_made_in_the_cgroup_that_is_named() {
    let scene = scene();
    let parent = format!("{}-parent/deep", scene.tag());
    up(&scene, "c", &["--cgroup-parent", &parent], &["sleep", "1000"]);
    let expected = format!("/{parent}/{}", id(&scene, "c"));
    let paths = cgroup::of(pid(&scene, "c"));
    assert!(paths.iter().any(|(_, path)| *path == expected), "{expected} in {paths:?}");
    scene.dhow(["delete", "--force", &id(&scene, "c")]).run().ok();
    // The parent is the caller's, as with `cgroupsPath`.
    for directory in cgroup::named_after(scene.tag()) {
        let _ = fs::remove_dir(directory);
    }
    scene.is_clean();
    for wrong in ["", "/", "../up"] {
        let option = format!("--cgroup-parent={wrong}");
        run(&scene, "c", &[&option], &["true"]).run().fails(&["c"]);
    }
    scene.is_clean();
}

#[test]
fn an_init_stands_before_the_payload() {
    let scene = scene();
    let seen =
        run(&scene, "c", &["--init"], &["sh", "-c", "cat /proc/1/comm; echo $$; exit 7"]).run().exits(7);
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert_eq!(lines[0], "dhow-init");
    assert_ne!(lines[1], "1");
    let without = run(&scene, "c", &[], &["sh", "-c", "echo $$"]).run().ok();
    assert_eq!(without.stdout, "1\n");
    run(&scene, "c", &["--init"], &["sh", "-c", "kill -TERM $$"]).run().exits(143);
    // As a user, and where nothing of the image can be written.
    let user = ["--init", "--user", "app", "--read-only"];
    assert_eq!(run(&scene, "c", &user, &["id", "-u"]).run().ok().stdout, "7\n");
    run(&scene, "c", &["--init"], &["no-such-program"]).run().fails(&["no-such-program"]);
    scene.is_clean();
}

/// A shell that is PID 1 itself would leave the orphan a zombie, and no signal without a handler ends it.
#[test]
fn an_init_waits_for_orphans_and_passes_signals_on() {
    let scene = scene();
    let orphans = "sh -c 'true & exec true'; sh -c 'sleep 0.01 & exec true'; echo ready; exec sleep 1000";
    up(&scene, "c", &["--init"], &["sh", "-c", orphans]);
    let zombies = || exec(&scene, "c", &["sh", "-c", "cat /proc/[0-9]*/stat"]).stdout.contains(") Z ");
    eventually("the orphans are waited for", || !zombies());
    scene.dhow(["kill", &id(&scene, "c"), "TERM"]).run().ok();
    eventually("it has ended", || {
        scene.dhow(["state", &id(&scene, "c")]).run().ok().json()["status"] == "stopped"
    });
    delete(&scene, &["c"]);
    // The payload's own handler hears it.
    let script = "trap 'echo heard; exit 3' USR1; echo ready; while :; do sleep 0.05; done";
    let front = run(&scene, "c", &["--init"], &["sh", "-c", script]).spawn();
    front.until_it_says("ready");
    scene.dhow(["kill", &id(&scene, "c"), "USR1"]).run().ok();
    let seen = front.wait().exits(3);
    assert!(seen.stdout.contains("heard"), "{}", seen.stdout);
    scene.is_clean();
}

/// CVE-2019-5736: the init is dhow's own program, and stays for as long as the container runs.
#[test]
fn the_inits_program_cannot_be_overwritten() {
    let scene = scene();
    let attack = "(echo x > /proc/1/exe) 2>/dev/null && echo written; \
                  (echo x >> /proc/self/exe) 2>/dev/null && echo written; cat /proc/1/environ | tr '\\0' '\\n'";
    let attack = attack.replace("| tr '\\0' '\\n'", "");
    let before = fs::read(binary()).unwrap();
    let all = ["--init", "--cap-add", "ALL", "--env", "A=in-the-container"];
    let seen = run(&scene, "c", &all, &["sh", "-c", &attack]).env("OF_THE_HOST", "secret").run().ok();
    assert!(
        !seen.stdout.contains("written") && seen.stdout.contains("A=in-the-container"),
        "{}",
        seen.stdout
    );
    // What dhow had in its own environment is not in that of the init.
    assert!(!seen.stdout.contains("OF_THE_HOST"), "{}", seen.stdout);
    assert!(fs::read(binary()).unwrap() == before);
    scene.is_clean();
}

#[test]
fn a_network_can_be_another_containers() {
    let scene = scene();
    let namespace = ["ls", "-l", "/proc/self/ns/net"];
    let link = |seen: Outcome| seen.ok().stdout.trim().rsplit(' ').next().unwrap().to_owned();
    up(&scene, "a", &["--hostname", "first", "--add-host", "far:10.1.2.3"], &["sleep", "1000"]);
    let with = format!("container:{}", id(&scene, "a"));
    let shared = ["--network", &with];
    up(&scene, "b", &shared, &["sleep", "1000"]);
    assert_eq!(link(exec(&scene, "a", &namespace)), link(exec(&scene, "b", &namespace)));
    let seen = exec(&scene, "b", &["sh", "-c", "hostname; cat /etc/hosts"]).ok().stdout;
    assert!(seen.starts_with("first\n") && seen.contains("10.1.2.3\tfar"), "{seen}");
    // One that is restarted has another network, and who shares it finds that.
    scene.dhow(["restart", "--time", "0", &id(&scene, "a")]).run().ok();
    scene.dhow(["restart", "--time", "0", &id(&scene, "b")]).run().ok();
    assert_eq!(link(exec(&scene, "a", &namespace)), link(exec(&scene, "b", &namespace)));
    for option in ["--hostname=x", "--dns=1.1.1.1", "--add-host=a:1.1.1.1"] {
        let word = option.split('=').next().unwrap();
        run(&scene, "c", &[&shared[..], &[option]].concat(), &["true"]).run().fails(&[word, "exclude"]);
    }
    scene.dhow(["kill", &id(&scene, "a"), "KILL"]).run().ok();
    eventually("it has ended", || {
        scene.dhow(["state", &id(&scene, "a")]).run().ok().json()["status"] == "stopped"
    });
    run(&scene, "c", &shared, &["true"]).run().fails(&[&id(&scene, "a"), "does not run"]);
    run(&scene, "c", &["--network", "container:nobody"], &["true"])
        .run()
        .fails(&["nobody", "does not exist"]);
    delete(&scene, &["a", "b"]);
}

#[test]
fn processes_can_be_another_containers() {
    let scene = scene();
    up(&scene, "a", &[], &["sleep", "12345"]);
    let with = format!("container:{}", id(&scene, "a"));
    let seen = run(&scene, "b", &["--pid", &with], &["sh", "-c", "echo $$; cat /proc/1/cmdline"]).run().ok();
    assert!(!seen.stdout.starts_with("1\n") && seen.stdout.contains("12345"), "{}", seen.stdout);
    // There an init is not PID 1, and its orphans are its own all the same.
    let orphans = "sh -c 'true & exec true'; sleep 0.1; cat /proc/[0-9]*/stat";
    let seen = run(&scene, "b", &["--init", "--pid", &with], &["sh", "-c", orphans]).run().ok();
    assert!(seen.stdout.contains("(dhow-init)") && !seen.stdout.contains(") Z "), "{}", seen.stdout);
    for option in ["--pid", "--network"] {
        let words = ["--rootless=true", "run", "--image", "test", option, &with, "b", "--", "true"];
        scene.dhow(words).run().fails(&[&id(&scene, "a"), "without root's rights"]);
    }
    run(&scene, "b", &["--pid", "nonsense"], &["true"]).run().fails(&["--pid", "container:ID"]);
    delete(&scene, &["a"]);
}

/// An OCI layout of one name for two platforms, which tell their own by a variable.
fn layout(scene: &Scene, to: &Path) {
    let blobs = to.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| -> Value {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        json!({"mediaType": kind, "digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    let tar = [image::filled(Layer::default(), scene.payload_program()).so_far(), &[0; 1024]].concat();
    let layer = blob("application/vnd.oci.image.layer.v1.tar", &tar);
    let manifests = ["s390x", "riscv64"].map(|architecture| {
        let config = json!({"architecture": architecture, "os": "linux",
            "config": {"Cmd": ["sh", "-c", "echo $ARCH"], "Env": ["PATH=/bin", format!("ARCH={architecture}")]},
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
        let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
        let mut manifest = blob(kind, manifest.to_string().as_bytes());
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifest
    });
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(to.join("index.json"), index.to_string()).unwrap();
    fs::write(to.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
}

#[test]
fn the_platform_that_is_named_is_what_runs() {
    let scene = Scene::new();
    let at: PathBuf = scene.dir().join("both");
    layout(&scene, &at);
    let path = at.to_str().unwrap();
    for architecture in ["s390x", "riscv64"] {
        let platform = format!("linux/{architecture}");
        let words = ["run", "--image", path, "--platform", &platform, &id(&scene, "c")];
        let seen = scene.dhow(words).run().ok();
        assert_eq!(seen.stdout, format!("{architecture}\n"));
        let words = ["image", "import", "-q", "--name", architecture, "--platform", &platform, path];
        scene.dhow(words).run().ok();
        let seen = scene.dhow(["image", "inspect", architecture]).run().ok();
        assert!(seen.stdout.contains(architecture), "{}", seen.stdout);
    }
    // This machine's is not among them, and that is said.
    scene.dhow(["run", "--image", path, &id(&scene, "c")]).run().fails(&["linux/", "s390x", "riscv64"]);
    scene.is_clean();
}

fn volume(scene: &Scene, words: &[&str]) -> Outcome {
    scene.dhow(["volume"]).args(words).run()
}

/// An image that has something in /data, which is a user's.
fn with_data() -> Scene {
    let scene = Scene::new();
    let archive = scene.dir().join("image.tar");
    let layers = [
        image::base(scene.payload_program()),
        Layer::of(7).directory("data").file("data/seed", "of the image\n").directory("data/deep"),
    ];
    image::save(&archive, "test", &layers, &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}));
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
    scene
}

#[test]
fn a_named_volume_begins_as_the_image_and_outlives_the_container() {
    let scene = with_data();
    let say = "cat /data/seed; stat -c '%u:%g %a' /data; echo more >> /data/seed";
    let seen = run(&scene, "a", &["--volume", "db:/data"], &["sh", "-c", say]).run().ok();
    assert_eq!(seen.stdout, "of the image\n7:7 755\n");
    scene.is_clean();
    let again =
        run(&scene, "b", &["--mount", "type=volume,src=db,dst=/elsewhere"], &["cat", "/elsewhere/seed"]);
    assert_eq!(again.run().ok().stdout, "of the image\nmore\n");
    let refused = run(&scene, "b", &["--volume", "db:/data:ro"], &["touch", "/data/x"]).run();
    assert!(refused.stderr.contains("Read-only"), "{}", refused.stderr);
    let empty = run(&scene, "b", &["--volume", "fresh:/data:nocopy"], &["ls", "/data"]).run().ok();
    assert_eq!(empty.stdout, "");
    // Made beforehand and still empty, it is filled as well.
    assert_eq!(volume(&scene, &["create", "early"]).ok().stdout, "early\n");
    let seen = run(&scene, "b", &["--volume", "early:/data"], &["cat", "/data/seed"]).run().ok();
    assert_eq!(seen.stdout, "of the image\n");
    assert_eq!(volume(&scene, &["ls", "-q"]).ok().stdout, "db\nearly\nfresh\n");
    // What the image does not have there is an empty directory.
    run(&scene, "b", &["--volume", "none:/not/there"], &["ls", "/not/there"]).run().ok();
    scene.is_clean();
}

#[test]
fn a_volume_that_a_container_has_is_not_removed() {
    let scene = with_data();
    up(&scene, "a", &["--volume", "db:/data"], &["sleep", "1000"]);
    let seen = volume(&scene, &["inspect", "db"]).ok().json();
    assert_eq!(seen[0]["containers"], json!([id(&scene, "a")]));
    assert!(Path::new(seen[0]["mountpoint"].as_str().unwrap()).join("seed").exists());
    volume(&scene, &["rm", "db"]).fails(&["db", &id(&scene, "a"), "dhow delete"]);
    scene.dhow(["kill", &id(&scene, "a"), "KILL"]).run().ok();
    eventually("it has ended", || {
        scene.dhow(["state", &id(&scene, "a")]).run().ok().json()["status"] == "stopped"
    });
    volume(&scene, &["rm", "db"]).fails(&["db", &id(&scene, "a")]);
    delete(&scene, &["a"]);
    scene.dhow(["image", "gc"]).run().ok();
    volume(&scene, &["rm", "db"]).ok();
    volume(&scene, &["rm", "db"]).fails(&["no such volume", "db"]);
    volume(&scene, &["rm", "db", "--force"]).ok();
    volume(&scene, &["inspect", "db"]).fails(&["no such volume"]);
    for wrong in ["../up", ".x", "a b", ""] {
        assert_ne!(volume(&scene, &["create", wrong]).code, 0, "{wrong}");
    }
    run(&scene, "a", &["--volume", "a b:/data"], &["true"]).run().fails(&["--volume", "a b"]);
    scene.is_clean();
}

/// Many at once make it once, and one that was killed while it copied has left nothing that counts.
#[test]
fn a_volume_is_filled_once_and_wholly() {
    let scene = with_data();
    let name = |number: usize| format!("c{number}");
    let all: Vec<_> = (0..4)
        .map(|number| run(&scene, &name(number), &["--volume", "db:/data"], &["cat", "/data/seed"]).spawn())
        .collect();
    for one in all {
        assert_eq!(one.wait().ok().stdout, "of the image\n");
    }
    let place = scene.state_dir().join("@images/volumes/db");
    fs::write(place.join("filling"), "").unwrap();
    fs::remove_file(place.join("data/seed")).unwrap();
    fs::write(place.join("data/half"), "").unwrap();
    let seen = run(&scene, "a", &["--volume", "db:/data"], &["ls", "/data"]).run().ok();
    assert_eq!(seen.stdout, "deep\nseed\n");
    assert!(!place.join("filling").exists());
    // Who wants no copy gets none of the half one, and keeps what it writes.
    fs::write(place.join("filling"), "").unwrap();
    let no_copy = ["--volume", "db:/data:nocopy"];
    let seen = run(&scene, "b", &no_copy, &["sh", "-c", "ls /data; echo own > /data/own"]).run().ok();
    assert_eq!(seen.stdout, "");
    let seen = run(&scene, "a", &["--volume", "db:/data"], &["ls", "/data"]).run().ok();
    assert_eq!(seen.stdout, "own\n");
    scene.is_clean();
}

/// The layers are shared with containers that have other ids, or none of their own.
/// Whoever comes first deletes it, and nothing is left of it.
#[test]
fn what_goes_by_itself_may_be_deleted_and_restarted_meanwhile() {
    let scene = scene();
    for turn in 0..9 {
        let name = id(&scene, &format!("r{turn}"));
        let short = format!("0.0{}", turn % 5);
        let words = ["run", "--detach", "--rm", "--image", "test", &name, "--", "sleep", &short];
        scene.dhow(words).run().ok();
        match turn % 3 {
            0 => drop(scene.dhow(["delete", "--force", &name]).run().ok()),
            1 => drop(scene.dhow(["delete", &name]).run()),
            _ => drop(scene.dhow(["restart", "--time", "0", &name]).run()),
        }
        eventually("it is gone", || scene.dhow(["state", &name]).run().code != 0);
    }
    let containers = scene.state_dir().join("@images/containers");
    eventually("its files are gone", || fs::read_dir(&containers).unwrap().next().is_none());
    scene.is_clean();
}

#[test]
fn a_user_namespace_maps_the_owners_of_the_images_files() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = with_data();
    let map = ["--uidmap", "0:200000:65536", "--volume", "db:/data"];
    let script = "stat -c '%u:%g' /bin /data/seed /etc/hosts; echo x > /new; touch /data/more; rm -r /etc/group; \
                  mkdir /etc/group; echo '1.1.1.1 far' >> /etc/hosts; echo ready; exec sleep 1000";
    up(&scene, "a", &map, &["sh", "-c", script]);
    let layer = scene.state_dir().join("@images/containers").join(id(&scene, "a"));
    eventually("it has written", || layer.join("upper/etc/group").is_dir());
    let seen =
        exec(&scene, "a", &["sh", "-c", "stat -c %u:%g /bin /data/seed /etc/hosts /new /data/more"]).ok();
    assert_eq!(seen.stdout, "0:0\n7:7\n0:0\n0:0\n0:0\n");
    let pid = pid(&scene, "a");
    let maps = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_eq!(maps.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    // On the disk they are as in any other container, so that they can be committed.
    let owner = |path: &Path| std::os::unix::fs::MetadataExt::uid(&fs::symlink_metadata(path).unwrap());
    assert_eq!(owner(&layer.join("upper/new")), 0);
    assert_eq!(owner(&scene.state_dir().join("@images/volumes/db/data/more")), 0);
    let seen = scene.dhow(["diff", &id(&scene, "a")]).run().ok();
    assert!(seen.stdout.contains("A /new") && seen.stdout.contains("/etc/group"), "{}", seen.stdout);
    scene.dhow(["commit", &id(&scene, "a"), "made"]).run().ok();
    let words =
        ["run", "--image", "made", &id(&scene, "b"), "--", "stat", "-c", "%u:%g", "/new", "/etc/group"];
    assert_eq!(scene.dhow(words).run().ok().stdout, "0:0\n0:0\n");
    // Files go in and out with the owners that they have inside.
    let (file, out) = (scene.dir().join("file"), scene.dir().join("out"));
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::chown(&file, Some(7), Some(7)).unwrap();
    let (file, back) = (file.to_str().unwrap(), out.to_str().unwrap());
    let within = |path: &str| format!("{}:{path}", id(&scene, "a"));
    for place in ["/", "/data/"] {
        scene.dhow(["cp", file, &within(&format!("{place}roots"))]).run().ok();
        scene.dhow(["cp", "-a", file, &within(&format!("{place}kept"))]).run().ok();
        scene.dhow(["cp", "-a", &within(&format!("{place}kept")), back]).run().ok();
        assert_eq!(owner(&out), 7);
    }
    let seen = exec(&scene, "a", &["stat", "-c", "%u:%g", "/roots", "/kept", "/data/roots", "/data/kept"]);
    assert_eq!(seen.ok().stdout, "0:0\n7:7\n0:0\n7:7\n");
    let list = format!(
        "{} --root {} cp {} - | tar --numeric-owner -tv",
        binary().display(),
        scene.state_dir().display(),
        within("/kept")
    );
    assert!(Runner::new("/bin/sh").args(["-c", &list]).run().ok().stdout.contains(" 7/7 "));
    scene.dhow(["stop", "--time", "0", &id(&scene, "a")]).run().ok();
    scene.dhow(["cp", file, &within("/data/late")]).run().ok();
    assert_eq!(owner(&scene.state_dir().join("@images/volumes/db/data/late")), 0);
    delete(&scene, &["a"]);
    let user = ["--uidmap", "0:200000:65536", "--init", "--user", "app"];
    assert_eq!(run(&scene, "a", &user, &["id", "-u"]).run().ok().stdout, "7\n");
    scene.is_clean();
}

#[test]
fn what_a_user_namespace_cannot_have_is_said() {
    let scene = scene();
    let map = "--uidmap=0:200000:65536";
    for (options, words) in [
        (&[map, "--privileged"][..], &["--privileged", "user namespace"][..]),
        (&[map, "--network", "host"], &["--network", "user namespace"]),
        (&[map, "--pid", "host"], &["--pid", "user namespace"]),
        (&[map, "--userns", "auto"], &["--userns", "--uidmap"]),
        (&["--uidmap=0:200000:5", "--user", "app"], &["user 7 is not mapped"]),
        (&["--uidmap=5:200000:5"], &["user 0 is not mapped"]),
        (&["--uidmap=nonsense"], &["--uidmap", "CONTAINER:HOST:COUNT"]),
        (&["--userns=nonsense"], &["--userns", "host or auto"]),
    ] {
        run(&scene, "c", options, &["true"]).run().fails(words);
    }
    run(&scene, "c", &["--userns", "host"], &["true"]).run().ok();
    scene.is_clean();
}

/// Each gets others, of those that /etc/subuid sets aside, and who is too late is told so.
#[test]
fn user_namespaces_have_ids_of_their_own() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = scene();
    let file = scene.dir().join("subuid");
    fs::write(&file, "somebody:1:5\ncontainers:300000:131072\n").unwrap();
    let start = |name: &str| {
        let inside = r#"mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid && exec "$@""#;
        let dhow = run(&scene, name, &["--userns", "auto", "--detach"], &["sleep", "1000"]).line();
        let words = ["--mount", "--propagation", "private", "sh", "-c", inside, file.to_str().unwrap()];
        Runner::new("unshare").args(words).args(dhow).run()
    };
    let first = |name: &str| {
        let maps = fs::read_to_string(format!("/proc/{}/uid_map", pid(&scene, name))).unwrap();
        maps.split_whitespace().nth(1).unwrap().to_owned()
    };
    start("a").ok();
    start("b").ok();
    assert_eq!([first("a"), first("b")], ["300000", "365536"]);
    start("c").fails(&["--userns auto", "/etc/subuid", "65536 free ids"]);
    scene.dhow(["delete", "--force", &id(&scene, "a")]).run().ok();
    start("c").ok();
    assert_eq!(first("c"), "300000");
    delete(&scene, &["b", "c"]);
}
