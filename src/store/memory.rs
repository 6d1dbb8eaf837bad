//! What a partition's writer remembers between its batches, so that it asks Postgres for less. **An aid, never an authority.**
//!
//! Nobody else writes the rows of its partition while the fence lets it pass, so what it committed is what is stored. It is dropped on
//! any doubt ([`Writer::recover`](super::Writer::recover)) and with the claim. Each part errs on the safe side:
//! - SKUs: every write compares them with the row and halts on a difference ([`super::batch`]);
//! - holders: a user who is missing here holds nothing; one who is here is looked up;
//! - ids: whoever was not looked up is caught by the primary key, and the batch begins again with a look-up.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sqlx::PgConnection;

use super::StoreError;
use super::connect::{ask, smallint};
use crate::ids::{SkuId, UserId};
use crate::inventory::{Outcome, Sku, Verdict};
use crate::limits;

/// Complete from the first batch of a claim on.
#[derive(Debug)]
pub(super) struct Memory {
    /// SKUs of this partition as last committed. One that is missing may exist.
    skus: BTreeMap<SkuId, Sku>,
    /// Hashes of all users with live units here, and of some that had; `None` = too many to remember.
    holders: Option<HashSet<i64>>,
    /// Whether any command was ever poisoned here.
    has_poison: bool,
}

impl Memory {
    /// Reads what has to be complete.
    pub async fn load(conn: &mut PgConnection, partition: i32) -> Result<Self, StoreError> {
        let holders: Vec<i64> = ask(
            "load who holds units",
            limits::STATEMENT_DEADLINE,
            sqlx::query_scalar(
                "/* load_memory */ SELECT user_hash FROM reservation WHERE partition = $1 AND status IN (1, 3) LIMIT $2",
            )
            .bind(smallint(partition))
            .bind(i64::try_from(limits::HOLDERS_MAX + 1).expect("a bound far below the range"))
            .fetch_all(&mut *conn),
        )
        .await?;
        let has_poison = ask(
            "load whether there is poison",
            limits::STATEMENT_DEADLINE,
            sqlx::query_scalar("/* load_memory */ SELECT EXISTS (SELECT FROM poison WHERE partition = $1)")
                .bind(smallint(partition))
                .fetch_one(conn),
        )
        .await?;
        let holders = (holders.len() <= limits::HOLDERS_MAX).then(|| holders.into_iter().collect());
        Ok(Self { skus: BTreeMap::new(), holders, has_poison })
    }

    /// A SKU, if it is remembered.
    pub fn sku(&self, id: &SkuId) -> Option<&Sku> {
        self.skus.get(id)
    }

    /// Remembers SKUs that were read under the fence.
    pub fn remember(&mut self, skus: &BTreeMap<SkuId, Sku>) {
        self.skus.extend(skus.iter().map(|(id, sku)| (id.clone(), sku.clone())));
    }

    /// Whether a user may hold or own units in this partition.
    pub fn may_hold(&self, user_hash: i64) -> bool {
        self.holders.as_ref().is_none_or(|holders| holders.contains(&user_hash))
    }

    /// Whether an id may belong to a poisoned command.
    pub fn has_poison(&self) -> bool {
        self.has_poison
    }

    /// What a batch leaves behind, once it is committed.
    pub fn learn(&mut self, learned: Learned) {
        self.skus.extend(learned.skus);
        self.has_poison |= learned.has_poison;
        if let Some(holders) = &mut self.holders {
            holders.extend(learned.holders);
            if holders.len() > limits::HOLDERS_MAX {
                self.holders = None;
            }
        }
    }
}

/// What a batch that is not committed yet would add.
#[derive(Debug, Default)]
pub(super) struct Learned {
    skus: BTreeMap<SkuId, Sku>,
    holders: BTreeSet<i64>,
    has_poison: bool,
}

impl Learned {
    pub fn of(outcome: &Outcome) -> Self {
        let changes = &outcome.changes;
        let holds = |((_, user), units): (&(SkuId, UserId), &i64)| (*units > 0).then(|| user.hash64());
        Self {
            skus: changes.skus.iter().map(|(id, change)| (id.clone(), change.after.clone())).collect(),
            holders: changes.units.iter().filter_map(holds).collect(),
            has_poison: outcome.decisions.iter().any(|decision| matches!(decision.verdict, Verdict::Poison(_))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_holders_are_forgotten_and_then_everybody_may_hold() {
        let mut memory = Memory { skus: BTreeMap::new(), holders: Some(HashSet::new()), has_poison: false };
        let holding = |hashes: std::ops::Range<i64>| Learned { holders: hashes.collect(), ..Learned::default() };
        memory.learn(holding(0..limits::HOLDERS_MAX as i64));
        assert!(memory.may_hold(7));
        assert!(!memory.may_hold(-1), "a user who holds nothing is not looked up");
        memory.learn(holding(-2..-1));
        assert!(memory.may_hold(-1), "with too many nobody can be left out");
    }
}
