//! Tables: made and upgraded by `flashsale migrate`, checked by everything else.

use std::cmp::Ordering;

use sqlx::Connection;
use sqlx::migrate::Migrator;

use super::connect::{ask, open, read_options, smallint};
use super::{Store, StoreError};
use crate::limits;

static MIGRATOR: Migrator = sqlx::migrate!("./migrations");

/// Makes or upgrades the tables, and one `partition_state` row for each of `topic`'s partitions. May be run again, also by several at
/// once (it takes an advisory lock).
///
/// # Errors
/// [`StoreError`] if the server is away, or if a migration that ran there is not the one in this build.
pub async fn migrate(database_url: &str, topic: &str, partitions: i32) -> Result<(), StoreError> {
    let mut conn = open(&read_options(database_url)?).await?;
    MIGRATOR
        .run_direct(None, &mut conn, false)
        .await
        .map_err(|source| StoreError::Query { attempt: "migrate", source: source.into() })?;
    ask(
        "create partition rows",
        limits::STATEMENT_DEADLINE,
        sqlx::query(
            "/* migrate */ INSERT INTO partition_state (topic, partition)
             SELECT $1, generate_series(0, $2 - 1) ON CONFLICT (topic, partition) DO NOTHING",
        )
        .bind(topic)
        .bind(i32::from(smallint(partitions)))
        .execute(&mut conn),
    )
    .await?;
    conn.close().await.map_err(|source| StoreError::Query { attempt: "migrate", source })
}

/// SQLSTATE of a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";

impl Store {
    /// The newest migration in the database.
    ///
    /// # Errors
    /// [`StoreError`], [`StoreError::NotMigrated`] when there is none.
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        let version: Result<Option<i64>, StoreError> = ask(
            "read the schema version",
            limits::READ_DEADLINE,
            sqlx::query_scalar("/* schema_version */ SELECT max(version) FROM _sqlx_migrations WHERE success")
                .fetch_one(&self.pool),
        )
        .await;
        match version {
            Ok(version) => version.ok_or(StoreError::NotMigrated),
            Err(error) if error.sqlstate().as_deref() == Some(UNDEFINED_TABLE) => Err(StoreError::NotMigrated),
            Err(error) => Err(error),
        }
    }

    /// The newest migration that this build knows.
    pub fn schema_version_of_build() -> i64 {
        MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0)
    }

    /// Refuses a schema that this build was not made for.
    ///
    /// # Errors
    /// [`StoreError::OtherSchema`] if the database's newest migration is not this build's; else as any read. [`StoreError::NotMigrated`]
    /// passes: in a cluster everything is started at once.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let (found, expected) = (self.schema_version().await?, Self::schema_version_of_build());
        let remedy = match found.cmp(&expected) {
            Ordering::Equal => return Ok(()),
            Ordering::Less => "run `flashsale migrate` of this build",
            Ordering::Greater => "run the build that migrated it, or a newer one",
        };
        Err(StoreError::OtherSchema { found, expected, remedy })
    }
}
