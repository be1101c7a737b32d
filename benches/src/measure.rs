//! One sample: how long a command took, and what it used.

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::process::Command;
use std::time::Instant;

/// One command's cost.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// From before the spawn to after the wait, in ms.
    pub wall: f64,
    /// Processor time of the command and of the children it waited for, in ms.
    pub cpu: f64,
}

/// Runs a command that must succeed. std spawns it by `posix_spawn`, which shares the memory
/// until the exec: the cost is the same for everyone, and small.
pub fn sample(mut command: Command) -> Result<Sample, String> {
    let before = cpu();
    let start = Instant::now();
    let status = command.status().map_err(|e| format!("{command:?}: {e}"))?;
    let wall = start.elapsed().as_secs_f64() * 1e3;
    if !status.success() {
        return Err(format!("{status}: {}", again(command)));
    }
    Ok(Sample { wall, cpu: cpu() - before })
}

/// The failed command once more, to hear what it says.
fn again(mut command: Command) -> String {
    command.stderr(std::process::Stdio::piped());
    let said = command.output().map(|out| String::from_utf8_lossy(&out.stderr).trim().to_owned());
    format!("{command:?} says: {}", said.unwrap_or_default())
}

/// Processor time of all children that were waited for, in ms.
fn cpu() -> f64 {
    let usage: Usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("getrusage");
    #[allow(clippy::cast_precision_loss)]
    let micros = (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64;
    micros / 1e3
}

/// A small shuffler, so that no contestant always runs after the same other one.
pub struct Shuffle(u64);

impl Shuffle {
    /// Seeded by the clock.
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Shuffle(now.map_or(1, |d| d.as_secs() ^ u64::from(d.subsec_nanos()) << 20) | 1)
    }

    /// The numbers below `count` in a random order.
    pub fn order(&mut self, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..count).collect();
        for last in (1..count).rev() {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            #[allow(clippy::cast_possible_truncation)]
            all.swap(last, (self.0 % (last as u64 + 1)) as usize);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_holds_every_number_once() {
        let mut shuffle = Shuffle::new();
        for count in 0..20 {
            let mut order = shuffle.order(count);
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }
}
