//! Lag: how old is the oldest request that nobody has decided.
//!
//! Positions come from Postgres and from the hints of batches, log ends from Kafka and from the delivery reports of this process. When
//! Postgres can't be asked the last known position stays, and what is delivered after it grows old honestly.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use metrics::gauge;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Catalogue;
use crate::ids::Ticket;
use crate::kafka::LogEnds;
use crate::limits;
use crate::store::{PartitionRow, Store, StoreError};
use crate::telemetry::metrics::{CONSUMER_LAG, KAFKA_LAG};

/// Lag of one partition. **PURE**: instants come as arguments.
///
/// Remembers when the log's end was first seen to be where it is, in at most [`limits::LAG_STEPS_MAX`] steps.
#[derive(Debug, Default)]
pub struct LagClock {
    position: Option<i64>,
    log_end: i64,
    /// Growth beyond the position, oldest first; the last step ends at `log_end`.
    steps: VecDeque<Step>,
}

#[derive(Debug)]
struct Step {
    since: Instant,
    log_end: i64,
}

impl LagClock {
    /// The log ends here (or further on by now).
    pub fn observe_log_end(&mut self, now: Instant, log_end: i64) {
        if log_end <= self.log_end {
            return;
        }
        self.log_end = log_end;
        if self.position.is_some_and(|position| log_end <= position) {
            return;
        }
        let is_full = self.steps.len() >= limits::LAG_STEPS_MAX;
        match self.steps.back_mut() {
            // Adding to the older step overstates the lag of what came later; the other way round would hide it.
            Some(last) if is_full || now.saturating_duration_since(last.since) < limits::LAG_RESOLUTION => {
                last.log_end = log_end;
            }
            _ => self.steps.push_back(Step { since: now, log_end }),
        }
    }

    /// Everything before this offset is decided.
    pub fn observe_position(&mut self, now: Instant, position: i64) {
        self.position = Some(position);
        while self.steps.front().is_some_and(|step| step.log_end <= position) {
            self.steps.pop_front();
        }
        // Only after a position that went back (a restored database): what lies between is undecided again, since now.
        if self.steps.is_empty() && self.log_end > position {
            self.steps.push_back(Step { since: now, log_end: self.log_end });
        }
    }

    /// Age of the oldest undecided record; zero if there is none, or no position is known yet.
    pub fn age(&self, now: Instant) -> Duration {
        match (self.position, self.steps.front()) {
            (Some(_), Some(oldest)) => now.saturating_duration_since(oldest.since),
            _ => Duration::ZERO,
        }
    }

    /// Undecided records.
    pub fn records(&self) -> i64 {
        self.position.map_or(0, |position| (self.log_end - position).max(0))
    }
}

/// Lag of all partitions; cheap to clone.
#[derive(Clone)]
pub struct Lag {
    clocks: Arc<[Mutex<LagClock>]>,
}

impl Default for Lag {
    fn default() -> Self {
        Self { clocks: (0..limits::PARTITIONS_MAX).map(|_| Mutex::default()).collect() }
    }
}

impl Lag {
    /// A record is in the log at this place.
    pub fn observe_delivered(&self, ticket: Ticket) {
        self.observe_log_end(ticket.partition, ticket.place.offset.saturating_add(1));
    }

    /// The partition's log ends here (or further on by now).
    pub fn observe_log_end(&self, partition: i32, log_end: i64) {
        self.with(partition, |clock| clock.observe_log_end(Instant::now(), log_end));
    }

    /// Everything before this offset is decided.
    pub fn observe_position(&self, partition: i32, position: i64) {
        self.with(partition, |clock| clock.observe_position(Instant::now(), position));
    }

    /// Age of the partition's oldest undecided record; zero if there is none, or nothing is known yet.
    pub fn age(&self, partition: i32) -> Duration {
        self.with(partition, |clock| clock.age(Instant::now())).unwrap_or_default()
    }

    /// Records between the partition's position and its log end, as last observed.
    pub fn records(&self, partition: i32) -> i64 {
        self.with(partition, |clock| clock.records()).unwrap_or_default()
    }

    /// `None` for a number that is no partition.
    fn with<T>(&self, partition: i32, ask: impl FnOnce(&mut LagClock) -> T) -> Option<T> {
        let clock = self.clocks.get(usize::try_from(partition).ok()?)?;
        let mut clock: MutexGuard<'_, _> = clock.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ask(&mut clock))
    }
}

/// Every [`limits::LAG_PROBE_EVERY`] reads positions and halts from Postgres and where each partition's log ends from Kafka, and sets
/// the lag gauges. Ends when `stop` is cancelled.
pub async fn watch_partitions(
    catalogue: Catalogue,
    store: Store,
    log_ends: LogEnds,
    topic: String,
    stop: CancellationToken,
) {
    let mut ticks = interval(limits::LAG_PROBE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut partitions = Vec::new();
    let mut was_failing = false;
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        // Side by side: a database that hangs must not hide that the log grows.
        let (rows, halted_skus, ()) = tokio::join!(
            store.load_partitions(),
            store.load_halted_skus(),
            probe_log_ends(catalogue.lag(), &log_ends, &partitions)
        );
        // Each by itself: what the auditor says must not stop those who sell.
        if let Ok(halted_skus) = halted_skus {
            catalogue.replace_halted_skus(&halted_skus);
        }
        match rows {
            Ok(rows) => {
                was_failing = false;
                partitions = rows.iter().map(|row| row.partition).collect();
                observe_rows(&catalogue, &rows);
            }
            Err(error) => {
                warn_once(&error, &mut was_failing);
            }
        }
        set_gauges(catalogue.lag(), &topic, &partitions);
    }
}

