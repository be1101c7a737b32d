//! Limits that few config files set, each shown by what the kernel then does.

use dhow_integration::{Runner, Scene, machine, skip_unless};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file of the kernel's with another value until the end of the test.
struct Restored(PathBuf, String);

impl Restored {
    fn set(path: &str, value: &str) -> Option<Self> {
        let old = fs::read_to_string(path).ok()?;
        fs::write(path, value).ok()?;
        Some(Restored(path.into(), old))
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, &self.1);
    }
}

/// With RT_GROUP_SCHED a cgroup without realtime runtime may hold no realtime process.
#[test]
fn realtime_processes_need_the_runtime_they_are_given() {
    let has_it = Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists();
    skip_unless!(has_it, "no cpu.rt_runtime_us: cgroup v1's cpu hierarchy with CONFIG_RT_GROUP_SCHED");
    let scene = Scene::new();
    let realtime = json!({ "policy": "SCHED_FIFO", "priority": 1 });
    let without = scene.container(|c| {
        c.set("/process/scheduler", realtime.clone()).payload(&["exit", "0"]);
    });
    without.create().fails(&["scheduler", "not permitted"]);
    let with = scene.container(|c| {
        c.set("/process/scheduler", realtime.clone())
            .set("/linux/resources/cpu", json!({ "realtimePeriod": 1_000_000, "realtimeRuntime": 10_000 }))
            .payload(&["exit", "7"]);
    });
    with.run().exits(7);
    let too_much = scene.container(|c| {
        c.set("/linux/resources/cpu", json!({ "realtimePeriod": 1_000_000, "realtimeRuntime": 990_000 }))
            .payload(&["exit", "0"]);
    });
    too_much.create().fails(&["linux.resources.cpu.realtimeRuntime", "990000"]);
    scene.is_clean();
}

/// Huge pages are charged when the file in hugetlbfs gets them.
#[test]
fn huge_pages_beyond_the_limit_are_refused() {
    // On a hybrid host the cgroup2 mount is for processes only, as with runc and systemd.
    let usable = ["hugetlb", "cgroup.controllers"].map(|at| Path::new("/sys/fs/cgroup").join(at).exists());
    skip_unless!(
        usable.contains(&true) && machine::has_controller("hugetlb"),
        "neither cgroup v1 nor a host with cgroup v2 alone has the hugetlb controller"
    );
    let pool = Restored::set("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8");
    let Some(_pool) = pool.filter(|pool| {
        fs::read_to_string(&pool.0).is_ok_and(|now| now.trim().parse().is_ok_and(|pages: u32| pages >= 8))
    }) else {
        return machine::skip("the kernel has no 2 MiB huge pages to give");
    };
    let scene = Scene::new();
    let with_limit = |pages: u64, asked: &str| {
        scene
            .container(|c| {
                let limit = json!([{ "pageSize": "2MB", "limit": pages << 21 }]);
                c.set("/linux/resources/hugepageLimits", limit)
                    .mount("/huge", "hugetlbfs", "hugetlbfs", &["pagesize=2M"])
                    .payload(&["fallocate", "/huge/f", asked]);
            })
            .run()
    };
    with_limit(2, "4").ok();
    let refused = with_limit(2, "6");
    assert!(refused.code != 0 && refused.stdout.contains("ENOSPC"), "{refused}");
    let unknown = scene.container(|c| {
        c.set("/linux/resources/hugepageLimits", json!([{ "pageSize": "3MB", "limit": 1 }]))
            .payload(&["exit", "0"]);
    });
    unknown.create().fails(&["linux.resources.hugepageLimits", "3MB"]);
    scene.is_clean();
}

