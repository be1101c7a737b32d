//! The options of `create --image` and `run --image`.

use super::table::{Args, Flag, Positional, option, switch};
use super::update::bytes;
use crate::error::{Class, Error, Result};
use crate::image::Options;
use crate::runtime::{self, FromImage};
use std::path::PathBuf;

/// How many options there are.
pub(super) const COUNT: usize = 48;

/// They mean something only together with `--image`.
pub(super) const FLAGS: [Flag; COUNT] = [
    option("image", "IMAGE", "make the container from this image: a name, or an archive to import first"),
    option("name", "NAME", "the container's id, in place of the argument [default: one is made up]"),
    switch("tty", "give the payload a terminal").short('t'),
    switch("interactive", "taken for compatibility: standard input is always the payload's").short('i'),
    option("env", "NAME=VALUE", "set a variable; a NAME alone passes on the caller's").short('e').many(),
    option("env-file", "FILE", "a file of such lines").many(),
    option("user", "USER[:GROUP]", "who runs the payload, by the image's passwd and group").short('u'),
    option("workdir", "DIR", "where the payload is run; made when it is missing").short('w'),
    option("entrypoint", "PROGRAM", "in place of the image's Entrypoint and Cmd"),
    switch("init", "have an init pass signals on and wait for orphans: PID 1, before the payload"),
    switch("read-only", "make the root filesystem read-only"),
    option(
        "volume",
        "SOURCE:DIR[:OPTIONS]",
        "mount a directory of the host, or a volume by its name; DIR alone is a scratch one",
    )
    .short('v')
    .many(),
    option("tmpfs", "DIR[:OPTIONS]", "mount a tmpfs").many(),
    option("memory", "BYTES", "memory limit; k, m and g may follow").short('m'),
    option("cpus", "N", "how many CPUs' time it may use: 1.5"),
    option("pids-limit", "N", "most processes; -1 is unlimited"),
    option("cap-add", "CAP", "give a capability, or ALL").many(),
    option("cap-drop", "CAP", "take a capability away, or ALL").many(),
    option("hostname", "NAME", "the host's name in the container [default: its id]"),
    option("label", "KEY=VALUE", "set an annotation").short('l').many(),
    option("ulimit", "NAME=SOFT[:HARD]", "set a resource limit").many(),
    option("security-opt", "OPTION", "seccomp=unconfined|FILE, no-new-privileges=BOOL, or apparmor=PROFILE")
        .many(),
    switch(
        "privileged",
        "keep nothing from it: all capabilities and devices, no seccomp, /proc and /sys open",
    ),
    option("device", "DEVICE[:PLACE][:rwm]", "give a device of the host").many(),
    option("mount", "type=TYPE,source=PATH,target=DIR", "mount; TYPE is bind, tmpfs or volume; also ro")
        .many(),
    option("pid", "NAMESPACE", "private, host or container:ID: whose processes it sees [default: private]"),
    option("ipc", "NAMESPACE", "private or host: whose shared memory [default: private]"),
    option("uts", "NAMESPACE", "private or host: whose host name [default: private]"),
    option(
        "userns",
        "NAMESPACE",
        "host, or auto: ids of its own, of those set aside in /etc/subuid [default: host]",
    ),
    option(
        "uidmap",
        "CONTAINER:HOST:COUNT",
        "a user namespace with these users; without --gidmap, and groups",
    )
    .many(),
    option("gidmap", "CONTAINER:HOST:COUNT", "the same for groups").many(),
    option("group-add", "GROUP", "one more group of the payload, by the image's group file").many(),
    option("sysctl", "KEY=VALUE", "set a kernel parameter that is the container's own").many(),
    option("stop-signal", "SIGNAL", "what `stop` sends [default: the image's, or TERM]"),
    option("shm-size", "BYTES", "size of /dev/shm; k, m and g may follow [default: 64m]"),
    option("add-host", "NAME:ADDRESS", "a line for /etc/hosts").many(),
    option("dns", "ADDRESS", "a resolver, in place of the host's").many(),
    option("dns-search", "DOMAIN", "where names are looked up, in place of the host's").many(),
    option("memory-swap", "BYTES", "limit of memory and swap together; -1 is none"),
    option("memory-reservation", "BYTES", "memory that it is to keep when memory is short"),
    option("cpu-shares", "N", "CPU weight against others; 1024 is usual").short('c'),
    option("cpuset-cpus", "LIST", "which CPUs it may use: 0-3,8"),
    option(
        "cgroup-parent",
        "CGROUP",
        "the cgroup to make the container's in: a path, or a slice of systemd's",
    ),
    option("oom-score-adj", "N", "-1000 to 1000: how soon the kernel ends it when memory is out"),
    option("platform", "OS/ARCH", "which image of an archive or layout [default: this machine's]"),
    option("network", "NETWORK", "none (loopback only), host, container:ID or cni:NAME [default: none]"),
    option("publish", "[ADDRESS:]HOST:PORT[/PROTOCOL]", "publish a port of the container (CNI)")
        .short('p')
        .many(),
    option("cni-conf-dir", "DIR", "where CNI networks are described [default: /etc/cni/net.d]"),
];

