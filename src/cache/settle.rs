//! The settle call (`settle.lua`): what became of requests on their way into the log.

use super::admit::marker_args;
use super::connection::{ScriptCall, within};
use super::{CacheError, Inner, SettleItem};
use crate::limits;

const ATTEMPT: &str = "settle requests";

pub(super) async fn call(inner: &Inner, items: &[SettleItem]) -> Result<(), CacheError> {
    assert!(items.len() <= limits::SETTLE_CALL_MAX, "one call must not keep redis busy for long");
    let mut call = ScriptCall::new(&inner.scripts.settle, &inner.prefix);
    call.arg(limits::KEY_MARKER_TTL.as_secs());
    for item in items {
        match item {
            SettleItem::Delivered { key, ticket } => {
                call.arg("D").arg("").arg("").arg(0).arg(0);
                marker_args(&mut call, Some(key));
                call.arg(ticket.to_string());
            }
            SettleItem::Unknown { key, minute } => {
                call.arg("U").arg("").arg("").arg(0).arg(*minute);
                marker_args(&mut call, Some(key));
                call.arg("");
            }
            SettleItem::NotSent { user, sku, quantity, minute, key } => {
                call.arg("N").arg(user.as_str()).arg(sku.as_str()).arg(quantity.get()).arg(*minute);
                marker_args(&mut call, key.as_ref());
                call.arg("");
            }
        }
    }
    within(limits::REDIS_BACKGROUND_DEADLINE, ATTEMPT, call.run(inner.background.clone())).await
}
