//! Administration of SKUs: what an operator asks, by HTTP or on the command line.
//!
//! A SKU's settings change only by a command in its partition. So a change is published like any request, and then waited for; what this
//! module writes itself is one row, the pin of a new SKU. Read paths are plain questions to Postgres.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::ids::{self, IdempotencyKey, SkuId, Ticket};
use crate::ingress::{Delivery, Ingress, NotSent};
use crate::inventory::{Command, Configure, Settings};
use crate::kafka::LogEnds;
use crate::limits;
use crate::store::{CatalogueEntry, CommandRow, Store, StoreError};
use crate::waiters::{Waiter, Waiters};
use crate::wire::Sent;

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct SkuAdmin {
    store: Store,
    ingress: Ingress,
    waiters: Waiters,
    log_ends: LogEnds,
    clock: Arc<dyn Clock>,
    stop_waiting: CancellationToken,
}

/// Create a SKU, or replace all its settings.
#[derive(Clone, Debug)]
pub struct PutSku {
    /// Which.
    pub sku: SkuId,
    /// Units in the sale: required on creation, afterwards only compared.
    pub on_hand: Option<i64>,
    /// The settings, complete; checked by [`Settings::check`] before.
    pub settings: Settings,
    /// The operator's name for this call.
    pub key: Option<IdempotencyKey>,
    /// Finds the call in logs.
    pub request_id: String,
}

/// What became of a [`PutSku`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// The SKU is new.
    Created(CatalogueEntry),
    /// The settings are in force.
    Changed(CatalogueEntry),
    /// Refused.
    Refused(CommandRefusal),
    /// In the log, but not decided within [`limits::ADMIN_DECISION_WAIT`].
    Undecided {
        /// The command.
        id: Uuid,
        /// Where it stands.
        ticket: Ticket,
    },
}

/// Why the writer refused an operator's command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandRefusal {
    /// The stock is another one.
    StockChanged {
        /// Units in the sale when it was decided.
        on_hand: i64,
    },
    /// The settings changed between reading them and the decision.
    SettingsChanged,
    /// The same key named another change of this SKU before; this one was not made.
    KeyReused,
    /// It could not be decided: a code for operators.
    Poisoned(String),
}

/// Why a [`PutSku`] was not tried, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The SKU does not exist, and without stock it can't be created.
    #[error("on_hand is required to create a SKU")]
    OnHandRequired,
    /// Definitely not published.
    #[error("the command could not be published")]
    NotSent(NotSent),
    /// It may have been published.
    #[error("nobody knows whether the command was published")]
    Unknown,
    /// Postgres could not be asked before publishing: nothing happened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is being waited for.
struct Asked {
    sku: SkuId,
    id: Uuid,
    fingerprint: i64,
}

/// Where an operator's command stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// In the log, not decided.
    Queued,
    /// Done.
    Done(CatalogueEntry),
    /// Refused.
    Refused(CommandRefusal),
    /// No such command at this ticket.
    Unknown,
}

impl SkuAdmin {
    /// Over the parts of this process. `stop_waiting` cancelled = whoever waits for a decision is told at once that there is none yet.
    pub fn new(
        store: Store,
        ingress: Ingress,
        waiters: Waiters,
        log_ends: LogEnds,
        clock: Arc<dyn Clock>,
        stop_waiting: CancellationToken,
    ) -> Self {
        Self { store, ingress, waiters, log_ends, clock, stop_waiting }
    }

    /// Publishes the change and waits for its decision. The SKU's pin is made before, once and for ever.
    ///
    /// Publishing is not taken back when this future is dropped: run it in a task of its own.
    ///
    /// # Errors
    /// [`PutError`].
    pub async fn put(&self, put: PutSku) -> Result<Put, PutError> {
        let known = self.load(&put.sku).await?;
        let (pin, seen_version) = match &known {
            Some(entry) => (entry.partition, entry.sku.settings_version),
            None if put.on_hand.is_none() => return Err(PutError::OnHandRequired),
            None => (self.store.pin_sku(&put.sku).await?, 0),
        };
        let id = match &put.key {
            Some(key) => ids::keyed_sku_command_id("configure", &put.sku, key),
            None => ids::fresh_id(),
        };
        let PutSku { sku, on_hand, settings, request_id, .. } = put;
        let configure = Configure { id, sku: sku.clone(), pin, seen_version, on_hand, settings };
        let asked = Asked { sku, id, fingerprint: configure.fingerprint() };
        let received_at_us = self.clock.now().saturating_mul(1000);
        let sent = Sent { received_at_us, request_id, command: Command::Configure(configure) };
        // Registered before the publish, so that no wake-up can fall between.
        let mut waiter = self.waiters.register(id);
        match self.ingress.submit(pin, sent).await {
            Delivery::Delivered(ticket) => {
                let deadline = Instant::now() + limits::ADMIN_DECISION_WAIT;
                let decision = self.stop_waiting.run_until_cancelled(self.await_decision(&asked, ticket, &mut waiter));
                // The command is in the log, whether somebody still waits for it or not.
                let decided = tokio::time::timeout_at(deadline, decision).await.ok().flatten();
                Ok(decided.unwrap_or(Put::Undecided { id, ticket }))
            }
            Delivery::NotSent(why) => Err(PutError::NotSent(why)),
            Delivery::Unknown => Err(PutError::Unknown),
        }
    }

