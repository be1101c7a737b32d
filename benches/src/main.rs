//! Measures dhow against crun, runc and the project's own floor, all in one shuffled rotation.
//!
//! `make bench BENCH="--quick"` runs it. Each cgroup layout is measured by a second process of
//! this program, in a mount namespace where only that layout is mounted; the results come back
//! as JSON, are printed as medians, 25th percentiles and ratios, and stay in `target/bench`.
//! docs/performance.md tells what the scenarios mean.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bundle;
mod contestant;
mod images;
mod measure;
mod options;
mod plot;
mod report;
mod scenarios;
mod stats;
mod workshop;

use options::Options;
use stats::Report;
use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let outcome = match (&options.worker, &options.sample) {
        (Some((layout, output)), _) => scenarios::run_all(&options, *layout, output),
        (None, Some(script)) => images::sample(script),
        (None, None) if options.images => images::run(&options),
        (None, None) => orchestrate(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("dhow-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one worker per layout, then reports.
fn orchestrate(options: &Options) -> Result<(), String> {
    std::fs::create_dir_all(&options.out).map_err(|e| format!("{}: {e}", options.out.display()))?;
    workshop::build_floor(&options.out)?;
    let mut report = Report::of_this_machine();
    for layout in options.layouts() {
        let part = options.out.join(format!(".part-{layout}.json"));
        let status = Command::new(workshop::workspace().join("integration/layout.sh"))
            .arg(layout.to_string())
            .arg(std::env::current_exe().map_err(|e| e.to_string())?)
            .args(options.for_worker(layout, &part))
            .status()
            .map_err(|e| format!("layout.sh: {e}"))?;
        if !status.success() {
            return Err(format!("measuring with cgroup {layout} failed"));
        }
        report.results.extend(Report::read(&part)?.results);
        let _ = std::fs::remove_file(&part);
    }
    print!("{}", report::tables(&report));
    let file = options.out.join("bench.json");
    report.write(&file)?;
    let drawing = options.out.join("bench.svg");
    std::fs::write(&drawing, plot::svg(&report)).map_err(|e| format!("{}: {e}", drawing.display()))?;
    println!("\n{} and {}", show(&file), show(&drawing));
    if let Some(old) = &options.compare {
        print!("{}", report::comparison(&Report::read(old)?, &report));
    }
    Ok(())
}

fn show(path: &Path) -> String {
    path.strip_prefix(workshop::workspace()).unwrap_or(path).display().to_string()
}
