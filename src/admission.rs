//! Admission: what can be refused before the log, and what must not be.
//!
//! In the flow: http > **admission** > ingress. A request without a key that memory can refuse is refused with no I/O. Everything else is
//! one Redis call for many requests: keys are looked up, the user's limit is checked, provisional units are taken. All of it is advice:
//! the writer decides again, and whatever Redis can't say is admitted.
//!
//! Invariants:
//! - A refusal burns nothing: no key, no limit.
//! - Units that the writer told Redis refuse nobody by themselves: Postgres confirms them, if it can be asked (`over_limit`).
//! - A keyed request is looked up before it is refused, in Redis, then in Postgres; if it was accepted before, the answer is the replay.
//! - A key is known by a decision or a delivery report and by nothing else. A pending marker whose reservation has no row, and that this
//!   process knows no report of (`unheard`), means: publish again.
//! - A keyed request is refused for good only on two proofs. **The log**: all that stood in the SKU's partition when the request came is
//!   decided, and no row has its id; so whatever any process had accepted by then is found, whether Redis heard of it or not. **Redis'
//!   memory**: it has no marker and has forgotten nothing lately; so no earlier try of unknown outcome is still on its way. What lacks a
//!   proof is published and the writer says.
//! - Redis must hear of every keyed request that went into the log, or may have, without a marker: its marker is written afterwards. If
//!   that fails, its memory has a gap, and it is told to count its memory from now.

mod admit;
mod catalogue;
mod lag;
mod over_limit;
mod publish;
mod redis_check;
mod unheard;

use std::pin::Pin;

use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::cache::Cache;
use crate::clock::Millis;
use crate::ids::{IdempotencyKey, Quantity, SkuId, Ticket, UserId};
use crate::status::StatusReader;
use over_limit::{Claimed, OverLimit};
use redis_check::RedisCheck;

pub use catalogue::{Catalogue, Found, SoldOut};
pub use lag::{Lag, LagClock, watch_partitions};
pub use publish::Publish;
pub use unheard::Unheard;

/// A reserve request as it came in, with types that cannot be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveRequest {
    /// Who buys.
    pub user: UserId,
    /// What.
    pub sku: SkuId,
    /// How many units.
    pub quantity: Quantity,
    /// The client's name for this request.
    pub key: Option<IdempotencyKey>,
    /// When it came, by this process' clock: microseconds since 1970-01-01 UTC. The same number goes into the log.
    pub received_at_us: i64,
}

/// What admission says.
#[derive(Debug)]
pub enum Admitted {
    /// Publish it, then tell [`Publish::settle`] what became of it.
    Publish(Publish),
    /// The same request was accepted before: answer as then.
    Replay(Replay),
    /// Refuse it; nothing happened.
    Refused(Refusal),
}

/// What admission says of many requests, each by its place among them.
pub struct AdmittedMany<'a> {
    /// Said at once.
    pub now: Vec<(usize, Admitted)>,
    /// Not said before Postgres, or the end of the log, was asked: the others need not wait for it.
    pub later: Vec<(usize, Later<'a>)>,
}

/// What will be said of one request.
pub type Later<'a> = Pin<Box<dyn Future<Output = Admitted> + Send + 'a>>;

/// A request that was accepted before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Its reservation.
    pub id: Uuid,
    /// Where it stands in the log, if known.
    pub ticket: Option<Ticket>,
    /// It has its decision; the row is in Postgres.
    pub is_decided: bool,
}

