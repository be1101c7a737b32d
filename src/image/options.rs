//! What a person asks of a container made from an image, in the words that Docker and podman take.

use super::mount_option;
use super::volumes::{self, Wanted};
use crate::error::{Class, Context as _, Error, Result};
use crate::namespaces::Maps;
use crate::spec::{annotations, defaults, load};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How a container differs from what its image says.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is run in place of the image's Cmd.
    pub command: Vec<String>,
    /// Whether the payload gets a terminal.
    pub terminal: bool,
    /// `NAME=VALUE`, or `NAME` to pass on the caller's.
    pub env: Vec<String>,
    /// Files of such lines.
    pub env_files: Vec<String>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Where the payload is run.
    pub workdir: Option<String>,
    /// In place of the image's Entrypoint; the image's Cmd is then left out too.
    pub entrypoint: Option<String>,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// `SOURCE:PLACE[:OPTIONS]`, or a place alone for a scratch volume.
    pub volumes: Vec<String>,
    /// `PLACE[:OPTIONS]`.
    pub tmpfs: Vec<String>,
    /// Bytes.
    pub memory: Option<i64>,
    /// CPUs, `1.5`.
    pub cpus: Option<String>,
    /// Most processes.
    pub pids_limit: Option<i64>,
    /// Capabilities beside the default ones, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities that are taken away, or `ALL`.
    pub cap_drop: Vec<String>,
    /// The host's name in the container.
    pub hostname: Option<String>,
    /// `KEY=VALUE`.
    pub labels: Vec<String>,
    /// `NAME=SOFT[:HARD]`.
    pub ulimits: Vec<String>,
    /// `seccomp=unconfined|FILE`, `no-new-privileges[=BOOL]`.
    pub security: Vec<String>,
    /// Whether nothing is kept from the container: every capability and device, no seccomp.
    pub privileged: bool,
    /// `DEVICE[:PLACE][:rwm]`.
    pub devices: Vec<String>,
    /// `type=bind|volume|tmpfs,source=…,target=…`.
    pub mounts: Vec<String>,
    /// `private` or `host`.
    pub pid: Option<String>,
    /// `private` or `host`.
    pub ipc: Option<String>,
    /// `private` or `host`.
    pub uts: Option<String>,
    /// Supplementary groups, by the image's group file or by number.
    pub group_add: Vec<String>,
    /// `KEY=VALUE`.
    pub sysctls: Vec<String>,
    /// What `stop` sends.
    pub stop_signal: Option<String>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<i64>,
    /// `NAME:ADDRESS`, for /etc/hosts.
    pub add_hosts: Vec<String>,
    /// Resolvers, in place of the host's.
    pub dns: Vec<String>,
    /// Domains in which names are looked up.
    pub dns_search: Vec<String>,
    /// Bytes of memory and swap together; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// Bytes that it is to keep when memory is short.
    pub memory_reservation: Option<i64>,
    /// Weight against other containers; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// `0-3,8`.
    pub cpuset_cpus: Option<String>,
    /// How gladly the kernel ends it when memory is out.
    pub oom_score_adj: Option<i32>,
    /// Whether an init of dhow's own comes before the payload.
    pub init: bool,
    /// Containers whose namespaces are shared, by `network` or `pid`.
    pub joins: BTreeMap<String, String>,
    /// The container's cgroup, in the words of `linux.cgroupsPath`.
    pub cgroups_path: Option<String>,
    /// `host` or `auto`.
    pub userns: Option<String>,
    /// `CONTAINER:HOST:COUNT`.
    pub uid_maps: Vec<String>,
    /// `CONTAINER:HOST:COUNT`.
    pub gid_maps: Vec<String>,
    /// The maps of a user namespace, once they are chosen.
    pub user_maps: Option<Maps>,
    /// Whether the network is the host's.
    pub host_network: bool,
    /// Whether the writable layer goes when the payload ends, so that it need not be on the disk.
    pub ephemeral: bool,
    /// The directory of the container whose network, and so /etc/hosts and /etc/resolv.conf, is shared.
    pub etc_of: Option<PathBuf>,
    /// The directory of the container's own /etc/hostname, /etc/hosts and /etc/resolv.conf.
    pub etc: Option<PathBuf>,
    /// Directories of the container's own for volumes without a source, by their places; the others
    /// are kept in memory.
    pub own_volumes: BTreeMap<String, PathBuf>,
    /// Directories of named volumes, by their names.
    pub named: BTreeMap<String, PathBuf>,
}

