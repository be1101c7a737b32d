//! dhow: a low-level OCI runtime.
//!
//! `docs/architecture.md` shows the rooms of this house and who may import whom.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cgroups;
pub mod cli;
pub mod error;
pub mod image;
pub mod log;
pub mod namespaces;
pub mod process;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
pub mod spec;
pub mod state;
pub mod sys;
