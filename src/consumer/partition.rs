//! The life of one assigned partition: claim, check the log, decide until something ends it, and again.
//!
//! ```text
//! claim ──> halted in Postgres? ── yes ──> wait for an operator ──> claim
//!   │ no
//! the log is whole? ── no ──> store a halt ──> claim
//!   │ yes
//! fetch, decide ... ── fenced ──> claim again, with jitter, a few times; then the process leaves
//!                   ── contradiction ──> store a halt ──> claim
//!                   ── a newer build's record ──> stop here, loudly, without a stored halt: a newer build goes on
//!                   ── stopped ──> end
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::buffer::buffer;
use super::load::Load;
use super::poll::Control;
use super::progress::{Doing, Progress};
use super::worker::{BatchEnd, NONE_DECIDED, Worker};
use super::{Config, Deps};
use crate::effects::{BatchEffects, Effects};
use crate::kafka::Producer;
use crate::store::{Claim, ClaimError, Writer};
use crate::telemetry::metrics as names;
use crate::{ids, limits, wire};

/// How a partition's task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartitionEnd {
    /// It was told to stop.
    Stopped,
    /// It was fenced again and again while the group said that the partition is ours.
    FencedOut,
}

/// One assigned partition.
pub(super) struct Partition {
    pub partition: i32,
    pub generation: u64,
    pub config: Arc<Config>,
    pub deps: Deps,
    pub controls: mpsc::Sender<Control>,
    /// Publishes ticks.
    pub producer: Producer,
    pub stop: CancellationToken,
    /// What arrives at all partitions of the process.
    pub load: Load,
    /// Where it stands, for the watch.
    pub progress: Arc<Progress>,
}

/// What ends one claim's work.
enum End {
    Stopped,
    Fenced,
    /// Claim again: the position must be read anew.
    ClaimAgain,
    /// This build can't go on; the partition stays as it is until another build comes.
    GivenUp,
}

impl Partition {
    /// Runs until stopped. Never panics on what the log or the database say.
    pub async fn run(self) -> (i32, PartitionEnd) {
        let effects =
            Effects::start(Some(self.deps.cache.clone()), self.deps.waiters.clone(), self.deps.catalogue.clone());
        let mut fenced_count = 0;
        let end = loop {
            let Some((writer, claim)) = self.claim().await else { break PartitionEnd::Stopped };
            let (end, has_committed) = self.work(writer, claim, &effects).await;
            if has_committed {
                fenced_count = 0;
            }
            match end {
                End::Stopped => break PartitionEnd::Stopped,
                End::ClaimAgain => {
                    self.progress.begin(Doing::Pause);
                    if self.pause(jittered(limits::RECLAIM_WAIT)).await.is_stopped() {
                        break PartitionEnd::Stopped;
                    }
                }
                End::GivenUp => {
                    self.stop.cancelled().await;
                    break PartitionEnd::Stopped;
                }
                End::Fenced => {
                    counter!(names::FENCED).increment(1);
                    tracing::warn!(kafka.partition = self.partition, "fenced: another writer claimed the partition");
                    fenced_count += 1;
                    if fenced_count > limits::RECLAIM_ATTEMPTS_MAX {
                        break PartitionEnd::FencedOut;
                    }
                    self.progress.begin(Doing::Pause);
                    self.park().await;
                    if self.pause(jittered(limits::RECLAIM_WAIT * fenced_count)).await.is_stopped() {
                        break PartitionEnd::Stopped;
                    }
                }
            }
        };
        gauge!(names::HALTED, "partition" => self.partition.to_string()).set(0.0);
        effects.stop().await;
        (self.partition, end)
    }

    /// Claims, however long Postgres is away; `None` = stopped.
    async fn claim(&self) -> Option<(Writer, Claim)> {
        let mut wait = limits::RECONNECT_WAIT_MIN;
        let mut had_no_row = false;
        loop {
            self.progress.begin(Doing::Claim);
            let claimed = tokio::select! {
                () = self.stop.cancelled() => return None,
                claimed = Writer::claim(&self.config.writer, self.partition) => claimed,
            };
            match claimed {
                Ok((writer, claim)) => {
                    self.progress.claimed(claim.position);
                    return Some((writer, claim));
                }
                Err(error @ ClaimError::NoRow(_)) if had_no_row => {
                    tracing::error!(
                        kafka.partition = self.partition,
                        error = &error as &dyn std::error::Error,
                        "can't claim the partition"
                    );
                    wait = limits::RECONNECT_WAIT_MAX;
                }
                Err(error) => {
                    // `flashsale migrate` may be between the tables and their rows just now.
                    if matches!(error, ClaimError::NoRow(_)) {
                        (had_no_row, wait) = (true, limits::RECONNECT_WAIT_MAX);
                    }
                    tracing::warn!(
                        kafka.partition = self.partition,
                        error = &error as &dyn std::error::Error,
                        "can't claim the partition yet"
                    );
                }
            }
            if self.pause(jittered(wait)).await.is_stopped() {
                return None;
            }
            wait = (wait * 2).min(limits::RECONNECT_WAIT_MAX);
        }
    }

