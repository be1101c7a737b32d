//! Whatever `dhow features` lists is carried out by the kernel, item by item. tests/features.rs of the package
//! shows the reverse: that what is understood is listed.

use dhow_integration::command::binary;
use dhow_integration::machine::{has_namespace, skip};
use dhow_integration::{Config, Container, Runner, Scene, is_dhow, skip_unless};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

fn features() -> Value {
    Runner::new(binary()).args(["features"]).run().ok().json()
}

fn list(features: &Value, pointer: &str) -> Vec<String> {
    let list = features.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("{pointer}"));
    assert!(!list.is_empty(), "{pointer}");
    list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// Runs a container, which must say nothing but what its payload says.
fn runs_silently(c: &Container<'_>, what: &str) {
    let outcome = c.run();
    assert!(outcome.code == 0 && outcome.stderr.is_empty(), "{what}: {outcome}");
}

#[test]
fn every_hook_runs() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let hooks = list(&features(), "/hooks");
    let done = scene.dir().join("done");
    fs::create_dir(&done).unwrap();
    let c = scene.container(|c| {
        c.payload(&["exit", "0"]).bind(&done, "/done", &["rw"]);
        for hook in &hooks {
            match hook.as_str() {
                // The one that runs inside, where there is no shell.
                "startContainer" => {
                    c.push(
                        "/hooks/startContainer",
                        json!({"path": "/payload", "args": ["payload", "mkdir", "/done/startContainer"]}),
                    );
                }
                other => {
                    c.hook(other, &format!("mkdir {}/{other}", done.display()));
                }
            }
        }
    });
    c.run().ok();
    let ran: BTreeSet<String> =
        fs::read_dir(&done).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(ran, hooks.into_iter().collect());
    scene.is_clean();
}

#[test]
fn every_namespace_can_be_asked_for() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    for kind in list(&features(), "/linux/namespaces") {
        let file = match kind.as_str() {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        if !has_namespace(file) {
            skip(&format!("in part: the kernel has no {kind} namespaces"));
            continue;
        }
        let c = scene.container(|c| {
            c.payload(&["readlink", &format!("/proc/self/ns/{file}")]);
            match kind.as_str() {
                "user" => c.user_namespace(100_000, 65536),
                other => c.namespace(other, None),
            };
        });
        let inside = c.run().ok().stdout;
        let here = fs::read_link(format!("/proc/self/ns/{file}")).unwrap();
        let is_one = inside.starts_with(&format!("{file}:["));
        assert!(is_one && inside.trim() != here.to_str().unwrap(), "{kind}: {inside}");
    }
    scene.is_clean();
}

/// A mount with one option, where it makes sense.
fn mount_with(c: &mut Config, option: &str, place: &str, directory: &str) {
    match option {
        "bind" | "rbind" => c.mount(place, "bind", directory, &[option]),
        "copy-symlink" | "src-nofollow" | "dest-nofollow" => {
            c.mount(place, "bind", directory, &["bind", option])
        }
        "idmap" | "ridmap" => {
            let map = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
            c.push(
                "/mounts",
                json!({"destination": place, "type": "bind", "source": directory,
                "options": ["rbind", option], "uidMappings": map, "gidMappings": map}),
            )
        }
        _ => c.mount(place, "tmpfs", "tmpfs", &[option]),
    };
}

#[test]
fn every_mount_option_is_taken_by_a_bind_mount() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let mut options = list(&features(), "/mountOptions");
    options.retain(|option| !option.ends_with("idmap"));
    let source = scene.dir().join("source");
    fs::create_dir(&source).unwrap();
    let c = scene.container(|c| {
        c.payload(&["mounts"]).writable();
        for option in &options {
            c.bind(&source, &format!("/b-{option}"), &[option]);
        }
    });
    let outcome = c.run();
    assert!(outcome.code == 0 && outcome.stderr.is_empty(), "{outcome}");
    let attributes = |option: &str| {
        let line =
            outcome.stdout.lines().find(|line| line.split(' ').nth(4) == Some(&format!("/b-{option}")));
        line.unwrap().split(' ').nth(5).unwrap().to_owned()
    };
    for option in ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"] {
        assert!(attributes(option).split(',').any(|word| word == option), "{option}: {outcome}");
        let r = format!("r{option}");
        assert!(attributes(&r).split(',').any(|word| word == option), "{r}: {outcome}");
    }
    for option in ["strictatime", "rstrictatime"] {
        assert!(!attributes(option).contains("atime"), "{option}: {outcome}");
    }
}

