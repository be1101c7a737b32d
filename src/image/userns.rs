//! Which ids of the host a container's user namespace has: `--userns auto`, `--uidmap` and `--gidmap`.

use super::container;
use super::options::{Options, wrong};
use super::store::Store;
use crate::error::{Class, Context as _, Error, Result};
use crate::namespaces::Maps;
use crate::spec::IdMapping;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::path::Path;

/// How many ids a container gets by `auto`, as everywhere: images have owners up to 65534.
const SIZE: u32 = 65_536;

/// The users whose ranges in /etc/subuid and /etc/subgid `auto` takes: dhow's own, or podman's.
const OWNERS: [&str; 2] = ["dhow", "containers"];

/// The maps that the options ask for; with `auto` of ids that no other container has. The fd keeps others
/// from choosing until config.json is written.
///
/// # Errors
/// For a map that is none, and where no ids are left.
pub(super) fn maps(store: &Store, options: &Options) -> Result<Option<(Maps, Option<OwnedFd>)>> {
    let asked = !options.uid_maps.is_empty() || !options.gid_maps.is_empty();
    match options.userns.as_deref() {
        None | Some("host" | "") if !asked => return Ok(None),
        None => {}
        Some("auto") if !asked => return automatic(store).map(|(maps, lock)| Some((maps, Some(lock)))),
        Some("auto" | "host") => {
            return Err(Error::new(Class::Usage, "--userns and --uidmap exclude each other"));
        }
        Some(other) => return Err(wrong("userns", other, "it is host or auto")),
    }
    let read = |option: &str, list: &[String]| -> Result<Vec<IdMapping>> {
        list.iter()
            .map(|text| parse(text).ok_or_else(|| wrong(option, text, "it is CONTAINER:HOST:COUNT")))
            .collect()
    };
    let (uids, gids) = (read("uidmap", &options.uid_maps)?, read("gidmap", &options.gid_maps)?);
    // One of both stands for both, as in podman.
    let maps = match (uids.is_empty(), gids.is_empty()) {
        (true, _) => Maps { uids: gids.clone(), gids },
        (_, true) => Maps { gids: uids.clone(), uids },
        _ => Maps { uids, gids },
    };
    Ok(Some((maps, None)))
}

fn parse(text: &str) -> Option<IdMapping> {
    let mut numbers = text.split(':').map(|number| number.parse::<u32>().ok());
    let (container_id, host_id, size) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let fits = container_id.checked_add(size)?.max(host_id.checked_add(size)?) > 0;
    (numbers.next().is_none() && size > 0 && fits).then_some(IdMapping { container_id, host_id, size })
}

fn automatic(store: &Store) -> Result<(Maps, OwnedFd)> {
    let doing = "choose ids for the user namespace";
    let place = container::place(store.root());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = open(&place, flags, Mode::empty()).doing(doing)?;
    flock(&lock, FlockOperation::LockExclusive).doing(doing)?;
    let taken = |key: &str| -> Vec<IdMapping> {
        let entries = std::fs::read_dir(&place).into_iter().flatten().flatten();
        entries.flat_map(|entry| maps_of(&entry.path(), key)).collect()
    };
    let choose = |file: &str, key: &str| -> Result<Vec<IdMapping>> {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let host_id = free(&ranges(&text), &taken(key)).ok_or_else(|| {
            Error::new(Class::Config, doing)
                .on("--userns auto")
                .because(format!("{file} has no {SIZE} free ids for \"{}\" or \"{}\"", OWNERS[0], OWNERS[1]))
                .hint(format!(
                    "`echo containers:2147483648:1048576 >> {file}` gives it those of 16 containers"
                ))
        })?;
        Ok(vec![IdMapping { container_id: 0, host_id, size: SIZE }])
    };
    let (uids, gids) = (choose("/etc/subuid", "uidMappings")?, choose("/etc/subgid", "gidMappings")?);
    Ok((Maps { uids, gids }, lock))
}

