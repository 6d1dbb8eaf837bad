//! All that deciding one batch may read.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::command::Settings;
use super::reservation::Reservation;
use crate::clock::Millis;
use crate::ids::{SkuId, UserId};

/// What the writer of one partition knows before a batch, reduced to what the batch's commands can touch.
///
/// Loading too much is harmless, loading too little is wrong: every SKU, id and (SKU, user) that a command names must be looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The partition: a `configure` pinned elsewhere is not decided here.
    pub partition: i32,
    /// Log time of the last decision in this partition; log time never runs backwards.
    pub log_time: Millis,
    /// The SKUs configured **in this partition**. A SKU of another partition must be left out.
    pub skus: BTreeMap<SkuId, Sku>,
    /// Reservations that have their decision, and poisoned commands. May leave out an id that the store refuses to write twice, if every
    /// SKU of the batch is here.
    pub known_reservations: BTreeSet<Uuid>,
    /// Commands that are no reserves and have a decision that stands. Whatever a command of the batch carries as its
    /// id **or its key id** ([`Command::key_id`]) must be looked up here and in [`Self::known_keys`].
    ///
    /// [`Command::key_id`]: super::Command::key_id
    pub known_commands: BTreeSet<Uuid>,
    /// The key ids of such commands.
    pub known_keys: BTreeSet<Uuid>,
    /// The reservations that commands of the batch are to change.
    pub reservations: BTreeMap<Uuid, Reservation>,
    /// What the users of the batch (those who ask, and those whose reservations are to change) hold or own of a SKU; absent = nothing.
    pub holdings: BTreeMap<(SkuId, UserId), Holdings>,
    /// Units of holds by the end of the hold, for every SKU of the batch: at least all that end by the batch's last log time and are not
    /// released yet.
    pub due: BTreeMap<SkuId, BTreeMap<Millis, i64>>,
}

/// What one user has of one SKU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Units owned.
    pub sold: i64,
    /// Units held, by the end of the hold. Ended holds may be among them.
    pub holds: BTreeMap<Millis, i64>,
}

impl Holdings {
    /// Units that count against the limit at a log time: a hold that ends then has ended.
    pub fn live_at(&self, log_time: Millis) -> i64 {
        let after = (std::ops::Bound::Excluded(log_time), std::ops::Bound::Unbounded);
        self.sold + self.holds.range(after).map(|(_, units)| units).sum::<i64>()
    }
}

/// A SKU as last decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sku {
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held for a while.
    pub reserved: i64,
    /// Units confirmed.
    pub sold: i64,
    /// Every hold that ends at or before this log time is released from `reserved`. Its row may still say RESERVED: it **is** expired.
    pub expired_through: Millis,
    /// Reserve commands are refused for now.
    pub is_paused: bool,
    /// How it is sold.
    pub settings: Settings,
    /// Counts changes of the settings, from 1.
    pub settings_version: i64,
    /// Stock movements so far: the number of the last one.
    pub movement_count: i64,
}

impl Sku {
    /// Units that a new buyer can get. Derived, never stored.
    pub fn available(&self) -> i64 {
        self.on_hand - self.reserved - self.sold
    }

    /// What must hold after every decision; the schema says the same (`sku_no_oversell`).
    pub fn assert_sound(&self) {
        assert!(self.on_hand >= 0 && self.reserved >= 0 && self.sold >= 0, "counters are never negative: {self:?}");
        assert!(self.reserved + self.sold <= self.on_hand, "never more units promised than exist: {self:?}");
    }
}
