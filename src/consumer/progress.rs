//! What a partition's worker is at, told by the worker and read by the watch beside it ([`super::watch`]); and when that is a stall.
//!
//! The worker never waits for anybody here: it leaves a word and a position in passing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::depth::Shares;
use crate::inventory::{Logged, Outcome};
use crate::limits;

/// What a worker does, or waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Claim,
    CheckLog,
    Pause,
    Records,
    Clock,
    Postgres,
    Decide,
    Oracle,
    Retry,
    /// Halted, or given up for a newer build: it is meant to stand still, and that was said.
    Halted,
}

impl Doing {
    /// For the log.
    pub fn words(self) -> &'static str {
        match self {
            Self::Claim => "claiming the partition in postgres",
            Self::CheckLog => "asking kafka whether the log is whole",
            Self::Pause => "waiting before the next claim",
            Self::Records => "waiting for records from kafka",
            Self::Clock => "waiting until its clock reaches the log time",
            Self::Postgres => "waiting for postgres in a batch",
            Self::Decide => "deciding a batch",
            Self::Oracle => "asking postgres what became of a batch",
            Self::Retry => "waiting before the batch is tried again",
            Self::Halted => "halted",
        }
    }
}

/// Where one worker stands.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
struct State {
    doing: Doing,
    position: Option<i64>,
    shares: Shares,
}

impl Progress {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { doing: Doing::Claim, position: None, shares: Shares::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker begins something else.
    pub fn begin(&self, doing: Doing) {
        self.state().doing = doing;
    }

    /// A claim found this position.
    pub fn claimed(&self, position: i64) {
        self.state().position = Some(position);
    }

    /// A batch of so many records is committed.
    pub fn committed(&self, position: i64, records: usize, commands: &[Logged], outcome: &Outcome) {
        let mut state = self.state();
        state.position = Some(position);
        state.shares.add(records, commands, outcome);
    }

    pub fn doing(&self) -> Doing {
        self.state().doing
    }

    /// The next offset to decide; `None` before the first claim.
    pub fn position(&self) -> Option<i64> {
        self.state().position
    }

    pub fn shares(&self) -> Shares {
        self.state().shares.clone()
    }
}

/// The workers of the partitions assigned now; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched(Arc<Mutex<BTreeMap<i32, Arc<Progress>>>>);

impl Watched {
    fn all(&self) -> MutexGuard<'_, BTreeMap<i32, Arc<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a new worker of `partition`, instead of one before it.
    pub fn add(&self, partition: i32) -> Arc<Progress> {
        let progress = Arc::new(Progress::new());
        self.all().insert(partition, Arc::clone(&progress));
        progress
    }

    /// Nothing is assigned any more.
    pub fn clear(&self) {
        self.all().clear();
    }

    pub fn now(&self) -> BTreeMap<i32, Arc<Progress>> {
        self.all().clone()
    }
}

/// A sign of life of the poll thread; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Beat {
    base: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Beat {
    pub fn new() -> Self {
        Self { base: Instant::now(), last_ms: Arc::default() }
    }

    /// The thread lives.
    pub fn tell(&self) {
        let ms = u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(ms, Ordering::Relaxed);
    }

    /// How long it has been silent at `now`.
    pub fn silence(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        now.saturating_duration_since(self.base).saturating_sub(last)
    }
}

/// What the watch sees of a partition at one look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight {
    pub doing: Doing,
    /// The next offset to decide, once a claim told it.
    pub position: Option<i64>,
    /// The first offset that is kept and the next one, as last known.
    pub ends: Option<(i64, i64)>,
}

impl Sight {
    /// Records that wait to be decided. Before a claim nobody knows: all that the log holds may wait.
    pub fn lag(&self) -> i64 {
        self.ends.map_or(0, |(low, high)| (high - self.position.unwrap_or(low)).max(0))
    }
}

/// A stall begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Began,
    Ended,
}

/// Tells a stall of one partition: records wait, and the position stood still for [`limits::STALL_AFTER`], though nothing is halted.
/// **PURE**: instants come as arguments.
#[derive(Debug)]
pub(super) struct StallClock {
    moved_at: Instant,
    position: Option<i64>,
    is_stalled: bool,
}

