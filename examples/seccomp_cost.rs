//! What a seccomp filter costs: compiling it, installing it, and every syscall after that; dhow's
//! against libseccomp's for the same profile, in turns.
//!
//! `cargo test --test seccomp_oracle -- --ignored` leaves the engines' profiles and libseccomp's
//! programs in `target/tmp/seccomp`; then, as root:
//! `cargo run --profile ci --target x86_64-unknown-linux-musl --example seccomp_cost -- target/tmp/seccomp/docker`

use dhow::seccomp::vm::{Data, run_counted};
use dhow::seccomp::{Native, Options, Program, compile, names};
use dhow::spec::Seccomp;
use std::time::Instant;

/// The binary's own allocator: the first compile is to cost what it costs there.
#[global_allocator]
static ALLOCATOR: dhow::sys::alloc::ArenaThenSystem = dhow::sys::alloc::ArenaThenSystem;

/// Calls per measurement, and measurements per filter.
const CALLS: u32 = 100_000;
const ROUNDS: usize = 41;

/// One measurement: nanoseconds per call, microseconds for the install.
#[derive(Clone, Copy)]
struct Cost {
    install: f64,
    getppid: f64,
    argument: f64,
    denied: f64,
}

fn per_call(mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..CALLS {
        call();
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
}

/// Measures under a filter. A filter is a thread's for good, so each measurement is a thread.
fn measure(filter: Option<&Program>) -> Cost {
    let run = || {
        let start = Instant::now();
        if let Some(filter) = filter {
            filter.install().expect("needs root");
        }
        let install = start.elapsed().as_secs_f64() * 1e6;
        Cost {
            install,
            getppid: per_call(|| {
                nix::unistd::getppid();
            }),
            // personality(0xffffffff): the last of five values that the profiles allow.
            argument: per_call(|| {
                let _ = nix::sys::personality::get();
            }),
            // umount2("") is denied; without a filter the kernel finds nothing to do.
            denied: per_call(|| {
                let _ = nix::mount::umount("");
            }),
        }
    };
    std::thread::scope(|scope| scope.spawn(run).join()).expect("the measurement does not panic")
}

/// The instructions that a filter takes for a native call: exact, on a busy machine too.
fn steps(filter: &Program, syscall: &str, first: u64) -> usize {
    let abi = Native::HOST.abi();
    let number = names::number_of(abi, syscall).expect("a syscall");
    let data = Data { number, arch: abi.audit(), args: [first, 0, 0, 0, 0, 0] };
    run_counted(filter.code(), &data).map_or(0, |(_, steps)| steps)
}

/// A quarter of the measurements were faster: what others on the machine do counts less than in the
/// median.
fn quartile(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 4]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn average(filter: &Program) -> f64 {
    let arch = Native::HOST.abi().audit();
    let all = (0..450).filter_map(|number| run_counted(filter.code(), &Data { number, arch, args: [0; 6] }));
    all.map(|(_, steps)| f64::from(u32::try_from(steps).unwrap_or(0))).sum::<f64>() / 450.0
}

fn main() {
    let Some(base) = std::env::args().nth(1) else {
        eprintln!("usage: seccomp_cost target/tmp/seccomp/docker");
        std::process::exit(2);
    };
    let text = std::fs::read_to_string(format!("{base}.json")).expect("run the oracle test first");
    let profile: Seccomp = serde_json::from_str(&text).expect("a profile");
    let options = Options::default();
    let compile_once = || {
        let start = Instant::now();
        let program = compile(&profile, &options).expect("compiles");
        (start.elapsed().as_secs_f64() * 1e6, program)
    };
    let (first, ours) = compile_once();
    let warm = median((0..201).map(|_| compile_once().0).collect());
    println!(
        "compile: {first:.0} µs the first time, {warm:.1} µs after that; {} instructions",
        ours.code().len()
    );

    let mut stored = b"dsc\x01\x04\0\0\0".to_vec();
    stored.extend(std::fs::read(format!("{base}.libseccomp.bpf")).expect("run the oracle test first"));
    let theirs = Program::from_bytes(&stored).expect("a program");
    let filters = [("none", None), ("dhow", Some(&ours)), ("libseccomp", Some(&theirs))];
    let mut costs = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for turn in 0..filters.len() {
            let which = (round + turn) % filters.len();
            costs[which].push(measure(filters[which].1));
        }
    }
    println!("filter      instructions  install µs  getppid ns  argument ns  denied ns");
    for ((name, filter), costs) in filters.iter().zip(&costs) {
        let of = |part: fn(&Cost) -> f64| quartile(costs.iter().map(part).collect());
        println!(
            "{name:<11} {:>12}  {:>10.0}  {:>10.1}  {:>11.1}  {:>9.1}",
            filter.map_or(0, |f| f.code().len()),
            of(|c| c.install),
            of(|c| c.getppid),
            of(|c| c.argument),
            of(|c| c.denied),
        );
    }
    for (name, filter) in [("dhow", &ours), ("libseccomp", &theirs)] {
        println!(
            "{name:<11} instructions taken: getppid {}, personality {}, umount2 {}; all numbers to 450 on average {:.1}",
            steps(filter, "getppid", 0),
            steps(filter, "personality", 0xffff_ffff),
            steps(filter, "umount2", 0),
            average(filter),
        );
    }
}
