//! The sandbox service: `containerd.runtime.sandbox.v1`, for containerds that leave a pod to its shim
//! (`sandboxer = "shim"`). The numbers are the fields' numbers in containerd's `sandbox.proto`.
//!
//! A pod is a container that does nothing but hold the namespaces; its events are nobody's.

use crate::cgroup::Cgroups;
use crate::metrics;
use crate::mounts::{self, Mount};
use crate::pod::{self, Pod};
use crate::process::{Container, Stage};
use crate::runtime::{Outcome, Runtime};
use crate::shim::{Caller, Shim, Stdio};
use crate::stdio::Places;
use crate::task::{self, Making, Now};
use dhow_shim_common::sys;
use dhow_shim_common::ttrpc::{Code, Status};
use dhow_shim_common::wire::{Message, Writer};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The pod that a shim was started for.
#[derive(Debug)]
pub struct Sandbox {
    pub id: String,
    pub bundle: PathBuf,
    /// Nanoseconds since 1970; 0 before it is started.
    started_at: u64,
    /// Who waits for it to have stopped.
    stopping: Vec<Caller>,
}

/// Does what a request asks for.
pub fn method(shim: &mut Shim, caller: Caller, method: &str, message: &Message) -> Now {
    match method {
        "CreateSandbox" => create(shim, caller, message),
        "StartSandbox" => start(shim, caller, message),
        "Platform" => Ok(Some(Writer::new().message(1, &platform()))),
        "StopSandbox" => stop(shim, caller, message),
        "WaitSandbox" => wait(shim, caller, message),
        "SandboxStatus" => status(shim, message),
        "PingSandbox" => sandbox(shim, message).map(|_| Some(Writer::new())),
        "ShutdownSandbox" => shutdown(shim, caller, message),
        "SandboxMetrics" => measure(shim, message),
        other => Err(Status::new(Code::Unimplemented, format!("method {other}"))),
    }
}

fn sandbox<'s>(shim: &'s mut Shim, message: &Message) -> Result<&'s mut Sandbox, Status> {
    let id = message.text(1);
    let missing = || Status::new(Code::NotFound, format!("sandbox {id} does not exist: not found"));
    shim.sandbox.as_mut().filter(|sandbox| sandbox.id == id).ok_or_else(missing)
}

/// CreateSandbox: the pod's files and its container. A bundle with a config.json is a pod whose
/// container the client has described itself.
fn create(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = message.text(1).to_owned();
    if let Some(sandbox) = &shim.sandbox {
        return Err(Status::new(Code::AlreadyExists, format!("sandbox {}: already exists", sandbox.id)));
    }
    let bundle = PathBuf::from(message.text(2));
    let options = shim.home.options.clone();
    let runtime = Runtime::new(&options, &shim.home.binary, &shim.home.namespace, &bundle);
    runtime.note().map_err(task::failed)?;
    let rootfs = root_of(&shim.home.socket);
    let owner = match prepare(&bundle, &rootfs, &id, message) {
        Ok(owner) => owner,
        Err(error) => {
            clean(&bundle, &shim.home.socket);
            runtime.forget();
            return Err(task::failed(error));
        }
    };
    let number = shim.number();
    let container = Container::new(number, &bundle, &runtime, &options, Places::default());
    shim.containers.insert(id.clone(), container);
    shim.sandbox =
        Some(Sandbox { id: id.clone(), bundle: bundle.clone(), started_at: 0, stopping: Vec::new() });
    let then = move |shim: &mut Shim, making: &Making, result: Result<i32, String>| {
        // It holds the user namespace until the container does.
        drop(owner);
        let answer = match result {
            Ok(_) => Ok(Writer::new()),
            Err(message) => {
                forget(shim, &making.id);
                Err(task::failed(format!("OCI runtime create failed: {message}")))
            }
        };
        shim.answer(caller, answer);
        task::settle(shim, &making.id, "");
    };
    task::make_init(shim, &id, Box::new(then))
}

