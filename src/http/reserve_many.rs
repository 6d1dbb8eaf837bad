//! `POST /v1/reservations/batch`: many requests of a shop's backend in one call, each answered as the call for one answers it.
//!
//! The parts are those of `reserve`; what is shared is the work around them: one call to Redis, one task, one hand-over to ingress, and one
//! signal for all who wait. No item decides about another: each has its own mistakes, its own refusal and its own outcome.
//!
//! Everything runs in a task of its own: a client that hangs up leaves no units provisional, and no item half-way.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::app::{App, SharedApp, status_unavailable};
use super::body::json_of_many;
use super::headers::{self, IDEMPOTENCY_KEY, PREFERENCE_APPLIED, Wait};
use super::json::{self, Fields, Json as Read};
use super::openapi::{ReserveManyBody, ReserveManyProblems};
use super::problem::{Code, Effect, Problem};
use super::reservations::decided_view;
use super::reserve::{accepted_view, read_fields, refused, ticket_of};
use super::views::{ReserveManyItemView, ReserveManyView, ToldReservationView};
use crate::admission::{Admitted, AdmittedMany, Replay, ReserveRequest};
use crate::ids::{IdempotencyKey, Metadata, Place, Ticket};
use crate::ingress::Delivery;
use crate::inventory::{Command, Reserve};
use crate::limits;
use crate::origin::Origin;
use crate::store::ReservationRow;
use crate::waiters::Group;
use crate::wire::Sent;

