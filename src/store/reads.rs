//! Reading decisions: many reservations in one query, and many commands in one query.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::partitions::partition_of;
use super::{CommandRow, ReservationRow, StatusRead, Store, StoreError, StoredRejection};
use crate::clock::millis_of;
use crate::ids::{Place, Ticket};
use crate::inventory::{PoisonReason, Status};
use crate::limits;

/// The columns of `reservation_now` that [`reservation_of`] reads, in the order that a UNION needs.
macro_rules! reservation_columns {
    () => {
        "reservation_id, user_id, sku_id, quantity, status, reason, available, holds_pending, user_limit, remaining, \
         version, log_time, expires_at, partition, log_offset, log_index, metadata, changed_at, \
         extensions_max - extensions AS extensions_left, is_late, payment_ref, note"
    };
}
pub(super) use reservation_columns;

impl Store {
    /// Positions, then the decided ones of `ids` (at most [`limits::STATUS_READ_MAX`]).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_statuses(&self, ids: &[Uuid]) -> Result<StatusRead, StoreError> {
        assert!(ids.len() <= limits::STATUS_READ_MAX, "callers cut their reads");
        let (partitions, rows) = ask("read reservations", limits::READ_DEADLINE, async {
            let mut conn = self.pool.acquire().await?;
            // This order matters: a row that the position promises is then visible to the second statement.
            let partitions = sqlx::query(
                "/* load_statuses */ SELECT partition, epoch, position, halted_reason FROM partition_state
                 WHERE topic = $1 ORDER BY partition",
            )
            .bind(&*self.topic)
            .fetch_all(&mut *conn)
            .await?;
            let rows = sqlx::query(concat!(
                "/* load_statuses */ SELECT ",
                reservation_columns!(),
                " FROM reservation_now WHERE reservation_id = ANY($1)
                 UNION ALL
                 SELECT command_id, NULL, NULL, NULL, 2::smallint, reason, NULL, NULL, NULL, NULL,
                        1, log_time, NULL, partition, log_offset, log_index, NULL, NULL, NULL, false, NULL, NULL
                 FROM poison WHERE command_id = ANY($1) AND command_id IS NOT NULL"
            ))
            .bind(ids)
            .fetch_all(&mut *conn)
            .await?;
            Ok((partitions, rows))
        })
        .await?;
        let partitions = partitions.iter().map(partition_of).collect::<Result<Vec<_>, _>>()?;
        Ok(StatusRead { partitions: Arc::new(partitions), reservations: reservations_of(&rows)? })
    }

    /// The decisions of commands by id and ticket (at most [`limits::STATUS_READ_MAX`]), in the order of the questions; `None` = not decided
    /// yet (or the id is another one). A repeat of a decided command finds the first one's row by id. Poison is found by its ticket alone: it
    /// burns no command's id, so it says nothing about a repeat.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_commands(&self, asked: &[(Uuid, Ticket)]) -> Result<Vec<Option<CommandRow>>, StoreError> {
        assert!(asked.len() <= limits::STATUS_READ_MAX, "callers cut their reads");
        let ids: Vec<Uuid> = asked.iter().map(|(id, _)| *id).collect();
        let partitions: Vec<i16> = asked.iter().map(|(_, ticket)| smallint(ticket.partition)).collect();
        let offsets: Vec<i64> = asked.iter().map(|(_, ticket)| ticket.place.offset).collect();
        // A client's invented index beyond the column's range finds nothing.
        let indexes: Vec<i16> =
            asked.iter().map(|(_, ticket)| i16::try_from(ticket.place.index).unwrap_or(i16::MAX)).collect();
        let rows = ask(
            "read commands",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_commands */ SELECT a.number, c.*
                 FROM unnest($1::uuid[], $2::smallint[], $3::bigint[], $4::smallint[])
                      WITH ORDINALITY AS a (id, partition, log_offset, log_index, number)
                 CROSS JOIN LATERAL (
                   SELECT requested_id, reservation_id, kind, sku_id, result, detail_1, detail_2, detail_3, fingerprint, 0 AS choice
                   FROM command
                   WHERE (partition, log_offset, log_index) = (a.partition, a.log_offset, a.log_index) AND requested_id = a.id
                   UNION ALL
                   SELECT requested_id, reservation_id, kind, sku_id, result, detail_1, detail_2, detail_3, fingerprint, 1
                   FROM command WHERE command_id = a.id
                   UNION ALL
                   SELECT command_id, NULL, '', '', reason, NULL, NULL, NULL, NULL, 2 FROM poison
                   WHERE (partition, log_offset, log_index) = (a.partition, a.log_offset, a.log_index) AND command_id = a.id
                   ORDER BY choice LIMIT 1) c",
            )
            .bind(ids)
            .bind(partitions)
            .bind(offsets)
            .bind(indexes)
            .fetch_all(&self.pool),
        )
        .await?;
        let mut found = vec![None; asked.len()];
        for row in &rows {
            let read = || -> Result<(i64, CommandRow), sqlx::Error> { Ok((row.try_get("number")?, command_of(row)?)) };
            let (number, command) =
                read().map_err(|source| StoreError::Query { attempt: "read a command's row", source })?;
            let place = usize::try_from(number - 1).ok().and_then(|place| found.get_mut(place));
            *place.expect("a row's number is that of its question") = Some(command);
        }
        Ok(found)
    }
}

