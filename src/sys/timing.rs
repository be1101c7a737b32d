//! When a command and its children began each of their steps, for `--timings`.
//!
//! The table lies in memory that forked children share, so that the init's steps are in it too.
//! While it is off, [`step`] is one look at a static; nothing is called and nothing is mapped.

use nix::libc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The most steps that are kept; a command has a few dozen.
const MOST: usize = 512;

/// One step: zeroes until its length, which is written last, says that it is there.
struct Slot {
    /// CLOCK_MONOTONIC, in ns.
    at: AtomicU64,
    process: AtomicI32,
    name: AtomicPtr<u8>,
    length: AtomicUsize,
}

struct Table {
    next: AtomicUsize,
    slots: [Slot; MOST],
}

static TABLE: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());

/// A step that was begun. The process's next step ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When, by CLOCK_MONOTONIC.
    pub at: Duration,
    /// By which process, in the pid namespace that it sees.
    pub process: i32,
    /// What it is.
    pub name: &'static str,
}

/// Begins to take times.
///
/// # Errors
/// ENOMEM.
pub fn switch_on() -> nix::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice; no memory in use is touched.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Table>(), protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(nix::errno::Errno::last());
    }
    TABLE.store(page.cast(), Ordering::Relaxed);
    Ok(())
}

/// Whether times are taken.
#[inline]
pub fn is_on() -> bool {
    !TABLE.load(Ordering::Relaxed).is_null()
}

/// Begins a step of this process, and so ends the one before.
#[inline]
pub fn step(name: &'static str) {
    if is_on() {
        write_down(name);
    }
}

fn table() -> Option<&'static Table> {
    let table = TABLE.load(Ordering::Relaxed);
    // SAFETY: null, or a mapping of this size that is never unmapped; zeroes are a valid table, and
    // all of it is atomics.
    unsafe { table.as_ref() }
}

#[cold]
fn write_down(name: &'static str) {
    let Some(table) = table() else { return };
    let Some(slot) = table.slots.get(table.next.fetch_add(1, Ordering::Relaxed)) else { return };
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    let now = u64::try_from(now.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
    slot.at.store(now, Ordering::Relaxed);
    slot.process.store(nix::unistd::getpid().as_raw(), Ordering::Relaxed);
    slot.name.store(name.as_ptr().cast_mut(), Ordering::Relaxed);
    slot.length.store(name.len(), Ordering::Release);
}

/// The steps so far, of this process and its children, in their order.
pub fn marks() -> Vec<Mark> {
    let Some(table) = table() else { return Vec::new() };
    let mut marks: Vec<Mark> = table.slots.iter().filter_map(read).collect();
    marks.sort_by_key(|mark| mark.at);
    marks
}

fn read(slot: &Slot) -> Option<Mark> {
    let length = slot.length.load(Ordering::Acquire);
    let name = slot.name.load(Ordering::Relaxed);
    if length == 0 || name.is_null() {
        return None;
    }
    // SAFETY: a `&'static str` of this program. Children that wrote one were forked and have not
    // executed anything since, so it is at the same place in all of them.
    let name = unsafe { std::slice::from_raw_parts(name, length) };
    Some(Mark {
        at: Duration::from_nanos(slot.at.load(Ordering::Relaxed)),
        process: slot.process.load(Ordering::Relaxed),
        name: std::str::from_utf8(name).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clone::{Forked, clone3, exit_now};
    use nix::sched::CloneFlags;

    #[test]
    fn steps_of_a_child_are_seen() {
        step("before it is on");
        switch_on().unwrap();
        step("first");
        match clone3(CloneFlags::empty(), 0, None).unwrap() {
            Forked::Child => {
                step("of the child");
                exit_now(0)
            }
            Forked::Parent(child) => drop(nix::sys::wait::waitpid(child.pid, None).unwrap()),
        }
        step("last");
        let own = nix::unistd::getpid().as_raw();
        let marks = marks();
        let names: Vec<&str> = marks.iter().map(|mark| mark.name).collect();
        let ours: Vec<&&str> =
            names.iter().filter(|n| ["first", "of the child", "last"].contains(n)).collect();
        assert_eq!(ours, [&"first", &"of the child", &"last"]);
        assert!(!names.contains(&"before it is on"));
        assert!(marks.iter().any(|mark| mark.name == "of the child" && mark.process != own));
    }
}
