//! How far the log is decided, and the halts that operators clear.

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::connect::{ask, smallint};
use super::{PartitionRow, Store, StoreError};
use crate::limits;

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
