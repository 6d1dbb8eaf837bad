//! `GET /v1/reservations/{id}/events`: the reservation as a stream, for clients that would rather be told than ask.
//!
//! First the present state, then each one with another version, each read from Postgres after a wake-up; a wake-up that is lost costs
//! [`limits::WAITER_SWEEP_EVERY`]. The stream ends after a state that does not change any more, with EXPIRED too, and when the process
//! stops: the client connects again and begins with the state of then, so it misses nothing and needs no memory of ours.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
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
use crate::waiters::Waiter;

/// Follow a reservation as a stream.
///
/// Server-sent events: `event: status`, `id:` the version, `data:` the reservation. First the present state, then each change. Ends after
/// CONFIRMED, CANCELLED, REJECTED and EXPIRED.
#[utoipa::path(
    get, path = "/v1/reservations/{id}/events", tag = "reservations",
    params(
        ("id" = Uuid, Path, description = "The reservation"),
        ("ticket" = Option<String>, Query, description = "As the 202 gave it: follows a reservation that is not decided yet"),
    ),
    responses((status = 200, description = "The stream", body = ReservationView, content_type = "text/event-stream"), EventsProblems)
)]
pub(super) async fn get_events(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
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
    let following = Following { app, id, ticket, waiter, told: None, next: Some(first), _place: place };
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
    /// The version that was told last, and whether it was the last one to tell.
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
                Reading::Decided(row) => (decided_view(&self.app, &row), row.status != Status::Reserved),
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
            if !self.app.woken(&mut self.waiter, look_again_at).await && self.app.stop_waiting.is_cancelled() {
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

fn event_of(view: &ReservationView) -> Event {
    let event = Event::default().event("status").id(view.version.to_string());
    event.json_data(view).expect("plain values always become JSON")
}
