//! What parent and child say to each other, over one SOCK_SEQPACKET socket.

use crate::error::{Class, Context, Error, Result};
use crate::sys::socket;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The longest message: an error with its words. Longer ones are cut by the sender.
const MOST_BYTES: usize = 16 * 1024;

/// One step of the conversation.
#[derive(Debug)]
pub enum Message {
    /// To the child: the id maps are written and the cgroup is there; these are the `tasks`
    /// files of cgroup v1 to write itself into.
    Proceed(Vec<OwnedFd>),
    /// To the init: the file by which it enters the cgroup that is delegated to it.
    Delegated(OwnedFd),
    /// To the init: the overlay that is to be its root, as a detached mount.
    Root(OwnedFd),
    /// From the process between: the init's pid and its pidfd.
    Init(i32, OwnedFd),
    /// From the init: its network namespace is there; the network devices may come.
    DevicesPlease,
    /// To the init: they have come.
    DevicesDone,
    /// From the init: its mount namespace is there; the trees that it cannot open may come.
    TreesPlease,
    /// To the init: the tree of this step of the mount plan.
    Tree(u32, OwnedFd),
    /// To the init: those were all.
    TreesDone,
    /// From the init: the owners in the tree of this step of the mount plan are to be mapped.
    OwnersPlease(u32, OwnedFd),
    /// To the init: they are.
    OwnersDone,
    /// From the init: the namespaces and mounts are there; the runtime's hooks may run.
    HooksPlease,
    /// To the init: they have run.
    HooksDone,
    /// From the child: the master of its terminal.
    Console(OwnedFd),
    /// From the child: the seccomp listener.
    Listener(OwnedFd),
    /// From the child: all is done that can be done before the payload.
    Ready,
    /// To the init: the record tells of it, so that it may outlive its parent.
    Adopted,
    /// To the init, from `run` or `start`: become the payload.
    Start,
    /// From the child: it could not go on.
    Failed(Error),
}

impl Message {
    fn tag(&self) -> u8 {
        match self {
            Message::Proceed(_) => 1,
            Message::Init(..) => 2,
            Message::HooksPlease => 3,
            Message::HooksDone => 4,
            Message::Console(_) => 5,
            Message::Listener(_) => 6,
            Message::Ready => 7,
            Message::Start => 8,
            Message::Failed(_) => 9,
            Message::Adopted => 10,
            Message::DevicesPlease => 11,
            Message::DevicesDone => 12,
            Message::OwnersPlease(..) => 13,
            Message::OwnersDone => 14,
            Message::TreesPlease => 15,
            Message::Tree(..) => 16,
            Message::TreesDone => 17,
            Message::Delegated(_) => 18,
            Message::Root(_) => 19,
        }
    }

    fn body(&self) -> Vec<u8> {
        match self {
            Message::Init(pid, _) => pid.to_le_bytes().to_vec(),
            Message::OwnersPlease(step, _) | Message::Tree(step, _) => step.to_le_bytes().to_vec(),
            Message::Failed(error) => serde_json::to_vec(&trimmed(error)).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Message::Proceed(fds) => fds.iter().map(AsFd::as_fd).collect(),
            Message::Init(_, fd)
            | Message::OwnersPlease(_, fd)
            | Message::Tree(_, fd)
            | Message::Delegated(fd)
            | Message::Root(fd)
            | Message::Console(fd)
            | Message::Listener(fd) => vec![fd.as_fd()],
            _ => Vec::new(),
        }
    }

    fn from_parts(tag: u8, body: &[u8], fds: Vec<OwnedFd>) -> Option<Message> {
        let one = |fds: Vec<OwnedFd>| fds.into_iter().next();
        Some(match tag {
            1 => Message::Proceed(fds),
            2 => Message::Init(i32::from_le_bytes(body.try_into().ok()?), one(fds)?),
            3 => Message::HooksPlease,
            4 => Message::HooksDone,
            5 => Message::Console(one(fds)?),
            6 => Message::Listener(one(fds)?),
            7 => Message::Ready,
            8 => Message::Start,
            9 => Message::Failed(serde_json::from_slice(body).ok()?),
            10 => Message::Adopted,
            11 => Message::DevicesPlease,
            12 => Message::DevicesDone,
            13 => Message::OwnersPlease(u32::from_le_bytes(body.try_into().ok()?), one(fds)?),
            14 => Message::OwnersDone,
            15 => Message::TreesPlease,
            16 => Message::Tree(u32::from_le_bytes(body.try_into().ok()?), one(fds)?),
            17 => Message::TreesDone,
            18 => Message::Delegated(one(fds)?),
            19 => Message::Root(one(fds)?),
            _ => return None,
        })
    }
}

