//! Device rules: what the configuration says, brought into one form; and as lines for cgroup v1.
//! Pure. [`super::device_program`] makes the same rules a program for cgroup v2.
//!
//! A later rule wins over an earlier one, for each of read, write and mknod by itself. cgroup v1
//! can hold only a default and exceptions to it, so a hole in an exception is refused there.

use crate::error::{Class, Error, Result};
use crate::spec::DeviceRule;

const FIELD: &str = "linux.resources.devices";

/// Letters of `rwm` as bits, as the kernel has them in `bpf.h`.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL: u8 = MKNOD | READ | WRITE;

/// Which kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Block,
    Char,
}

/// A set of devices: of one kind, with `None` for any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Devices {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
}

impl Devices {
    /// Whether every device of `other` is also one of these.
    fn contain(self, other: Devices) -> bool {
        self.kind == other.kind
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether some device is one of both.
    fn overlap(self, other: Devices) -> bool {
        let may_equal = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        self.kind == other.kind && may_equal(self.major, other.major) && may_equal(self.minor, other.minor)
    }
}

/// One rule, for one kind of node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub allow: bool,
    pub devices: Devices,
    pub access: u8,
}

/// The rules in force: what holds for a device that no rule names, then the rules in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub default_allow: bool,
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Reads rules in order. Without any the default is to deny; a rule for all devices and every
    /// access makes those before it void.
    ///
    /// # Errors
    /// A kind, a number or an access letter that is none.
    pub(super) fn read(rules: &[DeviceRule]) -> Result<Policy> {
        let mut policy = Policy { default_allow: false, rules: Vec::with_capacity(rules.len()) };
        for rule in rules {
            let kinds: &[Kind] = match rule.kind.as_deref() {
                None | Some("" | "a") => &[Kind::Char, Kind::Block],
                Some("c" | "u") => &[Kind::Char],
                Some("b") => &[Kind::Block],
                Some(other) => {
                    return Err(Error::config(FIELD, format!("type {other:?}: expected a, b or c")));
                }
            };
            let (major, minor) = (number("major", rule.major)?, number("minor", rule.minor)?);
            let access = access(rule.access.as_deref())?;
            if kinds.len() == 2 && major.is_none() && minor.is_none() && access == ALL {
                policy.default_allow = rule.allow;
                policy.rules.clear();
                continue;
            }
            for kind in kinds {
                let devices = Devices { kind: *kind, major, minor };
                policy.rules.push(Rule { allow: rule.allow, devices, access });
            }
        }
        Ok(policy)
    }

    /// The policy that an update asks for: its rules and the default ones; `None` if it brings none.
    ///
    /// # Errors
    /// As [`Policy::read`].
    pub(super) fn of_update(rules: &[DeviceRule]) -> Result<Option<Policy>> {
        if rules.is_empty() {
            return Ok(None);
        }
        Policy::read(&[rules, &default_device_rules()].concat()).map(Some)
    }

    /// Whether everything is allowed, so that nothing needs to be set up.
    pub(super) fn allows_all(&self) -> bool {
        self.default_allow && self.rules.iter().all(|rule| rule.allow)
    }
}

fn number(name: &str, value: Option<i64>) -> Result<Option<u32>> {
    match value {
        None | Some(..0) => Ok(None),
        // The kernel has 12 bits of major and 20 of minor numbers.
        Some(value) => {
            match u32::try_from(value).ok().filter(|n| *n < 1 << if name == "major" { 12 } else { 20 }) {
                Some(number) => Ok(Some(number)),
                None => Err(Error::config(
                    FIELD,
                    format!("{name} {value} is more than the kernel's device numbers hold"),
                )),
            }
        }
    }
}

fn access(letters: Option<&str>) -> Result<u8> {
    let Some(letters) = letters.filter(|letters| !letters.is_empty()) else { return Ok(ALL) };
    letters.chars().try_fold(0, |bits, letter| match letter {
        'r' => Ok(bits | READ),
        'w' => Ok(bits | WRITE),
        'm' => Ok(bits | MKNOD),
        // Old tools wrote it for "all"; runc ignores it too.
        'a' => Ok(bits),
        _ => Err(Error::config(FIELD, format!("access {letters:?}: expected letters of rwm"))),
    })
}

/// The rules that every container has besides the configuration's, after them, as runc appends
/// them: making any node is allowed (using it is not), and the devices that the specification
/// promises (config-linux.md, "Default Devices") can be used.
pub fn default_device_rules() -> Vec<DeviceRule> {
    let rule = |kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow: true,
        kind: Some(kind.to_owned()),
        major,
        minor,
        access: Some(access.to_owned()),
    };
    let mut rules = vec![rule("c", None, None, "m"), rule("b", None, None, "m")];
    // null, zero, full, random, urandom, tty, ptmx; then every pty.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(rule("c", Some(136), None, "rwm"));
    rules
}

