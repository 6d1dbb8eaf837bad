//! Who waits for a decision in this process, and how they are woken.
//!
//! A waiter registers under its id **before** it publishes or reads, and reads once after that; so no wake-up can fall between. Wake-ups
//! come from Redis (one message per batch), directly from the consumer in the same process, and from the sweep that reads all open
//! waiters every [`crate::limits::WAITER_SWEEP_EVERY`]: a lost one costs that much, never the whole wait. Being woken says only
//! "read again"; the truth is read from Postgres.

use std::sync::Arc;

use uuid::Uuid;

/// The registry; cheap to clone.
#[derive(Clone, Default)]
pub struct Waiters {
    _inner: Arc<()>,
}

/// One registration; dropping it ends it.
pub struct Waiter {}

impl Waiters {
    /// Registers interest in an id (a reservation's or a command's). Many may wait for one id.
    pub fn register(&self, id: Uuid) -> Waiter {
        let _ = id;
        unimplemented!()
    }

    /// Wakes whoever waits for one of these ids. Cheap for ids that nobody waits for.
    pub fn wake(&self, ids: &[Uuid]) {
        let _ = ids;
        unimplemented!()
    }

    /// The ids that somebody waits for now.
    pub fn open_ids(&self) -> Vec<Uuid> {
        unimplemented!()
    }
}

impl Waiter {
    /// Returns at the first wake-up since registration or since the last return. Cancel-safe.
    pub async fn woken(&mut self) {
        unimplemented!()
    }
}
