//! `POST /v1/reservations`: parse, admit, publish, and answer 202, or wait for the decision if the client prefers that.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use uuid::Uuid;

use super::app::{App, SharedApp, location, not_sent, status_unavailable};
use super::body::JsonBody;
use super::frame::Fate;
use super::headers::{self, IDEMPOTENT_REPLAYED, PREFERENCE_APPLIED, Wait};
use super::json::{self, Fields, Json as Body};
use super::openapi::{ReserveBody, ReserveProblems};
use super::problem::{Code, Effect, Problem};
use super::reservations::decided_view;
use super::views::{AcceptedView, ReservationView, status_url};
use crate::admission::{Admitted, Publish, Refusal, Replay, ReserveRequest};
use crate::clock::{Millis, rfc3339};
use crate::ids::{self, IdempotencyKey, Metadata, Quantity, SkuId, Ticket, UserId};
use crate::ingress::{Delivery, NotSent, Submitted};
use crate::inventory::{Command, Reserve};
use crate::limits;
use crate::origin::Origin;
use crate::status::StatusAnswer;
use crate::waiters::Waiter;
use crate::wire::Sent;

/// Ask for units of a SKU.
///
/// The request is queued; follow it at `status_url`, or send `Prefer: wait=N` and get the decision in this very answer. With an
/// `Idempotency-Key` the request may be repeated safely.
#[utoipa::path(
    post, path = "/v1/reservations", tag = "reservations", request_body = ReserveBody,
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "Name of this request, 1 to 255 printable ASCII characters"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds (at most 30) for the decision"),
        ("X-Request-Id" = Option<String>, Header, description = "Name of this call in logs"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context: the call becomes a part of this trace"),
    ),
    responses(
        (status = 202, description = "Queued", body = AcceptedView, headers(
            ("Location" = String, description = "Where to follow it"),
            ("Retry-After" = u64, description = "Seconds"),
            ("Idempotent-Replayed" = Option<bool>, description = "Present on a repeat"))),
        (status = 200, description = "Decided within the wait that was preferred", body = ReservationView, headers(
            ("Preference-Applied" = String, description = "`wait=N`"),
            ("ETag" = String, description = "The version"),
            ("Idempotent-Replayed" = Option<bool>, description = "Present on a repeat"))),
        ReserveProblems,
    )
)]
pub(super) async fn reserve(
    State(app): State<SharedApp>,
    Extension(origin): Extension<Origin>,
    Extension(fate): Extension<Fate>,
    request_headers: HeaderMap,
    RawQuery(query): RawQuery,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    headers::no_parameters(query.as_deref())?;
    let key = headers::idempotency_key(&request_headers)?;
    let received_at_us = app.clock.now().saturating_mul(1000);
    let (request, metadata) = parse(body, key, received_at_us)?;
    let wait = headers::prefer_wait(&request_headers);
    // Whatever cuts this off: an earlier try with the same key may be in the log, without a key nothing is before the publish.
    match &request.key {
        Some(key) => fate.maybe_sent(ids::keyed_reservation_id(&request.user, &request.sku, key)),
        None => fate.nothing_sent(),
    }
    match app.admission.admit(&request).await {
        Admitted::Publish(admitted) => {
            fate.maybe_sent(admitted.id);
            publish(&app, request, metadata, admitted, origin, wait).await
        }
        Admitted::Replay(replay) => replay_answer(&app, &request, replay, wait).await,
        Admitted::Refused(refusal) => Err(refused(&app, refusal)),
    }
}

/// Before its client is told `outcome: unknown`: the `status_url` of that answer must not be told 404 while the request may still land.
fn note_unknown(app: &App, id: Option<Uuid>) {
    if let Some(id) = id {
        app.status.note_unknown(id);
    }
}

/// The metadata is no part of the request: a repeat of its key may carry another one, and the first one stays.
fn parse(
    body: Body,
    key: Option<IdempotencyKey>,
    received_at_us: i64,
) -> Result<(ReserveRequest, Option<Metadata>), Problem> {
    let mut fields = Fields::of(body);
    let asked = read_fields(&mut fields, key, received_at_us);
    fields.finish()?;
    Ok(asked.expect("a missing field was refused"))
}

/// What one request asks for. `None` = a mistake was noted.
pub(super) fn read_fields(
    fields: &mut Fields,
    key: Option<IdempotencyKey>,
    received_at_us: i64,
) -> Option<(ReserveRequest, Option<Metadata>)> {
    let user = fields.required("user_id", json::text(UserId::parse));
    let sku = fields.required("sku_id", json::text(SkuId::parse));
    let units = json::integer(1, i64::from(limits::QUANTITY_MAX));
    let quantity = fields.required("quantity", |value| units(value).map(quantity_of));
    let metadata = fields.optional("metadata", metadata_of);
    Some((ReserveRequest { user: user?, sku: sku?, quantity: quantity?, key, received_at_us }, metadata))
}