fn observe_rows(catalogue: &Catalogue, rows: &[PartitionRow]) {
    for row in rows {
        catalogue.lag().observe_position(row.partition, row.position);
    }
    catalogue.replace_halted(rows);
}

fn warn_once(error: &StoreError, was_failing: &mut bool) {
    if !*was_failing {
        warn!(error = error as &dyn std::error::Error, "positions stay as last known");
    }
    *was_failing = true;
}

/// A partition whose leader can't be asked keeps its last known end: delivery reports go on moving it.
async fn probe_log_ends(lag: &Lag, log_ends: &LogEnds, partitions: &[i32]) {
    let ends = join_all(partitions.iter().map(|partition| log_ends.watermarks(*partition))).await;
    for (partition, end) in partitions.iter().zip(ends) {
        if let Ok((_, log_end)) = end {
            lag.observe_log_end(*partition, log_end);
        }
    }
}

fn set_gauges(lag: &Lag, topic: &str, partitions: &[i32]) {
    let mut oldest = Duration::ZERO;
    for partition in partitions {
        let labels = [("topic", topic.to_owned()), ("partition", partition.to_string())];
        gauge!(CONSUMER_LAG, &labels).set(lag.records(*partition) as f64);
        oldest = oldest.max(lag.age(*partition));
    }
    gauge!(KAFKA_LAG, "topic" => topic.to_owned()).set(oldest.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens at which millisecond, and the age (ms) and records after it.
    enum Event {
        End(i64),
        Position(i64),
        Nothing,
    }
    use Event::{End, Nothing, Position};

    fn check(story: &[(u64, Event, u64, i64)]) {
        let start = Instant::now();
        let mut clock = LagClock::default();
        for (number, (at, event, age, records)) in story.iter().enumerate() {
            let now = start + Duration::from_millis(*at);
            match event {
                End(end) => clock.observe_log_end(now, *end),
                Position(position) => clock.observe_position(now, *position),
                Nothing => {}
            }
            assert_eq!((clock.age(now).as_millis(), clock.records()), (u128::from(*age), *records), "step {number}");
        }
    }

    #[test]
    fn nothing_known_is_no_lag() {
        check(&[(0, Nothing, 0, 0), (10, End(100), 0, 0), (9000, Nothing, 0, 0)]);
    }

    #[test]
    fn everything_decided_is_no_lag() {
        check(&[(0, Position(100), 0, 0), (10, End(100), 0, 0), (9000, Nothing, 0, 0)]);
    }

    #[test]
    fn the_oldest_undecided_record_counts() {
        check(&[
            (0, Position(100), 0, 0),
            (0, End(110), 0, 10),
            (1000, End(120), 1000, 20),
            (2000, Position(105), 2000, 15),
            // The first step is decided: the second one is the oldest now.
            (2000, Position(110), 1000, 10),
            (3000, Position(120), 0, 0),
            (4000, End(121), 0, 1),
        ]);
    }

    #[test]
    fn a_position_that_stands_still_grows_old() {
        check(&[(0, Position(0), 0, 0), (0, End(1), 0, 1), (4001, Nothing, 4001, 1), (4002, End(9), 4002, 9)]);
    }

    #[test]
    fn an_older_end_changes_nothing() {
        check(&[(0, Position(0), 0, 0), (0, End(10), 0, 10), (500, End(5), 500, 10)]);
    }

    #[test]
    fn a_position_that_went_back_starts_again() {
        check(&[(0, End(10), 0, 0), (0, Position(10), 0, 0), (5000, Position(4), 0, 6), (6000, Nothing, 1000, 6)]);
    }

    #[test]
    fn steps_closer_than_the_resolution_count_as_the_older_one() {
        check(&[
            (0, Position(0), 0, 0),
            (0, End(1), 0, 1),
            (49, End(2), 49, 2),
            (100, End(3), 100, 3),
            (100, Position(1), 100, 2),
            (100, Position(2), 0, 1),
        ]);
    }

    #[test]
    fn memory_is_bounded_and_never_understates() {
        let start = Instant::now();
        let mut clock = LagClock::default();
        clock.observe_position(start, 0);
        let at = |n: i64| start + Duration::from_secs(u64::try_from(n).expect("small"));
        for n in 1..1000 {
            clock.observe_log_end(at(n), n);
        }
        assert_eq!(clock.steps.len(), limits::LAG_STEPS_MAX);
        assert_eq!(clock.age(at(1000)), Duration::from_secs(999));
        clock.observe_position(at(1000), 998);
        assert!(clock.age(at(1000)) >= Duration::from_secs(1), "the last record came a second ago");
        clock.observe_position(at(1000), 999);
        assert_eq!(clock.age(at(1000)), Duration::ZERO);
    }

    #[test]
    fn numbers_that_are_no_partition_are_ignored() {
        let lag = Lag::default();
        for partition in [-1, limits::PARTITIONS_MAX, i32::MAX] {
            lag.observe_position(partition, 0);
            lag.observe_log_end(partition, 9);
            assert_eq!((lag.age(partition), lag.records(partition)), (Duration::ZERO, 0));
        }
    }
}
