//! Containers that a monitor stays with (shims/monitor): how one is started, and what dhow decides
//! for it.

use super::cni::{self, Network};
use super::container::{Container, Context, monitor_lives, out_of_memory};
use super::create::{Request, StartedBy, create};
use super::delete::delete;
use crate::cgroups::Driver;
use crate::error::{Class, Context as _, Error, Result};
use crate::log;
use crate::rootfs::Pivot;
use crate::state::{Exit, Init, Intent, Log, Next, Phase, Record, Supervision, Undo};
use crate::sys::{pidfd, time};
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// The name of the log in a container's directory, where no other place is asked for.
const LOG: &str = "container.log";

/// The name of the monitor's program.
pub(super) const MONITOR: &str = "dhow-monitor";

/// Starts a monitor that creates and starts the container, and waits until the payload runs.
/// Answers the exit code of what went wrong, whose reason the monitor has shown, or 0.
///
/// # Errors
/// When the monitor cannot be found or started.
pub fn run_monitored(context: &Context, request: &Request, supervision: &Supervision) -> Result<i32> {
    let bundle = std::fs::canonicalize(&request.bundle)
        .doing_on("open the bundle", || request.bundle.display().to_string())
        .map_err(|error| error.class(Class::Config))?;
    context.store.check_free(&request.id)?;
    let mut supervision = supervision.clone();
    supervision.undo.clone_from(&request.undo);
    if let Some(network) = &request.network {
        supervision.undo.push(network.to_join(&request.id)?);
    }
    if let Some(log) = supervision.log.as_mut().filter(|log| log.path.as_os_str().is_empty()) {
        let directory = std::path::absolute(context.store.directory(&request.id));
        log.path = directory.doing("find the state directory")?.join(LOG);
    }
    supervision.pid_file =
        request.pid_file.as_deref().map(std::path::absolute).transpose().doing("find the pid file")?;
    let text = serde_json::to_string(&supervision)
        .map_err(|error| Error::new(Class::Internal, "start the monitor").because(error.to_string()))?;
    let mut words: Vec<String> = ["create", "--supervision", &text, "--bundle"].map(str::to_owned).into();
    words.push(bundle.display().to_string());
    let path = |path: &PathBuf| path.display().to_string();
    let options = [
        ("--pid-file", supervision.pid_file.as_ref().map(path)),
        ("--console-socket", request.console_socket.as_ref().map(path)),
        ("--pidfd-socket", request.pidfd_socket.as_ref().map(path)),
    ];
    for (name, value) in options {
        words.extend(value.map(|value| format!("{name}={value}")));
    }
    words.extend((request.pivot == Pivot::Move).then(|| "--no-pivot".to_owned()));
    words.extend((!request.new_keyring).then(|| "--no-new-keyring".to_owned()));
    words.push(request.id.clone());
    start_monitor(context, &request.id, supervision.log.as_ref(), &words)
}

/// Starts the monitor of a container whose last one has ended, to start it anew.
pub(super) fn run_again(context: &Context, record: &Record) -> Result<i32> {
    let log = record.supervision.as_ref().and_then(|supervision| supervision.log.as_ref());
    start_monitor(context, &record.id, log, &["revive".to_owned(), record.id.clone()])
}

fn start_monitor(context: &Context, id: &str, log: Option<&Log>, first: &[String]) -> Result<i32> {
    let doing = "start the monitor";
    let dhow = own_program()?;
    let monitor = find_monitor(&dhow)?;
    let root = std::path::absolute(context.store.root()).doing(doing)?;
    let driver = match context.cgroups {
        Driver::Cgroupfs => "cgroupfs",
        Driver::Systemd => "systemd",
        Driver::Disabled => "disabled",
    };
    let mut prefix = vec![
        dhow.display().to_string(),
        format!("--root={}", root.display()),
        format!("--cgroup-manager={driver}"),
        format!("--rootless={}", context.rootless),
    ];
    prefix.extend(log::options());
    let none = Log { driver: "inherit".into(), path: PathBuf::new(), most_bytes: 0, most_files: 1 };
    let log = log.unwrap_or(&none);
    let mut command = Command::new(&monitor);
    command.arg(&log.driver).arg(&log.path).args([log.most_bytes.to_string(), log.most_files.to_string()]);
    command.args([id, &prefix.len().to_string()]).args(&prefix).args(first);
    command.stdin(Stdio::inherit()).stdout(Stdio::piped());
    let mut child = command.spawn().doing_on(doing, || monitor.display().to_string())?;
    let mut said = String::new();
    let heard = child.stdout.take().map(|mut stdout| std::io::Read::read_to_string(&mut stdout, &mut said));
    if let Some(Err(error)) = heard {
        let _ = child.kill();
        let _ = child.wait();
        forsake(context, id, child.id(), first);
        return Err(Error::system(doing, crate::sys::io_errno(&error)));
    }
    if said == "ok\n" {
        return Ok(0);
    }
    let status = child.wait().doing(doing)?;
    if status.code().is_none() {
        forsake(context, id, child.id(), first);
    }
    Ok(status.code().filter(|code| *code != 0).unwrap_or(1))
}

/// Takes back the container of a monitor that was killed before it had started it: a new one, and no
/// other that may have the name by now.
fn forsake(context: &Context, id: &str, monitor: u32, first: &[String]) {
    let is_new = first.first().is_some_and(|word| word == "create");
    let is_its = is_new
        && context.store.read(id).is_ok_and(|record| {
            let known = record.supervision.and_then(|supervision| supervision.monitor);
            known.is_some_and(|known| known.pid.unsigned_abs() == monitor)
        });
    if is_its && let Err(error) = delete(context, id, true) {
        log::warn(&error.to_string());
    }
}

