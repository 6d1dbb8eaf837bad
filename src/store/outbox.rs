//! The outbox as a relay sees it: leads of partitions, rows in order, and what became of their events.
//!
//! **A lead is an advisory lock of the session**, and rows are deleted in that same session. So whoever lost the connection lost the lead
//! and can't delete any more, and no transaction is open while Kafka is waited for (it would keep vacuum from the writers' tables).
//! A relay that is frozen asks nothing for [`limits::RELAY_SESSION_IDLE_MAX`]; then the server ends its session, and another one leads.

use sqlx::postgres::{PgArguments, PgConnectOptions, PgRow};
use sqlx::query::Query;
use sqlx::{PgConnection, Postgres, Row};

use super::connect::{ask, open, read_options, smallint};
use super::{Store, StoreError};
use crate::inventory::Event;
use crate::limits;
use crate::outbox::packed;
use crate::outbox::round::Settlement;

/// A row as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxRow {
    /// The log's partition.
    pub partition: i32,
    /// Its number.
    pub id: i64,
    /// Its SKUs.
    pub skus: Vec<String>,
    /// Its events, packed.
    pub events: Vec<u8>,
}

/// A row that nobody will ever be able to read, to be parked whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadRow {
    /// As it is stored.
    pub row: OutboxRow,
    /// Why it can't be read.
    pub reason: String,
}

/// How far behind publishing is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutboxState {
    /// Age of the oldest events that are not published, in seconds; 0 = all are.
    pub lag_seconds: f64,
    /// Parked events.
    pub parked: i64,
}

/// A parked event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedRow {
    /// Its number.
    pub id: i64,
    /// The log's partition.
    pub partition: i32,
    /// Its identity; absent if it can't be read.
    pub event_id: Option<String>,
    /// Its kind; likewise.
    pub kind: Option<String>,
    /// Its SKU.
    pub skus: Vec<String>,
    /// Why it was not published.
    pub reason: String,
    /// When it was parked, in RFC 3339.
    pub parked_at: String,
}

/// A relay's own connection.
#[derive(Debug)]
pub struct OutboxSession {
    conn: PgConnection,
    topic: String,
}

/// Between the SKUs of a row where arrays of rows are bound: Postgres has no arrays of arrays of different lengths. No SKU has one.
const SKU_SEPARATOR: &str = ",";

/// The SKUs of some events, as the column holds them.
pub(super) fn sku_texts(events: &[Event]) -> Vec<String> {
    packed::skus_of(events).iter().map(|sku| sku.as_str().to_owned()).collect()
}

fn session_options(database_url: &str) -> Result<PgConnectOptions, StoreError> {
    let millis = |d: std::time::Duration| d.as_millis().to_string();
    Ok(read_options(database_url)?.application_name("flashsale relay").options([
        ("idle_session_timeout", millis(limits::RELAY_SESSION_IDLE_MAX)),
        ("statement_timeout", millis(limits::STATEMENT_DEADLINE)),
        ("lock_timeout", millis(limits::LOCK_TIMEOUT)),
        // A delete that a crash of the server forgets is an event that is published twice; it need not wait for the disk.
        ("synchronous_commit", "off".to_owned()),
        ("enable_seqscan", "off".to_owned()),
        ("plan_cache_mode", "force_generic_plan".to_owned()),
        ("jit", "off".to_owned()),
    ]))
}

impl OutboxSession {
    /// Opens a session for the outbox of `topic`'s log. It leads nothing yet.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here; after one the session must be dropped, and its leads with it.
    pub async fn open(database_url: &str, topic: &str) -> Result<Self, StoreError> {
        Ok(Self { conn: open(&session_options(database_url)?).await?, topic: topic.to_owned() })
    }

