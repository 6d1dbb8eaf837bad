//! `GET /v1/reservations/{id}/events`: the reservation as a stream, for clients that would rather be told than ask.
//!
//! First the present state, then each one with another version, each read from Postgres after a wake-up; a wake-up that is lost costs
//! [`limits::WAITER_SWEEP_EVERY`]. The stream ends after a state that does not change any more, with EXPIRED too, and when the process
//! stops: the client connects again and begins with the state of then, so it misses nothing and needs no memory of ours.
//!
//! A client that comes back says by `Last-Event-ID` which version it has seen, and is not told that one again. If that was the last, the
//! answer is 204: this ends an `EventSource` (HTML, "Server-sent events"), which would otherwise come back after every end for ever.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use uuid::Uuid;

use super::app::SharedApp;
use super::headers;
use super::openapi::EventsProblems;
use super::problem::{Code, Effect, Problem};
use super::reservations::{Reading, decided_view, parse_id, read, unknown_reservation};
use super::views::ReservationView;
use crate::ids::Ticket;
use crate::inventory::Status;
use crate::limits;
use crate::store::ReservationRow;
use crate::waiters::Waiter;

/// Follow a reservation as a stream.
///
/// Server-sent events: `event: status`, `id:` the version, `data:` the reservation. First the present state, then each change. Ends after
/// CONFIRMED, CANCELLED, REJECTED and EXPIRED. With `Last-Event-ID` it begins after that version, if it still is the present one.
#[utoipa::path(
    get, path = "/v1/reservations/{id}/events", tag = "reservations",
    params(
        ("id" = Uuid, Path, description = "The reservation"),
        ("ticket" = Option<String>, Query, description = "As the 202 gave it: follows a reservation that is not decided yet"),
        ("Last-Event-ID" = Option<i32>, Header, description = "The version that the client has seen last; ignored if it can't be one"),
    ),
    responses(
        (status = 200, description = "The stream", body = ReservationView, content_type = "text/event-stream"),
        (status = 204, description = "The client has seen the last state: an EventSource does not connect again"),
        EventsProblems,
    )
)]
pub(super) async fn get_events(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    request_headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = path.ok().and_then(|Path(text)| parse_id(&text)).ok_or_else(unknown_reservation)?;
    let ticket = headers::ticket_of(query.as_deref())?;
    let place = Arc::clone(&app.event_streams).try_acquire_owned().map_err(|_| {
        Problem::unavailable(Code::Overloaded, Effect::None, "too many reservations are being followed as streams")
    })?;
    // Registered before the first read, so that no wake-up can fall between.
    let waiter = app.waiters.register(id);
    // A reservation that does not exist is told as a problem, not as a stream.
    let first = read(&app, id, ticket).await?;
    let seen = headers::last_version_seen(&request_headers);
    if seen.is_some_and(|seen| matches!(&first, Reading::Decided(row) if row.version == seen && is_last(row))) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let told = seen.map(|version| (version, false));
    let following = Following { app, id, ticket, waiter, told, next: Some(first), _place: place };
    let events = stream::unfold(following, |mut following| async move {
        let event = following.next_event().await?;
        Some((Ok::<_, Infallible>(event), following))
    });
    let alive = KeepAlive::new().interval(limits::EVENTS_HEARTBEAT_EVERY);
    Ok(Sse::new(events).keep_alive(alive).into_response())
}

/// One open stream.
struct Following {
    app: SharedApp,
    id: Uuid,
    ticket: Option<Ticket>,
    waiter: Waiter,
    /// The version that was told last, here or to the client before it came back, and whether it was the last one to tell.
    told: Option<(i32, bool)>,
    /// What was read before the stream began.
    next: Option<Reading>,
    _place: OwnedSemaphorePermit,
}

impl Following {
    /// The next state that was not told; `None` = the stream is over.
    async fn next_event(&mut self) -> Option<Event> {
        if self.told.is_some_and(|(_, is_last)| is_last) {
            return None;
        }
        loop {
            let reading = match self.next.take() {
                Some(first) => first,
                None => self.read_when_woken().await?,
            };
            let (view, is_last) = match reading {
                Reading::Queued(view) => (view, false),
                Reading::Decided(row) => (decided_view(&self.app, &row), is_last(&row)),
            };
            if self.told.is_none_or(|(version, _)| version != view.version) {
                self.told = Some((view.version, is_last));
                return Some(event_of(&view));
            }
        }
    }

    /// Reads again after a wake-up; `None` = the process stops, or what was followed turned out not to exist.
    async fn read_when_woken(&mut self) -> Option<Reading> {
        loop {
            let look_again_at = Instant::now() + limits::EVENTS_HEARTBEAT_EVERY;
            if self.app.woken(&mut self.waiter, look_again_at).await.is_none() && self.app.stop_waiting.is_cancelled() {
                return None;
            }
            match read(&self.app, self.id, self.ticket).await {
                Ok(reading) => return Some(reading),
                // It passes; the sweep wakes us again.
                Err(problem) if problem.code() == Code::StatusUnavailable => {}
                Err(_) => return None,
            }
        }
    }
}

/// Whether a stream ends after this state.
fn is_last(row: &ReservationRow) -> bool {
    row.status != Status::Reserved
}

fn event_of(view: &ReservationView) -> Event {
    let event = Event::default().event("status").id(view.version.to_string());
    event.json_data(view).expect("plain values always become JSON")
}
