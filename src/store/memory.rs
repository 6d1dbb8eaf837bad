//! What a partition's writer remembers between its batches, so that it asks Postgres for less. **An aid, never an authority.**
//!
//! Nobody else writes the rows of its partition while the fence lets it pass, so what it committed is what is stored. It is read once
//! after the claim, and again after any doubt ([`Writer::recover`](super::Writer::recover)). Each part errs on the safe side:
//! - SKUs: every write compares them with the row and halts on a difference ([`super::batch`]);
//! - holders: a user who is missing here holds nothing; one who is here is looked up;
//! - holds: which of them end when. Rows are settled by id, and only if they still are what is remembered. There are never more than units
//!   on sale, and `flashsale.consumer.holds` says how many there are (about 75 bytes each);
//! - ids of reservations: whoever was not looked up is caught by the primary key, and the batch begins again with a look-up.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::StoreError;
use super::catalogue::{entry_of, sku_columns};
use super::connect::{ask, smallint};
use crate::clock::{Millis, millis_of};
use crate::ids::SkuId;
use crate::inventory::{Logged, Outcome, Reservation, Sku, Status, Verdict};
use crate::limits;

/// Complete from its load on.
#[derive(Debug)]
pub(super) struct Memory {
    /// Every SKU of this partition as last committed.
    skus: BTreeMap<SkuId, Sku>,
    /// Hashes of all users with live units here, and of some that had; `None` = too many to remember.
    holders: Option<HashSet<i64, MixState>>,
    /// Whether any command was ever poisoned here.
    has_poison: bool,
    holds: Holds,
}

/// Hashes the hash of a user: it is one already, but whoever chooses user ids could choose some that meet. A secret and one multiplication keep them
/// apart, in a tenth of the time of the library's own hash.
#[derive(Clone, Debug)]
struct MixState(u64);

impl Default for MixState {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64))
    }
}

impl BuildHasher for MixState {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn write_u64(&mut self, number: u64) {
        // Both halves of the product: each bit of the number reaches each bit of the hash. The factor is odd, without a pattern (2^64 / golden ratio).
        let wide = u128::from(self.0 ^ number) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (wide as u64) ^ (wide >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Units of every hold, by SKU (that has one), end and reservation; and those whose end is in the counters and not yet in their rows.
#[derive(Debug, Default)]
struct Holds {
    running: BTreeMap<SkuId, BTreeMap<(Millis, Uuid), i64>>,
    ended: VecDeque<EndedHold>,
}

/// A hold whose units are released and whose row still says RESERVED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndedHold {
    pub reservation: Uuid,
    pub expires_at: Millis,
}

impl Memory {
    /// Reads the partition's SKUs and live reservations. Right only while no older writer can commit: after a claim or under the fence.
    pub async fn load(conn: &mut PgConnection, partition: i32) -> Result<Self, StoreError> {
        let skus = ask(
            "load the partition's SKUs",
            limits::STATEMENT_DEADLINE,
            sqlx::query(concat!("/* load_memory */ SELECT ", sku_columns!(), " FROM sku WHERE partition = $1"))
                .bind(smallint(partition))
                .fetch_all(&mut *conn),
        )
        .await?;
        let entries: Vec<_> = skus.iter().map(entry_of).collect::<Result<_, _>>()?;
        let has_poison = ask(
            "load whether there is poison",
            limits::STATEMENT_DEADLINE,
            sqlx::query_scalar("/* load_memory */ SELECT EXISTS (SELECT FROM poison WHERE partition = $1)")
                .bind(smallint(partition))
                .fetch_one(&mut *conn),
        )
        .await?;
        let mut memory = Self {
            skus: entries.into_iter().map(|entry| (entry.sku_id, entry.sku)).collect(),
            holders: Some(HashSet::default()),
            has_poison,
            holds: Holds::default(),
        };
        // The session's own statement timeout is made for batches.
        set_statement_timeout(conn, limits::MEMORY_LOAD_DEADLINE).await?;
        ask("load live reservations", limits::MEMORY_LOAD_DEADLINE, memory.load_live(conn, partition)).await?;
        set_statement_timeout(conn, limits::STATEMENT_DEADLINE).await?;
        let through = |sku: &SkuId| memory.skus.get(sku).map_or(0, |sku| sku.expired_through);
        let ended: Vec<(SkuId, Millis)> = memory.holds.running.keys().map(|sku| (sku.clone(), through(sku))).collect();
        ended.iter().for_each(|(sku, through)| memory.holds.end_through(sku, *through));
        Ok(memory)
    }

