//! `process.scheduler`, `process.ioPriority`, `process.execCPUAffinity` and `linux.memoryPolicy`
//! as the numbers that the kernel takes. Checking a value is the same as computing it, so that
//! what was checked is what is used.

use super::{IoPriority, MemoryPolicy, Scheduler};
use crate::error::{Error, Result};
use crate::sys::sched::Attr;

/// sched(7), in the order of their numbers.
const POLICIES: [&str; 7] =
    ["SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "SCHED_ISO", "SCHED_IDLE", "SCHED_DEADLINE"];
const SCHED_FLAGS: [&str; 7] = [
    "SCHED_FLAG_RESET_ON_FORK",
    "SCHED_FLAG_RECLAIM",
    "SCHED_FLAG_DL_OVERRUN",
    "SCHED_FLAG_KEEP_POLICY",
    "SCHED_FLAG_KEEP_PARAMS",
    "SCHED_FLAG_UTIL_CLAMP_MIN",
    "SCHED_FLAG_UTIL_CLAMP_MAX",
];
/// ioprio_set(2); the number of the first is 1.
const IO_CLASSES: [&str; 3] = ["IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE"];
/// set_mempolicy(2), in the order of their numbers.
pub const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];
/// The flags of a mode; the first is bit 13.
pub const MEMORY_FLAGS: [&str; 3] = ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"];
const FIRST_MEMORY_FLAG: u32 = 13;

/// More than any kernel is built for (NR_CPUS is 8192 at most): it bounds the mask, not the machine.
const MOST_CPUS: u32 = 8192;
/// MAX_NUMNODES, 1 << NODES_SHIFT.
const MOST_NODES: u32 = 1024;

/// A set of CPUs before and one after the cgroup, one bit per CPU; `None` leaves the affinity alone.
pub type CpuMasks = (Option<Vec<u64>>, Option<Vec<u64>>);

/// The place of a word among those that are known.
fn index(field: &str, words: &[&str], word: &str) -> Result<u32> {
    (0..).zip(words).find_map(|(number, known)| (*known == word).then_some(number)).ok_or_else(|| {
        Error::config(field, format!("unknown value {word:?}; known are {}", words.join(", ")))
    })
}

impl Scheduler {
    /// What sched_setattr(2) takes.
    ///
    /// # Errors
    /// A value that is out of its range, or that its policy does not have.
    pub fn attributes(&self) -> Result<Attr> {
        let field = |name: &str| format!("process.scheduler.{name}");
        let policy = index(&field("policy"), &POLICIES, &self.policy)?;
        let mut flags = 0;
        for flag in &self.flags {
            flags |= 1_u64 << index(&field("flags"), &SCHED_FLAGS, flag)?;
        }
        if !(-20..=19).contains(&self.nice) {
            return Err(Error::config(field("nice"), format!("{} is not within -20 and 19", self.nice)));
        }
        let realtime = matches!(self.policy.as_str(), "SCHED_FIFO" | "SCHED_RR");
        let range = if realtime { 1..=99 } else { 0..=0 };
        if !range.contains(&self.priority) {
            let cause = match realtime {
                true => format!("{} is not within 1 and 99", self.priority),
                false => format!("{} is for SCHED_FIFO and SCHED_RR, not {}", self.priority, self.policy),
            };
            return Err(Error::config(field("priority"), cause));
        }
        self.check_deadline()?;
        let mut attr = Attr::default();
        (attr.policy, attr.flags, attr.nice) = (policy, flags, self.nice);
        attr.priority = self.priority.unsigned_abs();
        (attr.runtime, attr.deadline, attr.period) = (self.runtime, self.deadline, self.period);
        Ok(attr)
    }

    /// The kernel says EINVAL to all of these alike (__checkparam_dl).
    fn check_deadline(&self) -> Result<()> {
        /// Smaller slices are below the resolution in which the kernel counts (DL_SCALE).
        const LEAST: u64 = 1024;
        let times = [("runtime", self.runtime), ("deadline", self.deadline), ("period", self.period)];
        for (name, value) in times {
            let field = format!("process.scheduler.{name}");
            if self.policy != "SCHED_DEADLINE" && value != 0 {
                return Err(Error::config(field, format!("is for SCHED_DEADLINE, not {}", self.policy)));
            }
            if i64::try_from(value).is_err() {
                return Err(Error::config(field, format!("{value} is beyond {}", i64::MAX)));
            }
        }
        if self.policy != "SCHED_DEADLINE" {
            return Ok(());
        }
        let wrong = |name: &str, cause| Err(Error::config(format!("process.scheduler.{name}"), cause));
        if self.runtime < LEAST {
            return wrong("runtime", format!("{} is below {LEAST} ns", self.runtime));
        }
        if self.deadline < self.runtime {
            return wrong("deadline", format!("{} is below the runtime {}", self.deadline, self.runtime));
        }
        // A period of 0 is the deadline's.
        if self.period != 0 && self.period < self.deadline {
            return wrong("period", format!("{} is below the deadline {}", self.period, self.deadline));
        }
        Ok(())
    }
}

