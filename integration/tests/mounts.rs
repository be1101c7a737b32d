//! Mounts that need more than a mount call: sources that only the host's root reaches, sources in
//! the container itself, symlinks at either end, and what is made read-only at the end.

use dhow_integration::{Scene, machine, skip_unless};
use serde_json::json;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A directory that only the host's root may enter, with a file in it.
fn closed(scene: &Scene, name: &str) -> std::path::PathBuf {
    let closed = scene.dir().join(name);
    fs::create_dir_all(closed.join("dir")).unwrap();
    fs::write(closed.join("dir/file"), name).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    closed.join("dir")
}

#[test]
fn a_user_namespace_gets_sources_that_only_the_hosts_root_reaches() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let (one, two) = (closed(&scene, "one"), closed(&scene, "two"));
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65_536)
            .bind(&one, "/one", &["bind"])
            .bind(&two, "/two", &["rbind", "ro"])
            .payload(&["cat", "/one/file", "--", "cat", "/two/file", "--", "write", "/two/new", "x"]);
    });
    c.run().exits(1).says("onetwo! write: EROFS");
}

/// What is mounted inside must not spread to the host, whose mount the source comes from.
#[test]
fn mounts_made_in_a_source_stay_inside() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let source = scene.dir().join("shared");
    fs::create_dir_all(source.join("below")).unwrap();
    let script = r#"
        mount --bind "$1" "$1" && mount --make-shared "$1"
        "$2" --root "$3" run --bundle "$4" "$5" </dev/null
        grep -c " $1/below " /proc/self/mountinfo
    "#;
    let c = scene.container(|c| {
        c.user_namespace(100_000, 65_536)
            .bind(&source, "/shared", &["rbind"])
            .set("/process/capabilities/effective", json!(["CAP_SYS_ADMIN"]))
            .set("/process/capabilities/permitted", json!(["CAP_SYS_ADMIN"]))
            .set("/process/capabilities/bounding", json!(["CAP_SYS_ADMIN"]))
            .payload(&["mount-tmpfs", "/shared/below", "--", "echo", "mounted"]);
    });
    let outcome = dhow_integration::Runner::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", source.to_str().unwrap()])
        .args([dhow_integration::command::binary().to_str().unwrap(), scene.state_dir().to_str().unwrap()])
        .args([c.bundle().to_str().unwrap(), c.id()])
        .run();
    assert_eq!(outcome.stdout, "mounted\n0\n", "{outcome}");
}

#[test]
fn a_source_in_the_rootfs_shows_the_mounts_made_before() {
    let scene = Scene::new();
    for user in [false, true] {
        let host = closed(&scene, if user { "u" } else { "p" });
        let c = scene.container(|c| {
            if user {
                c.user_namespace(100_000, 65_536);
            }
            // The directory that the container will have as its rootfs.
            let rootfs = scene.dir().join(format!("b{}/rootfs", usize::from(user)));
            c.bind(&host, "/mnt", &["bind"])
                .bind(&rootfs.join("mnt"), "/again", &["rbind"])
                .bind(&rootfs.join("mnt"), rootfs.join("named").to_str().unwrap(), &["rbind"])
                .payload(&["cat", "/again/file", "--", "cat", "/named/file"]);
        });
        c.run().ok().says(if user { "uu" } else { "pp" });
    }
}

/// The image is not to be trusted with the source either: it may have put a symlink there.
#[test]
fn a_source_in_the_rootfs_cannot_lead_out_of_it() {
    let scene = Scene::new();
    let secret = closed(&scene, "secret");
    let c = scene.container(|c| {
        let rootfs = scene.dir().join("b0/rootfs");
        c.bind(&rootfs.join("trap"), "/seen", &["bind"]).payload(&["ls", "/seen"]);
    });
    symlink(&secret, c.rootfs().join("trap")).unwrap();
    c.create().fails(&["bind source", "no such file"]);
    scene.is_clean();
}

