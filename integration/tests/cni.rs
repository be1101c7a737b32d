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

/// It stays, and answers each connection by itself: no moment in which nobody listens.
const SERVER: [&str; 7] = ["nc", "-ll", "-p", "80", "-e", "echo", "answer"];

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
        // What is refused is so at once; on a busy machine an answer may take seconds.
        host.program(&["timeout", "30", "busybox", "nc", address, port]).run()
    };
    for (address, port) in [("10.77.0.1", "8080"), ("127.0.0.1", "8080"), ("10.77.0.2", "80")] {
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

/// An init that is late with its network namespace still has the host's: nothing may be put in there.
#[test]
fn the_network_waits_for_the_namespace() {
    needs_plugins!();
    if Runner::new("/bin/sh").args(["-c", "strace -o /dev/null true"]).run().code != 0 {
        return machine::skip("strace is not there, or may not trace");
    }
    let scene = Scene::new();
    let host = Host::new(&scene, &bridge(&scene));
    let words = ["run", "--image", "test", "--network", "cni:test", &host.id(), "--", "ip", "-o", "link"];
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=unshare:delay_enter=1000000"];
    let (binary, root) = (binary(), scene.state_dir());
    let own = [binary.to_str().unwrap(), "--root", root.to_str().unwrap()];
    let seen = host.program(&[&strace[..], &own, &words].concat()).limit(Duration::from_secs(60)).run().ok();
    assert!(seen.stdout.contains("eth0"), "{seen}");
    let of_host = host.program(&["busybox", "ip", "-o", "link"]).run().ok();
    assert!(!of_host.stdout.contains("eth0"), "{of_host}");
    assert_eq!(host.leases(), Vec::<String>::new());
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

impl Host<'_> {
    /// The state that `inspect` tells.
    fn state(&self, id: &str) -> Value {
        self.dhow(&["inspect", id]).run().ok().json()
    }

    /// The address that the container has, and that its /etc/hosts tells of.
    fn address(&self, id: &str) -> String {
        let seen = self.dhow(&["exec", id, "ip", "-o", "-4", "addr", "show", "eth0"]).run().ok();
        let address = seen.stdout.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
        let hosts = self.dhow(&["exec", id, "cat", "/etc/hosts"]).run().ok().stdout;
        let own: Vec<&str> = hosts.lines().filter(|line| line.ends_with(&format!("\t{id}"))).collect();
        assert_eq!(own, [format!("{address}\t{id}")]);
        address
    }

    /// Nothing of the container is in the network.
    #[track_caller]
    fn is_left(&self) {
        assert_eq!(self.leases(), Vec::<String>::new());
        assert!(!self.nat().contains("10.77.0."), "{}", self.nat());
    }
}

/// Each life of a container is in the network anew, and between two it is in none.
#[test]
fn every_life_has_its_network() {
    needs_plugins!();
    let scene = Scene::new();
    let host = Host::new(&scene, &bridge(&scene));
    let id = host.id();
    let run = |options: &[&str], command: &[&str]| {
        let own = ["run", "-d", "--image", "test", "--network", "cni:test", "-p", "8083:80"];
        host.dhow(&[&own[..], options, &[&id, "--"], command].concat()).run()
    };
    // By a policy: three lives, each with its address, and a network that is left behind the last.
    let script = "ip -o -4 addr show eth0; exit 3";
    run(&["--restart", "on-failure:2", "--log-driver", "json-file"], &["sh", "-c", script]).ok();
    eventually("the last life is over", || {
        let state = host.state(&id);
        state["state"] == "exited" && state["exitedAt"].is_string() && host.leases().is_empty()
    });
    let said = host.dhow(&["logs", &id]).run().ok().stdout;
    assert_eq!(said.matches("eth0    inet 10.77.0.").count(), 3, "{said}");
    host.is_left();
    host.dhow(&["delete", &id]).run().ok();
    // By hand, while it runs and when it is stopped; with a monitor and without.
    for options in [&["--monitor"][..], &[]] {
        run(options, &["sleep", "1000"]).ok();
        let first = host.address(&id);
        assert_eq!(host.leases(), [&*first]);
        host.dhow(&["restart", "--time", "0", &id]).run().ok();
        let second = host.address(&id);
        assert_eq!(host.leases(), [&*second]);
        let published = host.nat().lines().filter(|line| line.contains("--to-destination")).count();
        assert_eq!(published, 1, "{}", host.nat());
        assert!(host.nat().contains(&format!("{second}:80")), "{}", host.nat());
        host.dhow(&["stop", "--time", "0", &id]).run().ok();
        if !options.is_empty() {
            // Without a monitor nobody is there to leave it at once.
            eventually("the network is left", || host.leases().is_empty());
            host.is_left();
        }
        host.dhow(&["restart", &id]).run().ok();
        assert_eq!(host.leases(), [host.address(&id)]);
        host.dhow(&["delete", "--force", &id]).run().ok();
        host.is_left();
    }
    // A foreground that keeps its container leaves the network too.
    let own =
        ["run", "--keep", "--image", "test", "--network", "cni:test", "-p", "8083:80", &id, "--", "true"];
    host.dhow(&own).run().ok();
    host.is_left();
    host.dhow(&["delete", &id]).run().ok();
    scene.is_clean();
}

/// What breaks between two lives, and who clears up.
#[test]
fn a_life_that_fails_leaves_the_network() {
    needs_plugins!();
    let scene = Scene::new();
    let plugins = scene.dir().join("plugins");
    fs::create_dir(&plugins).unwrap();
    // The last plugin: fails as long as a file says so, when all before it is done.
    let moody = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
        if [ -e \"$0.fails\" ]; then echo '{\"code\": 7, \"msg\": \"not today\"}'; exit 1; fi\n\
        exec busybox sed -E 's/.*\"prevResult\"://; s/(,\"type\":\"moody\")?\\}$//'\n";
    fs::write(plugins.join("moody"), moody).unwrap();
    fs::set_permissions(plugins.join("moody"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut list = bridge(&scene);
    list.as_array_mut().unwrap().push(json!({"type": "moody"}));
    let host = Host::new(&scene, &list);
    let id = host.id();
    let path = format!("{}:/opt/cni/bin:/usr/lib/cni", plugins.display());
    let run = |command: &[&str]| {
        let own = ["run", "-d", "--monitor", "--image", "test", "--network", "cni:test", "-p", "8084:80"];
        host.dhow(&[&own[..], &[&id, "--"], command].concat()).env("CNI_PATH", &path).run()
    };
    // A first life that fails, in the network and behind it: nothing is left at all.
    let fails = plugins.join("moody.fails");
    fs::write(&fails, "").unwrap();
    run(&["sleep", "1000"]).fails(&["\"moody\" failed at ADD", "not today"]);
    host.is_left();
    scene.is_clean();
    fs::remove_file(&fails).unwrap();
    run(&["/no/such/program"]).fails(&["no such file"]);
    host.is_left();
    scene.is_clean();
    // A later one: the container stays, stopped and in no network, and can be tried again.
    run(&["sleep", "1000"]).ok();
    fs::write(&fails, "").unwrap();
    host.dhow(&["stop", "--time", "0", &id]).run().ok();
    let seen = host.dhow(&["restart", &id]).run().exits(1);
    assert!(seen.stderr.contains("not today"), "{seen}");
    assert_eq!(host.state(&id)["state"], "exited");
    host.is_left();
    fs::remove_file(&fails).unwrap();
    host.dhow(&["restart", &id]).run().ok();
    assert_eq!(host.leases(), [host.address(&id)]);
    // A monitor that is killed leaves it to delete.
    let kill = |pid: &Value| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid.as_i64().unwrap()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    let state = host.state(&id);
    kill(&state["monitor"]);
    kill(&state["pid"]);
    eventually("it ends", || host.dhow(&["state", &id]).run().ok().json()["status"] == "stopped");
    assert_eq!(host.leases().len(), 1);
    host.dhow(&["delete", "--force", &id]).run().ok();
    host.is_left();
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
