//! `POST /v1/reservations/{id}/confirm`, `/cancel`, `/extend`: parse, ask the SKU's writer through the log, and answer with the reservation
//! as it is then, or with 202 if that takes too long.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::app::{App, SharedApp, location, status_unavailable, unreadable};
use super::body::{JsonBody, OptionalJsonBody};
use super::frame::{self, Fate};
use super::headers;
use super::json::{self, Fields};
use super::openapi::{
    CancelBody, CancelProblems, ConfirmBody, ConfirmProblems, ExtendBody, ExtendProblems, ReservationCommandProblems,
    ReservationPath, TicketQuery,
};
use super::problem::{Code, Effect, Problem};
use super::refusals::{not_asked, not_reserved_yet, refused};
use super::reservations::{decided_view, parse_id, unknown_reservation};
use super::reserve::unknown;
use super::views::{AcceptedCommandView, ReservationCommandView, ReservationView};
use crate::commands::AskError;
use crate::commands::reservations::{Change, ChangeError, ChangeReservation, ChangeStanding, Changed};
use crate::ids::{IdempotencyKey, Note, PaymentRef, Ticket};
use crate::limits;
use crate::origin::Origin;

/// What all three have in common, besides their body.
pub(super) struct Call {
    id: Uuid,
    ticket: Option<Ticket>,
    key: Option<IdempotencyKey>,
    origin: Origin,
    fate: Fate,
}

impl FromRequestParts<SharedApp> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, Problem> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, app).await;
        let id = path.ok().and_then(|Path(text)| parse_id(&text)).ok_or_else(unknown_reservation)?;
        let ticket = headers::ticket_of(parts.uri.query())?;
        let key = headers::idempotency_key(&parts.headers)?;
        let (origin, fate) = frame::of_request(parts);
        Ok(Self { id, ticket, key, origin, fate })
    }
}

/// Confirm a reservation: it is paid for.
///
/// The same payment again gets the same answer. After the end of the hold the SKU's policy decides.
#[utoipa::path(
    post, path = "/v1/reservations/{id}/confirm", tag = "reservations", request_body = ConfirmBody,
    params(
        ReservationPath, TicketQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Serves for this payment alone: with another one 422. The payment names the call, with a key or without"),
    ),
    responses(
        (status = 200, description = "The reservation, CONFIRMED", body = ReservationView, headers(("ETag" = String, description = "The version"))),
        (status = 202, description = "In the log, not decided within 2 s", body = AcceptedCommandView, headers(("Location" = String, description = "Where to follow it"))),
        ConfirmProblems,
    )
)]
pub(super) async fn confirm(
    State(app): State<SharedApp>,
    call: Call,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::of(body);
    let payment_ref = fields.required("payment_ref", json::text(PaymentRef::parse));
    fields.finish()?;
    call.make(&app, Change::Confirm(payment_ref.expect("a missing field was refused"))).await
}

/// Cancel a reservation: its units go back.
///
/// The body may be absent. Of a reservation that is QUEUED it takes effect after its decision. Cancelling again gets the same answer.
#[utoipa::path(
    post, path = "/v1/reservations/{id}/cancel", tag = "reservations", request_body = Option<CancelBody>,
    params(
        ReservationPath, TicketQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Name of this call; without one the reservation names it"),
    ),
    responses(
        (status = 200, description = "The reservation, CANCELLED", body = ReservationView, headers(("ETag" = String, description = "The version"))),
        (status = 202, description = "In the log, not decided within 2 s", body = AcceptedCommandView, headers(("Location" = String, description = "Where to follow it"))),
        CancelProblems,
    )
)]
pub(super) async fn cancel(
    State(app): State<SharedApp>,
    call: Call,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::of(body);
    let note = fields.optional("note", json::text(Note::parse));
    fields.finish()?;
    call.make(&app, Change::Cancel(note)).await
}

/// Extend a hold: it ends so many seconds later.
///
/// Bounded by the SKU in number and sum. Without a key each call is a new extension.
#[utoipa::path(
    post, path = "/v1/reservations/{id}/extend", tag = "reservations", request_body = ExtendBody,
    params(
        ReservationPath, TicketQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Name of this extension: it is made once"),
    ),
    responses(
        (status = 200, description = "The reservation, RESERVED, with its later end", body = ReservationView, headers(("ETag" = String, description = "The version"))),
        (status = 202, description = "In the log, not decided within 2 s", body = AcceptedCommandView, headers(("Location" = String, description = "Where to follow it"))),
        ExtendProblems,
    )
)]
pub(super) async fn extend(
    State(app): State<SharedApp>,
    call: Call,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let mut fields = Fields::of(body);
    let seconds = fields.required("seconds", json::integer(1, i64::from(limits::HOLD_SECONDS_MAX)));
    fields.finish()?;
    let seconds = seconds.expect("a missing field was refused");
    call.make(&app, Change::Extend(u32::try_from(seconds).expect("within bounds of u32"))).await
}