/// All that a pod's container needs; the user namespace of its network, if it has one.
fn prepare(bundle: &Path, rootfs: &Path, id: &str, message: &Message) -> Result<Option<OwnedFd>, String> {
    let path = bundle.join("config.json");
    let says = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > 0) {
        let mounts: Vec<Mount> = message.all(3).filter_map(Mount::read).collect();
        return mounts::mount_all(&mounts, &bundle.join("rootfs")).map(|()| None);
    }
    let pod = Pod::read(message.bytes(4));
    pod.make_files(bundle)?;
    let [user, group] = pod.root();
    pod::mount_memory(rootfs, &format!("mode=755,size=64k,uid={user},gid={group}"))?;
    let network = message.text(5);
    let owner = pod.owner(network)?;
    let pause = std::env::current_exe().map_err(|error| format!("where am I: {error}"))?;
    let users = owner.as_ref().map(pod::path_of);
    let spec = pod.spec(id, rootfs, &pause, network, users.as_deref());
    fs::write(&path, spec.to_string()).map_err(|error| says(&path, error))?;
    Ok(owner)
}

fn start(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = sandbox(shim, message)?.id.clone();
    if task::container(shim, &id)?.init.stage != Stage::Created {
        return Err(task::refuse("the sandbox is started already"));
    }
    task::start_init(shim, caller, id, |shim, _, pid| {
        let now = sys::now();
        if let Some(sandbox) = &mut shim.sandbox {
            sandbox.started_at = now;
        }
        Writer::new().number(1, pid).time(2, now)
    })
}

/// `containerd.types.Platform`, in Go's words.
fn platform() -> Writer {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    };
    Writer::new().bytes(1, "linux").bytes(2, architecture)
}

/// StopSandbox: ends the pod's containers, which containerd has stopped before, and its own.
fn stop(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = sandbox(shim, message)?.id.clone();
    let is_alive = |container: &Container| container.init.pid > 0 && container.init.stage != Stage::Stopped;
    if !task::container(shim, &id).is_ok_and(|container| is_alive(container)) {
        return Ok(Some(Writer::new()));
    }
    sandbox(shim, message)?.stopping.push(caller);
    let all = shim.containers.iter().filter(|(_, container)| is_alive(container));
    let all: Vec<(String, Runtime)> =
        all.map(|(id, container)| (id.clone(), container.runtime.clone())).collect();
    for (id, runtime) in all {
        let words = ["kill", "--all", &id, "KILL"];
        shim.run(&runtime, &words, Stdio::None, Box::new(|_, _| {}));
    }
    Ok(None)
}

/// The pod's container has ended.
pub fn ended(shim: &mut Shim) {
    let stopping = shim.sandbox.as_mut().map(|sandbox| std::mem::take(&mut sandbox.stopping));
    for caller in stopping.unwrap_or_default() {
        shim.answer(caller, Ok(Writer::new()));
    }
}

fn wait(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    let id = sandbox(shim, message)?.id.clone();
    let process = &mut task::container(shim, &id)?.init;
    match process.end {
        Some(end) => Ok(Some(task::ending(end))),
        None => {
            process.waiters.push(caller);
            Ok(None)
        }
    }
}

fn status(shim: &mut Shim, message: &Message) -> Now {
    let Sandbox { id, started_at, bundle, .. } = sandbox(shim, message)?;
    let (id, started_at, bundle) = (id.clone(), *started_at, bundle.display().to_string());
    let process = &task::container(shim, &id)?.init;
    // runtime.v1.PodSandboxState
    let state = match (process.end, started_at) {
        (None, 1..) => "SANDBOX_READY",
        _ => "SANDBOX_NOTREADY",
    };
    let pid = if process.end.is_none() { process.wire_pid() } else { 0 };
    let answer = Writer::new().bytes(1, &id).number(2, pid).bytes(3, state);
    let info = serde_json::json!({
        "pid": pid, "bundle": bundle, "runtimeType": "io.containerd.dhow.v2", "shim": std::process::id(),
    });
    let info = Writer::new().bytes(1, "info").bytes(2, info.to_string());
    let answer = if message.flag(2) { answer.message(4, &info) } else { answer };
    Ok(Some(answer.time(5, started_at).time(6, process.end.map_or(0, |end| end.at))))
}