    /// Row by row: there may be hundreds of thousands.
    async fn load_live(&mut self, conn: &mut PgConnection, partition: i32) -> Result<(), sqlx::Error> {
        let mut rows = sqlx::query(
            "/* load_memory */ SELECT reservation_id, user_hash, sku_id, status, expires_at, quantity
             FROM reservation WHERE partition = $1 AND status IN (1, 3)",
        )
        .bind(smallint(partition))
        .fetch(conn);
        while let Some(row) = rows.try_next().await? {
            self.remember_holders([row.try_get(1)?]);
            if row.try_get::<i16, _>(3)? != Status::Reserved.number() {
                continue;
            }
            let sku: &str = row.try_get(2)?;
            let sku = SkuId::parse(sku).map_err(|error| sqlx::Error::Decode(error.into()))?;
            let expires_at = millis_of(row.try_get::<OffsetDateTime, _>(4)?);
            self.holds.begin(&sku, expires_at, row.try_get(0)?, i64::from(row.try_get::<i32, _>(5)?));
        }
        Ok(())
    }

    /// A SKU of this partition.
    pub fn sku(&self, id: &SkuId) -> Option<&Sku> {
        self.skus.get(id)
    }

    /// SKUs of which anything was ever held.
    pub fn moved_skus(&self) -> impl Iterator<Item = &SkuId> {
        self.skus.iter().filter(|(_, sku)| sku.movement_count > 1).map(|(id, _)| id)
    }

    /// Whether a user may hold or own units in this partition.
    pub fn may_hold(&self, user_hash: i64) -> bool {
        self.holders.as_ref().is_none_or(|holders| holders.contains(&user_hash))
    }

    /// Whether an id may belong to a poisoned command.
    pub fn has_poison(&self) -> bool {
        self.has_poison
    }

    /// Units of a SKU's holds that end by `through`, by their end.
    pub fn due(&self, sku: &SkuId, through: Millis) -> BTreeMap<Millis, i64> {
        let mut due = BTreeMap::new();
        for ((ends, _), units) in
            self.holds.running.get(sku).into_iter().flat_map(|holds| holds.range(..=(through, Uuid::max())))
        {
            *due.entry(*ends).or_default() += units;
        }
        due
    }

    /// The next end of a hold, SKU by SKU.
    pub fn next_ends(&self) -> impl Iterator<Item = (&SkuId, Millis)> {
        self.holds.running.iter().filter_map(|(sku, holds)| Some((sku, holds.first_key_value()?.0.0)))
    }

    /// Holds that are remembered: those that run, and ended ones whose rows do not say so yet.
    pub fn hold_count(&self) -> usize {
        self.holds.running.values().map(BTreeMap::len).sum::<usize>() + self.holds.ended.len()
    }

    /// The first ended holds whose rows do not say so yet, at most [`limits::SETTLE_MAX`].
    pub fn to_settle(&self) -> impl Iterator<Item = &EndedHold> {
        self.holds.ended.iter().take(limits::SETTLE_MAX)
    }

    /// What a batch leaves behind, once it is committed.
    pub fn learn(&mut self, learned: Learned) {
        self.holds.ended.drain(..learned.settled);
        for (sku, ends, id) in &learned.ended {
            self.holds.forget(sku, *ends, *id);
        }
        for (sku, ends, id, units) in learned.begun {
            self.holds.begin(&sku, ends, id, units);
        }
        for (sku, state) in &learned.skus {
            self.holds.end_through(sku, state.expired_through);
        }
        self.skus.extend(learned.skus);
        self.has_poison |= learned.has_poison;
        self.remember_holders(learned.holders);
    }

    fn remember_holders(&mut self, hashes: impl IntoIterator<Item = i64>) {
        if let Some(holders) = &mut self.holders {
            holders.extend(hashes);
            if holders.len() > limits::HOLDERS_MAX {
                self.holders = None;
            }
        }
    }
}

async fn set_statement_timeout(conn: &mut PgConnection, timeout: Duration) -> Result<(), StoreError> {
    let question = sqlx::query("/* set_statement_timeout */ SELECT set_config('statement_timeout', $1, false)")
        .bind(timeout.as_millis().to_string());
    ask("set the statement timeout", limits::STATEMENT_DEADLINE, question.execute(conn)).await.map(drop)
}

impl Holds {
    fn begin(&mut self, sku: &SkuId, ends: Millis, id: Uuid, units: i64) {
        match self.running.get_mut(sku) {
            Some(holds) => drop(holds.insert((ends, id), units)),
            None => drop(self.running.insert(sku.clone(), BTreeMap::from([((ends, id), units)]))),
        }
    }

    fn forget(&mut self, sku: &SkuId, ends: Millis, id: Uuid) {
        if let Some(holds) = self.running.get_mut(sku) {
            holds.remove(&(ends, id));
            if holds.is_empty() {
                self.running.remove(sku);
            }
        }
    }

