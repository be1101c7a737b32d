//! `diff`, `commit` and `cp`: what a container has changed, and files in and out of it.

use dhow_integration::image::{self, Layer};
use dhow_integration::{Outcome, Runner, Scene, eventually, machine, skip_unless};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn import(scene: &Scene, more: &[Layer]) {
    let archive = scene.dir().join("image.tar");
    let layers = [&[image::base(scene.payload_program())], more].concat();
    image::save(
        &archive,
        "test",
        &layers,
        &json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": {"a": "b"}}),
    );
    scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
}

fn id(scene: &Scene) -> String {
    format!("{}-c", scene.tag())
}

/// Runs a script in a new container, which stays, stopped.
fn after(scene: &Scene, image: &str, script: &str) -> Outcome {
    scene.dhow(["run", "--keep", "--image", image, &id(scene), "--", "sh", "-c", script]).run().ok()
}

fn up(scene: &Scene, command: &[&str]) {
    scene.dhow(["run", "--detach", "--image", "test", &id(scene), "--"]).args(command).run().ok();
}

fn delete(scene: &Scene) {
    scene.dhow(["delete", "--force", &id(scene)]).run().ok();
    scene.is_clean();
}

fn diff(scene: &Scene) -> Vec<String> {
    let seen = scene.dhow(["diff", &id(scene)]).run().ok();
    seen.stdout.lines().map(str::to_owned).collect()
}

fn cp(scene: &Scene, words: &[&str]) -> Runner {
    let named = words.iter().map(|word| word.replace("ID:", &format!("{}:", id(scene))));
    scene.dhow(["cp"]).args(named)
}

/// A layer with something to change, and a mark of its own.
fn changeable() -> Layer {
    Layer::default()
        .file("etc/motd", "old")
        .file("etc/gone", "x")
        .directory("d")
        .file("d/one", "1")
        .directory("d/sub")
        .file("d/sub/two", "2")
        .directory("same")
        .file("same/file", "x")
}

#[test]
fn added_changed_and_deleted() {
    let scene = Scene::new();
    import(&scene, &[changeable()]);
    after(&scene, "test", "true");
    // What dhow makes for mounts is no change of the container's.
    assert_eq!(diff(&scene), Vec::<String>::new());
    delete(&scene);
    let script = "echo new >/etc/motd; rm /etc/gone; mkdir /new; echo >/new/f; rm -r /d; mkdir -p /d/sub; echo >/d/three; \
        echo >/tmpfile; rm /tmpfile; cat /same/file >/dev/null; chmod 700 /same; mv /bin/tar /bin/moved; \
        touch \"$(printf 'odd\\033[31mname')\"";
    after(&scene, "test", script);
    let expected = [
        "C /bin",
        "A /bin/moved",
        "D /bin/tar",
        "C /d",
        "D /d/one",
        "C /d/sub",
        "D /d/sub/two",
        "A /d/three",
        "C /etc",
        "D /etc/gone",
        "C /etc/motd",
        "A /new",
        "A /new/f",
        "A /odd\u{fffd}[31mname",
        "C /same",
    ];
    let mut seen = diff(&scene);
    seen.sort_by(|one, other| one[2..].cmp(&other[2..]));
    assert_eq!(seen, expected);
    let json = scene.dhow(["diff", "--format", "json", &id(&scene)]).run().ok().json();
    assert!(json.as_array().unwrap().contains(&json!({"kind": "D", "path": "/etc/gone"})), "{json}");
    delete(&scene);
    scene.payload(&["exit", "0"]).run_kept(&["--keep"]).ok();
    scene.dhow(["diff", &format!("{}-0", scene.tag())]).run().fails(&["not made from an image"]);
    scene.dhow(["diff", "nonsense"]).run().fails(&["does not exist"]);
    scene.dhow(["delete", &format!("{}-0", scene.tag())]).run().ok();
}

