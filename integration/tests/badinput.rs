//! Bad input: one error of one line, with the words that engines and people need, a non-zero
//! exit, and nothing left.

use dhow_integration::{Config, Container, Outcome, Scene, is_dhow};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;

/// create and run must both fail with `words` and leave nothing.
#[track_caller]
fn refused(scene: &Scene, c: &Container, words: &[&str]) -> Outcome {
    c.create().fails(words);
    scene.is_clean();
    let outcome = c.run().fails(words);
    scene.is_clean();
    c.command(&["state"]).run().fails(&["does not exist"]);
    outcome
}

#[test]
fn a_missing_bundle_or_config() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    fs::remove_file(c.bundle().join("config.json")).unwrap();
    refused(&scene, &c, &["config.json", "no such file or directory"]);
    scene.dhow(["create", "--bundle", "/no/such/bundle", c.id()]).run().fails(&["/no/such/bundle"]);
    scene.is_clean();
}

#[test]
fn a_broken_config_is_shown_by_line_and_column() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    c.write_config("{\n  \"ociVersion\": \"1.0.2\",\n  \"process\": { \"args\": [1 2] }\n}\n");
    refused(&scene, &c, &["config.json", "line 3", "column"]);
    c.write_config("");
    refused(&scene, &c, &["config.json"]);
    c.write_config("[]");
    refused(&scene, &c, &[]);
    c.write_config("{\"ociVersion\": \"1.0.2\", \"process\": \"a string\"}");
    refused(&scene, &c, &["config.json", "line 1"]);
}

#[test]
fn an_unknown_version() {
    let scene = Scene::new();
    for version in ["2.0.0", "0.2.0", "not-a-version", ""] {
        let c = scene.container(|c| {
            c.set("/ociVersion", version);
        });
        // The other runtimes look at the first number at most.
        if is_dhow() || version == "2.0.0" {
            refused(&scene, &c, &["ociVersion"]);
        }
    }
    let c = scene.container(|c| {
        c.remove("/ociVersion");
    });
    if is_dhow() {
        refused(&scene, &c, &["ociVersion"]);
    }
}

#[test]
fn every_current_version_is_taken() {
    let scene = Scene::new();
    for version in ["1.0.0", "1.0.2-dev", "1.0.2", "1.1.0", "1.1.0-rc.1", "1.2.0", "1.2.1", "1.3.0"] {
        let c = scene.container(|c| {
            c.set("/ociVersion", version);
        });
        if is_dhow() {
            c.run().ok();
        }
    }
}

#[test]
fn a_root_that_is_not_there() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/root/path", "nowhere");
    });
    refused(&scene, &c, &["nowhere", "no such file or directory"]);
    let c = scene.container(|c| {
        c.remove("/root");
    });
    refused(&scene, &c, &["root"]);
    let c = scene.container(|c| {
        c.set("/root/path", "file");
    });
    fs::write(c.bundle().join("file"), "").unwrap();
    refused(&scene, &c, &["not a directory"]);
}

#[test]
fn an_id_that_is_not_valid() {
    let scene = Scene::new();
    let c = scene.payload(&["exit", "0"]);
    let long = "x".repeat(2000);
    for id in ["", ".", "..", "a/b", "../escape", "a b", "a\nb", "é", &long] {
        let words = ["create", "--bundle", c.bundle().to_str().unwrap(), id];
        let outcome = scene.dhow(words).run();
        if is_dhow() || !matches!(id, "a b" | "a\nb" | "é") {
            outcome.fails(&["id"]);
        }
    }
    assert!(!scene.dir().join("escape").exists());
    scene.is_clean();
}

#[test]
fn an_id_that_exists() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    c.up();
    c.create().fails(&[c.id(), "exist"]);
    c.run().fails(&[c.id(), "exist"]);
    assert_eq!(c.status(), "running", "the one that was there is not harmed");
}

