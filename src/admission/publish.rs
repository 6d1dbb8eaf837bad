//! A request that may go into the log, and what Redis is told when it is known what became of it.

use std::time::Instant;

use uuid::Uuid;

use super::Lag;
use super::redis_check::{RedisCheck, Told};
use super::unheard::Unheard;
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

/// What is needed to tell Redis. Tells it once: dropped untold, it tells that nobody knows.
pub(super) struct Settle {
    /// Taken when told.
    pub(super) key: Option<KeyMarker>,
    /// Redis wrote a pending marker for the key before the publish. Without one it must hear of the key afterwards.
    pub(super) has_marker: bool,
    /// Provisional units that this request took, not an earlier try of it. Taken when told.
    pub(super) taken: Option<Taken>,
    /// Of the request.
    pub(super) minute: i64,
    /// Absent without Redis.
    pub(super) redis: Option<RedisCheck>,
    pub(super) unheard: Unheard,
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
    /// [`Delivery::Unknown`]: its units expire by themselves.
    pub fn settle(mut self, delivery: &Delivery) {
        self.settle.tell(delivery);
    }
}

impl Settle {
    fn tell(&mut self, delivery: &Delivery) {
        if let Delivery::Delivered(ticket) = delivery {
            self.lag.observe_delivered(*ticket);
        }
        let item = match (*delivery, self.key.take(), self.taken.take()) {
            (Delivery::Delivered(ticket), Some(key), _) if self.has_marker => {
                match self.unheard.delivered(key, ticket, Instant::now()) {
                    Some(item) => item,
                    None => return, // the decision will tell
                }
            }
            (Delivery::Delivered(ticket), Some(key), _) => SettleItem::Delivered { key, ticket },
            (Delivery::NotSent(_), key, Some(Taken { user, sku, quantity, minute })) => {
                SettleItem::NotSent { user, sku, quantity, minute, key }
            }
            (Delivery::Unknown, Some(key), _) if !self.has_marker => SettleItem::Unknown { key, minute: self.minute },
            // Nothing to say, or nobody knows: an unknown outcome keeps its units and its pending marker.
            _ => return,
        };
        if let Some(redis) = &self.redis {
            redis.settle(Told { item, is_gap_if_lost: !self.has_marker });
        }
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.tell(&Delivery::Unknown);
    }
}

impl std::fmt::Debug for Settle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settle").field("key", &self.key).field("taken", &self.taken).finish_non_exhaustive()
    }
}
