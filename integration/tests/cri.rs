//! Kubernetes' way: pods and containers by CRI, of containerds whose runtime handler is dhow's shim.
//! The numbers are the fields' numbers in `k8s.io/cri-api`, `runtime/v1/api.proto`.

use dhow_integration::command::workspace;
use dhow_integration::containerd::{CRI_OF_1, CRI_OF_2, Engine, IMAGE, Which, can_be_tried};
use dhow_integration::cri::{self, Client};
use dhow_integration::{Scene, eventually, machine, skip_unless};
use dhow_shim_common::wire::{Message, Writer};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// `NamespaceMode`: of the pod, of the container alone, of the host.
const POD: u32 = 0;
const NODE: u32 = 2;
/// `ContainerState`.
const RUNNING: u64 = 1;
const EXITED: u64 = 2;

/// A containerd, and pods in it.
struct Pods<'s> {
    engine: Engine<'s>,
    client: Client,
}

/// One pod, with what containers made in it name again.
struct Pod {
    id: String,
    config: Writer,
    /// The `NamespaceOption` of its containers.
    namespaces: Writer,
}

impl<'s> Pods<'s> {
    #[track_caller]
    fn new(scene: &'s Scene, which: Which, sandboxer: &str, snapshotter: &str) -> Self {
        let engine = Engine::with_cri(scene, which, sandboxer, snapshotter);
        let client = Client::new(&scene.dir().join("containerd/sock"), scene.dir());
        let pods = Pods { engine, client };
        eventually("CRI answers", || pods.client.try_ask("Version", Writer::new()).is_ok());
        eventually("CRI has seen the image", || {
            pods.engine.ctr(&["image", "ls"]).stdout.contains("io.cri-containerd.image=managed")
        });
        pods
    }

    fn logs(&self) -> PathBuf {
        self.engine.scene.dir().join("pod-logs")
    }

    /// RunPodSandbox.
    #[track_caller]
    fn pod(&self, name: &str, network: u32) -> Pod {
        // The PID namespace of a container is its own: CONTAINER.
        let namespaces = Writer::new().number(1, network);
        self.pod_of(name, &namespaces, namespaces.clone().number(2, 1u32), network == NODE)
    }

    /// RunPodSandbox, with the namespaces of the pod and of its containers.
    #[track_caller]
    fn pod_of(&self, name: &str, own: &Writer, namespaces: Writer, is_on_node: bool) -> Pod {
        let config = self.config(name, own, is_on_node, "kernel.shm_rmid_forced");
        let answer = self.client.ask("RunPodSandbox", Writer::new().message(1, &config).bytes(2, "dhow"));
        Pod { id: Message::read(&answer).unwrap().text(1).to_owned(), config, namespaces }
    }

    /// A `PodSandboxConfig`.
    fn config(&self, name: &str, namespaces: &Writer, is_on_node: bool, sysctl: &str) -> Writer {
        let tag = self.engine.scene.tag();
        let metadata = Writer::new().bytes(1, name).bytes(2, format!("{tag}-{name}")).bytes(3, "default");
        let context = Writer::new().message(1, namespaces);
        let sysctl = Writer::new().bytes(1, sysctl).bytes(2, "1");
        let linux = Writer::new().bytes(1, format!("/{tag}")).message(2, &context).message(3, &sysctl);
        let resolver = Writer::new().bytes(1, "10.9.8.1").bytes(2, "cluster.local").bytes(3, "ndots:5");
        Writer::new()
            .message(1, &metadata)
            .bytes(2, if is_on_node { "" } else { "berth" })
            .bytes(3, self.logs().to_str().unwrap())
            .message(4, &resolver)
            .message(8, &linux)
    }