/// As compact JSON, members in the client's order.
fn metadata_of(value: &Body) -> Result<Metadata, String> {
    const MUST: &str = "must be an object of at most 10 strings, 500 bytes in all";
    let Body::Object(members) = value else { return Err(MUST.into()) };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut written = Vec::with_capacity(members.len());
    for (name, value) in members {
        let Body::Text(value) = value else { return Err(MUST.into()) };
        written.push(format!("{}:{}", quoted(name), quoted(value)));
    }
    Metadata::parse(&format!("{{{}}}", written.join(","))).map_err(|error| error.to_string())
}

fn quantity_of(units: i64) -> Quantity {
    u32::try_from(units).ok().and_then(Quantity::new).expect("checked to be 1 to 1000")
}

/// Publishes and answers. What became of the publish is settled by whoever is told of it first, not by this future: a client that hangs up must
/// not leave its units provisional.
async fn publish(
    app: &Arc<App>,
    request: ReserveRequest,
    metadata: Option<Metadata>,
    admitted: Publish,
    origin: Origin,
    wait: Option<Wait>,
) -> Result<Response, Problem> {
    let (id, partition, maybe_accepted) = (admitted.id, admitted.partition, admitted.maybe_accepted);
    let received_at_us = admitted.received_at_us;
    let ReserveRequest { user, sku, quantity, .. } = request;
    let asked = Reserve { id, user, sku, quantity, metadata };
    // Registered before the publish, so that no wake-up can fall between.
    let waiting = wait.map(|wait| Waiting {
        wait,
        deadline: Instant::now() + wait.duration(),
        waiter: app.waiters.register(id),
        asked: asked.clone(),
    });
    let nudge = waiting.as_ref().map(|waiting| waiting.waiter.nudge());
    let sent = Sent { received_at_us, request_id: origin.request_id.to_string(), command: Command::Reserve(asked) };
    let status = app.status.clone();
    let submitted = app.ingress.submit_with(partition, sent, origin.trace, move |delivery| {
        if let Delivery::Delivered(ticket) = delivery {
            status.observe_delivered(ticket);
        }
        admitted.settle(&delivery);
        // Whoever waits for a decision need not wake for the report, unless there will be no decision.
        if let Some(nudge) = nudge.filter(|_| !matches!(delivery, Delivery::Delivered(_))) {
            nudge.wake();
        }
    });
    match waiting {
        Some(waiting) => waiting.decision(app, submitted, maybe_accepted).await,
        None => Ok(accepted(app, id, Some(ticket_of(app, submitted.await, id, maybe_accepted)?))),
    }
}

/// Where the request stands in the log.
///
/// # Errors
/// What its client is told if it is not there, or nobody knows.
pub(super) fn ticket_of(
    app: &App,
    delivery: Delivery,
    id: Uuid,
    maybe_accepted: Option<Uuid>,
) -> Result<Ticket, Problem> {
    match delivery {
        Delivery::Delivered(ticket) => Ok(ticket),
        Delivery::NotSent(why) => {
            note_unknown(app, maybe_accepted);
            Err(not_sent_now(why, maybe_accepted))
        }
        Delivery::Unknown => {
            note_unknown(app, Some(id));
            Err(unknown(Code::QueueUnavailable, id))
        }
    }
}

/// What the client of a refused request is told.
pub(super) fn refused(app: &App, refusal: Refusal) -> Problem {
    note_unknown(app, refusal.maybe_accepted());
    problem_of(refusal, app.clock.now(), start_jitter_seconds())
}

/// A client that wants to hear the decision of its request.
struct Waiting {
    wait: Wait,
    deadline: Instant,
    waiter: Waiter,
    /// What it asked for: the decision that a batch tells does not repeat it.
    asked: Reserve,
}

impl Waiting {
    /// 200 with the decision if it comes in time, else the 202.
    async fn decision(
        mut self,
        app: &Arc<App>,
        mut submitted: Submitted,
        maybe_accepted: Option<Uuid>,
    ) -> Result<Response, Problem> {
        loop {
            let woken = app.woken(&mut self.waiter, self.deadline).await;
            let ticket = ticket_of(app, (&mut submitted).await, self.asked.id, maybe_accepted)?;
            let Some(first) = woken else { return Ok(accepted(app, self.asked.id, Some(ticket))) };
            match first.filter(|first| first.place == ticket.place) {
                Some(first) => return Ok(decided(app, &first.row_of(self.asked, ticket), self.wait)),
                // It was told of another record with the same id, or only that there is something to read. A read that fails costs a
                // wake-up; the sweep brings the next one.
                None => {
                    if let Ok(StatusAnswer { row: Some(row), .. }) = app.status.read(self.asked.id).await {
                        return Ok(decided(app, &row, self.wait));
                    }
                }
            }
        }
    }
}

