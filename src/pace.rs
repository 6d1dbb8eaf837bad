//! Pacing: how natural batching keeps from making many small batches out of a crowd.
//!
//! Used for calls to Redis and status reads, and by the partition workers, which share a [`Rate`] (`consumer::load`); the ingress lanes choose
//! theirs by levels of one ([`crate::ingress::levels`]). While few arrive, work starts at once: nobody waits for company. Above
//! [`limits::PACE_ABOVE_PER_SECOND`] the next start comes no sooner than some time after the last one, unless there is a full load.
//!
//! Pure: time comes in as arguments.

use std::time::{Duration, Instant};

use crate::limits;

/// Arrivals per second, averaged with exponentially fading weights over [`limits::RATE_WINDOW`].
#[derive(Clone, Debug)]
pub struct Rate {
    per_second: f64,
    counted_at: Instant,
}

/// Least time between two starts, by the rate.
#[derive(Clone, Debug)]
pub struct Every {
    least: Duration,
    most: Duration,
}

/// Decides when the next batch may start. One for each who makes batches.
#[derive(Clone, Debug)]
pub struct Pace {
    every: Every,
    rate: Rate,
    started_at: Option<Instant>,
}

impl Rate {
    /// That of a silent past.
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, counted_at: now }
    }

    /// Counts arrivals, at the moment when they are taken.
    pub fn arrived(&mut self, count: usize, now: Instant) {
        #[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
        let count = count as f64;
        self.per_second = self.per_second_at(now) + count / limits::RATE_WINDOW.as_secs_f64();
        self.counted_at = self.counted_at.max(now);
    }

    /// The average at `now`, if nothing arrived since it was last counted.
    pub fn per_second_at(&self, now: Instant) -> f64 {
        let silent = now.saturating_duration_since(self.counted_at);
        self.per_second * (-silent.as_secs_f64() / limits::RATE_WINDOW.as_secs_f64()).exp()
    }

    /// From when on it is below `per_second`, which is not 0, if nothing more arrives.
    pub fn below_from(&self, per_second: f64) -> Instant {
        let windows = (self.per_second / per_second).ln().max(0.0);
        self.counted_at + limits::RATE_WINDOW.mul_f64(windows)
    }
}

impl Every {
    /// Always this long.
    pub const fn fixed(time: Duration) -> Self {
        Self { least: time, most: time }
    }

    /// `least` up to [`limits::CROWD_FROM_PER_SECOND`], `most` from [`limits::CROWD_PER_SECOND`] on, in between in proportion.
    pub const fn growing(least: Duration, most: Duration) -> Self {
        Self { least, most }
    }

    /// The time at `per_second` arrivals.
    pub fn at(&self, per_second: f64) -> Duration {
        let above = per_second - limits::CROWD_FROM_PER_SECOND;
        let share = (above / (limits::CROWD_PER_SECOND - limits::CROWD_FROM_PER_SECOND)).clamp(0.0, 1.0);
        self.least + (self.most - self.least).mul_f64(share)
    }
}

impl Pace {
    /// A pace of one start per `every` at most, once arrivals are frequent.
    pub fn new(every: Duration, now: Instant) -> Self {
        Self::by_rate(Every::fixed(every), now)
    }

    /// One that is slower for a crowd.
    pub fn by_rate(every: Every, now: Instant) -> Self {
        assert!(every.most < limits::RATE_WINDOW, "a pace slower than its own measurement would swing");
        Self { every, rate: Rate::new(now), started_at: None }
    }

    /// Counts arrivals, at the moment when they are taken.
    pub fn arrived(&mut self, count: usize, now: Instant) {
        self.rate.arrived(count, now);
    }

    /// See [`Rate::per_second_at`].
    pub fn per_second_at(&self, now: Instant) -> f64 {
        self.rate.per_second_at(now)
    }

    /// How long to go on gathering before the next start; zero = start now. `is_full` = there is a whole load.
    pub fn wait(&self, is_full: bool, now: Instant) -> Duration {
        let per_second = self.per_second_at(now);
        match self.started_at {
            Some(started_at) if !is_full && per_second > limits::PACE_ABOVE_PER_SECOND => {
                (started_at + self.every.at(per_second)).saturating_duration_since(now)
            }
            _ => Duration::ZERO,
        }
    }

