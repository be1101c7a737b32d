//! The allocator: an arena first, the system's heap after it.
//!
//! A command of the runtime allocates a few hundred kilobytes and ends a millisecond later.
//! Handing out ever higher addresses of one static arena and never taking them back is the
//! cheapest allocator there is: no headers, no free lists, and dense pages (each page fault
//! costs 1 to 4 µs on a virtual machine; `docs/performance.md`). When the arena is used up, the
//! C library's heap serves, so that a long-lived process (a foreground `run`, an image import)
//! does not grow: the arena's share is bounded.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of the arena. Untouched pages of it cost nothing.
const ARENA: usize = 512 * 1024;

/// Larger blocks than this come from the system, which can give them back.
const LARGE: usize = 64 * 1024;

/// What malloc(3) promises, and what code relies on that puts a structure into a buffer of bytes, as
/// nix does with control messages.
const LEAST_ALIGNMENT: usize = 16;

#[repr(align(4096))]
struct Arena(UnsafeCell<[u8; ARENA]>);

// SAFETY: bytes of the arena are handed out once, by an atomic counter, and never shared.
unsafe impl Sync for Arena {}

static MEMORY: Arena = Arena(UnsafeCell::new([0; ARENA]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// The global allocator of the dhow binary.
#[derive(Debug)]
pub struct ArenaThenSystem;

impl ArenaThenSystem {
    fn base() -> *mut u8 {
        MEMORY.0.get().cast()
    }

    /// The offset in the arena of a block that came from it.
    fn offset_of(block: *mut u8) -> Option<usize> {
        (block as usize).checked_sub(Self::base() as usize).filter(|&offset| offset < ARENA)
    }

    /// The offset of a new block, or `None` when it does not fit.
    fn take(layout: Layout) -> Option<usize> {
        if layout.size() > LARGE {
            return None;
        }
        let mut used = USED.load(Ordering::Relaxed);
        loop {
            let start = used.checked_next_multiple_of(layout.align().max(LEAST_ALIGNMENT))?;
            let end = start.checked_add(layout.size())?;
            if end > ARENA || layout.align() > 4096 {
                return None;
            }
            match USED.compare_exchange_weak(used, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start),
                Err(now) => used = now,
            }
        }
    }
}

// SAFETY: every block is either a range of the arena that no other block overlaps (the counter
// only moves back over the block that it last moved over), or the system allocator's.
unsafe impl GlobalAlloc for ArenaThenSystem {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::take(layout) {
            // SAFETY: the offset lies within the arena.
            Some(offset) => unsafe { Self::base().add(offset) },
            // SAFETY: the caller's promise about the layout is passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match Self::offset_of(block) {
            Some(offset) => {
                // The newest block is given back, which makes a growing-and-dropped buffer free.
                let end = offset + layout.size();
                let _ = USED.compare_exchange(end, offset, Ordering::Relaxed, Ordering::Relaxed);
            }
            // SAFETY: not from the arena, so the system allocator made it, with this layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = Self::offset_of(block) else {
            // SAFETY: not from the arena, so the system allocator made it, with this layout.
            return unsafe { System.realloc(block, layout, size) };
        };
        let (end, new_end) = (offset + layout.size(), offset + size);
        let fits = new_end <= ARENA && size <= LARGE;
        if fits && USED.compare_exchange(end, new_end, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return block;
        }
        // SAFETY: the caller promises that `size`, rounded up to the alignment, does not overflow.
        let new_layout = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the layout is not empty, as the caller promises of `size`.
        let new = unsafe { self.alloc(new_layout) };
        if !new.is_null() {
            // SAFETY: both blocks are at least this long, and a new block overlaps none.
            unsafe { std::ptr::copy_nonoverlapping(block, new, layout.size().min(size)) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_apart() {
        let allocator = ArenaThenSystem;
        let mut ends = Vec::new();
        for align in [1, 8, 16, 64, 4096] {
            let layout = Layout::from_size_align(24, align).unwrap();
            // SAFETY: the layout is not empty.
            let block = unsafe { allocator.alloc(layout) };
            assert_eq!(block as usize % align.max(LEAST_ALIGNMENT), 0);
            assert!(ends.iter().all(|&end| block as usize >= end));
            ends.push(block as usize + 24);
        }
    }

    #[test]
    fn grows_in_place_and_moves_out_when_large() {
        let allocator = ArenaThenSystem;
        let layout = Layout::from_size_align(16, 8).unwrap();
        // SAFETY: the layout is not empty.
        let block = unsafe { allocator.alloc(layout) };
        // SAFETY: 16 bytes were asked for.
        unsafe { block.write_bytes(7, 16) };
        // SAFETY: the block is this allocator's, with this layout.
        let moved = unsafe { allocator.realloc(block, layout, LARGE + 1) };
        assert!(ArenaThenSystem::offset_of(moved).is_none());
        // SAFETY: the block has more than 16 bytes.
        let last = unsafe { moved.add(15) };
        // SAFETY: the first 16 bytes were copied.
        assert_eq!(unsafe { last.read() }, 7);
        // SAFETY: the block is the system's, with this layout.
        unsafe { allocator.dealloc(moved, Layout::from_size_align(LARGE + 1, 8).unwrap()) };
    }
}
