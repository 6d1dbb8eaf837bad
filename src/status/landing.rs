//! Requests that may still be on their way into the log, although nobody told where they stand.
//!
//! A proof of absence presumes that all that was accepted is in the log when its ends are read. A request of unknown outcome may land
//! later, for [`limits::LANDING_WINDOW`] after it was accepted. So nobody is told that it is absent before that time is over:
//!
//! - an id without a key carries the time when it was made (UUIDv7), so every process knows it by looking at it;
//! - an id made of a key does not: the process that said "unknown" remembers it. **What remains**: such an id asked for at another process,
//!   or after a restart, without a ticket and within the window, may be told 404 before it is told its decision. And no window covers a
//!   broker that freezes with the record in its hands and wakes up later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::clock::Millis;
use crate::limits;

/// What this process does not know the outcome of.
#[derive(Debug, Default)]
pub(super) struct Landing {
    unknown: Mutex<Unknown>,
}

#[derive(Debug, Default)]
struct Unknown {
    /// When each was last told "unknown".
    told_at: HashMap<Uuid, Instant>,
    /// The same in the order of time; an id that was told again stands here twice.
    order: VecDeque<(Instant, Uuid)>,
    /// When an id found no room: until that is a window ago, any id may be the one.
    overflowed_at: Option<Instant>,
}

impl Landing {
    /// The outcome of `id` was unknown at `now`.
    pub(super) fn note_unknown(&self, id: Uuid, now: Instant) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.prune(now);
        if unknown.order.len() >= limits::UNKNOWN_OUTCOMES_MAX {
            unknown.overflowed_at = Some(now);
            return;
        }
        unknown.order.push_back((now, id));
        unknown.told_at.insert(id, now);
    }

    /// Whether `id` may still land in the log after `now`; `clock_now` is the wall time of the same instant.
    pub(super) fn may_land(&self, id: Uuid, now: Instant, clock_now: Millis) -> bool {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.prune(now);
        unknown.overflowed_at.is_some() || unknown.told_at.contains_key(&id) || is_young(id, clock_now)
    }
}

impl Unknown {
    fn prune(&mut self, now: Instant) {
        let is_over = |at: Instant| now.saturating_duration_since(at) > limits::LANDING_WINDOW;
        while let Some((at, id)) = self.order.pop_front_if(|(at, _)| is_over(*at)) {
            if self.told_at.get(&id) == Some(&at) {
                self.told_at.remove(&id);
            }
        }
        self.overflowed_at = self.overflowed_at.filter(|at| !is_over(*at));
    }
}

/// Made less than a window ago by its own word. Some time ahead counts too: clocks of two processes differ.
fn is_young(id: Uuid, now: Millis) -> bool {
    let window = limits::LANDING_WINDOW.as_millis();
    id.get_timestamp().filter(|_| id.get_version_num() == 7).is_some_and(|made_at| {
        let (seconds, nanos) = made_at.to_unix();
        let made_at = i128::from(seconds) * 1000 + i128::from(nanos / 1_000_000);
        (i128::from(now) - made_at).unsigned_abs() <= window
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    #[test]
    fn an_unknown_outcome_may_land_for_one_window() {
        let (landing, start) = (Landing::default(), Instant::now());
        let (id, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        landing.note_unknown(id, start);
        let again = start + Duration::from_secs(5);
        landing.note_unknown(id, again);
        for (after, may_land) in
            [(Duration::ZERO, true), (limits::LANDING_WINDOW, true), (limits::LANDING_WINDOW + TICK, false)]
        {
            assert_eq!(landing.may_land(id, again + after, 0), may_land, "{after:?} after the last word");
            assert!(!landing.may_land(other, again + after, 0), "nobody said so of another one");
        }
    }

    #[test]
    fn memory_is_bounded_and_what_finds_no_room_is_never_called_absent() {
        let (landing, start) = (Landing::default(), Instant::now());
        for n in 0..limits::UNKNOWN_OUTCOMES_MAX + 10 {
            landing.note_unknown(Uuid::from_u128(n as u128), start);
        }
        let last = Uuid::from_u128(limits::UNKNOWN_OUTCOMES_MAX as u128 + 9);
        assert_eq!(landing.unknown.lock().expect("whole").order.len(), limits::UNKNOWN_OUTCOMES_MAX);
        assert!(landing.may_land(last, start, 0));
        assert!(!landing.may_land(last, start + limits::LANDING_WINDOW + TICK, 0));
        assert!(landing.unknown.lock().expect("whole").told_at.is_empty(), "and forgets");
    }

    #[test]
    fn an_id_without_a_key_says_itself_when_it_was_made() {
        let now = 1_795_255_200_000;
        let window = i64::try_from(limits::LANDING_WINDOW.as_millis()).expect("seconds");
        let made = |at: Millis| {
            let seconds = u64::try_from(at / 1000).expect("after 1970");
            let nanos = u32::try_from(at % 1000).expect("below a second") * 1_000_000;
            Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, nanos))
        };
        for (made_at, expected) in [
            (now, true),
            (now - window, true),
            (now - window - 1, false),
            (now + window, true),
            (now + window + 1, false),
        ] {
            assert_eq!(is_young(made(made_at), now), expected, "made at {made_at}");
        }
        let keyed = Uuid::new_v5(&Uuid::NAMESPACE_OID, b"k");
        assert!(!is_young(keyed, now), "a key has no time");
        assert!(!is_young(Uuid::from_u128(u128::MAX), now));
    }
}
