//! One batch, one transaction: fence, snapshot, rows, COMMIT.
//!
//! ```text
//! BEGIN
//! fence     position moves, if epoch, token and old position are ours and nobody halted the partition: else nothing at all
//! snapshot  SKUs (locked, in order), known ids, users' units: three set-based queries
//!           ... decide, pure ...
//! write     rows, stock, movements, batch row: one statement; commands, poison and pins only when there are some
//! COMMIT
//! ```
//! Errors say **what is known**: before COMMIT was sent nothing is committed; after it only the oracle knows ([`Writer::recover`]).

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use uuid::Uuid;

use super::catalogue::entry_of;
use super::connect::{ask, smallint};
use super::rows::{Rows, count};
use super::{StoreError, Writer};
use crate::clock::{Millis, time_of};
use crate::ids::{SkuId, UserId};
use crate::inventory::{Command, Logged, Outcome, Snapshot};
use crate::limits;

/// Where a batch stands in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// The offset of its first record: the position expected in the database.
    pub first_offset: i64,
    /// The position after it.
    pub position: i64,
    /// Log time before it.
    pub log_time_before: Millis,
    /// Log time after it.
    pub log_time: Millis,
    /// Digest of its last record.
    pub last_digest: i64,
}

/// Why a batch was not committed, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The partition has another owner, another position, or was halted: nothing was written.
    #[error("the fence refused the batch")]
    Fenced,
    /// The server refused a statement; the transaction is rolled back.
    #[error("the server refused the batch")]
    Refused(#[source] StoreError),
    /// The connection was lost or silent before COMMIT was sent: nothing is committed.
    #[error("the connection failed before COMMIT")]
    Lost(#[source] StoreError),
    /// COMMIT was sent and not answered with yes: only the oracle knows.
    #[error("no answer to COMMIT")]
    Doubtful(#[source] StoreError),
    /// A statement touched other rows than it must: a broken assumption, nothing is committed.
    #[error("the database contradicts the batch: {0}")]
    Contradiction(String),
}

impl BatchError {
    fn before_commit(error: StoreError) -> Self {
        if error.sqlstate().is_some() { Self::Refused(error) } else { Self::Lost(error) }
    }
}

/// An open transaction that passed the fence.
#[derive(Debug)]
pub struct BatchTransaction<'w> {
    writer: &'w mut Writer,
    conn: PgConnection,
    head: BatchHead,
}

impl Writer {
    /// Opens the transaction of a batch and passes the fence.
    ///
    /// # Errors
    /// [`BatchError::Fenced`], or what the server or the connection did.
    pub async fn begin(&mut self, head: BatchHead) -> Result<BatchTransaction<'_>, BatchError> {
        let mut conn = self.take_connection("begin a batch").map_err(BatchError::Lost)?;
        let fence = async {
            sqlx::raw_sql("BEGIN").execute(&mut conn).await?;
            sqlx::query(
                "/* fence */ UPDATE partition_state SET position = $6, log_time = $7, last_digest = $8
                 WHERE topic = $1 AND partition = $2 AND epoch = $3 AND owner_token = $4 AND position = $5
                   AND halted_reason IS NULL",
            )
            .bind(&*self.config.topic)
            .bind(smallint(self.partition))
            .bind(self.epoch)
            .bind(self.token)
            .bind(head.first_offset)
            .bind(head.position)
            .bind(time_of(head.log_time))
            .bind(head.last_digest)
            .execute(&mut conn)
            .await
        };
        let passed = ask("pass the fence", limits::STATEMENT_DEADLINE, fence).await;
        let transaction = BatchTransaction { writer: self, conn, head };
        match passed {
            Ok(passed) if passed.rows_affected() == 1 => Ok(transaction),
            Ok(_) => Err(transaction.roll_back(BatchError::Fenced).await),
            Err(error) => Err(transaction.roll_back(BatchError::before_commit(error)).await),
        }
    }
}

