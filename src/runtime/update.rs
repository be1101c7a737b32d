//! `update`: other limits for a container, while it runs.

use super::container::{Container, Context};
use crate::error::Result;
use crate::spec::Resources;
use crate::state::Operation;

/// Changes the limits of a container. What is absent or 0 stays as it is, -1 lifts a limit; if one
/// value is not taken, all keep the old ones.
///
/// # Errors
/// [`crate::error::Class::WrongState`] when it does not run; the field, value and range that are
/// wrong.
pub fn update(context: &Context, id: &str, resources: &Resources) -> Result<()> {
    let (_locked, container) = Container::lock(context, id)?;
    container.allow(Operation::Update)?;
    container.cgroup()?.update(resources)
}
