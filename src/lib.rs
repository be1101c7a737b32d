//! dhow: a low-level OCI runtime, as a library.
//!
//! A container is made from a bundle (a directory with a config.json and usually a rootfs, as the
//! [runtime specification](https://github.com/opencontainers/runtime-spec) has it), and lives on as what
//! its record on disk says: [`Runtime::create`] makes one, [`Container`] does the rest. Images are
//! imported, unpacked and made into bundles by [`Images`]. The `dhow` command does the same with the
//! same functions, so both may work on the same containers.
//!
//! ```no_run
//! use dhow::Runtime;
//!
//! fn main() -> dhow::Result<()> {
//!     dhow::helper(); // first of all: see its page
//!     let runtime = Runtime::new();
//!     runtime.images().bundle("debian", "/srv/web", &dhow::BundleOptions::default())?;
//!     let web = runtime.create("web", "/srv/web").run()?;
//!     web.exec(["ps"]).spawn()?.wait()?;
//!     let exit = web.wait()?;
//!     web.delete()?;
//!     std::process::exit(exit.code)
//! }
//! ```
//!
//! # Threads
//!
//! Any thread may call any method at any time, and a method blocks no other thread. What has to fork is
//! done by a helper process: the caller's own program once more, caught by [`helper`], which has to be the
//! first call of `main`.
//!
//! # Errors
//!
//! All methods answer one type, [`Error`]: its [`Class`] is for programs, its parts say what was being done,
//! to what, why it failed and what can be done about it, and `to_string` makes one line of them.
//!
//! # Units
//!
//! Sizes are bytes, times [`Duration`](std::time::Duration) or as the field says, ids of users and groups are
//! the container's, pids and paths the caller's unless a page says otherwise. Signals are numbers; [`signal`]
//! knows their names.
//!
//! # Stability
//!
//! What this page lists is the API; `docs/public-api.txt` is held against it by a test. The modules that it
//! does not show are public for the `dhow` binary, its tests and its fuzz targets alone, and change without
//! notice.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
// The rooms of docs/architecture.md. Hidden, because they are no API: the binary, the tests and the fuzz
// targets are crates of their own, and could not reach them otherwise.
#[doc(hidden)]
pub mod cgroups;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod image;
#[doc(hidden)]
pub mod log;
#[doc(hidden)]
pub mod namespaces;
#[doc(hidden)]
pub mod process;
#[doc(hidden)]
pub mod rootfs;
#[doc(hidden)]
pub mod runtime;
#[doc(hidden)]
pub mod seccomp;
#[doc(hidden)]
pub mod spec;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod sys;

pub use api::{
    BundleOptions, CgroupManager, Container, Create, Event, Exec, Exit, Image, Images, Limits, Process,
    Runtime, State, Stats, Status, helper, signal,
};
pub use error::{Class, Error, Result};

/// What README.md says of the library compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
