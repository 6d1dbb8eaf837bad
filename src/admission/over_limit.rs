//! Asking Postgres whether a user has as many units as Redis says, before that alone refuses a request.
//!
//! Redis' decided units are right while it hears every batch in order. Restored from an old copy, or kept while Postgres was restored, it
//! may say too much, and would refuse a user who may buy for as long as it keeps that ([`limits::USER_UNITS_TTL`]). So what it says is confirmed:
//! one query for all who ask, and an answer is remembered for a while, so that who hammers against the limit costs nothing. Units that are
//! too high are forgotten in Redis, and the request goes on unchecked: the writer decides exactly.
//!
//! Postgres is never behind Redis here: a batch is told after its COMMIT. It may be ahead, right after a cancel or when holds have just
//! ended; then it is right, and forgetting the old number early does no harm.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use metrics::counter;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::batcher::{Batcher, Questions, batcher};
use crate::cache::Cache;
use crate::limits;
use crate::store::{Store, UserOfSku};
use crate::telemetry::metrics::USER_LIMIT_CHECKED;

/// What Redis says of one user's decided units, and what would be refused for it.
#[derive(Clone, Debug)]
pub(super) struct Claimed {
    pub(super) of: UserOfSku,
    /// Decided units, by Redis.
    pub(super) decided: u64,
    /// The limit less the units asked for: the request is refused if the user has more than this.
    pub(super) units_max: u64,
}

/// The handle of admission; cheap to clone.
#[derive(Clone)]
pub(super) struct OverLimit {
    questions: Batcher<Claimed, Option<u64>>,
    confirmed: Arc<Confirmed>,
}

impl OverLimit {
    pub(super) fn start(store: Store, cache: Cache, tasks: &TaskTracker) -> Self {
        let (questions, asked) = batcher(limits::OVER_LIMIT_QUEUE_MAX);
        let confirmed = Arc::new(Confirmed::new(Instant::now()));
        tasks.spawn(answer_all(store, cache, Arc::clone(&confirmed), asked));
        Self { questions, confirmed }
    }

    /// Units that the user has, by Postgres, now or a moment ago. `None` = it can't be asked, or not in
    /// [`limits::OVER_LIMIT_CONFIRM_WAIT`]: Redis is the best that is known.
    pub(super) async fn units(&self, claimed: Claimed) -> Option<u64> {
        if let Some(units) = self.confirmed.units(&claimed, Instant::now()) {
            return Some(units);
        }
        tokio::time::timeout(limits::OVER_LIMIT_CONFIRM_WAIT, self.questions.ask(claimed))
            .await
            .ok()
            .flatten()
            .flatten()
    }
}

/// One query after the other, each for all who asked meanwhile. What it finds is kept also for those who stopped waiting.
async fn answer_all(store: Store, cache: Cache, confirmed: Arc<Confirmed>, mut asked: Questions<Claimed, Option<u64>>) {
    let mut told = Told::default();
    while let Some((claims, answers)) = asked.next(limits::OVER_LIMIT_READ_MAX).await {
        let now = Instant::now();
        // A crowd of one user's requests asks before the first answer is there.
        let mut units: Vec<Option<u64>> = claims.iter().map(|claimed| confirmed.units(claimed, now)).collect();
        let open: Vec<usize> = (0..claims.len()).filter(|n| units[*n].is_none()).collect();
        let users: Vec<UserOfSku> = open.iter().map(|n| claims[*n].of.clone()).collect();
        if users.is_empty() {
            answers.give(units);
            continue;
        }
        match store.load_units_of_users(&users).await {
            Ok(read) => open.iter().zip(read).for_each(|(n, read)| units[*n] = Some(read)),
            Err(error) => {
                counter!(USER_LIMIT_CHECKED, "outcome" => "failed").increment(users.len() as u64);
                debug!(
                    error = &error as &dyn std::error::Error,
                    "could not confirm what users hold; redis is believed"
                );
            }
        }
        let mut wrong: Vec<&UserOfSku> = Vec::new();
        for n in open {
            let Some(units) = units[n] else { continue };
            if units < claims[n].decided {
                wrong.push(&claims[n].of);
            } else {
                counter!(USER_LIMIT_CHECKED, "outcome" => "confirmed").increment(1);
            }
            confirmed.keep(&claims[n].of, units, now);
        }
        // First: nobody waits for what Redis forgets.
        answers.give(units);
        heal(&cache, &wrong, &mut told).await;
    }
}

/// Lets Redis forget units that are too high. If that fails, the next request asks again.
async fn heal(cache: &Cache, wrong: &[&UserOfSku], told: &mut Told) {
    if wrong.is_empty() {
        return;
    }
    let users: Vec<_> = wrong.iter().map(|of| (&of.user, &of.sku)).collect();
    match cache.forget_units(&users).await {
        Ok(()) => {
            counter!(USER_LIMIT_CHECKED, "outcome" => "healed").increment(users.len() as u64);
            told.healed(users.len(), Instant::now());
        }
        Err(error) => {
            debug!(error = &error as &dyn std::error::Error, "redis could not be told that units are too high");
        }
    }
}