/// Where this program can be found by others. One that runs from a mount that nobody else sees
/// (sys/selfexe.rs) has only the name that it was called by.
fn own_program() -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let doing = "find dhow's own program";
    let own = std::fs::metadata("/proc/self/exe").doing(doing)?;
    let called = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = vec![std::env::current_exe().doing(doing)?];
    match called.components().count() {
        1 => places.extend(std::env::split_paths(&path).map(|directory| directory.join(&called))),
        _ => places.extend(std::path::absolute(&called)),
    }
    let is_own = |place: &&PathBuf| {
        std::fs::metadata(place).is_ok_and(|it| it.ino() == own.ino() && it.dev() == own.dev())
    };
    places.iter().find(is_own).cloned().ok_or_else(|| {
        Error::new(Class::System, doing).on(called.display().to_string()).because("it is not there any more")
    })
}

/// The monitor's program: beside dhow's own, or where packages keep such programs.
fn find_monitor(dhow: &std::path::Path) -> Result<PathBuf> {
    let directory = dhow.parent().unwrap_or(std::path::Path::new("/"));
    let places = [directory.join(MONITOR), directory.join("../libexec/dhow").join(MONITOR)];
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        Error::new(Class::Unsupported, "start the monitor")
            .on(places[0].display().to_string())
            .because("it is not there")
            .hint("`make build` puts dhow-monitor beside dhow, `make install` too")
    })
}

/// The process that runs this command, as the monitor of a container.
///
/// # Errors
/// When /proc does not tell.
pub fn caller() -> Result<Option<Init>> {
    let pid = Pid::parent();
    let stat = pidfd::stat(pid).doing("look at the monitor")?;
    Ok(stat.map(|stat| Init { pid: pid.as_raw(), start_time: stat.start_time }))
}

/// Writes down how a container's init ended, and decides what comes next; `None` when it was not
/// the init. Pid 0 stands for a restart that failed.
///
/// # Errors
/// [`Class::NoContainer`] when it was deleted meanwhile.
pub fn exited(context: &Context, id: &str, pid: i32, code: i32) -> Result<Option<Next>> {
    let (locked, container) = Container::lock(context, id)?;
    let oom = container.cgroup().is_ok_and(|cgroup| out_of_memory(&cgroup).is_some());
    let mut record = container.record;
    let init = record.init.filter(|init| init.pid == pid);
    if (init.is_none() && pid != 0) || matches!(record.phase, Phase::Removing | Phase::Dead) {
        return Ok(None);
    }
    record.exit =
        Some(Exit { code, signal: Exit::signal_of(code), at: time::rfc3339(SystemTime::now()), oom });
    let lived =
        init.map_or(Duration::ZERO, |init| time::since_boot().saturating_sub(time::ticks(init.start_time)));
    let next = match &mut record.supervision {
        Some(supervision) => supervision.next(code, lived),
        None => Next::End,
    };
    record.phase = if next == Next::End { Phase::Started } else { Phase::Restarting };
    locked.write(&record)?;
    // Its addresses and ports are others' until it lives again.
    if cni::leave(&mut record)? {
        locked.write(&record)?;
    }
    Ok(Some(next))
}

/// Makes a container anew in its place, from its bundle; `monitored` when its monitor asks. It then
/// waits for `start`.
///
/// # Errors
/// Those of create; [`Class::WrongState`] when it has not ended, or is not to run again.
pub fn revive(context: &Context, id: &str, monitored: bool) -> Result<()> {
    let record = context.store.read(id)?;
    let stays = |supervision: &Supervision| supervision.intent == Intent::Stop;
    if monitored && record.phase != Phase::Restarting && record.supervision.as_deref().is_some_and(stays) {
        return Err(Error::new(Class::WrongState, "cannot restart the container now")
            .on(id)
            .because("it was stopped meanwhile"));
    }
    let (network, mut undo) = Network::split(record.undo, id)?;
    undo.retain(|undo| matches!(undo, Undo::Directory(_)));
    let mut supervision = record.supervision.clone();
    if let Some(supervision) = &mut supervision {
        supervision.monitor = if monitored { caller()? } else { None };
        if record.phase != Phase::Restarting {
            // By hand: Docker counts anew then, and so is the policy's limit meant.
            (supervision.restarts, supervision.streak) = (0, 0);
        }
        supervision.intent = Intent::None;
    }
    let request = Request {
        id: id.to_owned(),
        bundle: record.bundle,
        console_socket: None,
        pidfd_socket: None,
        pid_file: supervision.as_ref().and_then(|supervision| supervision.pid_file.clone()),
        pivot: if record.no_pivot { Pivot::Move } else { Pivot::Root },
        new_keyring: !record.no_new_keyring,
        preserve_fds: 0,
        supervision,
        undo,
        network,
        again: true,
    };
    create(context, &request, StartedBy::Start).map(drop)
}

/// Wakes a monitor that waits out a back-off.
pub(super) fn wake(record: &Record) {
    signal_monitor(record, libc::SIGUSR1);
}

/// Lets a monitor that waits out a back-off go.
pub(super) fn dismiss(record: &Record) {
    if record.phase == Phase::Restarting {
        signal_monitor(record, libc::SIGTERM);
    }
}

fn signal_monitor(record: &Record, signal: i32) {
    let Some(monitor) = record.supervision.as_ref().and_then(|supervision| supervision.monitor) else {
        return;
    };
    // The pidfd names one process; it is the right one if it began when it should.
    let Ok(process) = pidfd::open(Pid::from_raw(monitor.pid)) else { return };
    if monitor_lives(record).unwrap_or(false) {
        let _ = pidfd::send_signal(process.as_fd(), signal);
    }
}
