//! A buyer wants units.

use super::State;
use crate::clock::Millis;
use crate::inventory::command::Reserve;
use crate::inventory::decision::{Rejection, Status, Verdict};
use crate::inventory::event::LifeChange;
use crate::inventory::reservation::Reservation;
use crate::inventory::snapshot::Sku;

impl State {
    pub(super) fn reserve(&mut self, reserve: &Reserve) -> Verdict {
        let log_time = self.log_time;
        let sku = self.skus.get_mut(&reserve.sku).expect("looked up before");
        let holdings = self.holdings.entry((reserve.sku.clone(), reserve.user.clone())).or_default();
        let units = holdings.live_at(log_time);
        let quantity = i64::from(reserve.quantity.get());
        let rejection = rejection_of(sku, units, quantity, log_time);
        let expires_at = log_time.saturating_add(i64::from(sku.settings.hold_seconds) * 1000);
        if rejection.is_none() {
            sku.reserved += quantity;
            sku.assert_sound();
            assert!(units + quantity <= i64::from(sku.settings.user_limit), "no decision exceeds the limit in force");
            *holdings.holds.entry(expires_at).or_default() += quantity;
            if expires_at > log_time {
                let due = self.due.entry(reserve.sku.clone()).or_default();
                *due.entry(expires_at).or_default() += quantity;
            }
        }
        let reservation = Reservation {
            user: reserve.user.clone(),
            sku: reserve.sku.clone(),
            quantity: reserve.quantity,
            status: if rejection.is_none() { Status::Reserved } else { Status::Rejected },
            version: 1,
            expires_at: rejection.is_none().then_some(expires_at),
            extensions: 0,
            extension_seconds: 0,
            changed_at: None,
            payment_ref: None,
            is_late: false,
            note: None,
            metadata: reserve.metadata.clone(),
        };
        if rejection.is_none() {
            let change = LifeChange::Reserved { expires_at, metadata: reserve.metadata.clone() };
            self.tell_reservation(reserve.id, &reservation, change);
        }
        self.reservations.insert(reserve.id, reservation);
        self.touched.push(reserve.id);
        rejection.map_or(Verdict::Reserved { expires_at }, Verdict::Rejected)
    }
}

/// The first reason, by precedence, to refuse a request; `None` = it gets its units.
fn rejection_of(sku: &Sku, units: i64, quantity: i64, log_time: Millis) -> Option<Rejection> {
    let settings = &sku.settings;
    if sku.is_paused {
        return Some(Rejection::SalePaused);
    }
    if let Some(starts_at) = settings.starts_at.filter(|starts_at| log_time < *starts_at) {
        return Some(Rejection::SaleNotStarted { starts_at });
    }
    if let Some(ends_at) = settings.ends_at.filter(|ends_at| log_time >= *ends_at) {
        return Some(Rejection::SaleEnded { ends_at });
    }
    // A limit may have been lowered below what the user already has: then nothing remains.
    let remaining = (i64::from(settings.user_limit) - units).max(0);
    if quantity > remaining {
        let remaining = u32::try_from(remaining).expect("at most the limit");
        return Some(Rejection::UserLimit { limit: settings.user_limit, remaining });
    }
    if quantity > sku.available() {
        return Some(Rejection::SoldOut { available: sku.available(), holds_pending: sku.reserved > 0 });
    }
    None
}
