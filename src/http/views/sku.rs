//! A SKU as buyers and as operators see it, its stock, what one user may have of it, and what became of an operator's command.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::seconds;
use crate::clock::{Millis, rfc3339};
use crate::ids::UserId;
use crate::inventory::LatePayment;
use crate::store::{CatalogueEntry, PartitionRow, UserUnits};

/// A SKU, as buyers see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct SkuView {
    /// Its id.
    pub sku_id: String,
    /// `SCHEDULED`, `OPEN`, `PAUSED`, `SOLD_OUT`, `ENDED`, `HALTED`; more may come.
    #[schema(example = "OPEN")]
    pub status: &'static str,
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held for a while.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
    /// Units that a new buyer can get.
    pub available: i64,
    /// Units are held, some may come back.
    pub holds_pending: bool,
    /// Units that one user may hold or own.
    pub user_limit: u32,
    /// Seconds that a hold lasts.
    pub hold_seconds: u32,
    /// Start of the sale; absent = open at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub starts_at: Option<String>,
    /// End of the sale; absent = none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub ends_at: Option<String>,
    /// When this was read.
    #[schema(format = DateTime)]
    pub as_of: String,
}

impl SkuView {
    /// A SKU as read at `as_of`.
    pub fn of(entry: &CatalogueEntry, is_halted: bool, as_of: Millis) -> Self {
        let sku = &entry.sku;
        Self {
            sku_id: entry.sku_id.to_string(),
            status: sale_status(entry, is_halted, as_of),
            on_hand: sku.on_hand,
            reserved: sku.reserved,
            sold: sku.sold,
            available: sku.available(),
            holds_pending: sku.reserved > 0,
            user_limit: sku.settings.user_limit,
            hold_seconds: sku.settings.hold_seconds,
            starts_at: sku.settings.starts_at.map(rfc3339),
            ends_at: sku.settings.ends_at.map(rfc3339),
            as_of: rfc3339(as_of),
        }
    }
}

/// The state of a sale, in the precedence of refusals.
fn sale_status(entry: &CatalogueEntry, is_halted: bool, now: Millis) -> &'static str {
    let settings = &entry.sku.settings;
    if is_halted {
        "HALTED"
    } else if entry.sku.is_paused {
        "PAUSED"
    } else if settings.starts_at.is_some_and(|at| now < at) {
        "SCHEDULED"
    } else if settings.ends_at.is_some_and(|at| now >= at) {
        "ENDED"
    } else if entry.sku.available() <= 0 {
        "SOLD_OUT"
    } else {
        "OPEN"
    }
}

/// A SKU, as operators see it.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminSkuView {
    /// What buyers see.
    #[serde(flatten)]
    pub sku: SkuView,
    /// `rereserve` or `reject`.
    pub late_payment: &'static str,
    /// Extensions that one hold may have.
    pub extensions_max: u32,
    /// Seconds that all extensions of one hold may add.
    pub extension_seconds_max: u32,
    /// Counts changes of the settings.
    pub settings_version: i64,
    /// The partition whose writer owns the SKU.
    pub pinned_partition: i32,
    /// Commands of this SKU that wait: an estimate, and only if no other SKU shares its partition or nothing waits there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// The next offset that its partition decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<i64>,
    /// Records that its partition is behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_records: Option<i64>,
    /// Age of its partition's oldest undecided record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Bumped by every claim of its partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// Why nobody decides; absent = healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub halted_reason: Option<String>,
}

/// How far a partition is behind, as far as this process knows.
#[derive(Clone, Copy, Debug, Default)]
pub struct LagView {
    /// In records.
    pub records: Option<i64>,
    /// In time.
    pub age: Option<Duration>,
}

impl AdminSkuView {
    /// A SKU with its partition's row, and why its sale is halted.
    pub fn of(
        entry: &CatalogueEntry,
        partition: Option<&PartitionRow>,
        halted_reason: Option<String>,
        lag: LagView,
        as_of: Millis,
    ) -> Self {
        let settings = &entry.sku.settings;
        Self {
            sku: SkuView::of(entry, halted_reason.is_some(), as_of),
            late_payment: late_payment_word(settings.late_payment),
            extensions_max: settings.extensions_max,
            extension_seconds_max: settings.extension_seconds_max,
            settings_version: entry.sku.settings_version,
            pinned_partition: entry.partition,
            queued: lag.records.filter(|records| *records == 0).map(|_| 0),
            position: partition.map(|p| p.position),
            lag_records: lag.records,
            lag_seconds: lag.age.map(seconds),
            epoch: partition.map(|p| p.epoch),
            halted_reason,
        }
    }
}

/// The word of a policy in requests and answers.
pub fn late_payment_word(policy: LatePayment) -> &'static str {
    match policy {
        LatePayment::Rereserve => "rereserve",
        LatePayment::Reject => "reject",
    }
}

/// Reads that word.
pub fn parse_late_payment(word: &str) -> Result<LatePayment, &'static str> {
    match word {
        "rereserve" => Ok(LatePayment::Rereserve),
        "reject" => Ok(LatePayment::Reject),
        _ => Err("must be rereserve or reject"),
    }
}

/// One page of SKUs.
#[derive(Debug, Serialize, ToSchema)]
pub struct SkuListView {
    /// In the order of their ids.
    pub items: Vec<AdminSkuView>,
    /// Where the next page begins; absent = this is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// The stock of a SKU right after an adjustment.
#[derive(Debug, Serialize, ToSchema)]
pub struct StockView {
    /// The SKU.
    pub sku_id: String,
    /// Units in the sale.
    pub on_hand: i64,
    /// Units held for a while.
    pub reserved: i64,
    /// Units sold.
    pub sold: i64,
    /// Units that a new buyer can get.
    pub available: i64,
}

/// What a user has of a SKU, and may still ask for.
#[derive(Debug, Serialize, ToSchema)]
pub struct LimitsView {
    /// The user.
    pub user_id: String,
    /// The SKU.
    pub sku_id: String,
    /// Units that one user may hold or own.
    pub limit: u32,
    /// Units held.
    pub reserved: i64,
    /// Units owned.
    pub sold: i64,
    /// Units asked for and not decided: a hint; absent while nobody can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u64>,
    /// Units that the user may still ask for, if all that is queued is granted.
    pub remaining: i64,
}

impl LimitsView {
    /// A user's units of a SKU.
    pub fn of(user: &UserId, entry: &CatalogueEntry, units: UserUnits, queued: Option<u64>) -> Self {
        let limit = entry.sku.settings.user_limit;
        let asked_for = i64::try_from(queued.unwrap_or(0)).unwrap_or(i64::MAX);
        let used = (units.reserved + units.sold).saturating_add(asked_for);
        Self {
            user_id: user.to_string(),
            sku_id: entry.sku_id.to_string(),
            limit,
            reserved: units.reserved,
            sold: units.sold,
            queued,
            // A limit may have been lowered below what the user already has.
            remaining: (i64::from(limit) - used).max(0),
        }
    }
}

/// Where an operator's command stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommandView {
    /// The command.
    pub command_id: Uuid,
    /// `configure`, `adjust`, `pause` or `resume`; absent while nobody can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `QUEUED`, `DONE` or `REJECTED`.
    pub status: &'static str,
    /// DONE: the SKU as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku: Option<AdminSkuView>,
    /// REJECTED: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub problem: Option<Value>,
}
