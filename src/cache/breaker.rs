//! The breaker: a Redis that keeps failing is left alone for a while, and so are the requests. **PURE**: instants come as arguments.

use std::time::Instant;

use crate::limits;

/// Counts failures in a row. Closed: every call may go. Open: none, for [`limits::BREAKER_OPEN_FOR`]. Then one call is the trial; its
/// success closes, its failure opens again.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures_in_a_row: u32,
    /// Set while open; a trial moves it on, so that a trial which never reports costs one more round, not for ever.
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a call may go now. Whoever got `true` reports how it went.
    pub(super) fn may_call(&mut self, now: Instant) -> bool {
        match self.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + limits::BREAKER_OPEN_FOR);
                true
            }
        }
    }

    /// A call was answered.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call failed or was late. Returns true if this opened the breaker.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let was_closed = self.open_until.is_none();
        if self.failures_in_a_row < limits::BREAKER_FAILURES {
            return false;
        }
        self.open_until = Some(now + limits::BREAKER_OPEN_FOR);
        was_closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{BREAKER_FAILURES, BREAKER_OPEN_FOR};

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for n in 1..=BREAKER_FAILURES {
            assert!(breaker.may_call(now), "closed before failure {n}");
            assert_eq!(breaker.failed(now), n == BREAKER_FAILURES);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.may_call(now));
        assert!(!breaker.may_call(now + BREAKER_OPEN_FOR / 2));
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            for _ in 1..BREAKER_FAILURES {
                assert!(!breaker.failed(now));
            }
            breaker.succeeded();
        }
        assert!(breaker.may_call(now));
    }

    #[test]
    fn after_a_while_one_call_tries_and_the_others_wait_for_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + BREAKER_OPEN_FOR;
        assert!(breaker.may_call(later));
        assert!(!breaker.may_call(later));
    }

    #[test]
    fn the_trial_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + BREAKER_OPEN_FOR;
        assert!(breaker.may_call(later));
        assert!(!breaker.failed(later), "it was open before: not news");
        assert!(!breaker.may_call(later));
        let even_later = later + BREAKER_OPEN_FOR;
        assert!(breaker.may_call(even_later));
        breaker.succeeded();
        assert!(breaker.may_call(even_later) && breaker.may_call(even_later));
    }

    #[test]
    fn a_trial_that_never_reports_does_not_block_for_ever() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.may_call(now + BREAKER_OPEN_FOR));
        assert!(breaker.may_call(now + 2 * BREAKER_OPEN_FOR));
    }
}