impl IoPriority {
    /// What ioprio_set(2) takes.
    ///
    /// # Errors
    /// An unknown class, or a priority beyond 0 to 7.
    pub fn value(&self) -> Result<i32> {
        const CLASS_SHIFT: u32 = 13;
        let class = index("process.ioPriority.class", &IO_CLASSES, &self.class)? + 1;
        if !(0..=7).contains(&self.priority) {
            let cause = format!("{} is not within 0 and 7", self.priority);
            return Err(Error::config("process.ioPriority.priority", cause));
        }
        Ok(class.cast_signed() << CLASS_SHIFT | self.priority)
    }
}

impl MemoryPolicy {
    /// The mode with its flags, and the nodes as a mask, as set_mempolicy(2) takes them.
    ///
    /// # Errors
    /// What the kernel would answer EINVAL to, by name.
    pub fn mode_and_nodes(&self) -> Result<(i32, Vec<u64>)> {
        let mode = index("linux.memoryPolicy.mode", &MEMORY_MODES, &self.mode)?;
        let mut flags = 0;
        for flag in &self.flags {
            flags |= 1 << (index("linux.memoryPolicy.flags", &MEMORY_FLAGS, flag)? + FIRST_MEMORY_FLAG);
        }
        let has = |name: &str| self.flags.iter().any(|flag| flag == name);
        let wrong =
            |name: &str, cause: String| Err(Error::config(format!("linux.memoryPolicy.{name}"), cause));
        if has("MPOL_F_RELATIVE_NODES") && has("MPOL_F_STATIC_NODES") {
            return wrong("flags", "MPOL_F_RELATIVE_NODES and MPOL_F_STATIC_NODES exclude each other".into());
        }
        if has("MPOL_F_NUMA_BALANCING") && !matches!(self.mode.as_str(), "MPOL_BIND" | "MPOL_PREFERRED_MANY")
        {
            return wrong("flags", format!("MPOL_F_NUMA_BALANCING does not go with {}", self.mode));
        }
        let nodes = match self.nodes.trim() {
            "" => Vec::new(),
            list => mask("linux.memoryPolicy.nodes", list, MOST_NODES)?,
        };
        match self.mode.as_str() {
            "MPOL_DEFAULT" | "MPOL_LOCAL" if !nodes.is_empty() => {
                return wrong("nodes", format!("{} takes none", self.mode));
            }
            "MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED" if nodes.is_empty() && flags != 0 => {
                return wrong("flags", format!("{} without nodes takes none", self.mode));
            }
            "MPOL_DEFAULT" | "MPOL_LOCAL" | "MPOL_PREFERRED" => {}
            _ if nodes.is_empty() => {
                return wrong("nodes", format!("is empty, and {} needs it", self.mode));
            }
            _ => {}
        }
        Ok(((mode | flags).cast_signed(), nodes))
    }
}

impl super::ExecCpuAffinity {
    /// The masks for sched_setaffinity(2), before and after the cgroup; `None` leaves it alone.
    ///
    /// # Errors
    /// What is no list of CPUs.
    pub fn masks(&self) -> Result<CpuMasks> {
        let of = |name: &str, list: &str| match list.trim() {
            "" => Ok(None),
            list => mask(&format!("process.execCPUAffinity.{name}"), list, MOST_CPUS).map(Some),
        };
        Ok((of("initial", &self.initial)?, of("final", &self.last)?))
    }
}