impl Call {
    async fn make(self, app: &SharedApp, change: Change) -> Result<Response, Problem> {
        let Self { id, ticket, key, origin, fate } = self;
        // Whatever cuts this off, its `status_url` tells what became of the reservation.
        fate.maybe_sent(id);
        let asked = ChangeReservation { id, ticket, change, key, origin };
        let reservations = app.reservations.clone();
        // In a task of its own: a client who hangs up does not take the command back.
        match app.publishes.spawn(async move { reservations.change(asked).await }).await {
            Ok(Ok(Changed::Done(row))) => {
                Ok(([(header::ETAG, headers::etag(row.version))], Json(decided_view(app, &row))).into_response())
            }
            Ok(Ok(Changed::Refused(refusal))) => Err(refused(&refusal)),
            Ok(Ok(Changed::Undecided { id: command_id, ticket })) => {
                let status_url = format!("/v1/reservations/{id}/commands/{command_id}?ticket={ticket}");
                Ok(accepted(command_id, status_url))
            }
            Ok(Err(error)) => Err(problem_of(error, id)),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

/// 202 for a command that is in the log and has no decision yet.
pub(super) fn accepted(command_id: Uuid, status_url: String) -> Response {
    let headers = [(header::LOCATION, location(&status_url)), (header::RETRY_AFTER, HeaderValue::from(1_u64))];
    let body = AcceptedCommandView { command_id, status: "QUEUED", status_url };
    (StatusCode::ACCEPTED, headers, Json(body)).into_response()
}

fn problem_of(error: ChangeError, id: Uuid) -> Problem {
    match error {
        ChangeError::UnknownReservation => unknown_reservation(),
        ChangeError::SkuUnknown => not_reserved_yet(),
        ChangeError::Busy => Problem::unavailable(
            Code::Overloaded,
            Effect::None,
            "too many changes of undecided reservations are being asked for",
        ),
        ChangeError::Unreadable => status_unavailable().with("outcome", "none"),
        ChangeError::Unshown => unknown(Code::StatusUnavailable, id),
        ChangeError::Ask(AskError::Unknown) => unknown(Code::QueueUnavailable, id),
        ChangeError::Ask(error @ AskError::NotSent(_)) => not_asked(error),
    }
}

/// Follow a change that was answered 202.
#[utoipa::path(
    get, path = "/v1/reservations/{id}/commands/{command_id}", tag = "reservations",
    params(
        ("id" = Uuid, Path, description = "The reservation"),
        ("command_id" = Uuid, Path, description = "The command"),
        ("ticket" = String, Query, description = "As the 202 gave it"),
    ),
    responses((status = 200, description = "Where it stands", body = ReservationCommandView), ReservationCommandProblems)
)]
pub(super) async fn get_command(
    State(app): State<SharedApp>,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<ReservationCommandView>, Problem> {
    let Ok(Path((id, command_id))) = path else { return Err(unknown_command()) };
    let id = parse_id(&id).ok_or_else(unknown_reservation)?;
    let command_id = parse_id(&command_id).ok_or_else(unknown_command)?;
    let ticket = headers::required_ticket_of(query.as_deref())?;
    let standing = app.reservations.standing(id, command_id, ticket).await.map_err(|e| unreadable(&e))?;
    view_of(&app, command_id, standing).map(Json).ok_or_else(unknown_command)
}

/// 404 `UNKNOWN_COMMAND`.
pub(super) fn unknown_command() -> Problem {
    Problem::new(Code::UnknownCommand, "no command has this id and ticket")
}

fn view_of(app: &App, command_id: Uuid, standing: ChangeStanding) -> Option<ReservationCommandView> {
    let queued = |kind: Option<&str>| ReservationCommandView {
        command_id,
        kind: kind.map(str::to_owned),
        status: "QUEUED",
        reservation: None,
        problem: None,
    };
    match standing {
        ChangeStanding::Unknown => None,
        ChangeStanding::Queued(kind) => Some(queued(kind)),
        ChangeStanding::Done(kind, row) => Some(ReservationCommandView {
            status: "DONE",
            reservation: Some(decided_view(app, &row)),
            ..queued(Some(&kind))
        }),
        ChangeStanding::Refused(kind, refusal) => Some(ReservationCommandView {
            status: "REJECTED",
            problem: Some(refused(&refusal).nested_body()),
            ..queued(Some(&kind).filter(|kind| !kind.is_empty()).map(String::as_str))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::NotSent;

    #[test]
    fn every_failure_of_a_change_has_its_problem() {
        let errors = [
            ChangeError::UnknownReservation,
            ChangeError::SkuUnknown,
            ChangeError::Busy,
            ChangeError::Unreadable,
            ChangeError::Unshown,
            ChangeError::Ask(AskError::NotSent(NotSent::Full)),
            ChangeError::Ask(AskError::Unknown),
        ];
        insta::assert_json_snapshot!(errors.map(|error| problem_of(error, Uuid::nil()).nested_body()));
    }
}
