//! Who waits for a decision in this process, and how they are woken.
//!
//! A waiter registers under its id **before** it publishes or reads, and reads once after that; so no wake-up can fall between. Wake-ups
//! come from Redis (one message per batch), directly from the consumer in the same process, and from the sweep that every
//! [`crate::limits::WAITER_SWEEP_EVERY`] reads the reservations that somebody has waited for at least that long: a lost one costs up to
//! twice that, never the whole wait. The sweep does not know commands; whoever waits for one also looks by itself. Being woken says
//! "read again", in Postgres; or it brings the committed decision itself ([`FirstDecision`]), for the one whose request it decides.
//!
//! A wake-up is remembered by its waiter until it is taken, so it does not matter whether the waiter is inside
//! [`Waiter::woken`] when it comes. Several wake-ups before the next look are one, with the last decision that came.

mod sweep;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::effects::{DecidedId, FirstDecision};

pub use sweep::sweep;

/// Locks of the registry: enough that two threads rarely meet, few enough that listing all ids stays cheap.
const SHARDS: usize = 16;

/// The registry; cheap to clone.
#[derive(Clone, Default)]
pub struct Waiters {
    shards: Arc<[Mutex<Shard>; SHARDS]>,
}

type Shard = HashMap<Uuid, Vec<Registration>>;

struct Registration {
    since: Instant,
    signal: Arc<Mutex<Signal>>,
}

/// What waits for a waiter.
#[derive(Default)]
struct Signal {
    is_woken: bool,
    first: Option<FirstDecision>,
    /// Of a [`Group`]: which of its ids were told of, each with its decision if one came.
    many: Option<HashMap<Uuid, Option<FirstDecision>>>,
    waker: Option<Waker>,
}

/// One registration; dropping it ends it.
pub struct Waiter {
    id: Uuid,
    signal: Arc<Mutex<Signal>>,
    waiters: Waiters,
}

/// Many registrations with one signal; dropping it ends them.
pub struct Group {
    ids: Mutex<Vec<Uuid>>,
    signal: Arc<Mutex<Signal>>,
    waiters: Waiters,
}

impl Waiters {
    /// Registers interest in an id (a reservation's or a command's). Many may wait for one id.
    pub fn register(&self, id: Uuid) -> Waiter {
        let signal = Arc::<Mutex<Signal>>::default();
        let registration = Registration { since: Instant::now(), signal: Arc::clone(&signal) };
        self.shard(id).entry(id).or_default().push(registration);
        Waiter { id, signal, waiters: self.clone() }
    }

    /// Many registrations that share one wake-up; none yet.
    pub fn group(&self) -> Group {
        let signal = Signal { many: Some(HashMap::new()), ..Signal::default() };
        Group { ids: Mutex::default(), signal: Arc::new(Mutex::new(signal)), waiters: self.clone() }
    }

    fn forget(&self, id: Uuid, signal: &Arc<Mutex<Signal>>) {
        let mut shard = self.shard(id);
        if let Entry::Occupied(mut entry) = shard.entry(id) {
            entry.get_mut().retain(|registration| !Arc::ptr_eq(&registration.signal, signal));
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }

    /// Wakes whoever waits for one of these ids. Cheap for ids that nobody waits for.
    pub fn wake(&self, ids: impl IntoIterator<Item = DecidedId>) {
        for DecidedId { id, first } in ids {
            if let Some(registrations) = self.shard(id).get(&id) {
                registrations.iter().for_each(|registration| wake(&registration.signal, id, first));
            }
        }
    }

    /// The ids that somebody waits for now.
    pub fn open_ids(&self) -> Vec<Uuid> {
        self.ids_where(|_| true)
    }

    /// The ids that somebody has been waiting for since `age` ago or longer: the sweep leaves younger ones to the messages.
    pub fn ids_older_than(&self, age: Duration) -> Vec<Uuid> {
        let now = Instant::now();
        self.ids_where(|registration| now.duration_since(registration.since) >= age)
    }

    fn ids_where(&self, is_meant: impl Fn(&Registration) -> bool) -> Vec<Uuid> {
        let mut ids = Vec::new();
        for shard in self.shards.iter() {
            let shard = lock(shard);
            ids.extend(
                shard.iter().filter(|(_, registrations)| registrations.iter().any(&is_meant)).map(|(id, _)| *id),
            );
        }
        ids
    }

    fn shard(&self, id: Uuid) -> MutexGuard<'_, Shard> {
        // The last byte is random in every kind of id that we make.
        lock(&self.shards[usize::from(id.as_bytes()[15]) % SHARDS])
    }
}

/// Keeps the wake-up for a waiter that is not looking right now.
fn wake(signal: &Mutex<Signal>, id: Uuid, first: Option<FirstDecision>) {
    let mut signal = lock(signal);
    signal.is_woken = true;
    let kept = match &mut signal.many {
        Some(many) => many.entry(id).or_default(),
        None => &mut signal.first,
    };
    *kept = first.or(*kept);
    if let Some(waker) = signal.waker.take() {
        waker.wake();
    }
}

/// Nothing here panics while it holds a lock, and a map of waiters would be whole even then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Waiter {
    /// Returns at the first wake-up since registration or since the last return, with the decision if one came. Cancel-safe.
    pub async fn woken(&mut self) -> Option<FirstDecision> {
        poll_fn(|cx| self.poll_woken(cx)).await
    }

    /// The same, to be polled together with something else.
    pub fn poll_woken(&mut self, cx: &mut Context<'_>) -> Poll<Option<FirstDecision>> {
        let mut signal = lock(&self.signal);
        if std::mem::take(&mut signal.is_woken) {
            return Poll::Ready(signal.first.take());
        }
        wait(&mut signal, cx);
        Poll::Pending
    }
}

/// Wakes one waiter, for whoever knows that it waits in vain.
pub struct Nudge {
    id: Uuid,
    signal: Arc<Mutex<Signal>>,
}

impl Nudge {
    /// Wakes it, without a decision.
    pub fn wake(&self) {
        wake(&self.signal, self.id, None);
    }
}

impl Waiter {
    /// To wake this one from elsewhere.
    pub fn nudge(&self) -> Nudge {
        Nudge { id: self.id, signal: Arc::clone(&self.signal) }
    }
}

fn wait(signal: &mut Signal, cx: &Context<'_>) {
    match &mut signal.waker {
        Some(waker) => waker.clone_from(cx.waker()),
        none => *none = Some(cx.waker().clone()),
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiters.forget(self.id, &self.signal);
    }
}

impl Group {
    /// Registers interest in these ids too.
    pub fn add(&self, ids: &[Uuid]) {
        let since = Instant::now();
        for id in ids {
            let registration = Registration { since, signal: Arc::clone(&self.signal) };
            self.waiters.shard(*id).entry(*id).or_default().push(registration);
        }
        lock(&self.ids).extend_from_slice(ids);
    }

    /// Returns at the first wake-up since the last return, with all that were told of since then. Cancel-safe.
    pub async fn woken(&self) -> HashMap<Uuid, Option<FirstDecision>> {
        poll_fn(|cx| {
            let mut signal = lock(&self.signal);
            if std::mem::take(&mut signal.is_woken) {
                return Poll::Ready(signal.many.as_mut().map(std::mem::take).unwrap_or_default());
            }
            wait(&mut signal, cx);
            Poll::Pending
        })
        .await
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        lock(&self.ids).iter().for_each(|id| self.waiters.forget(*id, &self.signal));
    }
}

#[cfg(test)]
mod tests;
