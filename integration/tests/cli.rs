//! The command line: the forms that engines use, in any order; help, version, and mistakes.

use dhow_integration::{Runner, Scene, command::binary, is_dhow};
use std::fs;

#[test]
fn options_may_stand_before_and_after_the_id() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    let bundle = c.bundle().to_str().unwrap().to_owned();
    let forms: [Vec<&str>; 4] = [
        vec!["create", "--bundle", &bundle, c.id()],
        vec!["create", c.id(), "--bundle", &bundle],
        vec!["create", "-b", &bundle, c.id()],
        vec!["create", "--no-pivot", c.id(), "--no-new-keyring", "--bundle", &bundle],
    ];
    for words in forms {
        // Go's flag package stops at the first word that is no option.
        if is_dhow() || words.last() == Some(&c.id()) {
            scene.dhow(&words).run().ok();
            scene.dhow(["delete", "--force", c.id()]).run().ok();
        }
    }
    scene.is_clean();
}

#[test]
fn values_may_be_joined_by_an_equals_sign() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    let log = scene.dir().join("log");
    let words = [
        format!("--root={}", scene.state_dir().display()),
        format!("--log={}", log.display()),
        "--log-format=json".to_owned(),
        "create".to_owned(),
        format!("--bundle={}", c.bundle().display()),
        format!("--pid-file={}", scene.dir().join("pid").display()),
        c.id().to_owned(),
    ];
    Runner::new(binary()).args(&words).run().ok();
    assert!(scene.dir().join("pid").exists());
    scene.dhow(["delete", "--force=true", c.id()]).run().ok();
    scene.is_clean();
}

#[test]
fn a_single_dash_is_enough_for_a_long_option() {
    if !is_dhow() {
        dhow_integration::machine::skip("only Go's programs and dhow take this form");
        return;
    }
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let words = ["run", "-no-subreaper", "-bundle", c.bundle().to_str().unwrap(), "-keep", c.id()];
    scene.dhow(words).run().ok();
    scene.dhow(["delete", "-force", c.id()]).run().ok();
    scene.is_clean();
}

#[test]
fn global_options_may_stand_after_the_command() {
    if !is_dhow() {
        dhow_integration::machine::skip("other runtimes want global options first");
        return;
    }
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let words = ["list", "--root", scene.state_dir().to_str().unwrap(), "--format", "json"];
    Runner::new(binary()).args(words).run().ok();
    let words = [
        "run",
        "--root",
        scene.state_dir().to_str().unwrap(),
        "--bundle",
        c.bundle().to_str().unwrap(),
        c.id(),
    ];
    Runner::new(binary()).args(words).run().ok();
    scene.is_clean();
}

#[test]
fn every_global_option_of_the_contract_is_taken() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    fs::create_dir(scene.state_dir()).unwrap();
    let both = ["--log", log.to_str().unwrap(), "--log-format", "text", "--debug"];
    scene.dhow(both).args(["list"]).run().ok();
    if is_dhow() {
        for words in [
            ["--log-level", "debug"].as_slice(),
            &["--log-level=warning"],
            &["--rootless=false"],
            &["--rootless", "auto"],
            &["--cgroup-manager", "cgroupfs"],
            &["--cgroup-manager=disabled"],
        ] {
            scene.dhow(words).args(["list"]).run().ok();
        }
    }
}

#[test]
fn the_version_is_what_engines_parse() {
    let seen = Runner::new(binary()).args(["--version"]).run().ok();
    let first = seen.stdout.lines().next().unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    // docker: NAME version X; go-runc wants runc's name, or takes any.
    assert!(words.len() >= 3 && words[1] == "version", "{seen}");
    assert!(words[2].starts_with(|c: char| c.is_ascii_digit()), "{seen}");
    for line in ["commit: ", "spec: 1."] {
        assert!(seen.stdout.lines().any(|l| l.starts_with(line)), "{line}: {seen}");
    }
    let short = Runner::new(binary()).args(["-v"]).run();
    assert!(!is_dhow() || short.code == 0, "{short}");
}

#[test]
fn help_is_there_for_every_command() {
    let seen = Runner::new(binary()).args(["--help"]).run().ok();
    let commands = [
        "create", "start", "state", "kill", "delete", "run", "exec", "pause", "resume", "ps", "list", "spec",
        "features",
    ];
    for command in commands {
        assert!(seen.stdout.contains(command), "{command}: {seen}");
        let help = Runner::new(binary()).args([command, "--help"]).run().ok();
        assert!(help.stdout.contains(command), "{help}");
    }
}

