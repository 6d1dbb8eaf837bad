//! What happened, for other services: one event per change of a reservation or of a SKU, told by [`decide`](super::decide()) as it makes the
//! change.
//!
//! **Refusals are no events**, with one exception. A sold-out crowd makes millions of them, they change nothing, and whoever asked reads
//! the reason in the answer and in the reservation. The exception is a payment that found no units any more: somebody must refund it.
//!
//! The events of one SKU come in log order, and any cut of the log into batches tells the same ones; only where among them the end of a hold
//! stands depends on when its row was settled: after everything else that happened to the reservation before, and before everything after.

use uuid::Uuid;

use super::command::Settings;
use crate::clock::Millis;
use crate::ids::{Metadata, Note, PaymentRef, Place, Quantity, Reference, SkuId, UserId};

/// Something that happened to a SKU or to one of its reservations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What made it: its identity.
    pub origin: Origin,
    /// Log time; of the end of a hold, that end.
    pub at: Millis,
    /// The SKU: events of one SKU are in order.
    pub sku: SkuId,
    /// What happened.
    pub what: Happening,
}

/// Where an event comes from. A replay of the log tells the same events with the same origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A command.
    Command {
        /// Its place in the log.
        place: Place,
        /// Which of the command's events it is, from 0.
        n: u8,
    },
    /// A hold's end, of which a reservation has one: rows of ended holds are settled whenever there is time, so no place names it.
    EndOfHold,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// To a reservation.
    Reservation(ReservationEvent),
    /// To a SKU.
    Sku(SkuEvent),
}

/// A reservation after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationEvent {
    /// Its id.
    pub reservation: Uuid,
    /// Who.
    pub user: UserId,
    /// How many units.
    pub quantity: Quantity,
    /// Its version after the change: without gaps, apart from rejected reservations, which have no events.
    pub version: i32,
    /// The change.
    pub change: LifeChange,
}

/// What can happen to a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifeChange {
    /// Units are held.
    Reserved {
        /// End of the hold.
        expires_at: Millis,
        /// What the client attached.
        metadata: Option<Metadata>,
    },
    /// They are sold.
    Confirmed {
        /// The payment.
        payment_ref: PaymentRef,
        /// The hold had ended; units were allocated again.
        is_late: bool,
    },
    /// They are given back.
    Cancelled {
        /// Why.
        note: Option<Note>,
    },
    /// The hold lasts longer.
    Extended {
        /// Its new end.
        expires_at: Millis,
    },
    /// The hold ended; its units are back in stock.
    Expired,
    /// A payment came after the end of the hold and its units could not be allocated again: it is to be refunded. Nothing changed, not even
    /// the version.
    PaidUnfulfilled {
        /// The payment.
        payment_ref: PaymentRef,
    },
}

/// A SKU after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkuEvent {
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
    /// Version of the settings in force.
    pub settings_version: i64,
    /// The change.
    pub change: SkuHappening,
}

/// What can happen to a SKU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkuHappening {
    /// It is there.
    Created(Settings),
    /// It has new settings.
    Configured(Settings),
    /// Its sale takes no requests.
    Paused {
        /// Why.
        note: Option<Note>,
    },
    /// Its sale takes requests again.
    Resumed {
        /// Why.
        note: Option<Note>,
    },
    /// Its stock was changed.
    Adjusted {
        /// By so many units.
        delta: i64,
        /// Why.
        note: Note,
        /// What it belongs to.
        reference: Option<Reference>,
    },
    /// The last available unit is gone. While some are held, they may come back.
    SoldOut,
    /// Units are available again after none was.
    BackInStock,
}

impl Event {
    /// The kind of event, as consumers know it. Never changes between builds.
    pub fn kind(&self) -> &'static str {
        match &self.what {
            Happening::Reservation(event) => match event.change {
                LifeChange::Reserved { .. } => "reservation.reserved",
                LifeChange::Confirmed { .. } => "reservation.confirmed",
                LifeChange::Cancelled { .. } => "reservation.cancelled",
                LifeChange::Extended { .. } => "reservation.extended",
                LifeChange::Expired => "reservation.expired",
                LifeChange::PaidUnfulfilled { .. } => "reservation.paid_unfulfilled",
            },
            Happening::Sku(event) => match event.change {
                SkuHappening::Created(_) => "sku.created",
                SkuHappening::Configured(_) => "sku.configured",
                SkuHappening::Paused { .. } => "sku.paused",
                SkuHappening::Resumed { .. } => "sku.resumed",
                SkuHappening::Adjusted { .. } => "sku.adjusted",
                SkuHappening::SoldOut => "sku.sold_out",
                SkuHappening::BackInStock => "sku.back_in_stock",
            },
        }
    }

    /// Its identity, the same however often it is published, also after the log was decided again: `partition.offset.index.n`, or
    /// `reservation.expired`.
    pub fn id(&self, partition: i32) -> String {
        match (self.origin, &self.what) {
            (Origin::Command { place, n }, _) => format!("{partition}.{}.{}.{n}", place.offset, place.index),
            (Origin::EndOfHold, Happening::Reservation(event)) => format!("{}.expired", event.reservation),
            (Origin::EndOfHold, Happening::Sku(_)) => unreachable!("only a reservation's hold ends"),
        }
    }
}
