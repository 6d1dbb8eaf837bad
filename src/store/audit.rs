//! What the auditor reads, in one snapshot, and the one row that it writes: the halt of a SKU.
//!
//! **A lead is an advisory lock of the session**, as with the relay: one auditor at a time, and a frozen one is ended by the server.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{PgConnection, Row};

use super::connect::{ask, open, read_options, smallint};
use super::{Store, StoreError};
use crate::auditor::books::{Accepted, Balance, Batch, Counters, Lost, Movement, Recounted};
use crate::limits;

/// An auditor's own connection.
#[derive(Debug)]
pub struct AuditSession {
    conn: PgConnection,
    topic: String,
}

/// One `REPEATABLE READ` snapshot. Dropped without [`AuditSnapshot::end`], its session must be dropped, too.
#[derive(Debug)]
pub struct AuditSnapshot<'s> {
    conn: &'s mut PgConnection,
    topic: &'s str,
}

/// A SKU whose sale is to be stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halt {
    /// The SKU.
    pub sku_id: String,
    /// What does not add up.
    pub reason: String,
    /// The last time that an operator let it go on, as seen with what does not add up; 0 = never.
    pub seen_resume: i64,
}

/// A SKU whose sale the auditor stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaltedSku {
    /// The SKU.
    pub sku_id: String,
    /// What did not add up.
    pub reason: String,
    /// When, in RFC 3339.
    pub halted_at: String,
}

fn session_options(database_url: &str) -> Result<PgConnectOptions, StoreError> {
    let millis = |d: Duration| d.as_millis().to_string();
    Ok(read_options(database_url)?.application_name("flashsale auditor").options([
        ("idle_session_timeout", millis(limits::AUDIT_SESSION_IDLE_MAX)),
        ("idle_in_transaction_session_timeout", millis(limits::AUDIT_SESSION_IDLE_MAX)),
        ("statement_timeout", millis(limits::AUDIT_DEADLINE)),
        ("jit", "off".to_owned()),
    ]))
}

impl AuditSession {
    /// Opens a session for the tables of `topic`'s log. It leads nothing yet.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here; after one the session must be dropped, and its lead with it.
    pub async fn open(database_url: &str, topic: &str) -> Result<Self, StoreError> {
        Ok(Self { conn: open(&session_options(database_url)?).await?, topic: topic.to_owned() })
    }

    /// Takes the lead; `false` = another auditor has it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_lead(&mut self) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar("/* take_lead */ SELECT pg_try_advisory_lock('sku_halt'::regclass::oid::int8)");
        ask("take the lead of the audit", limits::AUDIT_DEADLINE, query.fetch_one(&mut self.conn)).await
    }

    /// Begins a look: everything that it reads is of one moment.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot(&mut self) -> Result<AuditSnapshot<'_>, StoreError> {
        let begin = sqlx::raw_sql("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").execute(&mut self.conn);
        ask("begin a look of the auditor", limits::AUDIT_DEADLINE, begin).await?;
        Ok(AuditSnapshot { conn: &mut self.conn, topic: &self.topic })
    }

    /// Stops the sale of SKUs; of those that are stopped the first reason stays. One that an operator let go on since is left alone: the
    /// next look judges it anew.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn halt(&mut self, halts: &[Halt]) -> Result<(), StoreError> {
        if halts.is_empty() {
            return Ok(());
        }
        let skus: Vec<&str> = halts.iter().map(|halt| halt.sku_id.as_str()).collect();
        let reasons: Vec<&str> = halts.iter().map(|halt| halt.reason.as_str()).collect();
        let resumes: Vec<i64> = halts.iter().map(|halt| halt.seen_resume).collect();
        let conn = &mut self.conn;
        let halting = async {
            // Resumes take the same lock, so that each sees what the other did.
            sqlx::raw_sql(LOCK_HALTS).execute(&mut *conn).await?;
            let query = sqlx::query(
                "/* halt */ INSERT INTO sku_halt (sku_id, reason)
                 SELECT sku_id, reason FROM unnest($1::text[], $2::text[], $3::bigint[]) AS found (sku_id, reason, seen)
                 WHERE NOT EXISTS (SELECT FROM sku_resume r WHERE r.sku_id = found.sku_id AND r.id > found.seen)
                 ON CONFLICT DO NOTHING",
            );
            query.bind(skus).bind(reasons).bind(resumes).execute(&mut *conn).await?;
            sqlx::raw_sql("COMMIT").execute(&mut *conn).await.map(drop)
        };
        ask("halt SKUs", limits::AUDIT_DEADLINE, halting).await
    }
}

