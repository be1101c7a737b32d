//! The decision over a syscall's arguments.
//!
//! A filter sees an argument as two 32-bit words, so a condition is up to three tests of words. The
//! rules of one syscall become a graph of such tests. It is built by walking the rules once for each
//! way the tests can turn out, knowing what the tests so far have shown: what a test would show is
//! often known already, and equal remainders are shared.

use super::emit::{AND, Assembler, JEQ, JGE, JGT, JSET, LD, Target};
use super::profile::{Cond, Op};

/// A rule on arguments: a value to return when every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArgRule {
    pub ret: u32,
    pub conds: Vec<Cond>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cmp {
    Eq,
    Gt,
    Ge,
}

/// A test of one word of `seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Test {
    /// The word's place in bytes.
    word: u32,
    mask: u32,
    cmp: Cmp,
    value: u32,
}

/// A node of the graph, or a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Ret(u32),
    Node(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    test: Test,
    yes: Next,
    no: Next,
}

/// How a condition goes on after a test.
#[derive(Debug, Clone, Copy)]
enum Step {
    Test(u8),
    Done(bool),
}

/// After so many steps the walk gives up sharing what it knows from rule to rule: its time could
/// double with every rule.
const BUDGET: usize = 1024;

/// Writes the decision; `default` is what to return when no rule holds.
pub(super) fn emit(asm: &mut Assembler, rules: &[ArgRule], default: u32, narrow: bool) -> Target {
    let mut graph = Graph { rules, default, narrow, nodes: Vec::new(), facts: Vec::new(), budget: BUDGET };
    let root = match graph.walk(0, 0, 0) {
        Some(root) => root,
        None => graph.plain(),
    };
    graph.write(asm, root)
}

/// `struct seccomp_data`: number, architecture, instruction pointer, then six 64-bit arguments.
/// Both architectures are little endian.
fn word(arg: u8, high: bool) -> u32 {
    16 + 8 * u32::from(arg) + 4 * u32::from(high)
}

/// The halves of a 64-bit value: low, high.
#[expect(clippy::cast_possible_truncation, reason = "halves are what is wanted")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

/// The test at a step of a condition, and how it goes on when the test holds or not. `Ne`, `Lt` and
/// `Le` are the opposites of `Eq`, `Ge` and `Gt`.
fn test_at(cond: &Cond, step: u8, narrow: bool) -> (Test, Step, Step) {
    let opposite = matches!(cond.op, Op::Ne | Op::Lt | Op::Le);
    let (yes, no) = (Step::Done(!opposite), Step::Done(opposite));
    let (mask, value) = (halves(cond.mask), halves(cond.value));
    let last = match cond.op {
        Op::Eq | Op::Ne => Cmp::Eq,
        Op::Gt | Op::Le => Cmp::Gt,
        Op::Ge | Op::Lt => Cmp::Ge,
    };
    let low = Test { word: word(cond.arg, false), mask: mask.0, cmp: last, value: value.0 };
    if narrow || mask.1 == 0 {
        return (low, yes, no);
    }
    let high = Test { word: word(cond.arg, true), mask: mask.1, cmp: Cmp::Eq, value: value.1 };
    match (step, last) {
        (0, Cmp::Eq) if mask.0 == 0 => (high, yes, no),
        (0, Cmp::Eq) => (high, Step::Test(2), no),
        (0, _) => (Test { cmp: Cmp::Gt, ..high }, yes, Step::Test(1)),
        (1, _) => (high, Step::Test(2), no),
        _ => (low, yes, no),
    }
}

struct Graph<'a> {
    rules: &'a [ArgRule],
    default: u32,
    narrow: bool,
    /// Children before their parents.
    nodes: Vec<Node>,
    /// What the tests on the way here have shown.
    facts: Vec<(Test, bool)>,
    budget: usize,
}

