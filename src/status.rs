//! Status: where a request stands, read from Postgres and the log, many requests in one query.
//!
//! In the flow: the way back, consumer > store > **status** > http. Numbers that an answer rests on are read **after** its request came,
//! in this order: positions first, then rows ([`Store::load_statuses`] does both), both from the primary; log ends from the leaders. So
//!
//! - a row is the truth;
//! - no row and an offset below the position: there is no decision, and there never will be one;
//! - an offset at or above the position, inside the log: QUEUED;
//! - without a ticket, absence is proved by waiting until every partition has been decided up to a log end read meanwhile (`absence`), and
//!   only said of what can't be on its way into the log any more (`landing`).
//!
//! What can't be asked is never answered with absence. Queries collect their callers by natural batching (`reads`), proofs are shared.

mod absence;
mod landing;
mod progress;
mod reads;
mod within_partition;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use metrics::Counter;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::clock::Clock;
use crate::ids::Ticket;
use crate::kafka::LogEnds;
use crate::limits;
use crate::store::{PartitionRow, ReservationFilter, ReservationPage, ReservationRow, Store};
use crate::telemetry::metrics::STATUS_NOT_FOUND_AFTER_TICKET;

use landing::Landing;
use progress::Progress;

/// Where a reservation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It has its decision.
    Decided(Box<ReservationRow>),
    /// It is in the log, not decided.
    Queued(Queued),
    /// There is no such reservation: 404.
    Absent,
    /// Could not be found out: 503 `STATUS_UNAVAILABLE`.
    Unavailable,
}

/// A request that waits for its decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Where it stands in the log.
    pub ticket: Ticket,
    /// Requests ahead of it, 0 = next: an estimate where records are packed. Absent if nobody could say.
    pub queue_position: Option<u64>,
    /// When its decision may be expected, at least [`limits::ETA_MIN`]. Absent if nobody could say, or its partition is halted.
    pub eta: Option<Duration>,
}

/// What one read says about one id.
#[derive(Clone, Debug)]
pub struct StatusAnswer {
    /// Its decision; `None` = it had none when the positions below were read.
    pub row: Option<ReservationRow>,
    /// Every partition of the topic, read before the row.
    pub partitions: Arc<Vec<PartitionRow>>,
}

/// Postgres could not be asked in time, or too many are asking. Logged where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not read the status")]
pub struct StatusUnavailable;

/// Answers where reservations stand; cheap to clone. Its tasks end with the last handle.
#[derive(Clone)]
pub struct StatusReader {
    reads: mpsc::Sender<reads::Ask>,
    proofs: mpsc::Sender<absence::Ask>,
    partition_proofs: mpsc::Sender<within_partition::Ask>,
    log_ends: LogEnds,
    progress: Arc<Progress>,
    landing: Arc<Landing>,
    clock: Arc<dyn Clock>,
    store: Store,
    walks: Arc<Semaphore>,
    reads_of_many: Arc<Semaphore>,
    not_found_after_ticket: Counter,
    _tasks: TaskTracker,
}

impl StatusReader {
    /// A reader of `store` and of the log behind `log_ends`; `clock` tells how old an id is. Needs a tokio runtime.
    pub fn start(store: Store, log_ends: LogEnds, clock: Arc<dyn Clock>) -> Self {
        let (reads, read_asks) = mpsc::channel(limits::STATUS_QUEUE_MAX);
        let (proofs, proof_asks) = mpsc::channel(limits::STATUS_QUEUE_MAX);
        let progress = Arc::new(Progress::default());
        let tasks = TaskTracker::new();
        tasks.spawn(reads::serve(store.clone(), Arc::clone(&progress), read_asks));
        tasks.spawn(absence::serve(store.clone(), log_ends.clone(), proof_asks));
        let (partition_proofs, partition_asks) = mpsc::channel(limits::STATUS_QUEUE_MAX);
        let sources = within_partition::Sources {
            store: store.clone(),
            log_ends: log_ends.clone(),
            progress: Arc::clone(&progress),
        };
        tasks.spawn(within_partition::serve(sources, partition_asks));
        let not_found_after_ticket = metrics::counter!(STATUS_NOT_FOUND_AFTER_TICKET);
        let landing = Arc::new(Landing::default());
        let walks = Arc::new(Semaphore::new(limits::LIST_WALKS_AT_ONCE));
        let reads_of_many = Arc::new(Semaphore::new(limits::STATUS_READS_OF_MANY_AT_ONCE));
        Self {
            reads,
            proofs,
            partition_proofs,
            log_ends,
            progress,
            landing,
            clock,
            store,
            walks,
            reads_of_many,
            not_found_after_ticket,
            _tasks: tasks,
        }
    }