impl StallClock {
    pub fn new(now: Instant) -> Self {
        Self { moved_at: now, position: None, is_stalled: false }
    }

    /// Whether it stalls, as of the last look.
    pub fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Looks.
    pub fn look(&mut self, now: Instant, sight: &Sight) -> Option<Turn> {
        // A worker that starts anew knows no position: that is no progress.
        let has_moved = sight.position.is_some() && sight.position != self.position;
        self.position = sight.position.or(self.position);
        if has_moved || sight.lag() == 0 || sight.doing == Doing::Halted {
            self.moved_at = now;
        }
        let was_stalled = self.is_stalled;
        self.is_stalled = now.saturating_duration_since(self.moved_at) >= limits::STALL_AFTER;
        match (was_stalled, self.is_stalled) {
            (false, true) => Some(Turn::Began),
            (true, false) => Some(Turn::Ended),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Turn::{Began, Ended};
    use super::*;

    /// Second, position, log end, what it does, and what the clock says.
    type Look = (u64, Option<i64>, i64, Doing, Option<Turn>);

    fn check(story: &[Look]) {
        let start = Instant::now();
        let mut clock = StallClock::new(start);
        for (at, position, high, doing, expected) in story {
            let sight = Sight { doing: *doing, position: *position, ends: Some((0, *high)) };
            assert_eq!(clock.look(start + Duration::from_secs(*at), &sight), *expected, "at {at} s");
        }
    }

    #[test]
    fn a_position_that_stands_still_before_records_is_a_stall_told_once() {
        let postgres = Doing::Postgres;
        check(&[
            (0, Some(3), 3, Doing::Records, None),
            (60, Some(3), 3, Doing::Records, None),
            (61, Some(3), 9, postgres, None),
            (64, Some(3), 9, postgres, None),
            (65, Some(3), 9, postgres, Some(Began)),
            (90, Some(3), 99, Doing::Oracle, None),
            (91, Some(5), 99, postgres, Some(Ended)),
            (95, Some(5), 99, postgres, None),
            (96, Some(5), 99, postgres, Some(Began)),
            (97, Some(99), 99, Doing::Records, Some(Ended)),
        ]);
    }

    #[test]
    fn a_halt_is_no_stall() {
        check(&[
            (0, Some(3), 9, Doing::Postgres, None),
            (4, Some(3), 9, Doing::Halted, None),
            (60, Some(3), 9, Doing::Halted, None),
            (64, Some(3), 9, Doing::Claim, None),
            (65, Some(3), 9, Doing::Claim, Some(Began)),
            (66, Some(3), 9, Doing::Halted, Some(Ended)),
        ]);
    }

    #[test]
    fn a_claim_that_does_not_come_is_a_stall() {
        check(&[(0, None, 0, Doing::Claim, None), (9, None, 0, Doing::Claim, None), (10, None, 1, Doing::Claim, None)]);
        check(&[(0, None, 9, Doing::Claim, None), (5, None, 9, Doing::Claim, Some(Began))]);
    }

    #[test]
    fn starting_anew_at_the_same_position_is_no_progress() {
        check(&[
            (0, Some(3), 9, Doing::Postgres, None),
            (3, None, 9, Doing::Claim, None),
            (4, Some(3), 9, Doing::Postgres, None),
            (5, None, 9, Doing::Claim, Some(Began)),
        ]);
    }

    #[test]
    fn a_log_that_nobody_knows_is_no_stall() {
        let start = Instant::now();
        let mut clock = StallClock::new(start);
        let sight = Sight { doing: Doing::Claim, position: Some(3), ends: None };
        assert_eq!(clock.look(start + limits::STALL_AFTER * 2, &sight), None);
    }

    #[test]
    fn a_beat_tells_the_silence_since() {
        let beat = Beat::new();
        beat.tell();
        assert!(beat.silence(Instant::now()) < Duration::from_secs(1));
        let later = Instant::now() + Duration::from_secs(20);
        assert!((19..=20).contains(&beat.silence(later).as_secs()));
    }
}
