//! Lists of reservations, a user's and an operator's, and what a user may still ask for.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};

use super::app::{App, SharedApp, status_unavailable, unreadable};
use super::json::{self, FieldError};
use super::openapi::{AdminListProblems, LimitsProblems, PageQuery, UserListProblems};
use super::problem::Problem;
use super::query::Parameters;
use super::sku_bodies::parse_time;
use super::skus::unknown_sku;
use super::views::{LimitsView, ReservationListView};
use crate::ids::{SkuId, UserId};
use crate::store::ReservationFilter;

/// See what a user may still ask for.
#[utoipa::path(
    get, path = "/v1/users/{user}/limits", tag = "users",
    params(
        ("user" = String, Path, description = "The user, as the shop names them"),
        ("sku_id" = String, Query, description = "The SKU"),
    ),
    responses((status = 200, description = "The limit and what is used of it", body = LimitsView), LimitsProblems)
)]
pub(super) async fn get_limits(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<LimitsView>, Problem> {
    let user = user_of(path)?;
    let sku = Parameters::of(query.as_deref(), &["sku_id"])?.required("sku_id", SkuId::parse)?;
    let entry = app.sku_reads.read(&sku).await.map_err(|_| status_unavailable())?.ok_or_else(unknown_sku)?;
    let (units, queued) = tokio::join!(
        app.store.load_user_units(&user, &entry),
        app.admission.undecided_units(&user, &sku, app.clock.now())
    );
    let units = units.map_err(|error| unreadable(&error))?;
    Ok(Json(LimitsView::of(&user, &entry, units, queued)))
}

/// List a user's reservations.
///
/// What the user holds or had (RESERVED, CONFIRMED, CANCELLED, EXPIRED), in the order of the ids. Refused requests are listed only with
/// `status=REJECTED`. A page may be short or empty: go on until `next_cursor` is absent.
#[utoipa::path(
    get, path = "/v1/users/{user}/reservations", tag = "users",
    params(
        ("user" = String, Path, description = "The user, as the shop names them"),
        ("sku_id" = Option<String>, Query, description = "Only of this SKU"),
        ("status" = Option<String>, Query, description = "Only in this state; without it all but REJECTED"),
        PageQuery,
    ),
    responses((status = 200, description = "One page", body = ReservationListView), UserListProblems)
)]
pub(super) async fn list_of_user(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<ReservationListView>, Problem> {
    let user = user_of(path)?;
    let given = Parameters::of(query.as_deref(), &["sku_id", "status", "limit", "cursor"])?;
    page(&app, filter_of(&given, Some(user))?).await
}

/// List reservations.
///
/// Who holds what, in the order of the ids. With `user_id` and without `status`, refused requests are left out, as in the user's own list.
/// A page may be short or empty, because only so many reservations are looked at for one: go on until `next_cursor` is absent.
#[utoipa::path(
    get, path = "/v1/admin/reservations", tag = "reservations",
    params(
        ("sku_id" = Option<String>, Query, description = "Only of this SKU"),
        ("user_id" = Option<String>, Query, description = "Only of this user"),
        ("status" = Option<String>, Query, description = "Only in this state; without it all, with `user_id` all but REJECTED"),
        ("expires_before" = Option<String>, Query, description = "Only those whose hold ends before this time (RFC 3339)"),
        PageQuery,
    ),
    responses((status = 200, description = "One page", body = ReservationListView), AdminListProblems)
)]
pub(super) async fn list_for_operators(
    State(app): State<SharedApp>,
    RawQuery(query): RawQuery,
) -> Result<Json<ReservationListView>, Problem> {
    let known = ["sku_id", "user_id", "status", "expires_before", "limit", "cursor"];
    let given = Parameters::of(query.as_deref(), &known)?;
    let user = given.optional("user_id", UserId::parse)?;
    page(&app, filter_of(&given, user)?).await
}

/// What was asked for. A parameter that a list does not know is absent in it.
fn filter_of(given: &Parameters, user: Option<UserId>) -> Result<ReservationFilter, Problem> {
    Ok(ReservationFilter {
        user,
        sku: given.optional("sku_id", SkuId::parse)?,
        status: given.status()?,
        expires_before: given.optional("expires_before", parse_time)?,
        after: given.cursor()?,
        limit: given.limit()?,
    })
}

async fn page(app: &App, filter: ReservationFilter) -> Result<Json<ReservationListView>, Problem> {
    let page = app.status.list(&filter).await.map_err(|_| status_unavailable())?;
    Ok(Json(ReservationListView::of(&page, app.clock.now())))
}

/// The user that a path names.
fn user_of(path: Result<Path<String>, PathRejection>) -> Result<UserId, Problem> {
    let malformed = |detail: String| json::invalid_fields(&[FieldError { pointer: "/user_id".into(), detail }]);
    let Ok(Path(text)) = path else { return Err(malformed("must be a text".into())) };
    UserId::parse(&text).map_err(|error| malformed(error.to_string()))
}