#[test]
fn a_command_that_is_not_there() {
    let scene = Scene::new();
    let argv = |args: &'static [&'static str]| {
        scene.container(|c| {
            c.args(args);
        })
    };
    refused(&scene, &argv(&["/no/such/command"]), &["/no/such/command", "no such file or directory"]);
    refused(&scene, &argv(&["not-in-path"]), &["not-in-path", "executable file not found"]);
    refused(&scene, &argv(&["/payload/below-a-file"]), &["not a directory"]);
    if is_dhow() {
        refused(&scene, &argv(&[""]), &["args"]);
        refused(&scene, &argv(&[]), &["args"]);
    }
    let dangling = argv(&["/link"]);
    symlink("/nowhere", dangling.rootfs().join("link")).unwrap();
    refused(&scene, &dangling, &["/link", "no such file or directory"]);
}

#[test]
fn a_command_that_may_not_be_run() {
    let scene = Scene::new();
    let argv = |args: &'static [&'static str]| {
        scene.container(|c| {
            c.args(args);
        })
    };
    let c = argv(&["/text"]);
    c.file("/text", "text", 0o644);
    refused(&scene, &c, &["/text", "permission denied"]);
    let c = argv(&["/directory"]);
    fs::create_dir(c.rootfs().join("directory")).unwrap();
    let outcome = refused(&scene, &c, &["/directory"]);
    let text = outcome.stderr.to_lowercase();
    assert!(text.contains("is a directory") || text.contains("permission denied") || !is_dhow(), "{outcome}");
}

/// `create` itself must fail, and not a container that dies without a word.
#[test]
fn a_command_that_cannot_be_run_is_explained_by_create() {
    let scene = Scene::new();
    let argv = |name: &'static str| {
        scene.container(|c| {
            c.args(&[name]);
        })
    };
    if !is_dhow() {
        dhow_integration::machine::skip("other runtimes find this out at start only");
        return;
    }
    let c = argv("/script");
    c.file("/script", "#!/no/such/interpreter -x\n", 0o755);
    refused(&scene, &c, &["/script", "/no/such/interpreter", "no such file or directory"]);
    let c = argv("/crlf");
    c.file("/crlf", "#!/payload\r\necho\r\n", 0o755);
    refused(&scene, &c, &["/crlf", "no such file or directory"]);
    scene.is_clean();
}

/// What the kernel may have learnt to run by binfmt_misc is not refused before it has said so.
#[test]
fn a_format_that_the_kernel_does_not_know_is_explained_by_start() {
    let scene = Scene::new();
    for content in ["neither a script nor a program", ""] {
        let c = scene.container(|c| {
            c.args(&["/foreign"]);
        });
        c.file("/foreign", content, 0o755);
        c.run().fails(&["/foreign", "exec format error"]);
        scene.is_clean();
    }
}

#[test]
fn a_working_directory_that_is_none() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.set("/process/cwd", "/payload");
    });
    refused(&scene, &c, &["/payload", "not a directory"]);
    let c = scene.container(|c| {
        c.set("/process/cwd", "relative");
    });
    refused(&scene, &c, &["cwd"]);
}

/// What is not carried out is an error that names the field.
#[test]
fn fields_that_are_not_carried_out_are_named() {
    if !is_dhow() {
        dhow_integration::machine::skip("other runtimes ignore what they do not know");
        return;
    }
    let scene = Scene::new();
    type Edit = fn(&mut Config) -> &mut Config;
    let cases: [(&str, Edit); 3] = [
        ("solaris", |c| c.set("/solaris", json!({ "milestone": "x" }))),
        ("windows", |c| c.set("/windows", json!({ "layerFolders": ["x"] }))),
        ("vm", |c| c.set("/vm", json!({ "kernel": { "path": "/x" } }))),
    ];
    for (field, edit) in cases {
        let c = scene.container(|c| {
            edit(c);
        });
        refused(&scene, &c, &[field]);
    }
}

#[test]
fn unknown_fields_are_no_error() {
    let scene = Scene::new();
    // The specification: implementations must ignore what they do not know.
    let c = scene.container(|c| {
        c.set("/fromTheFuture", json!({ "a": 1 })).set("/linux/fromTheFuture", true);
    });
    c.run().ok();
}

