//! `state` and `list`: what is known of containers.

use super::container::{Container, Context};
use crate::error::Result;
use crate::log;
use crate::spec::annotations::IMAGE;
use crate::state::{Phase, Record, Status};
use crate::sys::time::rfc3339;
use nix::unistd::{Uid, User};
use serde::Serialize;
use std::collections::BTreeMap;

/// A container in the words of runc's `state` and `list`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// The version of the specification.
    pub oci_version: String,
    /// The id.
    pub id: String,
    /// The init's pid, 0 when it has ended.
    pub pid: i32,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: &'static str,
    /// dhow's own word: `creating`, `created`, `running`, `paused`, `restarting`, `exited`,
    /// `removing` or `dead`.
    pub state: &'static str,
    /// The bundle's directory.
    pub bundle: String,
    /// The rootfs.
    pub rootfs: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The annotations of config.json.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The name of the user who created it.
    pub owner: String,
    /// Since when it is in its state, RFC 3339; not told by `state`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// How its payload ended, where somebody waited for it: the exit code, 128 + N for signal N.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Whether its memory had run out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub oom: bool,
    /// How often its monitor has started it anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<u32>,
    /// The image that its bundle was made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

impl From<Container> for Listing {
    fn from(container: Container) -> Self {
        let (pid, exit) = (container.pid(), container.exit().cloned());
        let record = container.record;
        let supervision = record.supervision.as_ref();
        Listing {
            pid,
            state: container.status.name(),
            since: None,
            exit_code: exit.as_ref().map(|exit| exit.code),
            signal: exit.as_ref().and_then(|exit| exit.signal),
            oom: exit.is_some_and(|exit| exit.oom),
            restarts: supervision.map(|supervision| supervision.restarts),
            image: record.annotations.get(IMAGE).cloned(),
            status: container.status.oci_name(),
            oci_version: record.oci_version,
            id: record.id,
            bundle: record.bundle.display().to_string(),
            rootfs: record.rootfs.display().to_string(),
            created: record.created,
            annotations: record.annotations,
            owner: user_name(record.owner),
        }
    }
}

/// A container with the moment at which it became what it is, where that is known.
pub(super) fn since(container: Container) -> Listing {
    // The record is written when a state is entered, but nobody writes down an end that nobody waits
    // for, nor a reboot.
    let is_told = match container.status {
        Status::Dead => container.record.phase == Phase::Dead,
        Status::Exited => container.record.exit.is_some(),
        _ => true,
    };
    let since = container.record.changed.filter(|_| is_told).map(rfc3339);
    Listing { since, ..Listing::from(container) }
}

fn user_name(uid: u32) -> String {
    if uid == 0 {
        // What every passwd(5) says; reading it would be most of the work of `state`.
        return "root".to_owned();
    }
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// All containers, by id. One whose record cannot be read is named in a warning and left out.
///
/// # Errors
/// When the state directory cannot be read.
pub fn list(context: &Context) -> Result<Vec<Listing>> {
    let records = context.store.read_all()?;
    let look = |id: &str, record: Result<Record>| match Container::from_record(record?)? {
        container if container.was_overtaken() => Container::open(context, id),
        container => Ok(container),
    };
    let listed = records.into_iter().filter_map(|(id, record)| match look(&id, record) {
        Ok(container) => Some(since(container)),
        Err(error) => {
            if error.class != crate::error::Class::NoContainer {
                log::warn(&format!("{id}: {error}"));
            }
            None
        }
    });
    Ok(listed.collect())
}
