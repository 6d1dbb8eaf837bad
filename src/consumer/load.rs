//! What all partitions of a process bring together, and how often each may start a batch because of it.
//!
//! A batch has a fixed price, whatever it decides (Postgres 0.4 ms of CPU, and messages to Redis and about the outbox), and the same cores pay it
//! for all partitions. So the time between two batches of one partition grows with the rate of all, and with how many partitions are busy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits;
use crate::pace::{Every, Rate};

const BATCH_PACE: Every = Every::growing(limits::BATCH_PACE, limits::BATCH_PACE_CROWD);

/// Cheap to clone; one for all workers of a process.
#[derive(Clone, Debug)]
pub(super) struct Load(Arc<Mutex<Counted>>);

#[derive(Debug)]
struct Counted {
    rate: Rate,
    /// When each partition last began a batch.
    began: HashMap<i32, Instant>,
}

impl Load {
    /// None so far.
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Counted { rate: Rate::new(now), began: HashMap::new() })))
    }

    /// Notes that `partition` begins a batch of `count` commands.
    pub fn begins(&self, partition: i32, count: usize, now: Instant) {
        let mut counted = self.lock();
        counted.rate.arrived(count, now);
        counted.began.insert(partition, now);
    }

    /// How long `partition` goes on gathering; zero = a batch may begin now. `is_full` = it has a whole one.
    pub fn wait(&self, partition: i32, is_full: bool, now: Instant) -> Duration {
        let counted = self.lock();
        let per_second = counted.rate.per_second_at(now);
        match counted.began.get(&partition) {
            Some(began) if !is_full && per_second > limits::PACE_ABOVE_PER_SECOND => {
                (*began + counted.every(per_second, now)).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        // Nothing panics half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn every(&self, per_second: f64, now: Instant) -> Duration {
        let is_busy = |began: &&Instant| now.saturating_duration_since(**began) < limits::RATE_WINDOW;
        let busy = u32::try_from(self.began.values().filter(is_busy).count()).unwrap_or(u32::MAX);
        let share = limits::BATCH_EVERY_MIN.saturating_mul(busy);
        BATCH_PACE.at(per_second).max(share.min(limits::BATCH_PACE_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// `partitions` that share `per_ms` commands a millisecond between them, and last began at `t0`.
    fn after(partitions: i32, per_ms: usize, t0: Instant) -> Load {
        let load = Load::new(t0 - 1000 * MS);
        for ms in 0..=1000 {
            load.begins(ms % partitions, per_ms, t0 - (1000 - u32::try_from(ms).expect("few")) * MS);
        }
        for partition in 0..partitions {
            load.begins(partition, 0, t0);
        }
        load
    }

    #[test]
    fn a_crowd_and_many_partitions_make_batches_rarer() {
        let t0 = Instant::now() + Duration::from_secs(10);
        for (partitions, per_ms, expected) in [
            (1, 1, Duration::ZERO),
            (10, 1, Duration::ZERO),
            (1, 3, 4 * MS),
            (1, 10, 4 * MS),
            (1, 15, 7 * MS),
            (1, 20, 10 * MS),
            (1, 60, 10 * MS),
            (2, 3, 5 * MS),
            (2, 20, 10 * MS),
            (10, 3, 25 * MS),
            (50, 3, 25 * MS),
        ] {
            let wait = after(partitions, per_ms, t0).wait(0, false, t0);
            assert!(wait.abs_diff(expected) < MS / 10, "{partitions} partitions, {per_ms},000 a second: {wait:?}");
        }
    }

    #[test]
    fn the_wait_is_counted_from_the_last_start_of_the_same_partition() {
        let t0 = Instant::now() + Duration::from_secs(10);
        let load = after(1, 3, t0);
        assert_eq!(load.wait(0, false, t0 + 3 * MS), MS);
        assert_eq!(load.wait(0, false, t0 + 5 * MS), Duration::ZERO);
        assert_eq!(load.wait(0, true, t0), Duration::ZERO, "a full one");
        assert_eq!(load.wait(7, false, t0), Duration::ZERO, "the first of a partition");
    }

    #[test]
    fn a_partition_that_is_silent_is_not_busy() {
        let t0 = Instant::now() + Duration::from_secs(10);
        let load = after(10, 3, t0);
        let later = t0 + limits::RATE_WINDOW;
        for ms in 1..=100 {
            load.begins(0, 3, t0 + ms * MS);
        }
        assert_eq!(load.wait(0, false, later), 4 * MS);
    }
}