    /// CreateContainer, of a shell script.
    #[track_caller]
    fn container(&self, pod: &Pod, name: &str, script: &str, resources: &Writer) -> String {
        let context = Writer::new().message(3, &pod.namespaces);
        let linux = Writer::new().message(1, resources).message(2, &context);
        let variable = Writer::new().bytes(1, "CARGO").bytes(2, "spices");
        let config = Writer::new()
            .message(1, &Writer::new().bytes(1, name))
            .message(2, &Writer::new().bytes(1, IMAGE))
            .bytes(3, "/bin/sh")
            .bytes(3, "-c")
            .bytes(3, script)
            .message(6, &variable)
            .bytes(11, format!("{name}.log"))
            .message(15, &linux);
        let request = Writer::new().bytes(1, &pod.id).message(2, &config).message(3, &pod.config);
        let answer = self.client.ask("CreateContainer", request);
        Message::read(&answer).unwrap().text(1).to_owned()
    }

    #[track_caller]
    fn start(&self, id: &str) {
        self.client.ask("StartContainer", Writer::new().bytes(1, id));
    }

    /// `(state, exit code)`.
    #[track_caller]
    fn status(&self, id: &str) -> (u64, u64) {
        let answer = self.client.ask("ContainerStatus", Writer::new().bytes(1, id));
        let status = Message::read(Message::read(&answer).unwrap().bytes(1)).unwrap();
        (status.number(3), status.number(7))
    }

    /// ExecSync: stdout, stderr and the exit code.
    #[track_caller]
    fn exec(&self, id: &str, script: &str) -> (String, String, u64) {
        let request = Writer::new().bytes(1, id).bytes(2, "/bin/sh").bytes(2, "-c").bytes(2, script);
        let answer = self.client.ask("ExecSync", request.number(3, 30u32));
        let answer = Message::read(&answer).unwrap();
        let text = |tag| String::from_utf8_lossy(answer.bytes(tag)).into_owned();
        (text(1), text(2), answer.number(3))
    }

    /// StopContainer and RemoveContainer.
    #[track_caller]
    fn remove(&self, id: &str) {
        self.client.ask("StopContainer", Writer::new().bytes(1, id).number(2, 10u32));
        self.client.ask("RemoveContainer", Writer::new().bytes(1, id));
    }

    #[track_caller]
    fn remove_pod(&self, pod: &Pod) {
        self.client.ask("StopPodSandbox", Writer::new().bytes(1, &pod.id));
        self.client.ask("RemovePodSandbox", Writer::new().bytes(1, &pod.id));
    }
}

macro_rules! needs {
    () => {
        skip_unless!(can_be_tried(), "no containerd, no shim in bin, or not the machine's own cgroup layout");
        skip_unless!(cri::is_there(), "no curl that speaks HTTP/2");
    };
}

