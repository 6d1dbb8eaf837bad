//! SKU administration on the admin listener.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::app::{App, SharedApp, location, not_sent, unreadable};
use super::body::JsonBody;
use super::headers::{self, RequestId};
use super::json::{self, FieldError, Fields, Json as Body};
use super::openapi::{AdminListProblems, AdminReadProblems, CommandProblems, PutSkuBody, PutSkuProblems};
use super::problem::{Code, Effect, Problem};
use super::skus::{sku_of, unknown_sku};
use super::views::{AcceptedCommandView, AdminSkuView, CommandView, LagView, SkuListView, parse_late_payment};
use crate::admin::{CommandRefusal, CommandStatus, Put, PutError, PutSku};
use crate::clock::{Millis, millis_of};
use crate::ids::SkuId;
use crate::inventory::Settings;
use crate::limits;
use crate::store::{CatalogueEntry, PartitionRow};

/// Create a SKU, or replace all its settings.
///
/// What is left out gets its default; stock is only compared. The change takes effect in log order; the answer waits for it up to 5 s.
#[utoipa::path(
    put, path = "/v1/admin/skus/{sku}", tag = "skus", request_body = PutSkuBody,
    params(
        ("sku" = String, Path, description = "The SKU, 1 to 64 characters of `A-Z a-z 0-9 . _ : -`"),
        ("Idempotency-Key" = Option<String>, Header, description = "Name of this change"),
    ),
    responses(
        (status = 201, description = "Created", body = AdminSkuView),
        (status = 200, description = "Changed", body = AdminSkuView),
        (status = 202, description = "In the log, not decided yet", body = AcceptedCommandView),
        PutSkuProblems,
    )
)]
pub(super) async fn put_sku(
    State(app): State<SharedApp>,
    Extension(request_id): Extension<RequestId>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    request_headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Response, Problem> {
    let sku = sku_of(path)?;
    headers::no_parameters(query.as_deref())?;
    let key = headers::idempotency_key(&request_headers)?;
    let (on_hand, settings) = parse_put(body)?;
    let put = PutSku { sku: sku.clone(), on_hand, settings, key, request_id: request_id.as_str().to_owned() };
    let admin = app.admin.clone();
    // In a task of its own: an operator who hangs up does not take the command back.
    let outcome = app.publishes.spawn(async move { admin.put(put).await }).await;
    match outcome {
        Ok(Ok(outcome)) => put_answer(&app, &sku, outcome).await,
        Ok(Err(error)) => Err(put_problem(&error)),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn parse_put(body: Body) -> Result<(Option<i64>, Settings), Problem> {
    let defaults = Settings::default();
    let number = |low: u32, high: u32| {
        let read = json::integer(i64::from(low), i64::from(high));
        move |value: &Body| read(value).map(|n| u32::try_from(n).expect("within bounds of u32"))
    };
    let mut fields = Fields::of(body);
    let on_hand = fields.optional("on_hand", json::integer(0, limits::ON_HAND_MAX));
    let settings = Settings {
        user_limit: fields.optional("user_limit", number(1, limits::USER_LIMIT_MAX)).unwrap_or(defaults.user_limit),
        hold_seconds: fields
            .optional("hold_seconds", number(limits::HOLD_SECONDS_MIN, limits::HOLD_SECONDS_MAX))
            .unwrap_or(defaults.hold_seconds),
        starts_at: fields.nullable("starts_at", json::text(parse_time)),
        ends_at: fields.nullable("ends_at", json::text(parse_time)),
        late_payment: fields.optional("late_payment", json::text(parse_late_payment)).unwrap_or(defaults.late_payment),
        extensions_max: fields
            .optional("extensions_max", number(0, limits::EXTENSIONS_MAX))
            .unwrap_or(defaults.extensions_max),
        extension_seconds_max: fields
            .optional("extension_seconds_max", number(0, limits::EXTENSION_SECONDS_MAX))
            .unwrap_or(defaults.extension_seconds_max),
    };
    for (field, detail) in settings.check() {
        fields.refuse(field, detail);
    }
    fields.finish()?;
    Ok((on_hand, settings))
}

/// Reads an RFC 3339 time; fractions of a millisecond are cut off.
pub(crate) fn parse_time(text: &str) -> Result<Millis, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map(millis_of)
        .map_err(|_| "must be an RFC 3339 time, like 2026-11-21T10:00:00Z")
}

async fn put_answer(app: &Arc<App>, sku: &SkuId, outcome: Put) -> Result<Response, Problem> {
    match outcome {
        Put::Created(entry) => {
            let place = [(header::LOCATION, location(&format!("/v1/admin/skus/{sku}")))];
            Ok((StatusCode::CREATED, place, Json(view_of(app, &entry).await)).into_response())
        }
        Put::Changed(entry) => Ok(Json(view_of(app, &entry).await).into_response()),
        Put::Refused(refusal) => Err(refusal_problem(&refusal)),
        Put::Undecided { id, ticket } => {
            let status_url = format!("/v1/admin/skus/{sku}/commands/{id}?ticket={ticket}");
            let headers = [(header::LOCATION, location(&status_url)), (header::RETRY_AFTER, HeaderValue::from(1_u64))];
            let body = AcceptedCommandView { command_id: id, status: "QUEUED", status_url };
            Ok((StatusCode::ACCEPTED, headers, Json(body)).into_response())
        }
    }
}

/// The SKU as it is now. What its partition does is left out if Postgres does not say: the change itself is done.
async fn view_of(app: &App, entry: &CatalogueEntry) -> AdminSkuView {
    app.catalogue.insert(entry.clone());
    let partitions = app.store.load_partitions().await.unwrap_or_default();
    view_with(app, entry, &partitions)
}

fn view_with(app: &App, entry: &CatalogueEntry, partitions: &[PartitionRow]) -> AdminSkuView {
    let partition = partitions.iter().find(|p| p.partition == entry.partition);
    let lag = app.catalogue.lag();
    if let Some(row) = partition {
        // Younger than what the watch saw last: a change that was just decided must not look as if it were waiting.
        lag.observe_position(row.partition, row.position);
    }
    let lag = LagView { records: Some(lag.records(entry.partition)), age: Some(lag.age(entry.partition)) };
    AdminSkuView::of(entry, partition, lag, app.clock.now())
}

fn put_problem(error: &PutError) -> Problem {
    match error {
        PutError::OnHandRequired => json::invalid_fields(&[FieldError {
            pointer: "/on_hand".into(),
            detail: "is required to create a SKU".into(),
        }]),
        PutError::NotSent(why) => not_sent(*why),
        PutError::Unknown => Problem::unavailable(
            Code::QueueUnavailable,
            Effect::Unknown,
            "nobody knows yet whether the change was queued",
        ),
        PutError::Store(error) => unreadable(error).with("outcome", "none"),
    }
}

fn refusal_problem(refusal: &CommandRefusal) -> Problem {
    match refusal {
        CommandRefusal::StockChanged { on_hand } => Problem::new(
            Code::StockChanged,
            format!("{on_hand} units are in the sale; stock moves by adjustments only"),
        )
        .with("on_hand", *on_hand),
        CommandRefusal::SettingsChanged => {
            Problem::new(Code::SettingsChanged, "somebody else changed the settings at the same time")
        }
        CommandRefusal::KeyReused => {
            Problem::new(Code::IdempotencyKeyReused, "this Idempotency-Key was used for another change of this SKU")
        }
        CommandRefusal::Poisoned(reason) => {
            Problem::new(Code::Internal, "the change could not be decided; it is among the dead letters")
                .with("reason", reason.as_str())
        }
    }
}

/// Look at a SKU as an operator.
#[utoipa::path(
    get, path = "/v1/admin/skus/{sku}", tag = "skus", params(("sku" = String, Path, description = "The SKU")),
    responses((status = 200, description = "The SKU", body = AdminSkuView), AdminReadProblems)
)]
pub(super) async fn get_sku(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<AdminSkuView>, Problem> {
    let sku = sku_of(path)?;
    headers::no_parameters(query.as_deref())?;
    let entry = app.admin.load(&sku).await.map_err(|e| unreadable(&e))?.ok_or_else(unknown_sku)?;
    let partitions = app.store.load_partitions().await.map_err(|e| unreadable(&e))?;
    Ok(Json(view_with(&app, &entry, &partitions)))
}

/// List SKUs.
#[utoipa::path(
    get, path = "/v1/admin/skus", tag = "skus",
    params(
        ("limit" = Option<u32>, Query, description = "1 to 500, default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses((status = 200, description = "One page", body = SkuListView), AdminListProblems)
)]
pub(super) async fn list_skus(
    State(app): State<SharedApp>,
    RawQuery(query): RawQuery,
) -> Result<Json<SkuListView>, Problem> {
    let page = headers::page_of(query.as_deref())?;
    let mut entries = app.store.load_catalogue().await.map_err(|e| unreadable(&e))?;
    let partitions = app.store.load_partitions().await.map_err(|e| unreadable(&e))?;
    entries.sort_by(|a, b| a.sku_id.cmp(&b.sku_id));
    let mut rest = entries.iter().filter(|e| page.after.as_ref().is_none_or(|after| e.sku_id > *after)).peekable();
    let items: Vec<&CatalogueEntry> = rest.by_ref().take(page.limit).collect();
    let next_cursor = rest.peek().and_then(|_| items.last()).map(|last| last.sku_id.to_string());
    let items = items.iter().map(|entry| view_with(&app, entry, &partitions)).collect();
    Ok(Json(SkuListView { items, next_cursor }))
}

/// Follow a change that was answered 202.
#[utoipa::path(
    get, path = "/v1/admin/skus/{sku}/commands/{command_id}", tag = "skus",
    params(
        ("sku" = String, Path, description = "The SKU"),
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
    let unknown = || Problem::new(Code::UnknownCommand, "no command has this id and ticket");
    let Ok(Path((sku, command_id))) = path else {
        return Err(unknown());
    };
    let sku = SkuId::parse(&sku).map_err(|_| unknown_sku())?;
    let command_id = Uuid::try_parse(&command_id).map_err(|_| unknown())?;
    let ticket = headers::ticket_of(query.as_deref())?
        .ok_or_else(|| Problem::new(Code::InvalidTicket, "ticket is required, as the 202 gave it"))?;
    let status = app.admin.command_status(&sku, command_id, ticket).await.map_err(|e| unreadable(&e))?;
    let (word, sku, problem) = match status {
        CommandStatus::Queued => ("QUEUED", None, None),
        CommandStatus::Done(entry) => ("DONE", Some(view_of(&app, &entry).await), None),
        CommandStatus::Refused(refusal) => ("REJECTED", None, Some(refusal_problem(&refusal).nested_body())),
        CommandStatus::Unknown => return Err(unknown()),
    };
    Ok(Json(CommandView { command_id, kind: "configure", status: word, sku, problem }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn put_bodies_are_parsed_strictly_with_defaults() {
        let check = |body: &str| match json::parse(body.as_bytes()).and_then(parse_put) {
            Ok((on_hand, settings)) => format!("{on_hand:?} {settings:?}").into(),
            Err(problem) => problem.nested_body()["errors"].clone(),
        };
        let cases = [
            r#"{}"#,
            r#"{"on_hand":100,"user_limit":2,"hold_seconds":120,"starts_at":null,"ends_at":null,"late_payment":"rereserve","extensions_max":3,"extension_seconds_max":600}"#,
            r#"{"on_hand":0,"late_payment":"reject","starts_at":"2026-11-21T10:00:00.0009Z","ends_at":"2026-11-21T12:00:00+01:00"}"#,
            r#"{"on_hand":-1,"user_limit":0,"hold_seconds":9,"starts_at":"soon","ends_at":5,"late_payment":"never","extensions_max":101,"extension_seconds_max":86401,"color":"red"}"#,
            r#"{"on_hand":1000000001,"user_limit":1001,"hold_seconds":14401,"extensions_max":-1,"late_payment":null}"#,
            r#"{"starts_at":"2026-11-21T10:00:00Z","ends_at":"2026-11-21T10:00:00Z"}"#,
        ];
        let table: Vec<serde_json::Value> = cases.iter().map(|body| serde_json::json!([body, check(body)])).collect();
        insta::assert_json_snapshot!(table);
    }

    #[test]
    fn every_refusal_of_a_change_has_its_problem() {
        let mut bodies: Vec<_> = [
            CommandRefusal::StockChanged { on_hand: 98 },
            CommandRefusal::SettingsChanged,
            CommandRefusal::KeyReused,
            CommandRefusal::Poisoned("NOT_HERE".into()),
        ]
        .map(|r| refusal_problem(&r).nested_body())
        .to_vec();
        bodies.push(put_problem(&PutError::OnHandRequired).nested_body());
        bodies.push(put_problem(&PutError::Unknown).nested_body());
        let away = crate::store::StoreError::Deadline { attempt: "read" };
        bodies.push(put_problem(&PutError::Store(away)).nested_body());
        insta::assert_json_snapshot!(bodies);
    }
}