/// A reservation's own row wins over poison that carries the same id (somebody else's record may claim any id).
fn reservations_of(rows: &[PgRow]) -> Result<HashMap<Uuid, ReservationRow>, StoreError> {
    let mut found: HashMap<Uuid, ReservationRow> = HashMap::with_capacity(rows.len());
    for row in rows {
        let row = reservation_of(row)?;
        let is_poison = row.user_id.is_none();
        if !(is_poison && found.contains_key(&row.id)) {
            found.insert(row.id, row);
        }
    }
    Ok(found)
}

/// Reads a row with these columns, whichever statement it comes from.
pub(super) fn reservation_of(row: &PgRow) -> Result<ReservationRow, StoreError> {
    let unreadable = |source| StoreError::Query { attempt: "read a reservation's row", source };
    let number: i16 = row.try_get("status").map_err(unreadable)?;
    let status = Status::from_number(number)
        .filter(|s| *s != Status::Queued)
        .ok_or_else(|| StoreError::Unreadable { what: format!("a reservation has status {number}") })?;
    fields_of(row, status).map_err(unreadable)
}

fn fields_of(row: &PgRow, status: Status) -> Result<ReservationRow, sqlx::Error> {
    let user_id: Option<String> = row.try_get("user_id")?;
    let place = Place {
        offset: row.try_get("log_offset")?,
        index: u16::try_from(row.try_get::<i16, _>("log_index")?).unwrap_or(0),
    };
    Ok(ReservationRow {
        id: row.try_get("reservation_id")?,
        rejection: rejection_of(row, user_id.is_none())?,
        user_id,
        sku_id: row.try_get("sku_id")?,
        quantity: unsigned(row.try_get("quantity")?),
        status,
        version: row.try_get("version")?,
        accepted_at: millis_of(row.try_get::<OffsetDateTime, _>("log_time")?),
        expires_at: row.try_get::<Option<OffsetDateTime>, _>("expires_at")?.map(millis_of),
        changed_at: row.try_get::<Option<OffsetDateTime>, _>("changed_at")?.map(millis_of),
        extensions_left: row.try_get::<Option<i32>, _>("extensions_left")?.map(|left| u32::try_from(left).unwrap_or(0)),
        payment_ref: row.try_get("payment_ref")?,
        is_late: row.try_get("is_late")?,
        note: row.try_get("note")?,
        metadata: row.try_get("metadata")?,
        ticket: Ticket { partition: i32::from(row.try_get::<i16, _>("partition")?), place },
    })
}

fn rejection_of(row: &PgRow, is_poison: bool) -> Result<Option<StoredRejection>, sqlx::Error> {
    let Some(code) = row.try_get::<Option<String>, _>("reason")? else {
        return Ok(None);
    };
    let public = PoisonReason::from_code(&code).filter(|_| is_poison).map(PoisonReason::public_reason);
    Ok(Some(StoredRejection {
        reason: public.map_or(code, str::to_owned),
        available: row.try_get("available")?,
        holds_pending: row.try_get("holds_pending")?,
        limit: unsigned(row.try_get("user_limit")?),
        remaining: unsigned(row.try_get("remaining")?),
    }))
}

fn unsigned(number: Option<i32>) -> Option<u32> {
    number.and_then(|n| u32::try_from(n).ok())
}

fn command_of(row: &PgRow) -> Result<CommandRow, sqlx::Error> {
    Ok(CommandRow {
        command_id: row.try_get("requested_id")?,
        reservation_id: row.try_get("reservation_id")?,
        kind: row.try_get("kind")?,
        sku_id: row.try_get("sku_id")?,
        result: row.try_get("result")?,
        details: [row.try_get("detail_1")?, row.try_get("detail_2")?, row.try_get("detail_3")?],
        fingerprint: row.try_get("fingerprint")?,
    })
}