#[test]
fn every_mount_option_is_taken() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let options = list(&features(), "/mountOptions");
    let source = scene.dir().join("source");
    fs::create_dir(&source).unwrap();
    let c = scene.container(|c| {
        c.payload(&["mounts"]).writable();
        for option in &options {
            mount_with(c, option, &format!("/m-{option}"), source.to_str().unwrap());
        }
    });
    let outcome = c.run();
    assert!(outcome.code == 0 && outcome.stderr.is_empty(), "{outcome}");
    for option in &options {
        assert!(outcome.stdout.contains(&format!(" /m-{option} ")), "{option}: {outcome}");
    }
    for option in [
        "ro",
        "nosuid",
        "nodev",
        "noexec",
        "noatime",
        "nodiratime",
        "nosymfollow",
        "sync",
        "dirsync",
        "lazytime",
    ] {
        let line = outcome.stdout.lines().find(|line| line.contains(&format!(" /m-{option} "))).unwrap();
        assert!(line.split([' ', ',']).any(|word| word == option), "{line}");
    }
    // The contrast: a word that nobody knows is the filesystem's, which refuses it.
    scene
        .container(|c| mount_with(c.writable(), "no-such-option", "/m", "/"))
        .create()
        .fails(&["no-such-option"]);
    scene.is_clean();
}

#[test]
fn every_capability_is_known() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let names = list(&features(), "/linux/capabilities");
    let with = |names: &[String]| {
        let names = names.to_vec();
        scene.container(|c| {
            c.set("/process/capabilities", json!({"bounding": names})).set("/process/noNewPrivileges", true);
        })
    };
    let outcome = with(&names).run();
    assert!(!outcome.stderr.contains("unknown"), "{outcome}");
    // The contrast.
    let outcome = with(&["CAP_FLY".to_owned()]).run().ok();
    assert!(outcome.stderr.contains("CAP_FLY"), "{outcome}");
    // All that the kernel has.
    let last: usize = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    assert_eq!(names.len(), last + 1);
    scene.is_clean();
}

/// A container with a seccomp profile that lets everything pass but what `rule` says of a rare syscall.
fn filtered<'s>(scene: &'s Scene, change: impl Fn(&mut Value)) -> Container<'s> {
    let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
    change(&mut profile);
    scene.container(|c| {
        c.set("/linux/seccomp", profile.clone());
    })
}

#[test]
fn every_word_of_seccomp_is_carried_out() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let features = features();
    for action in list(&features, "/linux/seccomp/actions") {
        if action == "SCMP_ACT_NOTIFY" {
            // It needs someone who listens: seccomp.rs has one. Here, that it is asked for.
            filtered(&scene, |p| p["syscalls"][0]["action"] = json!(action))
                .create()
                .fails(&["listenerPath"]);
            continue;
        }
        runs_silently(&filtered(&scene, |p| p["syscalls"][0]["action"] = json!(action)), &action);
    }
    for op in list(&features, "/linux/seccomp/operators") {
        let args = json!([{"index": 0, "value": 1, "valueTwo": 1, "op": op}]);
        runs_silently(&filtered(&scene, |p| p["syscalls"][0]["args"] = args.clone()), &op);
    }
    let archs = list(&features, "/linux/seccomp/archs");
    runs_silently(&filtered(&scene, |p| p["architectures"] = json!(archs)), "archs");
    for flag in list(&features, "/linux/seccomp/supportedFlags") {
        // It is about a listener alone, and left out without one.
        runs_silently(&filtered(&scene, |p| p["flags"] = json!([flag])), &flag);
    }
    // The contrast: a word of each kind that is none.
    filtered(&scene, |p| p["syscalls"][0]["action"] = json!("SCMP_ACT_X")).create().fails(&["SCMP_ACT_X"]);
    let args = json!([{"index": 0, "value": 1, "op": "SCMP_CMP_X"}]);
    filtered(&scene, |p| p["syscalls"][0]["args"] = args.clone()).create().fails(&["SCMP_CMP_X"]);
    filtered(&scene, |p| p["architectures"] = json!(["SCMP_ARCH_X"])).create().fails(&["SCMP_ARCH_X"]);
    filtered(&scene, |p| p["flags"] = json!(["SECCOMP_FILTER_FLAG_X"]))
        .create()
        .fails(&["SECCOMP_FILTER_FLAG_X"]);
    scene.is_clean();
}

