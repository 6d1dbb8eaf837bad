//! A partition's writer: the claim that makes it the only one, and the oracle that says what became of a doubtful COMMIT.
//!
//! Group membership is only a hint; **Postgres** refuses a second writer. Every claim bumps the partition's epoch and leaves a random
//! token (epochs can repeat after a failover). Every batch's first statement names both (`batch`), so a writer that was replaced
//! touches no row, however late it wakes.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgConnection, Row};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::StoreError;
use super::connect::{ask, open, read_options, smallint, writer_options};
use super::memory::Memory;
use crate::clock::{Millis, millis_of};
use crate::ids::SkuId;
use crate::{ids, limits};

/// What every writer of a process shares.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// Where Postgres is.
    pub database_url: Arc<str>,
    /// The request topic.
    pub topic: Arc<str>,
    /// This process, for people.
    pub owner: Arc<str>,
    /// This build, stored with each batch.
    pub build: Arc<str>,
}

/// The writer of one partition. Owns a plain connection, and drops it on any doubt.
#[derive(Debug)]
pub struct Writer {
    pub(super) config: WriterConfig,
    pub(super) partition: i32,
    pub(super) epoch: i64,
    pub(super) token: Uuid,
    /// `None` after a doubt, until [`Writer::recover`].
    pub(super) conn: Option<PgConnection>,
    /// `None` until the first batch, and after a doubt.
    pub(super) memory: Option<Memory>,
    /// Batches that still look their ids up before they write.
    pub(super) careful_batches: u32,
    backend_pid: i32,
}

/// What a claim found: where to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The epoch of this claim.
    pub epoch: i64,
    /// The next offset to decide.
    pub position: i64,
    /// Log time of the last decision.
    pub log_time: Millis,
    /// Digest of the record at `position - 1`; absent if nothing was decided yet.
    pub last_digest: Option<i64>,
    /// A stored halt: nobody decides until an operator resumes the partition.
    pub halted_reason: Option<String>,
}

/// Why a claim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// `flashsale migrate` made no row for this partition: its position is not to be guessed.
    #[error("partition {0} has no row in partition_state: run `flashsale migrate`")]
    NoRow(i32),
    /// Postgres is away or refuses.
    #[error("could not claim the partition")]
    Store(#[from] StoreError),
}

/// What the oracle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This writer is still the partition's; the next offset to decide is this.
    Owner {
        /// The stored position.
        position: i64,
    },
    /// Another claim came; drop everything.
    Fenced,
}

