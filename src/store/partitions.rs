//! How far the log is decided, the halts that operators clear, and the record that one of them steps over.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::connect::{ask, smallint};
use super::{PartitionRow, Store, StoreError};
use crate::clock::{Millis, time_of};
use crate::inventory::PoisonReason;
use crate::limits;
use crate::wire;

impl Store {
    /// Every partition of the topic, in order.
    ///
    /// # Errors
    /// [`StoreError`], as all methods here.
    pub async fn load_partitions(&self) -> Result<Vec<PartitionRow>, StoreError> {
        let rows = ask(
            "read partitions",
            limits::READ_DEADLINE,
            sqlx::query(
                "/* load_partitions */ SELECT partition, epoch, position, halted_reason FROM partition_state
                 WHERE topic = $1 ORDER BY partition",
            )
            .bind(&*self.topic)
            .fetch_all(&self.pool),
        )
        .await?;
        rows.iter().map(partition_of).collect()
    }

    /// Clears a stored halt and writes down who said so. `false` = the partition is not halted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn resume_partition(&self, partition: i32, note: &str) -> Result<bool, StoreError> {
        let resumed = ask(
            "resume a partition",
            limits::STATEMENT_DEADLINE,
            sqlx::query(
                "/* resume_partition */ WITH halted AS (
                   SELECT topic, partition, halted_reason FROM partition_state
                   WHERE topic = $1 AND partition = $2 AND halted_reason IS NOT NULL FOR UPDATE),
                 note AS (
                   INSERT INTO partition_resume (topic, partition, halted_reason, note)
                   SELECT topic, partition, halted_reason, $3 FROM halted)
                 UPDATE partition_state p SET halted_reason = NULL, halted_at = NULL
                 FROM halted h WHERE (p.topic, p.partition) = (h.topic, h.partition)",
            )
            .bind(&*self.topic)
            .bind(smallint(partition))
            .bind(note)
            .execute(&self.pool),
        )
        .await?;
        Ok(resumed.rows_affected() == 1)
    }
}

/// A record that is stepped over.
#[derive(Clone, Copy, Debug)]
pub struct SkippedRecord<'a> {
    /// Kafka's partition.
    pub partition: i32,
    /// Kafka's number of the record.
    pub offset: i64,
    /// Its log timestamp.
    pub at: Millis,
    /// Its bytes.
    pub raw: &'a [u8],
    /// Why, for people.
    pub note: &'a str,
}

/// The one place besides a batch where a position moves. It leaves what a batch would: a row of `batch`, so that batches still tile the log,
/// and the record among the poison. A writer that owned the partition is fenced off.
impl Store {
    /// Steps over a record that can't be decided. `false` = the partition does not stand there.
    ///
    /// # Errors
    /// [`StoreError`]; then it may have happened, and asking again does no harm.
    pub async fn skip_record(&self, record: SkippedRecord<'_>) -> Result<bool, StoreError> {
        let SkippedRecord { partition, offset, at, raw, note } = record;
        let skipped = ask(
            "skip a record",
            limits::STATEMENT_DEADLINE,
            sqlx::query(
                "/* skip_record */ WITH moved AS (
                   UPDATE partition_state SET position = position + 1, last_digest = $4, epoch = epoch + 1, owner = 'partition skip',
                     owner_token = NULL
                   WHERE topic = $1 AND partition = $2 AND position = $3 RETURNING topic, partition, epoch, log_time),
                 kept AS (
                   INSERT INTO poison (partition, log_offset, log_index, reason, log_time, raw)
                   SELECT partition, $3, 0, $5, greatest(log_time, $6), $7 FROM moved),
                 tile AS (
                   INSERT INTO batch (partition, first_offset, position, epoch, command_count, decided_count, duplicate_count, poison_count,
                                      tick_count, build, decided)
                   SELECT partition, $3, $3 + 1, epoch, 1, 0, 0, 1, 0, 'partition skip', '{}' FROM moved)
                 INSERT INTO partition_resume (topic, partition, halted_reason, note)
                 SELECT topic, partition, 'SKIPPED ' || partition || '.' || $3, $8 FROM moved",
            )
            .bind(&*self.topic)
            .bind(smallint(partition))
            .bind(offset)
            .bind(wire::digest(raw))
            .bind(PoisonReason::Malformed.code())
            .bind(time_of(at))
            .bind(raw)
            .bind(note)
            .execute(&self.pool),
        )
        .await?;
        Ok(skipped.rows_affected() == 1)
    }
}

pub(super) fn partition_of(row: &PgRow) -> Result<PartitionRow, StoreError> {
    let read = || -> Result<PartitionRow, sqlx::Error> {
        Ok(PartitionRow {
            partition: i32::from(row.try_get::<i16, _>("partition")?),
            epoch: row.try_get("epoch")?,
            position: row.try_get("position")?,
            halted_reason: row.try_get("halted_reason")?,
        })
    };
    read().map_err(|source| StoreError::Query { attempt: "read a partition's row", source })
}
