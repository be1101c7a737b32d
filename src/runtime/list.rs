//! `state` and `list`: what is known of containers.

use super::container::{Container, Context};
use crate::error::Result;
use crate::log;
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
}

impl From<Container> for Listing {
    fn from(container: Container) -> Self {
        let pid = container.pid();
        let record = container.record;
        Listing {
            pid,
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
    let ids = context.store.ids()?;
    let listed = ids.into_iter().filter_map(|id| match Container::open(context, &id) {
        Ok(container) => Some(Listing::from(container)),
        Err(error) => {
            if error.class != crate::error::Class::NoContainer {
                log::warn(&format!("{id}: {error}"));
            }
            None
        }
    });
    Ok(listed.collect())
}