    /// Takes the lead of every partition that nobody leads; `led` are those that this session leads already. Returns the new ones.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_leads(&mut self, led: &[i32]) -> Result<Vec<i32>, StoreError> {
        let led: Vec<i16> = led.iter().copied().map(smallint).collect();
        // Materialized: a lock is taken for the rows that are left, not for those that are looked at.
        let query = sqlx::query_scalar(
            "/* take_leads */ WITH others AS MATERIALIZED (
               SELECT partition FROM partition_state WHERE topic = $1 AND partition <> ALL($2) ORDER BY partition)
             SELECT partition FROM others WHERE pg_try_advisory_lock('outbox'::regclass::oid::int4, partition::int4)",
        )
        .bind(&self.topic)
        .bind(led);
        let taken: Vec<i16> =
            ask("take the lead of partitions", limits::STATEMENT_DEADLINE, query.fetch_all(&mut self.conn)).await?;
        Ok(taken.into_iter().map(i32::from).collect())
    }

    /// The next rows of some partitions, each after the number given with it, in order, at most [`limits::RELAY_ROWS_PER_ROUND`] of each.
    /// Rows that hold nothing but events of `held` SKUs are stepped over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&mut self, partitions: &[(i32, i64)], held: &[&str]) -> Result<Vec<OutboxRow>, StoreError> {
        let (numbers, after): (Vec<i16>, Vec<i64>) = partitions.iter().map(|(p, id)| (smallint(*p), *id)).unzip();
        let query = sqlx::query(
            "/* load */ SELECT lane.partition, o.id, o.skus, o.events
             FROM unnest($1::smallint[], $2::bigint[]) AS lane (partition, after)
             CROSS JOIN LATERAL (
               SELECT id, skus, events FROM outbox
               WHERE outbox.partition = lane.partition AND id > lane.after AND NOT skus <@ $3::text[]
               ORDER BY id LIMIT $4) o
             ORDER BY lane.partition, o.id",
        )
        .bind(numbers)
        .bind(after)
        .bind(held)
        .bind(limits::RELAY_ROWS_PER_ROUND);
        let rows = ask("read the outbox", limits::STATEMENT_DEADLINE, query.fetch_all(&mut self.conn)).await?;
        let unreadable = |source| StoreError::Query { attempt: "read a row of the outbox", source };
        rows.iter().map(outbox_row).collect::<Result<_, sqlx::Error>>().map_err(unreadable)
    }

    /// Writes down what became of a round of one partition: all of it or nothing, in one statement, so that a relay that is frozen or gives
    /// up half-way leaves no transaction open that its next settlement would commit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle(&mut self, partition: i32, settlement: &Settlement) -> Result<(), StoreError> {
        let Settlement { done, rest, parked } = settlement;
        let query = match (done.is_empty(), rest.is_empty() && parked.is_empty()) {
            (true, true) => return Ok(()),
            (false, true) => sqlx::query("/* settle */ DELETE FROM outbox WHERE partition = $1 AND id = ANY($2)")
                .bind(smallint(partition))
                .bind(done),
            (_, false) => settle_in_part(partition, settlement),
        };
        let settling = query.execute(&mut self.conn);
        ask("settle a round of the outbox", limits::STATEMENT_DEADLINE, settling).await.map(drop)
    }

    /// Parks a row whole.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn park_unread(&mut self, unread: &UnreadRow) -> Result<(), StoreError> {
        let query = sqlx::query(
            "/* park_unread */ WITH gone AS (DELETE FROM outbox WHERE partition = $1 AND id = $2 RETURNING skus, events)
             INSERT INTO outbox_parked (partition, skus, reason, events) SELECT $1, skus, $3, events FROM gone",
        )
        .bind(smallint(unread.row.partition))
        .bind(unread.row.id)
        .bind(&unread.reason);
        let parking = query.execute(&mut self.conn);
        ask("park a row of the outbox", limits::STATEMENT_DEADLINE, parking).await.map(drop)
    }

    /// How far behind publishing is, over all partitions, whoever leads them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn state(&mut self) -> Result<OutboxState, StoreError> {
        let query = sqlx::query_as(
            "/* state */ SELECT
               (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(o.written_at)), 0)::float8
                FROM partition_state p CROSS JOIN LATERAL (
                  SELECT written_at FROM outbox WHERE outbox.partition = p.partition ORDER BY id LIMIT 1) o
                WHERE p.topic = $1),
               (SELECT count(*) FROM outbox_parked)",
        )
        .bind(&self.topic);
        let (lag_seconds, parked): (f64, i64) =
            ask("read the state of the outbox", limits::STATEMENT_DEADLINE, query.fetch_one(&mut self.conn)).await?;
        Ok(OutboxState { lag_seconds: lag_seconds.max(0.0), parked })
    }
}

fn outbox_row(row: &PgRow) -> Result<OutboxRow, sqlx::Error> {
    Ok(OutboxRow {
        partition: i32::from(row.try_get::<i16, _>("partition")?),
        id: row.try_get("id")?,
        skus: row.try_get("skus")?,
        events: row.try_get("events")?,
    })
}

