//! Keyed requests that this process has put into the log and has not heard a decision of: whose keys Redis knows as pending only.
//!
//! A pending marker is enough once the decision stands in Postgres: whoever meets it reads the row. So Redis is told that a request was
//! delivered only if no decision was heard within [`limits::UNHEARD_FOR`]: a crowd whose decisions take milliseconds costs no call at all,
//! and one whose writer is behind is told of as before. Until then a retry here is a replay by this memory, and a retry elsewhere is published
//! again, which the writer finds out.
//!
//! **PURE**: instants come as arguments.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::cache::{KeyMarker, SettleItem};
use crate::effects::DecidedId;
use crate::ids::Ticket;
use crate::limits;

/// The memory; cheap to clone.
#[derive(Clone, Default)]
pub struct Unheard(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    delivered: HashMap<Uuid, (KeyMarker, Ticket)>,
    /// In the order in which they came; those that were heard of meanwhile are gone from the map.
    due: VecDeque<(Instant, Uuid)>,
}

impl Unheard {
    /// A request was delivered; its pending marker stands in Redis. Gives it back if there is no room: then Redis is told at once.
    pub(super) fn delivered(&self, key: KeyMarker, ticket: Ticket, now: Instant) -> Option<SettleItem> {
        let mut inner = self.lock();
        if inner.due.len() >= limits::UNHEARD_MAX {
            return Some(SettleItem::Delivered { key, ticket });
        }
        inner.due.push_back((now + limits::UNHEARD_FOR, key.id));
        inner.delivered.insert(key.id, (key, ticket));
        None
    }

    /// Decisions were heard.
    pub fn heard(&self, decided: &[DecidedId]) {
        let mut inner = self.lock();
        if inner.delivered.is_empty() {
            return;
        }
        for DecidedId { id, .. } in decided {
            inner.delivered.remove(id);
        }
    }

    /// Where a request of this process stands that was delivered and not heard of.
    pub(super) fn ticket(&self, id: Uuid) -> Option<Ticket> {
        self.lock().delivered.get(&id).map(|(_, ticket)| *ticket)
    }

    /// What Redis must be told now.
    pub(super) fn take_due(&self, now: Instant) -> Vec<SettleItem> {
        self.take(|due| due <= now)
    }

    /// All that Redis was not told yet: the process ends.
    pub(super) fn take_all(&self) -> Vec<SettleItem> {
        self.take(|_| true)
    }

    fn take(&self, is_due: impl Fn(Instant) -> bool) -> Vec<SettleItem> {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        while let Some((_, id)) = inner.due.pop_front_if(|(due, _)| is_due(*due)) {
            if let Some((key, ticket)) = inner.delivered.remove(&id) {
                taken.push(SettleItem::Delivered { key, ticket });
            }
        }
        taken
    }

    /// Nothing here panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u128) -> KeyMarker {
        KeyMarker { name: Uuid::from_u128(n + 1000), id: Uuid::from_u128(n), fingerprint: 1 }
    }

    fn ticket() -> Ticket {
        Ticket::parse("1.2.3").expect("legal")
    }

    fn ids(items: &[SettleItem]) -> Vec<u128> {
        let id = |item: &SettleItem| match item {
            SettleItem::Delivered { key, .. } => key.id.as_u128(),
            other => panic!("only deliveries are remembered: {other:?}"),
        };
        items.iter().map(id).collect()
    }

    #[test]
    fn redis_is_told_of_what_was_not_heard_in_time_and_of_nothing_else() {
        let (unheard, start) = (Unheard::default(), Instant::now());
        for n in 0..4 {
            assert_eq!(unheard.delivered(key(n), ticket(), start), None);
        }
        unheard.heard(&[1, 3, 9].map(|n| DecidedId::changed(Uuid::from_u128(n))));
        assert_eq!(unheard.ticket(Uuid::from_u128(0)), Some(ticket()));
        assert_eq!(unheard.ticket(Uuid::from_u128(1)), None);
        assert_eq!(ids(&unheard.take_due(start + limits::UNHEARD_FOR / 2)), []);
        assert_eq!(unheard.delivered(key(4), ticket(), start + limits::UNHEARD_FOR / 2), None);
        assert_eq!(ids(&unheard.take_due(start + limits::UNHEARD_FOR)), [0, 2]);
        assert_eq!(ids(&unheard.take_all()), [4]);
        assert_eq!(ids(&unheard.take_all()), [], "each is told once");
    }

    #[test]
    fn what_finds_no_room_is_told_at_once() {
        let (unheard, start) = (Unheard::default(), Instant::now());
        for n in 0..limits::UNHEARD_MAX as u128 {
            assert_eq!(unheard.delivered(key(n), ticket(), start), None);
        }
        let refused = unheard.delivered(key(u128::from(u64::MAX)), ticket(), start);
        assert_eq!(ids(&refused.into_iter().collect::<Vec<_>>()), [u128::from(u64::MAX)]);
        assert_eq!(unheard.take_due(start + limits::UNHEARD_FOR).len(), limits::UNHEARD_MAX);
    }
}