impl Graph<'_> {
    /// The graph from a step of a condition of a rule; `None` when it would take too long.
    fn walk(&mut self, rule: usize, cond: usize, step: u8) -> Option<Next> {
        let Some(this) = self.rules.get(rule) else { return Some(Next::Ret(self.default)) };
        let Some(condition) = this.conds.get(cond) else { return Some(Next::Ret(this.ret)) };
        let (test, yes, no) = test_at(condition, step, self.narrow);
        if let Some(known) = self.known(test) {
            return self.go(rule, cond, if known { yes } else { no });
        }
        self.budget = self.budget.checked_sub(1)?;
        self.facts.push((test, true));
        let yes = self.go(rule, cond, yes);
        self.facts.pop();
        self.facts.push((test, false));
        let no = self.go(rule, cond, no);
        self.facts.pop();
        Some(self.node(test, yes?, no?))
    }

    fn go(&mut self, rule: usize, cond: usize, step: Step) -> Option<Next> {
        match step {
            Step::Test(step) => self.walk(rule, cond, step),
            Step::Done(true) => self.walk(rule, cond + 1, 0),
            Step::Done(false) => self.walk(rule + 1, 0, 0),
        }
    }

    /// The graph rule by rule from the last, without knowledge carried over.
    fn plain(&mut self) -> Next {
        self.nodes.clear();
        self.facts.clear();
        let mut next = Next::Ret(self.default);
        for rule in self.rules.iter().rev() {
            let fail = next;
            let mut hold = Next::Ret(rule.ret);
            for cond in rule.conds.iter().rev() {
                hold = self.plain_cond(cond, 0, hold, fail);
            }
            next = hold;
        }
        next
    }

    fn plain_cond(&mut self, cond: &Cond, step: u8, hold: Next, fail: Next) -> Next {
        let (test, yes, no) = test_at(cond, step, self.narrow);
        let mut side = |step| match step {
            Step::Test(step) => self.plain_cond(cond, step, hold, fail),
            Step::Done(true) => hold,
            Step::Done(false) => fail,
        };
        let (yes, no) = (side(yes), side(no));
        self.node(test, yes, no)
    }

    fn node(&mut self, test: Test, yes: Next, no: Next) -> Next {
        if yes == no {
            return yes;
        }
        let node = Node { test, yes, no };
        // The newest nodes are the likeliest; a long list is not worth the search.
        let at = self.nodes.iter().rev().take(64).position(|n| *n == node).map(|i| self.nodes.len() - 1 - i);
        Next::Node(at.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        }))
    }

    /// What a test shows, as far as the tests before it tell.
    fn known(&self, test: Test) -> Option<bool> {
        let (mut min, mut max) = (0, u32::MAX);
        for (fact, holds) in self.facts.iter().filter(|(fact, _)| fact.word == test.word) {
            if *fact == test {
                return Some(*holds);
            }
            if fact.mask != u32::MAX {
                if *holds && fact.mask == test.mask {
                    return Some(false); // the same bits have another value
                }
                continue;
            }
            match (fact.cmp, holds) {
                (Cmp::Eq, true) => (min, max) = (fact.value, fact.value),
                (Cmp::Eq, false) => {}
                (Cmp::Gt, true) => min = min.max(fact.value.saturating_add(1)),
                (Cmp::Gt, false) => max = max.min(fact.value),
                (Cmp::Ge, true) => min = min.max(fact.value),
                (Cmp::Ge, false) => max = max.min(fact.value.saturating_sub(1)),
            }
        }
        match test.cmp {
            Cmp::Eq if test.mask != u32::MAX => (min == max).then_some(min & test.mask == test.value),
            Cmp::Eq if min == max => Some(min == test.value),
            Cmp::Eq => (test.value < min || test.value > max).then_some(false),
            Cmp::Gt if min > test.value => Some(true),
            Cmp::Gt => (max <= test.value).then_some(false),
            Cmp::Ge if min >= test.value => Some(true),
            Cmp::Ge => (max < test.value).then_some(false),
        }
    }

    /// What the accumulator holds when each node is entered: a word under a mask, or `Unknown` where
    /// the ways to it differ. `None` for a node that nothing leads to any more.
    fn entries(&self, root: usize) -> Vec<Option<Held>> {
        let mut entries = vec![None; root + 1];
        entries[root] = Some(Held::Unknown);
        for i in (0..=root).rev() {
            if entries[i].is_none() {
                continue;
            }
            let left = code_of(&self.nodes[i].test).leaves;
            for next in [self.nodes[i].yes, self.nodes[i].no] {
                let Next::Node(child) = next else { continue };
                entries[child] = match entries[child] {
                    Some(held) if held != left => Some(Held::Unknown),
                    _ => Some(left),
                };
            }
        }
        entries
    }

    /// Writes the nodes, children first, and returns the place of the root.
    fn write(&self, asm: &mut Assembler, root: Next) -> Target {
        let root = match root {
            Next::Ret(value) => return Target::Ret(value),
            Next::Node(root) => root,
        };
        let mut places = vec![Target::Ret(self.default); root + 1];
        for (i, entry) in self.entries(root).into_iter().enumerate() {
            let Some(held) = entry else { continue };
            let node = &self.nodes[i];
            let target = |next| match next {
                Next::Ret(value) => Target::Ret(value),
                Next::Node(i) => places[i],
            };
            let code = code_of(&node.test);
            let (yes, no) = if code.flip { (node.no, node.yes) } else { (node.yes, node.no) };
            let mut place = asm.jump(code.jump, code.value, target(yes), target(no));
            if held != code.leaves {
                if code.and {
                    place = Target::At(asm.then(AND, node.test.mask));
                }
                if held != Held::Word(node.test.word, u32::MAX) {
                    place = Target::At(asm.then(LD, node.test.word));
                }
            }
            places[i] = place;
        }
        places[root]
    }
}

/// What the accumulator holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Unknown,
    /// A word, under a mask.
    Word(u32, u32),
}

/// How a test is written.
struct Code {
    /// Whether the mask has to be applied first.
    and: bool,
    jump: u16,
    value: u32,
    /// Whether the jump asks the opposite question.
    flip: bool,
    /// What the accumulator holds when it asks.
    leaves: Held,
}

fn code_of(test: &Test) -> Code {
    let jump = match test.cmp {
        Cmp::Eq => JEQ,
        Cmp::Gt => JGT,
        Cmp::Ge => JGE,
    };
    let whole = Held::Word(test.word, u32::MAX);
    let code = Code { and: false, jump, value: test.value, flip: false, leaves: whole };
    if test.mask == u32::MAX {
        code
    } else if test.value == 0 {
        Code { jump: JSET, value: test.mask, flip: true, ..code }
    } else if test.mask.is_power_of_two() {
        Code { jump: JSET, value: test.mask, ..code }
    } else {
        Code { and: true, leaves: Held::Word(test.word, test.mask), ..code }
    }
}