#[test]
fn a_commit_is_an_image() {
    let scene = Scene::new();
    import(&scene, &[changeable()]);
    let script = "echo new >/etc/motd; rm /etc/gone; rm -r /d; mkdir /d; echo 3 >/d/three; mkdir -p /l; echo x >/l/a; \
        ln /l/a /l/b; ln -s ../x /l/s; chmod 4755 /l/a; mkdir -m 1777 /sticky; \
        n=a; while [ ${#n} -lt 140 ]; do n=a$n; done; echo long >/l/$n";
    after(&scene, "test", script);
    let before = scene.dhow(["image", "history", "test"]).run().ok().stdout.lines().count();
    let changes = [
        "-c",
        "CMD [\"/bin/sh\", \"-c\", \"echo from the commit\"]",
        "-c",
        "ENV X=\"1 2\"",
        "-c",
        "USER app",
        "-c",
        "WORKDIR /l",
        "-c",
        "LABEL c=d",
        "-c",
        "EXPOSE 80",
    ];
    let name = id(&scene);
    let commit =
        scene.dhow(["commit", "-m", "message", "-a", "someone"]).args(changes).args([&name, "made:2"]);
    let seen = commit.run().ok();
    assert!(seen.stdout.starts_with("sha256:"), "{seen}");
    delete(&scene);
    let image = scene.dhow(["image", "inspect", "made:2"]).run().ok().json();
    let config = &image["config"]["config"];
    assert_eq!(config["Labels"], json!({"a": "b", "c": "d"}));
    assert_eq!(config["Env"], json!(["PATH=/bin", "X=1 2"]));
    assert_eq!(config["ExposedPorts"], json!({"80/tcp": {}}));
    let history = image["config"]["history"].as_array().unwrap();
    assert_eq!(history.len(), before);
    assert_eq!(
        (&history[before - 1]["comment"], &history[before - 1]["author"]),
        (&json!("message"), &json!("someone"))
    );
    scene.dhow(["image", "verify", "made:2"]).run().ok();
    scene.dhow(["run", "--image", "made:2", &name]).run().ok().says("from the commit");
    let look = "id -u; pwd; cat /etc/motd; ls /etc/gone /d/one 2>/dev/null; cat /d/three; stat -c '%a %h' /l/a /l/b; \
        ls -l /l/s; stat -c %a /sticky; ls /l | wc -l; cat /l/aaa*; ls /d";
    let seen = scene.dhow(["run", "--image", "made:2", &name, "--", "sh", "-c", look]).run().ok();
    let lines: Vec<&str> = seen.stdout.lines().collect();
    assert_eq!(lines[..6], ["7", "/l", "new", "3", "4755 2", "4755 2"], "{seen}");
    assert!(lines[6].ends_with("/l/s -> ../x"), "{seen}");
    assert_eq!(lines[7..], ["1777", "4", "long", "three"], "{seen}");
    // Of a commit another can be made, of a running container too.
    scene.dhow(["run", "-d", "--image", "made:2", &name, "--", "sleep", "1000"]).run().ok();
    scene.dhow(["exec", "-u", "0", &name, "touch", "/again"]).run().ok();
    scene.dhow(["commit", &name, "made:3"]).run().ok();
    assert_eq!(scene.dhow(["state", &name]).run().ok().json()["status"], "running");
    delete(&scene);
    scene.dhow(["run", "--image", "made:3", &name, "--", "ls", "/again"]).run().ok();
    scene.is_clean();
}

