//! `dhow run`

use super::create::{
    self, BUNDLE, CONSOLE_SOCKET, NO_NEW_KEYRING, NO_PIVOT, PID_FILE, PIDFD_SOCKET, PRESERVE_FDS,
};
use super::from_image::{self, from_image};
use super::table::{Args, Command, option, switch};
use super::unknown;
use crate::error::{Class, Error, Result};
use crate::runtime::{self, Context, Request, RunOptions};
use crate::state::{Log, Restart, Supervision};
use std::path::PathBuf;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "run",
    about: "Create and start a container, and stay with it until it ends",
    details: "The exit status is the payload's; 128 + N when signal N ended it. With --image the \
              container is made from an image: its own writable layer goes when it is deleted.",
    positionals: &[from_image::ID, from_image::COMMAND],
    flags: &from_image::with::<15, { 15 + from_image::COUNT }>([
        BUNDLE,
        CONSOLE_SOCKET,
        PID_FILE,
        PIDFD_SOCKET,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
        switch("detach", "return as soon as the payload runs").short('d'),
        switch("keep", "leave the container there, stopped, when it has ended"),
        switch("monitor", "with --detach: have a process stay with it, which keeps its exit code"),
        option("restart", "POLICY", "no, always, unless-stopped or on-failure[:N]; implies --monitor"),
        option("log-driver", "DRIVER", "json-file, k8s-file or none; implies --monitor"),
        option(
            "log-opt",
            "KEY=VALUE",
            "max-size=N[k|m|g] [10m], max-file=N [3], path=FILE [in the state directory]",
        )
        .many(),
        switch("rm", "with --detach: delete the container when it has ended; without, that is so anyway"),
        switch("no-subreaper", "taken for compatibility: dhow never becomes one").hidden(),
    ]),
    enters: true,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let (detach, keep, remove) = (args.is_on("detach"), args.is_on("keep"), args.is_on("rm"));
    if keep && remove {
        return Err(Error::new(Class::Usage, "--keep and --rm exclude each other"));
    }
    let supervision = supervision(args)?;
    if remove && supervision.is_some() {
        return Err(Error::new(Class::Usage, "--rm and a monitor exclude each other"));
    }
    let options = RunOptions { detach, keep, remove };
    let go = |request: &Request| match &supervision {
        Some(supervision) => runtime::run_monitored(context, request, supervision),
        None => runtime::run(context, request, options),
    };
    let request = create::request(args)?;
    let Some(mut from) = from_image(args)? else { return go(&request) };
    from.options.ephemeral = if detach { remove } else { !keep };
    runtime::with_image(context, &from, request, |request| {
        let status = go(request)?;
        if detach && from.id.is_none() && (supervision.is_none() || status == 0) {
            println!("{}", request.id);
        }
        Ok(status)
    })
}

/// Whether the options ask for a monitor.
pub(super) fn is_monitored(args: &Args) -> bool {
    args.is_on("monitor")
        || ["restart", "log-driver", "log-opt"].iter().any(|flag| args.value(flag).is_some())
}

/// What a monitor is to do, if the options ask for one.
fn supervision(args: &Args) -> Result<Option<Supervision>> {
    if !is_monitored(args) {
        return Ok(None);
    }
    if !args.is_on("detach") {
        return Err(Error::new(Class::Usage, "cannot start a monitor")
            .because("--monitor, --restart and --log-driver are for containers in the background")
            .hint("give --detach too"));
    }
    let restart = Restart::parse(args.value("restart").unwrap_or_default())?;
    let driver = match args.value("log-driver") {
        None if args.value("log-opt").is_some() => Some("json-file"),
        driver @ (None | Some("json-file" | "k8s-file" | "none")) => driver,
        Some(other) => return Err(unknown("--log-driver", other)),
    };
    let log = driver.map(|driver| log(args, driver)).transpose()?;
    Ok(Some(Supervision { restart, log, ..Supervision::default() }))
}

fn log(args: &Args, driver: &str) -> Result<Log> {
    // Without a path it is in the state directory, which has its name later.
    let mut log =
        Log { driver: driver.to_owned(), path: PathBuf::new(), most_bytes: 10 << 20, most_files: 3 };
    for text in args.values("log-opt") {
        let wrong = || {
            Error::new(Class::Usage, "invalid value of --log-opt")
                .on(format!("{text:?}"))
                .hint("max-size=N[k|m|g], max-file=N or path=FILE")
        };
        match text.split_once('=').ok_or_else(wrong)? {
            ("max-size", "-1") => log.most_bytes = 0,
            ("max-size", size) => log.most_bytes = bytes(size).ok_or_else(wrong)?,
            ("max-file", count) => {
                log.most_files = count.parse().ok().filter(|count| *count > 0).ok_or_else(wrong)?;
            }
            ("path", path) if !path.is_empty() => {
                log.path = std::path::absolute(path).map_err(|_| wrong())?;
            }
            _ => return Err(wrong()),
        }
    }
    Ok(log)
}

/// `10m`, `512k`, `1g`, `100`: powers of 1024, as Docker has them.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, shift) = match bare.chars().last()? {
        'k' => (&bare[..bare.len() - 1], 10),
        'm' => (&bare[..bare.len() - 1], 20),
        'g' => (&bare[..bare.len() - 1], 30),
        _ => (bare, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_docker_writes_them() {
        for (text, size) in [("10m", 10 << 20), ("512k", 512 << 10), ("1G", 1 << 30), ("7", 7), ("8kb", 8192)]
        {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for text in ["", "m", "-1", "0", "1t", "99999999999g"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
