//! Samples, and what is kept of them.

use serde::{Deserialize, Serialize};
use std::path::Path;

/// What was measured of one contestant in one scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// The scenario, and its part: `steps/create`.
    pub scenario: String,
    /// `v1` or `v2`.
    pub layout: String,
    /// Who.
    pub contestant: String,
    /// `ms`, `KiB` or a plain count.
    pub unit: String,
    /// How many samples.
    pub runs: usize,
    /// The middle one.
    pub median: f64,
    /// A quarter of the samples is below.
    pub p25: f64,
    /// A quarter of the samples is above.
    pub p75: f64,
    /// The least.
    pub min: f64,
}

impl Measured {
    /// The summary of `samples`; `None` when there are none.
    pub fn of(scenario: &str, layout: &str, contestant: &str, unit: &str, samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Measured {
            scenario: scenario.to_owned(),
            layout: layout.to_owned(),
            contestant: contestant.to_owned(),
            unit: unit.to_owned(),
            runs: sorted.len(),
            median: quantile(&sorted, 0.5)?,
            p25: quantile(&sorted, 0.25)?,
            p75: quantile(&sorted, 0.75)?,
            min: *sorted.first()?,
        })
    }
}

/// The value below which a part of the sorted samples lies, between two of them where needed.
fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    #[allow(clippy::cast_precision_loss)]
    let place = part * (sorted.len().checked_sub(1)? as f64);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * place.fract())
}

/// All results of one run of the bench.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The kernel, the processors, the versions.
    pub machine: Vec<String>,
    /// What was measured.
    pub results: Vec<Measured>,
}

impl Report {
    /// An empty report that says where it was made.
    pub fn of_this_machine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let model = read("/proc/cpuinfo");
        let model = model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let kernel = read("/proc/sys/kernel/osrelease");
        let model = model.trim_start_matches([' ', '\t', ':']);
        Report {
            machine: vec![format!("kernel {}", kernel.trim()), format!("{processors} processors, {model}")],
            results: Vec::new(),
        }
    }

    /// Reads a report.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// Writes the report.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
    }

    /// The result for exactly this.
    pub fn find(&self, scenario: &str, layout: &str, contestant: &str) -> Option<&Measured> {
        let same = |m: &&Measured| m.scenario == scenario && m.layout == layout && m.contestant == contestant;
        self.results.iter().find(same)
    }

    /// Every scenario with its layout, in the order of the results.
    pub fn scenarios(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = Vec::new();
        for m in &self.results {
            let key = (m.scenario.clone(), m.layout.clone());
            if !found.contains(&key) {
                found.push(key);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_samples() {
        let m = Measured::of("s", "v1", "c", "ms", &[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert!((m.median - 2.5).abs() < 1e-9 && (m.p25 - 1.75).abs() < 1e-9 && (m.min - 1.0).abs() < 1e-9);
        assert!(Measured::of("s", "v1", "c", "ms", &[]).is_none());
    }
}
