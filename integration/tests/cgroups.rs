//! Placement in cgroups, and limits. What the kernel's layout lacks is skipped by name.

use dhow_integration::{Container, Scene, cgroup, machine, skip_unless};
use serde_json::json;
use std::fs;

/// A file of the container's cgroup: `v1` or `v2` by which hierarchy has the controller.
fn setting(c: &Container, controller: &str, v1: &str, v2: &str) -> String {
    let (dir, is_v2) = cgroup::directory(controller, &c.cgroup()).unwrap();
    let file = dir.join(if is_v2 { v2 } else { v1 });
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
}

#[test]
fn the_container_is_in_its_own_cgroup_of_every_hierarchy() {
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "2"]);
    c.up().until_it_says("ready 2");
    let controllers = cgroup::hierarchies();
    let limited = ["memory", "pids", "cpu", "cpuset", "devices", "freezer"];
    let places = cgroup::of(c.pid());
    for hierarchy in
        controllers.iter().filter(|h| h.v2 || limited.iter().any(|l| h.controllers.iter().any(|c| c == l)))
    {
        let name = if hierarchy.v2 { String::new() } else { hierarchy.controllers.join(",") };
        let place =
            places.iter().find(|(controllers, _)| *controllers == name).map(|(_, path)| path.as_str());
        // In a hybrid layout v1 holds the controllers, and the unified one may be left out.
        let optional = hierarchy.v2 && controllers.len() > 1;
        assert!(optional || place == Some(&c.cgroup()), "{name:?}: {place:?} in {places:?}");
    }
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn a_nested_cgroups_path_is_made_and_removed() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/cgroupsPath", format!("/{}-parent/child", scene.tag())).payload(&["sleep", "100"]);
    });
    c.up();
    let places = cgroup::of(c.pid());
    let expected = format!("/{}-parent/child", scene.tag());
    assert!(places.iter().any(|(_, path)| *path == expected), "{places:?}");
    c.delete_force().ok();
    // The leaf is the container's. Whose the parent is cannot be known: engines make it beforehand.
    let left = cgroup::named_after(&format!("{}-parent", scene.tag()));
    assert!(left.iter().all(|dir| !dir.ends_with("child")), "{left:?}");
    for dir in left {
        fs::remove_dir(dir).unwrap();
    }
}

#[test]
fn without_a_cgroups_path_the_container_still_gets_a_cgroup() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.remove("/linux/cgroupsPath").payload(&["sleep", "100"]);
    });
    c.up();
    let places = cgroup::of(c.pid());
    assert!(places.iter().any(|(_, path)| path.ends_with(c.id())), "{places:?}");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn children_of_the_container_are_in_its_cgroup() {
    let scene = Scene::new();
    let c = scene.payload(&["fork-tree", "3"]);
    c.up().until_it_says("ready 3");
    let hierarchy =
        cgroup::hierarchies().into_iter().find(|h| h.controllers.iter().any(|c| c == "pids") || h.v2);
    let Some(hierarchy) = hierarchy else { panic!("no hierarchy is mounted") };
    let procs = fs::read_to_string(hierarchy.mount.join(c.id()).join("cgroup.procs")).unwrap();
    assert_eq!(procs.lines().count(), 4, "{procs}");
}

#[test]
fn memory_limits_are_set() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 33_554_432, "reservation": 16_777_216 }));
    });
    c.create().ok();
    assert_eq!(setting(&c, "memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(setting(&c, "memory", "memory.soft_limit_in_bytes", "memory.low"), "16777216");
}

#[test]
fn a_memory_limit_ends_what_exceeds_it() {
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 16_777_216 })).payload(&["alloc", "64"]);
    });
    c.run().exits(137);
    let c = scene.container(|c| {
        c.set("/linux/resources/memory", json!({ "limit": 67_108_864 })).payload(&["alloc", "16"]);
    });
    c.run().ok().says("allocated 16 MB");
    scene.is_clean();
}

