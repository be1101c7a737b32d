//! Drives the dhow binary on the real kernel.
