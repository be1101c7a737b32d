//! `start`: the payload of a created container runs.

use super::container::{Container, Context};
use super::create::START_SOCKET;
use super::filter;
use super::notify_socket::Relay;
use crate::error::{Class, Error, Result};
use crate::log;
use crate::process::hooks;
use crate::process::protocol::{Channel, Message, out_of_turn};
use crate::spec::HookPoint;
use crate::state::{Locked, Operation, Phase, Status};
use crate::sys::{fd, pidfd, timing};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Starts a container; returns once its payload runs.
///
/// # Errors
/// [`Class::WrongState`] when it is not created; why the payload could not be executed.
pub fn start(context: &Context, id: &str) -> Result<()> {
    timing::step("read the record");
    let (locked, container) = Container::lock(context, id)?;
    container.allow(Operation::Start)?;
    // Should somebody reap the init at once, this still knows how it ended.
    let process = container.record.init.and_then(|init| pidfd::open(Pid::from_raw(init.pid)).ok());
    let relay = Relay::open(&locked)?;
    timing::step("reach the init");
    let init = call_init(&locked)?;
    timing::step("wait for the payload");
    init.send(&Message::Start)?;
    confirm(&init)?;
    timing::step("write down that it runs");
    let pid = container.record.init.map_or(0, |init| init.pid);
    mark_started(&locked, container, process.as_ref())?;
    // Others may look at the container meanwhile: that may take as long as the payload likes.
    drop(locked);
    match (relay, process) {
        (Some(relay), Some(process)) => relay.until_ready(process.as_fd(), pid),
        _ => Ok(()),
    }
}

/// Reaches the init where it waits.
fn call_init(locked: &Locked) -> Result<Channel> {
    let failed = |errno| {
        let error = Error::system("reach the container's init", errno).on(locked.id());
        match errno {
            Errno::ECONNREFUSED | Errno::ENOENT => {
                error.class(Class::WrongState).because("it does not wait for start any more")
            }
            _ => error,
        }
    };
    let path = format!("{}/{START_SOCKET}", fd::proc_path(locked.as_fd()));
    let address = UnixAddr::new(path.as_str()).map_err(failed)?;
    let socket =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).map_err(failed)?;
    connect(socket.as_raw_fd(), &address).map_err(failed)?;
    Ok(Channel::from(socket))
}

/// Waits until the init has become the payload: its exec closes the socket. An init that a
/// filter, a signal or the OOM killer ended closes it too, and has not become anything; it cannot
/// be told from a payload that has ended already but for the error that it did not send, so the
/// look at its state is what [`mark_started`] writes down.
pub(super) fn confirm(init: &Channel) -> Result<()> {
    match init.receive()? {
        None => Ok(()),
        Some(Message::Failed(error)) => Err(error),
        Some(other) => Err(out_of_turn(&other)),
    }
}

/// Writes down that the payload runs, and runs the poststart hooks.
pub(super) fn mark_started(
    locked: &Locked,
    mut container: Container,
    process: Option<&OwnedFd>,
) -> Result<()> {
    container.status = match container.record.init {
        Some(init) if filter::lives_on(locked, init, process)? => Status::Running,
        _ => Status::Exited,
    };
    if container.record.phase != Phase::Started {
        container.record.phase = Phase::Started;
        // It runs, whether there is room to write it down or not, and its process tells as much.
        if let Err(error) = locked.write(&container.record) {
            log::warn(&error.to_string());
        }
    }
    let poststart = &container.record.hooks.poststart;
    if poststart.is_empty() {
        return Ok(());
    }
    let files = hooks::Files::open(&container.record.annotations)?;
    hooks::run_all(HookPoint::Poststart, poststart, &container.state(Some("running")).to_json(), &files)
}
