//! `dhow update`

use super::number;
use super::table::{Args, Command, ID, option};
use crate::error::{Class, Context as _, Error, Result};
use crate::runtime::{self, Context};
use crate::spec::load;
use crate::spec::{BlockIo, Cpu, IntelRdt, Memory, Pids, Resources};
use std::io::Read;
use std::path::Path;

/// The command.
pub(super) const COMMAND: Command = Command {
    name: "update",
    about: "Change the limits of a container while it runs",
    details: "With --resources the other options are not looked at. A value of 0 leaves a limit as it is, \
              -1 lifts it. If one value is not taken, all limits keep their old values.",
    positionals: &[ID],
    flags: &[
        option("resources", "FILE", "a file with linux.resources as JSON, or - for standard input")
            .short('r'),
        option("blkio-weight", "WEIGHT", "weight of block I/O, 10 to 1000"),
        option("cpu-period", "MICROSECONDS", "the period of the CPU quota"),
        option("cpu-quota", "MICROSECONDS", "CPU time per period"),
        option("cpu-burst", "MICROSECONDS", "CPU time that may be saved up"),
        option("cpu-share", "SHARES", "CPU shares relative to other containers"),
        option("cpu-rt-period", "MICROSECONDS", "the period of realtime CPU time"),
        option("cpu-rt-runtime", "MICROSECONDS", "realtime CPU time per period"),
        option("cpu-idle", "0|1", "whether it runs only when nothing else does"),
        option("cpuset-cpus", "LIST", "CPUs, as 0-3,7"),
        option("cpuset-mems", "LIST", "memory nodes, as 0-3,7"),
        option("memory", "BYTES", "memory limit; k, m and g may follow").short('m'),
        option("memory-reservation", "BYTES", "soft memory limit"),
        option("memory-swap", "BYTES", "memory and swap together; -1 is unlimited"),
        option("kernel-memory", "BYTES", "taken for compatibility: the kernel has no such limit any more")
            .hidden(),
        option("kernel-memory-tcp", "BYTES", "limit of TCP buffers, cgroup v1"),
        option("pids-limit", "N", "most processes; -1 is unlimited"),
        option("l3-cache-schema", "SCHEMA", "parts of the L3 cache, as L3:0=ff;1=f0 (resctrl)"),
        option("mem-bw-schema", "SCHEMA", "memory bandwidth, as MB:0=20;1=70 (resctrl)"),
    ],
    enters: false,
    run,
};

fn run(context: &Context, args: &Args) -> Result<i32> {
    let resources = match args.value("resources") {
        Some("-") => {
            let mut text = Vec::new();
            std::io::stdin().take(load::MOST_BYTES).read_to_end(&mut text).doing("read standard input")?;
            load::parse(&text, Path::new("standard input"))?
        }
        Some(file) => load::parse(&load::read(Path::new(file))?, Path::new(file))?,
        None => from_options(args)?,
    };
    let service = IntelRdt {
        l3_cache_schema: args.value("l3-cache-schema").unwrap_or_default().to_owned(),
        mem_bw_schema: args.value("mem-bw-schema").unwrap_or_default().to_owned(),
        ..IntelRdt::default()
    };
    service.check()?;
    runtime::update(context, args.id(), &resources)?;
    if service != IntelRdt::default() {
        runtime::update_service(context, args.id(), &service)?;
    }
    Ok(0)
}

fn from_options(args: &Args) -> Result<Resources> {
    let cpu = Cpu {
        shares: number(args, "cpu-share")?,
        quota: number(args, "cpu-quota")?,
        period: number(args, "cpu-period")?,
        burst: number(args, "cpu-burst")?,
        realtime_period: number(args, "cpu-rt-period")?,
        realtime_runtime: number(args, "cpu-rt-runtime")?,
        idle: number(args, "cpu-idle")?,
        cpus: args.value("cpuset-cpus").unwrap_or_default().to_owned(),
        mems: args.value("cpuset-mems").unwrap_or_default().to_owned(),
    };
    let memory = Memory {
        limit: bytes(args, "memory")?,
        reservation: bytes(args, "memory-reservation")?,
        swap: bytes(args, "memory-swap")?,
        kernel_tcp: bytes(args, "kernel-memory-tcp")?,
        ..Memory::default()
    };
    let block_io = BlockIo { weight: number(args, "blkio-weight")?, ..BlockIo::default() };
    let pids = Pids { limit: number(args, "pids-limit")? };
    Ok(Resources {
        cpu: Some(cpu).filter(|cpu| *cpu != Cpu::default()),
        memory: Some(memory).filter(|memory| *memory != Memory::default()),
        block_io: Some(block_io).filter(|io| *io != BlockIo::default()),
        pids: Some(pids).filter(|pids| *pids != Pids::default()),
        ..Resources::default()
    })
}

/// A number of bytes: `67108864`, `64m`, `64MiB`, `-1`.
pub(super) fn bytes(args: &Args, flag: &str) -> Result<Option<i64>> {
    let Some(text) = args.value(flag) else { return Ok(None) };
    parse_bytes(text).map(Some).ok_or_else(|| {
        Error::new(Class::Usage, format!("invalid value of --{flag}"))
            .on(format!("{text:?}"))
            .because("it must be a number of bytes, which k, m, g or t may follow")
    })
}

fn parse_bytes(text: &str) -> Option<i64> {
    if text == "-1" {
        return Some(-1);
    }
    let lower = text.to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (digits, unit) = lower.split_at(end);
    let shift = match unit {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    digits.parse::<i64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("-1", -1),
            ("1024", 1024),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("2G", 2 << 30),
            ("1kb", 1024),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "m", "-2", "1x", "1.5g", "9223372036854775807k", "0x10"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