/// What cgroup v1 holds: a default, and exceptions to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exceptions {
    pub default_allow: bool,
    pub list: Vec<(Devices, u8)>,
}

impl Exceptions {
    /// The policy as a default and exceptions.
    ///
    /// # Errors
    /// A rule that makes a hole in an exception: v1 cannot hold it.
    pub(super) fn of(policy: &Policy) -> Result<Exceptions> {
        let mut out =
            Exceptions { default_allow: policy.default_allow, list: Vec::with_capacity(policy.rules.len()) };
        for rule in &policy.rules {
            if rule.allow == policy.default_allow {
                out.take_back(rule)?;
            } else {
                out.add(rule.devices, rule.access);
            }
        }
        Ok(out)
    }

    /// A cgroup that may use every device.
    pub(super) fn everything() -> Exceptions {
        Exceptions { default_allow: true, list: Vec::new() }
    }

    fn add(&mut self, devices: Devices, access: u8) {
        match self.list.iter_mut().find(|(d, _)| *d == devices) {
            Some((_, bits)) => *bits |= access,
            None => self.list.push((devices, access)),
        }
    }

    fn take_back(&mut self, rule: &Rule) -> Result<()> {
        for (devices, bits) in &mut self.list {
            if rule.devices.contain(*devices) {
                *bits &= !rule.access;
            } else if *bits & rule.access != 0 && rule.devices.overlap(*devices) {
                let verb = if rule.allow { "allowing" } else { "denying" };
                return Err(Error::new(Class::Unsupported, "set device rules").on(FIELD).because(format!(
                    "{verb} {} makes a hole in an earlier rule for {}, which cgroup v1 cannot hold",
                    line(rule.devices, rule.access),
                    line(*devices, *bits)
                )));
            }
        }
        self.list.retain(|(_, bits)| *bits != 0);
        Ok(())
    }

    /// Reads `devices.list` of a cgroup. In a cgroup that allows by default the kernel does not
    /// list the exceptions.
    pub(super) fn parse(devices_list: &str) -> Exceptions {
        let mut out = Exceptions { default_allow: false, list: Vec::new() };
        for text in devices_list.lines() {
            let mut fields = text.split([' ', ':']);
            let kind = match fields.next() {
                Some("b") => Kind::Block,
                Some("c") => Kind::Char,
                _ => return Exceptions::everything(),
            };
            let (major, minor) =
                (fields.next().and_then(|n| n.parse().ok()), fields.next().and_then(|n| n.parse().ok()));
            out.add(Devices { kind, major, minor }, access(fields.next()).unwrap_or(0));
        }
        out
    }

    /// The writes that make a cgroup holding `current` hold this: file and line. As few as can be,
    /// so that a running container loses nothing even for a moment.
    pub(super) fn transition(&self, current: &Exceptions) -> Vec<(&'static str, String)> {
        let mut writes = Vec::with_capacity(self.list.len() + 1);
        let from_scratch = current.default_allow || self.default_allow;
        let known = if from_scratch { &[][..] } else { &current.list };
        if from_scratch && (current.default_allow != self.default_allow || !self.list.is_empty()) {
            writes.push((if self.default_allow { ALLOW } else { DENY }, "a".to_owned()));
        }
        let (add, take_back) = if self.default_allow { (DENY, ALLOW) } else { (ALLOW, DENY) };
        let bits_in = |list: &[(Devices, u8)], devices: Devices| {
            list.iter().find(|(d, _)| *d == devices).map_or(0, |(_, bits)| *bits)
        };
        for (devices, bits) in &self.list {
            if bits & !bits_in(known, *devices) != 0 {
                writes.push((add, line(*devices, *bits)));
            }
        }
        for (devices, bits) in known {
            let surplus = bits & !bits_in(&self.list, *devices);
            if surplus != 0 {
                writes.push((take_back, line(*devices, surplus)));
            }
        }
        writes
    }
}

const ALLOW: &str = "devices.allow";
const DENY: &str = "devices.deny";

