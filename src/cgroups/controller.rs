//! The controllers that the kernel has, and sets of them.

/// A cgroup controller, by what it controls: `io` of cgroup v2 and `blkio` of v1 are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Controller {
    Cpu,
    Cpuacct,
    Cpuset,
    Memory,
    Io,
    Pids,
    Devices,
    Freezer,
    Hugetlb,
    NetCls,
    NetPrio,
    PerfEvent,
    Rdma,
    Misc,
    Dmem,
}

use Controller as C;

/// Each controller with its name in cgroup v1 and, where it has another one there, in v2.
const NAMES: [(C, &str); 16] = [
    (C::Cpu, "cpu"),
    (C::Cpuacct, "cpuacct"),
    (C::Cpuset, "cpuset"),
    (C::Memory, "memory"),
    (C::Io, "io"),
    (C::Io, "blkio"),
    (C::Pids, "pids"),
    (C::Devices, "devices"),
    (C::Freezer, "freezer"),
    (C::Hugetlb, "hugetlb"),
    (C::NetCls, "net_cls"),
    (C::NetPrio, "net_prio"),
    (C::PerfEvent, "perf_event"),
    (C::Rdma, "rdma"),
    (C::Misc, "misc"),
    (C::Dmem, "dmem"),
];

impl Controller {
    /// The controller of that name, in either version.
    pub(super) fn from_name(name: &str) -> Option<Controller> {
        NAMES.iter().find(|(_, n)| *n == name).map(|(c, _)| *c)
    }

    /// Its name, for v2 and for messages.
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(c, _)| *c == self).map_or("unknown", |(_, name)| name)
    }

    /// The controller that owns a control file, by the part before the first dot.
    pub(super) fn of_file(file: &str) -> Option<Controller> {
        Controller::from_name(file.split('.').next()?)
    }
}

/// A set of controllers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Set(u16);

impl Set {
    /// What a container is given on cgroup v2 whatever its limits are, so that it can be
    /// measured and limited later.
    pub(super) const USUAL: Set = Set::EMPTY
        .with(Controller::Cpuset)
        .with(Controller::Cpu)
        .with(Controller::Io)
        .with(Controller::Memory)
        .with(Controller::Pids);

    /// No controller.
    pub(super) const EMPTY: Set = Set(0);

    /// This set and one more.
    pub(super) const fn with(self, controller: Controller) -> Set {
        Set(self.0 | 1 << controller as u8)
    }

    /// The controllers named in `list`; names that are not controllers are passed over.
    pub(super) fn parse(list: &str, separator: char) -> Set {
        list.split(separator)
            .filter_map(|name| Controller::from_name(name.trim_end()))
            .fold(Set::EMPTY, Set::with)
    }

    /// Whether the controller is in the set.
    pub(super) fn has(self, controller: Controller) -> bool {
        self.0 & (1 << controller as u8) != 0
    }

    /// Those of this set that are also in the other.
    pub(super) fn and(self, other: Set) -> Set {
        Set(self.0 & other.0)
    }

    /// Those of this set that are not in the other.
    pub(super) fn without(self, other: Set) -> Set {
        Set(self.0 & !other.0)
    }

    /// Whether no controller is in the set.
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names, one by one.
    pub(super) fn names(self) -> impl Iterator<Item = &'static str> {
        // `blkio` is the second name of a controller that is already listed.
        NAMES.iter().filter(move |(c, name)| self.has(*c) && *name != "blkio").map(|(_, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_names_are_known() {
        assert_eq!(Set::parse("cpu,cpuacct", ','), Set::EMPTY.with(C::Cpu).with(C::Cpuacct));
        assert_eq!(Set::parse("io memory\n", ' '), Set::EMPTY.with(C::Io).with(C::Memory));
        assert_eq!(Set::parse("blkio", ','), Set::parse("io", ','));
        assert_eq!(Set::parse("rw,xattr,name=systemd", ','), Set::EMPTY);
        assert_eq!(Set::parse("", ' '), Set::EMPTY);
    }

    #[test]
    fn names_come_out_once() {
        assert_eq!(Set::USUAL.names().collect::<Vec<_>>(), ["cpu", "cpuset", "memory", "io", "pids"]);
        assert_eq!(C::Io.name(), "io");
    }

    #[test]
    fn a_file_tells_its_controller() {
        assert_eq!(C::of_file("memory.max"), Some(C::Memory));
        assert_eq!(C::of_file("hugetlb.2MB.max"), Some(C::Hugetlb));
        assert_eq!(C::of_file("cgroup.freeze"), None);
    }
}
