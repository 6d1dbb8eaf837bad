//! Redis: hints only. Empty, stale or down, the service is slower or stricter, never wrong.
//!
//! One script call serves many requests, on the way in ([`Cache::admit`], [`Cache::settle`]) and after COMMIT
//! ([`Cache::apply_effects`]). All keys stand below one prefix:
//!
//! | key | what | life |
//! |---|---|---|
//! | `u:{sku}` | hash: user -> units as last decided, absolute | [`limits::USER_UNITS_TTL`] |
//! | `q:{sku}:{minute}` | hash: user -> units accepted in that minute and not decided yet | [`limits::PROVISIONAL_TTL`] |
//! | `k:{marker name}` | marker of a keyed request: state, reservation id, fingerprint, ticket | [`limits::KEY_MARKER_TTL`] |
//! | `birth` | Redis' time when this instance was first met empty: how far back it can vouch for absence | for ever |
//! | `f:{partition}` | fence: epoch and position of the last effects that were applied | [`limits::USER_UNITS_TTL`] |
//! | `decisions` | pub/sub channel: one [`message`] per batch | |
//!
//! Vouching for absence presumes an instance that keeps what it was told until it expires, or forgets everything at once: no
//! persistence, `maxmemory-policy noeviction`. One server, not a cluster: the scripts make their keys themselves.
//!
//! Calls on the path of a request have a deadline of [`limits::REDIS_DEADLINE`] and a breaker; everything else runs beside it with
//! [`limits::REDIS_BACKGROUND_DEADLINE`].

mod admit;
mod breaker;
mod channel;
mod connection;
mod effects;
mod forget;
pub mod message;
mod settle;
mod undecided;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::ConnectionManager;
use tracing::warn;
use uuid::Uuid;

use crate::effects::BatchEffects;
use crate::ids::{Quantity, SkuId, Ticket, UserId};
use crate::limits;
use breaker::Breaker;
pub use channel::Subscription;

/// Why Redis did not answer. Nobody's request fails because of it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The URL is not one. The only error of [`Cache::new`].
    #[error("not a redis URL")]
    Url {
        /// What is wrong with it.
        #[source]
        source: redis::RedisError,
    },
    /// The server could not be asked, or refused.
    #[error("could not {attempt}")]
    Query {
        /// What was attempted.
        attempt: &'static str,
        /// Why it failed.
        #[source]
        source: redis::RedisError,
    },
    /// No answer within the deadline.
    #[error("no answer in time: {attempt}")]
    Deadline {
        /// What was attempted.
        attempt: &'static str,
    },
    /// Not asked, because it failed [`limits::BREAKER_FAILURES`] times in a row lately.
    #[error("redis is spared after failures")]
    Spared,
    /// An answer that this build can't read.
    #[error("unreadable answer: {attempt}")]
    Unreadable {
        /// What was attempted.
        attempt: &'static str,
    },
}

/// Handle to Redis; cheap to clone. Connects when first used and again whenever the connection is lost.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

struct Inner {
    client: redis::Client,
    prefix: String,
    /// For calls with a request behind them: never behind a big write in one socket.
    front: ConnectionManager,
    /// Of those calls.
    deadline: Duration,
    /// For everything else.
    background: ConnectionManager,
    breaker: Mutex<Breaker>,
    scripts: connection::Scripts,
}

/// One request as the admission script sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionItem {
    /// Who buys.
    pub user: UserId,
    /// What.
    pub sku: SkuId,
    /// How many units.
    pub quantity: Quantity,
    /// The SKU's limit per user.
    pub limit: u32,
    /// Minute of `received_at` (since 1970-01-01 UTC): names the hash that the provisional units are taken from.
    pub minute: i64,
    /// Of a keyed request.
    pub key: Option<KeyMarker>,
    /// The request will be refused for another reason unless its key is known: only its key is looked up, nothing is written.
    pub refused_already: bool,
}

/// What a keyed request is recognised by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyMarker {
    /// [`crate::ids::key_marker_name`].
    pub name: Uuid,
    /// [`crate::ids::keyed_reservation_id`].
    pub id: Uuid,
    /// [`crate::ids::fingerprint`].
    pub fingerprint: u64,
}

/// What Redis says about one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmissionAnswer {
    /// Within the limit: provisional units are taken and, for a keyed request, a pending marker is written.
    Ok,
    /// The key is not known here; nothing was written (`refused_already`).
    Absent,
    /// This very request was delivered or decided before.
    Replay {
        /// Its reservation.
        id: Uuid,
        /// Where it stands in the log, if that was told.
        ticket: Option<Ticket>,
    },
    /// This very request was tried before and nobody knows what became of it: publish it again.
    Pending {
        /// Minute whose hash its units were taken from already.
        minute: i64,
    },
    /// The key was used for another body, or for another SKU.
    KeyReused,
    /// The user would hold, own or have asked for more than the limit. Nothing was written.
    OverLimit {
        /// Units that the user holds and owns, as the writer told Redis.
        decided: u64,
        /// Units that the user has asked for lately and that are not decided, as far as Redis knows.
        undecided: u64,
    },
}

