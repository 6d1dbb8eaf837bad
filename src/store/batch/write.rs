//! The rows of a batch, in a fixed number of statements whatever its size.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::connect::{ask, smallint};
use super::super::memory::EndedHold;
use super::super::outbox;
use super::super::rows::{Rows, count};
use super::super::{StoreError, Writer};
use super::{BatchHead, SettledHold};
use crate::clock::{millis_of, time_of};
use crate::ids::{MalformedId, SkuId, UserId};
use crate::inventory::Event;
use crate::limits;
use crate::outbox::packed;

/// Rows, stock, movements and the batch row; returns how many SKUs were written: fewer, if a row is not what the writer remembers.
pub(super) async fn write_batch(
    conn: &mut PgConnection,
    writer: &Writer,
    head: BatchHead,
    command_count: usize,
    rows: &Rows<'_>,
) -> Result<i64, StoreError> {
    let s = &rows.skus;
    let made = rows.reservations.iter().map(|row| row.reservation_id);
    let decided: Vec<Uuid> = made.chain(rows.changes.ids.iter().copied()).collect();
    let query = sqlx::query_scalar(
        "/* write_batch */ WITH
         rows AS (
           INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, available, quantity, user_limit,
                                    remaining, log_index, status, holds_pending, user_id, sku_id, reason, metadata, version, partition)
           SELECT *, 1, $1 FROM unnest($2::new_reservation[])),
         changed AS (
           SELECT * FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::int[], $8::int[], $9::timestamptz[],
                                $10::timestamptz[], $11::smallint[], $12::int[], $13::int[], $14::bigint[], $15::bigint[],
                                $16::bool[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[], $30::timestamptz[],
                                $31::bool[])
             AS c (sku_id, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment, extensions_max,
                   extension_seconds_max, settings_version, movement_count, is_movement, d_on_hand, d_reserved, d_sold,
                   settings_version_before, expired_through, is_paused)),
         created AS (
           INSERT INTO sku (sku_id, partition, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                            extensions_max, extension_seconds_max, settings_version, movement_count, expired_through, is_paused)
           SELECT sku_id, $1, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                  extensions_max, extension_seconds_max, settings_version, movement_count, expired_through, is_paused
           FROM changed WHERE settings_version_before = 0
           RETURNING 1),
         updated AS (
           UPDATE sku s SET
             on_hand = c.on_hand, reserved = c.reserved, sold = c.sold, user_limit = c.user_limit, hold_seconds = c.hold_seconds,
             starts_at = c.starts_at, ends_at = c.ends_at, late_payment = c.late_payment, extensions_max = c.extensions_max,
             extension_seconds_max = c.extension_seconds_max, settings_version = c.settings_version,
             movement_count = c.movement_count, expired_through = c.expired_through, is_paused = c.is_paused
           FROM changed c
           WHERE s.sku_id = c.sku_id AND s.partition = $1
             AND s.on_hand = c.on_hand - c.d_on_hand AND s.reserved = c.reserved - c.d_reserved AND s.sold = c.sold - c.d_sold
             AND s.settings_version = c.settings_version_before
           RETURNING 1),
         moved AS (
           INSERT INTO stock_movement (sku_id, number, partition, first_offset, epoch, d_on_hand, d_reserved, d_sold,
                                       on_hand, reserved, sold)
           SELECT sku_id, movement_count, $1, $21, $22, d_on_hand, d_reserved, d_sold, on_hand, reserved, sold
           FROM changed WHERE is_movement),
         told AS (
           INSERT INTO batch (partition, first_offset, epoch, position, command_count, decided_count, duplicate_count, poison_count,
                              build, decided, tick_count)
           VALUES ($1, $21, $22, $23, $24, $25, $26, $27, $28, $29, $32)),
         happened AS (
           INSERT INTO outbox (partition, skus, events) SELECT $1, $33::text[], $34::bytea WHERE $34 IS NOT NULL)
         SELECT (SELECT count(*) FROM created) + (SELECT count(*) FROM updated)",
    )
    .bind(smallint(writer.partition))
    .bind(&rows.reservations)
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
    .bind(&s.settings_versions_before)
    .bind(head.first_offset)
    .bind(writer.epoch)
    .bind(head.position)
    .bind(count(command_count))
    .bind(rows.decided_count())
    .bind(rows.duplicate_count)
    .bind(count(rows.poison.offsets.len()))
    .bind(&*writer.config.build)
    .bind(decided)
    .bind(&s.expired_throughs)
    .bind(&s.are_paused)
    .bind(rows.tick_count)
    .bind(&rows.event_skus)
    .bind(&rows.events);
    ask("write a batch", limits::STATEMENT_DEADLINE, query.fetch_one(conn)).await
}

