//! Events out: what `decide` told is stored with the batch, in its transaction, and published from there.
//!
//! ```text
//! inventory::Event -> [packed] one row of `outbox` per batch -> COMMIT -> [relay] -> topic `reservation-events`, CloudEvents JSON
//! ```
//! Nothing is published that was not committed, and nothing that was committed stays unpublished: **at least once, in order per SKU**. A
//! consumer drops repeats by the event's id.
//!
//! [`packed`], [`cloud_event`] and [`round`] are pure; [`relay`] is the shell around them.

pub mod cloud_event;
pub mod packed;
pub mod relay;
pub mod round;
