//! Tables: made and upgraded by `flashsale migrate`, checked by everything else.
//!
//! A build is numbered by its newest migration. Builds of two numbers run side by side while a version changes, so a migration either only
//! adds what older builds don't notice, or takes away what they no longer use; it says so in `schema_floor`.

use std::collections::BTreeMap;

use sqlx::migrate::{Migrate, Migrator};
use sqlx::{Connection, PgConnection};

use super::connect::{ask, open, read_options, smallint};
use super::{Store, StoreError};
use crate::limits;

/// The migrations of this build; their texts are part of the program.
fn migrations() -> Migrator {
    sqlx::migrate!("./migrations")
}

/// Migrations by number, each with the checksum of its text.
type Checksums = BTreeMap<i64, Vec<u8>>;

/// Why this build can't work on the tables of a database.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaMismatch {
    /// It is older than this build, or was made by a build of a branch that this one does not have.
    #[error("the database has not seen migration {lacks}: run `flashsale migrate` of this build")]
    Older {
        /// The first migration that did not run there.
        lacks: i64,
    },
    /// It is newer, and what this build needs is no longer there.
    #[error(
        "the database's schema is version {found}, for builds of schema {oldest_build} and newer, this one is of schema {build}: \
         run a newer build"
    )]
    Contracted {
        /// The newest migration there.
        found: i64,
        /// The oldest build that may run.
        oldest_build: i64,
        /// The newest migration of this build.
        build: i64,
    },
    /// Not the text that this build has under that number, or one that it has not at all, but newer ones.
    #[error(
        "migration {migration} of the database is not the one of this build: \
         it was edited after it ran, or is of another branch; run the build that made these tables"
    )]
    Edited {
        /// Its number.
        migration: i64,
    },
}

/// Makes or upgrades the tables, and one `partition_state` row for each of `topic`'s partitions. May be run again, also by several at
/// once (it takes an advisory lock), and by an older build that may still run: it has nothing to do for the tables then.
///
/// # Errors
/// [`StoreError`] if the server is away, or a table that is to change is in use for longer than [`limits::MIGRATION_LOCK_TIMEOUT`];
/// [`StoreError::OtherSchema`], nothing having been changed, if these are not this build's tables, nor older ones of its branch.
pub async fn migrate(database_url: &str, topic: &str, partitions: i32) -> Result<(), StoreError> {
    let mut conn = open(&read_options(database_url)?).await?;
    make_tables(&mut conn).await?;
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

/// Runs the migrations that did not run yet. Leaves the advisory lock to the end of the connection.
async fn make_tables(conn: &mut PgConnection) -> Result<(), StoreError> {
    let failed = |source: sqlx::Error| StoreError::Query { attempt: "migrate", source };
    conn.lock().await.map_err(|error| failed(error.into()))?;
    // Only now: whoever is ahead of us at that lock may take long.
    sqlx::query("/* make_tables */ SELECT set_config('lock_timeout', $1, false)")
        .bind(limits::MIGRATION_LOCK_TIMEOUT.as_millis().to_string())
        .execute(&mut *conn)
        .await
        .map_err(failed)?;
    match check(conn).await {
        Ok(_) | Err(StoreError::NotMigrated | StoreError::OtherSchema(SchemaMismatch::Older { .. })) => {}
        Err(error) => return Err(error),
    }
    let mut migrator = migrations();
    // It is locked already, and those of newer builds were just found to be fine.
    migrator.set_locking(false).set_ignore_missing(true);
    migrator.run_direct(None, conn, false).await.map_err(|error| failed(error.into()))
}

impl Store {
    /// The newest migration that this build knows.
    pub fn schema_version_of_build() -> i64 {
        migrations().iter().map(|m| m.version).max().unwrap_or(0)
    }

    /// Refuses tables that this build can't work on. The newest migration there: it may be one of a newer build that only added.
    ///
    /// # Errors
    /// [`StoreError::OtherSchema`] if so, [`StoreError::NotMigrated`] if there are no tables; else as any read.
    pub async fn check_schema(&self) -> Result<i64, StoreError> {
        let mut conn = ask("connect to Postgres", limits::READ_DEADLINE, self.pool.acquire()).await?;
        check(&mut conn).await
    }
}

async fn check(conn: &mut PgConnection) -> Result<i64, StoreError> {
    let ran = read_migrations(conn).await?;
    let found = *ran.last_key_value().ok_or(StoreError::NotMigrated)?.0;
    let known: Checksums = migrations().iter().map(|m| (m.version, m.checksum.to_vec())).collect();
    compare(&ran, &known)?;
    let build = Store::schema_version_of_build();
    if found > build {
        let oldest_build = read_floor(conn).await?;
        if oldest_build > build {
            return Err(SchemaMismatch::Contracted { found, oldest_build, build }.into());
        }
    }
    Ok(found)
}

/// All of `known` ran, and nothing else that is as old.
fn compare(ran: &Checksums, known: &Checksums) -> Result<(), SchemaMismatch> {
    let build = known.last_key_value().map_or(0, |(number, _)| *number);
    if let Some((&migration, _)) = ran.range(..=build).find(|(number, checksum)| known.get(number) != Some(checksum)) {
        return Err(SchemaMismatch::Edited { migration });
    }
    match known.keys().find(|number| !ran.contains_key(number)) {
        Some(&lacks) => Err(SchemaMismatch::Older { lacks }),
        None => Ok(()),
    }
}

/// SQLSTATE of a table that is not there.
const UNDEFINED_TABLE: &str = "42P01";

/// Those that ran to their end.
async fn read_migrations(conn: &mut PgConnection) -> Result<Checksums, StoreError> {
    let rows: Result<Vec<(i64, Vec<u8>)>, StoreError> = ask(
        "read the schema version",
        limits::READ_DEADLINE,
        sqlx::query_as("/* read_migrations */ SELECT version, checksum FROM _sqlx_migrations WHERE success")
            .fetch_all(conn),
    )
    .await;
    match rows {
        Ok(rows) => Ok(rows.into_iter().collect()),
        Err(error) if error.sqlstate().as_deref() == Some(UNDEFINED_TABLE) => Ok(Checksums::new()),
        Err(error) => Err(error),
    }
}

/// The oldest build that may run. What contracted stays contracted, so the highest counts.
async fn read_floor(conn: &mut PgConnection) -> Result<i64, StoreError> {
    ask(
        "read which builds may run",
        limits::READ_DEADLINE,
        sqlx::query_scalar("/* read_floor */ SELECT coalesce(max(oldest_build), 0) FROM schema_floor").fetch_one(conn),
    )
    .await
}
