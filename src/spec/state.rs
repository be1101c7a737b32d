//! The state document of the specification (runtime.md, "State").

use serde::Serialize;
use std::collections::BTreeMap;

/// What hooks get on their standard input, and the core of what `dhow state` prints.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    /// The version of the specification that the container follows.
    pub oci_version: &'a str,
    /// The container's id.
    pub id: &'a str,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: &'a str,
    /// The init's pid; 0 when it has ended.
    pub pid: i32,
    /// The bundle's directory, absolute.
    pub bundle: &'a str,
    /// The annotations of config.json.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

impl State<'_> {
    /// The document.
    pub fn to_json(&self) -> String {
        // Strings, a number and a map of strings always have a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}
