//! The effects call (`effects.lua`): the hints of one committed batch, fenced, and its message.

use std::collections::BTreeMap;

use super::connection::{ScriptCall, within};
use super::{CacheError, Inner, message};
use crate::effects::BatchEffects;
use crate::ids::{SkuId, UserId};
use crate::limits;

const ATTEMPT: &str = "apply effects";
/// Users in one group: Lua unpacks about 8,000 values at once.
const GROUP_USERS_MAX: usize = 1000;

pub(super) async fn call(inner: &Inner, effects: &BatchEffects) -> Result<bool, CacheError> {
    let units = units_by_sku(effects);
    let settled = settled_by_minute(effects);
    let mut call = ScriptCall::new(&inner.scripts.effects, &inner.prefix);
    call.arg(effects.partition).arg(effects.epoch).arg(effects.position).arg(limits::USER_UNITS_TTL.as_secs());
    call.arg(message::encode(effects));
    call.arg(units.values().map(|users| users.len().div_ceil(GROUP_USERS_MAX)).sum::<usize>());
    call.arg(effects.forgotten.len());
    effects.forgotten.iter().for_each(|sku| {
        call.arg(sku.as_str());
    });
    for (sku, users) in &units {
        for group in users.chunks(GROUP_USERS_MAX) {
            call.arg(sku.as_str()).arg(group.len());
            group.iter().for_each(|(user, units)| {
                call.arg(user.as_str()).arg(*units);
            });
        }
    }
    for ((sku, minute), users) in &settled {
        let users: Vec<_> = users.iter().collect();
        for group in users.chunks(GROUP_USERS_MAX) {
            call.arg(sku.as_str()).arg(*minute).arg(group.len());
            group.iter().for_each(|(user, quantity)| {
                call.arg(user.as_str()).arg(**quantity);
            });
        }
    }
    within(limits::REDIS_BACKGROUND_DEADLINE, ATTEMPT, call.run(inner.background.clone())).await
}

fn units_by_sku(effects: &BatchEffects) -> BTreeMap<&SkuId, Vec<(&UserId, i64)>> {
    let mut by_sku: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (sku, user, units) in &effects.units {
        by_sku.entry(sku).or_default().push((user, *units));
    }
    by_sku
}

/// Each user once per minute: the script reads all of them before it writes any.
fn settled_by_minute(effects: &BatchEffects) -> BTreeMap<(&SkuId, i64), BTreeMap<&UserId, u64>> {
    let mut by_minute: BTreeMap<_, BTreeMap<_, u64>> = BTreeMap::new();
    for (sku, user, quantity, minute) in &effects.settled {
        *by_minute.entry((sku, *minute)).or_default().entry(user).or_default() += u64::from(*quantity);
    }
    by_minute
}
