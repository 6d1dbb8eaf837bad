//! Asking a SKU's writer through the log, and waiting for what it says: the one way of every command that is not a reserve.
//!
//! In the flow: http, cli > [`crate::admin`] (SKUs), [`reservations`] > **commands** > ingress, and back by the command's row in Postgres.
//! A command has an id; a repeat with the same id is a duplicate in the log, and whoever asks for it is shown the first one's row. Nothing
//! here is refused for a halt, a pause, a lag or an empty shelf: those are for reserves.

pub mod reservations;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::batcher::{Batcher, Questions, batcher};
use crate::clock::Clock;
use crate::ids::{Place, Ticket};
use crate::ingress::{Delivery, Ingress, NotSent};
use crate::inventory::{Command, Refusal};
use crate::kafka::LogEnds;
use crate::limits;
use crate::origin::Origin;
use crate::store::{CommandRow, Store, StoreError};
use crate::waiters::{Waiter, Waiters};
use crate::wire::{self, Sent};

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct Commands {
    store: Store,
    ingress: Ingress,
    waiters: Waiters,
    log_ends: LogEnds,
    clock: Arc<dyn Clock>,
    stop_waiting: CancellationToken,
    look_every: Duration,
    reads: Batcher<(Uuid, Ticket), Read>,
    log_reads: Arc<Semaphore>,
}

/// A command's row, if it is decided.
type Read = Result<Option<CommandRow>, Unread>;

/// Postgres could not be asked. Logged where it happened.
struct Unread;

/// What became of a command that is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// It, or an earlier one with its id, has its decision.
    Decided(CommandRow),
    /// Not decided in time.
    Undecided(Ticket),
}

/// Why a command was not asked, or nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Definitely not published.
    #[error("the command could not be published")]
    NotSent(NotSent),
    /// It may have been published.
    #[error("nobody knows whether the command was published")]
    Unknown,
}

/// Where a command stands that somebody asked some time ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No command has this id and ticket.
    Unknown,
    /// In the log, not decided; absent if the log can't be read now.
    Queued(Option<Box<Command>>),
    /// Decided.
    Decided(CommandRow),
}

/// What stands in the log at a ticket.
#[derive(Clone, Debug, PartialEq, Eq)]
enum InLog {
    Found(Box<Command>),
    /// Nothing, or nothing that can be decided.
    Nothing,
    /// The log can't be read now, or not by this build.
    Unreadable,
    /// Too many read the log now.
    Busy,
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandRefusal {
    /// By its SKU's writer.
    Writer(Refusal),
    /// The same key or reference named another change before; this one was not made.
    NameReused,
    /// It could not be decided: a code for operators.
    Poisoned(String),
}

impl Commands {
    /// Over the parts of this process. `stop_waiting` cancelled = whoever waits for a decision is told at once that there is none yet;
    /// `look_every` is how often it is looked for when nobody wakes us. Needs a tokio runtime; its task ends with the last handle.
    pub fn new(
        store: Store,
        ingress: Ingress,
        waiters: Waiters,
        log_ends: LogEnds,
        clock: Arc<dyn Clock>,
        stop_waiting: CancellationToken,
        look_every: Duration,
    ) -> Self {
        let (reads, asked) = batcher(limits::STATUS_QUEUE_MAX);
        tokio::spawn(read_all(store.clone(), asked));
        let log_reads = Arc::new(Semaphore::new(limits::LOG_RECORDS_READ_AT_ONCE));
        Self { store, ingress, waiters, log_ends, clock, stop_waiting, look_every, reads, log_reads }
    }

