//! The states of a container, and what each command may do in each of them.

use super::Phase;
use crate::error::{Class, Error, Result};

/// What a container is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `create` works on it.
    Creating,
    /// Its init waits for `start`.
    Created,
    /// Its payload runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its init has ended, and its monitor waits to start it anew.
    Restarting,
    /// Its init has ended.
    Exited,
    /// `delete` works on it.
    Removing,
    /// The host rebooted under it, a create was killed halfway, or something of it could not be
    /// taken back.
    Dead,
}

/// What is known of a container at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// How far dhow brought it.
    pub phase: Phase,
    /// Whether it was made in this boot of the host.
    pub same_boot: bool,
    /// Whether its init lives.
    pub alive: bool,
    /// Whether its init has become the payload. The kernel knows before and after the record does.
    pub executed: bool,
    /// Whether its cgroup is frozen.
    pub frozen: bool,
    /// Whether its monitor lives.
    pub monitored: bool,
}

/// What a command wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Run the payload.
    Start,
    /// Send a signal.
    Kill,
    /// Remove what has ended.
    Delete,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Run another process.
    Exec,
    /// List the processes.
    Ps,
    /// Change limits, or read statistics.
    Update,
    /// Ask it to end, then end it.
    Stop,
    /// Stop it and run its payload anew.
    Restart,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Operation; 10] = [
        Operation::Start,
        Operation::Kill,
        Operation::Delete,
        Operation::Pause,
        Operation::Resume,
        Operation::Exec,
        Operation::Ps,
        Operation::Update,
        Operation::Stop,
        Operation::Restart,
    ];
}

