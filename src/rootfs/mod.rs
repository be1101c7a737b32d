//! The container's filesystem: what is decided about it ([`plan`]), and how it comes to be.
//!
//! All of it runs in the init, in the container's mount namespace, in this order:
//! [`Building::begin`] binds the rootfs, [`Building::mount_all`] makes the mounts of config.json,
//! [`Building::fill_dev`] makes the devices; then hooks may look at it; [`Building::enter`] makes
//! it the root; and [`Entered`] masks, makes read-only, and hands out what later steps need.

mod cgroup_view;
mod copy_up;
mod dev;
mod enter;
pub mod erofs;
mod idmapped;
mod masks;
mod mounts;
mod options;
mod overlay;
pub mod plan;

pub use cgroup_view::{CgroupView, Hierarchy};
pub use enter::{Entered, Pivot};
pub use idmapped::{IdMap, map as map_owners, tree as idmapped_tree};
pub use mounts::{Building, source_tree};
pub use options::known_words;
pub use overlay::{Overlay, open_layer};
pub use plan::Plan;
