//! Administration of SKUs: what an operator asks, by HTTP or on the command line.
//!
//! A SKU's settings and stock change only by a command in its partition. So a change is asked through the log ([`crate::commands`]); what
//! this module writes itself is one row, the pin of a new SKU. Read paths are plain questions to Postgres.

mod change;

use uuid::Uuid;

use crate::commands::{AskError, Asked, CommandRefusal, Commands, Standing, refusal_of};
use crate::ids::{SkuId, Ticket};
use crate::limits;
use crate::store::{CatalogueEntry, CommandRow, Store, StoreError};
pub use change::{ChangeSku, SettingsPatch, SkuChange};
use change::{command_of, out_of_bounds};

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct SkuAdmin {
    store: Store,
    commands: Commands,
}

/// What became of a [`ChangeSku`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkuChanged {
    /// The SKU is new.
    Created(CatalogueEntry),
    /// The settings are in force, the pause begins or ends: the SKU as it is now.
    Changed(CatalogueEntry),
    /// The stock was changed: as it was right after that.
    Adjusted(Stock),
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

/// A SKU's stock after an adjustment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stock {
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
}

/// Why a [`ChangeSku`] was not tried, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum ChangeSkuError {
    /// The SKU does not exist, and without stock it can't be created.
    #[error("on_hand is required to create a SKU")]
    OnHandRequired,
    /// There is no such SKU to change.
    #[error("there is no such SKU")]
    UnknownSku,
    /// The settings, patched, would be none: fields and what they must be.
    #[error("the settings would be out of bounds")]
    OutOfBounds(Vec<(&'static str, &'static str)>),
    /// See [`AskError`].
    #[error(transparent)]
    Ask(AskError),
    /// Postgres could not be asked before publishing: nothing happened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The change is done, and the SKU can't be read now.
    #[error("the change is done, and the SKU can't be read now")]
    Unshown,
}

/// Where an operator's command stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkuCommandStanding {
    /// No such command at this ticket.
    Unknown,
    /// In the log, not decided; its kind, if the log can be read now.
    Queued(Option<&'static str>),
    /// Done: its kind, and the SKU as it is now.
    Done(String, CatalogueEntry),
    /// Refused: its kind, and why.
    Refused(String, CommandRefusal),
}

impl SkuAdmin {
    /// Over the parts of this process.
    pub fn new(store: Store, commands: Commands) -> Self {
        Self { store, commands }
    }

    /// Publishes the change and waits for its decision. The pin of a new SKU is made before, once and for ever.
    ///
    /// Publishing is not taken back when this future is dropped: run it in a task of its own.
    ///
    /// # Errors
    /// [`ChangeSkuError`].
    pub async fn change(&self, asked: ChangeSku) -> Result<SkuChanged, ChangeSkuError> {
        let known = self.load(&asked.sku).await?;
        let partition = match (&known, &asked.change) {
            (Some(entry), _) => entry.partition,
            (None, SkuChange::Put { on_hand: None, .. }) => return Err(ChangeSkuError::OnHandRequired),
            (None, SkuChange::Put { .. }) => self.store.pin_sku(&asked.sku).await?,
            (None, _) => return Err(ChangeSkuError::UnknownSku),
        };
        let ChangeSku { sku, change, key, origin } = asked;
        let command = command_of(sku.clone(), change, key.as_ref(), known.as_ref(), partition)?;
        let (id, fingerprint) = (command.id(), command.fingerprint());
        let wrong = out_of_bounds(&command);
        let asked = if wrong.is_empty() {
            let asking = self.commands.ask(partition, command, origin, limits::ADMIN_DECISION_WAIT);
            asking.await.map_err(ChangeSkuError::Ask)?
        } else {
            // It can't be asked for now. A repeat of what was done before still gets its answer, whatever others changed since.
            let done = self.commands.find_decided(partition, id).await?;
            Asked::Decided(done.ok_or(ChangeSkuError::OutOfBounds(wrong))?)
        };
        match asked {
            Asked::Undecided(ticket) => Ok(SkuChanged::Undecided { id, ticket }),
            // Of this row, found by its name, the command is a duplicate that asks for something else: the writer left it out.
            Asked::Decided(row) if row.fingerprint.is_some_and(|known| known != fingerprint) => {
                Ok(SkuChanged::Refused(CommandRefusal::NameReused))
            }
            Asked::Decided(row) => self.changed(&sku, &row).await,
        }
    }

    async fn changed(&self, sku: &SkuId, row: &CommandRow) -> Result<SkuChanged, ChangeSkuError> {
        if let Some(refusal) = refusal_of(row) {
            return Ok(SkuChanged::Refused(refusal));
        }
        if let ("ADJUSTED", [Some(on_hand), Some(reserved), Some(sold)]) = (row.result.as_str(), row.details) {
            return Ok(SkuChanged::Adjusted(Stock { on_hand, reserved, sold }));
        }
        let entry = self.load(sku).await.ok().flatten().ok_or(ChangeSkuError::Unshown)?;
        Ok(if row.result == "CREATED" { SkuChanged::Created(entry) } else { SkuChanged::Changed(entry) })
    }

    /// Where the command of this id and ticket stands.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn standing(&self, sku: &SkuId, id: Uuid, ticket: Ticket) -> Result<SkuCommandStanding, StoreError> {
        Ok(match self.commands.standing(id, ticket).await? {
            Standing::Unknown => SkuCommandStanding::Unknown,
            Standing::Queued(Some(command)) if command.sku() != sku => SkuCommandStanding::Unknown,
            Standing::Queued(command) => SkuCommandStanding::Queued(command.map(|command| command.kind())),
            // Poison has no SKU; its id was found all the same.
            Standing::Decided(row) if !row.sku_id.is_empty() && row.sku_id != sku.as_str() => {
                SkuCommandStanding::Unknown
            }
            Standing::Decided(row) => match refusal_of(&row) {
                Some(refusal) => SkuCommandStanding::Refused(row.kind, refusal),
                None => match self.load(sku).await? {
                    Some(entry) => SkuCommandStanding::Done(row.kind, entry),
                    None => SkuCommandStanding::Unknown,
                },
            },
        })
    }

    /// A SKU, as last decided.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(&self, sku: &SkuId) -> Result<Option<CatalogueEntry>, StoreError> {
        Ok(self.store.load_skus(std::slice::from_ref(sku)).await?.pop())
    }
}
