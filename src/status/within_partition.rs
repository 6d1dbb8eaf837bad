//! Proofs of absence within one partition, for keyed requests that would be refused: a crowd at a sold-out SKU asks for thousands a second.
//!
//! All requests of a SKU go to its partition. So: read where that partition ends (after the question came), wait until its position has passed
//! that end, and read the row. All who come within one pace share the look at the end and the query.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Found;
use super::progress::Progress;
use crate::batcher::gather_paced;
use crate::kafka::LogEnds;
use crate::limits;
use crate::pace::Pace;
use crate::store::{PartitionRow, Store};

/// One caller's question. Dropped without a word, it says that nobody knows.
pub(super) struct Ask {
    id: Uuid,
    partition: i32,
    answer: oneshot::Sender<Found>,
}

impl Ask {
    /// A question, and where its answer arrives: `Decided`, or `Absent` as far as the log and the rows say.
    pub(super) fn new(id: Uuid, partition: i32) -> (Self, oneshot::Receiver<Found>) {
        let (answer, answered) = oneshot::channel();
        (Self { id, partition, answer }, answered)
    }

    fn say(self, found: Found) {
        let _ = self.answer.send(found); // its caller has gone
    }
}

/// Where the proofs read.
#[derive(Clone)]
pub(super) struct Sources {
    pub(super) store: Store,
    pub(super) log_ends: LogEnds,
    pub(super) progress: Arc<Progress>,
}

/// Answers until nobody can ask any more: at most [`limits::PARTITION_PROOFS_AT_ONCE`] proofs at once, so that those of a partition that is behind
/// stop no other, each for at most [`limits::STATUS_READ_MAX`] ids.
pub(super) async fn serve(sources: Sources, mut asks: mpsc::Receiver<Ask>) {
    let mut running = JoinSet::new();
    let mut pace = Pace::new(limits::PARTITION_PROOF_PACE, Instant::now().into_std());
    let mut taken = Vec::with_capacity(limits::STATUS_READ_MAX);
    while asks.recv_many(&mut taken, limits::STATUS_READ_MAX).await > 0 {
        gather_paced(&mut asks, &mut taken, limits::STATUS_READ_MAX, &mut pace).await;
        running.spawn(prove(sources.clone(), std::mem::take(&mut taken)));
        while running.try_join_next().is_some() {}
        // What comes meanwhile shares the next proof.
        while running.len() >= limits::PARTITION_PROOFS_AT_ONCE {
            running.join_next().await;
        }
    }
}

/// Goes on until all are answered, or have gone away.
async fn prove(sources: Sources, mut open: Vec<Ask>) {
    let Sources { store, log_ends, progress } = sources;
    let partitions: BTreeSet<i32> = open.iter().map(|ask| ask.partition).collect();
    let read = partitions.into_iter().map(async |partition| (partition, log_ends.watermarks(partition).await));
    let ends: BTreeMap<i32, i64> = join_all(read)
        .await
        .into_iter()
        .filter_map(|(partition, ends)| match ends {
            Ok((_, end)) => Some((partition, end)),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    partition,
                    "could not read where the log ends"
                );
                None
            }
        })
        .collect();
    loop {
        // Callers that have gone away need no query, and without an end there is nothing to prove.
        open.retain(|ask| !ask.answer.is_closed() && ends.contains_key(&ask.partition));
        if open.is_empty() {
            return;
        }
        let ids: Vec<Uuid> = open.iter().map(|ask| ask.id).collect();
        let mut read = match store.load_statuses(&ids).await {
            Ok(read) => read,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not look for keyed requests");
                return;
            }
        };
        progress.observe_positions(&read.partitions, Instant::now().into_std());
        for ask in std::mem::take(&mut open) {
            match read.reservations.remove(&ask.id) {
                Some(row) => ask.say(Found::Decided(Box::new(row))),
                None if is_passed(&read.partitions, ask.partition, ends[&ask.partition]) => ask.say(Found::Absent),
                None => open.push(ask),
            }
        }
        if !open.is_empty() {
            sleep(limits::ABSENCE_PROOF_EVERY).await;
        }
    }
}

fn is_passed(partitions: &[PartitionRow], partition: i32, end: i64) -> bool {
    partitions.iter().any(|row| row.partition == partition && row.position >= end)
}
