//! A partition's worker between a claim and its end: gather, decide, commit, effects; batch after batch.
//!
//! Natural batching: while one batch commits, the next gathers in the buffer; nobody waits for a timer to fill it. Under load batches are
//! paced ([`super::load`]), because a transaction has a fixed price.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Gauge, counter, gauge, histogram};
use tokio::time::sleep;

use super::buffer::Records;
use super::gather::{Batch, Gather, Obstacle};
use super::partition::{Partition, fault_of_ends};
use super::progress::Doing;
use crate::clock::Millis;
use crate::effects::Effects;
use crate::inventory::{Command, Logged, Outcome, Snapshot};
use crate::limits;
use crate::store::{BatchError, Claim, SettledHold, Writer};
use crate::telemetry::metrics as names;
use judge::{Attempt, Panicked};
use ticks::Ticks;
use trace::Stages;

mod judge;
mod poison;
mod report;
mod ticks;
mod trace;

/// The pure function that decides; a value, so that a test can pass one that fails.
pub type Decide = fn(&Snapshot, &[Logged]) -> Outcome;

/// What one transaction came to.
pub(super) struct Decided {
    outcome: Outcome,
    /// Rows of ended holds that it settled besides.
    settled: Vec<SettledHold>,
    stages: Stages,
}

/// Why a worker stopped deciding.
#[derive(Debug)]
pub(super) enum BatchEnd {
    /// It was told to.
    Stopped,
    /// Another writer owns the partition.
    Fenced,
    /// The position in the database is another one than expected, though the claim is still ours (a failover moved it back): start again from
    /// what is stored.
    ClaimAgain,
    /// A contradiction.
    Halt(String),
    /// A record that this build must not decide.
    NewerBuild { offset: i64, version: u8 },
}

/// Instead of a position, while a worker has not committed a batch.
pub(super) const NONE_DECIDED: i64 = -1;

pub(super) struct Worker<'p> {
    partition: &'p Partition,
    writer: Writer,
    records: Records,
    effects: &'p Effects,
    position: i64,
    log_time: Millis,
    decided: Arc<AtomicI64>,
    gather: Gather,
    ticks: Ticks,
    holds: HoldsGauge,
    /// When the log's ends were last compared with the position.
    checked_at: Instant,
}

impl<'p> Worker<'p> {
    /// `decided` is the position after the last batch that this worker committed; the caller begins it with [`NONE_DECIDED`].
    pub fn new(
        partition: &'p Partition,
        writer: Writer,
        claim: &Claim,
        records: Records,
        decided: Arc<AtomicI64>,
        effects: &'p Effects,
    ) -> Self {
        Self {
            partition,
            writer,
            records,
            effects,
            position: claim.position,
            log_time: claim.log_time,
            decided,
            gather: Gather::new(claim.position, partition.config.batch_size_max),
            ticks: Ticks::new(partition.producer.clone(), partition.partition),
            holds: HoldsGauge(gauge!(names::CONSUMER_HOLDS, "partition" => partition.partition.to_string())),
            checked_at: Instant::now(),
        }
    }

    /// The next offset to decide.
    pub fn position(&self) -> i64 {
        self.position
    }

    pub fn into_writer(self) -> Writer {
        self.writer
    }

    /// Decides batch after batch.
    pub async fn decide_batches(&mut self) -> BatchEnd {
        loop {
            match self.gather_batch().await {
                Ok(()) => {}
                Err(end) => return end,
            }
            let mut batch = self.gather.take();
            if let Some(end) = self.wait_for_clock(batch.at_max).await {
                return end;
            }
            if let Err(end) = self.decide_batch(&mut batch).await {
                return end;
            }
        }
    }