#[test]
fn a_limit_of_processes_holds() {
    skip_unless!(machine::has_controller("pids"), "no mounted hierarchy has the pids controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/pids", json!({ "limit": 4 })).payload(&["fork-tree", "10"]);
    });
    let seen = c.run().exits(1);
    assert!(seen.stdout.contains("EAGAIN"), "{seen}");
    let c = scene.container(|c| {
        c.set("/linux/resources/pids", json!({ "limit": 4 })).payload(&["sleep", "100"]);
    });
    c.up();
    assert_eq!(setting(&c, "pids", "pids.max", "pids.max"), "4");
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn shares_and_quota_of_the_processor_are_set() {
    skip_unless!(machine::has_controller("cpu"), "no mounted hierarchy has the cpu controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/cpu", json!({ "shares": 512, "quota": 25_000, "period": 50_000 }));
    });
    c.create().ok();
    if cgroup::directory("cpu", "/").unwrap().1 {
        assert_eq!(setting(&c, "cpu", "", "cpu.max"), "25000 50000");
        let weight: u32 = setting(&c, "cpu", "", "cpu.weight").parse().unwrap();
        assert!((20..=80).contains(&weight), "512 shares are about half of the usual weight: {weight}");
    } else {
        assert_eq!(setting(&c, "cpu", "cpu.shares", ""), "512");
        assert_eq!(setting(&c, "cpu", "cpu.cfs_quota_us", ""), "25000");
        assert_eq!(setting(&c, "cpu", "cpu.cfs_period_us", ""), "50000");
    }
}

#[test]
fn processors_are_bound() {
    skip_unless!(machine::has_controller("cpuset"), "no mounted hierarchy has the cpuset controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/cpu", json!({ "cpus": "0", "mems": "0" }))
            .payload(&["status", "Cpus_allowed_list"]);
    });
    assert_eq!(c.run().ok().line("Cpus_allowed_list:"), "0");
}

#[test]
fn devices_are_denied_unless_allowed() {
    skip_unless!(
        machine::has_controller("devices") || cgroup::hierarchies().iter().any(|h| h.v2),
        "neither the devices controller nor cgroup v2 is mounted"
    );
    let scene = Scene::new();
    // /dev/kmsg (1:11) is not among the usual devices.
    let edit = |c: &mut dhow_integration::Config| {
        for set in ["bounding", "effective", "permitted"] {
            // Without CAP_SYSLOG the kernel may refuse /dev/kmsg whatever the cgroup says.
            c.push(&format!("/process/capabilities/{set}"), "CAP_MKNOD");
            c.push(&format!("/process/capabilities/{set}"), "CAP_SYSLOG");
        }
        c.push(
            "/linux/devices",
            json!({ "path": "/dev/log-of-kernel", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }),
        );
        c.writable().payload(&[
            "access",
            "/dev/log-of-kernel",
            "--",
            "mknod",
            "/mem",
            "c",
            "1",
            "1",
            "--",
            "access",
            "/mem",
        ]);
    };
    let seen = scene.container(edit).run();
    // Making a node is harmless and allowed by default; using it is what the rules decide.
    assert!(seen.stdout.contains("! access: EPERM") && !seen.stdout.contains("readable /mem"), "{seen}");
    let c = scene.container(|c| {
        edit(c);
        c.push(
            "/linux/resources/devices",
            json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" }),
        );
    });
    let seen = c.run();
    assert!(seen.stdout.contains("readable /dev/log-of-kernel"), "{seen}");
    scene.is_clean();
}

#[test]
fn a_denied_device_cannot_be_opened() {
    skip_unless!(
        machine::has_controller("devices") || cgroup::hierarchies().iter().any(|h| h.v2),
        "neither the devices controller nor cgroup v2 is mounted"
    );
    let scene = Scene::new();
    let node = scene.dir().join("kmsg");
    let device = nix::sys::stat::makedev(1, 11);
    nix::sys::stat::mknod(
        &node,
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        device,
    )
    .unwrap();
    // A bind mount brings the node in without the config mentioning a device.
    let c = scene.container(|c| {
        c.bind(&node, "/kmsg", &[]).payload(&["access", "/kmsg"]);
        for set in ["bounding", "effective", "permitted"] {
            c.push(&format!("/process/capabilities/{set}"), "CAP_SYSLOG");
        }
    });
    c.run().exits(1).says("! access: EPERM");
}

