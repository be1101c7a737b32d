//! Taking back what was made for a container, beside its cgroup.

use super::cni;
use crate::error::Result;
use crate::image::container;
use crate::state::{Record, Undo};

/// Replays a journal backwards, but for the cgroup, which must be gone by then: nothing runs any
/// more. It can be repeated.
pub(super) fn take_back(record: &Record) -> Result<()> {
    for undo in record.undo.iter().rev() {
        match undo {
            Undo::Cgroup(_) => {}
            Undo::Network(text) => cni::remove(text.get(), &record.id)?,
            Undo::Directory(place) => container::remove(place)?,
        }
    }
    Ok(())
}
