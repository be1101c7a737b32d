//! The init: from a bare child to the payload, PID 1 of the container.
//!
//! [`become_payload`] is the whole story. The order of its steps is the kernel's: each says why
//! it comes where it does.

use super::credentials::{self, Identity, Sets};
use super::protocol::{Channel, Message, out_of_turn};
use super::terminal::Terminal;
use super::{explain, filter, hooks, lookup, preflight, reaper, scheduling, stdio};
use crate::error::{Class, Context, Error, Result};
use crate::log;
use crate::namespaces::{self, Plan as NamespacePlan};
use crate::rootfs::{Building, CgroupView, Entered, Pivot, Plan as RootfsPlan};
use crate::seccomp::Program;
use crate::spec::{Hook, HookPoint, NamespaceKind, Process, Spec, State, annotations, sysctl_path};
use crate::sys::procfs::Proc;
use crate::sys::{cred, fd, net, prctl, selfexe, signal, socket, timing};
use nix::sched::CloneFlags;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Everything the init needs to know, decided by the parent before the fork.
#[derive(Debug)]
pub struct Init<'a> {
    /// The container's id.
    pub id: &'a str,
    /// config.json.
    pub spec: &'a Spec,
    /// `process` of it.
    pub process: &'a Process,
    /// The bundle, for the state that hooks get.
    pub bundle: &'a str,
    /// Which namespaces.
    pub namespaces: &'a NamespacePlan,
    /// Those to join, opened.
    pub joins: Vec<(NamespaceKind, OwnedFd)>,
    /// What is done to the rootfs.
    pub rootfs: &'a RootfsPlan,
    /// Whether the parent makes the overlay that is the root.
    pub awaits_root: bool,
    /// Whether there are mounts whose trees only the parent can open or idmap.
    pub needs_trees: bool,
    /// Whether the parent puts it into a network.
    pub joins_network: bool,
    /// What the container sees of its cgroups.
    pub cgroups: CgroupView,
    /// The capability sets.
    pub capabilities: Sets,
    /// How the rootfs is entered.
    pub pivot: Pivot,
    /// The program that stands before the payload, when one is asked for.
    pub stand_in: Option<OwnedFd>,
    /// Where hooks write.
    pub hook_files: &'a hooks::Files,
    /// Whether the container gets a session keyring of its own.
    pub new_keyring: bool,
    /// How many fds after standard error the payload is to have.
    pub preserved_fds: u32,
    /// The seccomp filter.
    pub filter: Option<&'a Program>,
    /// Who says when to start: the parent itself (`run`), or whoever connects to this socket.
    pub listener: Option<OwnedFd>,
}

/// Brings the process that [`super::spawn`] made to the payload's first instruction.
///
/// # Errors
/// The step that failed. The caller sends it to the parent.
pub fn become_payload(init: &Init<'_>, channel: &Channel) -> Result<Infallible> {
    timing::step("enter namespaces and cgroup");
    init.enter_namespaces(channel)?;
    timing::step("begin a session");
    init.begin_session()?;
    let root = init.await_root(channel)?;
    init.await_devices(channel)?;
    timing::step("mount the rootfs");
    let (mut entered, console) = init.build_rootfs(channel, root)?;
    timing::step("sysctls, masks, read-only paths");
    init.finish_rootfs(&mut entered)?;
    timing::step("become the user");
    init.become_user(&mut entered, channel, console)?;
    drop(entered);
    timing::step("look for the program");
    let payload = Payload::prepare(init.process)?;
    let filter = filter::hand_over(init.filter, channel)?;
    timing::step("close what is the host's");
    init.let_go_of_the_host(channel);
    timing::step("wait for start");
    let starter = init.await_start(channel)?;
    let starter = starter.as_ref().unwrap_or(channel);
    timing::step("become the payload");
    let outcome = init.run_payload(filter, &payload);
    let Err(error) = outcome;
    // Whoever started the container hears it; the one that created it has long gone.
    let _ = starter.send(&Message::Failed(error.clone()));
    Err(error)
}

