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
    /// The whole record.
    pub raw: Vec<u8>,
}

impl Store {
    /// The oldest unpublished dead letters of some partitions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load_dead_letters(&self, partitions: &[i32]) -> Result<Vec<DeadLetter>, StoreError> {
        let partitions: Vec<i16> = partitions.iter().copied().map(smallint).collect();
        let rows = ask(
            "read dead letters",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_dead_letters */ SELECT partition, log_offset, log_index, command_id, reason, raw FROM poison
                 WHERE published_at IS NULL AND partition = ANY($1) ORDER BY partition, log_offset, log_index LIMIT $2",
            )
            .bind(&partitions)
            .bind(limits::DEAD_LETTERS_PER_ROUND)
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
