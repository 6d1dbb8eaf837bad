//! `GET /v1/skus/{sku}`: what buyers see of a sale.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::app::{SharedApp, status_unavailable};
use super::headers;
use super::openapi::{SkuPath, SkuProblems};
use super::problem::{Code, Problem};
use super::views::SkuView;
use crate::ids::SkuId;

/// Look at a SKU.
#[utoipa::path(
    get, path = "/v1/skus/{sku}", tag = "skus",
    params(SkuPath),
    responses((status = 200, description = "The SKU; may be kept for a second", body = SkuView), SkuProblems)
)]
pub(super) async fn get_sku(
    State(app): State<SharedApp>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let sku = sku_of(path)?;
    headers::no_parameters(query.as_deref())?;
    let as_of = app.clock.now();
    let entry = app.sku_reads.read(&sku).await.map_err(|_| status_unavailable())?.ok_or_else(unknown_sku)?;
    let is_halted = app.catalogue.halted_reason(&entry).is_some();
    let cacheable = [(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=1"))];
    Ok((cacheable, Json(SkuView::of(&entry, is_halted, as_of))).into_response())
}

/// The SKU that a path names. A name that can't be one is a SKU that does not exist.
pub(super) fn sku_of(path: Result<Path<String>, PathRejection>) -> Result<SkuId, Problem> {
    path.ok().and_then(|Path(text)| SkuId::parse(&text).ok()).ok_or_else(unknown_sku)
}

/// 404 `UNKNOWN_SKU`.
pub(super) fn unknown_sku() -> Problem {
    Problem::new(Code::UnknownSku, "there is no such SKU")
}