/// The parent maps the owners for an init that may not, in mounts that only the init has.
#[test]
fn a_source_in_the_rootfs_can_be_idmapped() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    for (n, user) in [false, true].into_iter().enumerate() {
        let source = scene.dir().join(format!("owned{n}"));
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "").unwrap();
        let shown = if user { 100_007 } else { 7 };
        let map = json!([{ "containerID": 0, "hostID": shown, "size": 1 }]);
        let c = scene.container(|c| {
            if user {
                c.user_namespace(100_000, 65_536);
            }
            let inside = scene.dir().join(format!("b{n}/rootfs/mnt"));
            c.bind(&source, "/mnt", &["bind"])
                .push(
                    "/mounts",
                    json!({ "destination": "/mapped", "source": inside, "options": ["rbind", "idmap"],
                            "uidMappings": map, "gidMappings": map }),
                )
                .payload(&["stat", "/mapped/file"]);
        });
        let seen = c.run().ok();
        assert_eq!((seen.field("uid"), seen.field("gid")), ("7", "7"), "{seen}");
    }
}

#[test]
fn a_read_only_tmpfs_takes_mounts_below_it() {
    let scene = Scene::new();
    let source = closed(&scene, "source");
    let c = scene.container(|c| {
        c.mount("/conf", "tmpfs", "tmpfs", &["ro"]).bind(&source, "/conf/deep/dir", &["bind"]);
        let dev = c.0["mounts"].as_array_mut().unwrap().iter_mut().find(|m| m["destination"] == "/dev");
        dev.unwrap()["options"].as_array_mut().unwrap().push(json!("ro"));
        c.payload(&["cat", "/conf/deep/dir/file", "--", "stat", "/dev/null", "--", "touch", "/dev/x"]);
    });
    let seen = c.run().exits(1);
    assert!(seen.stdout.starts_with("source/dev/null char"), "{seen}");
    assert!(seen.stdout.ends_with("! touch: EROFS\n"), "{seen}");
}

/// Options of crun's, which podman passes on.
#[test]
fn symlinks_at_either_end_are_followed_copied_or_kept() {
    let scene = Scene::new();
    let (file, link) = (scene.dir().join("file"), scene.dir().join("link"));
    fs::write(&file, "the file").unwrap();
    symlink("file", &link).unwrap();
    let run = |options: &[&str], verbs: &[&str]| {
        scene.container(|c| {
            c.bind(&link, "/target", options).payload(verbs);
        })
    };
    run(&["bind"], &["cat", "/target"]).run().ok().says("the file");
    run(&["bind", "copy-symlink"], &["readlink", "/target"]).run().ok().says("file");
    let there = run(&["bind", "copy-symlink"], &["readlink", "/target"]);
    symlink("file", there.rootfs().join("target")).unwrap();
    there.run().ok().says("file");
    let other = run(&["bind", "copy-symlink"], &["readlink", "/target"]);
    symlink("elsewhere", other.rootfs().join("target")).unwrap();
    other.create().fails(&["mounts[", "symlink"]);
    let kept = run(&["bind", "dest-nofollow"], &["cat", "/target"]);
    symlink("nowhere", kept.rootfs().join("target")).unwrap();
    kept.run().ok().says("the file");
    let both = run(&["bind", "dest-nofollow", "src-nofollow"], &["readlink", "/target"]);
    symlink("nowhere", both.rootfs().join("target")).unwrap();
    both.run().ok().says("file");
    run(&["bind", "copy-symlink", "src-nofollow"], &["exit", "0"])
        .create()
        .fails(&["copy-symlink", "excludes"]);
    scene.is_clean();
}

#[test]
fn owners_can_be_mapped_by_an_option() {
    skip_unless!(machine::has_namespace("user"), "the kernel has no user namespaces");
    let scene = Scene::new();
    let source = closed(&scene, "source");
    let run = |option: &str, user: bool| {
        scene.container(|c| {
            if user {
                c.user_namespace(100_000, 65_536);
            }
            c.bind(&source, "/d", &["bind", option]).payload(&["stat", "/d/file"]);
        })
    };
    let seen = run("idmap=uids=0-1000-1;gids=0-2000-1", false).run().ok();
    assert_eq!((seen.field("uid"), seen.field("gid")), ("1000", "2000"), "{seen}");
    let seen = run("idmap=uids=@0-9-1;gids=@0-8-1", true).run().ok();
    assert_eq!((seen.field("uid"), seen.field("gid")), ("9", "8"), "{seen}");
    run("idmap=uids=0-1;gids=0-2000-1", false).create().fails(&["idmap=uids=0-1", "\"0-1\""]);
}
