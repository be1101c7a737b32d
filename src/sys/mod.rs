//! The only room with `unsafe`: thin, safe wrappers of the syscalls that neither nix nor
//! rustix has, and the two ways to open a path that is not trusted ([`path`], [`procfs`]).
//!
//! Everything here takes and returns owned or borrowed fds and C strings, answers
//! `nix::Result`, and knows nothing of containers.
#![allow(unsafe_code)]

pub mod bpf;
pub mod cgroup;
