//! `inspect`: all that is known of a container.

use super::container::{Container, Context, monitor_lives, out_of_memory};
use super::list::{Listing, since};
use crate::error::Result;
use crate::state::{Log, Status};
use serde::Serialize;

/// A container in full.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inspection {
    /// What `list` shows.
    #[serde(flatten)]
    pub listing: Listing,
    /// When its payload ended, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exited_at: Option<String>,
    /// The restart policy, where a monitor stays with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
    /// The monitor's pid, 0 when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<i32>,
    /// Where its output goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// The namespaces that it does not share with its creator.
    pub namespaces: Vec<String>,
    /// Its cgroups' directories.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cgroups: Vec<String>,
    /// What is left of one that is dead or half removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// Looks at a container, without any lock.
///
/// # Errors
/// [`crate::error::Class::NoContainer`], [`crate::error::Class::Corrupt`].
pub fn inspect(context: &Context, id: &str) -> Result<Inspection> {
    let container = Container::open(context, id)?;
    let cgroup = container.cgroup()?;
    let oom = out_of_memory(&cgroup).is_some();
    let mounts = cgroup.mounts();
    let cgroups: Vec<String> = mounts.iter().map(|mount| format!("{}{}", mount.at, mount.path)).collect();
    let monitor = match container.record.supervision.as_ref().and_then(|supervision| supervision.monitor) {
        Some(monitor) => Some(if monitor_lives(&container.record)? { monitor.pid } else { 0 }),
        None => None,
    };
    let record = &container.record;
    let supervision = record.supervision.as_ref();
    let mut left = record.left.clone();
    if matches!(container.status, Status::Dead | Status::Removing) {
        let there = cgroups.iter().filter(|path| std::path::Path::new(path).is_dir());
        left.extend(there.map(|path| format!("cgroup {path}")));
        left.push(format!("state directory {}", context.store.directory(id).display()));
    }
    let mut inspection = Inspection {
        exited_at: record.exit.as_ref().map(|exit| exit.at.clone()),
        restart_policy: supervision.map(|supervision| supervision.restart.name()),
        monitor,
        log: supervision.and_then(|supervision| supervision.log.clone()),
        namespaces: record.namespaces.clone(),
        cgroups,
        left,
        listing: since(container),
    };
    inspection.listing.oom |= oom;
    Ok(inspection)
}
