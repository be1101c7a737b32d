//! Measures dhow against its peers.
fn main() {}
