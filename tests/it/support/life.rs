//! Commands of the life of a hold, made short.

use flashsale::ids::{self, Note, PaymentRef};
use flashsale::inventory::{Cancel, Command, Configure, Confirm, Extend, LatePayment, Settings, Tick};
use uuid::Uuid;

use super::commands::sku;

pub fn confirm(sku_name: &str, reservation: &Command, payment_ref: &str) -> Command {
    let id = ids::named_reservation_command_id("confirm", reservation.id(), payment_ref);
    let payment_ref = PaymentRef::parse(payment_ref).expect("legal");
    Command::Confirm(Confirm { id, reservation: reservation.id(), sku: sku(sku_name), payment_ref })
}

/// A cancel as the API names it: by the reservation.
pub fn cancel(sku_name: &str, reservation: &Command) -> Command {
    cancel_as(ids::named_reservation_command_id("cancel", reservation.id(), ""), sku_name, reservation)
}

pub fn cancel_as(id: Uuid, sku_name: &str, reservation: &Command) -> Command {
    let note = Some(Note::parse("changed my mind").expect("legal"));
    Command::Cancel(Cancel { id, reservation: reservation.id(), sku: sku(sku_name), note })
}

pub fn extend(sku_name: &str, reservation: &Command, seconds: u32) -> Command {
    Command::Extend(Extend { id: ids::fresh_id(), reservation: reservation.id(), sku: sku(sku_name), seconds })
}

pub fn tick(sku_name: &str) -> Command {
    Command::Tick(Tick { id: ids::fresh_id(), sku: sku(sku_name) })
}

/// Creates a SKU whose holds last `hold_seconds`, pinned to partition 0.
pub fn create_with_hold(sku_name: &str, on_hand: i64, user_limit: u32, hold_seconds: u32) -> Command {
    Command::Configure(Configure {
        id: ids::fresh_id(),
        sku: sku(sku_name),
        pin: 0,
        seen_version: 0,
        on_hand: Some(on_hand),
        settings: Settings { user_limit, hold_seconds, late_payment: LatePayment::Rereserve, ..Settings::default() },
    })
}
