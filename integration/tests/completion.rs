//! Completions and help, as a shell and a person get them.

use dhow_integration::command::binary;
use dhow_integration::{Runner, Scene, is_dhow, machine, skip_unless};
use std::fs;

/// What bash proposes for a command line that is being typed.
fn bash(scene: &Scene, typed: &[&str]) -> Vec<String> {
    let script = scene.dir().join("dhow.bash");
    fs::write(&script, scene.dhow(["completion", "bash"]).run().ok().stdout).unwrap();
    let words = typed.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let path = binary().parent().unwrap().display().to_string();
    let line = format!(
        "PATH={path}:$PATH; source {}; COMP_WORDS=({words}); COMP_CWORD={}; _dhow; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        typed.len() - 1
    );
    let outcome = Runner::new("bash").args(["--norc", "-c", &line]).run().ok();
    assert_eq!(outcome.stderr, "", "{outcome}");
    outcome.stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_containers() {
    skip_unless!(is_dhow(), "other runtimes have completions of their own");
    skip_unless!(machine::has_program("bash"), "bash is not there");
    let scene = Scene::new();
    assert_eq!(bash(&scene, &["dhow", "che"]), ["check", "checkpoint"]);
    assert_eq!(bash(&scene, &["dhow", "--root", "/x", "resu"]), ["resume"]);
    assert_eq!(bash(&scene, &["dhow", "run", "--restar"]), ["--restart"]);
    assert_eq!(bash(&scene, &["dhow", "image", "pul"]), ["pull"]);
    assert_eq!(bash(&scene, &["dhow", "completion", "f"]), ["fish"]);
    let root = scene.state_dir().to_str().unwrap().to_owned();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    assert_eq!(bash(&scene, &["dhow", "--root", &root, "delete", &c.id()[..5]]), [c.id()]);
    let file = scene.dir().join("process.json");
    fs::write(&file, "{}").unwrap();
    let typed = file.display().to_string();
    assert_eq!(bash(&scene, &["dhow", "exec", "--process", &typed[..typed.len() - 3]]), [typed]);
}

#[test]
fn zsh_and_fish_take_theirs() {
    skip_unless!(is_dhow(), "other runtimes have completions of their own");
    let scene = Scene::new();
    for shell in ["zsh", "fish"] {
        let script = scene.dir().join(shell);
        fs::write(&script, scene.dhow(["completion", shell]).run().ok().stdout).unwrap();
        match machine::has_program(shell) {
            true => drop(Runner::new(shell).args(["-n", script.to_str().unwrap()]).run().ok()),
            false => machine::skip(&format!("{shell} is not there: its script is not read")),
        }
    }
    scene.dhow(["completion", "tcsh"]).run().fails(&["tcsh"]);
}

#[test]
fn help_has_topics_and_commands() {
    skip_unless!(is_dhow(), "other runtimes have a help of their own");
    let scene = Scene::new();
    let help = |words: &[&str]| Runner::new(binary()).args(words.iter().copied()).run().ok().stdout;
    let topics = help(&["help", "topics"]);
    for line in topics.lines().skip(1) {
        let topic = line.split_whitespace().next().unwrap();
        assert!(help(&["help", topic]).len() > 100, "{topic}");
    }
    assert!(help(&["help", "run"]).contains("--bundle"));
    scene.dhow(["help", "no-such-topic"]).run().fails(&["no-such-topic"]);
}
