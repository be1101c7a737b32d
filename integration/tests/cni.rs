//! `--network cni:NAME`: real plugins, in a network namespace that stands for the host.

use dhow_integration::command::{Running, binary};
use dhow_integration::image;
use dhow_integration::{Outcome, Runner, Scene, eventually, holds_within, machine, skip_unless};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// A host of one's own: a network namespace, held by a process.
struct Host<'s> {
    scene: &'s Scene,
    holder: Running,
    configurations: PathBuf,
}

impl<'s> Host<'s> {
    fn new(scene: &'s Scene, plugins: &Value) -> Host<'s> {
        let archive = scene.dir().join("image.tar");
        let run = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]});
        image::save(&archive, "test", &[image::base(scene.payload_program())], &run);
        scene.dhow(["image", "import", "-q", archive.to_str().unwrap()]).run().ok();
        let configurations = scene.dir().join("net.d");
        fs::create_dir(&configurations).unwrap();
        let list = json!({"cniVersion": "1.0.0", "name": "test", "plugins": plugins});
        fs::write(configurations.join("10-test.conflist"), list.to_string()).unwrap();
        fs::write(configurations.join("00-broken.conflist"), "{").unwrap();
        let script = format!("busybox ip link set lo up; echo {} ready; exec sleep 1000", scene.tag());
        let holder = Runner::new("unshare").args(["--net", "/bin/sh", "-c", &script]).spawn();
        holder.until_it_says("ready");
        Host { scene, holder, configurations }
    }

    /// A program on that host.
    fn program(&self, words: &[&str]) -> Runner {
        let namespace = format!("--net=/proc/{}/ns/net", self.holder.pid());
        Runner::new("nsenter")
            .args([namespace.as_str(), "--"])
            .args(words.iter().copied())
            .env("DHOW_CNI_CONF", self.configurations.to_str().unwrap())
    }

    fn dhow(&self, words: &[&str]) -> Runner {
        let (binary, root) = (binary(), self.scene.state_dir());
        let own = [binary.to_str().unwrap(), "--root", root.to_str().unwrap()];
        self.program(&[&own[..], words].concat())
    }

    fn id(&self) -> String {
        format!("{}-web", self.scene.tag())
    }

    fn nat(&self) -> String {
        self.program(&["iptables", "-t", "nat", "-S"]).run().ok().stdout
    }

    /// The addresses that are taken in the network.
    fn leases(&self) -> Vec<String> {
        let all = fs::read_dir(self.scene.dir().join("ipam/test")).into_iter().flatten().flatten();
        let names = all.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("10.")).collect()
    }
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.holder.pid()),
            nix::sys::signal::Signal::SIGKILL,
        );
        self.holder.finish();
    }
}