/// Halts and resumes of SKUs one after the other; nobody who only reads waits.
const LOCK_HALTS: &str = "BEGIN; LOCK TABLE sku_halt IN SHARE ROW EXCLUSIVE MODE";

impl AuditSnapshot<'_> {
    /// Every SKU's row, or those of some.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here.
    pub async fn counters(&mut self, only: Option<&[String]>) -> Result<Vec<Counters>, StoreError> {
        let query = sqlx::query(
            "/* audit_counters */ SELECT sku_id, on_hand, reserved, sold, movement_count FROM sku
             WHERE $1::text[] IS NULL OR sku_id = ANY($1) ORDER BY sku_id",
        )
        .bind(only);
        let rows = ask("read counters", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| {
            Ok(Counters {
                sku_id: row.try_get("sku_id")?,
                balance: balance_of(row, ["on_hand", "reserved", "sold"])?,
                movement_count: row.try_get("movement_count")?,
            })
        })
    }

    /// SKUs that have movements and no row, which nobody ever removes, each with the number of its last movement.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn lost(&mut self) -> Result<Vec<Lost>, StoreError> {
        let query = sqlx::query(
            "/* audit_lost */ SELECT p.sku_id, m.number FROM sku_pin p
             CROSS JOIN LATERAL (SELECT number FROM stock_movement WHERE sku_id = p.sku_id ORDER BY number DESC LIMIT 1) m
             WHERE NOT EXISTS (SELECT FROM sku s WHERE s.sku_id = p.sku_id) ORDER BY p.sku_id",
        );
        let rows = ask("look for lost SKUs", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| Ok(Lost { sku_id: row.try_get("sku_id")?, number: row.try_get("number")? }))
    }

    /// The last time that an operator let each SKU go on; most have none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resumes(&mut self) -> Result<BTreeMap<String, i64>, StoreError> {
        let query = sqlx::query_as("/* audit_resumes */ SELECT sku_id, max(id) FROM sku_resume GROUP BY sku_id");
        let rows: Vec<(String, i64)> =
            ask("read resumes of SKUs", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        Ok(rows.into_iter().collect())
    }

    /// The balance of each of these SKUs [`limits::AUDIT_MOVEMENTS_BACK`] movements ago, given their number of movements; those that have
    /// fewer are left out.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recent(&mut self, skus: &[(String, i64)]) -> Result<Vec<Accepted>, StoreError> {
        let (names, counts): (Vec<&str>, Vec<i64>) = skus.iter().map(|(sku, count)| (sku.as_str(), *count)).unzip();
        let query = sqlx::query(
            "/* audit_recent */ SELECT m.sku_id, m.number AS movement_count, m.on_hand, m.reserved, m.sold
             FROM unnest($1::text[], $2::bigint[]) AS book (sku_id, count)
             JOIN stock_movement m ON m.sku_id = book.sku_id AND m.number = book.count - $3",
        )
        .bind(names)
        .bind(counts)
        .bind(limits::AUDIT_MOVEMENTS_BACK);
        let rows = ask("read earlier stock", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, accepted_of)
    }

    /// Where operators let the books of these SKUs begin; most have nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accepted(&mut self, skus: &[String]) -> Result<Vec<Accepted>, StoreError> {
        let query = sqlx::query(
            "/* audit_accepted */ SELECT DISTINCT ON (sku_id) sku_id, movement_count, on_hand, reserved, sold
             FROM sku_resume WHERE sku_id = ANY($1) ORDER BY sku_id, id DESC",
        )
        .bind(skus);
        let rows = ask("read accepted stock", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, accepted_of)
    }

    /// The next movements of some SKUs, each after the number given with it, in order, at most [`limits::AUDIT_MOVEMENTS_PER_SKU`] of each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn movements(&mut self, skus: &[(String, i64)]) -> Result<Vec<Movement>, StoreError> {
        let (names, after): (Vec<&str>, Vec<i64>) = skus.iter().map(|(sku, number)| (sku.as_str(), *number)).unzip();
        let query = sqlx::query(
            "/* audit_movements */ SELECT m.* FROM unnest($1::text[], $2::bigint[]) AS book (sku_id, number)
             CROSS JOIN LATERAL (
               SELECT sku_id, number, first_offset, d_on_hand, d_reserved, d_sold, on_hand, reserved, sold FROM stock_movement
               WHERE stock_movement.sku_id = book.sku_id AND stock_movement.number > book.number ORDER BY number LIMIT $3) m
             ORDER BY m.sku_id, m.number",
        )
        .bind(names)
        .bind(after)
        .bind(limits::AUDIT_MOVEMENTS_PER_SKU);
        let rows = ask("read movements", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| {
            Ok(Movement {
                sku_id: row.try_get("sku_id")?,
                number: row.try_get("number")?,
                first_offset: row.try_get("first_offset")?,
                delta: balance_of(row, ["d_on_hand", "d_reserved", "d_sold"])?,
                balance: balance_of(row, ["on_hand", "reserved", "sold"])?,
            })
        })
    }

    /// Every partition's position.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn positions(&mut self) -> Result<Vec<(i32, i64)>, StoreError> {
        let query = sqlx::query(
            "/* audit_positions */ SELECT partition, position FROM partition_state WHERE topic = $1 ORDER BY partition",
        )
        .bind(self.topic);
        let rows = ask("read positions", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| Ok((i32::from(row.try_get::<i16, _>("partition")?), row.try_get("position")?)))
    }

    /// The next batches of some partitions, each from the position given with it on, in order, at most [`limits::AUDIT_BATCHES_PER_PARTITION`]
    /// of each.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn batches(&mut self, partitions: &[(i32, i64)]) -> Result<Vec<Batch>, StoreError> {
        let (numbers, from): (Vec<i16>, Vec<i64>) =
            partitions.iter().map(|(p, position)| (smallint(*p), *position)).unzip();
        let query = sqlx::query(
            "/* audit_batches */ SELECT b.* FROM unnest($1::smallint[], $2::bigint[]) AS tiles (partition, position)
             CROSS JOIN LATERAL (
               SELECT partition, first_offset, position, epoch FROM batch
               WHERE batch.partition = tiles.partition AND batch.first_offset >= tiles.position ORDER BY first_offset LIMIT $3) b
             ORDER BY b.partition, b.first_offset",
        )
        .bind(numbers)
        .bind(from)
        .bind(limits::AUDIT_BATCHES_PER_PARTITION);
        let rows = ask("read batches", limits::AUDIT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| {
            Ok(Batch {
                partition: i32::from(row.try_get::<i16, _>("partition")?),
                first_offset: row.try_get("first_offset")?,
                position: row.try_get("position")?,
                epoch: row.try_get("epoch")?,
            })
        })
    }

    /// All reservations, or those of some SKUs, added up by SKU: what runs and what is sold. A hold that has ended counts no more, settled
    /// or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn recount(&mut self, only: Option<&[String]>) -> Result<Vec<Recounted>, StoreError> {
        let millis = limits::AUDIT_RECOUNT_DEADLINE.as_millis();
        // On one core: with the parallel workers that the server would add, buyers wait for as long as it takes.
        let patience = sqlx::query(
            "/* audit_recount */ SELECT set_config('statement_timeout', $1, true), set_config('max_parallel_workers_per_gather', '0', true)",
        )
        .bind(millis.to_string());
        ask("begin a recount", limits::AUDIT_DEADLINE, patience.execute(&mut *self.conn)).await?;
        let query = sqlx::query(
            "/* audit_recount */ SELECT r.sku_id,
               coalesce(sum(r.quantity) FILTER (WHERE r.status = 1 AND (s.sku_id IS NULL OR r.expires_at > s.expired_through)), 0)::bigint AS reserved,
               coalesce(sum(r.quantity) FILTER (WHERE r.status = 3), 0)::bigint AS sold
             FROM reservation r LEFT JOIN sku s ON s.sku_id = r.sku_id
             WHERE r.status IN (1, 3) AND ($1::text[] IS NULL OR r.sku_id = ANY($1)) GROUP BY r.sku_id",
        )
        .bind(only);
        let rows =
            ask("recount reservations", limits::AUDIT_RECOUNT_DEADLINE, query.fetch_all(&mut *self.conn)).await?;
        read_all(&rows, |row| {
            Ok(Recounted {
                sku_id: row.try_get("sku_id")?,
                reserved: row.try_get("reserved")?,
                sold: row.try_get("sold")?,
            })
        })
    }

    /// Ends the look.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end(self) -> Result<(), StoreError> {
        let end = sqlx::raw_sql("COMMIT").execute(&mut *self.conn);
        ask("end a look of the auditor", limits::AUDIT_DEADLINE, end).await.map(drop)
    }
}

