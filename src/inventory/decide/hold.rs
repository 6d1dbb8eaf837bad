//! The life of a hold: confirm, cancel, extend. Each resolves once; the same request again finds what the first one left.

use uuid::Uuid;

use super::State;
use crate::ids::SkuId;
use crate::inventory::command::{Cancel, Confirm, Extend, LatePayment};
use crate::inventory::decision::{Refusal, Status, Verdict};
use crate::inventory::event::LifeChange;
use crate::inventory::reservation::Reservation;

impl State {
    /// Late payments ignore window and pause: the money is here, only units and the limit can be missing.
    pub(super) fn confirm(&mut self, confirm: &Confirm) -> Verdict {
        match self.target(confirm.reservation, &confirm.sku) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(target) => match target.status {
                Status::Reserved => {
                    let sku = self.skus.get_mut(&confirm.sku).expect("looked up before");
                    sku.reserved -= target.units();
                    sku.sold += target.units();
                    self.sell(confirm, target, false)
                }
                Status::Confirmed if target.payment_ref.as_ref() == Some(&confirm.payment_ref) => {
                    Verdict::Confirmed { is_late: target.is_late }
                }
                Status::Confirmed => Verdict::Refused(Refusal::AlreadyConfirmed),
                Status::Cancelled => Verdict::Refused(Refusal::AlreadyCancelled),
                Status::Expired => self.confirm_late(confirm, target),
                Status::Rejected | Status::Queued => Verdict::Refused(Refusal::ReservationRejected),
            },
        }
    }

    fn confirm_late(&mut self, confirm: &Confirm, target: Reservation) -> Verdict {
        let units = target.units();
        let sku = self.skus.get_mut(&confirm.sku).expect("looked up before");
        if sku.settings.late_payment == LatePayment::Reject {
            return Verdict::Refused(Refusal::HoldExpired);
        }
        let holdings = self.holdings.get(&(target.sku.clone(), target.user.clone()));
        let live = holdings.map_or(0, |has| has.live_at(self.log_time));
        if units > sku.available() || live + units > i64::from(sku.settings.user_limit) {
            let payment_ref = confirm.payment_ref.clone();
            self.tell_reservation(confirm.reservation, &target, LifeChange::PaidUnfulfilled { payment_ref });
            return Verdict::Refused(Refusal::PaidUnfulfilled);
        }
        sku.sold += units;
        self.sell(confirm, target, true)
    }

    fn sell(&mut self, confirm: &Confirm, target: Reservation, is_late: bool) -> Verdict {
        self.skus[&confirm.sku].assert_sound();
        let sold = Reservation {
            status: Status::Confirmed,
            version: target.version + 1,
            changed_at: Some(self.log_time),
            payment_ref: Some(confirm.payment_ref.clone()),
            is_late,
            ..target.clone()
        };
        self.tell_unsettled_end(confirm.reservation, &target);
        let change = LifeChange::Confirmed { payment_ref: confirm.payment_ref.clone(), is_late };
        self.tell_reservation(confirm.reservation, &sold, change);
        self.put_reservation(confirm.reservation, sold);
        Verdict::Confirmed { is_late }
    }

    pub(super) fn cancel(&mut self, cancel: &Cancel) -> Verdict {
        match self.target(cancel.reservation, &cancel.sku) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(target) => match target.status {
                Status::Reserved => {
                    let sku = self.skus.get_mut(&cancel.sku).expect("looked up before");
                    sku.reserved -= target.units();
                    sku.assert_sound();
                    let cancelled = Reservation {
                        status: Status::Cancelled,
                        version: target.version + 1,
                        changed_at: Some(self.log_time),
                        note: cancel.note.clone(),
                        ..target
                    };
                    let change = LifeChange::Cancelled { note: cancel.note.clone() };
                    self.tell_reservation(cancel.reservation, &cancelled, change);
                    self.put_reservation(cancel.reservation, cancelled);
                    Verdict::Cancelled
                }
                Status::Cancelled => Verdict::Cancelled,
                Status::Confirmed => Verdict::Refused(Refusal::AlreadyConfirmed),
                Status::Expired => Verdict::Refused(Refusal::HoldExpired),
                Status::Rejected | Status::Queued => Verdict::Refused(Refusal::ReservationRejected),
            },
        }
    }

    pub(super) fn extend(&mut self, extend: &Extend) -> Verdict {
        match self.target(extend.reservation, &extend.sku) {
            Err(refusal) => Verdict::Refused(refusal),
            Ok(target) => match (target.status, target.expires_at) {
                (Status::Reserved, Some(ends)) => self.extend_hold(extend, target, ends),
                (Status::Confirmed, _) => Verdict::Refused(Refusal::AlreadyConfirmed),
                (Status::Cancelled, _) => Verdict::Refused(Refusal::AlreadyCancelled),
                (Status::Expired, _) => Verdict::Refused(Refusal::HoldExpired),
                _ => Verdict::Refused(Refusal::ReservationRejected),
            },
        }
    }

    fn extend_hold(&mut self, extend: &Extend, target: Reservation, ends: i64) -> Verdict {
        let settings = &self.skus[&extend.sku].settings;
        // The bounds may have been lowered below what was used already.
        let extensions_left = settings.extensions_max.saturating_sub(target.extensions);
        let seconds_left = settings.extension_seconds_max.saturating_sub(target.extension_seconds);
        if extensions_left == 0 || extend.seconds > seconds_left {
            return Verdict::Refused(Refusal::ExtensionLimit { extensions_left, seconds_left });
        }
        let expires_at = ends.saturating_add(i64::from(extend.seconds) * 1000);
        let extended = Reservation {
            version: target.version + 1,
            expires_at: Some(expires_at),
            extensions: target.extensions + 1,
            extension_seconds: target.extension_seconds + extend.seconds,
            ..target
        };
        self.tell_reservation(extend.reservation, &extended, LifeChange::Extended { expires_at });
        self.put_reservation(extend.reservation, extended);
        Verdict::Extended { expires_at }
    }

    /// The reservation to change, as it is now. One of another SKU is not this command's: whoever sent it took a wrong turn.
    fn target(&self, id: Uuid, sku: &SkuId) -> Result<Reservation, Refusal> {
        let target = self.reservations.get(&id).filter(|target| target.sku == *sku).ok_or(Refusal::NotReservedYet)?;
        Ok(target.clone().settled(self.skus[sku].expired_through))
    }
}
