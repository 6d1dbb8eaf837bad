//! Reads of many callers in one query: whoever asks while queries are running shares the next one.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::progress::Progress;
use super::{StatusAnswer, StatusUnavailable};
use crate::batcher::gather_paced;
use crate::limits;
use crate::pace::Pace;
use crate::store::Store;

/// One caller's question.
pub(super) struct Ask {
    id: Uuid,
    answer: oneshot::Sender<Result<StatusAnswer, StatusUnavailable>>,
}

impl Ask {
    /// A question, and where its answer arrives.
    pub(super) fn new(id: Uuid) -> (Self, oneshot::Receiver<Result<StatusAnswer, StatusUnavailable>>) {
        let (answer, answered) = oneshot::channel();
        (Self { id, answer }, answered)
    }
}

/// Answers until nobody can ask any more: at most [`limits::STATUS_READS_AT_ONCE`] queries at once, so that a slow one stops nobody,
/// each of at most [`limits::STATUS_READ_MAX`] ids.
pub(super) async fn serve(store: Store, progress: Arc<Progress>, mut asks: mpsc::Receiver<Ask>) {
    let mut running = JoinSet::new();
    let mut taken = Vec::with_capacity(limits::STATUS_READ_MAX);
    let mut pace = Pace::new(limits::STATUS_READ_PACE, Instant::now().into_std());
    while asks.recv_many(&mut taken, limits::STATUS_READ_MAX).await > 0 {
        gather_paced(&mut asks, &mut taken, limits::STATUS_READ_MAX, &mut pace).await;
        // Callers that have gone away need no query.
        let asked: Vec<Ask> = taken.drain(..).filter(|ask| !ask.answer.is_closed()).collect();
        if !asked.is_empty() {
            running.spawn(read(store.clone(), Arc::clone(&progress), asked));
        }
        // Wait for a free place first: what comes meanwhile shares the next query.
        while running.len() >= limits::STATUS_READS_AT_ONCE {
            running.join_next().await;
        }
    }
}

async fn read(store: Store, progress: Arc<Progress>, asked: Vec<Ask>) {
    let ids: Vec<Uuid> = asked.iter().map(|ask| ask.id).collect();
    match store.load_statuses(&ids).await {
        Ok(read) => {
            progress.observe_positions(&read.partitions, Instant::now().into_std());
            for ask in asked {
                let row = read.reservations.get(&ask.id).cloned();
                let _ = ask.answer.send(Ok(StatusAnswer { row, partitions: Arc::clone(&read.partitions) })); // gone meanwhile
            }
        }
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, reads = asked.len(), "could not read statuses");
            for ask in asked {
                let _ = ask.answer.send(Err(StatusUnavailable)); // as above
            }
        }
    }
}