fn decided(app: &App, row: &crate::store::ReservationRow, wait: Wait) -> Response {
    let view: ReservationView = decided_view(app, row);
    let headers = [(header::ETAG, headers::etag(row.version)), (PREFERENCE_APPLIED, wait.applied())];
    (StatusCode::OK, headers, Json(view)).into_response()
}

/// A reservation that has no decision yet, or whose client does not wait for one.
pub(super) fn accepted_view(app: &App, id: Uuid, ticket: Option<Ticket>) -> AcceptedView {
    AcceptedView::of(id, ticket, ticket.and_then(|ticket| app.status.eta_of_delivered(ticket)))
}

fn accepted(app: &App, id: Uuid, ticket: Option<Ticket>) -> Response {
    let view = accepted_view(app, id, ticket);
    let headers = [(header::LOCATION, location(&view.status_url)), (header::RETRY_AFTER, HeaderValue::from(1_u64))];
    (StatusCode::ACCEPTED, headers, Json(view)).into_response()
}

/// The same answer as the first time; with a wait, today's state.
async fn replay_answer(
    app: &Arc<App>,
    request: &ReserveRequest,
    replay: Replay,
    wait: Option<Wait>,
) -> Result<Response, Problem> {
    debug_assert!(request.key.is_some(), "only keyed requests are recognised");
    let answer = match wait {
        Some(wait) => replay_after_wait(app, replay, wait).await?,
        None => accepted(app, replay.id, replay.ticket),
    };
    Ok(([(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))], answer).into_response())
}

async fn replay_after_wait(app: &Arc<App>, replay: Replay, wait: Wait) -> Result<Response, Problem> {
    let deadline = Instant::now() + wait.duration();
    let mut waiter = app.waiters.register(replay.id);
    loop {
        // Read first: it may have been decided long ago.
        match app.status.read(replay.id).await {
            Ok(StatusAnswer { row: Some(row), .. }) => return Ok(decided(app, &row, wait)),
            Ok(_) => {}
            Err(_) if replay.is_decided => return Err(status_unavailable()),
            Err(_) => {}
        }
        if app.woken(&mut waiter, deadline).await.is_none() {
            return Ok(accepted(app, replay.id, replay.ticket));
        }
    }
}

/// 503: this try is not in the log; an earlier one with the same key may be.
fn not_sent_now(why: NotSent, maybe_accepted: Option<Uuid>) -> Problem {
    match (maybe_accepted, why) {
        (None, why) => not_sent(why),
        (Some(id), NotSent::Full) => unknown(Code::Overloaded, id),
        (Some(id), NotSent::Unavailable) => unknown(Code::QueueUnavailable, id),
    }
}

/// 503: it may have been accepted; where to see. Without a ticket, because nobody knows it.
pub(super) fn unknown(code: Code, id: Uuid) -> Problem {
    Problem::unavailable(code, Effect::Unknown, "nobody knows yet whether the request was queued; status_url tells")
        .with("id", id.to_string())
        .with("status_url", status_url(id, None))
}

/// `now` and `jitter_seconds` are only for `Retry-After` of a sale that starts later.
fn problem_of(refusal: Refusal, now: Millis, jitter_seconds: u64) -> Problem {
    match refusal {
        Refusal::Overloaded { maybe_accepted } => {
            unavailable(Code::Overloaded, maybe_accepted, "more requests are waiting than can be decided in time")
        }
        Refusal::Unavailable { maybe_accepted } => {
            unavailable(Code::Overloaded, maybe_accepted, "the SKU can't be looked up now")
        }
        Refusal::Halted { maybe_accepted } => {
            unavailable(Code::Halted, maybe_accepted, "the sale stands still until an operator looked at it")
        }
        Refusal::Paused { maybe_accepted } => unavailable(Code::SalePaused, maybe_accepted, "the sale is paused"),
        Refusal::KeyReused => {
            Problem::new(Code::IdempotencyKeyReused, "this Idempotency-Key was used for another request of this user")
        }
        Refusal::UnknownSku => Problem::new(Code::UnknownSku, "no such SKU is on sale"),
        Refusal::SaleNotStarted { starts_at } => {
            let seconds = u64::try_from(starts_at.saturating_sub(now)).unwrap_or_default().div_ceil(1000);
            Problem::new(Code::SaleNotStarted, "the sale has not started")
                .with("starts_at", rfc3339(starts_at))
                .retry_after(seconds.max(1) + jitter_seconds)
        }
        Refusal::SaleEnded { ends_at } => {
            Problem::new(Code::SaleEnded, "the sale is over").with("ends_at", rfc3339(ends_at))
        }
        Refusal::UserLimit { limit, remaining } => {
            Problem::new(Code::UserLimit, format!("a user may have {limit} units; {remaining} are left for this one"))
                .with("limit", limit)
                .with("remaining", remaining)
        }
        Refusal::SoldOut { available, holds_pending } => {
            Problem::new(Code::SoldOut, format!("{available} units are left"))
                .with("available", available)
                .with("holds_pending", holds_pending)
        }
    }
}