/// Of rows that are not done only the events that are left are kept: a restart sends no confirmed one again.
fn settle_in_part(partition: i32, settlement: &Settlement) -> Query<'_, Postgres, PgArguments> {
    let Settlement { done, rest, parked } = settlement;
    let (rest_ids, rest_skus): (Vec<i64>, Vec<String>) =
        rest.iter().map(|row| (row.id, sku_texts(&row.events).join(SKU_SEPARATOR))).unzip();
    let rest_events: Vec<Vec<u8>> = rest.iter().map(|row| packed::pack(partition, &row.events)).collect();
    let (parked_ids, parked_skus): (Vec<String>, Vec<&str>) =
        parked.iter().map(|parked| (parked.event.id(partition), parked.event.sku.as_str())).unzip();
    let (kinds, reasons): (Vec<&str>, Vec<&str>) =
        parked.iter().map(|parked| (parked.event.kind(), parked.reason.as_str())).unzip();
    let parked_events: Vec<Vec<u8>> =
        parked.iter().map(|parked| packed::pack(partition, std::slice::from_ref(&parked.event))).collect();
    sqlx::query(
        "/* settle_in_part */ WITH
         gone AS (DELETE FROM outbox WHERE partition = $1 AND id = ANY($2)),
         kept AS (
           UPDATE outbox SET skus = string_to_array(k.skus, $3), events = k.events
           FROM unnest($4::bigint[], $5::text[], $6::bytea[]) AS k (id, skus, events)
           WHERE outbox.partition = $1 AND outbox.id = k.id)
         INSERT INTO outbox_parked (partition, event_id, kind, skus, reason, events)
         SELECT $1, event_id, kind, ARRAY[sku], reason, events
         FROM unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::bytea[]) WITH ORDINALITY
           AS p (event_id, kind, sku, reason, events, n) ORDER BY n",
    )
    .bind(smallint(partition))
    .bind(done)
    .bind(SKU_SEPARATOR)
    .bind(rest_ids)
    .bind(rest_skus)
    .bind(rest_events)
    .bind(parked_ids)
    .bind(kinds)
    .bind(parked_skus)
    .bind(reasons)
    .bind(parked_events)
}

impl Store {
    /// The oldest parked events, at most [`limits::PARKED_SHOWN_MAX`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_parked(&self) -> Result<Vec<ParkedRow>, StoreError> {
        let query = sqlx::query(
            "/* load_parked */ SELECT id, partition, event_id, kind, skus, reason,
               to_char(parked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS parked_at
             FROM outbox_parked ORDER BY id LIMIT $1",
        )
        .bind(limits::PARKED_SHOWN_MAX);
        let rows = ask("read parked events", limits::READ_DEADLINE, query.fetch_all(&self.pool)).await?;
        let unreadable = |source| StoreError::Query { attempt: "read a parked event", source };
        rows.iter().map(parked_row).collect::<Result<_, sqlx::Error>>().map_err(unreadable)
    }

    /// Puts a parked event back into the outbox, behind what waits there; `false` = there is none of that number.
    ///
    /// Its row takes its number as a batch's does, under the lock of the partition's row: beside a batch that is being written it would show
    /// the higher number first, and a relay that is past it would publish later events of the batch's SKUs before the batch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn retry_parked(&self, id: i64) -> Result<bool, StoreError> {
        let query = sqlx::query(
            "/* retry_parked */ WITH
             locked AS MATERIALIZED (
               SELECT e.id FROM outbox_parked e JOIN partition_state p USING (partition) WHERE e.id = $1 AND p.topic = $2 FOR UPDATE OF p),
             retried AS (DELETE FROM outbox_parked WHERE id IN (SELECT id FROM locked) RETURNING partition, skus, events)
             INSERT INTO outbox (partition, skus, events) SELECT partition, skus, events FROM retried",
        )
        .bind(id)
        .bind(&*self.topic);
        let retried = ask("put a parked event back", limits::READ_DEADLINE, query.execute(&self.pool)).await?;
        Ok(retried.rows_affected() == 1)
    }
}

fn parked_row(row: &PgRow) -> Result<ParkedRow, sqlx::Error> {
    Ok(ParkedRow {
        id: row.try_get("id")?,
        partition: i32::from(row.try_get::<i16, _>("partition")?),
        event_id: row.try_get("event_id")?,
        kind: row.try_get("kind")?,
        skus: row.try_get("skus")?,
        reason: row.try_get("reason")?,
        parked_at: row.try_get("parked_at")?,
    })
}
