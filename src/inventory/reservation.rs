//! A reservation as it stands: what its life has made of it.

use super::decision::Status;
use crate::clock::Millis;
use crate::ids::{Metadata, Note, PaymentRef, Quantity, SkuId, UserId};

/// The state of a reservation that was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Who.
    pub user: UserId,
    /// What.
    pub sku: SkuId,
    /// How many units.
    pub quantity: Quantity,
    /// As stored; see [`Self::settled`] for what it means. Never QUEUED.
    pub status: Status,
    /// Counts changes from 1.
    pub version: i32,
    /// End of the hold; absent for a rejected one. Keeps its last value afterwards.
    pub expires_at: Option<Millis>,
    /// Extensions so far.
    pub extensions: u32,
    /// Seconds that they added.
    pub extension_seconds: u32,
    /// Log time of the confirm or cancel.
    pub changed_at: Option<Millis>,
    /// The payment that it was confirmed with.
    pub payment_ref: Option<PaymentRef>,
    /// It was confirmed after its hold had ended.
    pub is_late: bool,
    /// Why it was cancelled.
    pub note: Option<Note>,
    /// What the client attached.
    pub metadata: Option<Metadata>,
}

impl Reservation {
    /// What the reservation is, given how far its SKU's holds are released: counters are released at once, rows afterwards, so a row that
    /// says RESERVED may be expired. **Every reader goes through this** (or the view `reservation_now`, which says the same).
    pub fn settled(self, expired_through: Millis) -> Self {
        if self.has_ended(expired_through) {
            Self { status: Status::Expired, version: self.version + 1, ..self }
        } else {
            self
        }
    }

    /// Whether its hold ended and its row does not say so yet.
    pub fn has_ended(&self, expired_through: Millis) -> bool {
        self.status == Status::Reserved && self.expires_at.is_some_and(|ends| ends <= expired_through)
    }

    /// Units, as the counters count them.
    pub fn units(&self) -> i64 {
        i64::from(self.quantity.get())
    }
}
