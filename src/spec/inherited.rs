//! What a process that joins a running container has as the container's init has it.

use super::{MemoryPolicy, Personality, Spec, annotations};
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
}

impl Inherited {
    /// What a config.json says of it.
    pub fn of(spec: &Spec) -> Inherited {
        Inherited {
            personality: spec.linux.personality.clone(),
            memory_policy: spec.linux.memory_policy.clone(),
            keep_groups: annotations::is_on(&spec.annotations, annotations::KEEP_GROUPS),
        }
    }

    /// Whether there is nothing to write down.
    pub fn is_nothing(&self) -> bool {
        *self == Inherited::default()
    }
}
