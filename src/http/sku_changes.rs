//! What operators ask of a SKU, on the admin listener: settings, stock, pause. Each is a command through the log; the answer waits for its
//! decision up to 5 s.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use super::admin_skus::view_of;
use super::app::{SharedApp, location, unreadable};
use super::body::{JsonBody, MergePatchBody, OptionalJsonBody};
use super::frame;
use super::headers;
use super::json::{self, FieldError};
use super::openapi::{
    AdjustProblems, AdjustmentBody, ChangeKey, CommandProblems, NoteBody, PatchSkuBody, PatchSkuProblems,
    PauseProblems, PutSkuBody, PutSkuProblems, SkuPath,
};
use super::problem::{Code, Effect, Problem};
use super::refusals::{not_asked, refused};
use super::reservation_commands::{accepted, unknown_command};
use super::reservations::parse_id;
use super::sku_bodies::{out_of_bounds, parse_adjustment, parse_note, parse_patch, parse_put};
use super::skus::{sku_of, unknown_sku};
use super::views::{AcceptedCommandView, AdminSkuView, CommandView, StockView};
use crate::admin::{ChangeSku, ChangeSkuError, SkuChange, SkuChanged, SkuCommandStanding, Stock};
use crate::ids::{IdempotencyKey, SkuId};
use crate::origin::Origin;

/// What all changes have in common, besides their body.
pub(super) struct Call {
    sku: SkuId,
    key: Option<IdempotencyKey>,
    origin: Origin,
}

impl FromRequestParts<SharedApp> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, Problem> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, app).await;
        let sku = sku_of(path)?;
        headers::no_parameters(parts.uri.query())?;
        let key = headers::idempotency_key(&parts.headers)?;
        let (origin, _) = frame::of_request(parts);
        Ok(Self { sku, key, origin })
    }
}

/// Create a SKU, or replace all its settings.
///
/// What is left out gets its default; stock is only compared. The change takes effect in log order; the answer waits for it up to 5 s.
#[utoipa::path(
    put, path = "/v1/admin/skus/{sku}", tag = "skus", request_body = PutSkuBody,
    params(SkuPath, ChangeKey),
    responses(
        (status = 201, description = "Created", body = AdminSkuView),
        (status = 200, description = "Changed", body = AdminSkuView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        PutSkuProblems,
    )
)]
pub(super) async fn put_sku(
    State(app): State<SharedApp>,
    call: Call,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (on_hand, settings) = parse_put(body)?;
    call.make(&app, SkuChange::Put { on_hand, settings }).await
}

/// Change some settings of a SKU.
///
/// A JSON Merge Patch: what is left out stays, `null` brings the default back. Stock is only compared.
#[utoipa::path(
    patch, path = "/v1/admin/skus/{sku}", tag = "skus",
    request_body(content(
        (PatchSkuBody = "application/merge-patch+json"),
        (PatchSkuBody = "application/json"),
    )),
    params(SkuPath, ChangeKey),
    responses(
        (status = 200, description = "Changed", body = AdminSkuView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        PatchSkuProblems,
    )
)]
pub(super) async fn patch_sku(
    State(app): State<SharedApp>,
    call: Call,
    MergePatchBody(body): MergePatchBody,
) -> Result<Response, Problem> {
    let patch = parse_patch(body)?;
    call.make(&app, SkuChange::Patch(patch)).await
}

/// Change the stock of a SKU.
///
/// By a `delta`, or to what was counted (`on_hand`) if the stock is what the operator believes (`compare_on_hand`). The same `reference`
/// again gets the same answer and has one effect; a refused one may be tried again.
#[utoipa::path(
    post, path = "/v1/admin/skus/{sku}/adjustments", tag = "skus", request_body = AdjustmentBody,
    params(
        SkuPath,
        ("Idempotency-Key" = Option<String>, Header, description = "Name of this adjustment, if it has no `reference`; else it serves for this reference alone: with another one, or none, 422"),
    ),
    responses(
        (status = 200, description = "The stock right after it", body = StockView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        AdjustProblems,
    )
)]
pub(super) async fn adjust_sku(
    State(app): State<SharedApp>,
    call: Call,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let (change, note, reference) = parse_adjustment(body)?;
    call.make(&app, SkuChange::Adjust { change, note, reference }).await
}

/// Pause the sale of a SKU.
///
/// Requests behind the pause in the log are rejected, those before it decided as usual. Confirm, cancel and extend go on.
#[utoipa::path(
    post, path = "/v1/admin/skus/{sku}/pause", tag = "skus", request_body = Option<NoteBody>,
    params(SkuPath, ChangeKey),
    responses(
        (status = 200, description = "Paused", body = AdminSkuView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        PauseProblems,
    )
)]
pub(super) async fn pause_sku(
    State(app): State<SharedApp>,
    call: Call,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, Problem> {
    let note = parse_note(body)?;
    call.make(&app, SkuChange::Pause { pauses: true, note }).await
}

/// Resume the sale of a SKU.
#[utoipa::path(
    post, path = "/v1/admin/skus/{sku}/resume", tag = "skus", request_body = Option<NoteBody>,
    params(SkuPath, ChangeKey),
    responses(
        (status = 200, description = "Resumed", body = AdminSkuView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        PauseProblems,
    )
)]
pub(super) async fn resume_sku(
    State(app): State<SharedApp>,
    call: Call,
    OptionalJsonBody(body): OptionalJsonBody,
) -> Result<Response, Problem> {
    let note = parse_note(body)?;
    call.make(&app, SkuChange::Pause { pauses: false, note }).await
}

