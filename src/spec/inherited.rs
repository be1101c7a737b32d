//! What a process that joins a running container has as the container's init has it.

use super::{MemoryPolicy, Personality, Process, Spec, annotations};
use serde::{Deserialize, Serialize};

/// Kept in the container's record, so that an exec need not read its config.json for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inherited {
    /// `linux.personality`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
    /// `linux.memoryPolicy`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
    /// Whether the caller's supplementary groups stay: annotation `run.oci.keep_original_groups`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_groups: bool,
    /// `process.apparmorProfile`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub apparmor_profile: String,
    /// `process.selinuxLabel`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub selinux_label: String,
}

impl Inherited {
    /// What a config.json says of it.
    pub fn of(spec: &Spec) -> Inherited {
        let label =
            |choose: fn(&Process) -> &String| spec.process.as_ref().map(choose).cloned().unwrap_or_default();
        Inherited {
            apparmor_profile: label(|process| &process.apparmor_profile),
            selinux_label: label(|process| &process.selinux_label),
            personality: spec.linux.personality.clone(),
            memory_policy: spec.linux.memory_policy.clone(),
            keep_groups: annotations::is_on(&spec.annotations, annotations::KEEP_GROUPS),
        }
    }

    /// A process as a file tells it, confined as the container is where the file does not say otherwise.
    pub fn complete(&self, process: Process) -> Process {
        let or = |own: String, of_container: &String| if own.is_empty() { of_container.clone() } else { own };
        Process {
            apparmor_profile: or(process.apparmor_profile, &self.apparmor_profile),
            selinux_label: or(process.selinux_label, &self.selinux_label),
            ..process
        }
    }

    /// Whether there is nothing to write down.
    pub fn is_nothing(&self) -> bool {
        *self == Inherited::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_labels_is_confined_as_the_container_is() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "process": {"apparmorProfile": "strict", "selinuxLabel": "a:b:c"}
        }))
        .unwrap();
        let inherited = Inherited::of(&spec);
        assert!(!inherited.is_nothing() && Inherited::of(&Spec::default()).is_nothing());
        let completed = inherited.complete(Process::default());
        assert_eq!((&*completed.apparmor_profile, &*completed.selinux_label), ("strict", "a:b:c"));
        let own = Process { apparmor_profile: "unconfined".into(), ..Process::default() };
        assert_eq!(inherited.complete(own).apparmor_profile, "unconfined");
    }
}