    /// Positions and the id's row, read after this call began, together with whatever else is asked for.
    ///
    /// # Errors
    /// [`StatusUnavailable`], at the latest after [`limits::READ_DEADLINE`].
    pub async fn read(&self, id: Uuid) -> Result<StatusAnswer, StatusUnavailable> {
        let (ask, answered) = reads::Ask::new(id);
        self.reads.try_send(ask).map_err(|_| StatusUnavailable)?;
        match tokio::time::timeout(limits::READ_DEADLINE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(StatusUnavailable),
        }
    }

    /// The rows of those of up to [`limits::STATUS_READ_MAX`] ids that are decided, read after this call began, in one query of their own.
    ///
    /// # Errors
    /// [`StatusUnavailable`], at the latest after [`limits::READ_DEADLINE`].
    pub async fn read_many(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, ReservationRow>, StatusUnavailable> {
        let read = async {
            let _turn = self.reads_of_many.acquire().await.ok();
            self.store.load_statuses(ids).await
        };
        match tokio::time::timeout(limits::READ_DEADLINE, read).await {
            Ok(Ok(read)) => {
                self.progress.observe_positions(&read.partitions, Instant::now().into_std());
                Ok(read.reservations)
            }
            Ok(Err(error)) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read many statuses");
                Err(StatusUnavailable)
            }
            Err(_) => Err(StatusUnavailable),
        }
    }

