//! What the handlers of an API process share.

use std::sync::Arc;

use axum::http::HeaderValue;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::problem::{Code, Effect, Problem};
use super::sku_reads::SkuReads;
use crate::admin::SkuAdmin;
use crate::admission::{Admission, Catalogue};
use crate::clock::Clock;
use crate::commands::reservations::ReservationCommands;
use crate::effects::FirstDecision;
use crate::ingress::{Ingress, NotSent};
use crate::status::StatusReader;
use crate::store::{Store, StoreError};
use crate::waiters::{Waiter, Waiters};

/// The parts of an API process. Every one of them is a cheap handle.
pub struct App {
    /// Decides what may go into the log.
    pub admission: Admission,
    /// SKUs, halts and lag in memory.
    pub catalogue: Catalogue,
    /// The way into the log.
    pub ingress: Ingress,
    /// Reads reservations, many at once.
    pub status: StatusReader,
    /// Who waits for a decision here.
    pub waiters: Waiters,
    /// Postgres, for operators' reads.
    pub store: Store,
    /// What operators ask of SKUs.
    pub admin: SkuAdmin,
    /// What clients ask of reservations.
    pub reservations: ReservationCommands,
    /// Reads SKUs, many at once.
    pub sku_reads: SkuReads,
    /// Tells the wall time.
    pub clock: Arc<dyn Clock>,
    /// Publishes that must end well although their client is gone; waited for at shutdown.
    pub publishes: TaskTracker,
    /// Places for open event streams: [`crate::limits::EVENT_STREAMS_MAX`].
    pub event_streams: Arc<Semaphore>,
    /// Places for calls that ask for many reservations: [`crate::limits::RESERVATIONS_CALLS_MAX`].
    pub calls_of_many: Arc<Semaphore>,
    /// Cancelled = the process stops: whoever waits for a decision is told what is known now.
    pub stop_waiting: CancellationToken,
}

impl App {
    /// Waits until `waiter` is woken, and what that brought. `None` = the time is over, or the process stops.
    pub(super) async fn woken(&self, waiter: &mut Waiter, deadline: Instant) -> Option<Option<FirstDecision>> {
        let woken = tokio::time::timeout_at(deadline, waiter.woken());
        self.stop_waiting.run_until_cancelled(woken).await?.ok()
    }
}

/// Handlers' state.
pub type SharedApp = Arc<App>;

/// 503 for a request that is definitely not in the log.
pub(super) fn not_sent(why: NotSent) -> Problem {
    let (code, detail) = match why {
        NotSent::Full => (Code::Overloaded, "too many requests are waiting to be queued"),
        NotSent::Unavailable => (Code::QueueUnavailable, "the queue can't be reached"),
    };
    Problem::unavailable(code, Effect::None, detail)
}

/// 503 for a read without an answer. The cause goes to the log, never to a client.
pub(super) fn unreadable(error: &StoreError) -> Problem {
    tracing::debug!(error = error as &dyn std::error::Error, "could not read for a client");
    status_unavailable()
}

/// 503 `STATUS_UNAVAILABLE`.
pub(super) fn status_unavailable() -> Problem {
    Problem::new(Code::StatusUnavailable, "the state can't be read now").retry_after(1)
}

/// The value of `Location`.
pub(super) fn location(path: &str) -> HeaderValue {
    HeaderValue::from_str(path).expect("made of ids and numbers, which are legal in a header")
}