    /// Waits for the first record, then takes whatever is there.
    async fn gather_batch(&mut self) -> Result<(), BatchEnd> {
        // Seen here, because a batch that a carried record begins never waits for one.
        if self.partition.stop.is_cancelled() {
            return Err(BatchEnd::Stopped);
        }
        self.partition.progress.begin(Doing::Records);
        self.gather.restart().map_err(end_of)?;
        // After a doubt that the oracle settled, nothing is remembered: without this, holds would end only with the next command.
        if let Err(error) = self.writer.remember().await {
            tracing::warn!(
                kafka.partition = self.partition.partition,
                error = &error as &dyn std::error::Error,
                "could not read the partition yet"
            );
            return Err(BatchEnd::ClaimAgain);
        }
        self.holds.0.set(self.writer.hold_count() as f64);
        let mut next_tick = self.ticks.send_due(self.writer.next_ends(), self.partition.deps.clock.now());
        while self.gather.is_empty() {
            if self.records.is_empty() && self.writer.has_unsettled() && !self.partition.stop.is_cancelled() {
                self.settle().await?;
                self.holds.0.set(self.writer.hold_count() as f64);
                next_tick = self.ticks.send_due(self.writer.next_ends(), self.partition.deps.clock.now());
                continue;
            }
            let record = tokio::select! {
                biased;
                () = self.partition.stop.cancelled() => return Err(BatchEnd::Stopped),
                record = self.records.recv() => record,
                () = sleep(limits::LOG_PROBE_EVERY.saturating_sub(self.checked_at.elapsed())) => {
                    self.check_log_ends().await?;
                    continue;
                }
                () = sleep(next_tick) => {
                    next_tick = self.ticks.send_due(self.writer.next_ends(), self.partition.deps.clock.now());
                    continue;
                }
            };
            // The sender is dropped with the assignment; a stop follows.
            let Some(record) = record else { return Err(self.wait_for_stop().await) };
            self.gather.offer(record).map_err(end_of)?;
        }
        self.fill()?;
        let Partition { partition, load, .. } = self.partition;
        let wait = load.wait(*partition, self.gather.is_full(), Instant::now());
        if !wait.is_zero() {
            tokio::select! {
                () = self.partition.stop.cancelled() => return Err(BatchEnd::Stopped),
                () = sleep(wait) => self.fill()?,
            }
        }
        load.begins(*partition, self.gather.len(), Instant::now());
        Ok(())
    }

    fn fill(&mut self) -> Result<(), BatchEnd> {
        while !self.gather.is_full()
            && let Ok(record) = self.records.try_recv()
        {
            self.gather.offer(record).map_err(end_of)?;
        }
        Ok(())
    }

    async fn wait_for_stop(&self) -> BatchEnd {
        self.partition.stop.cancelled().await;
        BatchEnd::Stopped
    }

    /// Undecided records that are gone, or a log that was cut, are noticed even if no record ever comes again.
    async fn check_log_ends(&mut self) -> Result<(), BatchEnd> {
        self.checked_at = Instant::now();
        match self.partition.deps.log_ends.watermarks(self.partition.partition).await {
            Ok((low, high)) => {
                fault_of_ends(low, high, self.position).map_or(Ok(()), |reason| Err(BatchEnd::Halt(reason)))
            }
            Err(_) => Ok(()), // Kafka is away; asked again at the next probe.
        }
    }

    /// A record from the future is not decided: holds would be too long. The guard may stop a decision, never change it.
    async fn wait_for_clock(&self, at: Millis) -> Option<BatchEnd> {
        let ahead_max = limits::LOG_TIME_AHEAD_MAX.as_millis() as i64;
        let is_ahead = || at - self.partition.deps.clock.now() > ahead_max;
        let began = Instant::now();
        while is_ahead() {
            self.partition.progress.begin(Doing::Clock);
            if began.elapsed() > limits::LOG_TIME_AHEAD_WAIT {
                return Some(BatchEnd::Halt(format!(
                    "log time {at} ms is ahead of this clock: a broker's clock is wrong, or ours"
                )));
            }
            tokio::select! {
                () = self.partition.stop.cancelled() => return Some(BatchEnd::Stopped),
                () = sleep(limits::LOG_TIME_AHEAD_LOOK_EVERY) => {}
            }
        }
        None
    }