    /// Notes a start.
    pub fn started(&mut self, now: Instant) {
        self.started_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = limits::BATCH_PACE;
    const MS: Duration = Duration::from_millis(1);

    /// A pace that started at `t0` and has seen `per_ms` arrivals in each of the last 500 ms before it.
    fn after_rate(per_ms: usize, t0: Instant) -> Pace {
        let mut pace = Pace::new(EVERY, t0 - 500 * MS);
        for ms in 0..=500 {
            pace.arrived(per_ms, t0 - (500 - ms) * MS);
        }
        pace.started(t0);
        pace
    }

    fn long_ago() -> Instant {
        // Room before it for the arrivals that a test makes up.
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn the_first_start_never_waits() {
        let t0 = long_ago();
        let mut pace = Pace::new(EVERY, t0);
        pace.arrived(10_000, t0);
        assert_eq!(pace.wait(false, t0), Duration::ZERO);
    }

    #[test]
    fn few_arrivals_are_not_paced() {
        let t0 = long_ago();
        assert_eq!(after_rate(1, t0).wait(false, t0), Duration::ZERO, "1,000 a second");
    }

    #[test]
    fn many_arrivals_wait_for_the_pace_and_no_longer() {
        let t0 = long_ago();
        let pace = after_rate(5, t0);
        assert_eq!(pace.wait(false, t0), EVERY, "5,000 a second");
        assert_eq!(pace.wait(false, t0 + MS), EVERY - MS);
        assert_eq!(pace.wait(false, t0 + EVERY), Duration::ZERO);
    }

    #[test]
    fn a_full_load_starts_at_once() {
        let t0 = long_ago();
        assert_eq!(after_rate(25, t0).wait(true, t0), Duration::ZERO);
    }

    #[test]
    fn a_crowd_makes_it_slower() {
        let t0 = long_ago();
        for (per_ms, expected) in
            [(1, Duration::ZERO), (3, 2 * MS), (10, 2 * MS), (15, 4 * MS), (20, 6 * MS), (60, 6 * MS)]
        {
            let mut pace = Pace::by_rate(Every::growing(2 * MS, 6 * MS), t0 - 1000 * MS);
            for ms in 0..=1000 {
                pace.arrived(per_ms, t0 - (1000 - ms) * MS);
            }
            pace.started(t0);
            let wait = pace.wait(false, t0);
            assert!(wait.abs_diff(expected) < MS / 10, "{per_ms},000 a second: {wait:?}");
        }
    }

    #[test]
    fn the_rate_is_that_of_the_arrivals_and_fades() {
        let t0 = long_ago();
        let pace = after_rate(5, t0);
        let rate = pace.per_second_at(t0);
        assert!((4_900.0..5_200.0).contains(&rate), "{rate}");
        assert!(pace.per_second_at(t0 + 5 * limits::RATE_WINDOW) < 100.0);
        assert_eq!(pace.per_second_at(t0 - MS), rate, "a clock reading from before changes nothing");
    }

    #[test]
    fn when_a_rate_is_below_another_is_when_it_has_faded_to_it() {
        let t0 = long_ago();
        let rate = after_rate(5, t0).rate;
        let at = rate.below_from(1_000.0);
        assert!((990.0..1_010.0).contains(&rate.per_second_at(at)), "{}", rate.per_second_at(at));
        assert_eq!(rate.below_from(10_000.0), t0, "it is");
        assert_eq!(Rate::new(t0).below_from(1.0), t0, "nothing ever arrived");
    }

    #[test]
    fn arrivals_in_lumps_count_as_much_as_one_by_one() {
        let t0 = long_ago();
        let (mut lumps, mut single) = (Pace::new(EVERY, t0), Pace::new(EVERY, t0));
        for ms in 0..1000_u32 {
            single.arrived(3, t0 + ms * MS);
            if ms % 10 == 9 {
                lumps.arrived(30, t0 + ms * MS);
            }
        }
        let (lumps, single) = (lumps.per_second_at(t0 + 999 * MS), single.per_second_at(t0 + 999 * MS));
        assert!((lumps - single).abs() / single < 0.06, "{lumps} {single}");
    }
}