    /// Everything between one claim and its end; also whether a batch was committed.
    async fn work(&self, mut writer: Writer, claim: Claim, effects: &Effects) -> (End, bool) {
        if let Some(reason) = &claim.halted_reason {
            return (self.wait_for_operator(reason).await, false);
        }
        self.progress.begin(Doing::CheckLog);
        if let Err(error) = writer.remember().await {
            tracing::warn!(
                kafka.partition = self.partition,
                error = &error as &dyn std::error::Error,
                "could not read the partition yet"
            );
            return (End::ClaimAgain, false);
        }
        // The predecessor may have died with hints that Redis never heard.
        effects.forget(writer.moved_skus());
        match self.check_log(&claim).await {
            LogCheck::Whole => {}
            LogCheck::Stopped => return (End::Stopped, false),
            LogCheck::Broken(reason) => return (self.halt(&mut writer, claim.position, &reason).await, false),
        }
        tracing::info!(
            kafka.partition = self.partition,
            epoch = claim.epoch,
            position = claim.position,
            "claimed the partition"
        );
        gauge!(names::HALTED, "partition" => self.partition.to_string()).set(0.0);
        let (records, received) = buffer();
        let decided = Arc::new(AtomicI64::new(NONE_DECIDED));
        let fetch = Control::Fetch {
            generation: self.generation,
            partition: self.partition,
            position: claim.position,
            records,
            decided: Arc::clone(&decided),
        };
        if self.controls.send(fetch).await.is_err() {
            return (End::Stopped, false);
        }
        let mut worker = Worker::new(self, writer, &claim, received, Arc::clone(&decided), effects);
        let end = beside(worker.decide_batches(), self.repeat_last_effects(&claim, effects, &decided)).await;
        let has_committed = worker.position() > claim.position;
        let end = match end {
            BatchEnd::Stopped => End::Stopped,
            BatchEnd::Fenced => End::Fenced,
            BatchEnd::ClaimAgain => End::ClaimAgain,
            BatchEnd::Halt(reason) => {
                let position = worker.position();
                self.halt(&mut worker.into_writer(), position, &reason).await
            }
            BatchEnd::NewerBuild { offset, version } => {
                self.progress.begin(Doing::Halted);
                self.park().await;
                gauge!(names::HALTED, "partition" => self.partition.to_string()).set(1.0);
                tracing::error!(
                    kafka.partition = self.partition,
                    offset,
                    version,
                    "a record of a newer build: this build gives the partition up, deploy the newer one"
                );
                End::GivenUp
            }
        };
        (end, has_committed)
    }