impl Init<'_> {
    /// Joins and makes namespaces, and enters the cgroup in between.
    fn enter_namespaces(&self, channel: &Channel) -> Result<()> {
        let plan = self.namespaces;
        // In a user namespace of its own, nothing may be made before the ids are mapped: it would
        // belong to nobody.
        if !plan.staged && !plan.creates_user() {
            namespaces::join(&self.joins)?;
            namespaces::create(plan.unshare_flags())?;
        }
        enter_cgroup(channel)?;
        scheduling::unbind();
        // In one that is joined, the caller's ids may have no name either.
        if self.in_user_namespace() {
            become_root()?;
        }
        if plan.staged || plan.creates_user() {
            namespaces::create(plan.unshare_flags())?;
        }
        // Its root is the cgroup that this process is in, so it comes after the cgroup.
        if plan.new_cgroup {
            namespaces::create(CloneFlags::CLONE_NEWCGROUP)?;
        }
        // After that: what is delegated lies below the root that the container sees.
        if self.spec.annotations.contains_key(annotations::DELEGATE) {
            match channel.expect()? {
                Message::Delegated(procs) => {
                    rustix::io::write(&procs, b"0").doing("enter the delegated cgroup")?;
                }
                other => return Err(out_of_turn(&other)),
            }
        }
        // Inside, nobody may trace this process or open its files: they are still the host's
        // (CVE-2016-9962). execve(2) makes it dumpable again.
        prctl::set_dumpable(false).doing("become undumpable")
    }

    /// Takes the root that the parent has put together meanwhile.
    fn await_root(&self, channel: &Channel) -> Result<Option<OwnedFd>> {
        if !self.awaits_root {
            return Ok(None);
        }
        match channel.expect()? {
            Message::Root(root) => Ok(Some(root)),
            other => Err(out_of_turn(&other)),
        }
    }

    /// Lets the parent, which has rights over the host's network, put interfaces into ours: not before
    /// this network namespace is there, or they would end up in the host's own.
    fn await_devices(&self, channel: &Channel) -> Result<()> {
        if self.spec.linux.net_devices.is_empty() && !self.joins_network {
            return Ok(());
        }
        channel.send(&Message::DevicesPlease)?;
        match channel.expect()? {
            Message::DevicesDone => Ok(()),
            other => Err(out_of_turn(&other)),
        }
    }

    fn begin_session(&self) -> Result<()> {
        if self.spec.linux.creates(NamespaceKind::Network) {
            net::loopback_up().doing("switch the loopback interface on")?;
        }
        // A session of its own: the caller's terminal cannot be reached by TIOCSTI (CVE-2017-5226).
        nix::unistd::setsid().doing("begin a session")?;
        if self.new_keyring {
            credentials::new_session_keyring(self.id)?;
        }
        if let Some(name) = self.spec.hostname.as_ref().filter(|name| !name.is_empty()) {
            nix::unistd::sethostname(name).doing_on("set", || format!("hostname {name:?}"))?;
        }
        if let Some(name) = self.spec.domainname.as_ref().filter(|name| !name.is_empty()) {
            rustix::system::setdomainname(name.as_bytes())
                .doing_on("set", || format!("domainname {name:?}"))?;
        }
        if let Some(personality) = &self.spec.linux.personality {
            if !personality.flags.is_empty() {
                log::warn(&format!("linux.personality.flags {:?}: there are none yet", personality.flags));
            }
            set_personality(&personality.domain)?;
        }
        Ok(())
    }

    /// Puts the rootfs together, lets hooks look at it, and enters it.
    fn build_rootfs(&self, channel: &Channel, root: Option<OwnedFd>) -> Result<(Entered, Option<Terminal>)> {
        let in_user_namespace = self.in_user_namespace();
        // Modes of what is made are meant as they are written.
        let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let mut building = Building::begin(self.rootfs, root, in_user_namespace)?;
        let trees = if self.needs_trees { ask_for_trees(channel)? } else { Vec::new() };
        building.mount_all(&self.cgroups, &trees, &|step, tree| ask_for_owners(channel, step, tree))?;
        building.fill_dev(&self.spec.linux.devices)?;
        building.make_working_directory(&self.process.cwd);
        nix::sys::stat::umask(umask);
        let hooks = &self.spec.hooks;
        if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
            channel.send(&Message::HooksPlease)?;
            match channel.expect()? {
                Message::HooksDone => {}
                other => return Err(out_of_turn(&other)),
            }
        }
        if !hooks.create_container.is_empty() {
            // Where runc runs them, and where hooks look for the container's files.
            nix::unistd::fchdir(building.root().as_fd()).doing("change to the rootfs for hooks")?;
            let state = self.state("creating");
            hooks::run_all(HookPoint::CreateContainer, &hooks.create_container, &state, self.hook_files)?;
        }
        let console = match self.process.terminal {
            true => {
                let terminal = Terminal::make(building.root(), self.process.console_size)?;
                terminal.bind_console(building.root())?;
                Some(terminal)
            }
            false => None,
        };
        building.settle()?;
        let masks_paths = !self.spec.linux.masked_paths.is_empty();
        Ok((building.enter(self.pivot, masks_paths)?, console))
    }

    /// What can only be done from inside: kernel parameters, then the paths that must not be
    /// read or written any more, then the root itself.
    fn finish_rootfs(&self, entered: &mut Entered) -> Result<()> {
        let linux = &self.spec.linux;
        for (key, value) in &linux.sysctl {
            let path = Path::new("sys").join(sysctl_path(key));
            entered
                .proc()?
                .write(&path, value.as_bytes())
                .doing_on("set the kernel parameter", || format!("linux.sysctl.{key} = {value:?}"))?;
        }
        entered.protect(&linux.masked_paths, &linux.readonly_paths)?;
        if let Some(propagation) = self.rootfs.propagation {
            entered.set_propagation(propagation)?;
        }
        if self.rootfs.readonly {
            entered.make_readonly()?;
        }
        Ok(())
    }

    /// Takes the terminal, and becomes the payload's user with the payload's rights.
    fn become_user(&self, entered: &mut Entered, channel: &Channel, console: Option<Terminal>) -> Result<()> {
        match console {
            Some(terminal) => channel.send(&Message::Console(terminal.install()?))?,
            None => stdio::reopen_null(&entered.root)?,
        }
        if let Some(policy) = &self.spec.linux.memory_policy {
            scheduling::set_memory_policy(policy)?;
        }
        credentials::label_exec(self.process, || entered.proc()?.try_clone().doing("open procfs"))?;
        let identity = Identity {
            process: self.process,
            sets: self.capabilities,
            in_user_namespace: self.in_user_namespace(),
            keep_groups: annotations::is_on(&self.spec.annotations, annotations::KEEP_GROUPS),
            awaits_filter: self.filter.is_some(),
        };
        credentials::apply(&identity)
    }

    /// Closes what the parent had open, which is the host's: a created container may wait for days.
    /// Best effort, because nothing of it outlives execve(2).
    fn let_go_of_the_host(&self, channel: &Channel) {
        let mut kept = vec![channel.as_fd()];
        kept.extend(self.listener.as_ref().map(AsFd::as_fd));
        kept.extend(self.stand_in.as_ref().map(AsFd::as_fd));
        kept.extend(log::file());
        kept.extend(self.hook_files.open_fds());
        fd::close_all_but(3 + self.preserved_fds, &kept);
    }

    /// Says that all is ready and waits for the word to start. Answers the socket over which the
    /// word came, unless it was the parent's.
    fn await_start(&self, channel: &Channel) -> Result<Option<Channel>> {
        // The parent may end as soon as it has written the record, and this process must not end
        // with it. If it is killed before that, the socket closes, which the wait below sees.
        prctl::die_with_parent(false).doing("outlive the parent")?;
        if self.listener.is_some() {
            signal::end_on_request().doing("wait for start")?;
        }
        channel.send(&Message::Ready)?;
        let listener = match (channel.expect()?, &self.listener) {
            (Message::Start, None) => return Ok(None),
            (Message::Adopted, Some(listener)) => listener,
            (other, _) => return Err(out_of_turn(&other)),
        };
        loop {
            // A `start` that was killed between connecting and speaking does not start anything.
            let connection = Channel::from(socket::accept(listener.as_fd()).doing("wait for start")?);
            if let Ok(Some(Message::Start)) = connection.receive() {
                return Ok(Some(connection));
            }
        }
    }

    fn run_payload(&self, filter: Option<&Program>, payload: &Payload) -> Result<Infallible> {
        let hooks = &self.spec.hooks.start_container;
        if !hooks.is_empty() {
            // Handing over a listener has switched it off.
            signal::remember_children().doing("run hooks")?;
            let hooks: Vec<Hook> = hooks.iter().map(|hook| self.with_environment(hook)).collect();
            hooks::run_all_filtered(
                HookPoint::StartContainer,
                &hooks,
                &self.state("created"),
                self.hook_files,
                filter,
            )?;
        }
        payload.exec(self.preserved_fds, self.stand_in.as_ref(), filter)
    }

    /// A startContainer hook that names no environment of its own gets the payload's, as runc's do.
    fn with_environment(&self, hook: &Hook) -> Hook {
        let env = if hook.env.is_empty() { environment(self.process) } else { hook.env.clone() };
        Hook { env, ..hook.clone() }
    }

    fn in_user_namespace(&self) -> bool {
        self.spec.linux.has(NamespaceKind::User)
    }

    fn state(&self, status: &str) -> String {
        State {
            oci_version: &self.spec.oci_version,
            id: self.id,
            status,
            pid: nix::unistd::getpid().as_raw(),
            bundle: self.bundle,
            annotations: &self.spec.annotations,
        }
        .to_json()
    }
}

