//! What the single writer says about commands, and what changes by it.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::command::PoisonReason;
use super::event::Event;
use super::reservation::Reservation;
use super::snapshot::Sku;
use crate::clock::Millis;
use crate::ids::{Place, SkuId, UserId};

/// The answer to one command. A business result: data, not an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The command's place.
    pub place: Place,
    /// Log time of the decision: the record's, or the partition's last one if that is later.
    pub at: Millis,
    /// What it is.
    pub verdict: Verdict,
}

/// The kinds of answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Units are held until `expires_at` (log time).
    Reserved {
        /// End of the hold.
        expires_at: Millis,
    },
    /// The reserve command is refused for ever.
    Rejected(Rejection),
    /// The hold is a sale.
    Confirmed {
        /// The hold had ended; units were allocated again.
        is_late: bool,
    },
    /// The hold is given back.
    Cancelled,
    /// The hold lasts longer.
    Extended {
        /// Its new end.
        expires_at: Millis,
    },
    /// The stock is changed.
    Adjusted {
        /// Units in the sale.
        on_hand: i64,
        /// Units held.
        reserved: i64,
        /// Units sold.
        sold: i64,
    },
    /// Time has passed.
    Ticked {
        /// Units whose holds ended by it.
        released: i64,
    },
    /// The SKU is created or has new settings (a pause is one).
    Configured {
        /// True for a new SKU.
        created: bool,
        /// The version of the settings now in force.
        settings_version: i64,
    },
    /// A command that is not a reserve is refused; whether that is remembered says [`Refusal::is_remembered`].
    Refused(Refusal),
    /// This id was decided before; nothing changes, the first decision stands.
    Duplicate,
    /// Can't be decided; kept apart.
    Poison(PoisonReason),
}

/// Why a reserve command is refused, by precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// An operator paused the sale.
    SalePaused,
    /// The sale starts later.
    SaleNotStarted {
        /// When.
        starts_at: Millis,
    },
    /// The sale is over.
    SaleEnded {
        /// Since when.
        ends_at: Millis,
    },
    /// The user would hold or own more than the limit.
    UserLimit {
        /// The limit in force.
        limit: u32,
        /// Units that the user may still ask for.
        remaining: u32,
    },
    /// Fewer units are left than asked for.
    SoldOut {
        /// How many are left; a smaller request may still win.
        available: i64,
        /// Units are held and some of them may come back.
        holds_pending: bool,
    },
}

impl Rejection {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SalePaused => "SALE_PAUSED",
            Self::SaleNotStarted { .. } => "SALE_NOT_STARTED",
            Self::SaleEnded { .. } => "SALE_ENDED",
            Self::UserLimit { .. } => "USER_LIMIT",
            Self::SoldOut { .. } => "SOLD_OUT",
        }
    }
}

/// Why a command that is not a reserve is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its key named another command before.
    KeyReused,
    /// The settings are not the ones that the operator saw.
    SettingsChanged {
        /// The version in force.
        settings_version: i64,
    },
    /// The stock is not what the operator believes.
    StockChanged {
        /// Units in the sale.
        on_hand: i64,
    },
    /// The stock would fall below what is promised.
    BelowCommitted {
        /// Units held and sold.
        minimum: i64,
    },
    /// The stock would exceed [`crate::limits::ON_HAND_MAX`].
    AboveMaximum {
        /// Units in the sale.
        on_hand: i64,
    },
    /// The reservation is not decided, as far as this writer knows.
    NotReservedYet,
    /// The reservation was refused.
    ReservationRejected,
    /// It is confirmed (with another payment).
    AlreadyConfirmed,
    /// It is cancelled.
    AlreadyCancelled,
    /// Its hold has ended.
    HoldExpired,
    /// Its hold has ended, and its units could not be allocated again: the payment is to be refunded.
    PaidUnfulfilled,
    /// No more extensions, or not so long.
    ExtensionLimit {
        /// Extensions that are left.
        extensions_left: u32,
        /// Seconds that they may add.
        seconds_left: u32,
    },
}

