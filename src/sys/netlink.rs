//! rtnetlink(7), as far as moving an interface to another network namespace takes: four messages,
//! written by hand (docs/dependencies.md says why).

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_FLAGS: u16 = 8;
/// Of an address: which one, on which side of a tunnel, and its broadcast address.
const IFA_KEPT: [u16; 3] = [1, 2, 4];
const IFA_F_NODAD: u32 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
const HEADER: usize = 16;

/// An address of an interface, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

/// A socket to the network namespace that this process was in when it was made.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// Connects to the kernel.
    ///
    /// # Errors
    /// EPROTONOSUPPORT on a kernel without rtnetlink.
    pub fn open() -> nix::Result<Netlink> {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
            .map(|socket| Netlink { socket })
    }

    /// Moves an interface to another network namespace, where it gets the name.
    ///
    /// # Errors
    /// EPERM, EEXIST when the name is taken there, EINVAL for one that cannot be moved.
    pub fn move_link(&self, index: u32, name: &str, namespace: BorrowedFd<'_>) -> nix::Result<()> {
        let mut body = link(index, 0);
        push(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        push(&mut body, IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        self.ask(RTM_SETLINK, NLM_F_ACK, &body).map(drop)
    }

    /// Switches an interface on.
    ///
    /// # Errors
    /// EPERM, and what its driver answers.
    pub fn set_up(&self, index: u32) -> nix::Result<()> {
        self.ask(RTM_SETLINK, NLM_F_ACK, &link(index, libc::IFF_UP.cast_unsigned())).map(drop)
    }

    /// The permanent addresses of global scope: what somebody has given it. All others the kernel
    /// makes anew.
    ///
    /// # Errors
    /// ENOBUFS and their like.
    pub fn addresses(&self, index: u32) -> nix::Result<Vec<Address>> {
        let answers = self.ask(RTM_GETADDR, NLM_F_DUMP, &[0; 8])?;
        Ok(answers.iter().filter_map(|body| address(body, index)).collect())
    }

    /// Gives an interface an address. Nobody is asked whether it is taken (IPv6's duplicate address
    /// detection): it was this interface's just now.
    ///
    /// # Errors
    /// EPERM, EEXIST, EACCES for IPv6 where it is switched off.
    pub fn add_address(&self, index: u32, address: &Address) -> nix::Result<()> {
        let mut body = vec![address.family, address.prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        for (kind, value) in &address.attributes {
            push(&mut body, *kind, value);
        }
        if i32::from(address.family) == libc::AF_INET6 {
            push(&mut body, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        }
        self.ask(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body).map(drop)
    }

    /// Sends one request, and reads until the kernel has answered it.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> nix::Result<Vec<Vec<u8>>> {
        let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::EMSGSIZE)?;
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        request.extend([0; 8]);
        request.extend(body);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answers = Vec::new();
        // The kernel fills at most this much of one datagram of a dump.
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                result => result?,
            };
            if take(&buffer[..length], &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

/// The messages of one datagram; whether they were the last.
fn take(mut data: &[u8], answers: &mut Vec<Vec<u8>>) -> nix::Result<bool> {
    while let Some((header, _)) = data.split_at_checked(HEADER) {
        let length = usize::try_from(word(header, 0)).unwrap_or(0);
        let body = data.get(HEADER..length).ok_or(Errno::EBADMSG)?;
        match half(header, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match word(body, 0).cast_signed() {
                    0 => Ok(true),
                    error => Err(Errno::from_raw(-error)),
                };
            }
            _ => answers.push(body.to_vec()),
        }
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// An address message, when it is of this interface and to be kept.
fn address(body: &[u8], index: u32) -> Option<Address> {
    let (&[family, prefix, flags, scope], rest) = body.split_first_chunk()?;
    if scope != libc::RT_SCOPE_UNIVERSE || flags & IFA_F_PERMANENT == 0 || word(rest, 0) != index {
        return None;
    }
    let mut attributes = Vec::new();
    let mut rest = rest.get(4..)?;
    while rest.len() >= 4 {
        let (length, kind) = (usize::from(half(rest, 0)), half(rest, 2));
        let value = rest.get(4..length)?;
        if IFA_KEPT.contains(&kind) {
            attributes.push((kind, value.to_vec()));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Address { family, prefix, attributes })
}

/// `struct ifinfomsg`, with flags to set.
fn link(index: u32, flags: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body
}

/// Appends an attribute, padded to four bytes.
fn push(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values are names, numbers and addresses: far below 64 KB.
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

fn word(data: &[u8], at: usize) -> u32 {
    data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(data: &[u8], at: usize) -> u16 {
    data.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded() {
        let mut body = Vec::new();
        push(&mut body, IFLA_IFNAME, b"eth0\0");
        assert_eq!(body.len(), 12);
        assert_eq!((half(&body, 0), half(&body, 2)), (9, 3));
        assert_eq!(link(7, 1).len(), 16);
    }

    #[test]
    fn addresses_are_those_that_somebody_gave() {
        let message = |flags: u8, scope: u8, index: u32| {
            let mut body = vec![2, 24, flags, scope];
            body.extend(index.to_ne_bytes());
            push(&mut body, 2, &[10, 0, 0, 1]);
            push(&mut body, 6, &[0; 16]);
            body
        };
        let found = address(&message(0x80, 0, 3), 3).unwrap();
        assert_eq!(found, Address { family: 2, prefix: 24, attributes: vec![(2, vec![10, 0, 0, 1])] });
        assert_eq!(address(&message(0x80, 0, 3), 4), None);
        assert_eq!(address(&message(0x80, 253, 3), 3), None);
        assert_eq!(address(&message(0, 0, 3), 3), None);
        assert_eq!(address(&message(0x80, 0, 3)[..7], 3), None);
    }

    #[test]
    fn answers_that_are_cut_off_are_errors() {
        let mut answers = Vec::new();
        assert_eq!(
            take(&[99, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &mut answers),
            Err(Errno::EBADMSG)
        );
        assert_eq!(take(&[0; 16], &mut answers), Err(Errno::EBADMSG));
        assert_eq!(take(&[], &mut answers), Ok(false));
    }
}