/// Waits for the parent's word, and writes itself into the cgroups that came with it.
///
/// A process that writes "0" into `tasks` moves its only thread, for which the kernel takes no
/// lock; a write to `cgroup.procs` from outside takes the one that every fork in the system
/// needs, and waits for an RCU grace period (docs/performance.md).
///
/// # Errors
/// When the parent is gone, or a cgroup refuses: EBUSY, EINVAL for a cpuset without CPUs.
pub fn enter_cgroup(channel: &Channel) -> Result<()> {
    match channel.expect()? {
        Message::Proceed(tasks) => {
            for file in tasks {
                rustix::io::write(file.as_fd(), b"0").doing("enter the cgroup")?;
            }
            Ok(())
        }
        other => Err(out_of_turn(&other)),
    }
}

/// Has the parent open the trees that it must open.
fn ask_for_trees(channel: &Channel) -> Result<Vec<(usize, OwnedFd)>> {
    channel.send(&Message::TreesPlease)?;
    let mut trees = Vec::new();
    loop {
        match channel.expect()? {
            Message::Tree(step, tree) => trees.push((step as usize, tree)),
            Message::TreesDone => return Ok(trees),
            other => return Err(out_of_turn(&other)),
        }
    }
}

/// Has the parent map the owners in a tree.
fn ask_for_owners(channel: &Channel, step: usize, tree: OwnedFd) -> Result<()> {
    channel.send(&Message::OwnersPlease(u32::try_from(step).unwrap_or(u32::MAX), tree))?;
    match channel.expect()? {
        Message::OwnersDone => Ok(()),
        other => Err(out_of_turn(&other)),
    }
}

