//! One batch, one transaction: fence, snapshot, rows, COMMIT.
//!
//! ```text
//! BEGIN
//! fence     position moves, if epoch, token and old position are ours and nobody halted the partition: else nothing at all
//! snapshot  SKUs, known ids, users' units: from the writer's memory where it is exact, else one set-based query each
//!           ... decide, pure ...
//! write     rows, stock, movements, batch row: one statement; commands, poison and pins only when there are some
//! COMMIT
//! ```
//! **Known ids are found by the primary key.** Nearly all ids of a sale are new, and looking up 250 of them takes as long as storing
//! them. So a batch is written as if all were; if the key refuses one, nothing is kept, and this batch and the next
//! [`limits::CAREFUL_BATCHES`] look up first. An id can still be refused after a look-up, if a batch of another partition used it meanwhile
//! (somebody wrote it to two of them): that batch has committed by then, so the next look-up finds it. Rows are inserted in the order of
//! their ids, so two such batches never wait for each other.
//!
//! Errors say **what is known**: before COMMIT was sent nothing is committed; after it only the oracle knows ([`Writer::recover`]).

use std::collections::BTreeMap;

use sqlx::postgres::PgQueryResult;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use super::connect::{ask, smallint};
use super::memory::{EndedHold, Learned, Memory};
use super::rows::Rows;
use super::{StoreError, Writer};
use crate::clock::{Millis, millis_of, time_of};
use crate::ids::{Quantity, SkuId, UserId};
use crate::inventory::{Event, Happening, LifeChange, Logged, Origin, Outcome, ReservationEvent, Snapshot};
use crate::limits;

mod load;
mod write;

/// Where a batch stands in its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// The offset of its first record: the position expected in the database.
    pub first_offset: i64,
    /// The position after it.
    pub position: i64,
    /// Log time before it.
    pub log_time_before: Millis,
    /// Log time after it.
    pub log_time: Millis,
    /// Digest of its last record.
    pub last_digest: i64,
}

/// A hold that ended, now that its row says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledHold {
    /// The reservation.
    pub reservation: Uuid,
    /// Its SKU.
    pub sku: SkuId,
    /// Its user.
    pub user: UserId,
    /// Units that came back.
    pub units: i64,
    /// Units that its user still has.
    pub units_left: i64,
    /// The reservation's version now.
    pub version: i32,
    /// When the hold ended.
    pub expires_at: Millis,
}

