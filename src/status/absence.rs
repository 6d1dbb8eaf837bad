//! Proofs of absence for requests without a ticket.
//!
//! A request with this id may be anywhere in the log, undecided. So: read where every partition ends (after the question came), wait until
//! every partition's position has passed that end, read the row once more. If there still is none, there was no such request. One round of
//! ends serves all who asked before it, and one query for positions serves all open rounds. A request whose publish has an unknown outcome
//! may land behind those ends: `landing` knows which, and whoever asks here takes its word first.

use std::collections::VecDeque;

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use super::Found;
use crate::kafka::LogEnds;
use crate::limits;
use crate::store::{PartitionRow, Store, StoreError};

/// One caller's question.
pub(super) struct Ask {
    id: Uuid,
    deadline: Instant,
    answer: oneshot::Sender<Found>,
}

impl Ask {
    /// A question, and where its answer arrives.
    pub(super) fn new(id: Uuid) -> (Self, oneshot::Receiver<Found>) {
        let (answer, answered) = oneshot::channel();
        let deadline = Instant::now() + limits::ABSENCE_PROOF_WAIT;
        (Self { id, deadline, answer }, answered)
    }

    fn is_open(&self, now: Instant) -> bool {
        !self.answer.is_closed() && now < self.deadline
    }

    fn say(self, found: Found) {
        let _ = self.answer.send(found); // its caller has gone
    }
}

/// Those who asked before these ends were read.
struct Round {
    ends: Vec<(i32, i64)>,
    asks: Vec<Ask>,
}

impl Round {
    /// Whether everything that could be in the log when the round's callers asked is decided.
    fn is_passed(&self, partitions: &[PartitionRow]) -> bool {
        let position_of = |id: i32| partitions.iter().find(|row| row.partition == id).map(|row| row.position);
        self.ends.iter().all(|(id, end)| position_of(*id).is_some_and(|position| position >= *end))
    }
}

/// Answers until nobody can ask any more.
pub(super) async fn serve(store: Store, log_ends: LogEnds, mut asks: mpsc::Receiver<Ask>) {
    let mut rounds: VecDeque<Round> = VecDeque::new();
    let mut came = Vec::new();
    loop {
        if rounds.is_empty() {
            // Nothing to look after: sleep until somebody asks.
            if asks.recv_many(&mut came, limits::STATUS_QUEUE_MAX).await == 0 {
                return;
            }
        } else {
            let pause = tokio::time::sleep(limits::ABSENCE_PROOF_EVERY);
            pause.await;
            while came.len() < limits::STATUS_QUEUE_MAX
                && let Ok(ask) = asks.try_recv()
            {
                came.push(ask);
            }
        }
        if let Err(error) = look(&store, &log_ends, &mut rounds, std::mem::take(&mut came)).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "could not prove absence");
        }
        let now = Instant::now();
        for round in &mut rounds {
            round.asks.retain(|ask| ask.is_open(now)); // dropped = Unavailable
        }
        rounds.retain(|round| !round.asks.is_empty());
    }
}

/// One look at the positions: opens a round for those who came, ends the rounds that are passed.
///
/// # Errors
/// If Postgres can't be asked; rounds stay open then, those who came are dropped, which tells them "unavailable".
async fn look(
    store: &Store,
    log_ends: &LogEnds,
    rounds: &mut VecDeque<Round>,
    came: Vec<Ask>,
) -> Result<(), StoreError> {
    let mut partitions = store.load_partitions().await?;
    if !came.is_empty()
        && !partitions.is_empty()
        && let Some(round) = open_round(log_ends, &partitions, came).await
    {
        rounds.push_back(round);
        // Positions of after the ends: an idle log is passed at once.
        partitions = store.load_partitions().await?;
    }
    while let Some(passed) = rounds.pop_front_if(|round| round.is_passed(&partitions)) {
        conclude(store, passed).await?;
    }
    Ok(())
}

/// Reads all ends at once. `None`, and so "unavailable" for those who came, if a leader can't be asked.
async fn open_round(log_ends: &LogEnds, partitions: &[PartitionRow], asks: Vec<Ask>) -> Option<Round> {
    let read = partitions.iter().map(async |row| {
        let (_, end) = log_ends.watermarks(row.partition).await?;
        Ok::<_, crate::kafka::KafkaError>((row.partition, end))
    });
    match try_join_all(read).await {
        Ok(ends) => Some(Round { ends, asks }),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "could not read the log's ends");
            None
        }
    }
}

/// The final read of a passed round.
async fn conclude(store: &Store, round: Round) -> Result<(), StoreError> {
    let mut asks = round.asks;
    while !asks.is_empty() {
        let some: Vec<Ask> = asks.split_off(asks.len().saturating_sub(limits::STATUS_READ_MAX));
        let read = store.load_statuses(&some.iter().map(|ask| ask.id).collect::<Vec<_>>()).await?;
        for ask in some {
            let row = read.reservations.get(&ask.id).cloned();
            ask.say(row.map_or(Found::Absent, |row| Found::Decided(Box::new(row))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(positions: &[i64]) -> Vec<PartitionRow> {
        let row = |(partition, position): (i32, &i64)| PartitionRow {
            partition,
            epoch: 1,
            position: *position,
            halted_reason: None,
        };
        (0..).zip(positions).map(row).collect()
    }

    #[test]
    fn a_round_is_passed_when_every_partition_is_decided_up_to_its_end() {
        let round = Round { ends: vec![(0, 5), (1, 0), (2, 7)], asks: Vec::new() };
        for (positions, is_passed) in
            [(&[5, 0, 7][..], true), (&[9, 3, 8], true), (&[4, 0, 7], false), (&[5, 0, 6], false), (&[5, 0], false)]
        {
            assert_eq!(round.is_passed(&rows(positions)), is_passed, "{positions:?}");
        }
    }
}
