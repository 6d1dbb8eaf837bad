//! SKUs as operators see them, on the admin listener.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};

use super::app::{App, SharedApp, unreadable};
use super::headers;
use super::openapi::{AdminListProblems, AdminReadProblems, PageQuery, SkuPath};
use super::problem::Problem;
use super::skus::{sku_of, unknown_sku};
use super::views::{AdminSkuView, LagView, SkuListView};
use crate::store::{CatalogueEntry, PartitionRow};

/// Look at a SKU as an operator.
#[utoipa::path(
    get, path = "/v1/admin/skus/{sku}", tag = "skus", params(SkuPath),
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
    let view = view_with(&app, &entry, &partitions);
    let queued = view.queued.or_else(|| queued_of(&app, &entry));
    Ok(Json(AdminSkuView { queued, ..view }))
}

/// List SKUs.
#[utoipa::path(
    get, path = "/v1/admin/skus", tag = "skus",
    params(PageQuery),
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

/// The SKU as it is now. What its partition does is left out if Postgres does not say: the change itself is done.
pub(super) async fn view_of(app: &App, entry: &CatalogueEntry) -> AdminSkuView {
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
    let halted_reason = partition.and_then(|p| p.halted_reason.clone());
    let halted_reason = halted_reason.or_else(|| app.catalogue.halted_reason(entry).map(|why| why.to_string()));
    AdminSkuView::of(entry, partition, halted_reason, lag, app.clock.now())
}

/// Commands of the SKU that wait, if all that wait in its partition are its own.
fn queued_of(app: &App, entry: &CatalogueEntry) -> Option<u64> {
    let shares = |other: &CatalogueEntry| other.partition == entry.partition && other.sku_id != entry.sku_id;
    let is_alone = !app.catalogue.entries().iter().any(|other| shares(other));
    is_alone.then(|| app.status.commands_in(entry.partition, app.catalogue.lag().records(entry.partition)))
}
