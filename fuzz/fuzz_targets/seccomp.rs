//! `profile` of seccomp.rs.
#![no_main]

#[path = "../seccomp.rs"]
mod seccomp;

libfuzzer_sys::fuzz_target!(|data: &[u8]| seccomp::profile(data));