/// Why a batch was not committed, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The partition has another owner, another position, or was halted: nothing was written.
    #[error("the fence refused the batch")]
    Fenced,
    /// The server refused a statement; the transaction is rolled back.
    #[error("the server refused the batch")]
    Refused(#[source] StoreError),
    /// The connection was lost or silent before COMMIT was sent: nothing is committed.
    #[error("the connection failed before COMMIT")]
    Lost(#[source] StoreError),
    /// COMMIT was sent and not answered with yes: only the oracle knows.
    #[error("no answer to COMMIT")]
    Doubtful(#[source] StoreError),
    /// A statement touched other rows than it must: a broken assumption, nothing is committed.
    #[error("the database contradicts the batch: {0}")]
    Contradiction(String),
    /// An id was decided before, and was not found: nothing is committed. Begin again at once; it will be found, and with each attempt one
    /// more.
    #[error("an id of the batch was decided before")]
    Known,
}

impl BatchError {
    fn before_commit(error: StoreError) -> Self {
        if error.sqlstate().is_some() { Self::Refused(error) } else { Self::Lost(error) }
    }
}

/// An open transaction that passed the fence.
#[derive(Debug)]
pub struct BatchTransaction<'w> {
    writer: &'w mut Writer,
    conn: PgConnection,
    head: BatchHead,
    /// Of the user of each reserve command that was loaded for, 0 for any other command.
    user_hashes: Vec<i64>,
    learned: Learned,
}

impl Writer {
    /// Opens the transaction of a batch and passes the fence.
    ///
    /// # Errors
    /// [`BatchError::Fenced`], or what the server or the connection did.
    pub async fn begin(&mut self, head: BatchHead) -> Result<BatchTransaction<'_>, BatchError> {
        self.pass_fence(head, async |writer, conn| {
            // One way there and back for both.
            let fence = format!(
                "/* fence */ BEGIN; EXECUTE fence ({}, '{}', {}, {}, {}, {})",
                writer.epoch,
                writer.token,
                head.first_offset,
                head.position,
                millis_of(time_of(head.log_time)),
                head.last_digest
            );
            sqlx::raw_sql(AssertSqlSafe(fence)).execute(conn).await // numbers and a UUID
        })
        .await
    }

    /// Opens a transaction that moves no position, for what is to be done between batches; passes the same fence.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn begin_between(&mut self, position: i64, log_time: Millis) -> Result<BatchTransaction<'_>, BatchError> {
        let head = BatchHead { first_offset: position, position, log_time_before: log_time, log_time, last_digest: 0 };
        self.pass_fence(head, async |writer, conn| {
            sqlx::raw_sql("BEGIN").execute(&mut *conn).await?;
            sqlx::query(
                "/* fence */ UPDATE partition_state SET owner = owner
                 WHERE topic = $1 AND partition = $2 AND epoch = $3 AND owner_token = $4 AND position = $5
                   AND halted_reason IS NULL",
            )
            .bind(&*writer.config.topic)
            .bind(smallint(writer.partition))
            .bind(writer.epoch)
            .bind(writer.token)
            .bind(position)
            .execute(conn)
            .await
        })
        .await
    }

    async fn pass_fence(
        &mut self,
        head: BatchHead,
        fence: impl AsyncFnOnce(&Self, &mut PgConnection) -> Result<PgQueryResult, sqlx::Error>,
    ) -> Result<BatchTransaction<'_>, BatchError> {
        let mut conn = self.take_connection("begin a batch").map_err(BatchError::Lost)?;
        let passed = ask("pass the fence", limits::STATEMENT_DEADLINE, fence(self, &mut conn)).await;
        let (user_hashes, learned) = (Vec::new(), Learned::default());
        let transaction = BatchTransaction { writer: self, conn, head, user_hashes, learned };
        match passed {
            Ok(passed) if passed.rows_affected() == 1 => Ok(transaction),
            Ok(_) => Err(transaction.roll_back(BatchError::Fenced).await),
            Err(error) => Err(transaction.roll_back(BatchError::before_commit(error)).await),
        }
    }
}

