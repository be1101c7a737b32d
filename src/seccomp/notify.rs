//! `SCMP_ACT_NOTIFY`: handing the listener over to whoever answers.

use crate::error::{Class, Context, Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};
use nix::sys::stat::Mode;
use serde::Serialize;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// The specification's container process state: what goes with the listener.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessState<'a, S> {
    /// The version of the specification.
    pub oci_version: &'a str,
    /// What the descriptors that go with the message are.
    pub fds: [&'static str; 1],
    /// The process under the filter, as the runtime sees it.
    pub pid: i32,
    /// The profile's `listenerMetadata`.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub metadata: &'a str,
    /// The container's state, as `state` prints it.
    pub state: &'a S,
}

impl<'a, S: Serialize> ProcessState<'a, S> {
    /// The state of a process that is under a filter with a listener.
    pub fn new(oci_version: &'a str, pid: i32, metadata: &'a str, state: &'a S) -> Self {
        ProcessState { oci_version, fds: ["seccompFd"], pid, metadata, state }
    }
}

/// Sends the listener and the process's state to the socket at `listenerPath`.
pub fn send_listener<S: Serialize>(
    path: &Path,
    listener: BorrowedFd<'_>,
    state: &ProcessState<'_, S>,
) -> Result<()> {
    let doing = "send the seccomp listener";
    let on = || path.display().to_string();
    let text = serde_json::to_vec(state)
        .map_err(|e| Error::new(Class::Internal, doing).because(format!("cannot write the state: {e}")))?;
    let socket = dial(path).doing_on(doing, on).map_err(|e| match e.errno.map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ECONNREFUSED) => e
            .because("failed to connect with seccomp agent")
            .hint("linux.seccomp.listenerPath: nothing listens there; is the agent running?"),
        _ => e,
    })?;
    let rights = [listener.as_raw_fd()];
    let mut control: &[ControlMessage<'_>] = &[ControlMessage::ScmRights(&rights)];
    let mut rest = &text[..];
    while !rest.is_empty() {
        let flags = MsgFlags::MSG_NOSIGNAL;
        match sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(rest)], control, flags, None) {
            Ok(sent) => {
                rest = &rest[sent..];
                // The descriptor went with the first bytes.
                control = &[];
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing_on(doing, on),
        }
    }
    Ok(())
}

/// Connects to a socket by path. A path that no `sockaddr_un` can hold is reached by way of its
/// directory's descriptor.
fn dial(path: &Path) -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    match UnixAddr::new(path) {
        Ok(address) => connect(socket.as_raw_fd(), &address)?,
        Err(Errno::ENAMETOOLONG) => {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Errno::EINVAL);
            };
            let parent = open(parent, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            let short = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
            connect(socket.as_raw_fd(), &UnixAddr::new(&short)?)?;
        }
        Err(errno) => return Err(errno),
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::IoSliceMut;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    /// A directory that goes away with the test.
    struct Dir(std::path::PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("dhow-notify-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Dir(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn exchange(path: &Path) {
        let listener = UnixListener::bind(path);
        let listener = listener.unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let state = serde_json::json!({"id": "c1", "annotations": {"long": "x".repeat(5000)}});
        send_listener(path, file.as_fd(), &ProcessState::new("1.3.0", 42, "meta", &state)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        let mut bytes = [0u8; 16384];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<UnixAddr>(peer.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let fds: Vec<_> = message
            .cmsgs()
            .unwrap()
            .flat_map(|c| match c {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(fds.len(), 1);
        let len = message.bytes;
        let got: serde_json::Value = serde_json::from_slice(&bytes[..len]).unwrap();
        assert_eq!(
            got,
            serde_json::json!({"ociVersion": "1.3.0", "fds": ["seccompFd"], "pid": 42, "metadata": "meta",
                "state": state})
        );
        nix::unistd::close(fds[0]).unwrap();
    }

    #[test]
    fn the_listener_goes_with_the_state() {
        let dir = Dir::new("short");
        exchange(&dir.0.join("agent.sock"));
    }

    #[test]
    fn nobody_listens() {
        let dir = Dir::new("nobody");
        let null = std::fs::File::open("/dev/null").unwrap();
        let state = ProcessState::new("1.3.0", 1, "", &());
        let error = send_listener(&dir.0.join("none"), null.as_fd(), &state).unwrap_err();
        assert!(error.to_string().contains("seccomp agent"), "{error}");
    }

    #[test]
    fn a_long_path_is_reached() {
        let dir = Dir::new("long");
        let deep = dir.0.join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        // bind() has the same limit: bind by way of the directory's descriptor.
        let parent = std::fs::File::open(&deep).unwrap();
        let short = format!("/proc/self/fd/{}/agent.sock", parent.as_raw_fd());
        let _listener = UnixListener::bind(short).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let state = ProcessState::new("1.3.0", 1, "", &());
        send_listener(&deep.join("agent.sock"), null.as_fd(), &state).unwrap();
    }
}
