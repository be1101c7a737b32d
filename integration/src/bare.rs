//! A shim without any containerd, asked by hand.

use crate::command::{binary, workspace};
use crate::containerd::SHIM;
use crate::ttrpc::{Client, TASK};
use crate::{Config, Container, Outcome, Runner, Scene, eventually};
use dhow_shim_common::wire::Writer;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A shim that nobody but the test talks to.
pub struct Bare<'s> {
    /// What it belongs to.
    pub scene: &'s Scene,
    /// The bundle and the id.
    pub container: Container<'s>,
    /// A connection to it.
    pub shim: Client,
}

/// The shim.
pub fn program() -> PathBuf {
    workspace().join("bin").join(SHIM)
}

/// Whether it can be tried.
pub fn can_be_tried() -> bool {
    crate::is_dhow() && program().exists()
}

/// Ends a test that has no shim to try.
#[macro_export]
macro_rules! needs_shim {
    () => {
        $crate::skip_unless!($crate::bare::can_be_tried(), "no shim in bin, or another runtime");
    };
}

impl<'s> Bare<'s> {
    /// Starts one for a new bundle.
    #[track_caller]
    pub fn new(scene: &'s Scene, configure: impl FnOnce(&mut Config)) -> Self {
        let container = scene.container(configure);
        let shim = start(&container);
        Bare { scene, container, shim }
    }

    /// Starts another one for the same bundle, after the first.
    #[track_caller]
    pub fn begin(&mut self) {
        self.shim = start(&self.container);
    }

    /// A request that names the container.
    pub fn about(&self) -> Writer {
        Writer::new().bytes(1, self.container.id())
    }

    /// Create, with what else the request has.
    pub fn creation(&self, rest: impl FnOnce(Writer) -> Writer) -> Writer {
        let root = self.scene.state_dir().display().to_string();
        let options = Writer::new().bytes(6, binary().to_str().unwrap()).bytes(7, root).finish();
        let request = self.about().bytes(2, self.container.bundle().to_str().unwrap());
        rest(request).any(10, "containerd.runc.v1.Options", options)
    }

    /// Makes the container, with what else Create has, and starts it.
    #[track_caller]
    pub fn up(&mut self, rest: impl FnOnce(Writer) -> Writer) {
        self.ask("Create", self.creation(rest));
        self.ask("Start", self.about());
    }

    /// Where the shim listens.
    pub fn socket(&self) -> PathBuf {
        let address = fs::read_to_string(self.container.bundle().join("address")).unwrap();
        PathBuf::from(address.trim_start_matches("unix://"))
    }

    /// Asks for what must be done.
    #[track_caller]
    pub fn ask(&mut self, method: &str, request: Writer) -> Vec<u8> {
        self.shim.ask(TASK, method, request).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    /// The container's end, and the shim's.
    #[track_caller]
    pub fn finish(mut self) {
        let request = self.about().number(3, 9u32).number(4, 1u32);
        let _ = self.shim.ask(TASK, "Kill", request);
        let about = self.about();
        self.ask("Wait", about.clone());
        self.ask("Delete", about.clone());
        let socket = self.socket();
        self.shim.send(TASK, "Shutdown", about);
        eventually("the shim has gone", || !socket.exists());
        let _ = fs::remove_dir(self.scene.state_dir().join("n"));
        self.scene.is_clean();
    }
}

/// `delete`, as containerd calls it when the shim has gone.
#[track_caller]
pub fn delete(container: &Container<'_>) -> Outcome {
    let bundle = container.bundle();
    let words = ["-namespace", "n", "-address", bundle.to_str().unwrap(), "-id", container.id(), "delete"];
    Runner::new(program()).args(words).cwd(bundle).run().ok()
}

#[track_caller]
fn start(container: &Container<'_>) -> Client {
    let bundle = container.bundle();
    let words = ["-namespace", "n", "-address", bundle.to_str().unwrap(), "-publish-binary", "x"];
    let start = Command::new(program())
        .args(words)
        .args(["-id", container.id(), "start"])
        .current_dir(bundle)
        .env_remove("MAX_SHIM_VERSION")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert!(start.status.success(), "{}", String::from_utf8_lossy(&start.stderr));
    Client::of(bundle)
}