impl Writer {
    /// Claims a partition: from here on no older writer can commit. Waits for no transaction longer than
    /// [`limits::LOCK_TIMEOUT`]: whoever holds the row then is frozen, and its backend is terminated.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub async fn claim(config: &WriterConfig, partition: i32) -> Result<(Self, Claim), ClaimError> {
        let token = ids::fresh_token();
        let options = writer_options(&config.database_url, &backend_name(partition, token))?;
        let mut conn = open(&options).await?;
        let backend_pid = backend_pid(&mut conn).await?;
        let update = sqlx::query(
            "/* claim */ UPDATE partition_state
             SET epoch = epoch + 1, owner = $3, owner_token = $4, backend_pid = pg_backend_pid()
             WHERE topic = $1 AND partition = $2
             RETURNING epoch, position, log_time, last_digest, halted_reason",
        )
        .bind(&*config.topic)
        .bind(smallint(partition))
        .bind(&*config.owner)
        .bind(token);
        let claiming = ask("claim a partition", limits::STATEMENT_DEADLINE, update.fetch_optional(&mut conn));
        let row = terminating_blockers(&config.database_url, backend_pid, claiming).await?;
        let claim = claim_of(&row.ok_or(ClaimError::NoRow(partition))?)
            .map_err(|source| StoreError::Query { attempt: "read a claim", source })?;
        prepare_fence(&mut conn, &config.topic, partition).await?;
        let config = config.clone();
        Ok((
            Self {
                config,
                partition,
                epoch: claim.epoch,
                token,
                conn: Some(conn),
                memory: None,
                careful_batches: 0,
                backend_pid,
            },
            claim,
        ))
    }

    /// The partition.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// The epoch of the claim.
    pub fn epoch(&self) -> i64 {
        self.epoch
    }

    /// The commit oracle, and the way back after any lost connection: ends the old backend, waits for its end, and reads the row on a new
    /// connection. Never asks what an error meant, never sends COMMIT again.
    ///
    /// # Errors
    /// [`StoreError`] while Postgres can't be asked; the question may be repeated for ever.
    pub async fn recover(&mut self) -> Result<Standing, StoreError> {
        (self.conn, self.memory) = (None, None);
        let options = writer_options(&self.config.database_url, &backend_name(self.partition, self.token))?;
        let mut conn = open(&options).await?;
        end_backend(&mut conn, self.backend_pid, &backend_name(self.partition, self.token)).await?;
        let backend_pid = backend_pid(&mut conn).await?;
        let row = ask(
            "ask what was committed",
            limits::STATEMENT_DEADLINE,
            // One statement is one transaction: it waits for the row lock of whoever holds it, then reads what is committed.
            sqlx::query(
                "/* recover */ UPDATE partition_state SET backend_pid = pg_backend_pid()
                 WHERE topic = $1 AND partition = $2 AND epoch = $3 AND owner_token = $4 RETURNING position",
            )
            .bind(&*self.config.topic)
            .bind(smallint(self.partition))
            .bind(self.epoch)
            .bind(self.token)
            .fetch_optional(&mut conn),
        )
        .await?;
        let Some(row) = row else {
            return Ok(Standing::Fenced);
        };
        let position = row.try_get(0).map_err(|source| StoreError::Query { attempt: "read the position", source })?;
        prepare_fence(&mut conn, &self.config.topic, self.partition).await?;
        self.conn = Some(conn);
        self.backend_pid = backend_pid;
        Ok(Standing::Owner { position })
    }

    /// Reads what this writer remembers, if it does not: before anyone asks what is due, after a claim or a doubt.
    ///
    /// # Errors
    /// [`StoreError`]; the writer must recover before it tries again.
    pub async fn remember(&mut self) -> Result<(), StoreError> {
        if self.memory.is_some() {
            return Ok(());
        }
        let mut conn = self.take_connection("read the partition")?;
        self.remember_on(&mut conn).await?;
        self.conn = Some(conn);
        Ok(())
    }

    pub(super) async fn remember_on(&mut self, conn: &mut PgConnection) -> Result<(), StoreError> {
        if self.memory.is_none() {
            self.memory = Some(Memory::load(conn, self.partition).await?);
        }
        Ok(())
    }

    /// The next end of a hold, SKU by SKU; nothing while nothing is remembered.
    pub fn next_ends(&self) -> impl Iterator<Item = (&SkuId, Millis)> {
        self.memory.iter().flat_map(Memory::next_ends)
    }

    /// The SKUs of the partition whose stock ever moved; nothing while nothing is remembered.
    pub fn moved_skus(&self) -> Vec<SkuId> {
        self.memory.iter().flat_map(Memory::moved_skus).cloned().collect()
    }

    /// Holds that are remembered, ended ones included whose rows are not settled; none while nothing is remembered.
    pub fn hold_count(&self) -> usize {
        self.memory.as_ref().map_or(0, Memory::hold_count)
    }

    /// Whether rows of ended holds wait to be settled.
    pub fn has_unsettled(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.to_settle().next().is_some())
    }

    /// The next [`limits::CAREFUL_BATCHES`] batches look up whether their ids were decided before, instead of leaving that to the
    /// primary key.
    pub fn look_up_ids(&mut self) {
        self.careful_batches = limits::CAREFUL_BATCHES;
    }

    /// Stores a halt, under this writer's epoch and position. `false` = not this writer's partition any more, or halted already.
    ///
    /// # Errors
    /// [`StoreError`]; the writer must recover before it tries again.
    pub async fn halt(&mut self, position: i64, reason: &str) -> Result<bool, StoreError> {
        let mut conn = self.take_connection("store a halt")?;
        let halted = ask(
            "store a halt",
            limits::STATEMENT_DEADLINE,
            sqlx::query(
                "/* halt */ UPDATE partition_state SET halted_reason = $6, halted_at = clock_timestamp()
                 WHERE topic = $1 AND partition = $2 AND epoch = $3 AND owner_token = $4 AND position = $5
                   AND halted_reason IS NULL",
            )
            .bind(&*self.config.topic)
            .bind(smallint(self.partition))
            .bind(self.epoch)
            .bind(self.token)
            .bind(position)
            .bind(reason)
            .execute(&mut conn),
        )
        .await?;
        self.conn = Some(conn);
        Ok(halted.rows_affected() == 1)
    }

    /// The connection, taken out: it only comes back when nothing about it is in doubt.
    pub(super) fn take_connection(&mut self, attempt: &'static str) -> Result<PgConnection, StoreError> {
        self.conn.take().ok_or(StoreError::Query { attempt, source: sqlx::Error::PoolClosed })
    }
}

