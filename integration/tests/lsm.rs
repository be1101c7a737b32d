//! AppArmor and SELinux, where the kernel has them: `make test-vm` boots one with each.

use dhow_integration::{Outcome, Scene, machine, skip_unless};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Whether SELinux is on and has a policy: without one it knows no labels but its own first.
fn has_selinux() -> bool {
    fs::metadata("/sys/fs/selinux/class/file").is_ok()
}

/// A profile that is loaded as long as this lives: all is allowed but writing to one file.
struct Profile<'a> {
    name: String,
    file: std::path::PathBuf,
    scene: &'a Scene,
}

impl<'a> Profile<'a> {
    fn load(scene: &'a Scene, what: &str, denied: &str) -> Profile<'a> {
        let name = format!("{}-{what}", scene.tag());
        let file = scene.dir().join(what);
        let rules = "file, capability, network, unix, mount, umount, pivot_root, signal, ptrace, dbus,";
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n{rules}\ndeny {denied} w,\n}}\n"
        );
        fs::write(&file, text).unwrap();
        let profile = Profile { name, file, scene };
        assert!(profile.parser("-r"));
        profile
    }

    fn parser(&self, how: &str) -> bool {
        let status = Command::new("apparmor_parser").args(["-K", how]).arg(&self.file).status();
        assert!(self.scene.dir().exists());
        status.unwrap().success()
    }
}

impl Drop for Profile<'_> {
    fn drop(&mut self) {
        self.parser("-R");
    }
}

const TRY: &str = "cat /proc/self/attr/current; for f in first second; do \
                   if echo x >/$f; then echo wrote $f; else echo denied $f; fi; done";

#[track_caller]
fn saw(outcome: &Outcome, words: &[&str]) {
    for word in words {
        assert!(outcome.stdout.contains(word), "{word}: {outcome}");
    }
}

#[test]
fn an_apparmor_profile_denies_what_it_denies() {
    skip_unless!(has_apparmor(), "AppArmor is not enabled in this kernel");
    skip_unless!(machine::has_program("apparmor_parser"), "apparmor_parser is not installed");
    let scene = Scene::new();
    let profile = Profile::load(&scene, "init", "/first");
    let other = Profile::load(&scene, "exec", "/second");
    for no_new_privileges in [true, false] {
        let container = |args: &[&str]| {
            let c = scene.container(|c| {
                c.writable().set("/process/apparmorProfile", profile.name.as_str()).args(args);
                c.set("/process/noNewPrivileges", no_new_privileges);
            });
            c.with_busybox()
        };
        let seen = container(&["/bin/sh", "-c", TRY]).run().ok();
        saw(&seen, &[&format!("{} (enforce)", profile.name), "denied first", "wrote second"]);
        let c = container(&["/bin/sleep", "100"]);
        c.up();
        let seen = c.exec(&["/bin/sh", "-c", TRY]).ok();
        saw(&seen, &[&format!("{} (enforce)", profile.name), "denied first", "wrote second"]);
        let seen = c.exec_with(&["--apparmor", &other.name], &["/bin/sh", "-c", TRY]).run().ok();
        saw(&seen, &[&format!("{} (enforce)", other.name), "wrote first", "denied second"]);
        c.exec_with(&["--apparmor", "no-such-profile"], &["/bin/true"]).run().fails(&[
            "no-such-profile",
            "is not loaded",
            "apparmor_parser",
        ]);
        c.delete_force().ok();
    }
    scene.is_clean();
}

#[test]
fn an_apparmor_profile_that_is_not_loaded_is_named() {
    skip_unless!(has_apparmor(), "AppArmor is not enabled in this kernel");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/process/apparmorProfile", "no-such-profile").payload(&["exit", "0"]);
    });
    c.create().fails(&["process.apparmorProfile", "no-such-profile", "is not loaded", "apparmor_parser"]);
    let c = scene.container(|c| {
        c.set("/process/apparmorProfile", "unconfined").payload(&["cat", "/proc/self/attr/current"]);
    });
    assert_eq!(c.run().ok().stdout.trim(), "unconfined");
    scene.is_clean();
}

/// The first of these labels that the policy knows.
fn known(labels: &[&'static str]) -> Option<&'static str> {
    labels.iter().find(|label| fs::write("/sys/fs/selinux/context", label).is_ok()).copied()
}

#[test]
fn selinux_labels_are_those_of_the_config() {
    skip_unless!(has_selinux(), "SELinux is not enabled in this kernel, or has no policy");
    let process = known(&["system_u:system_r:container_t:s0", "system_u:system_r:unconfined_t:s0"]);
    let file = known(&["system_u:object_r:container_file_t:s0", "system_u:object_r:tmp_t:s0"]);
    let (Some(process), Some(file)) = (process, file) else {
        machine::skip("SELinux's policy has neither label");
        return;
    };
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.mount("/labelled", "tmpfs", "tmpfs", &[]).set("/linux/mountLabel", file);
        c.set("/process/selinuxLabel", process).set("/linux/maskedPaths", json!([]));
        c.payload(&[
            "cat",
            "/proc/self/attr/current",
            "--",
            "cat",
            "/proc/self/mounts",
            "--",
            "sleep",
            "100",
        ]);
    });
    c.up().until_it_says("/labelled ");
    let said = c.output();
    assert!(said.starts_with(process), "{said}");
    let mount = said.lines().find(|line| line.contains(" /labelled ")).unwrap();
    assert!(
        mount.contains(&format!("context={file}")) || mount.contains(&format!("context=\"{file}\"")),
        "{mount}"
    );
    let seen = c.exec(&["/payload", "cat", "/proc/self/attr/current"]).ok();
    assert!(seen.stdout.starts_with(process), "{seen}");
    c.exec_with(&["--process-label", "no:such:label:s0"], &["/payload", "pid"])
        .run()
        .fails(&["process.selinuxLabel", "no:such:label:s0"]);
    c.delete_force().ok();
    scene.is_clean();
}

#[test]
fn labels_are_refused_where_the_kernel_has_no_such_module() {
    let scene = Scene::new();
    if !has_apparmor() {
        let c = scene.container(|c| {
            c.set("/process/apparmorProfile", "some-profile");
        });
        c.create().fails(&["process.apparmorProfile", "AppArmor is not enabled in the kernel"]);
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        let c = scene.container(|c| {
            c.set("/process/selinuxLabel", "system_u:system_r:container_t:s0");
        });
        c.create().fails(&["process.selinuxLabel", "SELinux is not enabled in the kernel"]);
    }
    scene.is_clean();
}
