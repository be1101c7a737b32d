//! Which syscall it was: what the kernel tells of a process that a filter killed.

use super::arch::{Abi, X32_BIT};
use super::names;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// How old a record may be: pids come again, and a filter's victim is looked at at once.
const RECENT: Duration = Duration::from_secs(10);

/// What the kernel logged when a filter killed a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The syscall's number.
    pub number: u32,
}

impl Killed {
    /// The syscall in words.
    pub fn describe(&self) -> String {
        let x32 = self.number & X32_BIT != 0;
        let abi = Abi::ALL.into_iter().find(|abi| abi.audit() == self.arch && (*abi == Abi::X32) == x32);
        match abi.and_then(|abi| names::name_of(abi, self.number).map(|name| (abi, name))) {
            Some((abi, name)) if abi == super::Native::HOST.abi() => name.into(),
            Some((abi, name)) => format!("{name} ({})", abi.oci_name()["SCMP_ARCH_".len()..].to_lowercase()),
            None => format!("number {} of architecture {:#x}", self.number, self.arch),
        }
    }
}

/// Looks in the kernel's log for the syscall for which a filter killed a process, by its pid in the
/// initial pid namespace. `None` when the kernel tells nothing: the log may not be read, an audit
/// daemon has taken the record, or it was lost.
pub fn killed(pid: i32) -> Option<Killed> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    let since = Duration::from(now).saturating_sub(RECENT);
    let mut record = [0u8; 8192];
    let mut found = None;
    // Each read is one record, from the oldest. EPIPE: it was overwritten meanwhile, the next one
    // is read; EAGAIN: there are no more.
    loop {
        match log.read(&mut record) {
            Ok(0) => return found,
            Ok(len) => found = parse(&String::from_utf8_lossy(&record[..len]), pid, since).or(found),
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return found,
        }
    }
}

/// Reads one record: `5,SEQUENCE,MICROSECONDS,-;audit: type=1326 … pid=7 … sig=31 arch=c000003e
/// syscall=59 …`.
fn parse(record: &str, pid: i32, since: Duration) -> Option<Killed> {
    let (prefix, text) = record.split_once("type=1326 ")?;
    let time = prefix.split(',').nth(2)?.parse().map(Duration::from_micros).ok()?;
    if time < since {
        return None;
    }
    // The name of the command is the process's own choice; what counts comes before and after it.
    let (head, tail) = text.split_once(" comm=")?;
    let field = |text: &str, name: &str| {
        text.split(' ')
            .rev()
            .find_map(|word| word.strip_prefix(name).map(|value| value.trim_end().to_owned()))
    };
    if field(head, "pid=")?.parse() != Ok(pid) || field(tail, "sig=")? != "31" {
        return None;
    }
    let arch = u32::from_str_radix(&field(tail, "arch=")?, 16).ok()?;
    Some(Killed { arch, number: field(tail, "syscall=")?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "5,1234,99,-;audit: type=1326 audit(1700000000.123:45): auid=4294967295 uid=0 gid=0 \
        ses=4294967295 subj=kernel pid=77 comm=\"x sig=9\" exe=\"/bin/pid=3\" sig=31 arch=c000003e syscall=165 \
        compat=0 ip=0x7f code=0x80000000\n";

    #[test]
    fn the_record_names_the_syscall() {
        let killed = parse(RECORD, 77, Duration::ZERO).unwrap();
        assert_eq!(killed, Killed { arch: 0xc000_003e, number: 165 });
        if super::super::Native::HOST == super::super::Native::X86_64 {
            assert_eq!(killed.describe(), "mount");
        }
        assert_eq!(Killed { arch: 0x4000_0003, number: 11 }.describe(), "execve (x86)");
        assert_eq!(Killed { arch: 0xc000_003e, number: 0x4000_0208 }.describe(), "execve (x32)");
        assert!(Killed { arch: 1, number: 2 }.describe().contains("number 2"));
    }

    #[test]
    fn other_records_tell_nothing() {
        let none =
            |record: &str, pid, since| assert_eq!(parse(record, pid, Duration::from_micros(since)), None);
        none(RECORD, 3, 0);
        none(RECORD, 77, 100);
        none(&RECORD.replace("sig=31", "sig=0"), 77, 0);
        none("6,1,1,-;eth0: link up\n", 77, 0);
        none("", 77, 0);
    }
}
