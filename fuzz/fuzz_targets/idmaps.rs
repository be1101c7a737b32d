//! `idmaps` of plain.rs.
#![no_main]

#[path = "../plain.rs"]
mod plain;

libfuzzer_sys::fuzz_target!(|data: &[u8]| plain::idmaps(data));
