//! Sold-out flags: leases that hints set and clear and that only a read from Postgres renews. **PURE**: instants come as arguments.

use std::collections::HashMap;
use std::time::Instant;

use crate::effects::SkuHint;
use crate::ids::SkuId;
use crate::inventory::Sku;
use crate::limits;

/// A SKU that had nothing left less than [`limits::SOLD_OUT_LEASE`] ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoldOut {
    /// Units are held and some of them may come back.
    pub holds_pending: bool,
}

/// The flags of one process.
#[derive(Debug, Default)]
pub(super) struct Flags {
    until: HashMap<SkuId, (Instant, SoldOut)>,
    /// When a hint last said that units are left: a read that was asked before it must not set a flag again.
    cleared: HashMap<SkuId, Instant>,
    /// When all flags were dropped: the same for all SKUs.
    all_cleared: Option<Instant>,
}

impl Flags {
    pub(super) fn sold_out(&self, sku: &SkuId, now: Instant) -> Option<SoldOut> {
        self.until.get(sku).filter(|(until, _)| now < *until).map(|(_, sold_out)| *sold_out)
    }

    /// Hints that are newer than all before.
    pub(super) fn apply(&mut self, now: Instant, hints: &[SkuHint]) {
        for hint in hints {
            if hint.available > 0 {
                self.until.remove(&hint.sku);
                self.cleared.insert(hint.sku.clone(), now);
            } else {
                let sold_out = SoldOut { holds_pending: hint.holds_pending };
                self.until.insert(hint.sku.clone(), (now + limits::SOLD_OUT_LEASE, sold_out));
            }
        }
    }

    /// The SKUs whose flag should be renewed, run out or not.
    pub(super) fn flagged(&self) -> Vec<SkuId> {
        self.until.keys().cloned().collect()
    }

    /// A read of the flagged SKUs, asked at `asked`: renews or ends their flags, and sets none that a hint cleared meanwhile.
    pub(super) fn renew<'a>(&mut self, asked: Instant, read: impl Iterator<Item = (&'a SkuId, &'a Sku)>) {
        for (id, sku) in read {
            if sku.available() > 0 {
                self.until.remove(id);
            } else if let Some((until, sold_out)) = self.until.get_mut(id) {
                // A flag that a hint set after the question is newer than its answer.
                let renewed = asked + limits::SOLD_OUT_LEASE;
                if *until < renewed {
                    (*until, *sold_out) = (renewed, SoldOut { holds_pending: sku.reserved > 0 });
                }
            }
        }
    }

    /// A read of all SKUs, asked at `asked`: also sets flags, so that a process which missed the hint learns them.
    pub(super) fn learn<'a>(&mut self, asked: Instant, read: impl Iterator<Item = (&'a SkuId, &'a Sku)>) {
        for (id, sku) in read {
            let is_overtaken = self.cleared.get(id).is_some_and(|at| *at >= asked) || self.all_cleared >= Some(asked);
            if sku.available() <= 0 && !is_overtaken {
                let flag = (asked + limits::SOLD_OUT_LEASE, SoldOut { holds_pending: sku.reserved > 0 });
                let known = self.until.entry(id.clone()).or_insert(flag);
                if known.0 < flag.0 {
                    *known = flag;
                }
            }
        }
        // Only reads that are still under way could be overtaken, and this was the one.
        self.cleared.retain(|_, at| *at >= asked);
    }

    pub(super) fn clear(&mut self) {
        self.until.clear();
        self.all_cleared = Some(Instant::now());
    }
}