/// A backend's `application_name` (at most 63 bytes): a process id alone may be somebody else's by now.
fn backend_name(partition: i32, token: Uuid) -> String {
    format!("flashsale writer {partition} {}", token.simple())
}

async fn backend_pid(conn: &mut PgConnection) -> Result<i32, StoreError> {
    let question = sqlx::query_scalar("/* backend_pid */ SELECT pg_backend_pid()").fetch_one(conn);
    ask("read the backend's process id", limits::STATEMENT_DEADLINE, question).await
}

/// Prepares the first statement of every batch by name, so that it can be sent with the BEGIN before it: the library sends statements with
/// parameters one by one.
async fn prepare_fence(conn: &mut PgConnection, topic: &str, partition: i32) -> Result<(), StoreError> {
    let fence = format!(
        "/* prepare_fence */ PREPARE fence (bigint, uuid, bigint, bigint, bigint, bigint) AS
           UPDATE partition_state SET position = $4, log_time = timestamptz 'epoch' + $5 * interval '1 millisecond', last_digest = $6
           WHERE topic = '{}' AND partition = {partition} AND epoch = $1 AND owner_token = $2 AND position = $3
             AND halted_reason IS NULL",
        topic.replace('\'', "''")
    );
    let prepare = sqlx::raw_sql(AssertSqlSafe(fence)).execute(conn);
    ask("prepare the fence", limits::STATEMENT_DEADLINE, prepare).await.map(drop)
}

fn claim_of(row: &sqlx::postgres::PgRow) -> Result<Claim, sqlx::Error> {
    Ok(Claim {
        epoch: row.try_get("epoch")?,
        position: row.try_get("position")?,
        log_time: millis_of(row.try_get::<OffsetDateTime, _>("log_time")?),
        last_digest: row.try_get("last_digest")?,
        halted_reason: row.try_get("halted_reason")?,
    })
}

/// Lets `claiming` run; if it still waits after half the lock timeout, ends whoever blocks it (a live writer's transaction takes
/// milliseconds).
async fn terminating_blockers<T>(
    database_url: &str,
    claiming_pid: i32,
    claiming: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::pin!(claiming);
    tokio::select! {
        claimed = &mut claiming => return claimed,
        () = sleep(limits::LOCK_TIMEOUT / 2) => {}
    }
    let ending = async {
        let mut conn = open(&read_options(database_url)?).await?;
        ask(
            "end the backends that block a claim",
            limits::STATEMENT_DEADLINE,
            sqlx::query(
                "/* terminating_blockers */ SELECT pg_terminate_backend(pid) FROM unnest(pg_blocking_pids($1)) AS pid
                 WHERE pid > 0",
            )
            .bind(claiming_pid)
            .execute(&mut conn),
        )
        .await
    };
    let (claimed, ended) = tokio::join!(claiming, ending);
    if let Ok(ended) = ended {
        tracing::warn!(backend.count = ended.rows_affected(), "ended backends that blocked a claim");
    }
    claimed
}

/// Ends a backend of this writer, if it still runs, and waits until it is gone: only then is what it committed visible for sure.
async fn end_backend(conn: &mut PgConnection, pid: i32, name: &str) -> Result<(), StoreError> {
    let deadline = Instant::now() + limits::BACKEND_END_WAIT;
    loop {
        let running = ask(
            "end the old backend",
            limits::STATEMENT_DEADLINE,
            sqlx::query(
                "/* end_backend */ SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE pid = $1 AND application_name = $2 AND pid <> pg_backend_pid()",
            )
            .bind(pid)
            .bind(name)
            .execute(&mut *conn),
        )
        .await?;
        if running.rows_affected() == 0 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(StoreError::Deadline { attempt: "end the old backend" });
        }
        sleep(limits::BACKEND_END_LOOK_EVERY).await;
    }
}
