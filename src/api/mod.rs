//! The library: containers and images as typed values.
//!
//! What looks at containers or signals them is done by the caller's own thread. What makes, enters or
//! removes one is done by a helper process, because it forks, and a fork of a process with several
//! threads can only exec: see [`helper`].

mod container;
mod create;
mod exec;
mod handle;
mod helper;
mod images;
mod job;
mod stats;

pub use container::{Container, Exit, State, Status, signal};
pub use create::Create;
pub use exec::{Exec, Process};
pub use handle::{CgroupManager, Runtime};
pub use helper::helper;
pub use images::{BundleOptions, Image, Images};
pub use stats::{Event, Limits, Stats};