/// What a container has, by its config.json.
fn maps_of(bundle: &Path, key: &str) -> Vec<IdMapping> {
    let text = std::fs::read(bundle.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_slice(&text).unwrap_or_default();
    serde_json::from_value(config["linux"][key].clone()).unwrap_or_default()
}

/// The ranges of [`OWNERS`] in a file of subuid(5)'s form: first id and how many.
fn ranges(text: &str) -> Vec<(u32, u32)> {
    let fields = text.lines().filter_map(|line| {
        let (owner, numbers) = line.split_once(':')?;
        let (first, count) = numbers.split_once(':')?;
        OWNERS.contains(&owner).then(|| Some((first.trim().parse().ok()?, count.trim().parse().ok()?)))?
    });
    fields.collect()
}

/// The first id of as many as are wanted in a row, of which none is taken.
fn free(ranges: &[(u32, u32)], taken: &[IdMapping]) -> Option<u32> {
    ranges.iter().find_map(|&(first, count)| {
        let end = first.checked_add(count)?;
        let mut start = first;
        while start.checked_add(SIZE)? <= end {
            let overlaps = |map: &&IdMapping| {
                start < map.host_id.saturating_add(map.size) && map.host_id < start.saturating_add(SIZE)
            };
            match taken.iter().find(overlaps) {
                None => return Some(start),
                Some(map) => start = map.host_id.saturating_add(map.size),
            }
        }
        None
    })
}

/// Puts the maps into a configuration: the files of the image, and those that dhow makes for the container,
/// show their owners in it.
///
/// # Errors
/// For what a user namespace cannot share or give.
pub(super) fn apply(maps: &Maps, options: &Options, config: &mut Value) -> Result<()> {
    let shares = |kind: &str| {
        let all = config["linux"]["namespaces"].as_array();
        !all.is_some_and(|all| all.iter().any(|namespace| namespace["type"] == kind))
    };
    let conflict = match () {
        () if options.privileged => Some("--privileged".to_owned()),
        () if shares("network") || options.joins.contains_key("network") => {
            Some("--network host or container:ID".to_owned())
        }
        () => ["pid", "ipc", "uts"]
            .into_iter()
            .find(|kind| shares(kind) || super::options::joins(options).contains_key(*kind))
            .map(|kind| format!("--{kind} host or container:ID")),
    };
    if let Some(option) = conflict {
        return Err(Error::new(Class::Usage, format!("{option} and a user namespace exclude each other"))
            .because("what is outside of it belongs to users that it does not have"));
    }
    for (kind, map, id) in [
        ("user", &maps.uids, &config["process"]["user"]["uid"]),
        ("group", &maps.gids, &config["process"]["user"]["gid"]),
    ] {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
        for id in [0, id] {
            if !super::owners::has(map, id) {
                return Err(Error::new(Class::Usage, format!("{kind} {id} is not mapped"))
                    .hint("a map must have 0 and the payload's own: --uidmap 0:100000:65536"));
            }
        }
    }
    let entries = |map: &[IdMapping]| -> Vec<Value> {
        let one = |map: &IdMapping| json!({"containerID": map.container_id, "hostID": map.host_id, "size": map.size});
        map.iter().map(one).collect()
    };
    let linux = &mut config["linux"];
    linux["uidMappings"] = json!(entries(&maps.uids));
    linux["gidMappings"] = json!(entries(&maps.gids));
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "user"}));
    }
    let own = |mount: &Value| {
        let source = mount["source"].as_str().map(Path::new);
        let of_etc = options.etc.as_ref().zip(source).is_some_and(|(etc, source)| source.starts_with(etc));
        of_etc || options.named.values().any(|volume| Some(volume.as_path()) == source)
    };
    for mount in config["mounts"].as_array_mut().into_iter().flatten().filter(|mount| own(mount)) {
        if let Some(words) = mount["options"].as_array_mut() {
            words.push(json!("idmap"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_that_nobody_has() {
        let text = "root:1:70000\ncontainers:100000:200000\nx\ndhow:500000:65536\n";
        let ranges = ranges(text);
        assert_eq!(ranges, [(100_000, 200_000), (500_000, 65_536)]);
        let map = |host_id, size| IdMapping { container_id: 0, host_id, size };
        assert_eq!(free(&ranges, &[]), Some(100_000));
        assert_eq!(free(&ranges, &[map(100_000, SIZE)]), Some(165_536));
        assert_eq!(free(&ranges, &[map(165_536, SIZE), map(150_000, 1)]), Some(231_072));
        assert_eq!(free(&ranges, &[map(100_000, 200_000)]), Some(500_000));
        assert_eq!(free(&ranges, &[map(0, u32::MAX)]), None);
        assert_eq!(free(&[(u32::MAX - 5, 10)], &[]), None);
    }

    #[test]
    fn maps_as_podman_writes_them() {
        assert_eq!(
            parse("0:100000:65536"),
            Some(IdMapping { container_id: 0, host_id: 100_000, size: SIZE })
        );
        for wrong in ["", "0:1", "0:1:0", "0:1:2:3", "a:1:1", "1:4294967295:1", "-1:0:1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