    /// The counters released every hold that ends by `through`.
    fn end_through(&mut self, sku: &SkuId, through: Millis) {
        let Some(holds) = self.running.get_mut(sku) else { return };
        if holds.first_key_value().is_none_or(|((ends, _), _)| *ends > through) {
            return;
        }
        let still_running = holds.split_off(&(through + 1, Uuid::nil()));
        let ended = std::mem::replace(holds, still_running);
        if holds.is_empty() {
            self.running.remove(sku);
        }
        self.ended.extend(ended.into_keys().map(|(expires_at, reservation)| EndedHold { reservation, expires_at }));
    }
}

/// What a batch that is not committed yet would add.
#[derive(Debug, Default)]
pub(super) struct Learned {
    skus: BTreeMap<SkuId, Sku>,
    holders: Vec<i64>,
    has_poison: bool,
    /// Holds that ended on purpose, or that end at another time now.
    ended: Vec<(SkuId, Millis, Uuid)>,
    begun: Vec<(SkuId, Millis, Uuid, i64)>,
    /// How many of [`Memory::to_settle`] were settled.
    pub settled: usize,
}

impl Learned {
    /// `user_hashes` = those of the users of reserve commands, by command.
    pub fn of(commands: &[Logged], user_hashes: &[i64], outcome: &Outcome) -> Self {
        assert_eq!(commands.len(), user_hashes.len(), "one hash per command");
        let changes = &outcome.changes;
        let reserved = outcome.decisions.iter().zip(user_hashes);
        let reserved = reserved.filter(|(decision, _)| matches!(decision.verdict, Verdict::Reserved { .. }));
        let before = changes.reservations.values().filter(|change| change.before.is_some());
        let hold_of = |reservation: &Reservation| {
            reservation
                .expires_at
                .filter(|_| reservation.status == Status::Reserved)
                .map(|ends| (reservation.sku.clone(), ends))
        };
        let mut learned = Self {
            skus: changes.skus.iter().map(|(id, change)| (id.clone(), change.after.clone())).collect(),
            holders: reserved.map(|(_, hash)| *hash).chain(before.map(|change| change.after.user.hash64())).collect(),
            has_poison: outcome.decisions.iter().any(|decision| matches!(decision.verdict, Verdict::Poison(_))),
            ..Self::default()
        };
        for (id, change) in &changes.reservations {
            let before = change.before.as_deref().and_then(hold_of);
            learned.ended.extend(before.map(|(sku, ends)| (sku, ends, *id)));
            learned.begun.extend(hold_of(&change.after).map(|(sku, ends)| (sku, ends, *id, change.after.units())));
        }
        learned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Memory {
        Memory { skus: BTreeMap::new(), holders: Some(HashSet::default()), has_poison: false, holds: Holds::default() }
    }

    #[test]
    fn too_many_holders_are_forgotten_and_then_everybody_may_hold() {
        let mut memory = empty();
        let holding = |hashes: std::ops::Range<i64>| Learned { holders: hashes.collect(), ..Learned::default() };
        memory.learn(holding(0..limits::HOLDERS_MAX as i64));
        assert!(memory.may_hold(7));
        assert!(!memory.may_hold(-1), "a user who holds nothing is not looked up");
        memory.learn(holding(-2..-1));
        assert!(memory.may_hold(-1), "with too many nobody can be left out");
    }

    #[test]
    fn hashes_that_share_their_low_bits_are_spread() {
        let state = MixState::default();
        let buckets: HashSet<u64> = (0..1024_i64).map(|n| state.hash_one(n << 40) % 1024).collect();
        assert!(buckets.len() > 500, "{} of 1024 buckets: at random it is 647", buckets.len());
    }

    #[test]
    fn holds_are_due_until_the_counters_release_them_and_then_wait_for_their_rows() {
        let (sku, id) = (SkuId::parse("s").expect("legal"), Uuid::from_u128);
        let mut holds = Holds::default();
        for (ends, n, units) in [(10, 1, 2), (10, 2, 3), (20, 3, 1), (30, 4, 5)] {
            holds.begin(&sku, ends, id(n), units);
        }
        holds.forget(&sku, 20, id(3));
        let mut memory = Memory { holds, ..empty() };
        assert_eq!(memory.hold_count(), 3);
        assert_eq!(memory.due(&sku, 9), BTreeMap::new());
        assert_eq!(memory.due(&sku, 20), BTreeMap::from([(10, 5)]), "the one at 20 was given back");
        memory.holds.end_through(&sku, 10);
        assert_eq!(memory.due(&sku, 40), BTreeMap::from([(30, 5)]));
        assert_eq!(memory.hold_count(), 3, "ended ones are kept until their rows say so");
        let waiting: Vec<Uuid> = memory.to_settle().map(|hold| hold.reservation).collect();
        assert_eq!(waiting, [id(1), id(2)]);
        memory.learn(Learned { settled: 1, ..Learned::default() });
        assert_eq!((memory.to_settle().count(), memory.hold_count()), (1, 2));
        assert_eq!(memory.next_ends().collect::<Vec<_>>(), [(&sku, 30)]);
    }
}
