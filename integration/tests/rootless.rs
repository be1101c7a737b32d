//! A container of a user who has no rights at all.

use dhow_integration::command::{Outcome, Runner, binary};
use dhow_integration::{Scene, cgroup, machine, skip_unless};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

const UID: u32 = 54321;

/// A bundle, a state directory and a copy of dhow that belong to the user.
struct User {
    home: PathBuf,
}

impl User {
    fn new(scene: &Scene) -> User {
        let home = scene.dir().join("home");
        for directory in [home.clone(), home.join("bundle"), home.join("bundle/rootfs")] {
            fs::create_dir(&directory).unwrap();
            chown(&directory, Some(UID), Some(UID)).unwrap();
        }
        fs::copy(scene.payload_program(), home.join("bundle/rootfs/payload")).unwrap();
        fs::copy(binary(), home.join("dhow")).unwrap();
        User { home }
    }

    fn dhow(&self, words: &[&str]) -> Outcome {
        let user = [format!("--reuid={UID}"), format!("--regid={UID}"), "--clear-groups".into()];
        let own = [
            self.home.join("dhow").display().to_string(),
            "--root".into(),
            self.home.join("state").display().to_string(),
        ];
        let words = words.iter().map(|&word| word.to_owned());
        let all: Vec<String> = user.into_iter().chain(own).chain(words).collect();
        Runner::new("setpriv").args(all).cwd(&self.home).run()
    }

    /// `dhow spec --rootless`, with another command and without a terminal.
    fn config(&self, args: &[&str]) {
        let path = self.home.join("bundle/config.json");
        let _ = fs::remove_file(&path);
        self.dhow(&["spec", "--rootless", "--bundle", "bundle"]).ok();
        let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        config["process"]["terminal"] = Value::Bool(false);
        config["process"]["args"] = args.into();
        fs::write(&path, config.to_string()).unwrap();
    }
}

#[test]
fn a_user_without_rights_runs_enters_and_deletes() {
    skip_unless!(machine::has_program("setpriv"), "no setpriv program (util-linux)");
    let scene = Scene::new();
    let user = User::new(&scene);
    user.config(&["/payload", "ids"]);
    let id = format!("{}-rootless", scene.tag());
    let seen = user.dhow(&["run", "--bundle", "bundle", &id]).ok();
    assert!(seen.stdout.contains("uid=0"), "{seen}");
    user.config(&["/payload", "sleep", "100"]);
    user.dhow(&["run", "--detach", "--bundle", "bundle", &id]).ok();
    let inside = user.dhow(&["exec", &id, "/payload", "ids"]).ok();
    assert!(inside.stdout.contains("uid=0"), "{inside}");
    user.dhow(&["exec", &id, "/payload", "exit", "7"]).exits(7);
    let listed = user.dhow(&["list", "--format", "json"]).ok().json();
    assert_eq!(listed[0]["status"], "running");
    user.dhow(&["delete", "--force", &id]).ok();
    assert_eq!(user.dhow(&["list", "--quiet"]).ok().stdout, "");
    scene.is_clean();
}

/// Directories of a user in every hierarchy, as systemd delegates them.
struct Delegated(Vec<PathBuf>);

impl Delegated {
    fn to_user(name: &str) -> Delegated {
        let directories: Vec<_> = cgroup::hierarchies().iter().map(|h| h.mount.join(name)).collect();
        for directory in &directories {
            fs::create_dir(directory).unwrap();
            chown(directory, Some(UID), Some(UID)).unwrap();
        }
        Delegated(directories)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = fs::remove_dir(directory.join("made"));
            let _ = fs::remove_dir(directory);
        }
    }
}

/// CVE-2023-25809: where /sys is the host's, the user's own cgroups could be written from inside.
#[test]
fn cgroups_of_the_user_cannot_be_written_from_inside() {
    skip_unless!(machine::has_program("setpriv"), "no setpriv program (util-linux)");
    let scene = Scene::new();
    let user = User::new(&scene);
    let delegated = Delegated::to_user(&format!("{}-delegated", scene.tag()));
    let made: Vec<String> = delegated.0.iter().map(|d| d.join("made").display().to_string()).collect();
    let mut args = vec!["/payload"];
    for directory in &made {
        args.extend(["mkdir", directory, "--"]);
    }
    args.extend(["exit", "0"]);
    let id = format!("{}-rootless", scene.tag());
    // As `dhow spec --rootless` writes it, and as older tools do.
    for options in [None, Some(["rbind", "nosuid", "noexec", "nodev", "ro"])] {
        user.config(&args);
        if let Some(options) = options {
            let path = user.home.join("bundle/config.json");
            let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let mounts = config["mounts"].as_array_mut().unwrap();
            let sys = mounts.iter_mut().find(|mount| mount["destination"] == "/sys").unwrap();
            assert_eq!(sys["source"], "/sys");
            sys["options"] = options.as_slice().into();
            fs::write(&path, config.to_string()).unwrap();
        }
        let seen = user.dhow(&["run", "--bundle", "bundle", &id]);
        assert_eq!(seen.stdout.matches("! mkdir: EROFS").count(), made.len(), "{options:?}: {seen}");
        assert!(made.iter().all(|directory| !fs::exists(directory).unwrap()), "{options:?}: {seen}");
    }
    drop(delegated);
    scene.is_clean();
}

#[test]
fn more_than_ones_own_id_is_refused_by_name() {
    skip_unless!(machine::has_program("setpriv"), "no setpriv program (util-linux)");
    let scene = Scene::new();
    let user = User::new(&scene);
    user.config(&["/payload", "ids"]);
    let path = user.home.join("bundle/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["linux"]["uidMappings"][0]["hostID"] = 0.into();
    fs::write(&path, config.to_string()).unwrap();
    let id = format!("{}-rootless", scene.tag());
    // The helper refuses what /etc/subuid does not grant, or is not there at all.
    user.dhow(&["run", "--bundle", "bundle", &id]).fails(&["newuidmap"]);
    scene.is_clean();
}
