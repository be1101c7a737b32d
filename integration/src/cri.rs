//! A small CRI client: gRPC by curl, which every Debian has, with messages written by hand.

use crate::Runner;
use dhow_shim_common::wire::Writer;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Whether curl speaks HTTP/2, which gRPC is made of.
pub fn is_there() -> bool {
    let version = Command::new("curl").arg("--version").output();
    version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("HTTP2"))
}

/// A client of one engine's `runtime.v1.RuntimeService`.
pub struct Client {
    socket: PathBuf,
    directory: PathBuf,
}

impl Client {
    /// Of the engine behind a socket. Messages on their way are kept in a directory.
    pub fn new(socket: &Path, directory: &Path) -> Client {
        Client { socket: socket.to_owned(), directory: directory.to_owned() }
    }

    /// Asks; the answer's message.
    ///
    /// # Errors
    /// What the engine says is wrong.
    #[track_caller]
    pub fn try_ask(&self, method: &str, message: Writer) -> Result<Vec<u8>, String> {
        let message = message.finish();
        let (request, response) = (self.directory.join("request"), self.directory.join("response"));
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        fs::write(&request, [&[0], &length[..], &message].concat()).unwrap();
        fs::write(&response, "").unwrap();
        let outcome = Runner::new("curl")
            .args(["--silent", "--show-error", "--http2-prior-knowledge", "--dump-header", "-"])
            .args(["--unix-socket", self.socket.to_str().unwrap(), "--output", response.to_str().unwrap()])
            .args(["--header", "content-type: application/grpc", "--header", "te: trailers"])
            .args(["--data-binary", &format!("@{}", request.display())])
            .args([&format!("http://localhost/runtime.v1.RuntimeService/{method}")])
            .limit(Duration::from_secs(90))
            .run()
            .ok();
        let header = |name: &str| outcome.stdout.lines().find_map(|line| line.strip_prefix(name));
        match header("grpc-status: ").map(str::trim) {
            Some("0") => Ok(fs::read(response).unwrap().get(5..).unwrap_or_default().to_vec()),
            Some(code) => Err(format!("{code}: {}", header("grpc-message: ").unwrap_or_default())),
            None => panic!("{method}: no gRPC answer: {outcome}"),
        }
    }

    /// Asks for what must be done.
    #[track_caller]
    pub fn ask(&self, method: &str, message: Writer) -> Vec<u8> {
        self.try_ask(method, message).unwrap_or_else(|error| panic!("{method}: {error}"))
    }
}
