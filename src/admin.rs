//! Administration of SKUs: what an operator asks, by HTTP or on the command line.
//!
//! A SKU's settings and stock change only by a command in its partition. So a change is asked through the log ([`crate::commands`]); what
//! this module writes itself is one row, the pin of a new SKU. Read paths are plain questions to Postgres.

use uuid::Uuid;

use crate::clock::Millis;
use crate::commands::{AskError, Asked, CommandRefusal, Commands, Standing, refusal_of};
use crate::ids::{self, IdempotencyKey, Note, Reference, SkuId, Ticket};
use crate::inventory::{Adjust, Command, Configure, LatePayment, Pause, Settings, StockChange};
use crate::limits;
use crate::store::{CatalogueEntry, CommandRow, Store, StoreError};

/// Handle; cheap to clone.
#[derive(Clone)]
pub struct SkuAdmin {
    store: Store,
    commands: Commands,
}

/// One change of one SKU.
#[derive(Clone, Debug)]
pub struct ChangeSku {
    /// Which.
    pub sku: SkuId,
    /// What is asked for.
    pub change: SkuChange,
    /// The operator's name for this call.
    pub key: Option<IdempotencyKey>,
    /// Finds the call in logs.
    pub request_id: String,
}

/// What an operator may ask of a SKU.
#[derive(Clone, Debug)]
pub enum SkuChange {
    /// Create it, or replace all its settings.
    Put {
        /// Units in the sale: required on creation, afterwards only compared.
        on_hand: Option<i64>,
        /// The settings, complete; checked by [`Settings::check`] before.
        settings: Settings,
    },
    /// Change some of its settings.
    Patch(SettingsPatch),
    /// Stop taking reserves, or take them again.
    Pause {
        /// True = stop.
        pauses: bool,
        /// Why.
        note: Option<Note>,
    },
    /// Change its stock. Named by the reference, also with a key.
    Adjust {
        /// How.
        change: StockChange,
        /// Why.
        note: Note,
        /// What it belongs to.
        reference: Option<Reference>,
    },
}

/// Some settings; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettingsPatch {
    /// Units in the sale: only compared.
    pub on_hand: Option<i64>,
    /// See [`Settings`], as all below.
    pub user_limit: Option<u32>,
    /// In seconds.
    pub hold_seconds: Option<u32>,
    /// Inner `None`: open at once.
    pub starts_at: Option<Option<Millis>>,
    /// Inner `None`: no end.
    pub ends_at: Option<Option<Millis>>,
    /// The policy.
    pub late_payment: Option<LatePayment>,
    /// Of one hold.
    pub extensions_max: Option<u32>,
    /// Of one hold, in seconds.
    pub extension_seconds_max: Option<u32>,
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

