//! Namespaces that a container shares with another, whose id its annotations name. They are looked up each
//! time that the container is made anew: a path to them would name a process that may be gone, or be
//! another by then.

use super::container::{Container, Context};
use crate::error::{Class, Error, Result};
use crate::spec::{Namespace, Spec, annotations};

/// Another container whose namespaces are joined, as it was when they were looked up.
pub(super) struct Shared {
    id: String,
    init: Option<crate::state::Init>,
}

/// Puts the paths of those namespaces into a configuration.
///
/// # Errors
/// [`Class::NoContainer`]; [`Class::WrongState`] when the other does not run.
pub(super) fn resolve(context: &Context, id: &str, spec: &mut Spec) -> Result<Vec<Shared>> {
    let mut shared = Vec::new();
    let asked = spec.annotations.range(annotations::JOIN.to_owned()..);
    let asked: Vec<(String, String)> = asked
        .map_while(|(key, other)| Some((key.strip_prefix(annotations::JOIN)?.to_owned(), other.clone())))
        .collect();
    for (kind, other) in asked {
        let file = match kind.as_str() {
            "network" => "net",
            "pid" => "pid",
            _ => return Err(unknown(&kind)),
        };
        let container = running(context, id, &kind, &other)?;
        let path = format!("/proc/{}/ns/{file}", container.pid());
        spec.linux.namespaces.retain(|namespace| namespace.kind != kind);
        spec.linux.namespaces.push(Namespace { kind, path });
        shared.push(Shared { id: other, init: container.record.init });
    }
    Ok(shared)
}

/// Checks, once the namespaces are open, that they are still those of the containers that were meant.
///
/// # Errors
/// [`Class::WrongState`].
pub(super) fn verify(context: &Context, shared: &[Shared]) -> Result<()> {
    for one in shared {
        let now = Container::open(context, &one.id)?;
        if now.pid() == 0 || now.record.init != one.init {
            return Err(ended(&one.id));
        }
    }
    Ok(())
}

/// The container whose namespace is to be shared.
///
/// # Errors
/// As of [`resolve`].
pub(super) fn running(context: &Context, id: &str, kind: &str, other: &str) -> Result<Container> {
    if other == id {
        return Err(Error::new(Class::Usage, format!("share the {kind} namespace"))
            .on(other)
            .because("that is the container itself"));
    }
    let container = Container::open(context, other)?;
    if container.pid() == 0 {
        return Err(ended(other));
    }
    Ok(container)
}

fn ended(id: &str) -> Error {
    Error::new(Class::WrongState, "share a namespace")
        .on(id)
        .because("that container does not run, and its namespaces are those of its processes")
        .hint(format!("start it first: dhow start {id}, or dhow restart {id}"))
}

fn unknown(kind: &str) -> Error {
    Error::config(format!("annotations.{}{kind}", annotations::JOIN), "there is no such namespace to share")
        .hint("it is network or pid")
}