/// Tries something with every containerd that is there.
fn with_each(story: impl Fn(Pods<'_>)) {
    for which in Which::ALL {
        if which.is_there() {
            let scene = Scene::new();
            story(Pods::new(&scene, which, "podsandbox", "native"));
        } else {
            eprintln!("no containerd in {} (integration/peers.sh engines)", which.folder().display());
        }
    }
}

/// A process that says something on both outputs, and stays until it is told to go.
const SERVER: &str = "echo one; echo two >&2; exec /payload signal-wait";

#[test]
fn a_pod_runs_its_containers_in_one_shim() {
    needs!();
    with_each(|mut pods| {
        let pod = pods.pod("web", NODE);
        let limit = Writer::new().number(4, 64u64 << 20);
        let server = pods.container(&pod, "server", SERVER, &limit);
        let short = pods.container(&pod, "short", "exit 7", &Writer::new());
        pods.start(&server);
        assert_eq!(pods.status(&server), (RUNNING, 0));
        pods.start(&short);
        eventually("it ends", || pods.status(&short) == (EXITED, 7));
        assert_eq!(pods.engine.shims().len(), 1, "one shim for the pod");

        assert_eq!(
            pods.exec(&server, "echo $CARGO; echo no >&2; exit 9"),
            ("spices\n".into(), "no\n".into(), 9)
        );
        let log = pods.logs().join("server.log");
        eventually("the log has both lines", || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.contains(" stdout F one\n") && text.contains(" stderr F two\n")
        });
        if machine::has_controller("memory") {
            let answer = pods.client.ask("ContainerStats", Writer::new().bytes(1, &server));
            let stats = Message::read(Message::read(&answer).unwrap().bytes(1)).unwrap();
            let memory = Message::read(stats.bytes(3)).unwrap();
            assert!(Message::read(memory.bytes(2)).unwrap().number(1) > 0, "memory in use");
            let request = Writer::new().bytes(1, &server);
            let more = Writer::new().number(4, 96u64 << 20);
            pods.client.ask("UpdateContainerResources", request.message(2, &more));
            let path = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
            let seen = pods.exec(&server, &format!("cat {path} || cat /sys/fs/cgroup/memory.max"));
            assert_eq!(seen.0.trim(), (96u64 << 20).to_string(), "{seen:?}");
        }

        // containerd goes and comes back: the pod does not notice.
        pods.engine.end(Signal::SIGKILL);
        pods.engine.begin();
        eventually("CRI answers", || pods.client.try_ask("Version", Writer::new()).is_ok());
        assert_eq!(pods.status(&server), (RUNNING, 0));
        assert_eq!(pods.exec(&server, "echo still").0, "still\n");
        pods.remove(&short);
        pods.remove(&server);
        pods.remove_pod(&pod);
        pods.engine.finish();
    });
}

/// A network plugin that moves nothing: it tells an address, and notes that it was asked.
const PLUGIN: &str = r#"#!/bin/sh
cat >/dev/null
echo "$CNI_COMMAND $CNI_NETNS" >>"${0%/*}/calls"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.9.8.7/24","interface":0}]}' ;;
esac
"#;

#[test]
fn a_pod_has_its_network_and_goes_when_its_shim_is_killed() {
    needs!();
    with_each(|pods| {
        let cni = give_network(&pods);
        let pod = pods.pod("alone", POD);
        let answer = pods.client.ask("PodSandboxStatus", Writer::new().bytes(1, &pod.id));
        let status = Message::read(Message::read(&answer).unwrap().bytes(1)).unwrap();
        let network = Message::read(status.bytes(5)).unwrap();
        assert_eq!((status.number(3), network.text(1)), (0, "10.9.8.7"), "it is ready, with its address");
        let server = pods.container(&pod, "server", SERVER, &Writer::new());
        pods.start(&server);
        let devices =
            "cat /proc/net/dev | while read name rest; do case $name in *:) echo $name;; esac; done";
        assert_eq!(pods.exec(&server, devices).0.trim(), "lo:");
        assert_eq!(pods.exec(&server, "hostname").0, "berth\n");

        for shim in pods.engine.shims() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), Signal::SIGKILL);
        }
        eventually("the container's end is seen", || pods.status(&server).0 == EXITED);
        pods.remove(&server);
        pods.remove_pod(&pod);
        let calls = fs::read_to_string(cni.join("calls")).unwrap();
        assert!(calls.contains("ADD ") && calls.contains("DEL "), "{calls}");
        pods.engine.finish();
    });
}