/// Becomes the user namespace's root, whose files and namespaces the rest is made of.
///
/// # Errors
/// EINVAL when the namespace maps no root.
pub fn become_root() -> Result<()> {
    let failed = |errno| {
        Error::system("become root in the user namespace", errno)
            .class(Class::Config)
            .hint("linux.uidMappings and gidMappings must map container id 0")
    };
    cred::set_gid(0).map_err(failed)?;
    cred::set_uid(0).map_err(failed)?;
    match cred::set_groups(&[]) {
        // Denied in an unprivileged user namespace, where the groups cannot harm either.
        Ok(()) | Err(nix::errno::Errno::EPERM) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

/// Sets `linux.personality` for this process and all that come from it.
///
/// # Errors
/// A domain that is neither `LINUX` nor `LINUX32`.
pub fn set_personality(domain: &str) -> Result<()> {
    let persona = match domain {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => return Err(Error::config("linux.personality.domain", format!("unknown value {other:?}"))),
    };
    prctl::set_personality(persona).doing_on("set", || format!("linux.personality {domain}"))
}

/// The payload's program, arguments and environment in the form that execve(2) takes, made before
/// the last privileges are gone.
#[derive(Debug)]
pub struct Payload {
    name: String,
    path: PathBuf,
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Payload {
    /// Finds the program, as the user that this process already is.
    ///
    /// # Errors
    /// [`Class::CommandNotFound`], [`Class::CommandDenied`].
    pub fn prepare(process: &Process) -> Result<Payload> {
        let environment = environment(process);
        let name = process.args.first().cloned().unwrap_or_default();
        let path = lookup::find(&name, &environment)?;
        preflight::check(&name, &path, &environment)?;
        Ok(Payload {
            program: c_string(path.as_os_str().as_bytes())?,
            arguments: c_strings(&process.args)?,
            environment: c_strings(&environment)?,
            name,
            path,
        })
    }

    /// Becomes the program. Nothing of dhow's is left: fds are closed, signals are as they were.
    /// The filter comes last, so that it sees nothing but execve(2). With `stand_in`, that program comes
    /// first, and starts the payload itself ([`super::reaper`]).
    ///
    /// # Errors
    /// execve(2)'s, with what it means.
    pub fn exec(
        &self,
        preserved_fds: u32,
        stand_in: Option<&OwnedFd>,
        filter: Option<&Program>,
    ) -> Result<Infallible> {
        signal::reset_for_payload().doing("reset signals")?;
        let first = 3 + i32::try_from(preserved_fds).unwrap_or(i32::MAX - 3);
        fd::cloexec_from(first).doing("close file descriptors")?;
        // Made before the filter, which may allow no more memory.
        let of_stand_in = stand_in.map(|_| reaper::arguments(&self.program, &self.arguments));
        filter::install(filter)?;
        let outcome = match (stand_in, &of_stand_in) {
            (Some(file), Some(arguments)) => selfexe::run_as(file.as_fd(), arguments, &self.environment),
            _ => nix::unistd::execve(&self.program, &self.arguments, &self.environment),
        };
        outcome.map_err(|errno| {
            filter::explain_exec(explain::exec_failed(&self.name, &self.path, errno), errno, filter)
        })
    }
}

/// The environment: the last of equal names counts, and HOME is the user's when it is not there.
fn environment(process: &Process) -> Vec<String> {
    // Thousands of them are usual where Kubernetes tells each container of every service.
    let mut known = BTreeSet::new();
    let last_of_its_name = process.env.iter().rev().filter(|entry| {
        let name = entry.split('=').next().unwrap_or_default();
        known.insert(name)
    });
    let mut environment: Vec<String> = last_of_its_name.cloned().collect();
    environment.reverse();
    if lookup::variable(&environment, "HOME").is_none_or(str::is_empty) {
        environment.retain(|entry| !entry.starts_with("HOME="));
        environment.push(format!("HOME={}", home(process.user.uid)));
    }
    environment
}

/// The home directory of a uid by the container's own passwd(5): read at the very end, as the
/// user, so that it can show nothing that the user could not read anyway.
fn home(uid: u32) -> String {
    const MOST_BYTES: u64 = 1024 * 1024;
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    // A fifo in its place must not make the runtime wait for a writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open("/etc/passwd");
    let Ok(file) = opened else { return "/".to_owned() };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return "/".to_owned();
    }
    let mut text = Vec::new();
    let _ = file.take(MOST_BYTES).read_to_end(&mut text);
    home_in(&String::from_utf8_lossy(&text), uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let of_user = |fields: &Vec<&str>| fields.get(2).and_then(|field| field.parse().ok()) == Some(uid);
    // What no path can be would make the exec of a process that never asked for it fail.
    let is_path =
        |home: &&str| !home.is_empty() && home.len() < libc::PATH_MAX as usize && !home.contains('\0');
    // The line's text outlives the vector of its parts.
    fields.into_iter().find(of_user).and_then(|fields| fields.get(5).copied()).filter(is_path)
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::config("process", "contains a NUL character"))
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text.as_bytes())).collect()
}

