//! A reservation in every state, lists of them, and what became of a command on one.

use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::seconds;
use crate::clock::{Millis, rfc3339};
use crate::http::problem::Problem;
use crate::http::query::cursor_after;
use crate::ids::Ticket;
use crate::inventory::Status;
use crate::store::{ReservationPage, ReservationRow};

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

/// What became of many requests, each in its place.
#[derive(Serialize, ToSchema)]
pub struct ReserveManyView {
    /// As many as were asked for, in the same order.
    pub items: Vec<ReserveManyItemView>,
}

/// What the call for one would have answered. Its headers are told in the body: `status_url` is `Location`, `version` is `ETag`.
#[derive(Serialize, ToSchema)]
pub struct ReserveManyItemView {
    /// 202 queued, 200 decided, or the status of `problem`.
    #[schema(example = 202)]
    pub http_status: u16,
    /// Present and true: this repeats an earlier answer, as `Idempotent-Replayed` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replayed: Option<bool>,
    /// Of a problem: seconds, as `Retry-After` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
    /// 202 and 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ToldReservationView>,
    /// Any other status.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "nested")]
    #[schema(value_type = Option<Object>)]
    pub problem: Option<Problem>,
}

fn nested<S: Serializer>(problem: &Option<Problem>, serializer: S) -> Result<S::Ok, S::Error> {
    problem.as_ref().map(Problem::nested).serialize(serializer)
}

/// A reservation as a 202 or a 200 shows it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ToldReservationView {
    /// 202.
    Accepted(AcceptedView),
    /// 200.
    Decided(Box<ReservationView>),
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