/// A list such as `0-3,7` as a mask, in whole words.
fn mask(field: &str, list: &str, most: u32) -> Result<Vec<u64>> {
    let wrong = |cause: String| Error::config(field, cause);
    let number = |text: &str| -> Result<u32> {
        let text = text.trim();
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = text.parse::<u32>().ok().filter(|_| digits);
        let value = value.ok_or_else(|| wrong(format!("{list:?} is not a list such as 0-3,7")))?;
        if value < most { Ok(value) } else { Err(wrong(format!("{value} is not within 0 and {}", most - 1))) }
    };
    let mut words: Vec<u64> = Vec::new();
    for part in list.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(wrong(format!("the range {} runs backwards", part.trim())));
        }
        for bit in first..=last {
            let word = usize::try_from(bit / 64).unwrap_or(0);
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (bit % 64);
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ExecCpuAffinity;
    use serde_json::{Value, json};

    fn scheduler(value: Value) -> Result<Attr> {
        serde_json::from_value::<Scheduler>(value).unwrap().attributes()
    }

    #[test]
    fn policies_become_numbers() {
        let attr = scheduler(json!({"policy": "SCHED_BATCH", "nice": -20})).unwrap();
        assert_eq!((attr.policy, attr.nice), (3, -20));
        let flags = ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_KEEP_PARAMS"];
        let attr = scheduler(json!({"policy": "SCHED_RR", "priority": 99, "flags": flags})).unwrap();
        assert_eq!((attr.policy, attr.priority, attr.flags), (2, 99, 0x11));
        let times = json!({"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 1024, "period": 2048});
        assert_eq!(scheduler(times).unwrap().period, 2048);
        assert!(scheduler(json!({"policy": "SCHED_IDLE"})).is_ok());
    }

    #[test]
    fn each_scheduler_value_out_of_range_is_named() {
        for (value, words) in [
            (json!({"policy": "SCHED_BEER"}), "process.scheduler.policy: unknown value \"SCHED_BEER\""),
            (json!({}), "process.scheduler.policy: unknown value \"\""),
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "nice: 20 is not within -20 and 19"),
            (json!({"policy": "SCHED_OTHER", "priority": 1}), "priority: 1 is for SCHED_FIFO"),
            (json!({"policy": "SCHED_FIFO", "priority": 100}), "priority: 100 is not within 1 and 99"),
            (json!({"policy": "SCHED_FIFO"}), "priority: 0 is not within"),
            (json!({"policy": "SCHED_RR", "priority": -1}), "priority: -1 is not within"),
            (json!({"policy": "SCHED_IDLE", "period": 1}), "period: is for SCHED_DEADLINE"),
            (json!({"policy": "SCHED_DEADLINE", "runtime": 1}), "runtime: 1 is below 1024"),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 1500}),
                "deadline: 1500 is below the runtime",
            ),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 3000, "period": 2500}),
                "period: 2500 is below the deadline",
            ),
            (json!({"policy": "SCHED_DEADLINE", "runtime": u64::MAX}), "is beyond"),
            (json!({"policy": "SCHED_OTHER", "flags": ["X"]}), "flags: unknown value \"X\""),
        ] {
            let error = scheduler(value.clone()).unwrap_err().to_string();
            assert!(error.contains(words), "{value}: {error}");
        }
    }

    #[test]
    fn io_priorities_have_a_class_and_a_level() {
        let value = |class: &str, priority| IoPriority { class: class.into(), priority }.value();
        assert_eq!(value("IOPRIO_CLASS_RT", 0).unwrap(), 1 << 13);
        assert_eq!(value("IOPRIO_CLASS_BE", 7).unwrap(), 2 << 13 | 7);
        assert_eq!(value("IOPRIO_CLASS_IDLE", 0).unwrap(), 3 << 13);
        for (class, priority) in [("IOPRIO_CLASS_BE", 8), ("IOPRIO_CLASS_BE", -1), ("", 0), ("BE", 0)] {
            assert!(value(class, priority).is_err(), "{class} {priority}");
        }
    }

    #[test]
    fn memory_policies_are_modes_with_nodes() {
        let policy = |mode: &str, nodes: &str, flags: &[&str]| {
            let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
            MemoryPolicy { mode: mode.into(), nodes: nodes.into(), flags }.mode_and_nodes()
        };
        assert_eq!(policy("MPOL_DEFAULT", "", &[]).unwrap(), (0, vec![]));
        assert_eq!(policy("MPOL_PREFERRED", "", &[]).unwrap(), (1, vec![]));
        let flags = ["MPOL_F_NUMA_BALANCING", "MPOL_F_STATIC_NODES"];
        assert_eq!(policy("MPOL_BIND", "0,64", &flags).unwrap(), (2 | 1 << 13 | 1 << 15, vec![1, 1]));
        assert_eq!(policy("MPOL_WEIGHTED_INTERLEAVE", "1-3", &[]).unwrap(), (6, vec![0b1110]));
        for (mode, nodes, flags, words) in [
            ("MPOL_X", "", &[][..], "mode: unknown value"),
            ("MPOL_BIND", "", &[], "nodes: is empty"),
            ("MPOL_BIND", "1024", &[], "nodes: 1024 is not within 0 and 1023"),
            ("MPOL_BIND", "3-1", &[], "runs backwards"),
            ("MPOL_BIND", "-1", &[], "is not a list"),
            ("MPOL_LOCAL", "0", &[], "nodes: MPOL_LOCAL takes none"),
            ("MPOL_DEFAULT", "", &["MPOL_F_STATIC_NODES"], "flags: MPOL_DEFAULT without nodes"),
            ("MPOL_INTERLEAVE", "0", &["MPOL_F_NUMA_BALANCING"], "does not go with"),
            ("MPOL_BIND", "0", &["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"], "exclude each other"),
            ("MPOL_BIND", "0", &["X"], "flags: unknown value"),
        ] {
            let error = policy(mode, nodes, flags).unwrap_err().to_string();
            assert!(error.contains(words), "{mode} {nodes}: {error}");
        }
    }

    #[test]
    fn cpu_lists_become_masks() {
        let masks = |initial: &str, last: &str| {
            ExecCpuAffinity { initial: initial.into(), last: last.into() }.masks()
        };
        assert_eq!(masks("0-1, 3", "").unwrap(), (Some(vec![0b1011]), None));
        assert_eq!(masks("", "63-64").unwrap().1, Some(vec![1 << 63, 1]));
        for list in ["x", "1-", ",", "+1", "8192", "0-4294967295", "2-1"] {
            assert!(masks(list, "").is_err(), "{list}");
            let error = masks("", list).unwrap_err().to_string();
            assert!(error.contains("process.execCPUAffinity.final"), "{error}");
        }
    }
}
