//! A container of a user who has no rights at all.

use dhow_integration::command::{Outcome, Runner, binary};
use dhow_integration::{Scene, machine, skip_unless};
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