fn bridge(scene: &Scene) -> Value {
    json!([
        {"type": "bridge", "bridge": "dhow0", "isGateway": true, "ipam": {"type": "host-local",
            "dataDir": scene.dir().join("ipam"), "ranges": [[{"subnet": "10.77.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}, "dns": {"nameservers": ["10.77.0.1", "bad\nline"]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}
    ])
}

fn has_plugins() -> bool {
    ["/opt/cni/bin", "/usr/lib/cni"].iter().any(|dir| {
        ["bridge", "portmap", "host-local"].iter().all(|plugin| PathBuf::from(dir).join(plugin).is_file())
    })
}

macro_rules! needs_plugins {
    () => {
        skip_unless!(has_plugins(), "no CNI plugins (containernetworking-plugins)");
        skip_unless!(machine::has_program("iptables"), "no iptables program");
        skip_unless!(machine::has_program("nsenter"), "no nsenter program (util-linux)");
    };
}

const SERVER: [&str; 3] = ["sh", "-c", "while :; do echo answer | nc -l -p 80; done"];

#[test]
fn a_published_port_leads_to_the_container() {
    needs_plugins!();
    let scene = Scene::new();
    let host = Host::new(&scene, &bridge(&scene));
    let id = host.id();
    let options =
        ["run", "-d", "--image", "test", "--network", "cni:test", "--publish", "8080:80/tcp", &id, "--"];
    host.dhow(&[&options[..], &SERVER].concat()).run().ok();
    let ask = |address: &str, port: &str| -> Outcome {
        host.program(&["timeout", "3", "busybox", "nc", address, port]).run()
    };
    for (address, port) in [("10.77.0.1", "8080"), ("127.0.0.1", "8080"), ("10.77.0.2", "80")] {
        // The server takes one connection at a time, and a busy machine makes each a matter of seconds.
        let answers = holds_within(Duration::from_secs(90), || ask(address, port).stdout == "answer\n");
        assert!(answers, "{address}:{port} does not answer");
    }
    let seen = host.dhow(&["exec", &id, "cat", "/etc/hosts", "/etc/resolv.conf"]).run().ok();
    assert!(seen.stdout.contains(&format!("10.77.0.2\t{id}\n")), "{seen}");
    let interfaces = host.dhow(&["exec", &id, "ip", "-o", "link"]).run().ok();
    assert!(interfaces.stdout.contains("eth0") && interfaces.stdout.lines().count() == 2, "{interfaces}");
    assert_eq!(host.leases(), ["10.77.0.2"]);
    assert!(host.nat().contains("10.77.0.2:80"));
    host.dhow(&["delete", "--force", &id]).run().ok();
    assert_eq!(host.leases(), Vec::<String>::new());
    assert!(!host.nat().contains("10.77.0.2"), "{}", host.nat());
    assert!(!ask("10.77.0.1", "8080").stdout.contains("answer"));
    scene.is_clean();
}

#[test]
fn run_takes_the_network_back_at_the_end() {
    needs_plugins!();
    let scene = Scene::new();
    let host = Host::new(&scene, &bridge(&scene));
    let run = |name: &str, command: &[&str]| {
        let own = ["run", "--image", "test", "--network", "cni:test", "-p", "8081:80", name, "--"];
        host.dhow(&[&own[..], command].concat()).run()
    };
    let id = host.id();
    run(&id, &["sh", "-c", "ip -o -4 addr show eth0 | wc -l"]).ok().says("1");
    assert_eq!(host.leases(), Vec::<String>::new());
    // One that fails after the network was made.
    run(&id, &["/no/such/program"]).fails(&["no such file"]);
    assert_eq!(host.leases(), Vec::<String>::new());
    assert!(!host.nat().contains("8081"), "{}", host.nat());
    scene.is_clean();
}

#[test]
fn a_killed_create_leaves_nothing_in_the_network() {
    needs_plugins!();
    let scene = Scene::new();
    let plugins = scene.dir().join("plugins");
    fs::create_dir(&plugins).unwrap();
    // The last plugin hangs: everything before it is there when the create is killed.
    let hang = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\necho $$ >\"$0.there\"\nexec sleep 1000\n";
    fs::write(plugins.join("hang"), hang).unwrap();
    fs::set_permissions(plugins.join("hang"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut list = bridge(&scene);
    list.as_array_mut().unwrap().push(json!({"type": "hang"}));
    let host = Host::new(&scene, &list);
    let id = host.id();
    let path = format!("{}:/opt/cni/bin:/usr/lib/cni", plugins.display());
    let create = host.dhow(&["create", "--image", "test", "--network", "cni:test", "-p", "8082:80", &id]);
    let mut running = create.env("CNI_PATH", &path).spawn();
    eventually("the last plugin runs", || {
        fs::read_to_string(plugins.join("hang.there")).is_ok_and(|text| text.ends_with('\n'))
    });
    assert_eq!(host.leases(), ["10.77.0.2"]);
    let pid = nix::unistd::Pid::from_raw(running.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    running.finish();
    let plugin = fs::read_to_string(plugins.join("hang.there")).unwrap().trim().parse().unwrap();
    let plugin = nix::unistd::Pid::from_raw(plugin);
    nix::sys::signal::kill(plugin, nix::sys::signal::Signal::SIGKILL).unwrap();
    host.dhow(&["delete", "--force", &id]).run().ok();
    assert_eq!(host.leases(), Vec::<String>::new());
    assert!(!host.nat().contains("8082"), "{}", host.nat());
    scene.is_clean();
}

#[test]
fn a_plugin_that_fails_is_named() {
    needs_plugins!();
    let scene = Scene::new();
    let mut list = bridge(&scene);
    list[0]["ipam"]["ranges"] = json!([[{"subnet": "nonsense"}]]);
    let host = Host::new(&scene, &list);
    let id = host.id();
    let run =
        |network: &str| host.dhow(&["run", "--image", "test", "--network", network, &id, "--", "true"]).run();
    run("cni:test").fails(&["CNI plugin \"bridge\" failed at ADD", "nonsense"]);
    run("cni:other").fails(&["\"other\"", "test", "DHOW_CNI_CONF"]);
    let write = |plugins: Value| {
        let list = json!({"cniVersion": "1.0.0", "name": "test", "plugins": plugins});
        fs::write(host.configurations.join("10-test.conflist"), list.to_string()).unwrap();
    };
    write(json!([{"type": "no-such-plugin"}]));
    run("cni:test").fails(&["no-such-plugin", "containernetworking-plugins"]);
    write(json!([{"type": "../../bin/sh"}]));
    run("cni:test").fails(&["../../bin/sh", "program's name"]);
    write(json!([{"type": "loopback"}]));
    let publish = ["run", "--image", "test", "--network", "cni:test", "-p", "1:2", &id, "--", "true"];
    host.dhow(&publish).run().fails(&["portMappings"]);
    scene.is_clean();
}
