//! Telling what a command changed, in the order in which it did.

use uuid::Uuid;

use super::State;
use crate::clock::Millis;
use crate::ids::SkuId;
use crate::inventory::event::{Event, Happening, LifeChange, Origin, ReservationEvent, SkuEvent, SkuHappening};
use crate::inventory::reservation::Reservation;

impl State {
    /// A reservation is `after` now.
    pub(super) fn tell_reservation(&mut self, id: Uuid, after: &Reservation, change: LifeChange) {
        let (origin, at) = (self.next_origin(), self.log_time);
        self.events.push(Event::of_reservation(origin, at, id, after, change));
    }

    /// A hold whose row does not say yet that it ended is about to change again: its end is told first, because nobody will settle it.
    /// `target` = the reservation as settled.
    pub(super) fn tell_unsettled_end(&mut self, id: Uuid, target: &Reservation) {
        let stored = &self.reservations[&id];
        let through = self.skus[&stored.sku].expired_through;
        if let Some(ends) = stored.expires_at.filter(|_| stored.has_ended(through)) {
            self.events.push(Event::of_reservation(Origin::EndOfHold, ends, id, target, LifeChange::Expired));
        }
    }

    /// A SKU is changed.
    pub(super) fn tell_sku(&mut self, id: &SkuId, change: SkuHappening) {
        let sku = &self.skus[id];
        let what = Happening::Sku(SkuEvent {
            on_hand: sku.on_hand,
            reserved: sku.reserved,
            sold: sku.sold,
            settings_version: sku.settings_version,
            change,
        });
        let origin = self.next_origin();
        self.events.push(Event { origin, at: self.log_time, sku: id.clone(), what });
    }

    /// The last unit is gone, or the first is back. A SKU that is new has told its stock by being created.
    pub(super) fn tell_stock(&mut self, id: &SkuId, before: Option<i64>, after: Option<i64>) {
        match (before, after) {
            (Some(1..), Some(0)) => self.tell_sku(id, SkuHappening::SoldOut),
            (Some(0), Some(1..)) => self.tell_sku(id, SkuHappening::BackInStock),
            _ => {}
        }
    }

    /// Units of a SKU that a new buyer can get.
    pub(super) fn available(&self, id: &SkuId) -> Option<i64> {
        self.skus.get(id).map(|sku| sku.available())
    }

    fn next_origin(&mut self) -> Origin {
        let (place, n) = self.telling;
        self.telling.1 += 1;
        Origin::Command { place, n }
    }
}

impl Event {
    /// The event of a change of a reservation.
    pub fn of_reservation(origin: Origin, at: Millis, id: Uuid, after: &Reservation, change: LifeChange) -> Self {
        let what = Happening::Reservation(ReservationEvent {
            reservation: id,
            user: after.user.clone(),
            quantity: after.quantity,
            version: after.version,
            change,
        });
        Self { origin, at, sku: after.sku.clone(), what }
    }
}