    /// The same, and those that are missing are proved to be absent, or waited for.
    ///
    /// # Errors
    /// [`StatusUnavailable`] also if one of them can be neither.
    pub async fn find_many(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, ReservationRow>, StatusUnavailable> {
        let mut rows = self.read_many(ids).await?;
        // All of them share one round.
        let missing = ids.iter().filter(|id| !rows.contains_key(id)).map(|id| self.prove_absence(*id));
        for found in join_all(missing).await {
            match found {
                Found::Decided(row) => drop(rows.insert(row.id, *row)),
                Found::Absent => {}
                Found::Queued(_) | Found::Unavailable => return Err(StatusUnavailable),
            }
        }
        Ok(rows)
    }

    /// A page of decided reservations, see [`Store::list_reservations`]. Lists that have to walk the table wait for each other.
    ///
    /// # Errors
    /// [`StatusUnavailable`], at the latest after twice [`limits::READ_DEADLINE`].
    pub async fn list(&self, filter: &ReservationFilter) -> Result<ReservationPage, StatusUnavailable> {
        let turn = async { if filter.is_indexed() { None } else { self.walks.acquire().await.ok() } };
        let Ok(_turn) = tokio::time::timeout(limits::READ_DEADLINE, turn).await else { return Err(StatusUnavailable) };
        self.store.list_reservations(filter, limits::LIST_EXAMINED_MAX).await.map_err(|error| {
            tracing::debug!(error = &error as &dyn std::error::Error, "could not list reservations");
            StatusUnavailable
        })
    }

    /// Where the reservation `id` stands; `ticket` is what the client shows, true or made up.
    pub async fn find(&self, id: Uuid, ticket: Option<Ticket>) -> Found {
        let Ok(answer) = self.read(id).await else {
            // Not QUEUED: its client may have seen the decision already, and a status never goes backwards.
            return Found::Unavailable;
        };
        match (answer.row, ticket) {
            (Some(row), _) => Found::Decided(Box::new(row)),
            (None, Some(ticket)) => self.find_undecided(ticket, &answer.partitions).await,
            (None, None) => self.prove_absence(id).await,
        }
    }

    /// Whether the reservation `id` can be found in `partition`, where all of its SKU's requests go: everything that was in it when this
    /// was asked is waited for, so that whatever any process had accepted by then is found. `Decided`, `Absent` or `Unavailable`, within
    /// [`limits::ABSENCE_PROOF_WAIT`].
    pub async fn find_in_partition(&self, id: Uuid, partition: i32) -> Found {
        // In this order, as in `prove_absence`.
        let may_land = self.landing.may_land(id, Instant::now().into_std(), self.clock.now());
        let (ask, answered) = within_partition::Ask::new(id, partition);
        if self.partition_proofs.try_send(ask).is_err() {
            return Found::Unavailable;
        }
        match tokio::time::timeout(limits::ABSENCE_PROOF_WAIT, answered).await {
            Ok(Ok(Found::Absent)) if may_land => Found::Unavailable,
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Found::Unavailable,
        }
    }

    /// Notes that a record is in the log at `ticket`, by its delivery report: it needs no question to the leader to be called QUEUED.
    pub fn observe_delivered(&self, ticket: Ticket) {
        self.progress.observe_end(ticket.partition, ticket.place.offset + 1);
    }

    /// Notes that a client was told now that nobody knows whether `id` is in the log: it is not called absent before it can't land any more.
    pub fn note_unknown(&self, id: Uuid) {
        self.landing.note_unknown(id, Instant::now().into_std());
    }

    /// When a request at `ticket`, delivered just now, may expect its decision, by what is known without asking anybody.
    pub fn eta_of_delivered(&self, ticket: Ticket) -> Option<Duration> {
        self.progress.eta_of_delivered(ticket)
    }

    /// How many commands so many waiting records of `partition` hold, by what tickets of late have shown: an estimate.
    pub fn commands_in(&self, partition: i32, records: i64) -> u64 {
        self.progress.commands_in(partition, u64::try_from(records).unwrap_or(0))
    }

    /// No row was found at `partitions`: what does the ticket say?
    async fn find_undecided(&self, ticket: Ticket, partitions: &[PartitionRow]) -> Found {
        let Some(partition) = partitions.iter().find(|row| row.partition == ticket.partition) else {
            // No partition at all means an empty database, not a made-up ticket.
            return if partitions.is_empty() { Found::Unavailable } else { Found::Absent };
        };
        if ticket.place.offset < partition.position {
            // Lost, or made up by a client; the auditor, who reads the log itself, says which.
            self.not_found_after_ticket.increment(1);
            return Found::Absent;
        }
        if !self.progress.is_inside(ticket) {
            match self.log_ends.watermarks(ticket.partition).await {
                Ok((_, end)) => self.progress.observe_end(ticket.partition, end),
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "could not ask whether a ticket is inside the log"
                    );
                    return Found::Queued(Queued { ticket, queue_position: None, eta: None });
                }
            }
            if !self.progress.is_inside(ticket) {
                return Found::Absent;
            }
        }
        Found::Queued(self.progress.queued(ticket, partition))
    }

    async fn prove_absence(&self, id: Uuid) -> Found {
        // Asked before the log's ends are read: what can't land after this is inside them.
        let may_land = self.landing.may_land(id, Instant::now().into_std(), self.clock.now());
        let (ask, answered) = absence::Ask::new(id);
        if self.proofs.try_send(ask).is_err() {
            return Found::Unavailable;
        }
        match tokio::time::timeout(limits::ABSENCE_PROOF_WAIT, answered).await {
            Ok(Ok(Found::Absent)) if may_land => Found::Unavailable,
            Ok(Ok(found)) => found,
            Ok(Err(_)) | Err(_) => Found::Unavailable,
        }
    }
}