impl BatchTransaction<'_> {
    /// Loads everything that deciding `commands` may read.
    ///
    /// # Errors
    /// [`BatchError`]; call [`Self::roll_back`] with it.
    pub async fn load_snapshot(&mut self, commands: &[Logged]) -> Result<Snapshot, BatchError> {
        let asked = Asked::of(commands);
        let partition = self.writer.partition;
        let snapshot = async {
            Ok(Snapshot {
                partition,
                log_time: self.head.log_time_before,
                skus: load_skus(&mut self.conn, partition, &asked).await?,
                known: load_known(&mut self.conn, partition, &asked).await?,
                units: load_units(&mut self.conn, &asked).await?,
            })
        };
        snapshot.await.map_err(BatchError::before_commit)
    }

    /// Writes what was decided. `raw` = the bytes of the records, by offset; only those of poisoned commands are kept.
    ///
    /// # Errors
    /// [`BatchError`]; call [`Self::roll_back`] with it.
    ///
    /// # Panics
    /// If decisions and commands don't match, or log time is not the one that the fence wrote.
    pub async fn write(
        &mut self,
        commands: &[Logged],
        outcome: &Outcome,
        raw: &BTreeMap<i64, &[u8]>,
    ) -> Result<(), BatchError> {
        assert_eq!(outcome.changes.log_time, self.head.log_time, "the fence wrote the log time that decide found");
        let rows = Rows::of(self.writer.partition, commands, outcome);
        let written = async {
            write_commands(&mut self.conn, self.writer.partition, &rows).await?;
            write_poison(&mut self.conn, self.writer.partition, &rows, raw).await?;
            write_batch(&mut self.conn, self.writer, self.head, commands.len(), &rows).await
        };
        let (reservations, skus) = written.await.map_err(BatchError::before_commit)?;
        if (reservations, skus) == (rows.reservations.ids.len() as i64, rows.skus.skus.len() as i64) {
            return Ok(());
        }
        Err(BatchError::Contradiction(format!(
            "{reservations} of {} reservations and {skus} of {} SKUs were written",
            rows.reservations.ids.len(),
            rows.skus.skus.len()
        )))
    }

    /// Commits. The writer keeps its connection only if the server says yes.
    ///
    /// # Errors
    /// [`BatchError::Doubtful`] for every other answer, an error from the server included: never judge COMMIT by an error's text.
    pub async fn commit(mut self) -> Result<(), BatchError> {
        let commit = ask("commit a batch", limits::STATEMENT_DEADLINE, sqlx::raw_sql("COMMIT").execute(&mut self.conn));
        match commit.await {
            Ok(_) => {
                self.writer.conn = Some(self.conn);
                Ok(())
            }
            Err(error) => Err(BatchError::Doubtful(error)),
        }
    }

    /// Gives the transaction up and hands `error` back.
    pub async fn roll_back(self, error: BatchError) -> BatchError {
        if !matches!(error, BatchError::Lost(_)) {
            self.abandon().await;
        }
        error
    }

    /// Ends a trial: nothing of it is kept. The writer keeps its connection if the server confirms the rollback.
    pub async fn abandon(mut self) {
        let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut self.conn);
        if ask("roll a batch back", limits::STATEMENT_DEADLINE, rollback).await.is_ok() {
            self.writer.conn = Some(self.conn);
        }
    }
}

/// What the commands of a batch name: sorted, without repeats.
struct Asked {
    skus: Vec<String>,
    ids: Vec<Uuid>,
    users: BTreeSet<UserId>,
}

impl Asked {
    fn of(commands: &[Logged]) -> Self {
        let good = || commands.iter().filter_map(|logged| logged.command.as_ref().ok());
        let skus: BTreeSet<&str> = good().map(|command| command.sku().as_str()).collect();
        let ids: BTreeSet<Uuid> = good().map(Command::id).collect();
        let users = good().filter_map(|command| match command {
            Command::Reserve(reserve) => Some(reserve.user.clone()),
            Command::Configure(_) => None,
        });
        Self {
            skus: skus.into_iter().map(str::to_owned).collect(),
            ids: ids.into_iter().collect(),
            users: users.collect(),
        }
    }
}

/// Locks the SKUs in order, so that two writers (of which the fence lets only one commit) can't deadlock.
async fn load_skus(
    conn: &mut PgConnection,
    partition: i32,
    asked: &Asked,
) -> Result<BTreeMap<SkuId, crate::inventory::Sku>, StoreError> {
    let rows = ask(
        "load SKUs",
        limits::STATEMENT_DEADLINE,
        sqlx::query(
            "/* load_skus */ SELECT * FROM sku WHERE sku_id = ANY($1) AND partition = $2 ORDER BY sku_id FOR UPDATE",
        )
        .bind(&asked.skus)
        .bind(smallint(partition))
        .fetch_all(conn),
    )
    .await?;
    rows.iter().map(|row| entry_of(row).map(|entry| (entry.sku_id, entry.sku))).collect()
}