/// Ask for units of SKUs for many users at once.
///
/// For a shop's backend that gathers its own buyers. Each item is answered as the call for one would have answered it, in its place: one bad
/// item fails no other. Each item has its own `idempotency_key`; the header `Idempotency-Key` is refused here. With `Prefer: wait=N` the answer
/// comes when all are decided, or after N seconds; what is undecided then is 202.
#[utoipa::path(
    post, path = "/v1/reservations/batch", tag = "reservations", request_body = ReserveManyBody,
    params(
        ("Prefer" = Option<String>, Header, description = "`wait=N`: wait up to N seconds (at most 30) for the decisions"),
        ("X-Request-Id" = Option<String>, Header, description = "Name of this call in logs"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context: the call becomes a part of this trace"),
    ),
    responses(
        (status = 200, description = "What became of each", body = ReserveManyView, headers(
            ("Preference-Applied" = Option<String>, description = "`wait=N`"))),
        ReserveManyProblems,
    )
)]
pub(super) async fn reserve_many(
    State(app): State<SharedApp>,
    Extension(origin): Extension<Origin>,
    request_headers: HeaderMap,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, Problem> {
    headers::no_parameters(query.as_deref())?;
    if request_headers.contains_key(IDEMPOTENCY_KEY) {
        return Err(Problem::new(Code::InvalidIdempotencyKey, "here each item has an idempotency_key of its own"));
    }
    // Before the body is read: so many bodies fit into memory.
    let _place = app.calls_of_many.try_acquire().map_err(|_| {
        Problem::unavailable(Code::Overloaded, Effect::None, "too many calls of many reservations are being answered")
    })?;
    let body = json_of_many(&request_headers, body).await?;
    let asks = parse(body, app.clock.now().saturating_mul(1000))?;
    let wait = headers::prefer_wait(&request_headers);
    let (tell, told) = oneshot::channel();
    let task = Arc::clone(&app);
    app.publishes.spawn(async move {
        let sent = send(&task, asks, &origin, wait.is_some()).await;
        let _ = tell.send(sent); // the client may be gone; what became of the items is settled
    });
    // It panicked: nobody knows what was sent, and every keyed item may be sent again.
    let died = |_| Problem::unavailable(Code::QueueUnavailable, Effect::Unknown, "nobody knows what was queued");
    let SentMany { told, waiting } = told.await.map_err(died)?;
    let rows = match (wait, waiting) {
        (Some(wait), Some(waiting)) => Some(decisions(&app, &told, waiting, wait).await),
        _ => None,
    };
    let items = told.into_iter().map(|told| view(&app, told, rows.as_ref())).collect();
    let mut response = Json(ReserveManyView { items }).into_response();
    if let Some(wait) = wait {
        response.headers_mut().insert(PREFERENCE_APPLIED, wait.applied());
    }
    Ok(response)
}

/// What one item asks for.
struct Ask {
    at: usize,
    metadata: Option<Metadata>,
}

/// The items of a call: those that can be asked for, and what the others are told, by their places.
#[derive(Default)]
struct Asks {
    requests: Vec<ReserveRequest>,
    /// One for each request.
    asks: Vec<Ask>,
    malformed: Vec<(usize, Problem)>,
}

/// # Errors
/// What is wrong with the call as a whole.
fn parse(body: Read, received_at_us: i64) -> Result<Asks, Problem> {
    let mut fields = Fields::of(body);
    let items = fields.required_items("items", 1, limits::RESERVATIONS_PER_CALL_MAX);
    fields.finish()?;
    let mut asks = Asks::default();
    for (at, item) in items.expect("a missing field was refused").into_iter().enumerate() {
        match parse_item(item, at, received_at_us) {
            Ok((request, metadata)) => {
                asks.requests.push(request);
                asks.asks.push(Ask { at, metadata });
            }
            Err(problem) => asks.malformed.push((at, problem)),
        }
    }
    Ok(asks)
}

fn parse_item(item: Read, at: usize, received_at_us: i64) -> Result<(ReserveRequest, Option<Metadata>), Problem> {
    const MUST: &str = "must be 1 to 255 printable ASCII characters, quoted or bare";
    let mut fields = Fields::of(item);
    let key = fields.optional("idempotency_key", json::text(|text| IdempotencyKey::parse(text).ok_or(MUST)));
    let asked = read_fields(&mut fields, key, received_at_us);
    fields.finish_at(&format!("/items/{at}"))?;
    Ok(asked.expect("a missing field was refused"))
}

/// What became of one item before its decision.
enum Told {
    /// In the log, or known from an earlier try.
    Accepted(Accepted),
    Refused(Problem),
}

struct Accepted {
    id: Uuid,
    ticket: Option<Ticket>,
    /// What was asked for, if it was published now; the decision that a batch tells does not repeat it. Absent for a replay.
    asked: Option<Reserve>,
    /// Its row is in Postgres.
    is_decided: bool,
}

/// What became of all items, in their order.
struct SentMany {
    told: Vec<Told>,
    /// If somebody waits.
    waiting: Option<Group>,
}

/// Admits and publishes all items. Those that Postgres or the log's end must be asked about follow later, and hold nobody up.
async fn send(app: &App, asks: Asks, origin: &Origin, waits: bool) -> SentMany {
    let Asks { requests, asks, malformed } = asks;
    let AdmittedMany { now, later } = app.admission.admit_many(&requests).await;
    let later = later.into_iter().map(|(n, admitted)| async move { (n, admitted.await) });
    let wave = Wave { app, origin, requests: &requests, asks: &asks, waiting: waits.then(|| app.waiters.group()) };
    let (first, second) = tokio::join!(wave.publish(now), async { wave.publish(join_all(later).await).await });
    let refused = malformed.into_iter().map(|(at, problem)| (at, Told::Refused(problem)));
    let mut told: Vec<_> = first.into_iter().chain(second).chain(refused).collect();
    told.sort_unstable_by_key(|(at, _)| *at);
    SentMany { told: told.into_iter().map(|(_, told)| told).collect(), waiting: wave.waiting }
}

/// What all items of a call share on their way into the log.
struct Wave<'a> {
    app: &'a App,
    origin: &'a Origin,
    requests: &'a [ReserveRequest],
    asks: &'a [Ask],
    waiting: Option<Group>,
}

impl Wave<'_> {
    /// Publishes what may be published, together, and says what became of each, by its place.
    async fn publish(&self, admitted: Vec<(usize, Admitted)>) -> Vec<(usize, Told)> {
        let Self { app, origin, requests, asks, waiting } = self;
        let mut told = Vec::with_capacity(admitted.len());
        let (mut commands, mut published, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        for (n, admitted) in admitted {
            let (request, Ask { at, metadata }) = (&requests[n], &asks[n]);
            match admitted {
                Admitted::Publish(publish) => {
                    let ReserveRequest { user, sku, quantity, .. } = request.clone();
                    let asked = Reserve { id: publish.id, user, sku, quantity, metadata: metadata.clone() };
                    let sent = Sent {
                        received_at_us: publish.received_at_us,
                        request_id: origin.request_id.to_string(),
                        command: Command::Reserve(asked.clone()),
                    };
                    commands.push((publish.partition, sent));
                    ids.push(publish.id);
                    published.push((*at, publish, asked));
                }
                Admitted::Replay(Replay { id, ticket, is_decided }) => {
                    ids.push(id);
                    told.push((*at, Told::Accepted(Accepted { id, ticket, asked: None, is_decided })));
                }
                Admitted::Refused(refusal) => told.push((*at, Told::Refused(refused(app, refusal)))),
            }
        }
        // Registered before the publish, so that no wake-up can fall between.
        if let Some(waiting) = waiting {
            waiting.add(&ids);
        }
        let deliveries = app.ingress.submit_many(commands, origin.trace).await;
        let mut observed = None;
        for ((at, publish, asked), delivery) in published.into_iter().zip(deliveries) {
            if let Delivery::Delivered(ticket) = delivery {
                // Once for a record, not for each of its commands.
                let record = Some((ticket.partition, ticket.place.offset));
                if observed != record {
                    app.status.observe_delivered(ticket);
                    observed = record;
                }
            }
            let (id, maybe_accepted) = (publish.id, publish.maybe_accepted);
            publish.settle(&delivery);
            let became = match ticket_of(app, delivery, id, maybe_accepted) {
                Ok(ticket) => {
                    Told::Accepted(Accepted { id, ticket: Some(ticket), asked: Some(asked), is_decided: false })
                }
                Err(problem) => Told::Refused(problem),
            };
            told.push((at, became));
        }
        told
    }
}

