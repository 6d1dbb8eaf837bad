//! What must hold for the rows that `decide` leaves, counted from the rows alone.

use std::collections::BTreeMap;

use flashsale::inventory::{
    Happening, LifeChange, Origin, Rejection, Reservation, ReservationEvent, Reserve, SkuEvent, SkuHappening, Status,
};
use proptest::prelude::*;

use super::memory::MemoryStore;
use super::second_model::{self, Said, Story};

/// Every row and every counter is what the second model tells from the beginning.
pub fn assert_stored_as_told(store: &MemoryStore, told: &[Said]) -> Result<(), TestCaseError> {
    let mut count = 0;
    for (id, sku) in &store.skus {
        let now = second_model::last_command_of(told, id).unwrap_or(0);
        let counters = second_model::counters(told, id, now);
        prop_assert_eq!([sku.on_hand, sku.reserved, sku.sold], counters, "counters of {}", id);
        for story in second_model::stories(told, id, now) {
            count += 1;
            let row = store.reservations.get(&story.request.id);
            prop_assert_eq!(row.map(|row| story_in(row, &story.request)), Some(story));
        }
    }
    prop_assert_eq!(store.reservations.len(), count, "rows and stories");
    Ok(())
}

fn story_in(row: &Reservation, request: &Reserve) -> Story {
    Story {
        request: Reserve {
            id: request.id,
            user: row.user.clone(),
            sku: row.sku.clone(),
            quantity: row.quantity,
            metadata: row.metadata.clone(),
        },
        status: row.status.word(),
        version: row.version,
        ends: row.expires_at,
        extensions: row.extensions,
        seconds: row.extension_seconds,
        changed_at: row.changed_at,
        payment: row.payment_ref.as_ref().map(|payment| payment.as_str().to_owned()),
        is_late: row.is_late,
        note: row.note.as_ref().map(|note| note.as_str().to_owned()),
    }
}

/// Counters = sums of reservations = fold of movements.
pub fn assert_conserved(store: &MemoryStore) -> Result<(), TestCaseError> {
    for (id, sku) in &store.skus {
        prop_assert_eq!(sku.reserved, store.units_in(id, Status::Reserved));
        prop_assert_eq!(sku.sold, store.units_in(id, Status::Confirmed));
        let mut balance = [0; 3];
        let mut count = 0;
        for movement in store.movements.iter().filter(|movement| movement.sku == *id) {
            count += 1;
            prop_assert_eq!(movement.number, count, "movements are numbered without gaps");
            for (sum, delta) in balance.iter_mut().zip(movement.deltas) {
                *sum += delta;
            }
            prop_assert_eq!(movement.balance, balance, "the balance is the sum so far");
        }
        prop_assert_eq!(balance, [sku.on_hand, sku.reserved, sku.sold]);
        prop_assert_eq!(sku.movement_count, count);
    }
    Ok(())
}

/// RESERVED resolves once; EXPIRED only by a late payment; nothing else moves, and every change counts.
pub fn assert_lawful_step(before: Option<&Reservation>, after: &Reservation) -> Result<(), TestCaseError> {
    let Some(before) = before else {
        prop_assert!(matches!(after.status, Status::Reserved | Status::Rejected), "made as {:?}", after.status);
        prop_assert_eq!(after.version, 1);
        return Ok(());
    };
    if before == after {
        return Ok(());
    }
    let versions = after.version - before.version;
    match (before.status, after.status) {
        (Status::Reserved, Status::Reserved) => {
            prop_assert_eq!(versions, 1);
            prop_assert!(after.expires_at > before.expires_at && after.extensions == before.extensions + 1);
        }
        (Status::Reserved, Status::Cancelled | Status::Expired) => prop_assert_eq!(versions, 1),
        // At once, when the payment is the first command after the end.
        (Status::Reserved, Status::Confirmed) => prop_assert_eq!(versions, if after.is_late { 2 } else { 1 }),
        (Status::Expired, Status::Confirmed) => prop_assert!(after.is_late && versions == 1),
        (was, is) => prop_assert!(false, "{:?} became {:?}", was, is),
    }
    Ok(())
}

