//! Processes: how the init and exec'ed processes come to be, and how they become the payload.
//!
//! dhow has one thread until the payload runs, so a plain clone3(2) is enough and the child goes
//! on in Rust. Parent and child talk over one socket ([`protocol`]); the child does its steps in
//! order ([`init`], [`exec`]) and ends in execve(2), or in an error that crosses the socket whole.

pub mod credentials;
pub mod criu;
pub mod exec;
mod explain;
pub mod filter;
pub mod format;
pub mod hooks;
pub mod init;
pub mod lookup;
mod mapping;
pub mod preflight;
pub mod protocol;
pub mod reaper;
pub mod scheduling;
mod spawn;
pub mod stdio;
pub mod terminal;

pub use mapping::user_namespace;
pub use spawn::{Spawned, spawn, spawn_staged};
