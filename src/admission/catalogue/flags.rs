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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inventory::Settings;

    fn id(name: &str) -> SkuId {
        SkuId::parse(name).expect("legal")
    }

    fn hint(available: i64, holds_pending: bool) -> [SkuHint; 1] {
        [SkuHint { sku: id("s"), available, holds_pending, is_configured: false }]
    }

    fn stock(on_hand: i64, reserved: i64) -> Sku {
        Sku {
            on_hand,
            reserved,
            sold: 0,
            expired_through: 0,
            is_paused: false,
            settings: Settings::default(),
            settings_version: 1,
            movement_count: 1,
        }
    }

    fn renew(flags: &mut Flags, asked: Instant, sku: &Sku) {
        flags.renew(asked, std::iter::once((&id("s"), sku)));
    }

    fn learn(flags: &mut Flags, asked: Instant, sku: &Sku) {
        flags.learn(asked, std::iter::once((&id("s"), sku)));
    }

    /// Some instants in order, a tenth of a lease apart.
    fn instants() -> [Instant; 4] {
        let now = Instant::now() + Duration::from_secs(60);
        [0, 1, 2, 3].map(|n| now + n * limits::SOLD_OUT_LEASE / 10)
    }

    #[test]
    fn a_hint_sets_a_lease_and_a_hint_ends_it() {
        let ([now, later, ..], mut flags) = (instants(), Flags::default());
        flags.apply(now, &hint(0, true));
        assert_eq!(flags.sold_out(&id("s"), later), Some(SoldOut { holds_pending: true }));
        assert_eq!(flags.sold_out(&id("other"), later), None);
        assert_eq!(flags.sold_out(&id("s"), now + limits::SOLD_OUT_LEASE), None, "run out");
        assert_eq!(flags.flagged(), [id("s")], "run out, and still to be renewed");
        flags.apply(later, &hint(1, true));
        assert_eq!(flags.sold_out(&id("s"), later), None);
    }

    #[test]
    fn a_read_renews_from_when_it_was_asked() {
        let ([now, asked, ..], mut flags) = (instants(), Flags::default());
        flags.apply(now, &hint(0, true));
        renew(&mut flags, asked, &stock(5, 0));
        assert_eq!(flags.sold_out(&id("s"), asked), None, "units are left");
        flags.apply(now, &hint(0, true));
        renew(&mut flags, asked, &stock(0, 0));
        let end = asked + limits::SOLD_OUT_LEASE;
        assert_eq!(flags.sold_out(&id("s"), end - Duration::from_millis(1)), Some(SoldOut { holds_pending: false }));
        assert_eq!(flags.sold_out(&id("s"), end), None);
    }

    #[test]
    fn a_read_sets_no_flag_that_a_hint_cleared_meanwhile() {
        let ([before, asked, during, after], mut flags) = (instants(), Flags::default());
        flags.apply(before, &hint(0, true));
        flags.apply(during, &hint(3, true));
        renew(&mut flags, asked, &stock(5, 5));
        learn(&mut flags, asked, &stock(5, 5));
        assert_eq!(flags.sold_out(&id("s"), after), None);
        // The next read, asked after that hint, is believed.
        learn(&mut flags, after, &stock(5, 5));
        assert_eq!(flags.sold_out(&id("s"), after), Some(SoldOut { holds_pending: true }));
    }

    #[test]
    fn dropping_all_flags_also_stops_reads_under_way() {
        let mut flags = Flags::default();
        let asked = Instant::now();
        flags.apply(asked, &hint(0, true));
        flags.clear();
        learn(&mut flags, asked, &stock(5, 5));
        assert_eq!((flags.sold_out(&id("s"), asked), flags.flagged()), (None, vec![]));
    }

    #[test]
    fn what_hints_cleared_is_not_remembered_for_ever() {
        let ([before, asked, ..], mut flags) = (instants(), Flags::default());
        flags.apply(before, &hint(1, false));
        learn(&mut flags, asked, &stock(5, 0));
        assert!(flags.cleared.is_empty());
    }
}
