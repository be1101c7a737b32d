//! dhow: a low-level OCI runtime.
//!
//! `docs/architecture.md` shows the rooms of this house and who may import whom.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cgroups;
pub mod error;
pub mod spec;
pub mod sys;
