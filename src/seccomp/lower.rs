//! From an understood profile to a program: what each number of each ABI gets, as runs of numbers;
//! a tree over the runs; one tree per audit number behind a comparison of `seccomp_data.arch`.

use super::arch::{ARM_PRIVATE, Abi, Native, X32_BIT};
use super::chain::{self, ArgRule};
use super::emit::{Assembler, JEQ, LD, MAX_LEN, Target};
use super::names::Multiplexed;
use super::profile::{Cond, Op, Profile, Rule, too_long};
use super::ret;
use super::tree::{self, Run};
use crate::error::Result;
use seccompiler::BpfProgram;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// Plain numbers below this have a slot each; the last eight slots are ARM's private numbers.
const PLAIN: usize = 568;
const SLOTS: usize = PLAIN + 8;

/// What a slot holds: nothing, the place of the one rule that decides plus one, or `MIXED`.
type Slot = u16;
const NONE: Slot = 0;
/// Rules on arguments decide; they are in the list beside the slots.
const MIXED: Slot = Slot::MAX;

/// A verdict at a leaf of the tree: a value, or the rules on arguments of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Ret(u32),
    Args(Abi, u16),
}

/// What an ABI's numbers get.
struct Verdicts {
    abi: Abi,
    slots: [Slot; SLOTS],
    /// Rules on arguments: the slot, the rule, and the selector when they come by way of x86's
    /// `socketcall` or `ipc`.
    args: Vec<(u16, u16, Option<u8>)>,
    /// The greatest number that the profile names.
    last: u32,
}

/// Compiles an understood profile.
pub(super) fn program(profile: &Profile) -> Result<BpfProgram> {
    let mut asm = Assembler::new();
    let mut runs = Vec::with_capacity(320);
    let bad_arch = Target::Ret(ret::KILL_THREAD);
    let mut otherwise = bad_arch;
    let compat = profile.native.compat();
    if compat.in_profile(profile) {
        let tree = audit_arch(&mut asm, &mut runs, profile, compat, None);
        otherwise = asm.jump(JEQ, compat.audit(), tree, bad_arch);
    }
    let native = profile.native.abi();
    let x32 = (profile.native == Native::X86_64 && Abi::X32.in_profile(profile)).then_some(Abi::X32);
    let tree = audit_arch(&mut asm, &mut runs, profile, native, x32);
    asm.jump(JEQ, native.audit(), tree, otherwise);
    asm.then(LD, ARCH);
    if asm.len() > MAX_LEN {
        return Err(too_long(asm.len()));
    }
    Ok(asm.finish())
}

/// Writes the tree of one audit number.
fn audit_arch(
    asm: &mut Assembler,
    runs: &mut Vec<Run<Leaf>>,
    profile: &Profile,
    abi: Abi,
    x32: Option<Abi>,
) -> Target {
    runs.clear();
    let main = Verdicts::new(profile, abi);
    let second = x32.map(|abi| Verdicts::new(profile, abi));
    main.runs(profile, runs);
    if abi == Abi::X86_64 {
        match &second {
            Some(second) => second.runs(profile, runs),
            None => {
                tree::push(runs, X32_BIT, Leaf::Ret(ret::KILL_THREAD));
                // Not x32 but "no syscall": a tracer may have skipped it. libseccomp spares it too.
                tree::push(runs, u32::MAX, Leaf::Ret(profile.default));
            }
        }
    }
    let mut written: Vec<(Vec<ArgRule>, bool, Target)> = Vec::new();
    let tree = tree::emit(asm, runs, X32_BIT, &mut |asm, leaf| {
        let (abi, slot) = match leaf {
            Leaf::Ret(value) => return Target::Ret(value),
            Leaf::Args(abi, slot) => (abi, slot),
        };
        let verdicts = if abi == Abi::X32 { second.as_ref().unwrap_or(&main) } else { &main };
        let rules = verdicts.arg_rules(profile, slot);
        if let Some((_, _, at)) = written.iter().find(|w| w.1 == abi.is_32() && w.0 == rules) {
            return *at;
        }
        let at = chain::emit(asm, &rules, profile.default, abi.is_32());
        written.push((rules, abi.is_32(), at));
        at
    });
    asm.fall_into(tree);
    Target::At(asm.then(LD, NUMBER))
}

fn slot_of(number: u32) -> usize {
    let n = (number & !X32_BIT) as usize;
    if (ARM_PRIVATE..X32_BIT).contains(&number) { PLAIN + (n & 7) } else { n }
}

impl Verdicts {
    fn new(profile: &Profile, abi: Abi) -> Self {
        let mut this = Verdicts { abi, slots: [NONE; SLOTS], args: Vec::new(), last: 0 };
        for (id, place) in &profile.calls {
            let rule = &profile.rules[usize::from(*place)];
            if let Some(number) = id.number(abi) {
                if number < ARM_PRIVATE || abi == Abi::X32 {
                    this.last = this.last.max(number & !X32_BIT);
                }
                this.add(profile, slot_of(number), *place, rule, None);
            }
            if abi == Abi::X86
                && let Some(Multiplexed { through, selector }) = id.multiplexed()
            {
                this.add(profile, slot_of(through), *place, rule, Some(selector));
            }
        }
        this
    }