/// The procfs of this process's mount namespace: for an exec'ed process, which made no mounts.
///
/// # Errors
/// When /proc is not procfs.
pub fn proc_of_container() -> Result<Proc> {
    Proc::of_host().map_err(|errno| {
        Error::system("open procfs", errno)
            .on("/proc")
            .hint("labels can only be set where the container has a /proc")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_each_name_once_and_a_home() {
        let process = |env: &[&str]| Process {
            env: env.iter().map(|&entry| entry.to_owned()).collect(),
            ..Process::default()
        };
        assert_eq!(
            environment(&process(&["A=1", "HOME=/x", "A=2", "B=", "C"])),
            ["HOME=/x", "A=2", "B=", "C"]
        );
        assert_eq!(environment(&process(&["HOME="])), [format!("HOME={}", home(0))]);
    }

    #[test]
    fn home_is_looked_up_by_uid() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nbob:x:1000:1000::/home/bob:/bin/sh\nnone:x:7:7:::\n";
        assert_eq!(home_in(passwd, 1000), Some("/home/bob"));
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in("a:x:9:9::/a\0b:/bin/sh\n", 9), None);
        assert_eq!(home_in(&format!("a:x:9:9::/{}:/bin/sh\n", "a".repeat(5000)), 9), None);
    }
}