    /// A claim repeats the effects of the last batch: its predecessor may have died between COMMIT and telling anyone. Nobody waits for it:
    /// effects go out in order, so once a batch of this worker is `decided`, it is too late, and that batch speaks for itself.
    async fn repeat_last_effects(&self, claim: &Claim, effects: &Effects, decided: &AtomicI64) {
        match self.deps.store.load_last_effects(self.partition).await {
            Ok(_) if decided.load(Ordering::Relaxed) != NONE_DECIDED => {
                tracing::debug!(kafka.partition = self.partition, "a batch came before the last effects were repeated");
            }
            Ok(last) => effects.submit(BatchEffects { epoch: claim.epoch, position: claim.position, ..last }),
            // Hints only: the sweep and the catalogue's refresh find out by themselves.
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not repeat the last effects");
            }
        }
    }

    /// Whether the log still holds what was decided: nothing undecided is gone, nothing decided was rewritten.
    async fn check_log(&self, claim: &Claim) -> LogCheck {
        loop {
            match self.log_fault(claim).await {
                Ok(None) => return LogCheck::Whole,
                Ok(Some(reason)) => return LogCheck::Broken(reason),
                Err(error) => {
                    tracing::warn!(
                        kafka.partition = self.partition,
                        error = &error as &dyn std::error::Error,
                        "can't check the log yet"
                    );
                }
            }
            if self.pause(jittered(limits::RECONNECT_WAIT_MAX)).await.is_stopped() {
                return LogCheck::Stopped;
            }
        }
    }

    async fn log_fault(&self, claim: &Claim) -> Result<Option<String>, crate::kafka::KafkaError> {
        let log = &self.deps.log_ends;
        let (low, high) = log.watermarks(self.partition).await?;
        if let Some(reason) = fault_of_ends(low, high, claim.position) {
            return Ok(Some(reason));
        }
        let Some(digest) = claim.last_digest.filter(|_| claim.position > low) else {
            return Ok(None); // Nothing decided yet, or retention took the last decided record.
        };
        let offset = claim.position - 1;
        Ok(match log.read_record(self.partition, offset).await? {
            Some(record) if wire::digest(&record.payload) == digest => None,
            Some(_) => Some(format!("the log was rewritten: the record at {offset} is not the one that was decided")),
            None => Some(format!("the log was rewritten: the decided record at {offset} is gone")),
        })
    }

    /// Stores a halt and pages. If it can't be stored, the next claim meets the same contradiction again.
    async fn halt(&self, writer: &mut Writer, position: i64, reason: &str) -> End {
        self.progress.begin(Doing::Halted);
        self.park().await;
        gauge!(names::HALTED, "partition" => self.partition.to_string()).set(1.0);
        tracing::error!(kafka.partition = self.partition, position, reason, "partition halted");
        // A halt often follows a doubt, which left the writer without a connection.
        let stored = match writer.halt(position, reason).await {
            Ok(stored) => Ok(stored),
            Err(_) => match writer.recover().await {
                Ok(_) => writer.halt(position, reason).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = stored {
            tracing::warn!(
                kafka.partition = self.partition,
                error = &error as &dyn std::error::Error,
                "can't store the halt yet"
            );
        }
        if self.pause(jittered(limits::HALT_RECHECK_EVERY)).await.is_stopped() { End::Stopped } else { End::ClaimAgain }
    }

    /// Waits until the stored halt is cleared.
    async fn wait_for_operator(&self, reason: &str) -> End {
        self.progress.begin(Doing::Halted);
        self.park().await;
        gauge!(names::HALTED, "partition" => self.partition.to_string()).set(1.0);
        tracing::error!(kafka.partition = self.partition, reason, "partition is halted until an operator resumes it");
        loop {
            if self.pause(jittered(limits::HALT_RECHECK_EVERY)).await.is_stopped() {
                return End::Stopped;
            }
            let is_halted = match self.deps.store.load_partitions().await {
                Ok(rows) => rows.iter().any(|row| row.partition == self.partition && row.halted_reason.is_some()),
                Err(_) => true, // Postgres is away: nothing to decide anyway.
            };
            if !is_halted {
                tracing::info!(kafka.partition = self.partition, "partition resumed by an operator");
                return End::ClaimAgain;
            }
        }
    }

    async fn park(&self) {
        // The poll thread is gone only when the process stops.
        let _ = self.controls.send(Control::Park { partition: self.partition }).await;
    }

    async fn pause(&self, wait: std::time::Duration) -> Pause {
        tokio::select! {
            () = self.stop.cancelled() => Pause::Stopped,
            () = sleep(wait) => Pause::Over,
        }
    }
}

/// Runs `main` to its end, and `side` as far as it gets meanwhile; in one task, so that between two waits of the one the other can't act.
async fn beside<T>(main: impl Future<Output = T>, side: impl Future<Output = ()>) -> T {
    tokio::pin!(main);
    tokio::select! {
        biased;
        done = &mut main => done,
        () = side => main.await,
    }
}

enum LogCheck {
    Whole,
    Broken(String),
    Stopped,
}

#[derive(PartialEq, Eq)]
enum Pause {
    Over,
    Stopped,
}

impl Pause {
    fn is_stopped(&self) -> bool {
        *self == Self::Stopped
    }
}

/// What the log's ends say against a position: undecided records that retention took, or a log that is shorter than what was decided.
pub(super) fn fault_of_ends(low: i64, high: i64, position: i64) -> Option<String> {
    if position < low {
        Some(format!("the log starts at {low}: undecided records from {position} on are gone"))
    } else if position > high {
        Some(format!("the log ends at {high}, below the position {position}: it was cut or replaced"))
    } else {
        None
    }
}

/// Half to one and a half of `wait`: many partitions that lost the same server must not come back in step.
fn jittered(wait: std::time::Duration) -> std::time::Duration {
    let share = f64::from(ids::fresh_token().as_bytes()[0]) / 255.0;
    wait.mul_f64(0.5 + share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_must_lie_within_the_log() {
        assert_eq!(fault_of_ends(0, 0, 0), None);
        assert_eq!(fault_of_ends(3, 9, 3), None);
        assert_eq!(fault_of_ends(3, 9, 9), None);
        assert!(fault_of_ends(3, 9, 2).is_some_and(|r| r.contains("gone")));
        assert!(fault_of_ends(3, 9, 10).is_some_and(|r| r.contains("cut or replaced")));
    }
}
