//! Cgroups on the real kernel: what limits do, not what files say. Needs root; makes cgroups only
//! below names that begin with `dhow-test-`, and removes them.
#![allow(clippy::unwrap_used, missing_docs, clippy::cast_possible_wrap)]

mod cgroups_common;

use cgroups_common::{BUSY, Test, can_run, name, resources, ticks, usual, v1, v2, wait_for};
use dhow::cgroups::{Driver, Manager, OomEvent, Placement};
use dhow::spec::Resources;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

#[test]
fn made_in_every_hierarchy_entered_and_gone_again() {
    let Some(mut test) = usual() else { return };
    let dirs = test.dirs();
    for dir in &dirs {
        assert!(Path::new(dir).is_dir(), "{dir}");
    }
    let pid = test.spawn("exec sleep 100").id();
    for line in std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().lines() {
        assert!(line.contains(":/dhow-test-"), "{line}");
    }
    assert_eq!(test.manager.pids().unwrap(), [pid as i32]);
    test.manager.kill_all(9).unwrap();
    test.manager.destroy().unwrap();
    for dir in &dirs {
        assert!(!Path::new(dir).exists(), "{dir}");
    }
    // A second time is fine.
    test.manager.destroy().unwrap();
    assert!(test.manager.pids().unwrap().is_empty());
}

#[test]
fn parents_that_were_missing_go_too_and_others_stay() {
    if !can_run() {
        return;
    }
    let top = name();
    let path = format!("/{top}/a/b");
    let mut outer = Manager::plan(Driver::Cgroupfs, Some(&path), "x", false).unwrap();
    let directories = outer.record().directories();
    outer.create().unwrap();
    let mut inner = Manager::plan(Driver::Cgroupfs, Some(&format!("/{top}/a/c")), "y", false).unwrap();
    inner.create().unwrap();
    assert_eq!(inner.record().directories().len() * 3, directories.len());
    outer.destroy().unwrap();
    assert!(directories.iter().filter(|d| d.ends_with("/a")).all(|d| Path::new(d).exists()));
    inner.destroy().unwrap();
    let mut again = Manager::from_record(&outer.record());
    again.destroy().unwrap();
    assert!(directories.iter().all(|d| !Path::new(d).exists()));
}

#[test]
fn a_cgroup_in_use_is_refused_and_left_alone() {
    let Some(mut test) = usual() else { return };
    let pid = test.spawn("exec sleep 100").id();
    let path = test.manager.mounts()[0].path.clone();
    let error = Manager::plan(Driver::Cgroupfs, Some(&path), "x", false).unwrap_err().to_string();
    assert!(error.contains("already holds 1 process") && error.contains(&pid.to_string()), "{error}");
    let mut second = Manager::from_record(&test.manager.record());
    let error = second.create().unwrap_err().to_string();
    assert!(error.contains("already holds 1 process") && error.contains(&pid.to_string()), "{error}");
    second.destroy().unwrap();
    assert_eq!(test.manager.pids().unwrap(), [pid as i32]);
}

#[test]
fn a_frozen_cgroup_is_refused() {
    for test in [v1(), v2()].into_iter().flatten() {
        test.manager.freeze().unwrap();
        let mut second = Manager::from_record(&test.manager.record());
        let error = second.create().unwrap_err().to_string();
        assert!(error.contains("frozen") || error.contains("FROZEN"), "{error}");
        test.manager.thaw().unwrap();
    }
}

#[test]
fn frozen_processes_stand_still_even_those_that_fork() {
    for mut test in [v1(), v2()].into_iter().flatten() {
        let busy = test.spawn(BUSY).id();
        test.spawn("while :; do (:); (:) & done");
        std::thread::sleep(Duration::from_millis(50));
        test.manager.freeze().unwrap();
        assert!(test.manager.is_frozen().unwrap());
        let (pids, before) = (test.manager.pids().unwrap(), ticks(busy));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!((test.manager.pids().unwrap(), ticks(busy)), (pids, before));
        test.manager.thaw().unwrap();
        assert!(!test.manager.is_frozen().unwrap());
        wait_for("the process runs again", || ticks(busy) > before);
    }
}