/// When it was last said that units were too high, and of how many it was not said.
#[derive(Default)]
struct Told {
    at: Option<Instant>,
    count: usize,
}

impl Told {
    fn healed(&mut self, count: usize, now: Instant) {
        self.count += count;
        if self.at.is_none_or(|at| now.duration_since(at) >= limits::OVER_LIMIT_WARN_EVERY) {
            warn!(user.count = self.count, "redis had more units of users than postgres; they are forgotten there");
            *self = Self { at: Some(now), count: 0 };
        }
    }
}

/// What Postgres said lately: units by the hash of a user and a SKU. Two hashes that meet (never, with 64 bits under a random key) would cost
/// a user who is refused by Redis as well.
struct Confirmed {
    hasher: RandomState,
    generations: Mutex<Generations>,
}

/// The younger one is written; the older one is dropped when the younger is full or half of [`limits::OVER_LIMIT_CONFIRMED_FOR`] old.
struct Generations {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
    born: Instant,
}

impl Confirmed {
    fn new(now: Instant) -> Self {
        let generations = Generations { young: HashMap::new(), old: HashMap::new(), born: now };
        Self { hasher: RandomState::new(), generations: Mutex::new(generations) }
    }

    /// Units of the user, if they are remembered and refuse the request: only then is nothing to be asked.
    fn units(&self, claimed: &Claimed, now: Instant) -> Option<u64> {
        let hash = self.hash(&claimed.of);
        let mut generations = self.lock();
        generations.age(now);
        let units = generations.young.get(&hash).or_else(|| generations.old.get(&hash)).copied();
        units.filter(|units| *units > claimed.units_max)
    }

    fn keep(&self, of: &UserOfSku, units: u64, now: Instant) {
        let hash = self.hash(of);
        let mut generations = self.lock();
        generations.age(now);
        if generations.young.len() >= limits::OVER_LIMIT_CONFIRMED_MAX {
            generations.turn(now);
        }
        generations.young.insert(hash, units);
    }

    fn hash(&self, of: &UserOfSku) -> u64 {
        self.hasher.hash_one((of.user.as_str(), of.sku.as_str()))
    }

    /// Held for a few instructions, never across an await.
    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn age(&mut self, now: Instant) {
        let half = limits::OVER_LIMIT_CONFIRMED_FOR / 2;
        if now.duration_since(self.born) >= 2 * half {
            self.young.clear();
            self.turn(now);
        } else if now.duration_since(self.born) >= half {
            self.turn(now);
        }
    }

    fn turn(&mut self, now: Instant) {
        self.old = std::mem::take(&mut self.young);
        self.born = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{SkuId, UserId};

    fn claimed(user: &str, units_max: u64) -> Claimed {
        let of = UserOfSku {
            partition: 0,
            user: UserId::parse(user).expect("legal"),
            sku: SkuId::parse("s").expect("legal"),
        };
        Claimed { of, decided: 9, units_max }
    }

    #[test]
    fn what_refuses_is_remembered_for_half_of_the_time_to_all_of_it() {
        let began = Instant::now();
        let half = limits::OVER_LIMIT_CONFIRMED_FOR / 2;
        let confirmed = Confirmed::new(began);
        confirmed.keep(&claimed("u", 0).of, 2, began);
        assert_eq!(confirmed.units(&claimed("u", 1), began), Some(2));
        assert_eq!(confirmed.units(&claimed("u", 2), began), None, "a smaller request would fit: ask");
        assert_eq!(confirmed.units(&claimed("v", 1), began), None);
        assert_eq!(confirmed.units(&claimed("u", 1), began + half), Some(2));
        assert_eq!(confirmed.units(&claimed("u", 1), began + 2 * half), None);
        // Nobody asked for a long time.
        confirmed.keep(&claimed("u", 0).of, 2, began + 3 * half);
        assert_eq!(confirmed.units(&claimed("u", 1), began + 9 * half), None);
    }

    #[test]
    fn the_memory_is_bounded_and_forgets_the_older_half() {
        let now = Instant::now();
        let confirmed = Confirmed::new(now);
        for n in 0..=2 * limits::OVER_LIMIT_CONFIRMED_MAX {
            confirmed.keep(&claimed(&format!("u-{n}"), 0).of, 1, now);
        }
        assert_eq!(confirmed.units(&claimed("u-0", 0), now), None);
        let youngest = format!("u-{}", 2 * limits::OVER_LIMIT_CONFIRMED_MAX);
        assert_eq!(confirmed.units(&claimed(&youngest, 0), now), Some(1));
        let generations = confirmed.lock();
        assert!(generations.young.len() + generations.old.len() <= 2 * limits::OVER_LIMIT_CONFIRMED_MAX);
    }
}