    /// Waits as long as it takes.
    async fn await_decision(&self, asked: &Asked, ticket: Ticket, waiter: &mut Waiter) -> Put {
        loop {
            match self.decision(asked, ticket).await {
                Ok(Some(put)) => return put,
                Ok(None) => {}
                // The command is in the log whatever Postgres says now.
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "could not read a command"),
            }
            // On the command line nobody wakes us: look again by ourselves.
            let _ = tokio::time::timeout(limits::COMMAND_POLL_EVERY, waiter.woken()).await;
        }
    }

    /// The decision, if there is one, with the SKU as it is now.
    async fn decision(&self, asked: &Asked, ticket: Ticket) -> Result<Option<Put>, StoreError> {
        let Some(row) = self.store.load_command(asked.id, ticket).await? else {
            return Ok(None);
        };
        // This command is a duplicate of the row's, by its key, but it asks for something else: the writer left it out.
        if row.fingerprint.is_some_and(|fingerprint| fingerprint != asked.fingerprint) {
            return Ok(Some(Put::Refused(CommandRefusal::KeyReused)));
        }
        let is_creation = row.result == "CREATED";
        if let Some(refusal) = refusal_of(&row) {
            return Ok(Some(Put::Refused(refusal)));
        }
        let entry = self.load(&asked.sku).await?;
        let decided = |entry| if is_creation { Put::Created(entry) } else { Put::Changed(entry) };
        Ok(entry.map(decided))
    }

    /// Where the command of this id and ticket stands: first the positions are read, then the row, then the log's end.
    ///
    /// What the command asked for is not known here: a key that was used for two changes while nothing was decided is told of the first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn command_status(&self, sku: &SkuId, id: Uuid, ticket: Ticket) -> Result<CommandStatus, StoreError> {
        let partitions = self.store.load_partitions().await?;
        let position = partitions.iter().find(|p| p.partition == ticket.partition).map(|p| p.position);
        let row = self.store.load_command(id, ticket).await?;
        match row {
            // Poison has no SKU; its id was found all the same.
            Some(row) if !row.sku_id.is_empty() && row.sku_id != sku.as_str() => Ok(CommandStatus::Unknown),
            Some(row) => match refusal_of(&row) {
                Some(refusal) => Ok(CommandStatus::Refused(refusal)),
                None => Ok(self.load(sku).await?.map_or(CommandStatus::Unknown, CommandStatus::Done)),
            },
            None if position.is_none_or(|position| position > ticket.place.offset) => Ok(CommandStatus::Unknown),
            None => match self.log_ends.watermarks(ticket.partition).await {
                Ok((_, end)) if ticket.place.offset >= end => Ok(CommandStatus::Unknown),
                // Whoever can't ask says QUEUED.
                Ok(_) | Err(_) => Ok(CommandStatus::Queued),
            },
        }
    }

    /// A SKU, as last decided.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, sku: &SkuId) -> Result<Option<CatalogueEntry>, StoreError> {
        Ok(self.store.load_skus(std::slice::from_ref(sku)).await?.pop())
    }
}

fn refusal_of(row: &CommandRow) -> Option<CommandRefusal> {
    match row.result.as_str() {
        "CREATED" | "CHANGED" => None,
        "STOCK_CHANGED" => Some(CommandRefusal::StockChanged { on_hand: row.details[0].unwrap_or_default() }),
        "SETTINGS_CHANGED" => Some(CommandRefusal::SettingsChanged),
        code => Some(CommandRefusal::Poisoned(code.to_owned())),
    }
}
