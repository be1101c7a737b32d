//! Tells the binary which commit it was built from, for `dhow --version`.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // A file that is not there, as in a tarball, would count as changed each time.
    for file in [".git/HEAD", ".git/index"].into_iter().filter(|file| std::path::Path::new(file).exists()) {
        println!("cargo:rerun-if-changed={file}");
    }
    println!("cargo:rerun-if-env-changed=DHOW_COMMIT");
    let commit = std::env::var("DHOW_COMMIT").ok().or_else(commit_of_checkout);
    println!("cargo:rustc-env=DHOW_COMMIT={}", commit.unwrap_or_else(|| "unknown".into()));
}

/// The checkout's commit; `None` where the source is not a git checkout.
fn commit_of_checkout() -> Option<String> {
    let out = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(out.stdout).ok()?.trim().to_owned();
    (out.status.success() && !commit.is_empty()).then_some(commit)
}