/// ShutdownSandbox: all of the pod goes, and the shim.
fn shutdown(shim: &mut Shim, caller: Caller, message: &Message) -> Now {
    // One that could not be made is shut down as well.
    if shim.sandbox.is_some() || !shim.containers.is_empty() {
        sandbox(shim, message)?;
    }
    take_down(shim, caller);
    Ok(None)
}

/// Deletes one container after the other, the pod's own last.
fn take_down(shim: &mut Shim, caller: Caller) {
    let own = shim.sandbox.as_ref().map(|sandbox| sandbox.id.clone()).unwrap_or_default();
    let next = shim.containers.keys().find(|id| **id != own).or_else(|| shim.containers.keys().next());
    let Some(id) = next.cloned() else {
        if let Some(sandbox) = shim.sandbox.take() {
            clean(&sandbox.bundle, &shim.home.socket);
        }
        shim.answer(caller, Ok(Writer::new()));
        return shim.end();
    };
    let Some(container) = shim.containers.get(&id) else { return };
    let (runtime, name) = (container.runtime.clone(), id.clone());
    let then = move |shim: &mut Shim, outcome: Outcome| {
        if outcome.code != 0 {
            return shim
                .answer(caller, Err(task::failed(format!("dhow delete failed: {}", outcome.message))));
        }
        if let Some(container) = shim.containers.get(&id) {
            container.runtime.forget();
        }
        task::drop_container(shim, &id);
        take_down(shim, caller);
    };
    shim.run(&runtime, &["delete", "--force", &name], Stdio::None, Box::new(then));
}

/// A pod that could not be made: nothing of it stays.
fn forget(shim: &mut Shim, id: &str) {
    if let Some(container) = shim.containers.get(id) {
        container.runtime.forget();
    }
    task::drop_container(shim, id);
    if let Some(sandbox) = shim.sandbox.take() {
        clean(&sandbox.bundle, &shim.home.socket);
    }
}

/// The root of a pod's container: beside the socket, where its users may pass. containerd lets nobody
/// through to a pod's bundle.
fn root_of(socket: &Path) -> PathBuf {
    socket.with_extension("root")
}

/// Takes away what is mounted for a pod.
pub fn clean(bundle: &Path, socket: &Path) {
    pod::unmount_files(bundle);
    mounts::unmount_all(&bundle.join("rootfs"));
    mounts::unmount_all(&root_of(socket));
    let _ = fs::remove_dir(root_of(socket));
}

fn measure(shim: &mut Shim, message: &Message) -> Now {
    let id = sandbox(shim, message)?.id.clone();
    let init = &task::container(shim, &id)?.init;
    if init.pid == 0 || init.stage == Stage::Stopped {
        return Err(Status::new(Code::NotFound, "the sandbox does not run: not found"));
    }
    let (kind, metrics) = metrics::read(&Cgroups::of(init.pid));
    // containerd.types.Metric
    let metric = Writer::new().time(1, sys::now()).bytes(2, &id).any(3, kind, metrics);
    Ok(Some(Writer::new().message(1, &metric)))
}

/// The container that holds a pod's namespaces: process 1 of the pod's, whose orphans it reaps, until
/// it is told to go.
///
/// # Errors
/// Why it cannot wait.
pub fn pause() -> Result<(), String> {
    let signals = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT];
    let signals = sys::signal_file(&signals).map_err(|errno| format!("wait for signals: errno {errno}"))?;
    loop {
        sys::poll([std::os::fd::AsRawFd::as_raw_fd(&signals)], -1);
        while let Some(signal) = sys::read_signal(&signals) {
            if signal != libc::SIGCHLD.cast_unsigned() {
                return Ok(());
            }
        }
        while sys::reap_any().is_some() {}
    }
}
