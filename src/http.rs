//! HTTP: the first and the last module that a request meets.
//!
//! Two listeners. The public one serves buyers: `reserve` (parse, admit, publish, answer), `reserve_many` (the same for many at once), `reservations` (follow),
//! `reservation_commands` (confirm, cancel, extend), `events` (follow as a stream), `lists`, `skus` (look). The admin one serves operators and probes: `admin_skus` (look),
//! `sku_changes`, [`health`]. [`mod@frame`] surrounds every request of both; [`problem`] is the
//! one place that knows how an error looks; `openapi` documents all of it, and `/docs` shows it.
//!
//! Nothing here decides about stock, and nothing here writes it.

pub mod app;
pub mod body;
pub mod frame;
pub mod headers;
pub mod health;
pub mod json;
pub mod problem;
pub mod server;
pub mod sku_reads;
pub mod views;

mod admin_skus;
mod connection;
mod events;
mod lists;
mod openapi;
mod query;
mod refusals;
mod reservation_commands;
mod reservations;
mod reserve;
mod reserve_many;
mod sku_bodies;
mod sku_changes;
mod skus;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::SwaggerUi;

pub use app::{App, SharedApp};
pub use connection::Patience;
pub use health::{Flag, Health, Operations};
pub(crate) use query::{parse_cursor, parse_status};
pub(crate) use refusals::told;
pub use server::{serve, serve_with};
pub(crate) use sku_bodies::parse_time;
pub(crate) use sku_changes::stock_view;

use crate::config::Secret;
use crate::limits;
use frame::{Frame, frame};
use problem::{Code, Problem};

fn public_routes() -> OpenApiRouter<SharedApp> {
    OpenApiRouter::with_openapi(openapi::base("flashsale"))
        .routes(routes!(reserve::reserve, reservations::get_reservations))
        .routes(routes!(reserve_many::reserve_many))
        .routes(routes!(reservations::get_reservation))
        .routes(routes!(reservation_commands::confirm))
        .routes(routes!(reservation_commands::cancel))
        .routes(routes!(reservation_commands::extend))
        .routes(routes!(reservation_commands::get_command))
        .routes(routes!(events::get_events))
        .routes(routes!(lists::get_limits))
        .routes(routes!(lists::list_of_user))
        .routes(routes!(skus::get_sku))
}

fn sku_admin_routes() -> OpenApiRouter<SharedApp> {
    OpenApiRouter::with_openapi(openapi::base("flashsale, for operators"))
        .routes(routes!(sku_changes::put_sku, sku_changes::patch_sku, admin_skus::get_sku))
        .routes(routes!(admin_skus::list_skus))
        .routes(routes!(lists::list_for_operators))
        .routes(routes!(sku_changes::adjust_sku))
        .routes(routes!(sku_changes::pause_sku))
        .routes(routes!(sku_changes::resume_sku))
        .routes(routes!(sku_changes::get_command))
}

fn probe_routes() -> OpenApiRouter<Operations> {
    OpenApiRouter::with_openapi(openapi::base("flashsale, for operators"))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::startupz))
}

fn telemetry_routes() -> OpenApiRouter<Operations> {
    OpenApiRouter::new().routes(routes!(health::metrics)).routes(routes!(health::version))
}

/// The public listener's OpenAPI document.
pub fn public_openapi() -> OpenApi {
    public_routes().into_openapi()
}

/// The admin listener's OpenAPI document, with everything that any process serves there.
pub fn admin_openapi() -> OpenApi {
    let mut document = probe_routes().into_openapi();
    document.merge(telemetry_routes().into_openapi());
    document.merge(sku_admin_routes().into_openapi());
    document
}

/// The public listener.
pub fn public_router(app: SharedApp) -> Router {
    let (routes, document) = public_routes().split_for_parts();
    complete(routes.with_state(app).merge(pages(document)), Frame::new("public", limits::HTTP_IN_FLIGHT_MAX))
}

/// The admin listener of a process; only an API process (`app`) administrates SKUs. With a token, everything but the probes asks for it.
pub fn admin_router(operations: Operations, app: Option<SharedApp>, token: Option<Secret>) -> Router {
    let (probes, mut document) = probe_routes().split_for_parts();
    let (telemetry, telemetry_document) = telemetry_routes().split_for_parts();
    document.merge(telemetry_document);
    let mut guarded: Router = telemetry.with_state(operations.clone());
    if let Some(app) = app {
        let (skus, skus_document) = sku_admin_routes().split_for_parts();
        document.merge(skus_document);
        guarded = guarded.merge(skus.with_state(app));
    }
    guarded = guarded.merge(pages(document));
    if let Some(token) = token {
        guarded = guarded.route_layer(from_fn_with_state(token, authenticate));
    }
    complete(guarded.merge(probes.with_state(operations)), Frame::new("admin", limits::ADMIN_IN_FLIGHT_MAX))
}

/// The document, its page and the errors page.
fn pages(document: OpenApi) -> Router {
    Router::new()
        .route("/errors", get(|| async { Html(problem::errors_page()) }))
        .merge(SwaggerUi::new("/docs").url("/openapi.json", document))
}

/// Adds what is the same for every listener: answers for unknown paths and methods, and the frame around all of it.
fn complete(router: Router, around: Frame) -> Router {
    router
        .fallback(|| async { Problem::new(Code::NotFound, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            Problem::new(Code::MethodNotAllowed, "Allow lists the methods of this path")
        })
        .layer(middleware::from_fn_with_state(around, frame))
}

/// Asks for the admin token. Compared in constant time.
async fn authenticate(State(token): State<Secret>, request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let is_bearer = |sent: &&[u8]| sent.len() > 7 && sent[..7].eq_ignore_ascii_case(b"bearer ");
    match sent.filter(is_bearer) {
        Some(sent) if token.matches(sent[7..].trim_ascii()) => next.run(request).await,
        _ => Problem::new(Code::Unauthenticated, "send the admin token as Authorization: Bearer")
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            .into_response(),
    }
}