/// A rule as cgroup v1 reads and prints it: `c 1:3 rwm`.
fn line(devices: Devices, access: u8) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(16);
    out.push_str(if devices.kind == Kind::Block { "b " } else { "c " });
    for (number, after) in [(devices.major, ':'), (devices.minor, ' ')] {
        match number {
            // Writing to a String cannot fail.
            Some(number) => _ = write!(out, "{number}"),
            None => out.push('*'),
        }
        out.push(after);
    }
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if access & bit != 0 {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(json: &str) -> Vec<DeviceRule> {
        serde_json::from_str(json).unwrap()
    }

    fn exceptions(json: &str) -> Result<Exceptions> {
        Exceptions::of(&Policy::read(&rules(json)).unwrap())
    }

    fn writes(json: &str, current: &str) -> Vec<String> {
        let current = Exceptions::parse(current);
        let transition = exceptions(json).unwrap().transition(&current);
        transition.iter().map(|(file, line)| format!("{file}={line}")).collect()
    }

    #[test]
    fn a_rule_for_everything_makes_the_earlier_ones_void() {
        let policy =
            Policy::read(&rules(r#"[{"allow":true,"type":"c"},{"allow":false,"access":"rwm"}]"#)).unwrap();
        assert_eq!(policy, Policy { default_allow: false, rules: vec![] });
        let policy = Policy::read(&rules(r#"[{"allow":true,"type":"a","major":-1,"minor":-1}]"#)).unwrap();
        assert!(policy.allows_all());
        assert!(!Policy::read(&[]).unwrap().default_allow);
    }

    #[test]
    fn a_rule_for_some_access_to_everything_is_one_per_kind() {
        let policy = Policy::read(&rules(r#"[{"allow":true,"type":"a","access":"m"}]"#)).unwrap();
        assert_eq!(policy.rules.len(), 2);
        assert!(!policy.default_allow && policy.rules.iter().all(|r| r.access == MKNOD));
    }

    #[test]
    fn wrong_rules_name_the_value() {
        for (json, value) in [
            (r#"[{"allow":true,"type":"x"}]"#, "\"x\""),
            (r#"[{"allow":true,"access":"rx"}]"#, "\"rx\""),
            (r#"[{"allow":true,"major":4096}]"#, "major 4096"),
            (r#"[{"allow":true,"minor":1048576}]"#, "minor 1048576"),
        ] {
            let error = Policy::read(&rules(json)).unwrap_err().to_string();
            assert!(error.contains(FIELD) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_new_cgroup_is_denied_everything_and_allowed_the_rest() {
        let json = r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},
            {"allow":true,"type":"c","major":1,"minor":3,"access":"m"},{"allow":true,"type":"b","minor":2}]"#;
        let expected = ["devices.deny=a", "devices.allow=c 1:3 rwm", "devices.allow=b *:2 rwm"];
        assert_eq!(writes(json, "a *:* rwm\n"), expected);
        assert_eq!(writes(r#"[{"allow":false}]"#, "a *:* rwm\n"), ["devices.deny=a"]);
        assert!(writes(r#"[{"allow":true}]"#, "a *:* rwm\n").is_empty());
        let json = r#"[{"allow":true},{"allow":false,"type":"c","major":10}]"#;
        assert_eq!(writes(json, "a *:* rwm\n"), ["devices.allow=a", "devices.deny=c 10:* rwm"]);
    }

    #[test]
    fn an_update_changes_only_what_differs() {
        let json = r#"[{"allow":true,"type":"c","major":1,"minor":3},{"allow":true,"type":"b","major":8}]"#;
        let current = "c 1:3 rwm\nc 1:5 rw\n";
        assert_eq!(writes(json, current), ["devices.allow=b 8:* rwm", "devices.deny=c 1:5 rw"]);
        assert_eq!(writes(r#"[{"allow":true}]"#, current), ["devices.allow=a"]);
        assert!(writes(json, "c 1:3 rwm\nb 8:* rwm\n").is_empty());
        assert_eq!(
            writes(r#"[{"allow":true,"type":"c","access":"r"}]"#, "c *:* rw\n"),
            ["devices.deny=c *:* w"]
        );
    }

    #[test]
    fn later_rules_win_as_far_as_v1_can_hold_them() {
        let json = r#"[{"allow":true,"type":"c","major":1,"minor":3},{"allow":false,"type":"c","major":1}]"#;
        assert_eq!(exceptions(json).unwrap().list, []);
        let hole = r#"[{"allow":true,"type":"c","major":1},{"allow":false,"type":"c","major":1,"minor":3}]"#;
        let error = exceptions(hole).unwrap_err().to_string();
        assert!(error.contains("denying c 1:3 rwm") && error.contains("c 1:* rwm"), "{error}");
    }

    #[test]
    fn the_defaults_are_valid_rules() {
        let policy = Policy::read(&default_device_rules()).unwrap();
        assert_eq!(Exceptions::of(&policy).unwrap().list.len(), 10);
    }
}
