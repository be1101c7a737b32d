//! What runc's own suite found (integration/conformance.sh), without the suite.

use dhow_integration::Scene;
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_container_may_join_the_user_namespace_of_another() {
    let scene = Scene::new();
    let first = scene.container(|c| {
        c.payload(&["sleep", "1000"]).user_namespace(100_000, 65536);
    });
    first.up();
    let path = format!("/proc/{}/ns/user", first.pid());
    let second = scene.container(|c| {
        c.payload(&["echo", "joined"]).namespace("user", Some(&path));
    });
    // The container's root, as the one whose namespace it is has it mapped.
    std::os::unix::fs::chown(second.rootfs(), Some(100_000), Some(100_000)).unwrap();
    second.run().ok().says("joined");
}

#[test]
fn a_created_container_holds_no_fd_of_the_host() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "1000"]);
    c.create().ok();
    let fds = format!("/proc/{}/fd", c.pid());
    for entry in fs::read_dir(&fds).unwrap().flatten() {
        let number: i32 = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let socket = target.to_string_lossy().starts_with("socket:");
        assert!(number < 3 || socket, "fd {number} is {}", target.display());
    }
}

#[test]
fn a_create_container_hook_begins_in_the_rootfs() {
    let scene = Scene::new();
    let seen = scene.dir().join("seen");
    let c = scene.container(|c| {
        c.hook("createContainer", &format!("ls ./payload > {}", seen.display()));
    });
    c.run().ok();
    assert_eq!(fs::read_to_string(&seen).unwrap(), "./payload\n");
}

#[test]
fn a_start_container_hook_has_the_payloads_environment() {
    let scene = Scene::new();
    let c = scene
        .container(|c| {
            let hook = json!({ "path": "/bin/sh", "args": ["sh", "-c", "test \"$ONE\" = two && test -n \"$HOME\""] });
            c.push("/hooks/startContainer", hook).push("/process/env", "ONE=two");
        })
        .with_busybox();
    c.run().ok();
}

#[test]
fn a_tmpfs_in_a_new_place_is_for_everyone() {
    let scene = Scene::new();
    let c = scene
        .container(|c| {
            c.writable()
                .mount("/new/place", "tmpfs", "tmpfs", &["nosuid"])
                .mount("/old", "tmpfs", "tmpfs", &["nosuid"])
                .args(&["/bin/busybox", "stat", "-c", "%a", "/new/place", "/old"]);
        })
        .with_busybox();
    fs::create_dir(c.rootfs().join("old")).unwrap();
    fs::set_permissions(c.rootfs().join("old"), fs::Permissions::from_mode(0o710)).unwrap();
    c.run().ok().says("1777\n710");
}

#[test]
fn a_pidfd_goes_to_whoever_asks() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "1000"]);
    let path = scene.dir().join("pidfd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    c.create_with(&["--pidfd-socket", path.to_str().unwrap()]).ok();
    let (stream, _) = listener.accept().unwrap();
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut data = [0_u8; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut data)];
    let message = nix::sys::socket::recvmsg::<()>(
        std::os::fd::AsRawFd::as_raw_fd(&stream),
        &mut parts,
        Some(&mut space),
        nix::sys::socket::MsgFlags::empty(),
    )
    .unwrap();
    let fds = message.cmsgs().unwrap().find_map(|message| match message {
        nix::sys::socket::ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fds.unwrap()[0])).unwrap();
    assert!(info.contains(&format!("Pid:\t{}\n", c.pid())), "{info}");
}

#[test]
fn a_stopped_container_has_no_processes() {
    let scene = Scene::new();
    let c = scene.payload(&["sleep", "1000"]);
    c.up();
    c.kill("KILL").ok();
    c.until("stopped");
    c.command(&["ps", "--format", "json"]).run().ok().says("[]");
}
