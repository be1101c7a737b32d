//! What is kept for a container that a monitor stays with: how it ended, and whether it is to run
//! again.

use super::{Init, Undo};
use crate::error::{Class, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// How a payload ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 + N when signal N ended it.
    pub code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// When, RFC 3339.
    pub at: String,
    /// Whether its memory had run out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
}

impl Exit {
    /// The signal that an exit code stands for.
    pub fn signal_of(code: i32) -> Option<i32> {
        (code > 128 && code <= 128 + 64).then(|| code - 128)
    }
}

/// When a container is started anew after its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Whatever its exit code.
    Always,
    /// Likewise, as Docker has it: the two differ only for a daemon that starts.
    UnlessStopped,
    /// When its exit code is not 0, and so many times at most (0: without end).
    OnFailure(u32),
}

impl Restart {
    /// Reads `no`, `always`, `unless-stopped`, `on-failure` or `on-failure:N`.
    ///
    /// # Errors
    /// [`Class::Usage`].
    pub fn parse(text: &str) -> Result<Restart> {
        let unknown = || {
            Error::new(Class::Usage, "unknown value of --restart")
                .on(format!("{text:?}"))
                .hint("no, always, unless-stopped, on-failure or on-failure:N")
        };
        match text {
            "no" | "" => Ok(Restart::No),
            "always" => Ok(Restart::Always),
            "unless-stopped" => Ok(Restart::UnlessStopped),
            "on-failure" => Ok(Restart::OnFailure(0)),
            _ => {
                let most = text.strip_prefix("on-failure:").and_then(|digits| digits.parse().ok());
                most.map(Restart::OnFailure).ok_or_else(unknown)
            }
        }
    }

    /// The policy in words.
    pub fn name(self) -> String {
        match self {
            Restart::No => "no".into(),
            Restart::Always => "always".into(),
            Restart::UnlessStopped => "unless-stopped".into(),
            Restart::OnFailure(0) => "on-failure".into(),
            Restart::OnFailure(most) => format!("on-failure:{most}"),
        }
    }
}

/// What a user has said about the next end of the container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// Nothing: the policy decides.
    #[default]
    None,
    /// It is to stay stopped.
    Stop,
    /// It is to run again at once.
    Restart,
}

/// Where a container's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// `json-file`, `k8s-file` or `none`.
    pub driver: String,
    /// The file.
    pub path: PathBuf,
    /// The size in bytes at which another file is begun; 0 for never.
    #[serde(default)]
    pub most_bytes: u64,
    /// How many files there may be.
    #[serde(default)]
    pub most_files: u32,
}

/// What a monitor does for a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Supervision {
    /// The monitor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<Init>,
    /// The policy.
    #[serde(default)]
    pub restart: Restart,
    /// The log; `None` when the container writes where its creator did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// How often it was started anew.
    #[serde(default)]
    pub restarts: u32,
    /// How often in a row it ended soon.
    #[serde(default)]
    pub streak: u32,
    /// What a user wants.
    #[serde(default)]
    pub intent: Intent,
    /// Where the init's pid is written at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    /// What was made for the container before it was created: on its way into the record's journal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Undo>,
}

/// What comes after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// Another start, after a while.
    Restart(Duration),
}

/// The first back-off.
const FIRST: Duration = Duration::from_millis(100);

/// The longest.
const LONGEST: Duration = Duration::from_secs(60);

/// Who has lived so long is taken for healthy.
const HEALTHY: Duration = Duration::from_secs(10);

impl Supervision {
    /// Decides what comes after an end with this exit code, after so long a life, as Docker does:
    /// the back-off doubles from 100 ms to a minute and begins anew after ten seconds of life.
    pub fn next(&mut self, code: i32, lived: Duration) -> Next {
        match std::mem::take(&mut self.intent) {
            Intent::Stop => return Next::End,
            Intent::Restart => {
                (self.streak, self.restarts) = (0, 0);
                return Next::Restart(Duration::ZERO);
            }
            Intent::None => {}
        }
        let again = match self.restart {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => true,
            Restart::OnFailure(most) => code != 0 && (most == 0 || self.restarts < most),
        };
        if !again {
            return Next::End;
        }
        if lived >= HEALTHY {
            self.streak = 0;
        }
        let delay = FIRST.saturating_mul(1 << self.streak.min(10)).min(LONGEST);
        self.streak = self.streak.saturating_add(1);
        self.restarts = self.restarts.saturating_add(1);
        Next::Restart(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    fn with(restart: Restart) -> Supervision {
        Supervision { restart, ..Supervision::default() }
    }

    #[test]
    fn policies_have_their_names() {
        for text in ["no", "always", "unless-stopped", "on-failure", "on-failure:3"] {
            assert_eq!(Restart::parse(text).unwrap().name(), text);
        }
        for text in ["yes", "on-failure:", "on-failure:-1", "on-failure:x", "always:3"] {
            assert_eq!(Restart::parse(text).unwrap_err().class, Class::Usage, "{text}");
        }
    }

    #[test]
    fn the_back_off_doubles_to_a_minute_and_is_forgotten_after_a_life() {
        let mut supervision = with(Restart::Always);
        let mut seconds = Vec::new();
        for _ in 0..12 {
            match supervision.next(0, SOON) {
                Next::Restart(delay) => seconds.push(delay.as_millis()),
                Next::End => panic!(),
            }
        }
        assert_eq!(seconds, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(supervision.next(0, HEALTHY), Next::Restart(FIRST));
    }

    #[test]
    fn each_policy_knows_when() {
        assert_eq!(with(Restart::No).next(1, SOON), Next::End);
        assert_eq!(with(Restart::OnFailure(0)).next(0, SOON), Next::End);
        assert_eq!(with(Restart::OnFailure(0)).next(1, SOON), Next::Restart(FIRST));
        let mut twice = Supervision { restarts: 1, ..with(Restart::OnFailure(2)) };
        assert_eq!(twice.next(1, SOON), Next::Restart(FIRST));
        twice.restarts = 2;
        assert_eq!(twice.next(1, SOON), Next::End);
        let mut stopped = Supervision { intent: Intent::Stop, ..with(Restart::Always) };
        assert_eq!(stopped.next(137, SOON), Next::End);
        let mut restarted = Supervision { intent: Intent::Restart, ..with(Restart::No) };
        assert_eq!(restarted.next(143, SOON), Next::Restart(Duration::ZERO));
        assert_eq!(restarted.next(143, SOON), Next::End, "a wish is for once");
    }
}
