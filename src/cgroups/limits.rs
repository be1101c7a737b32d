//! What holds for limits on either version: ranges, and conversions between the two. Pure, but for
//! the one check that looks at the present use.

use super::dir::Dir;
use crate::error::{Context, Error, Result};
use crate::spec::{Cpu, Memory, Resources};

/// Whether a value that is absent or 0 leaves things as they are, and what else an update is
/// careful about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The cgroup is new: what it has are the kernel's defaults.
    Create,
    /// The cgroup is in use: 0 is "unchanged", which engines send for what they do not mean.
    Update,
}

fn range(field: &str, value: impl std::fmt::Display, expected: &str) -> Error {
    Error::config(format!("linux.resources.{field}"), format!("{value} is out of range: expected {expected}"))
}

/// Refuses what no kernel would take, naming field, value and range.
///
/// # Errors
/// The first wrong value.
pub(super) fn check(resources: &Resources) -> Result<()> {
    if let Some(memory) = &resources.memory {
        check_memory(memory)?;
    }
    if let Some(cpu) = &resources.cpu {
        check_cpu(cpu)?;
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit).filter(|limit| *limit < -1) {
        return Err(range("pids.limit", limit, "-1 (unlimited) or more"));
    }
    if let Some(io) = &resources.block_io {
        let by_device = io.weight_device.iter().flat_map(|d| {
            [("blockIO.weightDevice.weight", d.weight), ("blockIO.weightDevice.leafWeight", d.leaf_weight)]
        });
        let weights = [("blockIO.weight", io.weight), ("blockIO.leafWeight", io.leaf_weight)];
        for (field, weight) in weights.into_iter().chain(by_device) {
            // 0 is what engines send for "none".
            if let Some(weight) = weight.filter(|w| *w != 0 && !(10..=1000).contains(w)) {
                return Err(range(field, weight, "10 to 1000"));
            }
        }
    }
    for limit in &resources.hugepage_limits {
        let digits = limit.page_size.trim_end_matches(['K', 'M', 'G', 'B']);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || digits == limit.page_size {
            return Err(range(
                "hugepageLimits.pageSize",
                format!("{:?}", limit.page_size),
                "a size like 2MB or 1GB",
            ));
        }
    }
    check_names(resources)
}

/// Names that become part of a file's name or of a line.
fn check_names(resources: &Resources) -> Result<()> {
    for file in resources.unified.keys() {
        if file.contains('/') || !file.contains('.') || file.starts_with('.') {
            return Err(Error::config(
                "linux.resources.unified",
                format!("{file:?} is not the name of a cgroup file, like memory.high"),
            ));
        }
    }
    let interfaces = resources.network.iter().flat_map(|net| net.priorities.iter().map(|p| p.name.as_str()));
    for name in interfaces.chain(resources.rdma.keys().map(String::as_str)) {
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(Error::config("linux.resources", format!("{name:?} is not the name of a device")));
        }
    }
    Ok(())
}

fn check_memory(memory: &Memory) -> Result<()> {
    let fields = [
        ("memory.limit", memory.limit),
        ("memory.reservation", memory.reservation),
        ("memory.swap", memory.swap),
        ("memory.kernel", memory.kernel),
        ("memory.kernelTCP", memory.kernel_tcp),
    ];
    for (field, value) in fields {
        if let Some(value) = value.filter(|v| *v < -1) {
            return Err(range(field, value, "-1 (unlimited) or a number of bytes"));
        }
    }
    if let Some(swappiness) = memory.swappiness.filter(|s| *s > 100) {
        return Err(range("memory.swappiness", swappiness, "0 to 100"));
    }
    let limit = memory.limit.unwrap_or(0);
    match memory.swap {
        // swap counts memory and swap together, so it cannot be the smaller one.
        Some(swap) if swap > 0 && limit > 0 && swap < limit => {
            Err(range("memory.swap", swap, &format!("-1 or at least memory.limit, {limit}")))
        }
        Some(swap) if swap > 0 && limit == -1 => {
            Err(range("memory.swap", swap, "-1, because memory.limit is -1 and swap includes it"))
        }
        _ => Ok(()),
    }
}