/// The reason holds in the state before, and its numbers are the ones of that state, counted from the rows.
pub fn assert_true_reason(
    before: &MemoryStore,
    reserve: &Reserve,
    at: i64,
    rejection: &Rejection,
) -> Result<(), TestCaseError> {
    let sku = &before.skus[&reserve.sku];
    let wanted = i64::from(reserve.quantity.get());
    let rows = || before.reservations.values().filter(|row| row.sku == reserve.sku);
    let is_held = |row: &&Reservation| row.status == Status::Reserved && row.expires_at.is_some_and(|ends| ends > at);
    let is_live = |row: &&Reservation| is_held(row) || row.status == Status::Confirmed;
    match *rejection {
        Rejection::SalePaused => prop_assert!(sku.is_paused),
        Rejection::SaleNotStarted { starts_at } => {
            prop_assert_eq!(sku.settings.starts_at, Some(starts_at));
            prop_assert!(at < starts_at);
        }
        Rejection::SaleEnded { ends_at } => {
            prop_assert_eq!(sku.settings.ends_at, Some(ends_at));
            prop_assert!(at >= ends_at);
        }
        Rejection::UserLimit { limit, remaining } => {
            let mine: i64 = rows().filter(is_live).filter(|row| row.user == reserve.user).map(Reservation::units).sum();
            prop_assert_eq!(limit, sku.settings.user_limit);
            prop_assert!(wanted > i64::from(remaining));
            prop_assert_eq!(i64::from(remaining), (i64::from(limit) - mine).max(0));
        }
        Rejection::SoldOut { available, holds_pending } => {
            let promised: i64 = rows().filter(is_live).map(Reservation::units).sum();
            prop_assert_eq!(available, sku.on_hand - promised);
            prop_assert!(wanted > available, "no false sold-out");
            prop_assert_eq!(holds_pending, rows().filter(is_held).count() > 0);
        }
    }
    Ok(())
}

/// The events of a store whose ended holds are all settled: places in order, each reservation's life version by version up to its row, each
/// SKU's stock gone and back in turns.
pub fn assert_told(store: &MemoryStore) -> Result<(), TestCaseError> {
    let mut last_place = None;
    let mut lives: BTreeMap<uuid::Uuid, (i32, Status)> = BTreeMap::new();
    let mut is_gone = BTreeMap::new();
    for event in &store.events {
        if let Origin::Command { place, n } = event.origin {
            prop_assert!(last_place < Some((place, n)), "places in order: {:?}", event);
            last_place = Some((place, n));
        }
        match &event.what {
            Happening::Reservation(of) => tell_life(&mut lives, of)?,
            Happening::Sku(of) => tell_stock(is_gone.entry(event.sku.clone()).or_insert(None), of)?,
        }
    }
    for (id, row) in &store.reservations {
        let told = (row.status != Status::Rejected).then_some((row.version, row.status));
        prop_assert_eq!(lives.get(id).copied(), told, "the last that was told of {}", id);
    }
    for (id, sku) in &store.skus {
        prop_assert_eq!(is_gone[id], Some(sku.available() == 0), "the stock of {}", id);
    }
    Ok(())
}

fn tell_life(lives: &mut BTreeMap<uuid::Uuid, (i32, Status)>, of: &ReservationEvent) -> Result<(), TestCaseError> {
    let before = lives.get(&of.reservation).copied();
    let (allowed, after) = match &of.change {
        LifeChange::PaidUnfulfilled { .. } => return Ok(()), // The end itself may be told later.
        LifeChange::Reserved { .. } => (None, Status::Reserved),
        LifeChange::Extended { .. } => (Some(Status::Reserved), Status::Reserved),
        LifeChange::Cancelled { .. } => (Some(Status::Reserved), Status::Cancelled),
        LifeChange::Expired => (Some(Status::Reserved), Status::Expired),
        LifeChange::Confirmed { is_late: false, .. } => (Some(Status::Reserved), Status::Confirmed),
        LifeChange::Confirmed { is_late: true, .. } => (Some(Status::Expired), Status::Confirmed),
    };
    prop_assert_eq!(before.map(|(_, status)| status), allowed, "before {:?}", of);
    prop_assert_eq!(of.version, before.map_or(0, |(version, _)| version) + 1, "versions without gaps: {:?}", of);
    lives.insert(of.reservation, (of.version, after));
    Ok(())
}

/// `is_gone`: whether no unit is available, as told; absent before the SKU is.
fn tell_stock(is_gone: &mut Option<bool>, of: &SkuEvent) -> Result<(), TestCaseError> {
    let is_empty = of.on_hand - of.reserved - of.sold == 0;
    let (allowed, after) = match &of.change {
        SkuHappening::Created(_) => (None, is_empty),
        SkuHappening::SoldOut => (Some(false), true),
        SkuHappening::BackInStock => (Some(true), false),
        _ => return Ok(()),
    };
    prop_assert_eq!(*is_gone, allowed, "before {:?}", of);
    prop_assert_eq!(is_empty, after, "{:?}", of);
    *is_gone = Some(after);
    Ok(())
}
