//! The snapshot: everything that deciding a batch may read, from the writer's memory where that is exact, else by set-based queries.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::super::StoreError;
use super::super::catalogue::entry_of;
use super::super::connect::{ask, smallint};
use super::super::memory::Memory;
use crate::ids::{SkuId, UserId};
use crate::inventory::{Command, Logged, Sku};
use crate::limits;

/// What the commands of a batch name: sorted, without repeats.
pub(super) struct Asked {
    pub skus: BTreeSet<SkuId>,
    reservations: BTreeSet<Uuid>,
    commands: BTreeSet<Uuid>,
    users: BTreeSet<UserId>,
}

/// Ids that have their decision.
#[derive(Default)]
pub(super) struct Known {
    pub reservations: BTreeSet<Uuid>,
    pub commands: BTreeSet<Uuid>,
}

impl Asked {
    pub fn of(commands: &[Logged]) -> Self {
        let mut asked = Self {
            skus: BTreeSet::new(),
            reservations: BTreeSet::new(),
            commands: BTreeSet::new(),
            users: BTreeSet::new(),
        };
        for command in commands.iter().filter_map(|logged| logged.command.as_ref().ok()) {
            asked.skus.insert(command.sku().clone());
            match command {
                Command::Reserve(reserve) => {
                    asked.reservations.insert(reserve.id);
                    asked.users.insert(reserve.user.clone());
                }
                Command::Configure(configure) => {
                    asked.commands.insert(configure.id);
                }
            }
        }
        asked
    }
}

/// The SKUs that are configured in this partition. Not locked: nobody else may change them, and the write compares.
pub(super) async fn load_skus(
    conn: &mut PgConnection,
    partition: i32,
    asked: &Asked,
    memory: &mut Memory,
) -> Result<BTreeMap<SkuId, Sku>, StoreError> {
    let missing: Vec<&str> = asked.skus.iter().filter(|id| memory.sku(id).is_none()).map(SkuId::as_str).collect();
    if !missing.is_empty() {
        let rows = ask(
            "load SKUs",
            limits::STATEMENT_DEADLINE,
            sqlx::query("/* load_skus */ SELECT * FROM sku WHERE sku_id = ANY($1) AND partition = $2")
                .bind(missing)
                .bind(smallint(partition))
                .fetch_all(conn),
        )
        .await?;
        let entries: Vec<_> = rows.iter().map(entry_of).collect::<Result<_, _>>()?;
        memory.remember(&entries.into_iter().map(|entry| (entry.sku_id, entry.sku)).collect());
    }
    Ok(asked.skus.iter().filter_map(|id| Some((id.clone(), memory.sku(id)?.clone()))).collect())
}

/// Which ids of a batch were decided before.
///
/// Those of reservations only if `is_careful`: else the primary key finds out. They are looked up over all partitions, as the key is one:
/// an id that somebody used for two SKUs is a duplicate, not a violated key that halts the second. Poison of another partition says
/// nothing here: a copy that was sent to the wrong one must not make the right one a duplicate.
pub(super) async fn load_known(
    conn: &mut PgConnection,
    partition: i32,
    asked: &Asked,
    is_careful: bool,
    has_poison: bool,
) -> Result<Known, StoreError> {
    let mut known = Known::default();
    if is_careful && !asked.reservations.is_empty() {
        let sql = "/* load_known */ SELECT reservation_id FROM reservation WHERE reservation_id = ANY($1)";
        let ids: Vec<Uuid> = asked.reservations.iter().copied().collect();
        let question = sqlx::query_scalar(sql).bind(ids).fetch_all(&mut *conn);
        let found: Vec<Uuid> = ask("load known reservations", limits::STATEMENT_DEADLINE, question).await?;
        known.reservations.extend(found);
    }
    if !asked.commands.is_empty() {
        let sql = "/* load_known */ SELECT command_id FROM command WHERE command_id = ANY($1) AND partition = $2";
        let ids: Vec<Uuid> = asked.commands.iter().copied().collect();
        let question = sqlx::query_scalar(sql).bind(ids).bind(smallint(partition)).fetch_all(&mut *conn);
        let found: Vec<Uuid> = ask("load known commands", limits::STATEMENT_DEADLINE, question).await?;
        known.commands.extend(found);
    }
    if has_poison {
        let sql = "/* load_known */ SELECT command_id FROM poison
                   WHERE command_id = ANY($1) AND command_id IS NOT NULL AND partition = $2";
        let ids: Vec<Uuid> = asked.reservations.union(&asked.commands).copied().collect();
        let question = sqlx::query_scalar(sql).bind(ids).bind(smallint(partition)).fetch_all(conn);
        let poisoned: Vec<Uuid> = ask("load poisoned ids", limits::STATEMENT_DEADLINE, question).await?;
        known.reservations.extend(&poisoned);
        known.commands.extend(&poisoned);
    }
    Ok(known)
}

/// Live units of the batch's users; whoever is not in the answer has none.
pub(super) async fn load_units(
    conn: &mut PgConnection,
    partition: i32,
    asked: &Asked,
    memory: &Memory,
) -> Result<BTreeMap<(SkuId, UserId), i64>, StoreError> {
    let hashes: Vec<i64> = asked.users.iter().map(UserId::hash64).filter(|hash| memory.may_hold(*hash)).collect();
    if hashes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let skus: Vec<&str> = asked.skus.iter().map(SkuId::as_str).collect();
    let rows: Vec<(String, String, i64)> = ask(
        "load users' units",
        limits::STATEMENT_DEADLINE,
        sqlx::query_as(
            "/* load_units */ SELECT sku_id, user_id, sum(quantity) FROM reservation
             WHERE partition = $3 AND user_hash = ANY($1) AND sku_id = ANY($2) AND status IN (1, 3) GROUP BY 1, 2",
        )
        .bind(&hashes)
        .bind(skus)
        .bind(smallint(partition))
        .fetch_all(conn),
    )
    .await?;
    let unreadable = |what: &str| StoreError::Unreadable { what: format!("a reservation of {what:?}") };
    rows.into_iter()
        .map(|(sku, user, units)| {
            let sku = SkuId::parse(&sku).map_err(|_| unreadable(&sku))?;
            let user = UserId::parse(&user).map_err(|_| unreadable(&user))?;
            Ok(((sku, user), units))
        })
        .collect()
}