/// The containers whose namespaces are shared, by the kind of namespace.
pub(super) fn joins(options: &Options) -> BTreeMap<String, String> {
    let mut all = options.joins.clone();
    let pid = options.pid.as_deref().and_then(|asked| asked.strip_prefix("container:"));
    all.extend(pid.map(|id| ("pid".to_owned(), id.to_owned())));
    all
}

/// The error for an option's value.
pub(super) fn wrong(option: &str, value: &str, cause: impl Into<String>) -> Error {
    Error::new(Class::Usage, format!("invalid value of --{option}")).on(format!("{value:?}")).because(cause)
}

/// Puts a variable in, in place of one of the same name.
fn set(env: &mut Vec<String>, entry: String) {
    let name = entry.split('=').next().unwrap_or_default();
    env.retain(|other| other.split('=').next() != Some(name));
    env.push(entry);
}

/// The environment: the image's, then what the files and the options say.
///
/// # Errors
/// When a file cannot be read, or a name is empty.
pub(super) fn environment(options: &Options, image: &[String]) -> Result<Vec<String>> {
    let mut env = image.to_vec();
    let mut take = |entry: &str, option: &str| {
        match entry.split_once('=') {
            Some(("", _)) => return Err(wrong(option, entry, "a variable needs a name")),
            Some(_) => set(&mut env, entry.to_owned()),
            // A name alone passes on the caller's variable, if there is one.
            None => match std::env::var(entry) {
                Ok(value) => set(&mut env, format!("{entry}={value}")),
                Err(_) => env.retain(|other| other.split('=').next() != Some(entry)),
            },
        }
        Ok(())
    };
    for file in &options.env_files {
        let text = load::read(Path::new(file)).map_err(|error| error.hint("--env-file needs a file"))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        for line in
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            take(line, "env-file")?;
        }
    }
    options.env.iter().try_for_each(|entry| take(entry, "env"))?;
    Ok(env)
}

/// The capabilities: Docker's, without those that are dropped, with those that are added.
///
/// # Errors
/// For a name that the kernel does not know.
pub(super) fn capabilities(options: &Options) -> Result<Vec<String>> {
    let known: Vec<String> = caps::all().into_iter().map(|one| one.to_string()).collect();
    let named = |text: &str, option: &str| {
        let name = text.to_ascii_uppercase();
        let name = if name == "ALL" || name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
        match name == "ALL" || known.contains(&name) {
            true => Ok(name),
            false => Err(wrong(option, text, "there is no such capability")),
        }
    };
    let names = |list: &[String], option: &str| {
        list.iter().flat_map(|one| one.split(',')).map(|one| named(one, option)).collect::<Result<Vec<_>>>()
    };
    let (add, drop) = (names(&options.cap_add, "cap-add")?, names(&options.cap_drop, "cap-drop")?);
    let adds_all = options.privileged || add.iter().any(|one| one == "ALL");
    let mut all: Vec<String> = match (adds_all, drop.iter().any(|one| one == "ALL")) {
        (true, _) => known.iter().filter(|one| can_be_given(one)).cloned().collect(),
        (false, true) => Vec::new(),
        (false, false) => defaults::CAPABILITIES.iter().map(|one| (*one).to_owned()).collect(),
    };
    all.retain(|one| !drop.contains(one));
    for one in add {
        if one != "ALL" && !all.contains(&one) {
            all.push(one);
        }
    }
    all.sort_unstable();
    Ok(all)
}

/// Whether dhow could give a capability: all of them are more than some machines let it have.
fn can_be_given(name: &str) -> bool {
    let capability = name.parse::<caps::Capability>();
    capability.is_ok_and(|one| caps::has_cap(None, caps::CapSet::Bounding, one).unwrap_or(false))
}

