//! Every command line in README.md and docs/ is run, so that none of them lies.
//!
//! The lines of a `sh` block are run one after the other by a shell, in one directory for the whole
//! page, with bin/dhow first in PATH. A line that cannot be run here stands in [`NOT_RUN`] with the
//! reason; what a line needs that the page does not make is in [`prepare`].

use dhow_integration::command::{binary, workspace};
use dhow_integration::{Runner, Scene, image, is_dhow, machine, skip_unless};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Beginnings of lines that are not run as they stand, why, and what is run in their place so that the
/// following ones find what they need.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("make build", "this test runs what it has built", "true"),
    ("make demo", "a target of its own, which CI runs", "true"),
    (
        "dhow create --bundle bundle --console-socket",
        "terminal.rs has sockets",
        "dhow create --bundle bundle hello",
    ),
    ("dhow stats hello", "goes on until it is ended", "dhow stats --no-stream hello"),
    (
        "dhow logs -f",
        "as above",
        "dhow logs hello; dhow inspect hello; dhow stop hello; dhow wait hello; dhow delete hello",
    ),
    (
        "dhow run -it",
        "needs a terminal, which terminal.rs has",
        "dhow run --image demo -- sh -c 'echo hello'",
    ),
    ("dhow image pull", "needs a registry, which pull.rs has", "true"),
    ("dhow run -d --image", "cni.rs has networks", "dhow run -d --image demo --memory 64m web -- sleep 100"),
];

/// The lines of the `sh` blocks of a page, and of blocks that are indented by four and begin with
/// dhow, without their remarks.
fn lines(page: &Path) -> Vec<String> {
    let (mut found, mut inside) = (Vec::new(), false);
    for line in fs::read_to_string(page).unwrap().lines() {
        if line.starts_with("```") {
            inside = line == "```sh";
        } else if inside || line.starts_with("    dhow ") {
            let line = line.split(" #").next().unwrap().split("   ").find(|part| !part.is_empty());
            found.extend(line.map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()));
        }
    }
    found
}

fn pages() -> Vec<std::path::PathBuf> {
    let docs = fs::read_dir(workspace().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<_> = docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.push(workspace().join("README.md"));
    pages.sort();
    pages
}

/// The programs and files that the pages take for granted.
fn prepare(scene: &Scene) -> std::path::PathBuf {
    let bin = scene.dir().join("bin");
    fs::create_dir(&bin).unwrap();
    let run = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]});
    let base = image::base(scene.payload_program()).file("etc/motd", "welcome\n");
    image::save(&scene.dir().join("demo.tar"), "demo", &[base], &run);
    fs::write(scene.dir().join("motd"), "hello\n").unwrap();
    let rules = json!([{"names": ["personality", "socketcall"], "action": "SCMP_ACT_ERRNO"}]);
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules});
    let config = json!({"ociVersion": "1.2.0", "linux": {"seccomp": profile}});
    fs::write(scene.dir().join("config.json"), config.to_string()).unwrap();
    // Nobody's root but the scene's, and no terminal: what would wait for one gets none.
    let root = scene.state_dir().display().to_string();
    let dhow = binary().display().to_string();
    let script = format!("#!/bin/sh\nexec {dhow} --root {root} \"$@\"\n");
    for (name, text) in [("dhow", script.as_str()), ("sudo", "#!/bin/sh\nexec \"$@\"\n")] {
        let path = bin.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    bin
}

/// The bundle that `spec` has written, with a payload that ends, or one that stays, on no terminal.
fn payload(scene: &Scene, script: &str) {
    let path = scene.dir().join("bundle/config.json");
    let Ok(text) = fs::read_to_string(&path) else { return };
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["sh", "-c", script]);
    config["linux"]["cgroupsPath"] = json!(format!("/{}-readme", scene.tag()));
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn every_command_line_of_the_documentation_runs() {
    skip_unless!(is_dhow(), "the pages are dhow's");
    skip_unless!(machine::has_controller("memory"), "no mounted hierarchy has the memory controller");
    let (mut run, mut wrong, mut used) = (0, Vec::new(), Vec::new());
    for page in pages() {
        let scene = Scene::new();
        let bin = prepare(&scene);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        for line in lines(&page) {
            let instead = NOT_RUN.iter().find(|(start, ..)| line.starts_with(start));
            used.extend(instead.map(|(start, ..)| *start));
            let words = instead.map_or(line.as_str(), |(_, _, instead)| instead);
            let ends = words.contains("dhow run") && !words.contains("detach");
            payload(&scene, if ends { "echo hello" } else { "trap exit TERM; while :; do sleep 1; done" });
            // A shell that stays would keep what it has begun: each line is one of its own.
            let outcome =
                Runner::new("/bin/sh").args(["-ec", words]).cwd(scene.dir()).env("PATH", &path).run();
            run += 1;
            if outcome.code != 0 {
                wrong.push(format!("{}: {line}\n{outcome}", page.display()));
            }
        }
        let _ = Runner::new("/bin/sh")
            .args(["-c", "dhow delete -f hello; dhow delete -f web"])
            .env("PATH", &path)
            .run();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(run >= 25, "only {run} lines were found");
    for (start, ..) in NOT_RUN {
        assert!(used.contains(start), "no page has a line that begins with {start:?} any more");
    }
}
