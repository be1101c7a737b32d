//! Waiting for what another process does: always with a deadline, never by a fixed sleep.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. Generous: CI machines stall.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// A time as it is on this machine: DHOW_SLOWER times as long on an emulated one.
pub fn slowly(time: Duration) -> Duration {
    time * std::env::var("DHOW_SLOWER").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Whether `condition` comes true within `limit`.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + slowly(limit);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds; panics with `what` when it does not in time.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(holds_within(PATIENCE, condition), "did not happen within {PATIENCE:?}: {what}");
}
