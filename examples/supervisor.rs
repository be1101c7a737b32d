//! Keeps bundles running: `supervisor NAME=BUNDLE…`, as root. Each has a thread, which runs it anew when
//! it fails, after a while that doubles, and gives up after the fifth failure in a row. Meanwhile another
//! thread shows what they use.

use dhow::{Container, Runtime, Status};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Failures in a row after which a bundle is given up.
const MOST_FAILURES: u32 = 5;

/// Who has lived so long is taken for healthy.
const HEALTHY: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    dhow::helper();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let bundles: Option<Vec<(&str, &str)>> = words.iter().map(|word| word.split_once('=')).collect();
    let Some(bundles) = bundles.filter(|bundles| !bundles.is_empty()) else {
        eprintln!("usage: supervisor NAME=BUNDLE…");
        return ExitCode::from(2);
    };
    let runtime = std::env::var_os("DHOW_ROOT").map_or_else(Runtime::new, Runtime::at);
    let done = AtomicBool::new(false);
    let all_ended_well = thread::scope(|scope| {
        scope.spawn(|| watch(&runtime, &done));
        let keepers: Vec<_> =
            bundles.iter().map(|(name, bundle)| scope.spawn(|| keep(&runtime, name, bundle))).collect();
        let ended: Vec<bool> = keepers.into_iter().map(|keeper| keeper.join().unwrap_or(false)).collect();
        done.store(true, Ordering::Relaxed);
        ended.into_iter().all(|well| well)
    });
    if all_ended_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a bundle until it ends well, or fails too often; whether it ended well.
fn keep(runtime: &Runtime, name: &str, bundle: &str) -> bool {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        match live(runtime, name, bundle) {
            Ok(0) => {
                println!("{name}: done");
                return true;
            }
            Ok(code) => println!("{name}: ended with {code}"),
            Err(error) => println!("{name}: {error}"),
        }
        failures = if begun.elapsed() > HEALTHY { 1 } else { failures + 1 };
        if failures == MOST_FAILURES {
            println!("{name}: given up after {failures} failures");
            return false;
        }
        thread::sleep(Duration::from_millis(50 << failures));
    }
}

/// One life.
fn live(runtime: &Runtime, name: &str, bundle: &str) -> dhow::Result<i32> {
    // Of a supervisor that was killed, the last life may be left.
    runtime.container(name).destroy()?;
    let container = runtime.create(name, bundle).run()?;
    let exit = container.wait();
    // Also when nobody can tell how it ended.
    container.destroy()?;
    exit.map(|exit| exit.code)
}

/// Shows every few seconds what the containers use.
fn watch(runtime: &Runtime, done: &AtomicBool) {
    let show = |container: &Container| -> dhow::Result<()> {
        if container.state()?.status == Status::Running {
            let stats = container.stats()?;
            println!("{}: {} bytes, {:?} of CPU time", container.id(), stats.memory, stats.cpu);
        }
        Ok(())
    };
    while !done.load(Ordering::Relaxed) {
        // One that ends between two looks is no error worth a word.
        runtime.containers().unwrap_or_default().iter().for_each(|container| drop(show(container)));
        for _ in 0..20 {
            thread::sleep(Duration::from_millis(100));
            if done.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}