#[test]
fn an_unknown_capability_is_no_error() {
    let scene = Scene::new();
    // Configs are written for newer kernels than the one at hand; engines expect a warning at most.
    let c = scene.container(|c| {
        c.push("/process/capabilities/bounding", "CAP_FROM_THE_FUTURE").payload(&["caps"]);
    });
    assert_eq!(c.run().ok().line("bounding="), "CAP_KILL,CAP_NET_BIND_SERVICE,CAP_AUDIT_WRITE");
}

#[test]
fn values_that_make_no_sense_are_named() {
    let scene = Scene::new();
    type Edit = fn(&mut Config) -> &mut Config;
    let cases: [(&[&str], Edit); 7] = [
        (&["namespace"], |c| c.push("/linux/namespaces", json!({ "type": "nothing" }))),
        (&["rootfsPropagation"], |c| c.set("/linux/rootfsPropagation", "sideways")),
        (&["oom"], |c| c.set("/process/oomScoreAdj", 5000)),
        (&["sysctl"], |c| c.set("/linux/sysctl", json!({ "no.such.key": "1" }))),
        (&["cgroupsPath"], |c| c.set("/linux/cgroupsPath", "/../../escape")),
        (&["linux.devices"], |c| c.push("/linux/devices", json!({ "path": "/dev/x", "type": "q" }))),
        (&["destination"], |c| {
            c.push("/mounts", json!({ "destination": "", "type": "tmpfs", "source": "t" }))
        }),
    ];
    for (words, edit) in cases {
        let c = scene.container(|c| {
            edit(c);
        });
        if is_dhow() {
            refused(&scene, &c, words);
        }
    }
}

#[test]
fn the_error_is_in_the_log_file_too() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.args(&["/no/such/command"]);
    });
    let log = scene.dir().join("log.json");
    let global = ["--log", log.to_str().unwrap(), "--log-format", "json", "create", "--bundle"];
    let outcome = scene.dhow(global).args([c.bundle().to_str().unwrap(), c.id()]).run().fails(&[]);
    let text = fs::read_to_string(&log).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    let message = last["msg"].as_str().unwrap();
    assert!(message.contains("no such file or directory") || !is_dhow(), "{message}");
    let time = last["time"].as_str().unwrap();
    assert!(time.len() >= 20 && time.as_bytes()[10] == b'T', "RFC 3339: {time}");
    if is_dhow() {
        assert!(outcome.stderr.contains(message), "stderr says the same: {outcome}");
        assert_eq!(
            text.lines().filter(|l| l.contains("\"error\"")).count(),
            1,
            "one failure is told once: {text}"
        );
    }
    scene.is_clean();
}

#[test]
fn a_pid_file_that_cannot_be_written() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "100"]);
    let words =
        ["create", "--pid-file", "/no/such/dir/pid", "--bundle", c.bundle().to_str().unwrap(), c.id()];
    scene.dhow(words).run().fails(&["/no/such/dir/pid", "no such file or directory"]);
    scene.is_clean();
}

/// A rename would put a file into the place of the device, for everybody.
#[test]
fn a_pid_file_that_is_a_device_stays_one() {
    use std::os::unix::fs::FileTypeExt;
    let scene = Scene::new();
    let null = scene.dir().join("null");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    let number = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod(&null, nix::sys::stat::SFlag::S_IFCHR, mode, number).unwrap();
    let c = scene.payload(&["exit", "0"]);
    let run = |place: &std::path::Path| {
        let words =
            ["run", "--pid-file", place.to_str().unwrap(), "--bundle", c.bundle().to_str().unwrap(), c.id()];
        scene.dhow(words).run()
    };
    run(&null).ok();
    assert!(fs::symlink_metadata(&null).unwrap().file_type().is_char_device());
    run(scene.dir()).fails(&["write the pid file", "is a directory"]);
    scene.is_clean();
}

/// Every later command would refuse to read the record, `delete` too.
#[test]
fn annotations_beyond_what_a_record_holds_are_refused() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["sleep", "100"]).set("/annotations", json!({ "long": "x".repeat(2 << 20) }));
    });
    c.create().fails(&["annotations", "too large"]);
    scene.is_clean();
}
