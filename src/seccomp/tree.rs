//! The decision tree over syscall numbers.

use super::emit::{Assembler, JEQ, JGE, Target};

/// A run of numbers with one verdict; it ends where the next one starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run<L> {
    pub start: u32,
    pub leaf: L,
}

/// Adds a run, or lengthens the last one when the verdict is the same.
pub(super) fn push<L: Copy + PartialEq>(runs: &mut Vec<Run<L>>, start: u32, leaf: L) {
    if runs.last().is_none_or(|last| last.leaf != leaf) {
        runs.push(Run { start, leaf });
    }
}

/// At most so many single numbers are picked out of their surroundings one after the other, by
/// equality; more are first halved. Cheaper in instructions than halving down to each (one
/// instruction for a single number instead of two), and no slower: two halvings fewer.
const PICKS: usize = 4;

/// Runs that are decided without halving: `first..end` in the list, all of one verdict but for a few
/// single numbers.
#[derive(Debug, Clone, Copy)]
struct Group {
    first: usize,
    end: usize,
    weight: u32,
}

/// Writes the tree over `runs`, which cover all numbers from 0. `leaf` writes a verdict's own code.
/// Numbers from `cold` on are hardly ever seen and may lie deep.
pub(super) fn emit<L: Copy + PartialEq>(
    asm: &mut Assembler,
    runs: &[Run<L>],
    cold: u32,
    leaf: &mut dyn FnMut(&mut Assembler, L) -> Target,
) -> Target {
    let groups = groups(runs, cold);
    halve(asm, runs, &groups, leaf)
}

/// Whether a run is one number.
fn is_single<L>(runs: &[Run<L>], i: usize) -> bool {
    runs.get(i + 1).is_some_and(|next| next.start == runs[i].start + 1)
}

/// Cuts the runs into groups, each as long as can be.
fn groups<L: Copy + PartialEq>(runs: &[Run<L>], cold: u32) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(runs.len() / 2 + 1);
    let mut background: Option<L> = None;
    let mut picks = 0;
    for (i, run) in runs.iter().enumerate() {
        let single = is_single(runs, i);
        let fits = match background {
            Some(leaf) if leaf == run.leaf => true,
            _ if single => picks < PICKS,
            Some(_) => false,
            None => true,
        };
        let weight = u32::from(run.start < cold);
        match groups.last_mut() {
            Some(group) if fits => {
                group.end = i + 1;
                group.weight += weight;
            }
            _ => {
                groups.push(Group { first: i, end: i + 1, weight });
                background = None;
                picks = 0;
            }
        }
        if single && background != Some(run.leaf) {
            picks += 1;
        } else {
            background = Some(run.leaf);
        }
    }
    groups
}

/// A binary tree over groups, balanced by weight.
fn halve<L: Copy + PartialEq>(
    asm: &mut Assembler,
    runs: &[Run<L>],
    groups: &[Group],
    leaf: &mut dyn FnMut(&mut Assembler, L) -> Target,
) -> Target {
    let [group] = groups else {
        let cut = middle(groups);
        let high = halve(asm, runs, &groups[cut..], leaf);
        let low = halve(asm, runs, &groups[..cut], leaf);
        return asm.jump(JGE, runs[groups[cut].first].start, high, low);
    };
    pick(asm, runs, *group, leaf)
}

/// Where to cut so that both sides weigh about the same.
fn middle(groups: &[Group]) -> usize {
    let total: u32 = groups.iter().map(|g| g.weight).sum();
    if total == 0 {
        return groups.len() / 2;
    }
    let mut low = 0;
    let mut best = (u32::MAX, 1);
    for (i, group) in groups.iter().enumerate().take(groups.len() - 1) {
        low += group.weight;
        let difference = low.abs_diff(total - low);
        if difference < best.0 {
            best = (difference, i + 1);
        }
    }
    best.1
}

/// A group: a few comparisons for equality, and what is left over.
fn pick<L: Copy + PartialEq>(
    asm: &mut Assembler,
    runs: &[Run<L>],
    group: Group,
    leaf: &mut dyn FnMut(&mut Assembler, L) -> Target,
) -> Target {
    let range = group.first..group.end;
    let rest = range.clone().find(|i| !is_single(runs, *i)).unwrap_or(group.end - 1);
    let background = runs[rest].leaf;
    let mut target = leaf(asm, background);
    for i in range.rev() {
        if runs[i].leaf != background {
            let verdict = leaf(asm, runs[i].leaf);
            target = asm.jump(JEQ, runs[i].start, verdict, target);
        }
    }
    target
}