#[test]
fn extended_attributes_go_with_the_commit() {
    let scene = Scene::new();
    import(&scene, &[]);
    after(&scene, "test", "echo x >/f; mkdir /d");
    let upper = scene.state_dir().join("@images/containers").join(id(&scene)).join("upper");
    let set = |path: PathBuf, key: &str, value: &[u8]| {
        rustix::fs::setxattr(path, key, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    // cap_net_raw=ep, as setcap(8) writes it.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set(upper.join("f"), "security.capability", &capability);
    set(upper.join("d"), "trusted.some", b"value\n=1");
    scene.dhow(["commit", &id(&scene), "made"]).run().ok();
    delete(&scene);
    // Whatever a layer is kept as: seen through a container of the new image.
    after(&scene, "made", "true");
    let copy = scene.dir().join("copy");
    cp(&scene, &["-a", "ID:/f", copy.to_str().unwrap()]).run().ok();
    let mut value = [0_u8; 64];
    let length = rustix::fs::getxattr(&copy, "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], capability);
    let archive = cp(&scene, &["ID:/d", "-"]).run().ok().stdout;
    assert!(archive.contains("SCHILY.xattr.trusted.some=value\n=1\n"));
    delete(&scene);
}

#[test]
fn a_commit_that_cannot_be_made_leaves_no_image() {
    let scene = Scene::new();
    import(&scene, &[]);
    after(&scene, "test", "echo x >/.wh.trick");
    scene.dhow(["commit", &id(&scene), "made"]).run().fails(&[".wh."]);
    scene.dhow(["commit", "-c", "RUN x", &id(&scene), "made"]).run().fails(&["--change", "RUN x"]);
    scene.dhow(["commit", &id(&scene), "BAD NAME"]).run().fails(&["name"]);
    assert!(!scene.dhow(["image", "ls"]).run().ok().stdout.contains("made"));
    assert_eq!(fs::read_dir(scene.state_dir().join("@images/tmp")).unwrap().count(), 0);
    delete(&scene);
}

#[test]
fn files_go_in_and_out() {
    let scene = Scene::new();
    import(&scene, &[changeable()]);
    let host = scene.dir().join("host");
    fs::create_dir_all(host.join("tree/deep")).unwrap();
    fs::write(host.join("file"), "from the host").unwrap();
    fs::write(host.join("tree/deep/f"), "deep").unwrap();
    fs::set_permissions(host.join("file"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("deep/f", host.join("tree/link")).unwrap();
    let at = |path: &str| host.join(path).to_str().unwrap().to_owned();
    // The same of a running container, through its mounts, and of a stopped one.
    for stopped in [false, true] {
        up(&scene, &["sleep", "1000"]);
        let name = id(&scene);
        if stopped {
            scene.dhow(["kill", &name, "KILL"]).run().ok();
            eventually("it stops", || scene.dhow(["state", &name]).run().ok().json()["status"] == "stopped");
        }
        cp(&scene, &[&at("file"), "ID:/etc"]).run().ok();
        cp(&scene, &[&at("file"), "ID:/etc/renamed"]).run().ok();
        cp(&scene, &[&at("tree"), "ID:/new"]).run().ok();
        cp(&scene, &[&at("tree/."), "ID:/d"]).run().ok();
        cp(&scene, &[&at("file"), "ID:/etc/motd"]).run().ok();
        cp(&scene, &["ID:/etc/motd", &at("out")]).run().ok();
        assert_eq!(fs::read_to_string(host.join("out")).unwrap(), "from the host");
        cp(&scene, &["ID:/new", &at("back")]).run().ok();
        assert_eq!(fs::read_to_string(host.join("back/deep/f")).unwrap(), "deep");
        assert_eq!(fs::read_link(host.join("back/link")).unwrap(), PathBuf::from("deep/f"));
        cp(&scene, &["ID:/d/.", &at("back")]).run().ok();
        assert_eq!(fs::read_to_string(host.join("back/one")).unwrap(), "1");
        cp(&scene, &["ID:/etc/renamed", &at("mode")]).run().ok();
        let mode = fs::metadata(host.join("mode")).unwrap().mode() & 0o7777;
        assert_eq!(mode, 0o750, "a set-id bit is not given to another owner");
        cp(&scene, &["-a", &at("file"), "ID:/etc/kept"]).run().ok();
        cp(&scene, &["-a", "ID:/etc/kept", &at("kept")]).run().ok();
        assert_eq!(fs::metadata(host.join("kept")).unwrap().mode() & 0o7777, 0o4750);
        cp(&scene, &["ID:/new/link", &at("as-link")]).run().ok();
        assert!(fs::symlink_metadata(host.join("as-link")).unwrap().is_symlink());
        cp(&scene, &["-L", "ID:/new/link", &at("followed")]).run().ok();
        assert_eq!(fs::read_to_string(host.join("followed")).unwrap(), "deep");
        for (words, says) in [
            (&["ID:/nonsense", "/tmp/x"][..], &["/nonsense", "no such file"][..]),
            (&["/nonsense", "ID:/x"], &["/nonsense", "no such file"]),
            (&[&at("tree"), "ID:/etc/motd"], &["/etc/motd", "place of a file"]),
            (&[&at("file"), "ID:/no/such/place"], &["/no/such/place", "no such file"]),
            (&[&at("file"), "ID:/nothing/"], &["/nothing/", "no such directory"]),
            (&["ID:/a", "ID:/b"], &["both"]),
            (&["a", "b"], &["neither"]),
        ] {
            cp(&scene, words).run().fails(says);
        }
        delete(&scene);
        for made in ["out", "back", "mode", "kept", "as-link", "followed"] {
            let path = host.join(made);
            let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        }
    }
}

#[test]
fn a_container_that_is_ending_is_waited_for() {
    skip_unless!(machine::has_program("nsenter"), "nsenter is not there");
    let scene = Scene::new();
    import(&scene, &[]);
    up(&scene, &["sh", "-c", "echo made >/made; exec sleep 1000"]);
    eventually("the file is there", || cp(&scene, &["ID:/made", "-"]).run().code == 0);
    let pid = scene.dhow(["state", &id(&scene)]).run().ok().json()["pid"].as_i64().unwrap();
    // A process of its pid namespace that nobody reaps: the init's end waits for it, its root gone already.
    let nsenter = format!("nsenter --pid=/proc/{pid}/ns/pid sleep 1000 & echo $!; wait");
    let mut holder = Runner::new("/bin/sh").args(["-c", &nsenter]).spawn();
    let children =
        |pid: &str| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    eventually("it is there", || !children(holder.stdout().trim()).trim().is_empty());
    let parent: i32 = holder.stdout().trim().parse().unwrap();
    let signal = |pid: i32, signal| kill(Pid::from_raw(pid), signal).unwrap();
    signal(parent, Signal::SIGSTOP);
    signal(i32::try_from(pid).unwrap(), Signal::SIGKILL);
    eventually("its root is gone", || fs::read_link(format!("/proc/{pid}/root")).is_err());
    let to = scene.dir().join("made");
    let mut copying = cp(&scene, &["ID:/made", to.to_str().unwrap()]).spawn();
    std::thread::sleep(Duration::from_millis(200));
    assert!(!copying.has_ended(), "{}", copying.stderr());
    signal(parent, Signal::SIGCONT);
    copying.finish().ok();
    assert_eq!(fs::read_to_string(to).unwrap(), "made\n");
    holder.finish();
    delete(&scene);
}

#[test]
fn archives_go_in_and_out() {
    let scene = Scene::new();
    import(&scene, &[changeable()]);
    up(&scene, &["sleep", "1000"]);
    let tar = scene.dir().join("d.tar");
    let script = |line: &str| {
        let dhow = format!(
            "{} --root {}",
            dhow_integration::command::binary().display(),
            scene.state_dir().display()
        );
        let line =
            line.replace("DHOW", &dhow).replace("ID", &id(&scene)).replace("TAR", tar.to_str().unwrap());
        Runner::new("/bin/sh").args(["-ec", &line]).run()
    };
    let seen = script("DHOW cp ID:/d - >TAR; tar tf TAR").ok();
    assert_eq!(seen.stdout, "d/\nd/one\nd/sub/\nd/sub/two\n");
    script("DHOW cp - ID:/etc <TAR; DHOW exec ID cat /etc/d/sub/two").ok().says("2");
    script("DHOW cp - ID:/nothing <TAR").fails(&["/nothing"]);
    script("echo nonsense | DHOW cp - ID:/etc").fails(&["archive"]);
    delete(&scene);
}

/// CVE-2018-15664 and its like: links of the container's that lead to the host.
#[test]
fn links_of_a_container_stay_inside() {
    let scene = Scene::new();
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "secret").unwrap();
    let target = outside.to_str().unwrap();
    import(
        &scene,
        &[Layer::default()
            .symlink("absolute", target)
            .symlink("upwards", &format!("../../../../../..{target}"))
            .symlink("etc/file", &format!("{target}/victim"))
            .directory("tree")
            .symlink("tree/link", target)],
    );
    let file = scene.dir().join("file");
    fs::write(&file, "written").unwrap();
    let path = file.to_str().unwrap();
    for stopped in [false, true] {
        up(&scene, &["sleep", "1000"]);
        if stopped {
            scene.dhow(["kill", &id(&scene), "KILL"]).run().ok();
            let name = id(&scene);
            eventually("it stops", || scene.dhow(["state", &name]).run().ok().json()["status"] == "stopped");
        }
        for place in ["ID:/absolute/victim", "ID:/upwards/victim", "ID:/proc/1/root/x", "ID:/proc/self/cwd/y"]
        {
            cp(&scene, &[place, "-"]).run().exits(1);
            let _ = cp(&scene, &[path, place]).run();
        }
        cp(&scene, &["-L", "ID:/etc/file", "-"]).run().exits(1);
        let _ = cp(&scene, &[path, "ID:/etc/file"]).run();
        // A tree that has a link where the other side has a directory.
        let tree = scene.dir().join("tree");
        fs::create_dir_all(tree.join("link")).unwrap();
        fs::write(tree.join("link/victim"), "written").unwrap();
        cp(&scene, &[tree.to_str().unwrap(), "ID:/"]).run().fails(&["link", "symlink"]);
        // And out: what is a link stays one.
        let out = scene.dir().join("out");
        cp(&scene, &["ID:/tree", out.to_str().unwrap()]).run().ok();
        assert!(fs::symlink_metadata(out.join("link")).unwrap().is_symlink());
        fs::remove_dir_all(out).unwrap();
        // An archive whose entries go up, or through a link.
        for entry in [
            Layer::default().file("../../outside/victim", "written"),
            Layer::default().symlink("l", target).file("l/victim", "written"),
            Layer::default().file("tree/link/victim", "written"),
        ] {
            let archive = scene.dir().join("evil.tar");
            image::write(&archive, &entry);
            let input = fs::File::open(archive).unwrap();
            cp(&scene, &["-", "ID:/"]).stdin(input).run().exits(1);
        }
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "secret");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        delete(&scene);
    }
}

/// A container that has ended still has its volumes, as a running one does.
#[test]
fn volumes_of_a_stopped_container_are_seen() {
    let scene = Scene::new();
    let outside = scene.dir().join("outside");
    let data = scene.dir().join("data");
    for place in [&outside, &data, &scene.dir().join("fixed"), &scene.dir().join("gone")] {
        fs::create_dir(place).unwrap();
    }
    fs::write(outside.join("victim"), "secret").unwrap();
    fs::write(data.join("there"), "of the host").unwrap();
    symlink(&outside, data.join("absolute")).unwrap();
    symlink("../../../../../../../../../etc", data.join("upwards")).unwrap();
    import(&scene, &[Layer::default().directory("own").file("own/image", "of the image")]);
    let file = scene.dir().join("file");
    fs::write(&file, "written").unwrap();
    let path = file.to_str().unwrap();
    let volume = |from: &str, rest: &str| format!("{}:{rest}", scene.dir().join(from).display());
    let options = ["run", "--detach", "--image", "test", "-v", "/own", "--tmpfs", "/memory"];
    let run = scene
        .dhow(options)
        .args(["-v", &volume("data", "/data"), "-v", &volume("fixed", "/fixed:ro")])
        .args(["-v", &volume("gone", "/etc/gone"), &id(&scene), "--", "sh", "-c"])
        .args(["echo x >/own/x; echo m >/memory/m; exec sleep 1000"]);
    run.run().ok();
    eventually("it has written", || cp(&scene, &["ID:/memory/m", "-"]).run().stdout.contains("m\n"));
    let name = id(&scene);
    for stopped in [false, true] {
        if stopped {
            scene.dhow(["kill", &name, "KILL"]).run().ok();
            eventually("it stops", || scene.dhow(["state", &name]).run().ok().json()["status"] == "stopped");
        }
        let out = scene.dir().join("out");
        for (from, text) in
            [("ID:/data/there", "of the host"), ("ID:/own/image", "of the image"), ("ID:/own/x", "x\n")]
        {
            cp(&scene, &[from, out.to_str().unwrap()]).run().ok();
            assert_eq!(fs::read_to_string(&out).unwrap(), text, "{from} {stopped}");
        }
        cp(&scene, &[path, "ID:/data/new"]).run().ok();
        assert_eq!(fs::read_to_string(data.join("new")).unwrap(), "written");
        fs::remove_file(data.join("new")).unwrap();
        cp(&scene, &[path, "ID:/fixed"]).run().fails(&["read-only file system"]);
        cp(&scene, &["ID:/data/absolute/victim", "-"]).run().exits(1);
        let _ = cp(&scene, &[path, "ID:/data/absolute/victim"]).run();
        // Upwards is the container's own root.
        cp(&scene, &[path, "ID:/data/upwards/here"]).run().ok();
        cp(&scene, &["ID:/etc/here", out.to_str().unwrap()]).run().ok();
        assert!(!fs::exists("/etc/here").unwrap());
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "secret");
        assert_eq!(cp(&scene, &["ID:/memory/m", out.to_str().unwrap()]).run().code == 0, !stopped);
    }
    fs::remove_dir(scene.dir().join("gone")).unwrap();
    let warned = cp(&scene, &["ID:/etc/gone/.", "-"]).run().ok();
    assert!(warned.stderr.contains("not there any more"), "{warned}");
    // Nothing of it is left on the host, nor in the writable layer.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(scene.tag()), "{mounts}");
    assert_eq!(diff(&scene), ["C /etc", "A /etc/here"]);
    delete(&scene);
    // A root that is read-only stays so.
    scene.dhow(["run", "--keep", "--read-only", "--image", "test", &name, "--", "true"]).run().ok();
    cp(&scene, &[path, "ID:/etc/x"]).run().fails(&["read-only file system"]);
    cp(&scene, &["ID:/etc/passwd", "-"]).run().ok();
    delete(&scene);
}

/// CVE-2018-15664 itself: the payload swaps a directory for a link while files are copied.
#[test]
fn a_parent_that_is_swapped_leads_nowhere() {
    let scene = Scene::new();
    let outside = scene.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "secret").unwrap();
    import(&scene, &[]);
    // Not a directory of the image: overlayfs does not rename those.
    let script = format!(
        "mkdir -p /race/swap; echo own >/race/swap/victim; exec /payload flip /race/swap {}",
        outside.display()
    );
    up(&scene, &["sh", "-c", &script]);
    let file = scene.dir().join("file");
    fs::write(&file, "written").unwrap();
    let out = scene.dir().join("out");
    let end = Instant::now() + Duration::from_secs(3);
    let (mut inside, mut tries) = (0, 0);
    while Instant::now() < end {
        tries += 1;
        let _ = cp(&scene, &[file.to_str().unwrap(), "ID:/race/swap/victim"]).run();
        if cp(&scene, &["ID:/race/swap/victim", out.to_str().unwrap()]).run().code == 0 {
            inside += 1;
            assert_ne!(fs::read_to_string(&out).unwrap(), "secret");
        }
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "secret");
    }
    assert!(inside > 0 && tries > inside, "the race was not run: {inside} of {tries}");
    delete(&scene);
}

#[test]
fn a_plain_bundles_files_too() {
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.payload(&["exit", "0"]).writable();
    });
    c.run_kept(&["--keep"]).ok();
    let file = scene.dir().join("file");
    fs::write(&file, "x").unwrap();
    scene.dhow(["cp", file.to_str().unwrap(), &format!("{}:/tmp/in", c.id())]).run().ok();
    assert_eq!(fs::read_to_string(c.rootfs().join("tmp/in")).unwrap(), "x");
    let _: &Value = &c.state();
    c.delete().ok();
}