/// The answers of one admission call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionRead {
    /// One per item, same order.
    pub answers: Vec<AdmissionAnswer>,
    /// How long this Redis has remembered everything that it was told.
    pub memory_age: Duration,
}

/// What became of an admitted request on its way into the log, for Redis to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettleItem {
    /// In the log: its key is known from now on.
    Delivered {
        /// Of the keyed request; others need no call.
        key: KeyMarker,
        /// Where it stands.
        ticket: Ticket,
    },
    /// It may be in the log, and no marker says so: a pending one is written, unless another attempt wrote one meanwhile.
    Unknown {
        /// Of the keyed request; others need no call.
        key: KeyMarker,
        /// The minute that its record names.
        minute: i64,
    },
    /// Definitely not in the log: the provisional units go back and a marker that is still pending is removed. A key that another
    /// attempt made known meanwhile, or that was tried again, keeps both.
    NotSent {
        /// Who asked.
        user: UserId,
        /// For what.
        sku: SkuId,
        /// How many units were taken.
        quantity: Quantity,
        /// The minute that they were taken from.
        minute: i64,
        /// Of a keyed request.
        key: Option<KeyMarker>,
    },
}

impl Cache {
    /// A handle for the server at `redis_url`; keys stand below `prefix`. Connects to nothing yet. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// [`CacheError::Url`].
    pub fn new(redis_url: &str, prefix: &str) -> Result<Self, CacheError> {
        Self::with_deadline(redis_url, prefix, limits::REDIS_DEADLINE)
    }

    /// Units of `sku` that `user` has asked for lately and that are not decided, as far as is known here; `minute` is the present one.
    ///
    /// # Errors
    /// [`CacheError`] within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn undecided_units(&self, user: &UserId, sku: &SkuId, minute: i64) -> Result<u64, CacheError> {
        undecided::read(&self.inner, user, sku, minute).await
    }

    /// The same with another deadline for the calls on the path of a request: tests on a busy machine are not about it.
    ///
    /// # Errors
    /// [`CacheError::Url`].
    pub fn with_deadline(redis_url: &str, prefix: &str, deadline: Duration) -> Result<Self, CacheError> {
        let client = connection::client(redis_url)?;
        let front = connection::lazy(&client)?;
        let background = connection::lazy(&client)?;
        let inner = Inner {
            client,
            prefix: prefix.to_owned(),
            front,
            deadline,
            background,
            breaker: Mutex::new(Breaker::default()),
            scripts: connection::Scripts::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Looks up keys, checks limits and takes provisional units for up to [`limits::ADMISSION_CALL_MAX`] requests, as if each were
    /// asked after the one before it. `is_memory_new` = keyed requests may be in the log that Redis could not be told of: it counts its
    /// memory from now. That can be said without any request.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_DEADLINE`]; the call may have had its effects nevertheless.
    pub async fn admit(&self, items: &[AdmissionItem], is_memory_new: bool) -> Result<AdmissionRead, CacheError> {
        admit::call(&self.inner, items, is_memory_new).await
    }

    /// Tells Redis what became of requests. Best effort: what is lost here expires.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn settle(&self, items: &[SettleItem]) -> Result<(), CacheError> {
        settle::call(&self.inner, items).await
    }

    /// Writes the hints of a committed batch and publishes its [`message`], unless effects of a newer or the same (epoch, position)
    /// were applied before; returns whether it did.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn apply_effects(&self, effects: &BatchEffects) -> Result<bool, CacheError> {
        effects::call(&self.inner, effects).await
    }

    /// Forgets what these users hold and own of these SKUs, whoever told it and however new it was; at most
    /// [`limits::OVER_LIMIT_READ_MAX`] of them.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn forget_units(&self, users: &[(&UserId, &SkuId)]) -> Result<(), CacheError> {
        forget::call(&self.inner, users).await
    }

    /// Listens to the messages of all batches from now on.
    ///
    /// # Errors
    /// [`CacheError`], within [`limits::REDIS_BACKGROUND_DEADLINE`].
    pub async fn subscribe(&self) -> Result<Subscription, CacheError> {
        channel::subscribe(&self.inner).await
    }

    /// Connects now, so that the first request does not pay for it. A failure is no news: the next call connects.
    pub async fn connect(&self) {
        for connection in [&self.inner.front, &self.inner.background] {
            let mut connection = connection.clone();
            let ping = async { redis::cmd("PING").query_async::<()>(&mut connection).await };
            if let Err(error) = connection::within(limits::REDIS_BACKGROUND_DEADLINE, "connect to redis", ping).await {
                warn!(error = &error as &dyn std::error::Error, "redis is away; going on without");
                return;
            }
        }
    }
}

impl Inner {
    fn channel(&self) -> String {
        format!("{}decisions", self.prefix)
    }
}