/// Puts the plugin in place, and waits until containerd has read its configuration; the folder.
#[track_caller]
fn give_network(pods: &Pods<'_>) -> PathBuf {
    let cni = pods.engine.scene.dir().join("containerd/cni");
    fs::create_dir_all(&cni).unwrap();
    for name in ["loopback", "berth"] {
        fs::write(cni.join(name), PLUGIN).unwrap();
        fs::set_permissions(cni.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let list = r#"{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"berth"}]}"#;
    fs::write(cni.join("10-test.conflist"), list).unwrap();
    eventually("the network is ready", || {
        let answer = pods.client.ask("Status", Writer::new());
        let status = Message::read(&answer).unwrap().message(1);
        let ready = |condition: &[u8]| {
            let condition = Message::read(condition).unwrap();
            condition.text(1) != "NetworkReady" || condition.flag(2)
        };
        status.all(1).all(ready)
    });
    cni
}

/// `sandboxer = "shim"`: there is no image of a pause, and what a pod's containers share is the shim's to make.
#[test]
fn a_pod_can_be_the_shims_own() {
    needs!();
    skip_unless!(Which::Sid.is_there(), "no containerd 2 in the sid folder (integration/peers.sh engines)");
    let scene = Scene::new();
    let mut pods = Pods::new(&scene, Which::Sid, "shim", "native");
    give_network(&pods);
    // What cannot be made leaves nothing.
    let config = pods.config("none", &Writer::new(), false, "kernel.no_such_thing");
    let refused = pods.client.try_ask("RunPodSandbox", Writer::new().message(1, &config).bytes(2, "dhow"));
    assert!(refused.as_ref().is_err_and(|error| error.contains("no_such_thing")), "{refused:?}");
    eventually("its shim has gone", || pods.engine.shims().is_empty());
    // All of them have the pod's PID namespace as well.
    let pod = pods.pod_of("whole", &Writer::new(), Writer::new(), false);
    let state = |pods: &Pods<'_>| {
        let answer = pods.client.ask("PodSandboxStatus", Writer::new().bytes(1, &pod.id).number(2, 1u32));
        let answer = Message::read(&answer).unwrap();
        let info: String = answer.pairs(2).map(|(_, text)| text.to_owned()).collect();
        (answer.message(1).number(3), answer.message(1).message(5).text(1).to_owned(), info)
    };
    let (is_not_ready, address, info) = state(&pods);
    assert_eq!((is_not_ready, address.as_str()), (0, "10.9.8.7"));
    assert!(info.contains("io.containerd.dhow.v2"), "{info}");

    let one = pods.container(&pod, "one", SERVER, &Writer::new());
    let two = pods.container(&pod, "two", SERVER, &Writer::new());
    pods.start(&one);
    pods.start(&two);
    assert_eq!(pods.engine.shims().len(), 1, "one shim for the pod");
    let script = "hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shm_rmid_forced";
    let expected = "berth\nberth\nsearch cluster.local\nnameserver 10.9.8.1\noptions ndots:5\n1\n";
    assert_eq!(pods.exec(&one, script).0, expected);
    pods.exec(&one, "echo shared >/dev/shm/file");
    assert_eq!(pods.exec(&two, "cat /dev/shm/file").0, "shared\n");
    let script =
        "cat /proc/1/cmdline; for n in net ipc uts pid; do ls -l /proc/self/ns/$n /proc/1/ns/$n; done";
    let seen = pods.exec(&two, script).0;
    assert!(seen.starts_with("/pause\0pause\0"), "{seen}");
    let namespaces: Vec<&str> = seen.lines().filter_map(|line| Some(line.split_once("-> ")?.1)).collect();
    assert_eq!(namespaces.len(), 8, "{seen}");
    assert!(namespaces.chunks(2).all(|pair| pair[0] == pair[1]), "{seen}");

    // containerd goes and comes back.
    pods.engine.end(Signal::SIGKILL);
    pods.engine.begin();
    eventually("CRI answers", || pods.client.try_ask("Version", Writer::new()).is_ok());
    assert_eq!(state(&pods).0, 0, "it is ready");
    assert_eq!(pods.exec(&one, "echo still").0, "still\n");
    pods.client.ask("StopContainer", Writer::new().bytes(1, &one).number(2, 10u32));
    assert_eq!(pods.status(&one).0, EXITED);

    // The pause is killed, and with it the rest of its PID namespace.
    nix::sys::signal::kill(pause_of(&pods), Signal::SIGKILL).unwrap();
    eventually("the pod is not ready", || state(&pods).0 == 1);
    eventually("its containers end", || pods.status(&two).0 == EXITED);
    pods.remove_pod(&pod);
    pods.engine.finish();
}

/// The process that holds a pod's namespaces.
#[track_caller]
fn pause_of(pods: &Pods<'_>) -> nix::unistd::Pid {
    let shims = pods.engine.shims();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shims[0])).unwrap();
    let is_pause = |pid: &&str| {
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.starts_with("/pause\0"))
    };
    let pause = children.split_whitespace().find(is_pause).unwrap();
    nix::unistd::Pid::from_raw(pause.parse().unwrap())
}