#[test]
fn kill_reaches_what_forks_and_what_is_frozen_and_destroy_waits() {
    for frozen in [false, true] {
        for mut test in [v1(), v2()].into_iter().flatten() {
            for _ in 0..4 {
                test.spawn("while :; do (sleep 1 &) ; done");
            }
            std::thread::sleep(Duration::from_millis(50));
            if frozen {
                test.manager.freeze().unwrap();
            }
            test.manager.kill_all(9).unwrap();
            let dirs = test.dirs();
            test.manager.destroy().unwrap();
            assert!(dirs.iter().all(|d| !Path::new(d).exists()));
        }
    }
}

#[test]
fn other_signals_reach_everyone() {
    for mut test in [v1(), v2()].into_iter().flatten() {
        for _ in 0..5 {
            test.spawn("trap 'exit 7' USR1; while :; do sleep 0.01; done");
        }
        // SigCgt's bit for USR1 says that the trap is set.
        let pids: Vec<u32> = test.children.iter().map(std::process::Child::id).collect();
        for pid in pids {
            wait_for("the trap", || {
                let status = read(&format!("/proc/{pid}/status"));
                let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
                u64::from_str_radix(caught.trim(), 16).unwrap() & 0x200 != 0
            });
        }
        test.manager.kill_all(10).unwrap();
        for child in &mut test.children {
            assert!(child.wait().unwrap().code().is_some_and(|code| code == 7));
        }
    }
}

#[test]
fn cgroups_made_inside_are_listed_killed_and_removed() {
    for mut test in [v1(), v2()].into_iter().flatten() {
        let dirs = test.dirs();
        for dir in &dirs {
            std::fs::create_dir_all(Path::new(dir).join("in/ner")).unwrap();
        }
        let pid = test.spawn("exec sleep 100").id();
        for dir in &dirs {
            if dir.contains("/cpuset/") {
                continue;
            }
            std::fs::write(Path::new(dir).join("in/ner/cgroup.procs"), pid.to_string()).unwrap();
        }
        assert_eq!(test.manager.pids().unwrap(), [pid as i32]);
        test.manager.kill_all(9).unwrap();
        test.manager.destroy().unwrap();
        assert!(dirs.iter().all(|d| !Path::new(d).exists()));
    }
}

#[test]
fn exec_goes_into_a_cgroup_inside() {
    for mut test in [v1(), v2()].into_iter().flatten() {
        for dir in test.dirs() {
            std::fs::create_dir(Path::new(&dir).join("sub")).unwrap();
        }
        let subs = match test.manager {
            Manager::V1(_) => vec!["pids,memory:sub".to_owned()],
            _ => vec!["/sub".to_owned()],
        };
        let placement = test.manager.placement_for_exec(&subs, None).unwrap();
        assert!(!matches!(placement, Placement::None));
        let error = test.manager.placement_for_exec(&["../x".to_owned()], None).unwrap_err().to_string();
        assert!(error.contains(".."), "{error}");
        let pid = test.spawn("exec sleep 100").id();
        assert!(test.manager.placement_for_exec(&[], Some(pid as i32)).is_ok());
    }
}