    /// Decides and commits one batch, whatever it takes, or says why it can't.
    async fn decide_batch(&mut self, batch: &mut Batch) -> Result<(), BatchEnd> {
        let first_began = Instant::now();
        let mut attempts = 0;
        let mut poisoned = 0;
        let mut wait = limits::RECONNECT_WAIT_MIN;
        loop {
            let began = Instant::now();
            let attempt = match self.attempt(batch).await {
                Attempt::Poison(_) if poisoned >= limits::POISON_PER_BATCH_MAX => {
                    let reason = "too many poisoned commands in one batch: this build is broken";
                    return Err(BatchEnd::Halt(reason.to_owned()));
                }
                Attempt::Poison(fault) => match self.poison_culprit(batch, fault).await {
                    Ok(()) => {
                        poisoned += 1;
                        continue;
                    }
                    Err(instead) => instead,
                },
                other => other,
            };
            match attempt {
                Attempt::Committed(decided) => {
                    self.after_commit(batch, &decided, began.elapsed());
                    trace::tell(self.partition, batch, &decided, first_began);
                    return Ok(());
                }
                Attempt::End(end) => return Err(end),
                // A search takes poison as its answer; if it ever ended by it, the next attempt would meet it again.
                Attempt::Poison(_) => {}
                Attempt::Again { reason, is_counted } => {
                    counter!(names::BATCH_PROCESSED, "outcome" => "failed").increment(1);
                    attempts += u32::from(is_counted);
                    if attempts >= limits::BATCH_ATTEMPTS_MAX {
                        return Err(BatchEnd::Halt(format!("a batch failed {attempts} times: {reason}")));
                    }
                    tracing::warn!(kafka.partition = self.partition.partition, reason, "batch failed, trying again");
                    self.partition.progress.begin(Doing::Retry);
                    tokio::select! {
                        () = self.partition.stop.cancelled() => return Err(BatchEnd::Stopped),
                        () = sleep(wait) => {}
                    }
                    wait = (wait * 2).min(limits::RECONNECT_WAIT_MAX);
                }
            }
        }
    }

    /// Fence, snapshot, decide, write, commit. An error comes with the outcome if COMMIT was sent.
    async fn transact(&mut self, batch: &Batch) -> Result<Result<Decided, Panicked>, (BatchError, Option<Decided>)> {
        let decide = self.partition.deps.decide;
        let began = Instant::now();
        self.partition.progress.begin(Doing::Postgres);
        let mut tx = self.writer.begin(batch.head(self.log_time)).await.map_err(|e| (e, None))?;
        let snapshot = match tx.load_snapshot(&batch.commands).await {
            Ok(snapshot) => snapshot,
            Err(error) => return Err((tx.roll_back(error).await, None)),
        };
        let loaded = Instant::now();
        self.partition.progress.begin(Doing::Decide);
        let outcome = match catch_unwind(AssertUnwindSafe(|| decide(&snapshot, &batch.commands))) {
            Ok(outcome) => outcome,
            Err(_) if catch_unwind(AssertUnwindSafe(|| decide(&snapshot, &[]))).is_err() => {
                let contradiction = BatchError::Contradiction("the stored state contradicts itself".to_owned());
                return Err((tx.roll_back(contradiction).await, None));
            }
            Err(_) => {
                tx.abandon().await;
                return Ok(Err(Panicked));
            }
        };
        let decided = Instant::now();
        self.partition.progress.begin(Doing::Postgres);
        if let Err(error) = tx.write(&batch.commands, &outcome, &batch.raw()).await {
            return Err((tx.roll_back(error).await, None));
        }
        let settled = match tx.settle().await {
            Ok(settled) => settled,
            Err(error) => return Err((tx.roll_back(error).await, None)),
        };
        let written = Instant::now();
        let decided = Decided { outcome, settled, stages: Stages { began, loaded, decided, written } };
        let committed = tx.commit().await;
        histogram!(names::BATCH_LATENCY, "phase" => "commit").record(written.elapsed());
        histogram!(names::BATCH_LATENCY, "phase" => "db").record(began.elapsed());
        match committed {
            Ok(()) => Ok(Ok(decided)),
            Err(error) => Err((error, Some(decided))),
        }
    }