/// How a repeat with another body is told from a repeat.
#[derive(Clone, Copy)]
enum Named {
    /// Nobody can repeat it.
    Freshly,
    /// By a key or a reference: what it asks for is compared.
    ByCaller,
    /// By a key, and what it asks for depends on the settings that were seen: compared only if nobody changed them since.
    ByCallerOver { seen_version: i64 },
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
        let ChangeSku { sku, change, key, request_id } = asked;
        let (command, named) = command_of(sku.clone(), change, key.as_ref(), known.as_ref(), partition)?;
        let (id, fingerprint) = (command.id(), command.fingerprint());
        let asking = self.commands.ask(partition, command, request_id, limits::ADMIN_DECISION_WAIT);
        match asking.await.map_err(ChangeSkuError::Ask)? {
            Asked::Undecided(ticket) => Ok(SkuChanged::Undecided { id, ticket }),
            Asked::Decided(row) if is_another(&row, fingerprint, named) => {
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

/// The command of a change, over what was seen of the SKU.
fn command_of(
    sku: SkuId,
    change: SkuChange,
    key: Option<&IdempotencyKey>,
    known: Option<&CatalogueEntry>,
    pin: i32,
) -> Result<(Command, Named), ChangeSkuError> {
    let seen_version = known.map_or(0, |entry| entry.sku.settings_version);
    let id_of = |kind: &str| match key {
        Some(key) => (ids::keyed_sku_command_id(kind, &sku, key), Named::ByCaller),
        None => (ids::fresh_id(), Named::Freshly),
    };
    Ok(match change {
        SkuChange::Put { on_hand, settings } => {
            let (id, named) = id_of("configure");
            (Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings }), named)
        }
        SkuChange::Patch(patch) => {
            let (id, _) = id_of("patch");
            let entry = known.ok_or(ChangeSkuError::UnknownSku)?;
            let settings = patch.over(&entry.sku.settings);
            let wrong = settings.check();
            if !wrong.is_empty() {
                return Err(ChangeSkuError::OutOfBounds(wrong));
            }
            let named = if key.is_some() { Named::ByCallerOver { seen_version } } else { Named::Freshly };
            let on_hand = patch.on_hand;
            (Command::Configure(Configure { id, sku, pin, seen_version, on_hand, settings }), named)
        }
        SkuChange::Pause { pauses, note } => {
            let (id, named) = id_of(if pauses { "pause" } else { "resume" });
            (Command::Pause(Pause { id, sku, seen_version, pauses, note }), named)
        }
        SkuChange::Adjust { change, note, reference } => {
            let (id, named) = match &reference {
                Some(name) => (ids::named_sku_command_id("adjust", &sku, name.as_str()), Named::ByCaller),
                None => id_of("adjust"),
            };
            (Command::Adjust(Adjust { id, sku, change, note, reference }), named)
        }
    })
}

/// Whether the row's command, of which ours is a duplicate by its name, asked for something else: the writer left ours out.
fn is_another(row: &CommandRow, fingerprint: i64, named: Named) -> bool {
    let is_compared = match named {
        Named::Freshly => false,
        Named::ByCaller => true,
        // Two with one key before the first was decided saw the same version, which is older than what the first one left.
        Named::ByCallerOver { seen_version } => row.details[0].is_none_or(|left| left >= seen_version),
    };
    is_compared && row.fingerprint.is_some_and(|known| known != fingerprint)
}

impl SettingsPatch {
    /// These settings with the patch laid over them.
    pub fn over(&self, settings: &Settings) -> Settings {
        Settings {
            user_limit: self.user_limit.unwrap_or(settings.user_limit),
            hold_seconds: self.hold_seconds.unwrap_or(settings.hold_seconds),
            starts_at: self.starts_at.unwrap_or(settings.starts_at),
            ends_at: self.ends_at.unwrap_or(settings.ends_at),
            late_payment: self.late_payment.unwrap_or(settings.late_payment),
            extensions_max: self.extensions_max.unwrap_or(settings.extensions_max),
            extension_seconds_max: self.extension_seconds_max.unwrap_or(settings.extension_seconds_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_leaves_what_it_does_not_name() {
        let settings = Settings { user_limit: 5, starts_at: Some(7), ..Settings::default() };
        assert_eq!(SettingsPatch::default().over(&settings), settings);
        let patch = SettingsPatch { hold_seconds: Some(60), starts_at: Some(None), ..SettingsPatch::default() };
        assert_eq!(patch.over(&settings), Settings { hold_seconds: 60, starts_at: None, ..settings });
    }

    #[test]
    fn a_repeated_patch_is_no_other_patch_because_of_what_others_changed_since() {
        let row = CommandRow {
            command_id: Uuid::nil(),
            reservation_id: None,
            kind: "configure".into(),
            sku_id: "s".into(),
            result: "CHANGED".into(),
            details: [Some(4), None, None],
            fingerprint: Some(1),
        };
        let over = |seen_version| is_another(&row, 2, Named::ByCallerOver { seen_version });
        assert!(over(4), "nobody changed anything since: it is another patch");
        assert!(!over(5), "somebody did: nobody can tell, and it is the repeat in all likelihood");
        assert!(is_another(&row, 2, Named::ByCaller) && !is_another(&row, 1, Named::ByCaller));
        assert!(!is_another(&row, 2, Named::Freshly));
    }
}
