//! `linux.netDevices`: interfaces of the host that become the container's.

use crate::error::{Class, Context, Error, Result};
use crate::spec::NetDevice;
use crate::sys::netlink::{Address, Netlink};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

/// Moves interfaces into the network namespace of a process, each with its new name, and there
/// gives them back the addresses that the kernel takes from an interface that changes namespaces.
/// The MTU and the hardware address stay by themselves.
///
/// The namespace's end ends virtual interfaces too, and sends physical ones back to the host.
///
/// # Errors
/// [`Class::Config`] when an interface is not there, cannot be moved, or its new name is taken.
pub fn move_devices(pid: Pid, devices: &BTreeMap<String, NetDevice>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let target = open(&format!("/proc/{pid}/ns/net"))?;
    let own = open("/proc/thread-self/ns/net")?;
    let netlink = Netlink::open().doing("open a netlink socket")?;
    let mut moved = Vec::new();
    for (name, device) in devices {
        let inside = if device.name.is_empty() { name } else { &device.name };
        let failed = |errno| move_failed(name, inside, errno);
        let index = if_nametoindex(name.as_str()).map_err(failed)?;
        let addresses = netlink.addresses(index).map_err(failed)?;
        netlink.move_link(index, inside, target.as_fd()).map_err(failed)?;
        moved.push((inside, addresses));
    }
    let enter = |namespace: &OwnedFd| {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).doing("enter the container's network namespace")
    };
    enter(&target)?;
    let outcome = moved.iter().try_for_each(|(name, addresses)| switch_on(name, addresses));
    // Before anything else: hooks belong to the host's network.
    enter(&own)?;
    outcome
}

/// Brings an interface into service, in the namespace that this process is in now.
fn switch_on(name: &str, addresses: &[Address]) -> Result<()> {
    let failed =
        |errno| Error::system("set up the network device", errno).on(format!("linux.netDevices: {name}"));
    // The index may be another one here.
    let index = if_nametoindex(name).map_err(failed)?;
    let netlink = Netlink::open().map_err(failed)?;
    for address in addresses {
        match netlink.add_address(index, address) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    netlink.set_up(index).map_err(failed)
}

fn open(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .doing_on("open a namespace", || path.to_owned())
}

fn move_failed(name: &str, inside: &str, errno: Errno) -> Error {
    let error = Error::system("move the network device", errno).on(format!("linux.netDevices.{name}"));
    match errno {
        Errno::ENODEV => error.class(Class::Config).because("the host has no such device"),
        Errno::EEXIST => error
            .class(Class::Config)
            .because(format!("the container's network has a device {inside:?} already")),
        Errno::EINVAL => error.class(Class::Config).because("it cannot leave its network namespace"),
        _ => error,
    }
}
