//! Poison as people deal with it: listed, looked at, marked. The bytes are here; the dead-letter topic has a copy.

use sqlx::Row;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::{Store, StoreError};
use crate::clock::{Millis, millis_of};
use crate::ids::{Place, Ticket};
use crate::limits;

/// A poisoned command, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoisonRow {
    /// Where it stands in the log; index 0 also for a record that can't be read at all.
    pub ticket: Ticket,
    /// The command's id, where it could be read.
    pub command_id: Option<Uuid>,
    /// Why it is poison: [`crate::inventory::PoisonReason::code`].
    pub reason: String,
    /// Log time of the decision.
    pub log_time: Millis,
    /// Bytes of its record.
    pub size: i64,
    /// What was done about it; absent = nothing yet.
    pub dealt: Option<Dealt>,
}

/// What somebody did about a poisoned command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dealt {
    /// What.
    pub resolution: Resolution,
    /// When.
    pub at: Millis,
    /// Why, for people.
    pub note: Option<String>,
}

/// The two ways to deal with poison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The command was published again, and stands there.
    Replayed(Ticket),
    /// Nothing is to come of it.
    Dropped,
}

impl Resolution {
    /// As the column `resolution` has it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Replayed(_) => "replayed",
            Self::Dropped => "dropped",
        }
    }
}

/// Which rows of `poison` are asked for.
#[derive(Clone, Debug, Default)]
pub struct PoisonFilter {
    /// Only of this partition.
    pub partition: Option<i32>,
    /// Only with this reason.
    pub reason: Option<String>,
    /// Also those that somebody has dealt with.
    pub with_dealt: bool,
    /// Only behind this place.
    pub after: Option<Ticket>,
    /// So many at most, up to [`limits::POISON_PAGE_MAX`].
    pub limit: i64,
}

const COLUMNS_UNREADABLE: &str = "read a row of poison";

impl Store {
    /// Poisoned commands in the order of partitions and of the log.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here.
    pub async fn load_poison(&self, filter: &PoisonFilter) -> Result<Vec<PoisonRow>, StoreError> {
        let PoisonFilter { partition, reason, with_dealt, after, limit } = filter;
        assert!((0..=limits::POISON_PAGE_MAX).contains(limit), "callers cut their pages");
        // Before the first: no record has this offset.
        let after = after.unwrap_or(Ticket { partition: 0, place: Place { offset: -1, index: 0 } });
        let rows = ask(
            "read poison",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_poison */ SELECT partition, log_offset, log_index, command_id, reason, log_time,
                   octet_length(raw)::bigint AS size, resolved_at, resolution, note, replayed_to
                 FROM poison
                 WHERE (partition, log_offset, log_index) > ($1, $2, $3) AND ($4::smallint IS NULL OR partition = $4)
                   AND ($5::text IS NULL OR reason = $5) AND ($6 OR resolved_at IS NULL)
                 ORDER BY partition, log_offset, log_index LIMIT $7",
            )
            .bind(smallint(after.partition))
            .bind(after.place.offset)
            .bind(index_of(after))
            .bind(partition.map(smallint))
            .bind(reason)
            .bind(with_dealt)
            .bind(limit)
            .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(poison_of).collect()
    }

    /// The poisoned commands of one record, in its order.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_poison_of(&self, partition: i32, offset: i64) -> Result<Vec<PoisonRow>, StoreError> {
        let rows = ask(
            "read the poison of a record",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_poison_of */ SELECT partition, log_offset, log_index, command_id, reason, log_time,
                   octet_length(raw)::bigint AS size, resolved_at, resolution, note, replayed_to
                 FROM poison WHERE partition = $1 AND log_offset = $2 ORDER BY log_index",
            )
            .bind(smallint(partition))
            .bind(offset)
            .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(poison_of).collect()
    }

    /// The bytes of a poisoned command's record.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_poison_bytes(&self, ticket: Ticket) -> Result<Vec<u8>, StoreError> {
        ask(
            "read the bytes of poison",
            limits::READ_DEADLINE,
            sqlx::query_scalar(
                "/* load_poison_bytes */ SELECT raw FROM poison WHERE (partition, log_offset, log_index) = ($1, $2, $3)",
            )
            .bind(smallint(ticket.partition))
            .bind(ticket.place.offset)
            .bind(index_of(ticket))
            .fetch_one(&self.pool),
        )
        .await
    }

    /// Notes what was done about a poisoned command. `false` = somebody did something before, and that stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resolve_poison(
        &self,
        ticket: Ticket,
        resolution: &Resolution,
        note: Option<&str>,
    ) -> Result<bool, StoreError> {
        let replayed_to = match resolution {
            Resolution::Replayed(ticket) => Some(ticket.to_string()),
            Resolution::Dropped => None,
        };
        let marked = ask(
            "mark poison",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* resolve_poison */ UPDATE poison SET resolved_at = clock_timestamp(), resolution = $4, note = $5, replayed_to = $6
                 WHERE (partition, log_offset, log_index) = ($1, $2, $3) AND resolved_at IS NULL",
            )
            .bind(smallint(ticket.partition))
            .bind(ticket.place.offset)
            .bind(index_of(ticket))
            .bind(resolution.word())
            .bind(note)
            .bind(replayed_to)
            .execute(&self.pool),
        )
        .await?;
        Ok(marked.rows_affected() == 1)
    }
}

/// An index as its column holds it; a person's invented one beyond that finds nothing.
fn index_of(ticket: Ticket) -> i16 {
    i16::try_from(ticket.place.index).unwrap_or(i16::MAX)
}

fn poison_of(row: &PgRow) -> Result<PoisonRow, StoreError> {
    let (poison, resolved) =
        fields_of(row).map_err(|source| StoreError::Query { attempt: COLUMNS_UNREADABLE, source })?;
    let Some((at, word, replayed_to)) = resolved else { return Ok(poison) };
    let resolution = match (word.as_str(), replayed_to.as_deref().and_then(Ticket::parse)) {
        ("dropped", None) => Resolution::Dropped,
        ("replayed", Some(to)) => Resolution::Replayed(to),
        _ => return Err(StoreError::Unreadable { what: format!("the poison at {} was {word:?}", poison.ticket) }),
    };
    let note = row.try_get("note").map_err(|source| StoreError::Query { attempt: COLUMNS_UNREADABLE, source })?;
    Ok(PoisonRow { dealt: Some(Dealt { resolution, at, note }), ..poison })
}

/// When, how and where to.
type Resolved = (Millis, String, Option<String>);

fn fields_of(row: &PgRow) -> Result<(PoisonRow, Option<Resolved>), sqlx::Error> {
    let place = Place {
        offset: row.try_get("log_offset")?,
        index: u16::try_from(row.try_get::<i16, _>("log_index")?).unwrap_or(0),
    };
    let poison = PoisonRow {
        ticket: Ticket { partition: i32::from(row.try_get::<i16, _>("partition")?), place },
        command_id: row.try_get("command_id")?,
        reason: row.try_get("reason")?,
        log_time: millis_of(row.try_get::<OffsetDateTime, _>("log_time")?),
        size: row.try_get("size")?,
        dealt: None,
    };
    let Some(at) = row.try_get::<Option<OffsetDateTime>, _>("resolved_at")? else { return Ok((poison, None)) };
    Ok((poison, Some((millis_of(at), row.try_get("resolution")?, row.try_get("replayed_to")?))))
}
