//! Commands of the life of a hold, made short.

use flashsale::ids::{self, IdempotencyKey, Note, PaymentRef, Reference};
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Settings, StockChange, Tick,
};
use uuid::Uuid;

use super::commands::sku;

pub fn confirm(sku_name: &str, reservation: &Command, payment_ref: &str) -> Command {
    let id = ids::named_reservation_command_id("confirm", reservation.id(), payment_ref);
    let payment_ref = PaymentRef::parse(payment_ref).expect("legal");
    Command::Confirm(Confirm { id, reservation: reservation.id(), sku: sku(sku_name), payment_ref, key_id: None })
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
        patch_hash: None,
    })
}

/// A confirm that came with a key.
pub fn confirm_keyed(sku_name: &str, reservation: &Command, payment_ref: &str, key: &str) -> Command {
    let Command::Confirm(confirm) = confirm(sku_name, reservation, payment_ref) else { unreachable!("made a confirm") };
    let key = IdempotencyKey::parse(key).expect("legal");
    Command::Confirm(Confirm { key_id: Some(ids::confirm_key_id(reservation.id(), &key)), ..confirm })
}

/// One unit more, as the API names it: by the reference, else by the key.
pub fn adjust(sku_name: &str, reference: Option<&str>, key: Option<&str>) -> Command {
    let sku = sku(sku_name);
    let named = reference.map(|text| ids::named_sku_command_id("adjust", &sku, text));
    let key = key.map(|text| IdempotencyKey::parse(text).expect("legal"));
    let keyed = key.map(|key| ids::keyed_sku_command_id("adjust", &sku, &key));
    let id = named.or(keyed).unwrap_or_else(ids::fresh_id);
    let reference = reference.map(|text| Reference::parse(text).expect("legal"));
    let note = Note::parse("restock").expect("legal");
    Command::Adjust(Adjust {
        id,
        sku,
        change: StockChange::By(1),
        note,
        reference,
        key_id: keyed.filter(|_| named.is_some()),
    })
}