#[test]
fn every_memory_policy_is_set() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    skip_unless!(fs::exists("/proc/self/numa_maps").unwrap(), "the kernel has no NUMA (CONFIG_NUMA)");
    let scene = Scene::new();
    let features = features();
    let run = |policy: Value| {
        let c = scene.container(|c| {
            c.set("/linux/memoryPolicy", policy.clone());
        });
        let outcome = c.run();
        // Younger than the oldest kernel that dhow runs on, and then it is said so.
        let is_newer =
            policy["mode"] == "MPOL_WEIGHTED_INTERLEAVE" && outcome.stderr.contains("invalid argument");
        assert!(outcome.code == 0 && outcome.stderr.is_empty() || is_newer, "{policy}: {outcome}");
    };
    for mode in list(&features, "/linux/memoryPolicy/modes") {
        match mode.as_str() {
            "MPOL_DEFAULT" | "MPOL_LOCAL" => run(json!({"mode": mode})),
            _ => run(json!({"mode": mode, "nodes": "0"})),
        }
    }
    for flag in list(&features, "/linux/memoryPolicy/flags") {
        run(json!({"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}));
    }
    scene.is_clean();
}

#[test]
fn what_is_switched_on_is_there_and_what_is_off_is_refused() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let features = features();
    let is_on = |pointer: &str| {
        features.pointer(pointer).and_then(Value::as_bool).unwrap_or_else(|| panic!("{pointer}"))
    };
    let refused = |pointer: &str, value: Value, words: &[&str]| {
        scene
            .container(|c| {
                c.set(pointer, value);
            })
            .create()
            .fails(words);
    };
    // Of what this machine may not have, the error shows that dhow would do it.
    for (switch, pointer, value, words) in [
        ("/linux/apparmor/enabled", "/process/apparmorProfile", json!("no-such-profile"), "AppArmor"),
        ("/linux/selinux/enabled", "/process/selinuxLabel", json!("no:such:label:s0"), "SELinux"),
        (
            "/linux/cgroup/rdma",
            "/linux/resources/rdma",
            json!({"no_such_device": {"hcaHandles": 3}}),
            "no_such_device",
        ),
        ("/linux/netDevices/enabled", "/linux/netDevices", json!({"no-such-dev0": {}}), "no-such-dev0"),
    ] {
        assert!(is_on(switch), "{switch}");
        refused(pointer, value, &[words]);
    }
    for word in ["enabled", "schemata", "monitoring"] {
        assert!(is_on(&format!("/linux/intelRdt/{word}")), "{word}");
    }
    // Where resctrl is mounted, there is no class of that name.
    refused("/linux/intelRdt", json!({"closID": "no-such-class"}), &["linux.intelRdt"]);
    for kind in ["v1", "v2", "systemd", "systemdUser"] {
        // cgroups.rs and the machine of `make test-vm` have them.
        assert!(is_on(&format!("/linux/cgroup/{kind}")), "{kind}");
    }
    assert!(is_on("/linux/mountExtensions/idmap/enabled") && is_on("/linux/seccomp/enabled"));
    // Versions: both ends are taken, and what lies beyond is not.
    for (version, fits) in [("/ociVersionMin", true), ("/ociVersionMax", true)] {
        let version = features.pointer(version).unwrap().clone();
        let c = scene.container(|c| {
            c.set("/ociVersion", version.clone());
        });
        assert_eq!(c.run().code == 0, fits, "{version}");
    }
    refused("/ociVersion", json!("2.0.0"), &["ociVersion"]);
    scene.is_clean();
}

#[test]
fn every_annotation_that_is_called_unsafe_is_kept_from_images() {
    skip_unless!(is_dhow(), "the list is dhow's own");
    let scene = Scene::new();
    let names = list(&features(), "/potentiallyUnsafeConfigAnnotations");
    let labels: serde_json::Map<String, Value> = names
        .iter()
        .map(|name| (format!("{name}{}", if name.ends_with('.') { "X" } else { "" }), json!("1")))
        .collect();
    let archive = scene.dir().join("image.tar");
    let base = dhow_integration::image::base(scene.payload_program());
    dhow_integration::image::save(&archive, "evil", &[base], &json!({"Cmd": ["/payload"], "Labels": labels}));
    scene.dhow(["image", "import", archive.to_str().unwrap()]).run().ok();
    let bundle = scene.dir().join("evil");
    scene.dhow(["bundle", "evil", bundle.to_str().unwrap()]).run().ok();
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
    for (name, _) in config["annotations"].as_object().unwrap() {
        let is_unsafe = names.iter().any(|unsafe_one| {
            name == unsafe_one || unsafe_one.ends_with('.') && name.starts_with(unsafe_one)
        });
        // dhow's own, with the image's name in it.
        assert!(!is_unsafe || name == "org.dhow.image.name" && config["annotations"][name] != "1", "{name}");
    }
    scene.is_clean();
}