/// An error whose texts fit into a message whatever a container put into them.
fn trimmed(error: &Error) -> Error {
    let cut = |text: &String| text.chars().take(600).collect::<String>();
    Error {
        class: error.class,
        doing: cut(&error.doing),
        subject: error.subject.as_ref().map(cut),
        cause: error.cause.as_ref().map(cut),
        errno: error.errno,
        hint: error.hint.as_ref().map(cut),
    }
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Channel { fd }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Channel {
    /// Two ends, one for the parent and one for the child.
    ///
    /// # Errors
    /// EMFILE and their like.
    pub fn pair() -> Result<(Channel, Channel)> {
        let (parent, child) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .doing("make a socket pair")?;
        Ok((Channel { fd: parent }, Channel { fd: child }))
    }

    /// Sends one message.
    ///
    /// # Errors
    /// EPIPE when the other end is gone.
    pub fn send(&self, message: &Message) -> Result<()> {
        let doing = "talk to the other process";
        let sent = socket::send(self.as_fd(), &[&[message.tag()], &message.body()], &message.fds());
        sent.map_err(|errno| match errno {
            Errno::EPIPE | Errno::ECONNRESET => {
                Error::system(doing, errno).because("it was killed, or it ended")
            }
            _ => Error::system(doing, errno),
        })
    }

    /// Waits for the next message; `None` when the other end was closed, which an exec does.
    ///
    /// # Errors
    /// recvmsg(2)'s; [`Class::Internal`] for what is no message.
    pub fn receive(&self) -> Result<Option<Message>> {
        let mut buffer = [0_u8; MOST_BYTES];
        let received = match socket::receive(self.as_fd(), &mut buffer) {
            // The other process ended with unread data in its end. That is told once, before what it
            // said last: the reason why it ended is often still to come.
            Err(Errno::ECONNRESET) => socket::receive(self.as_fd(), &mut buffer),
            received => received,
        };
        let (length, fds) = received.doing("listen to the other process")?;
        let Some((&tag, body)) = buffer[..length].split_first() else { return Ok(None) };
        Message::from_parts(tag, body, fds).map(Some).ok_or_else(|| {
            Error::new(Class::Internal, "listen to the other process")
                .because(format!("unknown message {tag}"))
        })
    }

    /// Whether there is something to receive, or the end, before this much time has gone by.
    ///
    /// # Errors
    /// poll(2)'s.
    pub fn has_word_within(&self, patience: PollTimeout) -> Result<bool> {
        let mut ready = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, patience) {
            Ok(count) => Ok(count > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(Error::system("listen to the other process", errno)),
        }
    }

    /// Whether the other process has closed its end; what it has sent may still be there.
    pub fn is_deserted(&self) -> bool {
        let mut closed = [PollFd::new(self.as_fd(), PollFlags::empty())];
        let hung_up = |one: &PollFd<'_>| one.revents().is_some_and(|is| is.contains(PollFlags::POLLHUP));
        poll(&mut closed, PollTimeout::ZERO).is_ok() && hung_up(&closed[0])
    }

    /// As [`Channel::receive`], for a side that cannot go on alone.
    ///
    /// # Errors
    /// The other side's own error, where it sent one; [`Class::System`] when it ended silently.
    pub fn expect(&self) -> Result<Message> {
        match self.receive()? {
            Some(Message::Failed(error)) => Err(error),
            Some(message) => Ok(message),
            None => {
                Err(Error::new(Class::System, "wait for the other process")
                    .because("it ended without a word"))
            }
        }
    }
}

/// The error for a message that does not belong here.
pub fn out_of_turn(message: &Message) -> Error {
    Error::new(Class::Internal, "listen to the other process").because(format!("{message:?} is out of turn"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_fds_arrive_whole() {
        let (parent, child) = Channel::pair().unwrap();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        child.send(&Message::Init(42, null())).unwrap();
        child.send(&Message::Failed(Error::config("process.cwd", "x".repeat(5000)))).unwrap();
        parent.send(&Message::Proceed(vec![null(), null(), null()])).unwrap();
        assert!(matches!(parent.receive().unwrap(), Some(Message::Init(42, _))));
        assert!(matches!(child.receive().unwrap(), Some(Message::Proceed(fds)) if fds.len() == 3));
        let error = parent.expect().unwrap_err();
        assert_eq!((error.class, error.cause.unwrap().len()), (Class::Config, 600));
        drop(child);
        assert!(parent.receive().unwrap().is_none());
        assert!(parent.send(&Message::Ready).is_err());
    }

    #[test]
    fn the_last_word_of_a_process_that_did_not_listen_is_heard() {
        let (parent, child) = Channel::pair().unwrap();
        parent.send(&Message::Ready).unwrap();
        child.send(&Message::Failed(Error::config("a", "b"))).unwrap();
        drop(child);
        assert!(matches!(parent.receive().unwrap(), Some(Message::Failed(_))));
        assert!(parent.receive().unwrap().is_none());
    }

    #[test]
    fn one_that_has_gone_is_missed_before_all_is_read() {
        let (parent, child) = Channel::pair().unwrap();
        parent.send(&Message::Ready).unwrap();
        assert!(!child.is_deserted());
        drop(parent);
        assert!(child.is_deserted());
        assert!(matches!(child.receive().unwrap(), Some(Message::Ready)));
    }

    #[test]
    fn nonsense_is_an_error() {
        let (parent, child) = Channel::pair().unwrap();
        for nonsense in [&b"\xff"[..], b"\x05", b"\x02ab", b"\x09{"] {
            socket::send(child.as_fd(), &[nonsense], &[]).unwrap();
            assert_eq!(parent.receive().unwrap_err().class, Class::Internal, "{nonsense:?}");
        }
    }
}
