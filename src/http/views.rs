//! The bodies of answers. Absent = no value; `null` is never sent.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::query::cursor_after;
use crate::clock::{Millis, rfc3339};
use crate::ids::{Ticket, UserId};
use crate::inventory::{LatePayment, Status};
use crate::store::{CatalogueEntry, PartitionRow, ReservationPage, ReservationRow, UserUnits};

/// A request that was accepted into the log: the body of a 202.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedView {
    /// The reservation.
    pub id: Uuid,
    /// Always `QUEUED`.
    #[schema(example = "QUEUED")]
    pub status: &'static str,
    /// Where the request stands in the log; not known for a repeat whose first answer is older than our memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "3.1041.0")]
    pub ticket: Option<String>,
    /// When a decision may be expected, in seconds; absent if nobody can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = 0.01)]
    pub eta_seconds: Option<f64>,
    /// Where to follow it.
    pub status_url: String,
}

impl AcceptedView {
    /// For a reservation that may expect its decision in this time.
    pub fn of(id: Uuid, ticket: Option<Ticket>, eta: Option<Duration>) -> Self {
        Self {
            id,
            status: Status::Queued.word(),
            ticket: ticket.map(|t| t.to_string()),
            eta_seconds: eta.map(seconds),
            status_url: status_url(id, ticket),
        }
    }
}

/// Where a reservation is followed.
pub fn status_url(id: Uuid, ticket: Option<Ticket>) -> String {
    match ticket {
        Some(ticket) => format!("/v1/reservations/{id}?ticket={ticket}"),
        None => format!("/v1/reservations/{id}"),
    }
}

/// Seconds, rounded to milliseconds: more would only look exact.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A reservation, in every state.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct ReservationView {
    /// Its id.
    pub id: Uuid,
    /// `QUEUED`, `RESERVED`, `REJECTED`, `CONFIRMED`, `CANCELLED`, `EXPIRED`; more may come.
    #[schema(example = "RESERVED")]
    pub status: &'static str,
    /// Who buys; left out while it is known by its ticket alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// What; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku_id: Option<String>,
    /// Units; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantity: Option<u32>,
    /// Log time of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub accepted_at: Option<String>,
    /// RESERVED: end of the hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expires_at: Option<String>,
    /// RESERVED: whole seconds until then, 0 if it is past.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
    /// RESERVED: extensions that the hold may still have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extensions_left: Option<u32>,
    /// CONFIRMED: the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment_ref: Option<String>,
    /// CONFIRMED: log time of the confirm.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub confirmed_at: Option<String>,
    /// CONFIRMED: the hold had ended before, and its units were reserved again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// CANCELLED: log time of the cancel.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub cancelled_at: Option<String>,
    /// CANCELLED: why, if it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_note: Option<String>,
    /// EXPIRED: when the hold ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub expired_at: Option<String>,
    /// REJECTED: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "SOLD_OUT")]
    pub reason: Option<String>,
    /// `SOLD_OUT`: units that were left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available: Option<i64>,
    /// `SOLD_OUT`: units were held, some may come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holds_pending: Option<bool>,
    /// `USER_LIMIT`: the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `USER_LIMIT`: units that the user could still ask for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u32>,
    /// QUEUED: where the request stands in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
    /// QUEUED: requests ahead, 0 = next; an estimate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_position: Option<u64>,
    /// QUEUED: when a decision may be expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// What the client attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Counts changes; 0 while QUEUED.
    pub version: i32,
}

impl ReservationView {
    /// A decided reservation at this time.
    pub fn decided(row: &ReservationRow, now: Millis) -> Self {
        let rejection = row.rejection.as_ref();
        let (expires_at, changed_at) = (row.expires_at.map(rfc3339), row.changed_at.map(rfc3339));
        let base = Self {
            id: row.id,
            status: row.status.word(),
            user_id: row.user_id.clone(),
            sku_id: row.sku_id.clone(),
            quantity: row.quantity,
            accepted_at: Some(rfc3339(row.accepted_at)),
            // Only a client wrote it, and it was checked to be an object of strings.
            metadata: row.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            version: row.version,
            ..Self::default()
        };
        match row.status {
            Status::Reserved => Self {
                expires_in_seconds: row.expires_at.map(|at| at.saturating_sub(now).max(0) / 1000),
                expires_at,
                extensions_left: row.extensions_left,
                ..base
            },
            Status::Rejected => Self {
                reason: rejection.map(|r| r.reason.clone()),
                available: rejection.and_then(|r| r.available),
                holds_pending: rejection.and_then(|r| r.holds_pending),
                limit: rejection.and_then(|r| r.limit),
                remaining: rejection.and_then(|r| r.remaining),
                ..base
            },
            Status::Confirmed => {
                Self { payment_ref: row.payment_ref.clone(), confirmed_at: changed_at, late: Some(row.is_late), ..base }
            }
            Status::Cancelled => Self { cancelled_at: changed_at, cancel_note: row.note.clone(), ..base },
            Status::Expired => Self { expired_at: expires_at, ..base },
            // Never stored.
            Status::Queued => base,
        }
    }

