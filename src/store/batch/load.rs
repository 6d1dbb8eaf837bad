//! The snapshot: everything that deciding a batch may read, from the writer's memory where that is exact, else by set-based queries.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::StoreError;
use super::super::connect::{ask, smallint};
use super::super::memory::Memory;
use super::super::reservations::reservation_of;
use crate::clock::{Millis, millis_of};
use crate::ids::{SkuId, UserId};
use crate::inventory::{Command, Holdings, Logged, Reservation, Sku};
use crate::limits;

/// What the commands of a batch name, as far as anybody must be asked about it.
pub(super) struct Asked<'c> {
    logged: &'c [Logged],
    pub skus: BTreeSet<SkuId>,
    /// Ids and key ids.
    commands: BTreeSet<Uuid>,
    targets: BTreeSet<Uuid>,
    /// Hashes of the users that may have something.
    holders: Vec<i64>,
    /// Log time of the last command.
    until: Millis,
}

/// The hash of the user of each reserve command, 0 for any other command: computed once for all that a batch needs it for.
pub(super) fn user_hashes(commands: &[Logged]) -> Vec<i64> {
    let hash = |logged: &Logged| match &logged.command {
        Ok(Command::Reserve(reserve)) => reserve.user.hash64(),
        _ => 0,
    };
    commands.iter().map(hash).collect()
}

/// Ids that have their decision.
#[derive(Default)]
pub(super) struct Known {
    pub reservations: BTreeSet<Uuid>,
    pub commands: BTreeSet<Uuid>,
    /// Key ids of commands that have theirs.
    pub keys: BTreeSet<Uuid>,
}

impl<'c> Asked<'c> {
    pub fn of(logged: &'c [Logged], user_hashes: &[i64], memory: &Memory) -> Self {
        let until = logged.iter().map(|logged| logged.at).fold(Millis::MIN, Millis::max);
        let (skus, commands, targets) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut asked = Self { logged, skus, commands, targets, holders: Vec::new(), until };
        for (logged, user_hash) in logged.iter().zip(user_hashes) {
            let Ok(command) = &logged.command else { continue };
            if !asked.skus.contains(command.sku()) {
                asked.skus.insert(command.sku().clone());
            }
            asked.targets.extend(command.target());
            match command {
                Command::Reserve(_) => asked.holders.extend(Some(*user_hash).filter(|hash| memory.may_hold(*hash))),
                Command::Tick(_) => {}
                other => {
                    asked.commands.insert(other.id());
                    asked.commands.extend(other.key_id());
                }
            }
        }
        asked
    }

    /// Ids of the reserve commands: needed only where they must be looked up.
    fn reservations(&self) -> Vec<Uuid> {
        let id = |logged: &Logged| match &logged.command {
            Ok(Command::Reserve(reserve)) => Some(reserve.id),
            _ => None,
        };
        self.logged.iter().filter_map(id).collect()
    }
}

/// The SKUs of the batch that are configured in this partition, and the units of their holds that end within it.
pub(super) fn skus_and_due(
    asked: &Asked<'_>,
    memory: &Memory,
    log_time: Millis,
) -> (BTreeMap<SkuId, Sku>, BTreeMap<SkuId, BTreeMap<Millis, i64>>) {
    let until = asked.until.max(log_time);
    let skus = asked.skus.iter().filter_map(|id| Some((id.clone(), memory.sku(id)?.clone()))).collect();
    let due = asked.skus.iter().map(|id| (id.clone(), memory.due(id, until))).collect();
    (skus, due)
}

/// The reservations that commands are to change.
pub(super) async fn load_targets(
    conn: &mut PgConnection,
    partition: i32,
    asked: &mut Asked<'_>,
    memory: &Memory,
) -> Result<BTreeMap<Uuid, Reservation>, StoreError> {
    if asked.targets.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<Uuid> = asked.targets.iter().copied().collect();
    let rows = ask(
        "load reservations",
        limits::STATEMENT_DEADLINE,
        sqlx::query(
            "/* load_targets */ SELECT reservation_id, user_id, sku_id, quantity, status, version, expires_at, extensions,
               extension_seconds, changed_at, payment_ref, is_late, note, metadata
             FROM reservation WHERE reservation_id = ANY($1) AND partition = $2",
        )
        .bind(ids)
        .bind(smallint(partition))
        .fetch_all(conn),
    )
    .await?;
    let targets = rows.iter().map(reservation_of).collect::<Result<BTreeMap<_, _>, _>>()?;
    let hashes = targets.values().map(|target| target.user.hash64());
    asked.holders.extend(hashes.filter(|hash| memory.may_hold(*hash)));
    Ok(targets)
}

