//! What leaves the process after COMMIT. Repeatable: a claim repeats the effects of the last batch.
//!
//! One [`BatchEffects`] per committed batch: hints into Redis (one fenced script call that also publishes one message), and a wake-up for
//! the waiters of this process. They run beside the next batch, in order, at most [`crate::limits::EFFECTS_BEHIND_MAX`] behind; beyond
//! that they are dropped and counted: a dead Redis never slows a batch.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use metrics::counter;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;
use tracing::warn;
use uuid::Uuid;

use crate::admission::Catalogue;
use crate::cache::Cache;
use crate::clock::Millis;
use crate::ids::{Place, SkuId, Ticket, UserId};
use crate::inventory::{Rejection, Reserve, Status};
use crate::limits;
use crate::store::{ReservationRow, StoredRejection};
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
    /// Ids decided by this batch, duplicates included.
    pub decided: Vec<DecidedId>,
    /// SKUs whose users' units Redis is to forget before it hears the new ones: hints about them were lost. Units that are too low cost
    /// a request that the writer refuses; units that are too high would refuse a user who may buy, for as long as Redis keeps them.
    pub forgotten: Vec<SkuId>,
    /// Units per user as last decided, absolute.
    pub units: Vec<(SkuId, UserId, i64)>,
    /// Requests that are no longer undecided: (SKU, user, quantity, minute of `received_at`).
    pub settled: Vec<(SkuId, UserId, u32, i64)>,
    /// SKUs that changed, with the units now available and whether holds are pending.
    pub skus: Vec<SkuHint>,
}

/// An id that a batch decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecidedId {
    /// Of a reservation or a command.
    pub id: Uuid,
    /// What a reserve command was told, if that is what its reservation still is after the batch: whoever made the request can answer it
    /// with this. Absent for everything else: whoever waits for it reads again.
    pub first: Option<FirstDecision>,
}

impl DecidedId {
    /// Whoever waits for this id reads again.
    pub fn changed(id: Uuid) -> Self {
        Self { id, first: None }
    }
}

/// The first decision of a reservation, committed: all that its row has and its request has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstDecision {
    /// Where the command stands in its partition: a repeat of the request, with other metadata, stands elsewhere.
    pub place: Place,
    /// Log time of the decision.
    pub at: Millis,
    /// Which.
    pub verdict: FirstVerdict,
}

impl FirstDecision {
    /// The row that the batch wrote for this request, at its ticket.
    pub fn row_of(&self, asked: Reserve, ticket: Ticket) -> ReservationRow {
        let Reserve { id, user, sku, quantity, metadata } = asked;
        let (status, rejection, expires_at, extensions_left) = match self.verdict {
            FirstVerdict::Reserved { expires_at, extensions_left } => {
                (Status::Reserved, None, Some(expires_at), Some(extensions_left))
            }
            FirstVerdict::Rejected(rejection) => (Status::Rejected, Some(StoredRejection::of(&rejection)), None, None),
        };
        ReservationRow {
            id,
            user_id: Some(user.as_str().to_owned()),
            sku_id: Some(sku.as_str().to_owned()),
            quantity: Some(quantity.get()),
            status,
            rejection,
            version: 1,
            accepted_at: self.at,
            expires_at,
            changed_at: None,
            extensions_left,
            payment_ref: None,
            is_late: false,
            note: None,
            metadata: metadata.map(|metadata| metadata.as_str().to_owned()),
            ticket,
        }
    }
}

/// The kinds of first decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstVerdict {
    /// Its units are held.
    Reserved {
        /// End of the hold.
        expires_at: Millis,
        /// Extensions that the SKU's settings allow.
        extensions_left: u32,
    },
    /// It is refused for ever.
    Rejected(Rejection),
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

/// SKUs about which Redis was not told everything; at most those of one partition.
type Lost = Arc<Mutex<BTreeSet<SkuId>>>;

/// Where a partition's worker leaves the effects of its batches. One per worker; dropping it lets what is queued finish.
pub struct Effects {
    waiters: Waiters,
    catalogue: Option<Catalogue>,
    queue: Option<mpsc::Sender<BatchEffects>>,
    lost: Lost,
    task: Option<JoinHandle<()>>,
}

impl Effects {
    /// Starts the task that tells Redis, in order. Without a `cache` only this process is told; `catalogue` is the one of an API in the
    /// same process. Needs a Tokio runtime around it.
    pub fn start(cache: Option<Cache>, waiters: Waiters, catalogue: Option<Catalogue>) -> Self {
        let lost = Lost::default();
        let (queue, task) = match cache {
            Some(cache) => {
                let (queue, queued) = mpsc::channel(limits::EFFECTS_BEHIND_MAX);
                (Some(queue), Some(tokio::spawn(tell_redis(cache, queued, Arc::clone(&lost)))))
            }
            None => (None, None),
        };
        Self { waiters, catalogue, queue, lost, task }
    }

    /// Redis may not have been told everything about these SKUs: the next effects make it forget their users' units first.
    pub fn forget(&self, skus: impl IntoIterator<Item = SkuId>) {
        lock(&self.lost).extend(skus);
    }

    /// Leaves the effects of a batch that **is committed**. Never waits: this process' catalogue and waiters are told at once, Redis
    /// later; with [`limits::EFFECTS_BEHIND_MAX`] batches waiting, Redis is not told at all, and that is counted.
    pub fn submit(&self, effects: BatchEffects) {
        // The catalogue first: whoever is woken may read it.
        if let Some(catalogue) = &self.catalogue {
            catalogue.apply(effects.partition, effects.epoch, effects.position, &effects.skus);
        }
        self.waiters.wake(effects.decided.iter().copied());
        if let Some(queue) = &self.queue
            && let Err(TrySendError::Full(effects) | TrySendError::Closed(effects)) = queue.try_send(effects)
        {
            counter!(EFFECTS_DROPPED, "reason" => "behind").increment(1);
            self.forget(skus_of(effects));
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

fn lock(lost: &Mutex<BTreeSet<SkuId>>) -> MutexGuard<'_, BTreeSet<SkuId>> {
    lost.lock().expect("nobody panics while holding it")
}

/// The SKUs whose users' units these effects tell or forget.
fn skus_of(effects: BatchEffects) -> impl Iterator<Item = SkuId> {
    effects.forgotten.into_iter().chain(effects.units.into_iter().map(|(sku, _, _)| sku))
}

async fn tell_redis(cache: Cache, mut queued: mpsc::Receiver<BatchEffects>, lost: Lost) {
    let mut was_failing = false;
    while let Some(mut effects) = queued.recv().await {
        effects.forgotten.extend(std::mem::take(&mut *lock(&lost)));
        match cache.apply_effects(&effects).await {
            Ok(true) => was_failing = false,
            Ok(false) => {
                was_failing = false;
                counter!(EFFECTS_DROPPED, "reason" => "fenced").increment(1);
            }
            Err(error) => {
                counter!(EFFECTS_DROPPED, "reason" => "failed").increment(1);
                lock(&lost).extend(skus_of(effects.clone()));
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
