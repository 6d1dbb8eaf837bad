//! Poison on its way to the dead-letter topic: stored with the batch, published after COMMIT, so nothing is lost between the two.

use sqlx::Row;
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::{Store, StoreError};
use crate::limits;

/// A poisoned command that was not yet published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Kafka's partition.
    pub partition: i32,
    /// Offset of its record.
    pub offset: i64,
    /// Index of the command in it.
    pub index: i16,
    /// The command's id, where it could be read.
    pub command_id: Option<Uuid>,
    /// Why it is poison.
    pub reason: String,
    /// The whole record; absent if it is larger than [`limits::DEAD_LETTER_BYTES_MAX`].
    pub raw: Option<Vec<u8>>,
    /// Its bytes.
    pub size: i64,
}

impl Store {
    /// The oldest unpublished dead letters of some partitions, at most [`limits::DEAD_LETTERS_PER_ROUND`] and
    /// [`limits::DEAD_LETTER_BYTES_PER_ROUND`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_dead_letters(&self, partitions: &[i32]) -> Result<Vec<DeadLetter>, StoreError> {
        let partitions: Vec<i16> = partitions.iter().copied().map(smallint).collect();
        let rows = ask(
            "read dead letters",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_dead_letters */
                 WITH oldest AS (
                   SELECT *, octet_length(raw)::bigint AS size FROM poison WHERE published_at IS NULL AND partition = ANY($1)
                   ORDER BY partition, log_offset, log_index LIMIT $2),
                 counted AS (
                   SELECT *, sum(size) FILTER (WHERE size <= $3) OVER (ORDER BY partition, log_offset, log_index) AS size_through
                   FROM oldest)
                 SELECT partition, log_offset, log_index, command_id, reason, size, CASE WHEN size <= $3 THEN raw END AS raw
                 FROM counted WHERE coalesce(size_through, 0) <= $4 ORDER BY partition, log_offset, log_index",
            )
            .bind(&partitions)
            .bind(limits::DEAD_LETTERS_PER_ROUND)
            .bind(limits::DEAD_LETTER_BYTES_MAX as i64)
            .bind(limits::DEAD_LETTER_BYTES_PER_ROUND as i64)
            .fetch_all(&self.pool),
        )
        .await?;
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(DeadLetter {
                partition: i32::from(row.try_get::<i16, _>("partition")?),
                offset: row.try_get("log_offset")?,
                index: row.try_get("log_index")?,
                command_id: row.try_get("command_id")?,
                reason: row.try_get("reason")?,
                raw: row.try_get("raw")?,
                size: row.try_get("size")?,
            })
        };
        let unreadable = |source| StoreError::Query { attempt: "read a dead letter", source };
        rows.iter().map(read).collect::<Result<_, sqlx::Error>>().map_err(unreadable)
    }

    /// Notes that a dead letter is in the topic. Published twice is possible, lost is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mark_dead_letter_published(&self, letter: &DeadLetter) -> Result<(), StoreError> {
        ask(
            "mark a dead letter",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* mark_dead_letter_published */ UPDATE poison SET published_at = clock_timestamp()
                 WHERE (partition, log_offset, log_index) = ($1, $2, $3)",
            )
            .bind(smallint(letter.partition))
            .bind(letter.offset)
            .bind(letter.index)
            .execute(&self.pool),
        )
        .await
        .map(drop)
    }
}