/// Which ids of a batch were decided before.
///
/// Those of reservations only if `is_careful`: else the primary key finds out. Those of commands always, and each among ids **and** key ids:
/// one may be the other's, which no unique index would notice. Both are looked up over all partitions, as the keys are: an id that somebody
/// used for two SKUs is a duplicate, not a violated key that halts the second. Poison makes only reservations known. That of another partition says nothing here: a copy that
/// was sent to the wrong one must not make the right one a duplicate.
pub(super) async fn load_known(
    conn: &mut PgConnection,
    partition: i32,
    asked: &Asked<'_>,
    is_careful: bool,
    has_poison: bool,
) -> Result<Known, StoreError> {
    let mut known = Known::default();
    let ids = if is_careful || has_poison { asked.reservations() } else { Vec::new() };
    if is_careful && !ids.is_empty() {
        let sql = "/* load_known */ SELECT reservation_id FROM reservation WHERE reservation_id = ANY($1)";
        let question = sqlx::query_scalar(sql).bind(&ids).fetch_all(&mut *conn);
        let found: Vec<Uuid> = ask("load known reservations", limits::STATEMENT_DEADLINE, question).await?;
        known.reservations.extend(found);
    }
    if !asked.commands.is_empty() {
        let sql = "/* load_known */ SELECT command_id, false FROM command WHERE command_id = ANY($1)
                   UNION ALL
                   SELECT key_id, true FROM command WHERE key_id = ANY($1) AND key_id IS NOT NULL";
        let ids: Vec<Uuid> = asked.commands.iter().copied().collect();
        let question = sqlx::query_as(sql).bind(ids).fetch_all(&mut *conn);
        let found: Vec<(Uuid, bool)> = ask("load known commands", limits::STATEMENT_DEADLINE, question).await?;
        for (id, is_key) in found {
            if is_key {
                known.keys.insert(id)
            } else {
                known.commands.insert(id)
            };
        }
    }
    if has_poison && !ids.is_empty() {
        let sql = "/* load_known */ SELECT command_id FROM poison
                   WHERE command_id = ANY($1) AND command_id IS NOT NULL AND partition = $2";
        let question = sqlx::query_scalar(sql).bind(&ids).bind(smallint(partition)).fetch_all(conn);
        let poisoned: Vec<Uuid> = ask("load poisoned ids", limits::STATEMENT_DEADLINE, question).await?;
        known.reservations.extend(poisoned);
    }
    Ok(known)
}

/// What the batch's users hold and own of its SKUs; whoever is not in the answer has nothing.
pub(super) async fn load_holdings(
    conn: &mut PgConnection,
    partition: i32,
    asked: Asked<'_>,
) -> Result<BTreeMap<(SkuId, UserId), Holdings>, StoreError> {
    let mut holdings: BTreeMap<(SkuId, UserId), Holdings> = BTreeMap::new();
    let mut hashes = asked.holders;
    hashes.sort_unstable();
    hashes.dedup();
    if hashes.is_empty() {
        return Ok(holdings);
    }
    let skus: Vec<&str> = asked.skus.iter().map(SkuId::as_str).collect();
    let rows: Vec<(String, String, Option<OffsetDateTime>, i64)> = ask(
        "load what users hold",
        limits::STATEMENT_DEADLINE,
        sqlx::query_as(
            "/* load_holdings */ SELECT sku_id, user_id, CASE WHEN status = 1 THEN expires_at END, sum(quantity) FROM reservation
             WHERE partition = $3 AND user_hash = ANY($1) AND sku_id = ANY($2) AND status IN (1, 3) GROUP BY 1, 2, 3",
        )
        .bind(&hashes)
        .bind(skus)
        .bind(smallint(partition))
        .fetch_all(conn),
    )
    .await?;
    let unreadable = |what: &str| StoreError::Unreadable { what: format!("a reservation of {what:?}") };
    for (sku, user, expires_at, units) in rows {
        let sku = SkuId::parse(&sku).map_err(|_| unreadable(&sku))?;
        let user = UserId::parse(&user).map_err(|_| unreadable(&user))?;
        let holdings = holdings.entry((sku, user)).or_default();
        match expires_at {
            Some(expires_at) => *holdings.holds.entry(millis_of(expires_at)).or_default() += units,
            None => holdings.sold += units,
        }
    }
    Ok(holdings)
}
