//! Tables for people.

use crate::stats::{Measured, Report};
use std::fmt::Write;

/// Who stands in the columns, in this order.
pub const CONTESTANTS: [&str; 5] = ["floor", "dhow", "crun-static", "crun", "runc"];

/// Medians, 25th percentiles, and dhow's ratios to the others.
pub fn tables(report: &Report) -> String {
    let mut text = report.machine.iter().fold(String::new(), |text, line| text + line + "\n");
    let present: Vec<&str> =
        CONTESTANTS.into_iter().filter(|c| report.results.iter().any(|m| m.contestant == *c)).collect();
    let _ = write!(text, "\nmedian (25th percentile)\n\n{:<26} {:<3} {:>4} {:<5}", "", "", "runs", "unit");
    for name in &present {
        let _ = write!(text, " {name:>17}");
    }
    let _ = writeln!(text, " | {:>6} {:>6} {:>6}", "/floor", "/crun", "/runc");
    for (scenario, layout) in report.scenarios() {
        let Some(any) = report.results.iter().find(|m| m.scenario == scenario && m.layout == layout) else {
            continue;
        };
        let _ = write!(text, "{scenario:<26} {layout:<3} {:>4} {:<5}", any.runs, any.unit);
        for name in &present {
            let cell = report.find(&scenario, &layout, name).map_or("–".to_owned(), cell);
            let _ = write!(text, " {cell:>17}");
        }
        let ours = report.find(&scenario, &layout, "dhow");
        let ratio = |other: &str| {
            let theirs = report.find(&scenario, &layout, other)?;
            Some(format!("{:.2}", ours?.median / theirs.median))
        };
        let ratios: Vec<String> =
            ["floor", "crun", "runc"].map(|other| ratio(other).unwrap_or_else(|| "–".to_owned())).into();
        let _ = writeln!(text, " | {:>6} {:>6} {:>6}", ratios[0], ratios[1], ratios[2]);
    }
    text
}

fn cell(m: &Measured) -> String {
    let number = |value: f64| if m.unit == "ms" { format!("{value:.2}") } else { format!("{value:.0}") };
    if m.runs > 1 { format!("{} ({})", number(m.median), number(m.p25)) } else { number(m.median) }
}

/// What changed since an older report, for everything of which both know.
pub fn comparison(old: &Report, new: &Report) -> String {
    let mut text = String::from("\nsince the older report (median, new / old)\n\n");
    for now in &new.results {
        if let Some(before) = old.find(&now.scenario, &now.layout, &now.contestant) {
            let ratio = now.median / before.median;
            // Less than a twentieth is noise on a machine that others share.
            let mark = if ratio > 1.05 {
                "slower"
            } else if ratio < 0.95 {
                "faster"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "{:<26} {:<3} {:<12} {:>9.2} -> {:>9.2} {:<5} {ratio:>5.2} {mark}",
                now.scenario, now.layout, now.contestant, before.median, now.median, now.unit
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(dhow: f64) -> Report {
        let one = |name: &str, value: f64| Measured::of("run", "v2", name, "ms", &[value]).unwrap();
        Report { machine: vec![], results: vec![one("floor", 1.0), one("dhow", dhow), one("crun", 4.0)] }
    }

    #[test]
    fn ratios_are_dhows_to_the_others() {
        let text = tables(&report(2.0));
        assert!(text.lines().last().unwrap().ends_with("|   2.00   0.50      –"), "{text}");
    }

    #[test]
    fn a_comparison_names_what_is_slower() {
        let text = comparison(&report(2.0), &report(3.0));
        assert!(text.lines().any(|l| l.contains("dhow") && l.ends_with("1.50 slower")), "{text}");
    }
}