fn accepted_of(row: &PgRow) -> Result<Accepted, sqlx::Error> {
    Ok(Accepted {
        sku_id: row.try_get("sku_id")?,
        number: row.try_get("movement_count")?,
        balance: balance_of(row, ["on_hand", "reserved", "sold"])?,
    })
}

fn balance_of(row: &PgRow, [on_hand, reserved, sold]: [&str; 3]) -> Result<Balance, sqlx::Error> {
    Ok(Balance { on_hand: row.try_get(on_hand)?, reserved: row.try_get(reserved)?, sold: row.try_get(sold)? })
}

fn read_all<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, sqlx::Error>) -> Result<Vec<T>, StoreError> {
    let unreadable = |source| StoreError::Query { attempt: "read what the auditor asked for", source };
    rows.iter().map(read).collect::<Result<_, _>>().map_err(unreadable)
}

impl Store {
    /// SKUs whose sale the auditor stopped, in order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_halted_skus(&self) -> Result<Vec<HaltedSku>, StoreError> {
        let query = sqlx::query(
            "/* load_halted_skus */ SELECT sku_id, reason,
               to_char(halted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS halted_at
             FROM sku_halt ORDER BY sku_id",
        );
        let rows = ask("read halted SKUs", limits::READ_DEADLINE, query.fetch_all(&self.pool)).await?;
        let read = |row: &PgRow| -> Result<HaltedSku, sqlx::Error> {
            Ok(HaltedSku {
                sku_id: row.try_get("sku_id")?,
                reason: row.try_get("reason")?,
                halted_at: row.try_get("halted_at")?,
            })
        };
        let unreadable = |source| StoreError::Query { attempt: "read a halted SKU", source };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(unreadable)
    }

    /// Lets the sale of a halted SKU go on: its stock as it is now is where the books begin anew, and who says so is written down.
    /// `false` = the SKU is not halted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume_sku(&self, sku: &str, note: &str) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "/* resume_sku */ WITH halted AS (DELETE FROM sku_halt WHERE sku_id = $1 RETURNING sku_id, reason)
             INSERT INTO sku_resume (sku_id, halted_reason, note, movement_count, on_hand, reserved, sold)
             SELECT h.sku_id, h.reason, $2, coalesce(s.movement_count, 0), coalesce(s.on_hand, 0), coalesce(s.reserved, 0), coalesce(s.sold, 0)
             FROM halted h LEFT JOIN sku s ON s.sku_id = h.sku_id",
        )
        .bind(sku)
        .bind(note);
        let resuming = async {
            let mut conn = self.pool.acquire().await?;
            sqlx::raw_sql(LOCK_HALTS).execute(&mut *conn).await?;
            let resumed = query.execute(&mut *conn).await?;
            sqlx::raw_sql("COMMIT").execute(&mut *conn).await?;
            Ok(resumed.rows_affected() == 1)
        };
        ask("let a SKU go on", limits::STATEMENT_DEADLINE, resuming).await
    }
}
