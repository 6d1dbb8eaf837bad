//! A request that may go into the log, and what Redis is told when it is known what became of it.

use tokio::sync::mpsc;
use uuid::Uuid;

use super::Lag;
use crate::cache::{KeyMarker, SettleItem};
use crate::ids::{Quantity, SkuId, UserId};
use crate::ingress::Delivery;

/// A request that may go into the log.
#[derive(Debug)]
pub struct Publish {
    /// Id of the reservation that it makes.
    pub id: Uuid,
    /// The partition that its SKU is pinned to.
    pub partition: i32,
    /// The same keyed request was tried before and nobody knows what became of it: it is published again under the same id.
    pub is_retry: bool,
    /// What its record says about when it came: the writer settles the provisional units of that minute. For a retry that is the minute in
    /// which the first try took them, not its own.
    pub received_at_us: i64,
    /// Set if an earlier try of the same key may be in the log, as far as anybody can say: then "not sent" is only true of this try, and
    /// its client hears `outcome: unknown` with this id.
    pub maybe_accepted: Option<Uuid>,
    pub(super) settle: Settle,
}

/// What is needed to tell Redis.
pub(super) struct Settle {
    pub(super) key: Option<KeyMarker>,
    /// Provisional units that this request took, not an earlier try of it.
    pub(super) taken: Option<Taken>,
    /// Absent without Redis.
    pub(super) settles: Option<mpsc::Sender<SettleItem>>,
    pub(super) lag: Lag,
}

/// Provisional units of one request.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) user: UserId,
    pub(super) sku: SkuId,
    pub(super) quantity: Quantity,
    pub(super) minute: i64,
}

impl Publish {
    /// Says what became of the request. Never waits: Redis is told later, with others. A `Publish` that is dropped instead is as
    /// [`Delivery::Unknown`]: its hints expire by themselves.
    pub fn settle(self, delivery: &Delivery) {
        let Settle { key, taken, settles, lag } = self.settle;
        if let Delivery::Delivered(ticket) = delivery {
            lag.observe_delivered(*ticket);
        }
        let item = match (*delivery, key, taken) {
            (Delivery::Delivered(ticket), Some(key), _) => SettleItem::Delivered { key, ticket },
            (Delivery::NotSent(_), key, Some(Taken { user, sku, quantity, minute })) => {
                SettleItem::NotSent { user, sku, quantity, minute, key }
            }
            // Nothing to say, or nobody knows: an unknown outcome keeps its units and its pending marker.
            _ => return,
        };
        if let Some(settles) = settles {
            // Full: Redis is not told, and stays stricter until the hints expire.
            drop(settles.try_send(item));
        }
    }
}

impl std::fmt::Debug for Settle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settle").field("key", &self.key).field("taken", &self.taken).finish_non_exhaustive()
    }
}