impl Refusal {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyReused => "IDEMPOTENCY_KEY_REUSED",
            Self::SettingsChanged { .. } => "SETTINGS_CHANGED",
            Self::StockChanged { .. } => "STOCK_CHANGED",
            Self::BelowCommitted { .. } => "BELOW_COMMITTED",
            Self::AboveMaximum { .. } => "ABOVE_MAXIMUM",
            Self::NotReservedYet => "NOT_RESERVED_YET",
            Self::ReservationRejected => "RESERVATION_REJECTED",
            Self::AlreadyConfirmed => "ALREADY_CONFIRMED",
            Self::AlreadyCancelled => "ALREADY_CANCELLED",
            Self::HoldExpired => "HOLD_EXPIRED",
            Self::PaidUnfulfilled => "PAID_UNFULFILLED",
            Self::ExtensionLimit { .. } => "EXTENSION_LIMIT",
        }
    }

    /// Whether the command keeps its id: a repeat then gets this answer for ever. The others burn nothing, so that an early or a
    /// mistaken command does not block a later, right one with the same name.
    pub fn is_remembered(&self) -> bool {
        matches!(self, Self::AlreadyConfirmed | Self::AlreadyCancelled | Self::HoldExpired | Self::PaidUnfulfilled)
    }
}

/// Where a reservation stands. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i16)]
pub enum Status {
    /// In the log, not decided. Never stored.
    Queued = 0,
    /// Units are held.
    Reserved = 1,
    /// Refused; terminal.
    Rejected = 2,
    /// Sold; terminal.
    Confirmed = 3,
    /// Given back on purpose; terminal.
    Cancelled = 4,
    /// The hold ended.
    Expired = 5,
}

impl Status {
    /// The number in the database.
    pub fn number(self) -> i16 {
        self as i16
    }

    /// Reads a stored number.
    pub fn from_number(number: i16) -> Option<Self> {
        [Self::Queued, Self::Reserved, Self::Rejected, Self::Confirmed, Self::Cancelled, Self::Expired]
            .into_iter()
            .find(|s| s.number() == number)
    }

    /// The word in every answer.
    pub fn word(self) -> &'static str {
        match self {
            Self::Queued => "QUEUED",
            Self::Reserved => "RESERVED",
            Self::Rejected => "REJECTED",
            Self::Confirmed => "CONFIRMED",
            Self::Cancelled => "CANCELLED",
            Self::Expired => "EXPIRED",
        }
    }
}

/// All that deciding one batch produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// One per command, same order.
    pub decisions: Vec<Decision>,
    /// What the batch does to stock and settings.
    pub changes: Changes,
    /// What happened, in log order; rows of ended holds that are settled later tell their own.
    pub events: Vec<Event>,
}

/// The state after a batch, where it differs from the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Log time of the last command.
    pub log_time: Millis,
    /// The SKUs that changed.
    pub skus: BTreeMap<SkuId, SkuChange>,
    /// Reservations that were made or changed, by id.
    pub reservations: BTreeMap<Uuid, ReservationChange>,
    /// Units that the users of the batch hold or own after it, changed or not: a hint that was lost heals at the user's next request.
    pub units: BTreeMap<(SkuId, UserId), i64>,
}

/// One reservation before and after a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationChange {
    /// As in the snapshot; absent = the batch decided it, as nearly always: a box keeps what is moved around small.
    pub before: Option<Box<Reservation>>,
    /// As the batch leaves it.
    pub after: Reservation,
}

/// One SKU before and after a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkuChange {
    /// As in the snapshot; absent = the batch created it.
    pub before: Option<Sku>,
    /// As the batch leaves it.
    pub after: Sku,
}

impl SkuChange {
    /// The stock movement of this batch: deltas of on hand, reserved and sold.
    pub fn deltas(&self) -> [i64; 3] {
        let (on_hand, reserved, sold) = self.before.as_ref().map_or((0, 0, 0), |b| (b.on_hand, b.reserved, b.sold));
        [self.after.on_hand - on_hand, self.after.reserved - reserved, self.after.sold - sold]
    }

    /// Whether stock moved at all; settings alone make no movement.
    pub fn is_movement(&self) -> bool {
        self.after.movement_count != self.before.as_ref().map_or(0, |b| b.movement_count)
    }
}
