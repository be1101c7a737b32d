//! What processes that stay beside a container share: children, pipes, log files.
//!
//! They live as long as the container, one for each, so they are small: no threads, no parser, and
//! nothing of dhow's library. What is to be known or decided, the dhow binary knows and decides.

pub mod logfile;
pub mod sys;
pub mod ttrpc;
pub mod wire;

pub use logfile::{Format, LogFile};