/// A crowd that was told one instant comes back as one wave.
fn start_jitter_seconds() -> u64 {
    u64::from(ids::fresh_token().as_bytes()[0]) % (limits::SALE_START_JITTER_SECONDS_MAX + 1)
}

fn unavailable(code: Code, maybe_accepted: Option<Uuid>, detail: &'static str) -> Problem {
    match maybe_accepted {
        Some(id) => unknown(code, id),
        None => Problem::unavailable(code, Effect::None, detail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str) -> serde_json::Value {
        let read = json::parse(body.as_bytes()).and_then(|body| parse(body, None, 0));
        match read {
            Ok((request, metadata)) => {
                let metadata = metadata.as_ref().map_or("", Metadata::as_str);
                format!("{} {} {} {metadata}", request.user, request.sku, request.quantity.get()).into()
            }
            Err(problem) => problem.nested_body()["errors"].clone(),
        }
    }

    #[test]
    fn reserve_bodies_are_parsed_into_types_that_cannot_be_wrong() {
        let cases = [
            r#"{"user_id":"u-1","sku_id":"sneaker-42","quantity":1}"#,
            r#"{"quantity":1000,"sku_id":"a:b.c_d-e","user_id":"U"}"#,
            r#"{}"#,
            r#"{"user_id":"","sku_id":"a b","quantity":0}"#,
            r#"{"user_id":1,"sku_id":null,"quantity":"1"}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1001}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1.5}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"price":5}"#,
            r#"[]"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":{"z":"\"1\"","a":"ü\u0000"}}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":{}}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":{"a":1}}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":"a"}"#,
            r#"{"user_id":"u","sku_id":"s","quantity":1,"metadata":{"a":"","b":"","c":"","d":"","e":"","f":"","g":"","h":"","i":"","j":"","k":""}}"#,
            &format!(r#"{{"user_id":"u","sku_id":"s","quantity":1,"metadata":{{"a":"{}"}}}}"#, "x".repeat(493)),
        ];
        let table: Vec<_> = cases.iter().map(|body| serde_json::json!([body, check(body)])).collect();
        insta::assert_json_snapshot!(table);
    }

    #[test]
    fn a_try_that_failed_says_nothing_about_an_earlier_one() {
        let outcome = |maybe_accepted| not_sent_now(NotSent::Full, maybe_accepted).nested_body()["outcome"].clone();
        assert_eq!(outcome(None), "none");
        assert_eq!(outcome(Some(Uuid::nil())), "unknown");
    }

    #[test]
    fn every_refusal_has_its_problem() {
        let id = Uuid::nil();
        let refusals = [
            Refusal::Overloaded { maybe_accepted: None },
            Refusal::Overloaded { maybe_accepted: Some(id) },
            Refusal::Unavailable { maybe_accepted: None },
            Refusal::Halted { maybe_accepted: None },
            Refusal::Paused { maybe_accepted: None },
            Refusal::KeyReused,
            Refusal::UnknownSku,
            Refusal::SaleNotStarted { starts_at: 1_795_255_200_000 },
            Refusal::SaleEnded { ends_at: 1_795_255_200_000 },
            Refusal::UserLimit { limit: 2, remaining: 1 },
            Refusal::SoldOut { available: 3, holds_pending: true },
        ];
        let mut bodies: Vec<_> = refusals.map(|r| problem_of(r, 0, 0).nested_body()).to_vec();
        bodies.push(unknown(Code::QueueUnavailable, id).nested_body());
        for why in [crate::ingress::NotSent::Full, crate::ingress::NotSent::Unavailable] {
            bodies.push(not_sent(why).nested_body());
        }
        insta::assert_json_snapshot!(bodies);
    }
}