/// The file of a controller, on either version.
fn file(test: &Test, v1: &str, v2: &str) -> String {
    let names = test.dirs().into_iter().flat_map(|dir| [format!("{dir}/{v1}"), format!("{dir}/{v2}")]);
    names.into_iter().find(|file| Path::new(file).exists()).unwrap_or_else(|| panic!("neither {v1} nor {v2}"))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

#[test]
fn the_quota_throttles_and_stats_tell() {
    let Some(mut test) = usual() else { return };
    test.manager.apply(&resources(r#"{"cpu":{"quota":10000,"period":100000,"shares":512}}"#)).unwrap();
    let pid = test.spawn(BUSY).id();
    std::thread::sleep(Duration::from_millis(900));
    // A tenth of the time; twice that for what the machine adds.
    assert!(ticks(pid) < 20, "{} ticks in 0.9 s", ticks(pid));
    let stats = test.manager.stats().unwrap();
    assert!(stats.cpu.throttling.throttled_periods > 2 && stats.cpu.usage.total > 10_000_000, "{stats:?}");
    assert!(stats.memory.usage.usage > 0 && stats.memory.raw.len() > 10, "{stats:?}");
    assert_eq!(stats.pids.current, 1);
    let weight = read(&file(&test, "cpu.shares", "cpu.weight"));
    assert!(weight == "512" || weight == "59", "{weight}");
    test.manager.update(&resources(r#"{"cpu":{"quota":-1}}"#)).unwrap();
    let (before, start) = (ticks(pid), Instant::now());
    wait_for("it runs freely", || ticks(pid) - before > 15 || start.elapsed().as_secs() > 8);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[test]
fn oom_is_announced_and_counted() {
    let Some(mut test) = usual() else { return };
    test.manager.apply(&resources(r#"{"memory":{"limit":16777216,"swap":16777216}}"#)).unwrap();
    let mut watch = test.manager.oom_watch().unwrap();
    assert_eq!(watch.read().unwrap(), OomEvent::Nothing);
    assert_eq!(test.manager.oom().unwrap().map(|oom| (oom.kills, oom.limit)), Some((0, Some(16_777_216))));
    test.run("head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null");
    let mut fds = [nix::poll::PollFd::new(watch.as_fd(), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut fds, 5000_u16).unwrap(), 1);
    let mut seen = Vec::new();
    wait_for("the event", || {
        seen.push(watch.read().unwrap());
        seen.contains(&OomEvent::Oom)
    });
    assert!(test.manager.oom().unwrap().unwrap().kills >= 1);
    test.manager.destroy().unwrap();
    wait_for("the end", || watch.read().unwrap() == OomEvent::Gone);
    assert!(test.manager.oom().unwrap().is_none());
}

#[test]
fn a_check_before_the_update_spares_the_processes() {
    let Some(mut test) = usual() else { return };
    test.spawn("head -c 60000000 /dev/zero | (tail -c 50000000; sleep 100)  | (sleep 100)");
    let current = file(&test, "memory.usage_in_bytes", "memory.current");
    wait_for("the memory is used", || read(&current).parse::<u64>().unwrap() > 40_000_000);
    let update = r#"{"memory":{"limit":4194304,"checkBeforeUpdate":true}}"#;
    let error = test.manager.update(&resources(update)).unwrap_err().to_string();
    assert!(
        error.contains("linux.resources.memory.limit: 4194304") && error.contains("present use"),
        "{error}"
    );
    assert_eq!(test.manager.oom().unwrap().unwrap().kills, 0);
}

#[test]
fn reading_a_disk_is_slowed_down() {
    use std::os::linux::fs::MetadataExt;
    let Some(mut test) = usual() else { return };
    let data = format!("/var/tmp/{}", name());
    std::fs::write(&data, vec![7_u8; 1_572_864]).unwrap();
    nix::unistd::sync();
    let device = std::fs::metadata(&data).unwrap().st_dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    if major == 0 {
        std::fs::remove_file(data).unwrap();
        eprintln!("skipped: /var/tmp is on no disk");
        return;
    }
    let limits = format!(
        r#"{{"blockIO":{{"throttleReadBpsDevice":
        [{{"major":{major},"minor":{minor},"rate":1048576}}]}}}}"#
    );
    test.manager.apply(&resources(&limits)).unwrap();
    let start = Instant::now();
    let (ok, text) = test.run(&format!("dd if={data} of=/dev/null bs=64k iflag=direct"));
    std::fs::remove_file(&data).unwrap();
    assert!(ok, "{text}");
    assert!(start.elapsed() > Duration::from_millis(1000), "1.5 MB at 1 MB/s took {:?}", start.elapsed());
    let stats = test.manager.stats().unwrap();
    let read = stats.blkio.io_service_bytes_recursive.iter().find(|e| e.op == "Read").unwrap();
    assert!(read.value >= 1_500_000, "{stats:?}");
}

#[test]
fn threaded_cgroups_are_entered() {
    let Some(test) = v2() else { return };
    let top = test.dirs().remove(0);
    let child = format!("{top}/threads");
    std::fs::create_dir(&child).unwrap();
    std::fs::write(format!("{child}/cgroup.type"), "threaded").unwrap();
    let placement = test.manager.placement_for_exec(&["threads".to_owned()], None).unwrap();
    assert!(matches!(placement, Placement::Tasks(_)), "{placement:?}");
}

#[test]
fn exec_goes_where_the_init_is_when_the_top_can_hold_nobody() {
    let Some(mut test) = v2() else { return };
    if test.manager.apply(&resources(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#)).is_err() {
        eprintln!("skipped: no hugetlb controller on cgroup2");
        return;
    }
    let pid = test.spawn("exec sleep 100").id();
    let top = test.dirs().remove(0);
    std::fs::create_dir(format!("{top}/init")).unwrap();
    std::fs::write(format!("{top}/init/cgroup.procs"), pid.to_string()).unwrap();
    std::fs::write(format!("{top}/cgroup.subtree_control"), "+hugetlb").unwrap();
    let placement = test.manager.placement_for_exec(&[], Some(pid as i32)).unwrap();
    let fd = placement.cgroup_fd().unwrap();
    let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))).unwrap();
    assert_eq!(path.to_str(), Some(&*format!("{top}/init")));
}

#[test]
fn cpusets_hold_processes_to_their_cpus() {
    let Some(mut test) = usual() else { return };
    test.manager.apply(&resources(r#"{"cpu":{"cpus":"0","mems":"0"}}"#)).unwrap();
    let (_, text) =
        test.run("grep -E 'Cpus_allowed_list|Mems_allowed_list' /proc/self/status | tr -d '\\t\\n'");
    assert_eq!(text, "Cpus_allowed_list:0Mems_allowed_list:0");
}

#[test]
fn fork_fails_beyond_the_pids_limit() {
    let Some(mut test) = usual() else { return };
    test.manager.apply(&resources(r#"{"pids":{"limit":3}}"#)).unwrap();
    assert!(test.run("true | true").0);
    let (_, text) = test.run("sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait");
    assert!(text.contains("fork"), "{text}");
    test.manager.update(&resources(r#"{"pids":{"limit":-1}}"#)).unwrap();
    assert!(test.run("sleep 0.1 & sleep 0.1 & sleep 0.1 & sleep 0.1 & wait").0);
}

#[test]
fn memory_beyond_the_limit_is_killed() {
    let Some(mut test) = usual() else { return };
    test.manager.apply(&resources(r#"{"memory":{"limit":16777216,"swap":16777216}}"#)).unwrap();
    test.run("head -c 100000000 /dev/zero | tail -c 90000000 >/dev/null");
    assert!(test.run("true").0, "the limit leaves room for little programs");
    let events = read(&file(&test, "memory.oom_control", "memory.events"));
    assert!(!events.contains("oom_kill 0"), "{events}");
}

#[test]
fn devices_that_are_denied_cannot_be_used() {
    for mut test in [v1(), v2()].into_iter().flatten() {
        test.manager.apply(&Resources::default()).unwrap();
        assert!(test.run(": > /dev/null && head -c 1 /dev/urandom").0, "default devices");
        let node = std::env::temp_dir().join(name());
        let node = node.to_str().unwrap();
        let (ok, text) = test.run(&format!("mknod {node} c 1 2 && head -c 1 {node}"));
        assert!(!ok && text.contains("not permitted"), "making it is allowed, using it is not: {text}");
        // /dev/kmsg is 1:11.
        let (ok, text) = test.run(": < /dev/kmsg");
        assert!(!ok && text.contains("not permitted"), "{text}");
        let rule = r#"{"devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
        test.manager.update(&resources(rule)).unwrap();
        assert!(test.run(": < /dev/kmsg").0, "after the update");
        assert!(!test.run(": >> /dev/kmsg").0, "for reading only");
        test.manager.update(&resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#)).unwrap();
        assert!(!test.run(": < /dev/kmsg").0, "after the second update");
        assert!(test.run(": > /dev/null").0);
        test.manager.update(&resources(r#"{"devices":[{"allow":true,"access":"rwm"}]}"#)).unwrap();
        assert!(test.run(": >> /dev/kmsg").0, "after allowing everything");
        std::fs::remove_file(node).unwrap();
    }
}

#[test]
fn a_holey_device_rule_works_on_v2() {
    let Some(mut test) = v2() else { return };
    let rules = r#"{"devices":[{"allow":true,"access":"rwm"},
        {"allow":false,"type":"c","major":1,"access":"rw"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    test.manager.apply(&resources(rules)).unwrap();
    assert!(test.run("head -c 1 /dev/kmsg || : < /dev/kmsg").0);
    assert!(!test.run(": >> /dev/kmsg").0);
}

#[test]
fn a_failed_update_leaves_the_old_values() {
    let Some(test) = usual() else { return };
    let is_v1 = matches!(test.manager, Manager::V1(_));
    let first = r#"{"pids":{"limit":100},"cpu":{"shares":512,"quota":50000,"period":100000},
        "memory":{"limit":104857600,"swap":209715200},
        "devices":[{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    test.manager.apply(&resources(first)).unwrap();
    let read = |test: &Test| -> Vec<String> {
        let files = [
            "pids.max",
            "cpu.shares",
            "cpu.weight",
            "cpu.cfs_quota_us",
            "cpu.max",
            "memory.limit_in_bytes",
            "memory.max",
            "memory.swap.max",
            "cpuset.cpus",
            "devices.list",
        ];
        let all =
            test.dirs().into_iter().flat_map(|d| files.map(|f| std::fs::read_to_string(format!("{d}/{f}"))));
        all.filter_map(Result::ok).collect()
    };
    let before = read(&test);
    assert_eq!(before.len(), 6, "{before:?}");
    // The last of them is wrong.
    let second = if is_v1 {
        r#"{"pids":{"limit":50},"cpu":{"shares":256,"quota":20000},"memory":{"limit":52428800},
        "devices":[{"allow":false}],"network":{"priorities":[{"name":"no-such-interface","priority":1}]}}"#
    } else {
        r#"{"pids":{"limit":50},"cpu":{"shares":256,"quota":20000},"memory":{"limit":52428800},
        "devices":[{"allow":false}],"unified":{"memory.high":"nonsense"}}"#
    };
    let error = test.manager.update(&resources(second)).unwrap_err().to_string();
    let field =
        if is_v1 { "linux.resources.network.priorities" } else { "linux.resources.unified.memory.high" };
    assert!(error.contains(field), "{error}");
    assert_eq!(read(&test), before);
}

#[test]
fn values_that_depend_on_each_other_go_in_any_direction() {
    let Some(test) = usual() else { return };
    for json in [
        r#"{"memory":{"limit":100003840,"swap":200007680},"cpu":{"quota":50000,"period":100000,"burst":20000}}"#,
        r#"{"memory":{"limit":400003072,"swap":500002816},"cpu":{"quota":500000,"period":1000000,"burst":500000}}"#,
        r#"{"memory":{"limit":20000768,"swap":20000768},"cpu":{"quota":2000,"period":2000,"burst":1000}}"#,
        r#"{"memory":{"limit":-1},"cpu":{"quota":-1,"burst":0}}"#,
        r#"{"memory":{"limit":20000768,"swap":-1}}"#,
    ] {
        test.manager.update(&resources(json)).unwrap();
    }
}

#[test]
fn bad_values_name_field_value_and_range() {
    let Some(mut test) = v1() else { return };
    let big = std::fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.cpus").unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let beyond = format!(r#"{{"cpu":{{"cpus":"0,{cpus}"}}}}"#);
    for test in [usual(), v2()].into_iter().flatten() {
        let Err(error) = test.manager.update(&resources(&beyond)) else { panic!("CPU {cpus} was taken") };
        assert!(error.to_string().contains(&format!("linux.resources.cpu.cpus 0,{cpus}")), "{error}");
    }
    for (json, words) in [
        (r#"{"cpu":{"cpus":"0-1023"}}"#, vec!["linux.resources.cpu.cpus 0-1023", big.trim()]),
        (r#"{"cpu":{"mems":"77"}}"#, vec!["linux.resources.cpu.mems 77", "only mems"]),
        (
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":4000,"minor":1,"rate":5}]}}"#,
            vec!["blockIO.throttleReadBpsDevice 4000:1 5", "existing block device"],
        ),
        (r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#, vec!["hugepageLimits 1", "hugetlb"]),
        (r#"{"unified":{"memory.high":"1"}}"#, vec!["linux.resources.unified", "memory.high"]),
    ] {
        let error = test.manager.update(&resources(json)).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    // tail holds what it has read: more than the limit, and nothing that could be reclaimed.
    test.spawn("head -c 60000000 /dev/zero | (tail -c 50000000; sleep 100)  | (sleep 100)");
    let dir = test.dirs().into_iter().find(|d| d.contains("/memory/")).unwrap();
    wait_for("the memory is used", || {
        let used = std::fs::read_to_string(format!("{dir}/memory.usage_in_bytes")).unwrap();
        used.trim().parse::<u64>().unwrap() > 40_000_000
    });
    let error =
        test.manager.update(&resources(r#"{"memory":{"limit":4194304,"swap":4194304}}"#)).unwrap_err();
    assert!(error.to_string().contains("below the current use of"), "{error}");
}

#[test]
fn v2_names_what_is_missing() {
    let Some(test) = v2() else { return };
    if Path::new(&test.dirs()[0]).join("memory.max").exists() {
        eprintln!("skipped: this cgroup2 has the memory controller");
        return;
    }
    let error = test.manager.apply(&resources(r#"{"memory":{"limit":4194304}}"#)).unwrap_err().to_string();
    assert!(error.contains("memory controller not enabled in /sys/fs/cgroup"), "{error}");
    let error =
        test.manager.apply(&resources(r#"{"unified":{"cgroup.nonsense":"1"}}"#)).unwrap_err().to_string();
    assert!(error.contains("linux.resources.unified.cgroup.nonsense 1"), "{error}");
    // hugetlb is there, and enabled when it is asked for.
    if read(&format!("{}/../cgroup.controllers", test.dirs()[0])).contains("hugetlb") {
        test.manager.apply(&resources(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#)).unwrap();
        let limit = std::fs::read_to_string(Path::new(&test.dirs()[0]).join("hugetlb.2MB.max")).unwrap();
        assert_eq!(limit.trim(), "4194304");
    }
}

/// `cargo test --release --test cgroups_kernel measure -- --ignored --nocapture`; ROUNDS=1 under
/// `strace -f -c` counts syscalls.
#[test]
#[ignore = "a measurement"]
fn measure() {
    let rounds: u32 = std::env::var("ROUNDS").map_or(200, |n| n.parse().unwrap());
    let limits = resources(
        r#"{"memory":{"limit":536870912,"swap":1073741824,"reservation":268435456},"pids":{"limit":100},
        "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0-1"},
        "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":5,"access":"rwm"}]}"#,
    );
    // A hybrid host's cgroup2, mounted alone, has nearly no controllers.
    let poor = Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
        && !read("/sys/fs/cgroup/cgroup.controllers").contains("memory");
    let limits = if poor { Resources { devices: limits.devices, ..Resources::default() } } else { limits };
    let update = if poor {
        "{}"
    } else {
        r#"{"memory":{"limit":402653184},"pids":{"limit":50},"cpu":{"quota":60000}}"#
    };
    let update = resources(update);
    let columns = ["plan", "create", "apply", "placement", "update", "freeze + thaw", "stats", "destroy"];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); columns.len()];
    for _ in 0..rounds {
        let id = name();
        let mut column = times.iter_mut();
        let mut timed = |work: &mut dyn FnMut()| {
            let start = Instant::now();
            work();
            column.next().unwrap().push(start.elapsed());
        };
        // Removed also when an expectation fails.
        let mut guard = Test { manager: Manager::Disabled, children: Vec::new() };
        let manager = &mut guard.manager;
        timed(&mut || *manager = Manager::plan(Driver::Cgroupfs, None, &id, false).unwrap());
        timed(&mut || manager.create().unwrap());
        timed(&mut || manager.apply(&limits).unwrap());
        let mut placement = Placement::None;
        timed(&mut || placement = manager.placement().unwrap());
        drop(placement);
        // Later commands begin with a record and nothing open.
        let later = || Manager::from_record(&manager.record());
        timed(&mut || later().update(&update).unwrap());
        timed(&mut || {
            later().freeze().unwrap();
            later().thaw().unwrap();
        });
        timed(&mut || drop(later().stats().unwrap()));
        timed(&mut || later().destroy().unwrap());
    }
    for (what, mut column) in columns.into_iter().zip(times) {
        column.sort();
        println!("{what}: median {:?}, p25 {:?}", column[column.len() / 2], column[column.len() / 4]);
    }
}