/// The decisions that come in time. Most are told by their batches; what has changed since, or is told of another record, is read. Replays may
/// have theirs for long: they are read at once.
async fn decisions(app: &App, told: &[Told], waiting: Group, wait: Wait) -> HashMap<Uuid, ReservationRow> {
    let deadline = Instant::now() + wait.duration();
    let accepted = || {
        told.iter().filter_map(|told| match told {
            Told::Accepted(accepted) => Some(accepted),
            Told::Refused(_) => None,
        })
    };
    let mut open: HashSet<Uuid> = accepted().map(|accepted| accepted.id).collect();
    // One id stands at two places if it was asked for twice: its row is that of the first.
    let published: HashMap<(Uuid, Place), (&Reserve, Ticket)> = accepted()
        .filter_map(|Accepted { id, ticket, asked, .. }| Some(((*id, (*ticket)?.place), (asked.as_ref()?, (*ticket)?))))
        .collect();
    let mut to_read: Vec<Uuid> = accepted().filter(|one| one.asked.is_none()).map(|one| one.id).collect();
    let mut rows = HashMap::with_capacity(open.len());
    loop {
        if !to_read.is_empty() {
            match app.status.read_many(&to_read).await {
                Ok(read) => rows.extend(read.into_iter().filter(|(id, _)| open.remove(id))),
                // It costs a wake-up; the sweep brings the next one. Nobody is woken for what was decided before.
                Err(_) => {
                    let decided: HashSet<Uuid> = accepted().filter(|one| one.is_decided).map(|one| one.id).collect();
                    open.retain(|id| !decided.contains(id));
                }
            }
            to_read.clear();
        }
        if open.is_empty() {
            return rows;
        }
        let woken = tokio::time::timeout_at(deadline, waiting.woken());
        // The time is over, or the process stops.
        let Some(Ok(woken)) = app.stop_waiting.run_until_cancelled(woken).await else { return rows };
        for (id, first) in woken {
            match first.and_then(|first| Some((first, published.get(&(id, first.place))?))) {
                Some((first, (asked, ticket))) if open.remove(&id) => {
                    rows.insert(id, first.row_of((*asked).clone(), *ticket));
                }
                _ => to_read.extend(open.contains(&id).then_some(id)),
            }
        }
    }
}

/// `rows`: the decisions that came in time, if they were waited for.
fn view(app: &App, told: Told, rows: Option<&HashMap<Uuid, ReservationRow>>) -> ReserveManyItemView {
    let problem_view = |problem: Problem| ReserveManyItemView {
        http_status: problem.code().status().as_u16(),
        replayed: None,
        retry_after: problem.retry_after_seconds(),
        reservation: None,
        problem: Some(problem),
    };
    let Accepted { id, ticket, asked, is_decided } = match told {
        Told::Refused(problem) => return problem_view(problem),
        Told::Accepted(accepted) => accepted,
    };
    let (http_status, reservation) = match rows.and_then(|rows| rows.get(&id)) {
        Some(row) => (200, ToldReservationView::Decided(Box::new(decided_view(app, row)))),
        None if is_decided && rows.is_some() => return problem_view(status_unavailable()),
        None => (202, ToldReservationView::Accepted(accepted_view(app, id, ticket))),
    };
    let replayed = asked.is_none().then_some(true);
    ReserveManyItemView { http_status, replayed, retry_after: None, reservation: Some(reservation), problem: None }
}