#[test]
fn a_shim_that_has_its_pod_may_be_killed() {
    needs!();
    skip_unless!(Which::Sid.is_there(), "no containerd 2 in the sid folder (integration/peers.sh engines)");
    let scene = Scene::new();
    let pods = Pods::new(&scene, Which::Sid, "shim", "native");
    give_network(&pods);
    let pod = pods.pod("lost", POD);
    let server = pods.container(&pod, "server", SERVER, &Writer::new());
    pods.start(&server);
    let shim = nix::unistd::Pid::from_raw(pods.engine.shims()[0]);
    nix::sys::signal::kill(shim, Signal::SIGKILL).unwrap();
    eventually("the pod is not ready", || {
        let answer = pods.client.try_ask("PodSandboxStatus", Writer::new().bytes(1, &pod.id));
        answer.is_ok_and(|answer| Message::read(&answer).unwrap().message(1).number(3) == 1)
    });
    eventually("the container's end is seen", || pods.status(&server).0 == EXITED);
    pods.remove_pod(&pod);
    pods.engine.finish();
}

/// `hostUsers: false`: a user namespace for the pod, whose files are those of an overlay with mapped ids.
#[test]
fn a_pod_has_users_of_its_own() {
    needs!();
    skip_unless!(machine::linux_is_at_least(5, 19), "overlays of idmapped layers came with Linux 5.19");
    for (which, sandboxer) in
        [(Which::Trixie, "podsandbox"), (Which::Sid, "podsandbox"), (Which::Sid, "shim")]
    {
        if !which.is_there() {
            eprintln!("no containerd in {} (integration/peers.sh engines)", which.folder().display());
            continue;
        }
        let scene = Scene::new();
        let pods = Pods::new(&scene, which, sandboxer, "overlayfs");
        give_network(&pods);
        let range = Writer::new().number(1, 300_000u32).number(3, 65_536u32);
        let users = Writer::new().message(2, &range).message(3, &range);
        let own = Writer::new().message(5, &users);
        let pod = pods.pod_of("users", &own, own.clone().number(2, 1u32), false);
        let server = pods.container(&pod, "server", SERVER, &Writer::new());
        pods.start(&server);
        let script = "cat /proc/self/uid_map; ls -ln /payload; echo x >/new; ls -ln /new; hostname";
        let (said, errors, code) = pods.exec(&server, script);
        assert_eq!((errors.as_str(), code), ("", 0), "{said}");
        let words: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["0", "300000", "65536"], "{said}");
        for file in &words[1..3] {
            assert_eq!(file[2..4], ["0", "0"], "root's, as the container sees it: {said}");
        }
        assert_eq!(words[3], ["berth"]);
        let log = pods.logs().join("server.log");
        eventually("it says what it has to say", || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(" stdout F one\n"))
        });
        pods.remove(&server);
        pods.remove_pod(&pod);
        pods.engine.finish();
    }
}

/// The tables of docs/kubernetes.md are those that these tests have tried.
#[test]
fn the_page_says_what_is_tried() {
    let page = fs::read_to_string(workspace().join("docs/kubernetes.md")).unwrap();
    let blocks: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    for (block, tried) in blocks.iter().zip([CRI_OF_2, CRI_OF_1]) {
        assert!(block.lines().count() >= 3, "{block}");
        for line in block.lines() {
            assert!(tried.lines().any(|one| one == line), "{line} is not in what is tried");
        }
    }
}
