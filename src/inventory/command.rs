//! What clients and operators ask of a SKU, as accepted into the log.

use uuid::Uuid;

use crate::clock::Millis;
use crate::ids::{self, Metadata, Note, PaymentRef, Place, Quantity, Reference, SkuId, UserId};

mod settings;

pub use settings::{Configure, LatePayment, Settings};

/// A command with its place in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Where it stands; commands come in this order.
    pub place: Place,
    /// The record's log timestamp (the broker's clock at append).
    pub at: Millis,
    /// The command, or why these bytes are none.
    pub command: Result<Command, Unfit>,
}

/// Everything that may be asked of a SKU's writer. There is no other way to change stock, settings or a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A buyer wants units.
    Reserve(Reserve),
    /// A hold is paid for.
    Confirm(Confirm),
    /// A hold is given back.
    Cancel(Cancel),
    /// A hold is to last longer.
    Extend(Extend),
    /// An operator changes the stock.
    Adjust(Adjust),
    /// An operator creates a SKU or replaces its settings.
    Configure(Configure),
    /// An operator pauses or resumes a sale.
    Pause(Pause),
    /// The partition's owner says that time has passed: holds of the SKU are due.
    Tick(Tick),
}

impl Command {
    /// All kinds. Tests go through them, so that none is forgotten.
    pub const KINDS: [&'static str; 9] =
        ["reserve", "confirm", "cancel", "extend", "adjust", "configure", "pause", "resume", "tick"];

    /// The id that makes a repeat of this command a duplicate (a tick has one only to be found in the log).
    pub fn id(&self) -> Uuid {
        match self {
            Self::Reserve(command) => command.id,
            Self::Confirm(command) => command.id,
            Self::Cancel(command) => command.id,
            Self::Extend(command) => command.id,
            Self::Adjust(command) => command.id,
            Self::Configure(command) => command.id,
            Self::Pause(command) => command.id,
            Self::Tick(command) => command.id,
        }
    }

    /// What a command that something else names occupies besides its id, if it came with a key: the id that the key alone would have
    /// given. Another command that meets it has the same key for another body.
    pub fn key_id(&self) -> Option<Uuid> {
        match self {
            Self::Confirm(command) => command.key_id,
            Self::Adjust(command) => command.key_id,
            // Their key is their name, if they have one.
            Self::Cancel(_) | Self::Extend(_) | Self::Configure(_) | Self::Pause(_) => None,
            Self::Reserve(_) | Self::Tick(_) => None,
        }
    }

    /// The SKU it is about.
    pub fn sku(&self) -> &SkuId {
        match self {
            Self::Reserve(command) => &command.sku,
            Self::Confirm(command) => &command.sku,
            Self::Cancel(command) => &command.sku,
            Self::Extend(command) => &command.sku,
            Self::Adjust(command) => &command.sku,
            Self::Configure(command) => &command.sku,
            Self::Pause(command) => &command.sku,
            Self::Tick(command) => &command.sku,
        }
    }

    /// The reservation that it is to change; a reserve makes one and changes none.
    pub fn target(&self) -> Option<Uuid> {
        match self {
            Self::Confirm(command) => Some(command.reservation),
            Self::Cancel(command) => Some(command.reservation),
            Self::Extend(command) => Some(command.reservation),
            Self::Reserve(_) | Self::Adjust(_) | Self::Configure(_) | Self::Pause(_) | Self::Tick(_) => None,
        }
    }

    /// What its caller asks for, hashed and stored: the same name with another body is told so. Nothing of it depends on what was seen
    /// of the SKU, which a repeat may see changed. Never changes between builds.
    pub fn fingerprint(&self) -> i64 {
        let (mut body, number) =
            (Vec::with_capacity(64), |body: &mut Vec<u8>, n: i64| body.extend_from_slice(&n.to_le_bytes()));
        match self {
            Self::Configure(configure) => return configure.fingerprint(),
            Self::Reserve(_) | Self::Tick(_) => {}
            Self::Confirm(confirm) => body.extend_from_slice(confirm.payment_ref.as_str().as_bytes()),
            Self::Cancel(cancel) => body.extend_from_slice(cancel.note.as_ref().map_or("", Note::as_str).as_bytes()),
            Self::Extend(extend) => number(&mut body, extend.seconds.into()),
            Self::Adjust(adjust) => {
                let (compare, units) = match adjust.change {
                    StockChange::By(delta) => (-1, delta),
                    StockChange::To { compare_on_hand, on_hand } => (compare_on_hand, on_hand),
                };
                number(&mut body, compare);
                number(&mut body, units);
                // The same reference is the same adjustment, whatever a person writes beside it.
                if adjust.reference.is_none() {
                    body.extend_from_slice(adjust.note.as_str().as_bytes());
                }
            }
            Self::Pause(pause) => body.extend_from_slice(pause.note.as_ref().map_or("", Note::as_str).as_bytes()),
        }
        ids::body_hash64(self.kind(), &body)
    }

    /// Its name in rows, metrics and answers: one of [`Self::KINDS`].
    pub fn kind(&self) -> &'static str {
        // By number, so that a kind that is missing in the list does not compile.
        match self {
            Self::Reserve(_) => Self::KINDS[0],
            Self::Confirm(_) => Self::KINDS[1],
            Self::Cancel(_) => Self::KINDS[2],
            Self::Extend(_) => Self::KINDS[3],
            Self::Adjust(_) => Self::KINDS[4],
            Self::Configure(_) => Self::KINDS[5],
            Self::Pause(Pause { pauses: true, .. }) => Self::KINDS[6],
            Self::Pause(Pause { pauses: false, .. }) => Self::KINDS[7],
            Self::Tick(_) => Self::KINDS[8],
        }
    }
}