    /// One that waits for its decision.
    pub fn queued(id: Uuid, ticket: Ticket, queue_position: Option<u64>, eta: Option<Duration>) -> Self {
        Self {
            id,
            status: Status::Queued.word(),
            ticket: Some(ticket.to_string()),
            queue_position,
            eta_seconds: eta.map(seconds),
            ..Self::default()
        }
    }
}

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
    /// A SKU with its partition's row.
    pub fn of(entry: &CatalogueEntry, partition: Option<&PartitionRow>, lag: LagView, as_of: Millis) -> Self {
        let settings = &entry.sku.settings;
        let halted_reason = partition.and_then(|p| p.halted_reason.clone());
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

/// One page of reservations. It may be short or empty: go on until `next_cursor` is absent.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReservationListView {
    /// In the order of their ids.
    pub items: Vec<ReservationView>,
    /// Where the next page begins; absent = this is the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl ReservationListView {
    /// A page as it was read.
    pub fn of(page: &ReservationPage, now: Millis) -> Self {
        let items = page.rows.iter().map(|row| ReservationView::decided(row, now)).collect();
        Self { items, next_cursor: page.next.map(cursor_after) }
    }
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

/// A command that is not decided yet: the body of a 202.
#[derive(Debug, Serialize, ToSchema)]
pub struct AcceptedCommandView {
    /// The command.
    pub command_id: Uuid,
    /// Always `QUEUED`.
    #[schema(example = "QUEUED")]
    pub status: &'static str,
    /// Where to follow it.
    pub status_url: String,
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

/// Where a command on a reservation stands.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReservationCommandView {
    /// The command.
    pub command_id: Uuid,
    /// `confirm`, `cancel` or `extend`; absent while nobody can say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// `QUEUED`, `DONE` or `REJECTED`.
    pub status: &'static str,
    /// DONE: the reservation as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ReservationView>,
    /// REJECTED: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub problem: Option<Value>,
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

/// Result of a probe.
#[derive(Debug, Serialize, ToSchema)]
pub struct HealthView {
    /// `ok` or `unavailable`.
    pub status: &'static str,
    /// What was looked at.
    pub checks: Vec<CheckView>,
}

/// One thing that a probe looked at.
#[derive(Debug, Serialize, ToSchema)]
pub struct CheckView {
    /// Its name.
    pub name: &'static str,
    /// Whether it is fine.
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

/// What runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionView {
    /// The package's version.
    pub version: &'static str,
    /// The commit it was built from, `unknown` if the build did not say.
    pub commit: &'static str,
    /// The newest migration that this build knows.
    pub schema: i64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Place;
    use crate::store::StoredRejection;

    #[test]
    fn every_state_has_its_members_and_no_others() {
        let held = ReservationRow {
            id: Uuid::from_u128(7),
            user_id: Some("u-1".into()),
            sku_id: Some("s".into()),
            quantity: Some(2),
            status: Status::Reserved,
            rejection: None,
            version: 1,
            accepted_at: 0,
            expires_at: Some(120_000),
            changed_at: None,
            extensions_left: Some(3),
            payment_ref: None,
            is_late: false,
            note: None,
            metadata: Some(r#"{"order":"o-1"}"#.into()),
            ticket: Ticket { partition: 0, place: Place { offset: 1, index: 0 } },
        };
        let sold_out = StoredRejection {
            reason: "SOLD_OUT".into(),
            available: Some(1),
            holds_pending: Some(true),
            limit: None,
            remaining: None,
        };
        let changed = ReservationRow { version: 2, changed_at: Some(60_000), ..held.clone() };
        let rows = [
            held.clone(),
            ReservationRow { status: Status::Rejected, rejection: Some(sold_out), expires_at: None, ..held.clone() },
            ReservationRow { status: Status::Confirmed, payment_ref: Some("pay-9".into()), ..changed.clone() },
            ReservationRow { status: Status::Cancelled, note: Some("changed my mind".into()), ..changed.clone() },
            ReservationRow { status: Status::Cancelled, metadata: None, ..changed },
            ReservationRow { status: Status::Expired, version: 2, ..held.clone() },
        ];
        let mut views: Vec<ReservationView> = rows.iter().map(|row| ReservationView::decided(row, 1_500)).collect();
        // Past its end, and not swept yet.
        views.push(ReservationView::decided(&held, 130_000));
        insta::assert_json_snapshot!(views);
    }
}
