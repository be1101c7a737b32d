//! Drives the dhow binary on the real kernel.
//!
//! A test makes a [`Scene`] (a private state directory and a temporary folder), asks it for
//! containers (each a bundle with an id and a cgroup of its own), drives the binary through
//! them, and looks from inside (the `payload` program) and from outside (/proc, the cgroup
//! file systems, mountinfo). When the scene ends it checks that nothing is left.
//!
//! The binary is `bin/dhow`, or what `DHOW_BIN` names: another runtime with runc's command line
//! can be driven too, to tell a wrong test from a wrong runtime.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

pub mod bare;
pub mod cgroup;
pub mod command;
pub mod config;
pub mod console;
pub mod containerd;
pub mod cri;
pub mod engine;
pub mod image;
pub mod leaks;
pub mod machine;
pub mod scene;
// The tracer reads and writes this machine's registers.
#[cfg(target_arch = "x86_64")]
pub mod trace;
pub mod ttrpc;
pub mod wait;

pub use command::{Outcome, Runner, is_dhow};
pub use config::Config;
pub use console::{ConsoleSocket, Terminal};
pub use scene::{Container, Scene};
pub use wait::{eventually, holds_within};