/// The id, which `--image` makes up when it is not there.
pub(super) const ID: Positional = Positional { required_unless: Some("image"), ..super::table::ID };

/// What is run in place of the image's Cmd.
pub(super) const COMMAND: Positional = Positional {
    name: "command",
    required: false,
    required_unless: None,
    rest: true,
    greedy: false,
    many: false,
    last: true,
    help: "with --image: what to run in place of the image's Cmd",
};

/// The options of a command followed by those of images.
pub(super) const fn with<const OWN: usize, const ALL: usize>(own: [Flag; OWN]) -> [Flag; ALL] {
    let mut all = [FLAGS[0]; ALL];
    let mut at = 0;
    while at < ALL {
        all[at] = if at < OWN { own[at] } else { FLAGS[at - OWN] };
        at += 1;
    }
    all
}

/// What is asked of an image; `None` when the container is to come from a bundle.
pub(super) fn from_image(args: &Args) -> Result<Option<FromImage>> {
    let Some(image) = args.value("image") else {
        let stray = FLAGS.iter().find(|flag| args.given.iter().any(|(name, _)| *name == flag.long));
        let word = stray.map(|flag| format!("--{}", flag.long));
        let word = word.or_else(|| args.last.first().map(|_| "a command".to_owned()));
        return match word {
            Some(word) => Err(Error::new(Class::Usage, format!("{word} needs --image"))
                .because("without it config.json says how the container is made")),
            None => Ok(None),
        };
    };
    if args.value("bundle").is_some() {
        return Err(Error::new(Class::Usage, "--image and --bundle exclude each other"));
    }
    let id = match (args.positional(0), args.value("name")) {
        (Some(id), Some(name)) if id != name => {
            return Err(Error::new(Class::Usage, "two names for one container").on(format!("{id}, {name}")));
        }
        (id, name) => id.or(name).map(str::to_owned),
    };
    Ok(Some(FromImage {
        image: image.to_owned(),
        id,
        options: options(args)?,
        network: args.value("network").map(str::to_owned),
        cni_directory: args.value("cni-conf-dir").map(PathBuf::from),
        publish: args.values("publish"),
        cgroup_parent: args.value("cgroup-parent").map(str::to_owned),
        platform: super::image::platform(args)?,
    }))
}

fn options(args: &Args) -> Result<Options> {
    let text = |name: &str| args.value(name).map(str::to_owned);
    Ok(Options {
        command: args.last.clone(),
        terminal: args.is_on("tty"),
        env: args.values("env"),
        env_files: args.values("env-file"),
        user: text("user"),
        workdir: text("workdir"),
        entrypoint: text("entrypoint"),
        init: args.is_on("init"),
        read_only: args.is_on("read-only"),
        volumes: args.values("volume"),
        tmpfs: args.values("tmpfs"),
        memory: bytes(args, "memory")?,
        cpus: text("cpus"),
        pids_limit: super::number(args, "pids-limit")?,
        cap_add: args.values("cap-add"),
        cap_drop: args.values("cap-drop"),
        hostname: text("hostname"),
        labels: args.values("label"),
        ulimits: args.values("ulimit"),
        security: args.values("security-opt"),
        privileged: args.is_on("privileged"),
        devices: args.values("device"),
        mounts: args.values("mount"),
        pid: text("pid"),
        ipc: text("ipc"),
        uts: text("uts"),
        userns: text("userns"),
        uid_maps: args.values("uidmap"),
        gid_maps: args.values("gidmap"),
        group_add: args.values("group-add"),
        sysctls: args.values("sysctl"),
        stop_signal: stop_signal(args)?,
        shm_size: bytes(args, "shm-size")?.filter(|size| *size > 0),
        add_hosts: args.values("add-host"),
        dns: args.values("dns"),
        dns_search: args.values("dns-search"),
        memory_swap: bytes(args, "memory-swap")?,
        memory_reservation: bytes(args, "memory-reservation")?,
        cpu_shares: super::number(args, "cpu-shares")?,
        cpuset_cpus: text("cpuset-cpus"),
        oom_score_adj: super::number(args, "oom-score-adj")?,
        ..Options::default()
    })
}

fn stop_signal(args: &Args) -> Result<Option<String>> {
    args.value("stop-signal").map(|text| runtime::parse_signal(text).map(|_| text.to_owned())).transpose()
}
