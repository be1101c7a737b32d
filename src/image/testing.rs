//! Building images for tests.