/// Ids that have their decision in this partition. Poison of another one says nothing here: a copy that was sent to the wrong partition
/// must not make the right one a duplicate. Reservations are looked up by their primary key, which is one over all partitions: an id
/// that somebody used for two SKUs is a duplicate, not a violated key that halts the second.
async fn load_known(conn: &mut PgConnection, partition: i32, asked: &Asked) -> Result<BTreeSet<Uuid>, StoreError> {
    let known: Vec<Uuid> = ask(
        "load known ids",
        limits::STATEMENT_DEADLINE,
        sqlx::query_scalar(
            "/* load_known */ SELECT reservation_id FROM reservation WHERE reservation_id = ANY($1)
             UNION ALL SELECT command_id FROM command WHERE command_id = ANY($1) AND partition = $2
             UNION ALL SELECT command_id FROM poison WHERE command_id = ANY($1) AND command_id IS NOT NULL AND partition = $2",
        )
        .bind(&asked.ids)
        .bind(smallint(partition))
        .fetch_all(conn),
    )
    .await?;
    Ok(known.into_iter().collect())
}

async fn load_units(conn: &mut PgConnection, asked: &Asked) -> Result<BTreeMap<(SkuId, UserId), i64>, StoreError> {
    let hashes: Vec<i64> = asked.users.iter().map(UserId::hash64).collect();
    let rows: Vec<(String, String, i64)> = ask(
        "load users' units",
        limits::STATEMENT_DEADLINE,
        sqlx::query_as(
            "/* load_units */ SELECT sku_id, user_id, sum(quantity) FROM reservation
             WHERE user_hash = ANY($1) AND sku_id = ANY($2) AND status IN (1, 3) GROUP BY 1, 2",
        )
        .bind(&hashes)
        .bind(&asked.skus)
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

/// Rows, stock, movements and the batch row; returns how many reservations and SKUs were written.
async fn write_batch(
    conn: &mut PgConnection,
    writer: &Writer,
    head: BatchHead,
    command_count: usize,
    rows: &Rows,
) -> Result<(i64, i64), StoreError> {
    let (r, s) = (&rows.reservations, &rows.skus);
    let query = sqlx::query_as(
        "/* write_batch */ WITH
         rows AS (
           INSERT INTO reservation (reservation_id, user_hash, user_id, sku_id, quantity, status, reason, available, holds_pending,
                                    user_limit, remaining, version, partition, log_offset, log_index, log_time, expires_at)
           SELECT id, user_hash, user_id, sku_id, quantity, status, reason, available, holds_pending,
                  user_limit, remaining, 1, $1, log_offset, log_index, log_time, expires_at
           FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::int[], $7::smallint[], $8::text[], $9::bigint[],
                       $10::bool[], $11::int[], $12::int[], $13::bigint[], $14::smallint[], $15::timestamptz[], $16::timestamptz[])
             AS n (id, user_hash, user_id, sku_id, quantity, status, reason, available, holds_pending,
                   user_limit, remaining, log_offset, log_index, log_time, expires_at)
           RETURNING 1),
         changed AS (
           SELECT * FROM unnest($17::text[], $18::bigint[], $19::bigint[], $20::bigint[], $21::int[], $22::int[], $23::timestamptz[],
                                $24::timestamptz[], $25::smallint[], $26::int[], $27::int[], $28::bigint[], $29::bigint[],
                                $30::bool[], $31::bigint[], $32::bigint[], $33::bigint[])
             AS c (sku_id, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment, extensions_max,
                   extension_seconds_max, settings_version, movement_count, is_movement, d_on_hand, d_reserved, d_sold)),
         stock AS (
           INSERT INTO sku AS s (sku_id, partition, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                                 extensions_max, extension_seconds_max, settings_version, movement_count)
           SELECT sku_id, $1, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                  extensions_max, extension_seconds_max, settings_version, movement_count
           FROM changed
           ON CONFLICT (sku_id) DO UPDATE SET
             on_hand = EXCLUDED.on_hand, reserved = EXCLUDED.reserved, sold = EXCLUDED.sold, user_limit = EXCLUDED.user_limit,
             hold_seconds = EXCLUDED.hold_seconds, starts_at = EXCLUDED.starts_at, ends_at = EXCLUDED.ends_at,
             late_payment = EXCLUDED.late_payment, extensions_max = EXCLUDED.extensions_max,
             extension_seconds_max = EXCLUDED.extension_seconds_max, settings_version = EXCLUDED.settings_version,
             movement_count = EXCLUDED.movement_count
           WHERE s.partition = EXCLUDED.partition
           RETURNING 1),
         moved AS (
           INSERT INTO stock_movement (sku_id, number, partition, first_offset, epoch, d_on_hand, d_reserved, d_sold,
                                       on_hand, reserved, sold)
           SELECT sku_id, movement_count, $1, $34, $36, d_on_hand, d_reserved, d_sold, on_hand, reserved, sold
           FROM changed WHERE is_movement),
         told AS (
           INSERT INTO batch (partition, first_offset, position, epoch, command_count, decided_count, duplicate_count, poison_count,
                              build)
           VALUES ($1, $34, $35, $36, $37, $38, $39, $40, $41))
         SELECT (SELECT count(*) FROM rows), (SELECT count(*) FROM stock)",
    )
    .bind(smallint(writer.partition))
    .bind(&r.ids)
    .bind(&r.user_hashes)
    .bind(&r.users)
    .bind(&r.skus)
    .bind(&r.quantities)
    .bind(&r.statuses)
    .bind(&r.reasons)
    .bind(&r.availables)
    .bind(&r.holds_pendings)
    .bind(&r.limits)
    .bind(&r.remainings)
    .bind(&r.offsets)
    .bind(&r.indexes)
    .bind(&r.log_times)
    .bind(&r.expires_ats)
    .bind(&s.skus)
    .bind(&s.on_hands)
    .bind(&s.reserveds)
    .bind(&s.solds)
    .bind(&s.user_limits)
    .bind(&s.hold_seconds)
    .bind(&s.starts_ats)
    .bind(&s.ends_ats)
    .bind(&s.late_payments)
    .bind(&s.extensions_maxes)
    .bind(&s.extension_seconds_maxes)
    .bind(&s.settings_versions)
    .bind(&s.movement_counts)
    .bind(&s.is_movements)
    .bind(&s.d_on_hands)
    .bind(&s.d_reserveds)
    .bind(&s.d_solds)
    .bind(head.first_offset)
    .bind(head.position)
    .bind(writer.epoch)
    .bind(count(command_count))
    .bind(rows.decided_count())
    .bind(rows.duplicate_count)
    .bind(count(rows.poison.offsets.len()))
    .bind(&*writer.config.build);
    ask("write a batch", limits::STATEMENT_DEADLINE, query.fetch_one(conn)).await
}

/// Operators' commands, and the pin that a `configure` carries (it restores a catalogue that lost it).
async fn write_commands(conn: &mut PgConnection, partition: i32, rows: &Rows) -> Result<(), StoreError> {
    let c = &rows.commands;
    if c.ids.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(
        "/* write_commands */ WITH pins AS (
           INSERT INTO sku_pin (sku_id, partition) SELECT unnest($9::text[]), $1 ON CONFLICT (sku_id) DO NOTHING)
         INSERT INTO command (command_id, requested_id, kind, sku_id, result, detail, fingerprint, partition, log_offset, log_index,
                              log_time)
         SELECT id, requested_id, 'configure', sku_id, result, detail, fingerprint, $1, log_offset, log_index, log_time
         FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::smallint[], $10::timestamptz[],
                     $11::bigint[])
           AS n (id, requested_id, sku_id, result, detail, log_offset, log_index, log_time, fingerprint)",
    )
    .bind(smallint(partition))
    .bind(&c.ids)
    .bind(&c.requested_ids)
    .bind(&c.skus)
    .bind(&c.results)
    .bind(&c.details)
    .bind(&c.offsets)
    .bind(&c.indexes)
    .bind(&rows.configured)
    .bind(&c.log_times)
    .bind(&c.fingerprints);
    ask("write commands", limits::STATEMENT_DEADLINE, query.execute(conn)).await.map(drop)
}

async fn write_poison(
    conn: &mut PgConnection,
    partition: i32,
    rows: &Rows,
    raw: &BTreeMap<i64, &[u8]>,
) -> Result<(), StoreError> {
    let p = &rows.poison;
    if p.offsets.is_empty() {
        return Ok(());
    }
    let bytes: Vec<&[u8]> = p.offsets.iter().map(|offset| raw.get(offset).copied().unwrap_or_default()).collect();
    let query = sqlx::query(
        "/* write_poison */ INSERT INTO poison (partition, log_offset, log_index, command_id, reason, log_time, raw)
         SELECT $1, * FROM unnest($2::bigint[], $3::smallint[], $4::uuid[], $5::text[], $6::timestamptz[], $7::bytea[])",
    )
    .bind(smallint(partition))
    .bind(&p.offsets)
    .bind(&p.indexes)
    .bind(&p.ids)
    .bind(&p.reasons)
    .bind(&p.log_times)
    .bind(&bytes);
    ask("write poison", limits::STATEMENT_DEADLINE, query.execute(conn)).await.map(drop)
}