impl Call {
    async fn make(self, app: &SharedApp, change: SkuChange) -> Result<Response, Problem> {
        let Self { sku, key, origin } = self;
        let asked = ChangeSku { sku: sku.clone(), change, key, origin };
        let admin = app.admin.clone();
        // In a task of its own: an operator who hangs up does not take the command back.
        match app.publishes.spawn(async move { admin.change(asked).await }).await {
            Ok(Ok(changed)) => answer(app, &sku, changed).await,
            Ok(Err(error)) => Err(problem_of(&error)),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

async fn answer(app: &SharedApp, sku: &SkuId, changed: SkuChanged) -> Result<Response, Problem> {
    match changed {
        SkuChanged::Created(entry) => {
            let place = [(header::LOCATION, location(&format!("/v1/admin/skus/{sku}")))];
            Ok((StatusCode::CREATED, place, Json(view_of(app, &entry).await)).into_response())
        }
        SkuChanged::Changed(entry) => Ok(Json(view_of(app, &entry).await).into_response()),
        SkuChanged::Adjusted(stock) => Ok(Json(stock_view(sku, stock)).into_response()),
        SkuChanged::Refused(refusal) => Err(refused(&refusal)),
        SkuChanged::Undecided { id, ticket } => {
            Ok(accepted(id, format!("/v1/admin/skus/{sku}/commands/{id}?ticket={ticket}")))
        }
    }
}

pub(crate) fn stock_view(sku: &SkuId, stock: Stock) -> StockView {
    let Stock { on_hand, reserved, sold } = stock;
    StockView { sku_id: sku.to_string(), on_hand, reserved, sold, available: on_hand - reserved - sold }
}

fn problem_of(error: &ChangeSkuError) -> Problem {
    match error {
        ChangeSkuError::OnHandRequired => json::invalid_fields(&[FieldError {
            pointer: "/on_hand".into(),
            detail: "is required to create a SKU".into(),
        }]),
        ChangeSkuError::UnknownSku => unknown_sku(),
        ChangeSkuError::OutOfBounds(wrong) => out_of_bounds(wrong),
        ChangeSkuError::Ask(error) => not_asked(*error),
        ChangeSkuError::Store(error) => unreadable(error).with("outcome", "none"),
        ChangeSkuError::Unshown => Problem::unavailable(
            Code::StatusUnavailable,
            Effect::Unknown,
            "the change is done, the SKU can't be read now",
        ),
    }
}

/// Follow a change that was answered 202.
#[utoipa::path(
    get, path = "/v1/admin/skus/{sku}/commands/{command_id}", tag = "skus",
    params(
        SkuPath,
        ("command_id" = Uuid, Path, description = "The command"),
        ("ticket" = String, Query, description = "As the 202 gave it"),
    ),
    responses((status = 200, description = "Where it stands", body = CommandView), CommandProblems)
)]
pub(super) async fn get_command(
    State(app): State<SharedApp>,
    path: Result<Path<(String, String)>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<CommandView>, Problem> {
    let Ok(Path((sku, command_id))) = path else { return Err(unknown_command()) };
    let sku = SkuId::parse(&sku).map_err(|_| unknown_sku())?;
    let command_id = parse_id(&command_id).ok_or_else(unknown_command)?;
    let ticket = headers::required_ticket_of(query.as_deref())?;
    let standing = app.admin.standing(&sku, command_id, ticket).await.map_err(|e| unreadable(&e))?;
    let queued = |kind: Option<String>| CommandView { command_id, kind, status: "QUEUED", sku: None, problem: None };
    Ok(Json(match standing {
        SkuCommandStanding::Unknown => return Err(unknown_command()),
        SkuCommandStanding::Queued(kind) => queued(kind.map(str::to_owned)),
        SkuCommandStanding::Done(kind, entry) => {
            CommandView { status: "DONE", sku: Some(view_of(&app, &entry).await), ..queued(Some(kind)) }
        }
        SkuCommandStanding::Refused(kind, refusal) => CommandView {
            status: "REJECTED",
            problem: Some(refused(&refusal).nested_body()),
            // Poison has no kind.
            ..queued(Some(kind).filter(|kind| !kind.is_empty()))
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::AskError;
    use crate::store::StoreError;

    #[test]
    fn every_failure_of_a_change_has_its_problem() {
        let errors = [
            ChangeSkuError::OnHandRequired,
            ChangeSkuError::UnknownSku,
            ChangeSkuError::OutOfBounds(vec![("ends_at", "must be after starts_at")]),
            ChangeSkuError::Ask(AskError::Unknown),
            ChangeSkuError::Store(StoreError::Deadline { attempt: "read" }),
            ChangeSkuError::Unshown,
        ];
        insta::assert_json_snapshot!(errors.each_ref().map(|error| problem_of(error).nested_body()));
    }
}