/// The mounts that options ask for.
///
/// # Errors
/// For a source or a place that is not absolute, and options that nobody knows.
pub(super) fn mounts(options: &Options) -> Result<Vec<Value>> {
    let volumes = options.volumes.iter().map(|text| volume(text, options));
    let more = options.mounts.iter().map(|text| mount_option::mount(text, options));
    volumes.chain(options.tmpfs.iter().map(|text| tmpfs(text))).chain(more).collect()
}

fn volume(text: &str, options: &Options) -> Result<Value> {
    let refuse = |cause: &str| wrong("volume", text, cause);
    let parts: Vec<&str> = text.split(':').collect();
    let (source, place, words) = match parts[..] {
        [place] => {
            return scratch(place, options)
                .ok_or_else(|| refuse("the place in the container must be absolute"));
        }
        [source, place] => (source, place, ""),
        [source, place, words] => (source, place, words),
        _ => return Err(refuse("it must be SOURCE:PLACE or SOURCE:PLACE:OPTIONS")),
    };
    if !place.starts_with('/') {
        return Err(refuse("the place in the container must be absolute"));
    }
    let is_named = !source.starts_with(['/', '.']);
    if is_named && !volumes::is_name(source) {
        return Err(refuse("the source is neither a path nor a volume's name")
            .hint("give a directory of the host: /PATH or ./PATH"));
    }
    let mut mount_options = vec!["rbind".to_owned()];
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            // Labels of SELinux, which `docker run` takes everywhere.
            "z" | "Z" | "rw" => {}
            "ro" | "nosuid" | "nodev" | "noexec" | "private" | "rprivate" | "slave" | "rslave" | "shared"
            | "rshared" => mount_options.push(word.to_owned()),
            "bind" | "rbind" => mount_options[0] = word.to_owned(),
            NOCOPY if is_named => {}
            other => return Err(refuse(&format!("there is no option {other:?}"))),
        }
    }
    if is_named {
        return Ok(json!({"destination": place, "type": "bind", "source": named(source, options)?,
            "options": mount_options}));
    }
    let source = std::path::absolute(source).doing_on("find the source of a volume", || source)?;
    if !source.exists() {
        return Err(refuse("the source is not there").hint(format!("make it: {}", source.display())));
    }
    Ok(json!({"destination": place, "type": "bind", "source": source, "options": mount_options}))
}

/// The option by which a volume does not begin with what the image has.
const NOCOPY: &str = "nocopy";

/// Where a named volume's files are.
///
/// # Errors
/// [`Class::Usage`] for a bundle, which nobody could ask whether it has the volume still.
pub(super) fn named<'a>(name: &str, options: &'a Options) -> Result<&'a PathBuf> {
    options.named.get(name).ok_or_else(|| {
        wrong("volume", name, "a bundle has no named volumes")
            .hint("`dhow run --image` has; a bundle takes a directory of the host: /PATH or ./PATH")
    })
}

/// The named volumes that the options ask for.
///
/// # Errors
/// For a `--mount` that is none.
pub(super) fn named_volumes(options: &Options) -> Result<Vec<Wanted>> {
    let of_volume = |text: &String| {
        let mut parts = text.split(':');
        let (name, place, words) = (parts.next()?, parts.next()?, parts.next().unwrap_or_default());
        let fill = !words.split(',').any(|word| word == NOCOPY);
        volumes::is_name(name).then(|| Wanted { name: name.to_owned(), place: place.to_owned(), fill })
    };
    let mut all: Vec<Wanted> = options.volumes.iter().filter_map(of_volume).collect();
    for text in &options.mounts {
        all.extend(mount_option::named_volume(text)?);
    }
    Ok(all)
}

/// The places of volumes without a source that the caller asks for.
pub(super) fn scratch_places(options: &Options) -> impl Iterator<Item = String> {
    let volumes = options.volumes.iter().filter(|text| text.starts_with('/') && !text.contains(':'));
    volumes.cloned().chain(options.mounts.iter().filter_map(|text| mount_option::scratch_place(text)))
}

