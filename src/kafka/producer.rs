//! Publishes records.
/// Publishes records.
pub struct Producer {}
