//! Taking back what was made for a container, beside its cgroup.

use super::cni;
use crate::error::Result;
use crate::image::container;
use crate::log;
use crate::state::{Record, Undo};

/// Replays a journal backwards, but for the cgroup, which must be gone by then: nothing runs any
/// more. It can be repeated. With `force`, a network that cannot be left is left behind.
pub(super) fn take_back(record: &Record, force: bool) -> Result<()> {
    for undo in record.undo.iter().rev() {
        match undo {
            Undo::Cgroup(_) => {}
            Undo::Network(text) => match cni::remove(text.get(), &record.id) {
                // A plugin may have gone, and its network with it.
                Err(error) if force => log::warn(&error.to_string()),
                result => result?,
            },
            Undo::Directory(place) => container::remove(place)?,
        }
    }
    Ok(())
}