    /// Lets a rule decide about a slot. A rule without conditions decides alone, whatever rules with
    /// conditions stand before or after it, and the first such rule wins: that is what libseccomp
    /// makes of it. A rule that does what would be done anyway is left out, as runc and crun do.
    fn add(&mut self, profile: &Profile, slot: usize, place: u16, rule: &Rule, selector: Option<u8>) {
        if rule.ret == profile.default || !matches!(self.slots[slot], NONE | MIXED) {
            return;
        }
        let conds = profile.conds_of(rule);
        let void = |cond: &Cond| if self.abi.is_32() { cond.narrow().is_void() } else { cond.is_void() };
        let free = if rule.any { conds.iter().any(void) } else { conds.iter().all(void) };
        if selector.is_none() && (conds.is_empty() || free) {
            self.slots[slot] = place + 1;
        } else {
            self.slots[slot] = MIXED;
            #[expect(clippy::cast_possible_truncation, reason = "there are SLOTS of them")]
            self.args.push((slot as u16, place, selector));
        }
    }

    /// The rules on arguments of a slot, in the profile's order.
    fn arg_rules(&self, profile: &Profile, slot: u16) -> Vec<ArgRule> {
        let mut rules = Vec::new();
        for (_, place, selector) in self.args.iter().filter(|(s, _, _)| *s == slot) {
            let rule = &profile.rules[usize::from(*place)];
            let conds = profile.conds_of(rule);
            let conds = conds.iter().map(|cond| if self.abi.is_32() { cond.narrow() } else { *cond });
            if rule.any {
                rules.extend(
                    conds.map(|cond| ArgRule {
                        ret: rule.ret,
                        conds: selected(*selector, [cond].into_iter()),
                    }),
                );
            } else {
                rules.push(ArgRule { ret: rule.ret, conds: selected(*selector, conds) });
            }
        }
        rules
    }

    /// Appends this ABI's numbers from the first to the last there can be.
    fn runs(&self, profile: &Profile, runs: &mut Vec<Run<Leaf>>) {
        let enosys = profile.enosys && self.last != 0;
        let base = self.abi.base();
        let end = if enosys { self.last as usize + 1 } else { PLAIN };
        // Neighbours mostly hold the same; only where they differ is there something to look up.
        let mut last = None;
        for (slot, number) in (0..end).zip(base..) {
            if last != Some(self.slots[slot]) || self.slots[slot] == MIXED {
                tree::push(runs, number, self.leaf(profile, slot));
                last = Some(self.slots[slot]);
            }
        }
        let beyond = if enosys { ret::ERRNO | libc::ENOSYS.cast_unsigned() } else { profile.default };
        #[expect(clippy::cast_possible_truncation, reason = "there are SLOTS of them")]
        tree::push(runs, base + end as u32, Leaf::Ret(beyond));
        if self.abi == Abi::Arm {
            for (slot, number) in (PLAIN..SLOTS).zip(ARM_PRIVATE..) {
                tree::push(runs, number, self.leaf(profile, slot));
            }
            tree::push(runs, ARM_PRIVATE + 8, Leaf::Ret(beyond));
        }
    }

    fn leaf(&self, profile: &Profile, slot: usize) -> Leaf {
        match self.slots[slot] {
            NONE => Leaf::Ret(profile.default),
            #[expect(clippy::cast_possible_truncation, reason = "there are SLOTS of them")]
            MIXED => Leaf::Args(self.abi, slot as u16),
            place => Leaf::Ret(profile.rules[usize::from(place) - 1].ret),
        }
    }
}

/// A rule's conditions, without those that ask nothing. By way of a multiplexer the first argument
/// is the selector, and the conditions on the others are kept: libseccomp's way.
fn selected(selector: Option<u8>, conds: impl Iterator<Item = Cond>) -> Vec<Cond> {
    let covered = |cond: &Cond| selector.is_some() && cond.arg == 0;
    let asks = conds.filter(|cond| !cond.is_void() && !covered(cond));
    let first = selector.map(|n| Cond { arg: 0, op: Op::Eq, mask: u64::MAX, value: u64::from(n) }.narrow());
    first.into_iter().chain(asks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::names;

    #[test]
    fn every_number_has_a_slot_of_its_own() {
        for abi in Abi::ALL {
            for id in names::all() {
                let Some(number) = id.number(abi) else { continue };
                let slot = slot_of(number);
                assert!(slot < SLOTS, "{abi:?} {}", id.name());
                assert_eq!(slot >= PLAIN, number & 0x3fff_ffff >= ARM_PRIVATE, "{abi:?} {}", id.name());
            }
        }
    }
}