/// Why a request is not published, by precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 503: the SKU's partition is too far behind, or too much waits for admission itself.
    Overloaded {
        /// `outcome: unknown`: nobody can say now whether an earlier request with this key was accepted; this is its reservation's id.
        maybe_accepted: Option<Uuid>,
    },
    /// 503 `OVERLOADED`: Postgres can't be asked about a SKU that is not in memory.
    Unavailable {
        /// As in `Overloaded`.
        maybe_accepted: Option<Uuid>,
    },
    /// 422: the same user used this key for another body or another SKU.
    KeyReused,
    /// 404: the SKU is not configured, by a look-up less than a second old.
    UnknownSku,
    /// 503: the partition waits for an operator.
    Halted {
        /// As in `Overloaded`.
        maybe_accepted: Option<Uuid>,
    },
    /// 503: an operator paused the sale.
    Paused {
        /// As in `Overloaded`.
        maybe_accepted: Option<Uuid>,
    },
    /// 403.
    SaleNotStarted {
        /// When it starts.
        starts_at: Millis,
    },
    /// 403.
    SaleEnded {
        /// When it ended.
        ends_at: Millis,
    },
    /// 409.
    UserLimit {
        /// Units that one user may hold or own.
        limit: u32,
        /// Units that this user may still ask for.
        remaining: u32,
    },
    /// 409.
    SoldOut {
        /// Units left.
        available: i64,
        /// Units are held and some of them may come back.
        holds_pending: bool,
    },
}

impl Refusal {
    /// The reservation's id, if nobody can say now whether an earlier request with the same key was accepted.
    pub fn maybe_accepted(&self) -> Option<Uuid> {
        match self {
            Self::Overloaded { maybe_accepted }
            | Self::Unavailable { maybe_accepted }
            | Self::Halted { maybe_accepted }
            | Self::Paused { maybe_accepted } => *maybe_accepted,
            Self::KeyReused
            | Self::UnknownSku
            | Self::SaleNotStarted { .. }
            | Self::SaleEnded { .. }
            | Self::UserLimit { .. }
            | Self::SoldOut { .. } => None,
        }
    }
}

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Admission {
    catalogue: Catalogue,
    redis: Option<RedisCheck>,
    over_limit: Option<OverLimit>,
    cache: Option<Cache>,
    status: StatusReader,
    unheard: Unheard,
}

impl Admission {
    /// Starts the tasks that ask Redis and Postgres for many requests at once; they end when the last handle is gone and what is queued is done.
    /// Without a `cache` everything is admitted unchecked. `status` looks up keyed requests that would be refused.
    pub fn start(cache: Option<Cache>, status: StatusReader, catalogue: Catalogue, tasks: &TaskTracker) -> Self {
        let unheard = Unheard::default();
        let redis = cache.clone().map(|cache| RedisCheck::start(cache, unheard.clone(), tasks));
        let over_limit = cache.clone().map(|cache| OverLimit::start(catalogue.store().clone(), cache, tasks));
        Self { catalogue, redis, over_limit, cache, status, unheard }
    }

    /// Where decisions that are heard are noted.
    pub fn unheard(&self) -> Unheard {
        self.unheard.clone()
    }

    /// Units of `sku` that `user` has asked for and that are not decided: a hint. `None` = nobody can say.
    pub async fn undecided_units(&self, user: &UserId, sku: &SkuId, now: Millis) -> Option<u64> {
        self.cache.as_ref()?.undecided_units(user, sku, now.div_euclid(60_000)).await.ok()
    }

    async fn units_of_user(&self, claimed: Claimed) -> Option<u64> {
        self.over_limit.as_ref()?.units(claimed).await
    }

    /// Decides whether `request` may go into the log. Waits about [`crate::limits::REDIS_DEADLINE`] for Redis at most; for unknown SKUs
    /// also up to [`crate::limits::READ_DEADLINE`] for Postgres, for users who have reached their limit by Redis' decided units up to
    /// [`crate::limits::OVER_LIMIT_CONFIRM_WAIT`], and for keyed requests that would be refused up to
    /// [`crate::limits::ABSENCE_PROOF_WAIT`] for a look at Postgres and at the log's end.
    pub async fn admit(&self, request: &ReserveRequest) -> Admitted {
        admit::admit(self, request).await
    }

    /// The same for up to [`crate::limits::RESERVATIONS_PER_CALL_MAX`] requests, in their order, with one call to Redis, as if each were asked after
    /// the one before it.
    pub async fn admit_many<'a>(&'a self, requests: &'a [ReserveRequest]) -> AdmittedMany<'a> {
        admit::admit_many(self, requests).await
    }
}
