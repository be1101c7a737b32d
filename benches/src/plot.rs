//! The results as bars, in SVG written by hand.

use crate::report::CONTESTANTS;
use crate::stats::Report;
use std::fmt::Write;

const COLOURS: [&str; 5] = ["#9aa0a6", "#0b7285", "#e8a13a", "#f4c27a", "#b5bd89"];
const BAR: usize = 12;
const LEFT: usize = 200;
const WIDTH: f64 = 520.0;

/// One group of bars per scenario that is a time; each group has its own scale, since a list of
/// 1000 containers and a kill do not fit one.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 50;
    for (scenario, layout) in report.scenarios() {
        let bars: Vec<_> = CONTESTANTS
            .iter()
            .zip(COLOURS)
            .filter_map(|(name, colour)| Some((name, colour, report.find(&scenario, &layout, name)?)))
            .filter(|(_, _, m)| m.unit == "ms")
            .collect();
        let most = bars.iter().map(|(_, _, m)| m.median).fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        let _ =
            writeln!(body, r#"<text x="10" y="{}" font-weight="bold">{scenario} {layout}</text>"#, y + BAR);
        for (name, colour, m) in bars {
            let length = m.median / most * WIDTH;
            let quarter = m.p25 / most * WIDTH;
            let _ = writeln!(
                body,
                r##"<rect x="{LEFT}" y="{y}" width="{length:.1}" height="{}" fill="{colour}"/><line x1="{q:.1}" y1="{y}" x2="{q:.1}" y2="{}" stroke="#000" stroke-opacity="0.5"/><text x="{:.1}" y="{}">{name} {:.2} ms</text>"##,
                BAR - 2,
                y + BAR - 2,
                length + 6.0 + f64::from(200),
                y + BAR - 3,
                m.median,
                q = quarter + f64::from(200),
            );
            y += BAR;
        }
        y += BAR;
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" font-family="sans-serif" font-size="10"><rect width="100%" height="100%" fill="#fff"/><text x="10" y="20" font-size="14">Medians; the line in a bar is the 25th percentile. {}</text>
{body}</svg>
"##,
        LEFT + 720,
        y + 10,
        report.machine.join(", ").replace('&', "&amp;").replace('<', "&lt;"),
    )
}