/// A volume without a source: a directory of the container's own, or a tmpfs; both begin with what
/// the image has there. `None` for what can be no volume's place.
pub(super) fn scratch(place: &str, options: &Options) -> Option<Value> {
    if !place.starts_with('/') || Path::new(place).file_name().is_none() {
        return None;
    }
    Some(match options.own_volumes.get(place) {
        Some(own) => {
            json!({"destination": place, "type": "bind", "source": own, "options": ["bind", "rprivate"]})
        }
        None => json!({"destination": place, "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "tmpcopyup", "mode=755"]}),
    })
}

fn tmpfs(text: &str) -> Result<Value> {
    let (place, words) = text.split_once(':').unwrap_or((text, ""));
    if !place.starts_with('/') {
        return Err(wrong("tmpfs", text, "the place in the container must be absolute"));
    }
    let mut all: Vec<&str> = vec!["nosuid", "nodev", "noexec"];
    for word in words.split(',').filter(|word| !word.is_empty()) {
        // `exec` takes back `noexec`, and so on: the last word about it counts.
        let opposite = word.strip_prefix("no").map_or_else(|| format!("no{word}"), str::to_owned);
        all.retain(|other| *other != opposite);
        all.push(word);
    }
    Ok(json!({"destination": place, "type": "tmpfs", "source": "tmpfs", "options": all}))
}

/// `linux.resources` beside the devices.
///
/// # Errors
/// For a number of CPUs that is none.
pub(super) fn resources(options: &Options, resources: &mut Value) -> Result<()> {
    /// CFS's usual period in microseconds.
    const PERIOD: f64 = 100_000.0;
    for (key, bytes) in [
        ("limit", options.memory),
        ("swap", options.memory_swap),
        ("reservation", options.memory_reservation),
    ] {
        if let Some(bytes) = bytes {
            resources["memory"][key] = json!(bytes);
        }
    }
    if let Some(text) = &options.cpus {
        let cpus = text.parse::<f64>().ok().filter(|cpus| (0.01..=100_000.0).contains(cpus));
        let cpus = cpus.ok_or_else(|| wrong("cpus", text, "it must be a number of CPUs, 0.01 or more"))?;
        #[expect(clippy::cast_possible_truncation, reason = "at most 10^10")]
        let quota = (cpus * PERIOD).round() as i64;
        resources["cpu"] = json!({"quota": quota, "period": 100_000});
    }
    if let Some(shares) = options.cpu_shares {
        resources["cpu"]["shares"] = json!(shares);
    }
    if let Some(cpus) = &options.cpuset_cpus {
        resources["cpu"]["cpus"] = json!(cpus);
    }
    if let Some(limit) = options.pids_limit {
        resources["pids"] = json!({"limit": limit});
    }
    Ok(())
}

/// `linux.sysctl`, beside what is there.
///
/// # Errors
/// For what is not `KEY=VALUE`.
pub(super) fn sysctls(options: &Options, linux: &mut Value) -> Result<()> {
    for text in &options.sysctls {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| wrong("sysctl", text, "it must be KEY=VALUE"))?;
        linux["sysctl"][key] = json!(value);
    }
    Ok(())
}

/// The lines of /etc/hosts for `--add-host`.
///
/// # Errors
/// For what is not `NAME:ADDRESS`.
pub(super) fn host_lines(options: &Options) -> Result<String> {
    let line = |text: &String| {
        // An address may have colons.
        let (name, address) = text.split_once([':', '='])?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let is_name =
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        (is_name && address.parse::<std::net::IpAddr>().is_ok()).then(|| format!("{address}\t{name}\n"))
    };
    let cause = "it must be NAME:ADDRESS";
    options.add_hosts.iter().map(|text| line(text).ok_or_else(|| wrong("add-host", text, cause))).collect()
}

/// /etc/resolv.conf, when the options say something of it.
///
/// # Errors
/// For a resolver that is no address, and a domain that is none.
pub(super) fn resolvers(options: &Options, of_host: &str) -> Result<Option<String>> {
    if options.dns.is_empty() && options.dns_search.is_empty() {
        return Ok(None);
    }
    let mut text = String::new();
    for address in &options.dns {
        let address: std::net::IpAddr =
            address.parse().map_err(|_| wrong("dns", address, "it must be an address"))?;
        text.push_str(&format!("nameserver {address}\n"));
    }
    for domain in &options.dns_search {
        let is_domain =
            !domain.is_empty() && domain.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if !is_domain {
            return Err(wrong("dns-search", domain, "it must be a domain"));
        }
    }
    if !options.dns_search.is_empty() {
        text.push_str(&format!("search {}\n", options.dns_search.join(" ")));
    }
    let is_asked = |line: &str| {
        let key = line.split_whitespace().next();
        key == Some("nameserver") && !options.dns.is_empty()
            || matches!(key, Some("search" | "domain")) && !options.dns_search.is_empty()
    };
    text.extend(of_host.lines().filter(|line| !is_asked(line)).map(|line| format!("{line}\n")));
    Ok(Some(text))
}

/// `process.rlimits`.
///
/// # Errors
/// For what is not `NAME=SOFT[:HARD]`.
pub(super) fn rlimits(options: &Options) -> Result<Vec<Value>> {
    options.ulimits.iter().map(|text| rlimit(text)).collect()
}

fn rlimit(text: &str) -> Result<Value> {
    let number = |word: &str| match word {
        "-1" | "unlimited" => Some(u64::MAX),
        word => word.parse().ok(),
    };
    let limit = text.split_once('=').and_then(|(name, limits)| {
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        Some((name, number(soft)?, number(hard)?))
    });
    let (name, soft, hard) = limit.ok_or_else(|| wrong("ulimit", text, "it must be NAME=SOFT[:HARD]"))?;
    let name = format!("RLIMIT_{}", name.to_ascii_uppercase());
    Ok(json!({"type": name, "soft": soft, "hard": hard}))
}

/// Labels as annotations. None of them may be one that asks something of the runtime.
///
/// # Errors
/// For a key that is reserved, or none.
pub(super) fn labels(options: &Options) -> Result<Vec<(String, String)>> {
    let split = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        match key {
            "" => Err(wrong("label", text, "a label needs a key")),
            key if annotations::is_control(key) => {
                Err(wrong("label", text, "this key asks something of the runtime, which a label cannot"))
            }
            key => Ok((key.to_owned(), value.to_owned())),
        }
    };
    options.labels.iter().map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn variables_replace_each_other() {
        let options = Options { env: words(&["B=3", "D", "C="]), ..Options::default() };
        let env = environment(&options, &words(&["A=1", "B=2", "D=9"])).unwrap();
        assert_eq!(env, ["A=1", "B=3", "C="]);
        let passed = Options { env: words(&["PATH"]), ..Options::default() };
        assert_eq!(environment(&passed, &[]).unwrap(), [format!("PATH={}", std::env::var("PATH").unwrap())]);
        assert!(environment(&Options { env: words(&["=x"]), ..Options::default() }, &[]).is_err());
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: &[&str], drop: &[&str]| {
            capabilities(&Options { cap_add: words(add), cap_drop: words(drop), ..Options::default() })
        };
        assert_eq!(of(&[], &[]).unwrap().len(), 14);
        assert_eq!(of(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!of(&["all"], &["sys_admin"]).unwrap().contains(&"CAP_SYS_ADMIN".into()));
        assert!(of(&["ALL"], &[]).unwrap().iter().all(|one| can_be_given(one)));
        assert!(
            !of(&[], &["CAP_CHOWN,KILL"]).unwrap().iter().any(|one| one == "CAP_CHOWN" || one == "CAP_KILL")
        );
        assert!(of(&["nonsense"], &[]).is_err() && of(&[], &[""]).is_err());
    }

    #[test]
    fn volumes_as_people_write_them() {
        let of = |text: &str| {
            mounts(&Options { volumes: words(&[text]), ..Options::default() }).map(|m| m[0].clone())
        };
        assert_eq!(of("/tmp:/x:ro,Z").unwrap()["options"], json!(["rbind", "ro"]));
        assert_eq!(of("/data").unwrap()["type"], "tmpfs");
        let here = of("./src:/x").unwrap()["source"].as_str().unwrap().to_owned();
        assert_eq!(Path::new(&here), std::env::current_dir().unwrap().join("src"));
        for text in [
            "/tmp:x",
            "da ta:/x",
            "data:/x",
            "data:/x:nonsense",
            "/tmp:/x:nocopy",
            "/tmp:/x:nonsense",
            "/a:/b:c:d",
            "x",
            "/no/such/place:/x",
        ] {
            assert!(of(text).is_err(), "{text}");
        }
        let of = |text: &str| {
            mounts(&Options { tmpfs: words(&[text]), ..Options::default() }).map(|m| m[0].clone())
        };
        assert_eq!(of("/x").unwrap()["options"], json!(["nosuid", "nodev", "noexec"]));
        assert_eq!(of("/x:size=1m,exec").unwrap()["options"], json!(["nosuid", "nodev", "size=1m", "exec"]));
        assert!(of("x").is_err());
    }

    #[test]
    fn limits_as_people_write_them() {
        let mut value = json!({});
        let options =
            Options { cpus: Some("1.5".into()), memory: Some(5), pids_limit: Some(7), ..Options::default() };
        resources(&options, &mut value).unwrap();
        assert_eq!(value["cpu"], json!({"quota": 150_000, "period": 100_000}));
        assert_eq!((&value["memory"]["limit"], &value["pids"]["limit"]), (&json!(5), &json!(7)));
        for cpus in ["0", "-1", "x", "nan", "inf"] {
            let options = Options { cpus: Some(cpus.into()), ..Options::default() };
            assert!(resources(&options, &mut json!({})).is_err(), "{cpus}");
        }
        assert_eq!(rlimit("nofile=1:2").unwrap(), json!({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}));
        assert_eq!(rlimit("core=-1").unwrap()["hard"], json!(u64::MAX));
        assert!(rlimit("nofile").is_err() && rlimit("nofile=x").is_err());
    }

    #[test]
    fn names_and_resolvers_as_people_write_them() {
        let hosts = |list: &[&str]| host_lines(&Options { add_hosts: words(list), ..Options::default() });
        assert_eq!(hosts(&["a:1.2.3.4", "b=::1", "c:[::2]"]).unwrap(), "1.2.3.4\ta\n::1\tb\n::2\tc\n");
        for text in ["a", "a:", ":1.2.3.4", "a b:1.2.3.4", "a:1.2.3.4\nx", "a\n:1.2.3.4", "a:host-gateway"] {
            assert!(hosts(&[text]).is_err(), "{text}");
        }
        let of = |dns: &[&str], search: &[&str]| {
            let options = Options { dns: words(dns), dns_search: words(search), ..Options::default() };
            resolvers(&options, "nameserver 9.9.9.9\nsearch host\noptions x\n")
        };
        assert_eq!(of(&[], &[]).unwrap(), None);
        assert_eq!(of(&["1.1.1.1"], &[]).unwrap().unwrap(), "nameserver 1.1.1.1\nsearch host\noptions x\n");
        assert_eq!(of(&[], &["a.b", "c"]).unwrap().unwrap(), "search a.b c\nnameserver 9.9.9.9\noptions x\n");
        assert!(of(&["x"], &[]).is_err() && of(&[], &["a b"]).is_err() && of(&[], &[""]).is_err());
    }

    #[test]
    fn a_label_asks_nothing_of_the_runtime() {
        let of = |text: &str| labels(&Options { labels: words(&[text]), ..Options::default() });
        assert_eq!(of("a.b=c=d").unwrap(), [("a.b".to_owned(), "c=d".to_owned())]);
        assert!(of("run.oci.hooks.stdout=/etc/x").is_err() && of("=x").is_err());
    }
}
