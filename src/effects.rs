//! What leaves the process after COMMIT. Repeatable: a claim repeats the effects of the last batch.
//!
//! One [`BatchEffects`] per committed batch: hints into Redis (one fenced script call that also publishes one message), and a wake-up for
//! the waiters of this process. They run beside the next batch, in order, at most [`crate::limits::EFFECTS_BEHIND_MAX`] behind; beyond
//! that they are dropped and counted: a dead Redis never slows a batch.

use metrics::counter;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use crate::admission::Catalogue;
use crate::cache::Cache;
use crate::ids::{SkuId, UserId};
use crate::limits;
use crate::telemetry::metrics::EFFECTS_DROPPED;
use crate::waiters::Waiters;

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

/// Where a partition's worker leaves the effects of its batches. One per worker; dropping it lets what is queued finish.
pub struct Effects {
    waiters: Waiters,
    catalogue: Option<Catalogue>,
    queue: Option<mpsc::Sender<BatchEffects>>,
    task: Option<JoinHandle<()>>,
}

impl Effects {
    /// Starts the task that tells Redis, in order. Without a `cache` only this process is told; `catalogue` is the one of an API in the
    /// same process. Needs a Tokio runtime around it.
    pub fn start(cache: Option<Cache>, waiters: Waiters, catalogue: Option<Catalogue>) -> Self {
        let (queue, task) = match cache {
            Some(cache) => {
                let (queue, queued) = mpsc::channel(limits::EFFECTS_BEHIND_MAX);
                (Some(queue), Some(tokio::spawn(tell_redis(cache, queued))))
            }
            None => (None, None),
        };
        Self { waiters, catalogue, queue, task }
    }

    /// Leaves the effects of a batch that **is committed**. Never waits: this process' catalogue and waiters are told at once, Redis
    /// later; with [`limits::EFFECTS_BEHIND_MAX`] batches waiting, Redis is not told at all, and that is counted.
    pub fn submit(&self, effects: BatchEffects) {
        // The catalogue first: whoever is woken may read it.
        if let Some(catalogue) = &self.catalogue {
            catalogue.apply(effects.partition, effects.epoch, effects.position, &effects.skus);
        }
        self.waiters.wake(&effects.decided);
        if let Some(queue) = &self.queue
            && queue.try_send(effects).is_err()
        {
            counter!(EFFECTS_DROPPED, "reason" => "behind").increment(1);
        }
    }

    /// Takes no more and waits until Redis was told what is queued, at most [`limits::EFFECTS_DRAIN_DEADLINE`].
    pub async fn stop(mut self) {
        drop(self.queue.take());
        if let Some(task) = self.task.take()
            && tokio::time::timeout(limits::EFFECTS_DRAIN_DEADLINE, task).await.is_err()
        {
            warn!("gave up telling redis the last effects");
        }
    }
}

async fn tell_redis(cache: Cache, mut queued: mpsc::Receiver<BatchEffects>) {
    let mut was_failing = false;
    while let Some(effects) = queued.recv().await {
        match cache.apply_effects(&effects).await {
            Ok(true) => was_failing = false,
            Ok(false) => {
                was_failing = false;
                counter!(EFFECTS_DROPPED, "reason" => "fenced").increment(1);
            }
            Err(error) => {
                counter!(EFFECTS_DROPPED, "reason" => "failed").increment(1);
                // Once per outage; the counter tells the rest.
                if !was_failing {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        kafka.partition = effects.partition,
                        "could not apply effects; waiting clients read postgres instead"
                    );
                }
                was_failing = true;
            }
        }
    }
}