/// Packets carry the class that the container's cgroup gives them: netfilter counts them. The
/// priority is read back only, since this needs a queueing discipline that looks at it.
#[test]
fn packets_carry_the_class_of_the_cgroup() {
    skip_unless!(machine::has_program("iptables"), "iptables is not installed");
    skip_unless!(Path::new("/sys/fs/cgroup/cpu").exists(), "cgroup v2 has no net_cls controller");
    let scene = Scene::new();
    let c = scene.container(|c| {
        c.without_namespace("network")
            .set(
                "/linux/resources/network",
                json!({ "classID": 0x10_0001, "priorities": [{ "name": "lo", "priority": 5 }] }),
            )
            .payload(&["sleep", "1", "--", "send-to-loopback"]);
    });
    // In a mount and a network namespace of its own: a hierarchy and a rule that nobody else sees.
    let script = r#"
        set -e
        mkdir "$1/old"
        mount --rbind /sys/fs/cgroup "$1/old"
        mount -t tmpfs none /sys/fs/cgroup
        for name in $(ls "$1/old"); do
            mkdir "/sys/fs/cgroup/$name"
            mount --bind "$1/old/$name" "/sys/fs/cgroup/$name"
        done
        net=/sys/fs/cgroup/net_cls,net_prio
        mkdir $net
        mount -t cgroup -o net_cls,net_prio none $net || exit 77
        ip link set lo up
        iptables -A OUTPUT -m cgroup --cgroup 1048577 || exit 77
        "$2" --root "$1/state" run --bundle "$3" "$4" &
        sleep 0.5
        echo "map $(grep lo "$net/$4/net_prio.ifpriomap")"
        wait $!
        echo "left $(ls -d "$net/$4" 2>/dev/null)"
        echo "packets $(iptables -nvxL OUTPUT | awk '/cgroup 1048577/ {print $1}')"
    "#;
    let binary = dhow_integration::command::binary();
    let outcome = Runner::new("unshare")
        .args(["-m", "-n", "sh", "-c", script, "sh", scene.dir().to_str().unwrap(), binary.to_str().unwrap()])
        .args([c.bundle().to_str().unwrap(), c.id()])
        .run();
    // A hierarchy goes with its last mount, but stays if a cgroup in it is still dying then. One
    // more mount makes it go.
    let script = r#"
        for i in $(seq 100); do
            awk '$1 == "net_cls" { exit $3 != 1 }' /proc/cgroups && break
            sleep 0.1
        done
        mkdir "$1/last" && mount -t cgroup -o net_cls,net_prio none "$1/last"
    "#;
    Runner::new("unshare").args(["-m", "sh", "-c", script, "sh", scene.dir().to_str().unwrap()]).run();
    if outcome.code == 77 {
        return machine::skip("no net_cls hierarchy, or no cgroup match in netfilter");
    }
    let outcome = outcome.ok();
    assert_eq!(outcome.line("map"), "lo 5", "{outcome}");
    assert_eq!(outcome.line("left"), "", "{outcome}");
    assert_eq!(outcome.line("packets"), "3", "{outcome}");
}

/// Two containers read one disk, which BFQ shares by weight.
#[test]
fn a_disk_is_shared_by_weight() {
    let weights = Path::new("/sys/fs/cgroup/blkio/blkio.bfq.io_service_bytes").exists();
    skip_unless!(
        weights && machine::has_program("losetup"),
        "no blkio.bfq files: CONFIG_BFQ_GROUP_IOSCHED on cgroup v1"
    );
    let scene = Scene::new();
    let image = scene.dir().join("disk");
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    let losetup = |args: &[&str]| {
        let output = Command::new("losetup").args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let disk = losetup(&["--direct-io=off", "--find", "--show", image.to_str().unwrap()]);
    skip_unless!(!disk.is_empty(), "no loop device");
    struct Detached<'a>(&'a str);
    impl Drop for Detached<'_> {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", self.0]).status();
        }
    }
    let _detached = Detached(&disk);
    let scheduler = format!("/sys/block/{}/queue/scheduler", disk.trim_start_matches("/dev/"));
    if fs::write(&scheduler, "bfq").is_err() {
        return machine::skip("the loop device has no BFQ");
    }
    let reader = |weight: u32| {
        let c = scene.container(|c| {
            c.set("/linux/resources/blockIO", json!({ "weight": weight }))
                .set("/linux/resources/devices", json!([{ "allow": true, "access": "rwm" }]))
                .bind(Path::new(&disk), "/disk", &["bind", "ro"])
                .payload(&["read-direct", "/disk", "3"]);
        });
        c.create().ok();
        c
    };
    let read = |c: &dhow_integration::Container| -> f64 {
        c.until("stopped");
        c.output().lines().find_map(|line| line.strip_prefix("read=")).unwrap().parse().unwrap()
    };
    // BFQ shares the disk only while both ask for it, which on a busy machine they may not: the
    // processors are shared first.
    let mut rounds = Vec::new();
    for _ in 0..4 {
        let (light, heavy) = (reader(50), reader(1000));
        light.start().ok();
        heavy.start().ok();
        rounds.push((read(&light), read(&heavy)));
        if rounds.last().is_some_and(|(light, heavy)| *heavy > 1.5 * light) {
            return;
        }
    }
    panic!("blocks read with weights 50 and 1000: {rounds:?}");
}