/// What commands made of reservations; returns how many rows were changed: fewer, if a row is not what was loaded.
pub(super) async fn write_changes(conn: &mut PgConnection, rows: &Rows<'_>) -> Result<u64, StoreError> {
    let c = &rows.changes;
    if c.ids.is_empty() {
        return Ok(0);
    }
    let query = sqlx::query(
        "/* write_changes */ UPDATE reservation r SET
           version = c.version, status = c.status, expires_at = c.expires_at, extensions = c.extensions,
           extension_seconds = c.extension_seconds, changed_at = c.changed_at, payment_ref = c.payment_ref, is_late = c.is_late,
           note = c.note
         FROM unnest($1::uuid[], $2::int[], $3::int[], $4::smallint[], $5::timestamptz[], $6::smallint[], $7::int[], $8::timestamptz[],
                     $9::text[], $10::bool[], $11::text[])
           AS c (id, version_before, version, status, expires_at, extensions, extension_seconds, changed_at, payment_ref, is_late, note)
         WHERE r.reservation_id = c.id AND r.version = c.version_before",
    )
    .bind(&c.ids)
    .bind(&c.versions_before)
    .bind(&c.versions)
    .bind(&c.statuses)
    .bind(&c.expires_ats)
    .bind(&c.extensions)
    .bind(&c.extension_seconds)
    .bind(&c.changed_ats)
    .bind(&c.payment_refs)
    .bind(&c.are_late)
    .bind(&c.notes);
    ask("write changed reservations", limits::STATEMENT_DEADLINE, query.execute(conn))
        .await
        .map(|done| done.rows_affected())
}

/// Lets the rows of ended holds say so. One that was changed meanwhile (a late payment) is left alone.
pub(super) async fn settle(
    conn: &mut PgConnection,
    partition: i32,
    ended: &[EndedHold],
) -> Result<Vec<SettledHold>, StoreError> {
    let ids: Vec<Uuid> = ended.iter().map(|hold| hold.reservation).collect();
    let ends: Vec<OffsetDateTime> = ended.iter().map(|hold| time_of(hold.expires_at)).collect();
    let query = sqlx::query(
        "/* settle */ UPDATE reservation r SET status = 5, version = r.version + 1
         FROM unnest($1::uuid[], $2::timestamptz[]) AS e (id, ends)
         WHERE r.reservation_id = e.id AND r.status = 1 AND r.expires_at = e.ends
         RETURNING r.reservation_id, r.sku_id, r.user_id, r.quantity, r.version, r.expires_at",
    )
    .bind(ids)
    .bind(ends);
    let rows = ask("settle ended holds", limits::STATEMENT_DEADLINE, query.fetch_all(&mut *conn)).await?;
    let unreadable = |source| StoreError::Query { attempt: "read a settled hold", source };
    let mut settled = rows.iter().map(|row| settled_of(row).map_err(unreadable)).collect::<Result<Vec<_>, _>>()?;
    let left = units_left(conn, partition, &settled).await?;
    for hold in &mut settled {
        hold.units_left = left[&(hold.sku.clone(), hold.user.clone())];
    }
    Ok(settled)
}