    /// Publishes `command` to its SKU's `partition` and waits for its decision, at most `wait` after it is in the log.
    ///
    /// Publishing is not taken back when this future is dropped: run it in a task of its own.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        partition: i32,
        command: Command,
        origin: Origin,
        wait: Duration,
    ) -> Result<Asked, AskError> {
        let id = command.id();
        let received_at_us = self.clock.now().saturating_mul(1000);
        // Registered before the publish, so that no wake-up can fall between.
        let mut waiter = self.waiters.register(id);
        let sent = Sent { received_at_us, request_id: origin.request_id.to_string(), command };
        match self.ingress.submit_traced(partition, sent, origin.trace).await {
            Delivery::Delivered(ticket) => {
                let deadline = Instant::now() + wait;
                let decision = self.stop_waiting.run_until_cancelled(self.await_decision(id, ticket, &mut waiter));
                // The command is in the log, whether somebody still waits for it or not.
                let decided = tokio::time::timeout_at(deadline, decision).await.ok().flatten();
                Ok(decided.map_or(Asked::Undecided(ticket), Asked::Decided))
            }
            Delivery::NotSent(why) => Err(AskError::NotSent(why)),
            Delivery::Unknown => Err(AskError::Unknown),
        }
    }

    /// Waits as long as it takes. Looks when it is woken: right after the delivery there is hardly ever something to see.
    async fn await_decision(&self, id: Uuid, ticket: Ticket, waiter: &mut Waiter) -> CommandRow {
        loop {
            // Nobody wakes us on the command line, nor when Redis is away.
            let _ = tokio::time::timeout(self.look_every, waiter.woken()).await;
            // The command is in the log whatever Postgres says now.
            if let Some(Ok(Some(row))) = self.reads.ask((id, ticket)).await {
                return row;
            }
        }
    }

    /// Where the command of this id and ticket stands: first the positions are read, then the row, then the log.
    ///
    /// What the command asked for is not compared: a key that was used for two changes while nothing was decided is told of the first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn standing(&self, id: Uuid, ticket: Ticket) -> Result<Standing, StoreError> {
        let partitions = self.store.load_partitions().await?;
        let position = partitions.iter().find(|p| p.partition == ticket.partition).map(|p| p.position);
        if let Some(row) = self.store.load_commands(&[(id, ticket)]).await?.pop().flatten() {
            return Ok(Standing::Decided(row));
        }
        if position.is_none_or(|position| position > ticket.place.offset) {
            return Ok(Standing::Unknown);
        }
        Ok(match self.in_log(ticket).await {
            InLog::Found(command) if command.id() == id => Standing::Queued(Some(command)),
            InLog::Found(_) | InLog::Nothing => Standing::Unknown,
            // Whoever can't ask says QUEUED.
            InLog::Unreadable | InLog::Busy => Standing::Queued(None),
        })
    }

    /// The row of the command that has this id, if one was decided or poisoned.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find_decided(&self, partition: i32, id: Uuid) -> Result<Option<CommandRow>, StoreError> {
        // No command stands there: only the id is looked for.
        let nowhere = Ticket { partition, place: Place { offset: -1, index: 0 } };
        Ok(self.store.load_commands(&[(id, nowhere)]).await?.pop().flatten())
    }

    /// Refuses at once beyond [`limits::LOG_RECORDS_READ_AT_ONCE`]: one thread answers all questions about the log, and a crowd that cancels
    /// what is queued must not keep the lag and the proofs of absence waiting.
    async fn in_log(&self, ticket: Ticket) -> InLog {
        let Ok(_place) = self.log_reads.try_acquire() else { return InLog::Busy };
        let record = match self.log_ends.read_record(ticket.partition, ticket.place.offset).await {
            Ok(Some(record)) => record,
            Ok(None) => return InLog::Nothing,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read a command in the log");
                return InLog::Unreadable;
            }
        };
        match wire::decode(&record.payload) {
            Ok(mut record) => {
                let index = usize::from(ticket.place.index);
                let envelope = (index < record.commands.len()).then(|| record.commands.swap_remove(index));
                envelope.and_then(|e| e.command.ok()).map_or(InLog::Nothing, |command| InLog::Found(Box::new(command)))
            }
            Err(wire::DecodeError::UnknownVersion(_)) => InLog::Unreadable,
            Err(wire::DecodeError::Undecodable(_)) => InLog::Nothing,
        }
    }
}

