//! `dhow stats`

use super::list::{print, to_text};
use super::table::{Args, Command, Positional, option, switch};
use super::unknown;
use crate::cgroups::Stats;
use crate::error::Result;
use crate::runtime::{self, Context, Network};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "stats",
    about: "Show what containers use, as a table that is renewed every second",
    details: "Without a terminal it shows one table and ends.",
    positionals: &[Positional {
        name: "container-id",
        required: true,
        required_unless: None,
        rest: false,
        greedy: false,
        many: true,
        last: false,
        help: "the names of containers",
    }],
    flags: &[
        option("format", "FORMAT", "table or json [default: table]").short('f'),
        switch("no-stream", "show it once"),
    ],
    enters: false,
    run,
};

/// How long the first measurement of CPU time takes.
const FIRST: Duration = Duration::from_millis(200);

/// How often the table is renewed.
const INTERVAL: Duration = Duration::from_secs(1);

fn run(context: &Context, args: &Args) -> Result<i32> {
    let json = match args.value("format") {
        None | Some("table") => false,
        Some("json") => true,
        Some(other) => return Err(unknown("--format", other)),
    };
    let once = args.is_on("no-stream") || json || !std::io::stdout().is_terminal();
    if json {
        let all =
            args.positionals.iter().map(|id| runtime::stats(context, id)).collect::<Result<Vec<_>>>()?;
        return print(&to_text(serde_json::to_string(&all))?);
    }
    let mut before = measure(context, &args.positionals)?;
    std::thread::sleep(FIRST);
    loop {
        let now = measure(context, &args.positionals)?;
        let table = table(&before, &now);
        if once {
            return print(&table);
        }
        // Home, the table line by line, and nothing of a longer table before it.
        print(&format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\n")))?;
        before = now;
        std::thread::sleep(INTERVAL);
    }
}

/// A container's figures at a moment.
struct Figures {
    id: String,
    at: Instant,
    stats: Stats,
    network: Network,
}

fn measure(context: &Context, ids: &[String]) -> Result<Vec<Figures>> {
    ids.iter()
        .map(|id| {
            let stats = runtime::stats(context, id)?.data.unwrap_or_default();
            Ok(Figures { id: id.clone(), at: Instant::now(), stats, network: runtime::network(context, id) })
        })
        .collect()
}

fn table(before: &[Figures], now: &[Figures]) -> String {
    let header = "ID               CPU %    MEM USAGE / LIMIT      MEM %   PIDS  BLOCK READ / WRITE     NET IN / OUT\n";
    before.iter().zip(now).fold(header.to_owned(), |text, (before, now)| text + &row(before, now))
}

#[expect(clippy::cast_precision_loss, reason = "shares are shown with two digits")]
fn row(before: &Figures, now: &Figures) -> String {
    let stats = &now.stats;
    let spent = stats.cpu.usage.total.saturating_sub(before.stats.cpu.usage.total) as f64;
    let passed = now.at.duration_since(before.at).as_nanos().max(1) as f64;
    let memory = &stats.memory.usage;
    // Without a limit, the greatest number that the kernel has stands there.
    let limit = (memory.limit < 1 << 60).then_some(memory.limit);
    let share = limit.map_or_else(
        || "-".to_owned(),
        |limit| format!("{:.2}%", memory.usage as f64 / limit.max(1) as f64 * 100.0),
    );
    let moved = |op: &str| -> u64 {
        let entries = &stats.blkio.io_service_bytes_recursive;
        entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum()
    };
    format!(
        "{:<16.16} {:>6.2}%  {:>10} / {:<10} {:>7}  {:>5}  {:>9} / {:<9}  {:>8} / {:<8}\n",
        now.id,
        spent / passed * 100.0,
        size(memory.usage),
        limit.map_or_else(|| "-".to_owned(), size),
        share,
        stats.pids.current,
        size(moved("read")),
        size(moved("write")),
        size(now.network.received),
        size(now.network.sent),
    )
}

/// A number of bytes with a unit and three digits.
#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
fn size(bytes: u64) -> String {
    let mut amount = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if amount < 1000.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{amount:.1}{unit}") };
        }
        amount /= 1024.0;
    }
    format!("{amount:.1}TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (bytes, text) in
            [(0, "0B"), (999, "999B"), (1024, "1.0KiB"), (64 << 20, "64.0MiB"), (3 << 40, "3.0TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
