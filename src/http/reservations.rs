//! `GET /v1/reservations/{id}`: where a reservation stands, now or as soon as it changes; and `?ids=`: where many stand.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;
use uuid::Uuid;

use super::app::{App, SharedApp, status_unavailable};
use super::headers::{self, IfNoneMatch, PREFERENCE_APPLIED, Wait};
use super::openapi::{ReservationProblems, ReservationsProblems};
use super::problem::{Code, Problem};
use super::query::Parameters;
use super::views::{ReservationListView, ReservationView};
use crate::ids::Ticket;
use crate::limits;
use crate::status::Found;
use crate::store::ReservationRow;

/// Follow a reservation.
///
/// 200 in every state. With `Prefer: wait=N` the answer waits until the reservation is decided (with `If-None-Match`: until its version is
/// another one), at most N seconds.
#[utoipa::path(
    get, path = "/v1/reservations/{id}", tag = "reservations",
    params(
        ("id" = Uuid, Path, description = "The reservation"),
        ("ticket" = Option<String>, Query, description = "As the 202 gave it: gives the queue position, and an answer when nothing else is known"),
        ("Prefer" = Option<String>, Header, description = "`wait=N`, at most 30"),
        ("If-None-Match" = Option<String>, Header, description = "Versions that the client has"),
    ),
    responses(
        (status = 200, description = "The reservation", body = ReservationView, headers(
            ("ETag" = Option<String>, description = "The version, on decided states"),
            ("Preference-Applied" = Option<String>, description = "`wait=N`"),
            ("Retry-After" = Option<u64>, description = "Seconds, while QUEUED"))),
        (status = 304, description = "The client has this version"),
        ReservationProblems,
    )
)]
pub(super) async fn get_reservation(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    request_headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = path.ok().and_then(|Path(text)| parse_id(&text)).ok_or_else(unknown_reservation)?;
    let ticket = headers::ticket_of(query.as_deref())?;
    let has = IfNoneMatch::of(&request_headers);
    let wait = headers::prefer_wait(&request_headers);
    let mut response = match wait {
        Some(wait) => read_until_news(&app, id, ticket, &has, wait).await?,
        None => answer_of(&app, id, read(&app, id, ticket).await?, &has),
    };
    if let Some(wait) = wait {
        response.headers_mut().insert(PREFERENCE_APPLIED, wait.applied());
    }
    Ok(response)
}

/// Read many reservations at once.
///
/// Each is as the call for one of them shows it, in the order of `ids`, each once. An id that no reservation has is left out. One that is not
/// decided yet is waited for, up to 2 s; if its partition stands still the answer is 503, and the call for one, with its ticket, tells more.
#[utoipa::path(
    get, path = "/v1/reservations", tag = "reservations",
    params(("ids" = String, Query, description = "1 to 250 ids, separated by commas")),
    responses(
        (status = 200, description = "Those that there are", body = ReservationListView),
        ReservationsProblems,
    )
)]
pub(super) async fn get_reservations(
    State(app): State<SharedApp>,
    RawQuery(query): RawQuery,
) -> Result<Json<ReservationListView>, Problem> {
    let ids = Parameters::of(query.as_deref(), &["ids"])?.required("ids", parse_ids)?;
    let rows = app.status.find_many(&ids).await.map_err(|_| status_unavailable())?;
    let items = ids.iter().filter_map(|id| Some(decided_view(&app, rows.get(id)?))).collect();
    Ok(Json(ReservationListView { items, next_cursor: None }))
}

/// The ids of a list, each once.
fn parse_ids(text: &str) -> Result<Vec<Uuid>, String> {
    let must =
        || format!("must be 1 to {} ids of reservations, separated by commas", limits::RESERVATIONS_PER_CALL_MAX);
    let mut ids = Vec::new();
    for word in text.split(',') {
        if ids.len() == limits::RESERVATIONS_PER_CALL_MAX {
            return Err(must());
        }
        ids.push(parse_id(word).ok_or_else(must)?);
    }
    let mut seen = HashSet::new();
    ids.retain(|id| seen.insert(*id));
    Ok(ids)
}