impl BatchTransaction<'_> {
    /// Loads everything that deciding `commands` may read.
    ///
    /// # Errors
    /// [`BatchError`]; call [`Self::roll_back`] with it.
    pub async fn load_snapshot(&mut self, commands: &[Logged]) -> Result<Snapshot, BatchError> {
        self.load(commands).await.map_err(BatchError::before_commit)
    }

    async fn load(&mut self, commands: &[Logged]) -> Result<Snapshot, StoreError> {
        self.writer.remember_on(&mut self.conn).await?;
        let (writer, conn) = (&*self.writer, &mut self.conn);
        let memory = writer.memory.as_ref().expect("remembered just now");
        self.user_hashes = load::user_hashes(commands);
        let mut asked = load::Asked::of(commands, &self.user_hashes, memory);
        let (skus, due) = load::skus_and_due(&asked, memory, self.head.log_time_before);
        // A request for a SKU that is not here becomes poison, not a row: the primary key would not notice that its id is known.
        let is_careful = writer.careful_batches > 0 || skus.len() < asked.skus.len();
        let known = load::load_known(conn, writer.partition, &asked, is_careful, memory.has_poison()).await?;
        let reservations = load::load_targets(conn, writer.partition, &mut asked, memory).await?;
        Ok(Snapshot {
            partition: writer.partition,
            log_time: self.head.log_time_before,
            skus,
            known_reservations: known.reservations,
            known_commands: known.commands,
            known_keys: known.keys,
            reservations,
            holdings: load::load_holdings(conn, writer.partition, asked).await?,
            due,
        })
    }

    /// Writes what was decided of the commands that the snapshot was loaded for. `raw` = the bytes of the records, by offset; only those of poisoned commands are kept.
    ///
    /// # Errors
    /// [`BatchError`]; call [`Self::roll_back`] with it.
    ///
    /// # Panics
    /// If decisions and commands don't match, or log time is not the one that the fence wrote.
    pub async fn write(
        &mut self,
        commands: &[Logged],
        outcome: &Outcome,
        raw: &BTreeMap<i64, &[u8]>,
    ) -> Result<(), BatchError> {
        assert_eq!(outcome.changes.log_time, self.head.log_time, "the fence wrote the log time that decide found");
        let rows = Rows::of(self.writer.partition, commands, &self.user_hashes, outcome);
        let written = async {
            write::write_commands(&mut self.conn, self.writer.partition, &rows).await?;
            write::write_poison(&mut self.conn, self.writer.partition, &rows, raw).await?;
            let skus = write::write_batch(&mut self.conn, self.writer, self.head, commands.len(), &rows).await?;
            let changed = write::write_changes(&mut self.conn, &rows).await?;
            Ok((skus, changed))
        };
        let (skus, changed) = match written.await {
            Err(error) if is_known_id(&error) => {
                self.writer.look_up_ids();
                return Err(BatchError::Known);
            }
            written => written.map_err(BatchError::before_commit)?,
        };
        self.learned = Learned::of(commands, &self.user_hashes, outcome);
        let (sku_count, change_count) = (rows.skus.skus.len(), rows.changes.ids.len());
        if (skus, changed) == (sku_count as i64, change_count as u64) {
            return Ok(());
        }
        Err(BatchError::Contradiction(format!(
            "{skus} of {sku_count} SKUs and {changed} of {change_count} reservations are as this writer left them: something else \
             changed stock, settings or a reservation"
        )))
    }

    /// Lets rows of ended holds say so, at most [`limits::SETTLE_MAX`]; which did. To be called after [`Self::write`], or alone, in a
    /// transaction that moves no position.
    ///
    /// # Errors
    /// [`BatchError`]; call [`Self::roll_back`] with it.
    pub async fn settle(&mut self) -> Result<Vec<SettledHold>, BatchError> {
        let ended: Vec<EndedHold> = self.writer.memory.iter().flat_map(Memory::to_settle).cloned().collect();
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        self.learned.settled = ended.len();
        let partition = self.writer.partition;
        let settled = async {
            let settled = write::settle(&mut self.conn, partition, &ended).await?;
            if !settled.is_empty() {
                write::write_events(&mut self.conn, partition, &events_of(&settled)).await?;
            }
            Ok(settled)
        };
        settled.await.map_err(BatchError::before_commit)
    }

    /// Commits. The writer keeps its connection only if the server says yes.
    ///
    /// # Errors
    /// [`BatchError::Doubtful`] for every other answer, an error from the server included: never judge COMMIT by an error's text.
    pub async fn commit(mut self) -> Result<(), BatchError> {
        let commit = ask("commit a batch", limits::STATEMENT_DEADLINE, sqlx::raw_sql("COMMIT").execute(&mut self.conn));
        match commit.await {
            Ok(_) => {
                self.writer.conn = Some(self.conn);
                self.writer.careful_batches = self.writer.careful_batches.saturating_sub(1);
                if let Some(memory) = &mut self.writer.memory {
                    memory.learn(self.learned);
                }
                Ok(())
            }
            Err(error) => {
                self.writer.memory = None;
                Err(BatchError::Doubtful(error))
            }
        }
    }

    /// Gives the transaction up and hands `error` back.
    pub async fn roll_back(self, error: BatchError) -> BatchError {
        if !matches!(error, BatchError::Lost(_)) {
            self.abandon().await;
        }
        error
    }

    /// Ends a trial: nothing of it is kept. The writer keeps its connection if the server confirms the rollback.
    pub async fn abandon(mut self) {
        let rollback = sqlx::raw_sql("ROLLBACK").execute(&mut self.conn);
        if ask("roll a batch back", limits::STATEMENT_DEADLINE, rollback).await.is_ok() {
            self.writer.conn = Some(self.conn);
        }
    }
}

/// The ends of holds, in the order in which they were.
fn events_of(settled: &[SettledHold]) -> Vec<Event> {
    let mut events: Vec<Event> = settled.iter().map(SettledHold::event).collect();
    events.sort_by_key(|event| event.at);
    events
}

impl SettledHold {
    fn event(&self) -> Event {
        let units = u32::try_from(self.units).ok().and_then(Quantity::new);
        let what = Happening::Reservation(ReservationEvent {
            reservation: self.reservation,
            user: self.user.clone(),
            quantity: units.expect("units of a reservation are a quantity"),
            version: self.version,
            change: LifeChange::Expired,
        });
        Event { origin: Origin::EndOfHold, at: self.expires_at, sku: self.sku.clone(), what }
    }
}

fn is_known_id(error: &StoreError) -> bool {
    matches!(error.constraint().as_deref(), Some("reservation_pkey" | "command_pkey" | "command_key_id"))
}