fn check_cpu(cpu: &Cpu) -> Result<()> {
    if let Some(shares) = cpu.shares.filter(|s| *s != 0 && !(2..=262_144).contains(s)) {
        return Err(range("cpu.shares", shares, "2 to 262144"));
    }
    if let Some(period) = cpu.period.filter(|p| *p != 0 && !(1000..=1_000_000).contains(p)) {
        return Err(range("cpu.period", period, "1000 to 1000000 microseconds"));
    }
    // Some engines write any negative number for "unlimited", and runc takes it.
    if let Some(quota) = cpu.quota.filter(|q| (1..1000).contains(q)) {
        return Err(range("cpu.quota", quota, "-1 (unlimited) or at least 1000 microseconds"));
    }
    if let (Some(burst), Some(quota)) = (cpu.burst, cpu.quota.filter(|q| *q > 0))
        && burst > quota.unsigned_abs()
    {
        return Err(range("cpu.burst", burst, &format!("at most cpu.quota, {quota}")));
    }
    if let Some(idle) = cpu.idle.filter(|i| !(0..=1).contains(i)) {
        return Err(range("cpu.idle", idle, "0 or 1"));
    }
    for (field, list) in [("cpu.cpus", &cpu.cpus), ("cpu.mems", &cpu.mems)] {
        if !is_list(list) {
            return Err(range(field, format!("{list:?}"), "a list like 0-3,7"));
        }
    }
    Ok(())
}

/// Whether the text is a list as cpusets take it (cpuset(7), "List format"); empty is none.
fn is_list(text: &str) -> bool {
    let is_number = |n: &str| !n.is_empty() && n.len() < 7 && n.bytes().all(|b| b.is_ascii_digit());
    text.trim().split(',').all(|part| {
        // A range may have a stride: 0-15:2 or 0-15:2/4.
        let (ends, stride) = part.split_once(':').unwrap_or((part, "1"));
        let stride = stride.split('/').all(is_number);
        let ordered = match ends.split_once('-') {
            Some((low, high)) if is_number(low) && is_number(high) => {
                low.parse::<u32>().ok() <= high.parse::<u32>().ok()
            }
            Some(_) => false,
            None => is_number(ends) || (text.trim().is_empty()),
        };
        stride && ordered
    })
}

/// cpu.shares of v1 as cpu.weight of v2, by the formula of the runtime specification since 1.3
/// (config-linux.md, "cpu"): 2 is 1, 1024 is 100, 262144 is 10000, and quadratic in the logarithm
/// between them, so that the default of the one is the default of the other.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // The last digits of a float must not lift a whole number to the next.
            (10f64.powf(exponent) - 1e-9).ceil() as u64
        }
    }
}

/// blockIO.weight (10 to 1000) as io.weight of v2 (1 to 10000).
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

/// memory.swap of the configuration, which includes memory, as the number of bytes of swap alone
/// that v2 takes; `None` is unlimited.
///
/// # Errors
/// A swap without a limit of memory to subtract.
pub(super) fn swap_alone(swap: i64, limit: Option<i64>) -> Result<Option<i64>> {
    match (swap, limit) {
        (..=-1, _) => Ok(None),
        (swap, Some(limit)) if limit > 0 && swap >= limit => Ok(Some(swap - limit)),
        (swap, Some(limit)) if limit > 0 => {
            Err(range("memory.swap", swap, &format!("-1 or at least the memory limit, {limit}")))
        }
        (swap, _) => {
            Err(range("memory.swap", swap, "-1, as long as memory.limit is not set, which it includes"))
        }
    }
}

/// A number of bytes, or `unlimited` for -1.
pub(super) fn or_unlimited(value: i64, unlimited: &'static str) -> std::borrow::Cow<'static, str> {
    if value < 0 { unlimited.into() } else { value.to_string().into() }
}

/// A value that is set and not 0, which stands for "not set" wherever engines fill in zeros.
pub(super) fn set<T: Copy + Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|v| *v != T::default())
}

/// The memory limit that `checkBeforeUpdate` asks to compare with the present use.
pub(super) fn to_check_before_update(resources: &Resources) -> Option<u64> {
    let memory = resources.memory.as_ref().filter(|memory| memory.check_before_update == Some(true))?;
    memory.limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0)
}

