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
    /// Its init has ended.
    Exited,
    /// `delete` works on it.
    Removing,
    /// The host rebooted under it, or a create or delete was killed halfway.
    Dead,
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
}

impl Status {
    /// Every state.
    pub const ALL: [Status; 7] = [
        Status::Creating,
        Status::Created,
        Status::Running,
        Status::Paused,
        Status::Exited,
        Status::Removing,
        Status::Dead,
    ];

    /// The state of a container: how far dhow brought it, whether its init lives, whether it was
    /// made in this boot, and whether its cgroup is frozen.
    pub fn of(phase: Phase, alive: bool, same_boot: bool, frozen: bool) -> Status {
        match (phase, alive && same_boot) {
            (Phase::Removing, _) => Status::Removing,
            _ if !same_boot => Status::Dead,
            (Phase::Creating, true) => Status::Creating,
            (Phase::Creating, false) => Status::Dead,
            (_, false) => Status::Exited,
            (_, true) if frozen => Status::Paused,
            (Phase::Created, true) => Status::Created,
            (Phase::Started, true) => Status::Running,
        }
    }

    /// dhow's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Exited => "exited",
            Status::Removing => "removing",
            Status::Dead => "dead",
        }
    }

    /// The word of the runtime specification (and `paused`, which runc added).
    pub fn oci_name(self) -> &'static str {
        match self {
            Status::Exited | Status::Removing | Status::Dead => "stopped",
            other => other.name(),
        }
    }

    /// Whether an operation may be done now.
    ///
    /// # Errors
    /// [`Class::WrongState`], in the words that engines look for.
    pub fn allow(self, operation: Operation, id: &str) -> Result<()> {
        use Operation::{Delete, Exec, Kill, Pause, Ps, Resume, Start, Update};
        use Status::{Created, Creating, Dead, Exited, Paused, Removing, Running};
        let refuse = |words: &str| {
            let subject = format!("{id} is {}", self.name());
            Err(Error::new(Class::WrongState, words).on(subject))
        };
        match (operation, self) {
            (Start, Created)
            | (Kill, Creating | Created | Running | Paused)
            | (Delete, Exited | Dead | Removing | Created)
            | (Pause, Running | Created)
            | (Resume, Paused)
            | (Exec, Running | Created)
            | (Update, Created | Running | Paused)
            // A container that has ended has no processes: an answer, and no mistake.
            | (Ps, Created | Running | Paused | Exited) => Ok(()),
            (Start, Running) => refuse("cannot start an already running container"),
            (Start, Exited | Dead) => refuse("cannot start a container that has stopped"),
            (Start, _) => refuse("cannot start the container now"),
            (Delete, _) => refuse(&format!("cannot delete container {id} that is not stopped")),
            (Resume, _) => refuse("container not paused"),
            (Pause, Paused) => refuse("container already paused"),
            (Exec, Paused) => refuse("cannot exec in a paused container (use --ignore-paused to override)"),
            (Exec, Exited | Dead) => refuse("cannot exec in a stopped container: container not running"),
            (Kill | Pause | Exec | Ps | Update, _) => refuse("container not running"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_from_what_is_known() {
        use Phase::{Created, Creating, Removing, Started};
        for (phase, alive, same_boot, frozen, expected) in [
            (Creating, true, true, false, Status::Creating),
            (Creating, false, true, false, Status::Dead),
            (Created, true, true, false, Status::Created),
            (Created, true, true, true, Status::Paused),
            (Created, false, true, false, Status::Exited),
            (Started, true, true, false, Status::Running),
            (Started, true, true, true, Status::Paused),
            (Started, false, true, true, Status::Exited),
            (Started, true, false, false, Status::Dead),
            (Removing, true, true, false, Status::Removing),
            (Removing, false, false, false, Status::Removing),
        ] {
            assert_eq!(
                Status::of(phase, alive, same_boot, frozen),
                expected,
                "{phase:?} {alive} {same_boot} {frozen}"
            );
        }
    }

    /// Rows are states, columns operations; every pair has a verdict.
    #[test]
    fn the_table() {
        use Operation::{Delete, Exec, Kill, Pause, Ps, Resume, Start, Update};
        let columns = [Start, Kill, Delete, Pause, Resume, Exec, Ps, Update];
        let rows = [
            (Status::Creating, "-k------"),
            (Status::Created, "skdp-ecu"),
            (Status::Running, "-k-p-ecu"),
            (Status::Paused, "-k--r-cu"),
            (Status::Exited, "--d---c-"),
            (Status::Removing, "--d-----"),
            (Status::Dead, "--d-----"),
        ];
        assert_eq!(rows.map(|(status, _)| status), Status::ALL);
        for (status, row) in rows {
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
