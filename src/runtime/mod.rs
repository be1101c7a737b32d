//! What dhow does: one file per command, each reading as that command's story.

mod container;
mod create;
mod delete;
mod events;
mod exec;
mod explain;
mod features;
mod filter;
mod foreground;
mod kill;
mod list;
mod pause;
mod ps;
mod run;
mod sockets;
mod spec;
mod start;
mod trees;
mod update;

pub use container::{Container, Context};
pub use create::{Created, Request, StartedBy, create};
pub use delete::delete;
pub use events::{Event, Network, events, network, stats};
pub use exec::{ExecRequest, exec};
pub use explain::{ExplainRequest, explain_seccomp};
pub use features::features;
pub use kill::{kill, parse_signal};
pub use list::{Listing, list};
pub use pause::{pause, resume};
pub use ps::{PsFormat, ps};
pub use run::{RunOptions, run};
pub use spec::write_spec;
pub use start::start;
pub use update::update;