/// Hold `quantity` units of a SKU for a user, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Id of the reservation that this makes.
    pub id: Uuid,
    /// Who buys.
    pub user: UserId,
    /// What.
    pub sku: SkuId,
    /// How many units.
    pub quantity: Quantity,
    /// What the client wants to find in every answer; no decision reads it.
    pub metadata: Option<Metadata>,
}

/// Turn a hold into a sale; after its end by the SKU's policy ([`LatePayment`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Id of the command: the same payment for the same reservation has the same id.
    pub id: Uuid,
    /// The hold.
    pub reservation: Uuid,
    /// Its SKU.
    pub sku: SkuId,
    /// The payment.
    pub payment_ref: PaymentRef,
    /// See [`Command::key_id`].
    pub key_id: Option<Uuid>,
}

/// Give a hold back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// Id of the command.
    pub id: Uuid,
    /// The hold.
    pub reservation: Uuid,
    /// Its SKU.
    pub sku: SkuId,
    /// Why, for people.
    pub note: Option<Note>,
}

/// Let a hold last longer: its end moves by `seconds`, within the SKU's bounds for number and sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extend {
    /// Id of the command.
    pub id: Uuid,
    /// The hold.
    pub reservation: Uuid,
    /// Its SKU.
    pub sku: SkuId,
    /// 1 to [`crate::limits::HOLD_SECONDS_MAX`].
    pub seconds: u32,
}

/// Change the units in the sale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adjust {
    /// Id of the command: the same reference for the same SKU has the same id; without a reference, the same key.
    pub id: Uuid,
    /// The SKU.
    pub sku: SkuId,
    /// How.
    pub change: StockChange,
    /// Why, for people.
    pub note: Note,
    /// What it belongs to, e.g. a purchase order.
    pub reference: Option<Reference>,
    /// See [`Command::key_id`]: absent without a reference, the key is the name then.
    pub key_id: Option<Uuid>,
}

/// How an adjustment changes the stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StockChange {
    /// By so many units, up or down.
    By(i64),
    /// To a counted number, if the stock is what the operator believes it is.
    To {
        /// What the operator believes.
        compare_on_hand: i64,
        /// What was counted.
        on_hand: i64,
    },
}

/// Stop taking reserve commands for a SKU, or take them again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pause {
    /// Id of the command.
    pub id: Uuid,
    /// The SKU.
    pub sku: SkuId,
    /// The settings version that the operator saw.
    pub seen_version: i64,
    /// True = pause, false = resume.
    pub pauses: bool,
    /// Why, for people.
    pub note: Option<Note>,
}

/// Time has passed for a SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Only to be found in the log.
    pub id: Uuid,
    /// The SKU.
    pub sku: SkuId,
}

/// Bytes that arrived as a command and can't be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The command's id, where it could be read: its client then hears REJECTED instead of nothing.
    pub id: Option<Uuid>,
    /// Why.
    pub reason: PoisonReason,
}

/// Why a command is poison: kept, counted, sent to the dead-letter topic; the position moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoisonReason {
    /// The bytes are not a command.
    Malformed,
    /// Its SKU is not configured in this partition: a producer sent it to the wrong place.
    NotHere,
    /// Deciding or storing it fails, whatever surrounds it (found by trials).
    ProcessingError,
}

impl PoisonReason {
    /// The code stored in the `poison` table and in metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::Malformed => "MALFORMED",
            Self::NotHere => "NOT_HERE",
            Self::ProcessingError => "PROCESSING_ERROR",
        }
    }

    /// The reason that the client of such a command reads in its REJECTED reservation.
    pub fn public_reason(self) -> &'static str {
        match self {
            Self::Malformed => "INVALID",
            Self::NotHere => "UNKNOWN_SKU",
            Self::ProcessingError => "PROCESSING_ERROR",
        }
    }

    /// Reads a stored code.
    pub fn from_code(code: &str) -> Option<Self> {
        [Self::Malformed, Self::NotHere, Self::ProcessingError].into_iter().find(|r| r.code() == code)
    }
}
