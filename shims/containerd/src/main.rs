//! `containerd-shim-dhow-v2`: the process between containerd and the containers of one pod.
//!
//! containerd starts it with `start`, talks to it over a socket (ttrpc, `containerd.task.v2` and
//! `.v3`, and for pods `containerd.runtime.sandbox.v1`), and calls `delete` when it has lost it. It is one thread that waits for what comes:
//! requests, ends of children, output to move on. What is to be done with containers the dhow binary
//! does; while it works the shim goes on with other requests.

mod bootstrap;
mod cgroup;
mod checkpoint;
mod events;
mod metrics;
mod mounts;
mod oom;
mod options;
mod pod;
mod process;
mod runtime;
mod sandbox;
mod shim;
mod stdio;
mod task;

use bootstrap::Words;
use dhow_shim_common::sys;

fn read_words() -> Result<Words, String> {
    let mut words = Words::default();
    let mut rest = std::env::args().skip(1);
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix('-') else {
            words.action = word;
            continue;
        };
        let name = name.strip_prefix('-').unwrap_or(name);
        let (name, given) =
            name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value.to_owned())));
        let mut value = || given.clone().or_else(|| rest.next()).ok_or(format!("-{name} needs a value"));
        match name {
            "namespace" => words.namespace = value()?,
            "address" => words.address = value()?,
            "id" => words.id = value()?,
            "bundle" => words.bundle = value()?,
            "publish-binary" | "socket" => drop(value()?),
            "debug" => words.debug = true,
            "info" => words.info = true,
            "v" | "version" => words.version = true,
            _ => return Err(format!("-{name} is not known")),
        }
    }
    Ok(words)
}

fn main() {
    // It is containerd's own, under systemd: dhow would have every start wait for the payload's word.
    sys::forget(c"NOTIFY_SOCKET");
    let result = read_words().and_then(|words| match words.action.as_str() {
        _ if words.version => {
            println!("containerd-shim-dhow-v2:\n  Version:  {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ if words.info => bootstrap::info(),
        "start" => bootstrap::start(&words),
        "delete" => bootstrap::delete(&words),
        "pause" => sandbox::pause(),
        _ => Err("it is started by containerd: ctr run --runtime io.containerd.dhow.v2".to_owned()),
    });
    if let Err(error) = result {
        eprintln!("containerd-shim-dhow-v2: {error}");
        std::process::exit(1);
    }
}