impl Status {
    /// Every state.
    pub const ALL: [Status; 8] = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Restarting,
        Status::Exited,
        Status::Removing,
        Status::Dead,
    ];

    /// The state of a container.
    pub fn of(facts: Facts) -> Status {
        match (facts.phase, facts.alive) {
            (Phase::Removing, _) => Status::Removing,
            (Phase::Dead, _) => Status::Dead,
            _ if !facts.same_boot => Status::Dead,
            (Phase::Creating, true) => Status::Creating,
            (Phase::Creating, false) => Status::Dead,
            (Phase::Restarting, false) if facts.monitored => Status::Restarting,
            // Without its monitor nobody starts it anew.
            (_, false) => Status::Exited,
            (_, true) if facts.frozen => Status::Paused,
            (Phase::Created | Phase::Started | Phase::Restarting, true) if facts.executed => Status::Running,
            (Phase::Created | Phase::Started | Phase::Restarting, true) => Status::Created,
        }
    }

    /// dhow's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Restarting => "restarting",
            Status::Exited => "exited",
            Status::Removing => "removing",
            Status::Dead => "dead",
        }
    }

    /// The word of the runtime specification (and `paused`, which runc added).
    pub fn oci_name(self) -> &'static str {
        match self {
            Status::Restarting | Status::Exited | Status::Removing | Status::Dead => "stopped",
            other => other.name(),
        }
    }

    /// Whether an operation may be done now.
    ///
    /// # Errors
    /// [`Class::WrongState`], in the words that engines look for.
    pub fn allow(self, operation: Operation, id: &str) -> Result<()> {
        use Operation::{Delete, Exec, Kill, Pause, Ps, Restart, Resume, Start, Stop, Update};
        use Status::{Created, Creating, Dead, Exited, Paused, Removing, Restarting, Running};
        let refuse = |words: &str| {
            let subject = format!("{id} is {}", self.name());
            Err(Error::new(Class::WrongState, words).on(subject))
        };
        match (operation, self) {
            (Start, Created)
            | (Kill, Creating | Created | Running | Paused)
            | (Delete, Exited | Dead | Removing | Created | Restarting)
            | (Pause, Running | Created)
            | (Resume, Paused)
            | (Exec, Running | Created)
            | (Update, Created | Running | Paused)
            // A container that has ended has no processes: an answer, and no mistake.
            | (Ps, Created | Running | Paused | Restarting | Exited)
            // What has ended is stopped already.
            | (Stop, Created | Running | Paused | Restarting | Exited | Dead)
            | (Restart, Created | Running | Paused | Restarting | Exited | Dead) => Ok(()),
            (Start, Running) => refuse("cannot start an already running container"),
            (Start, Exited | Dead | Restarting) => refuse("cannot start a container that has stopped"),
            (Start, _) => refuse("cannot start the container now"),
            (Delete, _) => refuse(&format!("cannot delete container {id} that is not stopped")),
            (Resume, _) => refuse("container not paused"),
            (Pause, Paused) => refuse("container already paused"),
            (Exec, Paused) => refuse("cannot exec in a paused container (use --ignore-paused to override)"),
            (Exec, Exited | Dead | Restarting) => refuse("cannot exec in a stopped container: container not running"),
            (Stop, _) => refuse("cannot stop the container now"),
            (Restart, _) => refuse("cannot restart the container now"),
            (Kill | Pause | Exec | Ps | Update, _) => refuse("container not running"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_from_what_is_known() {
        use Phase::{Created, Creating, Dead, Removing, Restarting, Started};
        // The letters are what is true: b same boot, a alive, x executed, f frozen, m monitored.
        for (phase, facts, expected) in [
            (Creating, "ba", Status::Creating),
            (Creating, "b", Status::Dead),
            (Created, "ba", Status::Created),
            (Created, "bax", Status::Running),
            (Created, "baf", Status::Paused),
            (Created, "b", Status::Exited),
            (Started, "bax", Status::Running),
            (Started, "ba", Status::Created),
            (Started, "baxm", Status::Running),
            (Started, "baxf", Status::Paused),
            (Started, "bf", Status::Exited),
            (Started, "bm", Status::Exited),
            (Started, "a", Status::Dead),
            (Restarting, "bm", Status::Restarting),
            (Restarting, "b", Status::Exited),
            (Restarting, "m", Status::Dead),
            (Removing, "ba", Status::Removing),
            (Removing, "", Status::Removing),
            (Dead, "b", Status::Dead),
        ] {
            let is = |letter: char| facts.contains(letter);
            let known = Facts {
                phase,
                same_boot: is('b'),
                alive: is('a'),
                executed: is('x'),
                frozen: is('f'),
                monitored: is('m'),
            };
            assert_eq!(Status::of(known), expected, "{phase:?} {facts}");
        }
    }

    /// Rows are states, columns operations; every pair has a verdict.
    #[test]
    fn the_table() {
        // Start, Kill, Delete, Pause, Resume, Exec, Ps, Update, Stop, Restart.
        let columns = Operation::ALL;
        let rows = [
            (Status::Creating, "-k--------"),
            (Status::Created, "skdp-ecuSR"),
            (Status::Running, "-k-p-ecuSR"),
            (Status::Paused, "-k--r-cuSR"),
            (Status::Restarting, "--d---c-SR"),
            (Status::Exited, "--d---c-SR"),
            (Status::Removing, "--d-------"),
            (Status::Dead, "--d-----SR"),
        ];
        assert_eq!(rows.map(|(status, _)| status), Status::ALL);
        for (status, row) in rows {
            assert_eq!(row.len(), columns.len());
            for (operation, cell) in columns.into_iter().zip(row.chars()) {
                let allowed = status.allow(operation, "x").is_ok();
                assert_eq!(allowed, cell != '-', "{status:?} {operation:?}");
            }
        }
    }

    #[test]
    fn the_words_that_engines_look_for() {
        let words = |status: Status, operation| status.allow(operation, "x").unwrap_err().to_string();
        assert!(words(Status::Exited, Operation::Kill).contains("container not running"));
        assert!(words(Status::Running, Operation::Delete).contains("that is not stopped: x is running"));
    }
}