/// Refuses a limit below the present use.
///
/// # Errors
/// That, or a use that cannot be read.
pub(super) fn refuse_below_use(limit: u64, dir: &Dir, file: &str) -> Result<()> {
    let used = dir.number(file).doing_on("read the memory use of", || dir.path())?;
    if used <= limit {
        return Ok(());
    }
    Err(range("memory.limit", limit, &format!("more than the present use of {used}, by checkBeforeUpdate")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Resources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn shares_by_the_current_formula() {
        let table = [(0, 1), (2, 1), (3, 2), (1024, 100), (262_144, 10_000), (262_145, 10_000)];
        for (shares, weight) in table {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
        assert_eq!(weight_of_shares(512), 59);
        assert_eq!(weight_of_shares(2048), 174);
        for shares in 2..10_000 {
            assert!(weight_of_shares(shares) <= weight_of_shares(shares + 1));
        }
    }

    #[test]
    fn io_weights_reach_both_ends() {
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn swap_alone_is_the_difference() {
        assert_eq!(swap_alone(-1, Some(5)).unwrap(), None);
        assert_eq!(swap_alone(300, Some(100)).unwrap(), Some(200));
        assert_eq!(swap_alone(100, Some(100)).unwrap(), Some(0));
        assert!(swap_alone(100, None).is_err());
        assert!(swap_alone(100, Some(200)).is_err());
    }

    #[test]
    fn lists() {
        for list in ["", "0", "0-3", "0-3,7", "0,2,4-5", "0-15:2/4", "0-1\n"] {
            assert!(is_list(list), "{list}");
        }
        for list in ["a", "3-1", "0-", "-1", "0,,1", "0;1", "0-1-2", "0 1"] {
            assert!(!is_list(list), "{list}");
        }
    }

    #[test]
    fn errors_name_field_value_and_range() {
        let cases = [
            (r#"{"memory":{"limit":-2}}"#, "linux.resources.memory.limit: -2", "-1"),
            (r#"{"memory":{"limit":200,"swap":100}}"#, "linux.resources.memory.swap: 100", "200"),
            (r#"{"memory":{"limit":-1,"swap":100}}"#, "memory.swap: 100", "-1"),
            (r#"{"memory":{"swappiness":101}}"#, "memory.swappiness: 101", "0 to 100"),
            (r#"{"cpu":{"shares":1}}"#, "cpu.shares: 1", "2 to 262144"),
            (r#"{"cpu":{"period":10}}"#, "cpu.period: 10", "1000 to 1000000"),
            (r#"{"cpu":{"quota":10}}"#, "cpu.quota: 10", "1000"),
            (r#"{"cpu":{"quota":5000,"burst":6000}}"#, "cpu.burst: 6000", "5000"),
            (r#"{"cpu":{"idle":2}}"#, "cpu.idle: 2", "0 or 1"),
            (r#"{"cpu":{"cpus":"x"}}"#, "cpu.cpus: \"x\"", "0-3,7"),
            (r#"{"pids":{"limit":-2}}"#, "pids.limit: -2", "-1"),
            (r#"{"blockIO":{"weight":5}}"#, "blockIO.weight: 5", "10 to 1000"),
            (r#"{"blockIO":{"weightDevice":[{"major":1,"minor":1,"weight":2000}]}}"#, "2000", "10 to 1000"),
            (r#"{"hugepageLimits":[{"pageSize":"../x","limit":1}]}"#, "../x", "2MB"),
            (r#"{"unified":{"../memory.max":"1"}}"#, "linux.resources.unified", "../memory.max"),
            (r#"{"rdma":{"a b":{"hcaHandles":1}}}"#, "a b", "device"),
        ];
        for (json, field, expected) in cases {
            let error = check(&parse(json)).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_engines_send_passes() {
        let docker = r#"{"memory":{"limit":0,"swap":0,"disableOOMKiller":false},"cpu":{"shares":0,"quota":0,
            "period":0},"pids":{"limit":-1},"blockIO":{"weight":0}}"#;
        check(&parse(docker)).unwrap();
        check(&parse(r#"{"memory":{"limit":100,"swap":-1},"cpu":{"quota":-1}}"#)).unwrap();
    }
}
