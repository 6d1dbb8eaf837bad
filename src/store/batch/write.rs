//! The rows of a batch, in a fixed number of statements whatever its size.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use uuid::Uuid;

use super::super::connect::{ask, smallint};
use super::super::rows::{Rows, count};
use super::super::{StoreError, Writer};
use super::BatchHead;
use crate::limits;

/// Rows, stock, movements and the batch row; returns how many SKUs were written: fewer, if a row is not what the writer remembers.
pub(super) async fn write_batch(
    conn: &mut PgConnection,
    writer: &Writer,
    head: BatchHead,
    command_count: usize,
    rows: &Rows<'_>,
) -> Result<i64, StoreError> {
    let s = &rows.skus;
    let decided: Vec<Uuid> = rows.reservations.iter().map(|row| row.reservation_id).collect();
    let query = sqlx::query_scalar(
        "/* write_batch */ WITH
         rows AS (
           INSERT INTO reservation (reservation_id, user_hash, log_offset, log_time, expires_at, available, quantity, user_limit,
                                    remaining, log_index, status, holds_pending, user_id, sku_id, reason, version, partition)
           SELECT *, 1, $1 FROM unnest($2::new_reservation[])),
         changed AS (
           SELECT * FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::int[], $8::int[], $9::timestamptz[],
                                $10::timestamptz[], $11::smallint[], $12::int[], $13::int[], $14::bigint[], $15::bigint[],
                                $16::bool[], $17::bigint[], $18::bigint[], $19::bigint[], $20::bigint[])
             AS c (sku_id, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment, extensions_max,
                   extension_seconds_max, settings_version, movement_count, is_movement, d_on_hand, d_reserved, d_sold,
                   settings_version_before)),
         created AS (
           INSERT INTO sku (sku_id, partition, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                            extensions_max, extension_seconds_max, settings_version, movement_count)
           SELECT sku_id, $1, on_hand, reserved, sold, user_limit, hold_seconds, starts_at, ends_at, late_payment,
                  extensions_max, extension_seconds_max, settings_version, movement_count
           FROM changed WHERE settings_version_before = 0
           RETURNING 1),
         updated AS (
           UPDATE sku s SET
             on_hand = c.on_hand, reserved = c.reserved, sold = c.sold, user_limit = c.user_limit, hold_seconds = c.hold_seconds,
             starts_at = c.starts_at, ends_at = c.ends_at, late_payment = c.late_payment, extensions_max = c.extensions_max,
             extension_seconds_max = c.extension_seconds_max, settings_version = c.settings_version,
             movement_count = c.movement_count
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
                              build, decided)
           VALUES ($1, $21, $22, $23, $24, $25, $26, $27, $28, $29))
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
    .bind(decided);
    ask("write a batch", limits::STATEMENT_DEADLINE, query.fetch_one(conn)).await
}

/// Operators' commands, and the pin that a `configure` carries (it restores a catalogue that lost it).
pub(super) async fn write_commands(conn: &mut PgConnection, partition: i32, rows: &Rows<'_>) -> Result<(), StoreError> {
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
