//! What the collector shares between threads. A module of its own, so that the model checker can put its lock in its place.

pub(super) use std::sync::{Mutex, MutexGuard};