#[test]
fn a_call_without_a_command_shows_what_there_is() {
    if !is_dhow() {
        dhow_integration::machine::skip("of dhow's own words");
        return;
    }
    for (words, name, command) in [
        (&[][..], "dhow ", "checkpoint"),
        (&["--root", "/nowhere"], "dhow ", "checkpoint"),
        (&["image"], "dhow image ", "history"),
    ] {
        let seen = Runner::new(binary()).args(words).run();
        assert_eq!((seen.code, seen.stdout.as_str()), (1, ""), "{seen}");
        assert!(seen.stderr.contains(&format!("Usage: {name}")) && seen.stderr.contains(command), "{seen}");
        // Commands that are for dhow's own processes.
        assert!(!seen.stderr.contains("revive"), "{seen}");
    }
    let seen = Runner::new(binary()).args(["image", "lss"]).run();
    assert_eq!(seen.stderr, "dhow: unrecognized subcommand 'lss' (tip: a similar subcommand exists: 'ls')\n");
    let help = Runner::new(binary()).args(["image", "import", "--help"]).run().ok();
    assert!(help.stdout.contains("Usage: dhow image import"), "{help}");
}

#[test]
fn what_is_unknown_is_named() {
    let scene = Scene::new();
    scene.dhow(["no-such-command"]).run().fails(&["no-such-command"]);
    scene.dhow(["list", "--no-such-option"]).run().fails(&["no-such-option"]);
    scene.dhow(["--no-such-option", "list"]).run().fails(&["no-such-option"]);
    scene.dhow(["list", "--format", "no-such-format"]).run().fails(&["no-such-format"]);
}

#[test]
fn missing_and_superfluous_arguments_are_refused() {
    let scene = Scene::new();
    for command in ["create", "start", "state", "kill", "delete", "run", "exec", "pause", "resume", "ps"] {
        scene.dhow([command]).run().fails(&[]);
    }
    let c = scene.payload(&["exit", "0"]);
    scene.dhow(["state", c.id(), "more"]).run().fails(&[]);
    scene.dhow(["create", c.id(), "--bundle"]).run().fails(&[]);
}

#[test]
fn the_log_is_json_when_asked() {
    let scene = Scene::new();
    for format in [["--log-format", "json"].as_slice(), &["--log-format=json"]] {
        let log = scene.dir().join("log");
        let _ = fs::remove_file(&log);
        let outcome =
            scene.dhow(["--log", log.to_str().unwrap()]).args(format).args(["state", "unknown"]).run();
        outcome.fails(&["does not exist"]);
        let text = fs::read_to_string(&log).unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "error");
        assert!(last["time"].is_string());
        assert!(last["msg"].as_str().unwrap().contains("does not exist") || !is_dhow(), "{text}");
    }
}

#[test]
fn a_log_is_appended_to() {
    let scene = Scene::new();
    let log = scene.dir().join("log");
    fs::write(&log, "kept\n").unwrap();
    scene.dhow(["--log", log.to_str().unwrap(), "state", "unknown"]).run().fails(&[]);
    assert!(fs::read_to_string(&log).unwrap().starts_with("kept\n"));
}

#[test]
fn features_is_the_document_of_the_specification() {
    let seen = Runner::new(binary()).args(["features"]).run().ok().json();
    assert!(seen["ociVersionMin"].as_str().unwrap().starts_with("1.0"), "{seen}");
    assert!(seen["ociVersionMax"].as_str().unwrap().starts_with("1."), "{seen}");
    let has = |pointer: &str, value: &str| {
        seen.pointer(pointer).and_then(|v| v.as_array()).is_some_and(|list| list.iter().any(|v| v == value))
    };
    for hook in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        assert!(has("/hooks", hook), "{hook}");
    }
    for namespace in ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"] {
        assert!(has("/linux/namespaces", namespace), "{namespace}");
    }
    assert!(has("/mountOptions", "ro") && has("/linux/capabilities", "CAP_CHOWN"), "{seen}");
}

#[test]
fn spec_writes_a_config_that_runs() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    fs::remove_file(c.bundle().join("config.json")).unwrap();
    Runner::new(binary()).args(["spec"]).cwd(c.bundle()).run().ok();
    let path = c.bundle().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(config["process"]["args"][0], "sh");
    let before = fs::read(&path).unwrap();
    Runner::new(binary()).args(["spec"]).cwd(c.bundle()).run().fails(&["config.json", "exist"]);
    assert_eq!(fs::read(&path).unwrap(), before, "a config that is there is not overwritten");
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = serde_json::json!(["/payload", "echo", "it runs"]);
    c.write_config(&config.to_string());
    c.run().ok().says("it runs");
    scene.is_clean();
}
