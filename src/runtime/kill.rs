//! `kill`: a signal to a container.

use super::container::{Container, Context};
use crate::error::{Class, Error, Result};
use crate::state::{Operation, Status};
use crate::sys::pidfd;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::AsFd;
use std::str::FromStr;

/// Sends a signal to the init, or with `all` to every process of the container. It takes no lock:
/// a command that hangs in a hook must not keep a container from being killed.
///
/// # Errors
/// [`Class::WrongState`] "container not running"; [`Class::NoContainer`].
pub fn kill(context: &Context, id: &str, signal: i32, all: bool) -> Result<()> {
    let container = Container::open(context, id)?;
    if all {
        return container.cgroup()?.kill_all(signal);
    }
    if signal == libc::SIGKILL && has_survivors(&container) {
        return container.cgroup()?.kill_all(signal);
    }
    container.allow(Operation::Kill)?;
    send(&container, signal)?;
    if signal != libc::SIGKILL {
        return Ok(());
    }
    let cgroup = container.cgroup()?;
    if !container.record.private_pids && container.status != Status::Creating {
        // No pid namespace ends with the init, so its other processes are ended by name.
        cgroup.kill_all(signal)?;
    }
    if container.status == Status::Paused {
        // A process that the v1 freezer holds dies only when it is let go.
        cgroup.thaw()?;
    }
    Ok(())
}

/// Whether processes of a container live on although its init has ended: no pid namespace of its own
/// has taken them along.
fn has_survivors(container: &Container) -> bool {
    let may_have = container.status == Status::Exited && !container.record.private_pids;
    may_have && container.cgroup().and_then(|cgroup| cgroup.pids()).is_ok_and(|pids| !pids.is_empty())
}

/// Sends a signal to the init, and to no stranger that got its pid since.
pub(super) fn send(container: &Container, signal: i32) -> Result<()> {
    let not_running = || {
        Error::new(Class::WrongState, "container not running")
            .on(format!("{} has ended", container.record.id))
    };
    let init = container.record.init.ok_or_else(not_running)?;
    let failed = |errno| match errno {
        Errno::ESRCH => not_running(),
        Errno::EINVAL => Error::new(Class::Usage, "unknown signal").on(signal.to_string()),
        _ => Error::system("signal the container's init", errno).on(container.record.id.clone()),
    };
    let process = pidfd::open(Pid::from_raw(init.pid)).map_err(failed)?;
    // The pidfd names one process from here on; it is the right one if it began when it should.
    if !init.is_alive()? {
        return Err(not_running());
    }
    pidfd::send_signal(process.as_fd(), signal).map_err(failed)
}

/// The number of a signal: `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+1`.
///
/// # Errors
/// [`Class::Usage`].
pub fn parse_signal(text: &str) -> Result<i32> {
    let unknown = || Error::new(Class::Usage, "unknown signal").on(format!("{text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=libc::SIGRTMAX()).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
    // signal(7): the C library keeps the first real-time signals for itself, the kernel does not.
    const KERNEL_SIGRTMIN: i32 = 34;
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest)
            .map(|plus| KERNEL_SIGRTMIN + plus)
            .filter(|n| (34..=64).contains(n))
            .ok_or_else(unknown);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest).map(|minus| 64 - minus).filter(|n| (34..=64).contains(n)).ok_or_else(unknown);
    }
    let name = match name {
        "POLL" => "IO",
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        other => other,
    };
    Signal::from_str(&format!("SIG{name}")).map(|signal| signal as i32).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_signal() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("term", 15),
            ("HUP", 1),
            ("0", 0),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX", 64),
            ("rtmax-14", 50),
            ("WINCH", 28),
            ("POLL", 29),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIG", "-1", "65", "NOSUCH", "RTMIN+31", "RTMAX-31", "9x", "RTMIN+", "RTMIN+x"] {
            assert_eq!(parse_signal(text).unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