/// Only the hyphenated form that we give out: every reservation has one URL.
pub(super) fn parse_id(text: &str) -> Option<Uuid> {
    Uuid::try_parse(text).ok().filter(|_| text.len() == 36)
}

/// 404 `UNKNOWN_RESERVATION`.
pub(super) fn unknown_reservation() -> Problem {
    Problem::new(Code::UnknownReservation, "no reservation has this id")
}

/// What is to be told, before it is told whether the client has it already.
pub(super) enum Reading {
    Decided(ReservationRow),
    Queued(ReservationView),
}

/// Where the reservation stands.
///
/// # Errors
/// 404 `UNKNOWN_RESERVATION`, 503 `STATUS_UNAVAILABLE`.
pub(super) async fn read(app: &App, id: Uuid, ticket: Option<Ticket>) -> Result<Reading, Problem> {
    match app.status.find(id, ticket).await {
        Found::Decided(row) => Ok(Reading::Decided(*row)),
        Found::Queued(queued) => {
            Ok(Reading::Queued(ReservationView::queued(id, queued.ticket, queued.queue_position, queued.eta)))
        }
        Found::Absent => Err(unknown_reservation()),
        Found::Unavailable => Err(status_unavailable()),
    }
}

/// Reads until there is something that the client does not have, at most as long as it wants to wait; then tells what was last read.
async fn read_until_news(
    app: &Arc<App>,
    id: Uuid,
    ticket: Option<Ticket>,
    has: &IfNoneMatch,
    wait: Wait,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + wait.duration();
    // Registered before the first read, so that no wake-up can fall between.
    let mut waiter = app.waiters.register(id);
    loop {
        let (reading, look_again_at) = match read(app, id, ticket).await {
            Ok(reading) => (Ok(reading), deadline),
            // Nobody may be able to wake us while Postgres is away.
            Err(problem) if problem.code() == Code::StatusUnavailable => {
                (Err(problem), deadline.min(Instant::now() + limits::WAITER_SWEEP_EVERY))
            }
            Err(problem) => return Err(problem),
        };
        let is_news = matches!(&reading, Ok(Reading::Decided(row)) if !has.matches(row.version));
        let is_over = || Instant::now() >= deadline || app.stop_waiting.is_cancelled();
        if is_news || (app.woken(&mut waiter, look_again_at).await.is_none() && is_over()) {
            return reading.map(|reading| answer_of(app, id, reading, has));
        }
    }
}

fn answer_of(app: &App, id: Uuid, reading: Reading, has: &IfNoneMatch) -> Response {
    match reading {
        Reading::Decided(row) => {
            debug_assert_eq!(row.id, id, "the row that was asked for");
            let etag = [(header::ETAG, headers::etag(row.version))];
            if has.matches(row.version) {
                return (StatusCode::NOT_MODIFIED, etag).into_response();
            }
            (etag, Json(decided_view(app, &row))).into_response()
        }
        Reading::Queued(view) => ([(header::RETRY_AFTER, HeaderValue::from(1_u64))], Json(view)).into_response(),
    }
}

/// A decided reservation as it is now.
pub(super) fn decided_view(app: &App, row: &ReservationRow) -> ReservationView {
    ReservationView::decided(row, app.clock.now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_has_one_url() {
        let id = "0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000";
        assert!(parse_id(id).is_some());
        for bad in [
            "",
            "x",
            "0199aaaabbbb7ccc8dddeeeeffff0000",
            "{0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000}",
            "urn:uuid:0199aaaa-bbbb-7ccc-8ddd-eeeeffff0000",
        ] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_of_ids_are_bounded_and_name_each_once() {
        let id = |n: usize| Uuid::from_u128(n as u128).to_string();
        let many = |count: usize| (0..count).map(id).collect::<Vec<_>>().join(",");
        assert_eq!(parse_ids(&format!("{},{},{}", id(2), id(1), id(2))), Ok([2, 1].map(Uuid::from_u128).to_vec()));
        assert_eq!(parse_ids(&many(250)).map(|ids| ids.len()), Ok(250));
        for bad in ["", ",", "x", &many(251), &format!("{},", id(1)), &format!("{} ,{}", id(1), id(2))] {
            assert!(parse_ids(bad).is_err(), "{bad}");
        }
    }
}