#[test]
fn resources_that_are_out_of_range_are_refused() {
    skip_unless!(machine::has_controller("cpu"), "no mounted hierarchy has the cpu controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/linux/resources/cpu", json!({ "quota": 5, "period": 50_000 }));
    });
    c.create().fails(&["linux.resources.cpu.quota: 5 is out of range"]);
    scene.is_clean();
}

#[test]
fn pausing_freezes_the_cgroup() {
    skip_unless!(machine::has_freezer(), "no freezer cgroup is mounted");
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.pause().ok();
    let v1 = cgroup::directory("freezer", &c.cgroup()).map(|(dir, _)| dir.join("freezer.state"));
    let v2 =
        cgroup::hierarchies().into_iter().find(|h| h.v2).map(|h| h.mount.join(c.id()).join("cgroup.freeze"));
    let state =
        |path: Option<std::path::PathBuf>| fs::read_to_string(path?).ok().map(|s| s.trim().to_owned());
    let (v1, v2) = (state(v1), state(v2));
    assert!(v1.as_deref() == Some("FROZEN") || v2.as_deref() == Some("1"), "{v1:?} {v2:?}");
    c.resume().ok();
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn the_disabled_cgroup_manager_makes_no_cgroup() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "100"]).remove("/linux/cgroupsPath").remove("/linux/resources");
    });
    let pid_file = c.bundle().join("pid");
    let words = ["--cgroup-manager", "disabled", "run", "--detach", "--pid-file", pid_file.to_str().unwrap()];
    let run = scene.dhow(words).args(["--bundle", c.bundle().to_str().unwrap(), c.id()]).run();
    if !dhow_integration::command::is_dhow() && run.code != 0 {
        machine::skip("this runtime has no --cgroup-manager");
        return;
    }
    run.ok();
    let made = cgroup::named_after(scene.tag());
    c.delete_force().ok();
    assert!(made.is_empty(), "{made:?}");
    scene.is_clean();
}

/// config-linux.md, "Cgroup ownership": root of a user namespace that sees its cgroups as their
/// root, writable, manages them.
#[test]
fn the_containers_root_owns_a_cgroup_that_it_may_write_to() {
    let only_v2 = cgroup::hierarchies().iter().all(|h| h.v2);
    skip_unless!(only_v2, "cgroup v1 cannot be delegated to a user");
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let container = |options: &[&str], more: &[(&str, &str)]| {
        scene.container(|c| {
            c.user_namespace(100_000, 65_536).without_mount("/sys/fs/cgroup");
            c.mount("/sys/fs/cgroup", "cgroup", "cgroup", options);
            for (key, value) in more {
                c.set("/annotations", json!({ *key: value }));
            }
            c.payload(&["mkdir", "/sys/fs/cgroup/mine", "--", "cgroup", "--", "sleep", "100"]);
        })
    };
    container(&["rw"], &[]).run_with(&["-d"]).run().ok();
    let read_only = container(&["ro"], &[]);
    read_only.up().until_it_says("EROFS");
    let delegated = container(&["rw"], &[("run.oci.delegate-cgroup", "its/own")]);
    delegated.up().until_it_says("0::/its/own");
    let limits = cgroup::hierarchies()[0].mount.join(delegated.cgroup().trim_start_matches('/'));
    let owner = |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap());
    assert_eq!(owner(&limits.join("cgroup.procs")), 100_000);
    assert_eq!(owner(&limits.join("its/own/cgroup.subtree_control")), 100_000);
    assert_eq!(owner(&limits.join("cgroup.max.depth")), 0, "limits stay the host's");
    delegated.exec(&["/payload", "exit", "0"]).ok();
    for c in [&read_only, &delegated] {
        c.delete_force().ok();
    }
}

#[test]
fn a_cgroup_is_delegated_on_v2_alone() {
    skip_unless!(cgroup::hierarchies().iter().any(|h| !h.v2), "the machine has cgroup v2 alone");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/annotations", json!({ "run.oci.delegate-cgroup": "x" })).payload(&["exit", "0"]);
    });
    c.create().fails(&["run.oci.delegate-cgroup", "cgroup v2"]);
    scene.is_clean();
}
