//! Wall-clock time as text.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment as RFC 3339 with nanoseconds, in UTC: `2026-11-21T10:02:03.000000004Z`.
pub fn rfc3339(moment: SystemTime) -> String {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let tm = utc(since.as_secs().cast_signed());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        since.subsec_nanos()
    )
}

/// The time since the host's boot, suspend included.
pub fn since_boot() -> Duration {
    // The clock is always there.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// A time of procfs in its unit of hundredths of a second, USER_HZ, which is part of the kernel's
/// interface.
pub fn ticks(count: u64) -> Duration {
    Duration::from_millis(count.saturating_mul(10))
}

fn utc(seconds: i64) -> libc::tm {
    let mut tm = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: reads one number and writes one structure, both of which outlive the call.
    unsafe { libc::gmtime_r(&raw const seconds, tm.as_mut_ptr()) };
    // SAFETY: zeroes are a valid tm, should the year have been out of its range.
    unsafe { tm.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leap_days_and_fractions() {
        let moment = UNIX_EPOCH + Duration::new(951_827_696, 7);
        assert_eq!(rfc3339(moment), "2000-02-29T12:34:56.000000007Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000000000Z");
    }
}