/// Reads for all who look: whoever is woken while a query runs shares the next one, and a batch wakes many at once.
async fn read_all(store: Store, mut asked: Questions<(Uuid, Ticket), Read>) {
    while let Some((commands, answers)) = asked.next(limits::STATUS_READ_MAX).await {
        let rows = match store.load_commands(&commands).await {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read commands");
                commands.iter().map(|_| Err(Unread)).collect()
            }
        };
        answers.give(rows);
    }
}

/// Why the writer refused a command; `None` = it is done.
pub fn refusal_of(row: &CommandRow) -> Option<CommandRefusal> {
    let number = |index: usize| row.details[index].unwrap_or_default();
    let small = |index: usize| u32::try_from(number(index)).unwrap_or(u32::MAX);
    Some(CommandRefusal::Writer(match row.result.as_str() {
        "CREATED" | "CHANGED" | "CONFIRMED" | "CANCELLED" | "EXTENDED" | "ADJUSTED" => return None,
        "IDEMPOTENCY_KEY_REUSED" => return Some(CommandRefusal::NameReused),
        "SETTINGS_CHANGED" => Refusal::SettingsChanged { settings_version: number(0) },
        "STOCK_CHANGED" => Refusal::StockChanged { on_hand: number(0) },
        "BELOW_COMMITTED" => Refusal::BelowCommitted { minimum: number(0) },
        "ABOVE_MAXIMUM" => Refusal::AboveMaximum { on_hand: number(0) },
        "NOT_RESERVED_YET" => Refusal::NotReservedYet,
        "RESERVATION_REJECTED" => Refusal::ReservationRejected,
        "ALREADY_CONFIRMED" => Refusal::AlreadyConfirmed,
        "ALREADY_CANCELLED" => Refusal::AlreadyCancelled,
        "HOLD_EXPIRED" => Refusal::HoldExpired,
        "PAID_UNFULFILLED" => Refusal::PaidUnfulfilled,
        "EXTENSION_LIMIT" => Refusal::ExtensionLimit { extensions_left: small(0), seconds_left: small(1) },
        code => return Some(CommandRefusal::Poisoned(code.to_owned())),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(result: &str, details: [Option<i64>; 3]) -> CommandRow {
        CommandRow {
            command_id: Uuid::nil(),
            reservation_id: None,
            kind: "adjust".into(),
            sku_id: "s".into(),
            result: result.into(),
            details,
            fingerprint: Some(0),
        }
    }

    #[test]
    fn every_refusal_of_the_writer_is_read_back_from_its_row() {
        let refusals = [
            (Refusal::SettingsChanged { settings_version: 3 }, [Some(3), None, None]),
            (Refusal::StockChanged { on_hand: 98 }, [Some(98), None, None]),
            (Refusal::BelowCommitted { minimum: 7 }, [Some(7), None, None]),
            (Refusal::AboveMaximum { on_hand: 9 }, [Some(9), None, None]),
            (Refusal::NotReservedYet, [None; 3]),
            (Refusal::ReservationRejected, [None; 3]),
            (Refusal::AlreadyConfirmed, [None; 3]),
            (Refusal::AlreadyCancelled, [None; 3]),
            (Refusal::HoldExpired, [None; 3]),
            (Refusal::PaidUnfulfilled, [None; 3]),
            (Refusal::ExtensionLimit { extensions_left: 1, seconds_left: 30 }, [Some(1), Some(30), None]),
        ];
        for (refusal, details) in refusals {
            assert_eq!(refusal_of(&row(refusal.code(), details)), Some(CommandRefusal::Writer(refusal)));
        }
        assert_eq!(refusal_of(&row(Refusal::KeyReused.code(), [None; 3])), Some(CommandRefusal::NameReused));
        assert_eq!(refusal_of(&row("ADJUSTED", [None; 3])), None);
        assert_eq!(refusal_of(&row("NOT_HERE", [None; 3])), Some(CommandRefusal::Poisoned("NOT_HERE".into())));
    }
}
