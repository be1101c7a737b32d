//! `dhow doctor`: finds what is left of containers, removes it, and touches nothing else.

use dhow_integration::{Scene, cgroup, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::{Child, Command};

fn sleeper() -> Child {
    Command::new("sleep").arg("100").spawn().unwrap()
}

fn end(mut child: Child) {
    assert!(child.try_wait().unwrap().is_none(), "a stranger was killed");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_healthy_machine_is_left_alone() {
    let scene = Scene::new();
    scene.dhow(["doctor", "--fix"]).run().ok().says("");
    let (created, running, exited) =
        (scene.payload(&["sleep", "100"]), scene.payload(&["sleep", "100"]), scene.payload(&["exit", "0"]));
    created.create().ok();
    running.run_kept(&["--detach", "--restart", "always"]).ok();
    exited.up();
    exited.reap();
    scene.dhow(["doctor", "--fix"]).run().ok().says("");
    assert_eq!(created.status(), "created");
    assert_eq!(running.status(), "running");
    assert_eq!(exited.status(), "stopped");
    for c in [created, running, exited] {
        c.delete_force().ok();
    }
    scene.is_clean();
}

#[test]
fn what_a_killed_create_leaves_is_found_and_removed() {
    let scene = Scene::new();
    let ready = scene.dir().join("ready");
    let c = scene.container(|c| {
        c.hook("createRuntime", &format!("touch {}; exec sleep 1", ready.display()))
            .payload(&["sleep", "100"]);
    });
    let create = scene.dhow(["create", "--bundle", c.bundle().to_str().unwrap(), c.id()]).spawn();
    eventually("the hook runs", || ready.exists());
    scene.dhow(["doctor", "--fix"]).run().ok().says("");
    kill(Pid::from_raw(create.pid()), Signal::SIGKILL).unwrap();
    create.wait().exits(137);
    // The hook's orphan keeps nothing, but the lock is the init's too until it is gone.
    eventually("it is found", || scene.dhow(["doctor"]).run().stdout.contains("create was killed"));
    let found = scene.dhow(["doctor", "--format", "json"]).run().exits(1).json();
    assert_eq!((&found[0]["kind"], &found[0]["outcome"]), (&"state".into(), &"found".into()), "{found}");
    let fixed = scene.dhow(["doctor", "--fix"]).run().ok();
    assert!(fixed.stdout.contains("removed"), "{fixed}");
    scene.dhow(["doctor"]).run().ok().says("");
    scene.is_clean();
}

#[test]
fn a_lost_state_directory_leaves_a_cgroup_and_processes_that_are_found_by_their_mark() {
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "2"]);
    c.run_kept(&["--detach", "--monitor"]).ok();
    fs::remove_dir_all(scene.state_dir().join(c.id())).unwrap();
    let found = scene.dhow(["doctor"]).run().exits(1);
    assert!(found.stdout.contains("cgroup /sys/fs/cgroup") && found.stdout.contains("in it:"), "{found}");
    assert!(found.stdout.contains("process ") && found.stdout.contains("monitor"), "{found}");
    scene.dhow(["doctor", "--fix"]).run().ok();
    scene.is_clean();
    scene.dhow(["doctor"]).run().ok().says("");
}

#[test]
fn a_mount_on_lost_state_is_removed() {
    let scene = Scene::new();
    let place = scene.state_dir().join("lost");
    fs::create_dir_all(&place).unwrap();
    nix::mount::mount(Some("tmpfs"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    let fixed = scene.dhow(["doctor", "--fix"]).run();
    assert!(fixed.stdout.contains(&format!("mount {}", place.display())), "{fixed}");
    scene.dhow(["doctor", "--fix"]).run().ok();
    scene.dhow(["doctor"]).run().ok().says("");
    assert!(!place.exists());
}

#[test]
fn another_boot_and_a_foreign_record_are_told_of_and_stay() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.up();
    c.reap();
    let path = scene.state_dir().join(c.id()).join("record.json");
    let whole = fs::read_to_string(&path).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&whole).unwrap();
    record["boot"] = "another".into();
    fs::write(&path, record.to_string()).unwrap();
    let told = scene.dhow(["doctor", "--fix"]).run().exits(1);
    assert!(told.stdout.contains("rebooted") && told.stdout.contains("dhow restart"), "{told}");
    fs::write(&path, "{\"version\":9}").unwrap();
    let told = scene.dhow(["doctor", "--fix"]).run().exits(1);
    assert!(told.stdout.contains("version 9"), "{told}");
    fs::write(&path, whole).unwrap();
    c.delete().ok();
    scene.is_clean();
}

#[test]
fn strangers_stay() {
    let scene = Scene::new();
    let other = Scene::new();
    // Another root's container, whole and abandoned.
    let c = other.payload(&["sleep", "100"]);
    c.up();
    let lost = other.payload(&["sleep", "100"]);
    lost.up();
    fs::rename(other.state_dir().join(lost.id()), other.dir().join("away")).unwrap();
    scene.dhow(["list"]).run().ok();
    fs::create_dir_all(scene.state_dir()).unwrap();
    // A cgroup of the same kind of name without a mark, one with another's mark, processes in both.
    let (base, _) = cgroup::directory("pids", "/").or_else(|| cgroup::directory("hugetlb", "/")).unwrap();
    let names = [format!("{}-decoy", scene.tag()), format!("{}-decoy-2", scene.tag())];
    let decoys = names.each_ref().map(|name| base.join(name));
    let mut inside = Vec::new();
    for decoy in &decoys {
        fs::create_dir(decoy).unwrap();
        let child = sleeper();
        fs::write(decoy.join("cgroup.procs"), child.id().to_string()).unwrap();
        inside.push(child);
    }
    // The right path on another device: a container in another mount namespace.
    let mark = format!("1 {}/gone", scene.state_dir().display());
    let path = decoys[1].to_str().unwrap();
    rustix::fs::setxattr(path, "trusted.dhow", mark.as_bytes(), rustix::fs::XattrFlags::empty()).unwrap();
    // A program that is called like the monitor, with arguments that name nothing here.
    let program = scene.dir().join("dhow-monitor");
    fs::copy("/bin/sleep", &program).unwrap();
    inside.push(Command::new(&program).arg("100").spawn().unwrap());
    // A directory below the root that no container can be called like, and a file.
    fs::create_dir(scene.state_dir().join("@images")).unwrap();
    fs::write(scene.state_dir().join("notes.txt"), "mine").unwrap();
    scene.dhow(["doctor", "--fix"]).run();
    assert_eq!(c.status(), "running");
    assert!(scene.state_dir().join("@images").is_dir());
    assert_eq!(fs::read_to_string(scene.state_dir().join("notes.txt")).unwrap(), "mine");
    for child in inside {
        end(child);
    }
    for decoy in &decoys {
        eventually("the decoy can be removed", || fs::remove_dir(decoy).is_ok());
    }
    fs::remove_file(scene.state_dir().join("notes.txt")).unwrap();
    fs::rename(other.dir().join("away"), other.state_dir().join(lost.id())).unwrap();
    assert_eq!(lost.status(), "running", "another root's container was touched");
    for c in [c, lost] {
        c.delete_force().ok();
    }
    other.is_clean();
}