/// What the users of ended holds still have. Asked once per user, not per hold: one user may have hundreds of them.
async fn units_left(
    conn: &mut PgConnection,
    partition: i32,
    settled: &[SettledHold],
) -> Result<BTreeMap<(SkuId, UserId), i64>, StoreError> {
    let users: BTreeSet<(SkuId, UserId)> = settled.iter().map(|hold| (hold.sku.clone(), hold.user.clone())).collect();
    let hashes: Vec<i64> = users.iter().map(|(_, user)| user.hash64()).collect();
    let names: Vec<&str> = users.iter().map(|(_, user)| user.as_str()).collect();
    let skus: Vec<&str> = users.iter().map(|(sku, _)| sku.as_str()).collect();
    let query = sqlx::query_scalar(
        "/* units_left */ SELECT h.units FROM unnest($1::bigint[], $2::text[], $3::text[]) WITH ORDINALITY
           AS a (user_hash, user_id, sku_id, n) CROSS JOIN LATERAL (
             SELECT coalesce(sum(u.quantity), 0)::bigint AS units FROM reservation u JOIN sku s ON s.sku_id = u.sku_id
             WHERE u.partition = $4 AND u.user_hash = a.user_hash AND u.status IN (1, 3) AND u.user_id = a.user_id
               AND u.sku_id = a.sku_id AND NOT (u.status = 1 AND u.expires_at <= s.expired_through)) h
         ORDER BY a.n",
    )
    .bind(hashes)
    .bind(names)
    .bind(skus)
    .bind(smallint(partition));
    let units: Vec<i64> = ask("count what users have left", limits::STATEMENT_DEADLINE, query.fetch_all(conn)).await?;
    Ok(users.into_iter().zip(units).collect())
}

/// Events of a transaction that are not those of its batch.
pub(super) async fn write_events(conn: &mut PgConnection, partition: i32, events: &[Event]) -> Result<(), StoreError> {
    let query = sqlx::query("/* write_events */ INSERT INTO outbox (partition, skus, events) VALUES ($1, $2, $3)")
        .bind(smallint(partition))
        .bind(outbox::sku_texts(events))
        .bind(packed::pack(partition, events));
    ask("write events", limits::STATEMENT_DEADLINE, query.execute(conn)).await.map(drop)
}

fn settled_of(row: &PgRow) -> Result<SettledHold, sqlx::Error> {
    let broken = |error: MalformedId| sqlx::Error::Decode(error.into());
    Ok(SettledHold {
        reservation: row.try_get("reservation_id")?,
        sku: SkuId::parse(row.try_get("sku_id")?).map_err(broken)?,
        user: UserId::parse(row.try_get("user_id")?).map_err(broken)?,
        units: row.try_get::<i32, _>("quantity")?.into(),
        units_left: 0, // Counted next, for all.
        version: row.try_get("version")?,
        expires_at: millis_of(row.try_get::<OffsetDateTime, _>("expires_at")?),
    })
}

/// Commands that are not reserves, and the pin that a `configure` carries (it restores a catalogue that lost it). In the order of their ids,
/// as reservations are (`Rows::of`).
pub(super) async fn write_commands(conn: &mut PgConnection, partition: i32, rows: &Rows<'_>) -> Result<(), StoreError> {
    let c = &rows.commands;
    if c.ids.is_empty() {
        return Ok(());
    }
    let query = sqlx::query(
        "/* write_commands */ WITH pins AS (
           INSERT INTO sku_pin (sku_id, partition) SELECT unnest($2::text[]), $1 ON CONFLICT (sku_id) DO NOTHING)
         INSERT INTO command (partition, command_id, requested_id, reservation_id, kind, sku_id, result, detail_1, detail_2, detail_3,
                              fingerprint, log_offset, log_index, log_time, key_id)
         SELECT $1, * FROM unnest($3::uuid[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::text[], $9::bigint[], $10::bigint[],
                                  $11::bigint[], $12::bigint[], $13::bigint[], $14::smallint[], $15::timestamptz[], $16::uuid[])
             AS c (command_id)
         ORDER BY c.command_id",
    )
    .bind(smallint(partition))
    .bind(&rows.configured)
    .bind(&c.ids)
    .bind(&c.requested_ids)
    .bind(&c.reservations)
    .bind(&c.kinds)
    .bind(&c.skus)
    .bind(&c.results)
    .bind(&c.details[0])
    .bind(&c.details[1])
    .bind(&c.details[2])
    .bind(&c.fingerprints)
    .bind(&c.offsets)
    .bind(&c.indexes)
    .bind(&c.log_times)
    .bind(&c.key_ids);
    ask("write commands", limits::STATEMENT_DEADLINE, query.execute(conn)).await.map(drop)
}

pub(super) async fn write_poison(
    conn: &mut PgConnection,
    partition: i32,
    rows: &Rows<'_>,
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
