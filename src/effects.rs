//! What leaves the process after COMMIT. Repeatable: a claim repeats the effects of the last batch.
//!
//! One [`BatchEffects`] per committed batch: hints into Redis (one fenced script call that also publishes one message), and a wake-up for
//! the waiters of this process. They run beside the next batch, in order, at most [`crate::limits::EFFECTS_BEHIND_MAX`] behind; beyond
//! that they are dropped and counted: a dead Redis never slows a batch.

use uuid::Uuid;

use crate::ids::{SkuId, UserId};

/// The hints of one committed batch. Values are absolute, except the provisional units that it settles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchEffects {
    /// Kafka's partition.
    pub partition: i32,
    /// The writer's epoch: hints of an older (epoch, position) are not applied.
    pub epoch: i64,
    /// The position after the batch.
    pub position: i64,
    /// Ids decided by this batch, duplicates included: whoever waits for one of them reads again.
    pub decided: Vec<Uuid>,
    /// Units per user as last decided, absolute.
    pub units: Vec<(SkuId, UserId, i64)>,
    /// Requests that are no longer undecided: (SKU, user, quantity, minute of `received_at`).
    pub settled: Vec<(SkuId, UserId, u32, i64)>,
    /// SKUs that changed, with the units now available and whether holds are pending.
    pub skus: Vec<SkuHint>,
}

/// What a batch left of a SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkuHint {
    /// The SKU.
    pub sku: SkuId,
    /// Units that a new buyer can get.
    pub available: i64,
    /// Units are held.
    pub holds_pending: bool,
    /// True if settings changed (or the SKU is new): catalogues read it again.
    pub is_configured: bool,
}