    /// Lets rows of ended holds say so while there is nothing to decide. Any trouble sends the worker back to its claim, which reads
    /// them again.
    async fn settle(&mut self) -> Result<(), BatchEnd> {
        self.partition.progress.begin(Doing::Postgres);
        let settled = self.settle_some().await;
        self.partition.progress.begin(Doing::Records);
        let (ended, result) = match settled {
            Ok(ended) => (ended, Ok(())),
            Err((BatchError::Fenced, _)) => return Err(BatchEnd::Fenced),
            Err((error, ended)) => {
                tracing::warn!(
                    kafka.partition = self.partition.partition,
                    error = &error as &dyn std::error::Error,
                    "could not settle ended holds yet"
                );
                (ended, Err(BatchEnd::ClaimAgain))
            }
        };
        // True whatever became of the rows: the counters released these holds before.
        report::count_ended(&ended);
        if !ended.is_empty() {
            let (partition, epoch) = (self.partition.partition, self.writer.epoch());
            self.effects.submit(report::effects_of_ended(partition, epoch, self.position, &ended));
        }
        result
    }

    /// An error comes with the rows if COMMIT was sent.
    async fn settle_some(&mut self) -> Result<Vec<SettledHold>, (BatchError, Vec<SettledHold>)> {
        let none = |error| (error, Vec::new());
        let mut tx = self.writer.begin_between(self.position, self.log_time).await.map_err(none)?;
        let ended = match tx.settle().await {
            Ok(ended) => ended,
            Err(error) => return Err(none(tx.roll_back(error).await)),
        };
        match tx.commit().await {
            Ok(()) => Ok(ended),
            Err(error) => Err((error, ended)),
        }
    }

    /// What may happen only now: the position, effects, metrics, one line of log.
    fn after_commit(&mut self, batch: &Batch, decided: &Decided, took: Duration) {
        let outcome = &decided.outcome;
        let head = batch.head(self.log_time);
        self.position = head.position;
        self.log_time = head.log_time;
        self.decided.store(head.position, Ordering::Relaxed);
        for logged in &batch.commands {
            if let Ok(Command::Tick(tick)) = &logged.command {
                self.ticks.decided(&tick.sku, head.log_time);
            }
        }
        self.partition.progress.committed(head.position, batch.records.len(), &batch.commands, outcome);
        self.effects.submit(report::effects_of(
            self.partition.partition,
            self.writer.epoch(),
            head.position,
            batch,
            decided,
        ));
        report::measure(&*self.partition.deps.clock, batch, outcome, took);
        report::count_ended(&decided.settled);
        report::log_line(self.partition.partition, &head, batch, decided, took);
    }
}

/// Shows how many holds a writer remembers; nothing once it is gone.
struct HoldsGauge(Gauge);

impl Drop for HoldsGauge {
    fn drop(&mut self) {
        self.0.set(0.0);
    }
}

fn end_of(obstacle: Obstacle) -> BatchEnd {
    match obstacle {
        Obstacle::Gap { expected, found } => {
            BatchEnd::Halt(format!("offsets {expected} to {} are missing from the log", found - 1))
        }
        Obstacle::NoLogTime { offset } => BatchEnd::Halt(format!(
            "the record at {offset} has no log time: set the topic's message.timestamp.type to LogAppendTime"
        )),
        Obstacle::UnknownVersion { offset, version } => BatchEnd::NewerBuild { offset, version },
    }
}
