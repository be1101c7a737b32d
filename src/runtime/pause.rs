//! `pause` and `resume`.

use super::container::{Container, Context};
use crate::error::Result;
use crate::state::Operation;

/// Freezes every process of a container; returns when they all stand still.
///
/// # Errors
/// [`crate::error::Class::WrongState`] when it does not run.
pub fn pause(context: &Context, id: &str) -> Result<()> {
    let (locked, container) = Container::lock(context, id)?;
    container.allow(Operation::Pause)?;
    container.cgroup()?.freeze()?;
    locked.touch()
}

/// Lets them run on.
///
/// # Errors
/// [`crate::error::Class::WrongState`] when it is not paused.
pub fn resume(context: &Context, id: &str) -> Result<()> {
    let (locked, container) = Container::lock(context, id)?;
    container.allow(Operation::Resume)?;
    container.cgroup()?.thaw()?;
    locked.touch()
}
