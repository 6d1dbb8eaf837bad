//! Probes: alive, ready, started. `/livez` asks nobody; a process that is stopping is not ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::views::{CheckView, HealthView, VersionView};
use crate::auditor;
use crate::consumer;
use crate::ingress::Ingress;
use crate::outbox::relay;
use crate::store::Store;
use crate::telemetry;

/// A fact that one part of the process sets and the probes read. Begins as false; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Sets it.
    pub fn set(&self, is_so: bool) {
        self.0.store(is_so, Ordering::Relaxed);
    }

    /// Reads it.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What probes look at, by the parts that the process has.
#[derive(Clone)]
pub struct Health {
    /// Cancelled = the process is stopping.
    pub stop: CancellationToken,
    /// The tables are those that this build was made for.
    pub schema_checked: Option<Flag>,
    /// API: requests can be published.
    pub ingress: Option<Ingress>,
    /// API: the catalogue was loaded once.
    pub catalogue_loaded: Option<Flag>,
    /// Consumer: partitions are assigned, or it stands by while others have them all.
    pub consumer: Option<consumer::Health>,
    /// Relay alone in its process: it has a session, leading or standing by.
    pub relay: Option<relay::Health>,
    /// Auditor alone in its process: it has a session, leading or standing by.
    pub auditor: Option<auditor::Health>,
}

impl Health {
    fn readiness(&self) -> Vec<CheckView> {
        let mut checks = self.start();
        let running = !self.stop.is_cancelled();
        checks.push(check("running", running, "accepting requests", "stopping"));
        if let Some(ingress) = &self.ingress {
            let available = ingress.is_available();
            checks.push(check("queue", available, "requests can be published", "the queue can't be reached"));
        }
        if let Some(consumer) = &self.consumer {
            let stalled = consumer.is_stalled();
            let mut progress = check("progress", !stalled, "no partition stands still", "a partition stands still");
            // An API in the same process still takes and answers requests; it refuses by itself what waits too long.
            progress.ok |= self.ingress.is_some();
            checks.push(progress);
        }
        checks
    }

    fn start(&self) -> Vec<CheckView> {
        let mut checks = Vec::new();
        if let Some(checked) = &self.schema_checked {
            checks.push(check(
                "schema",
                checked.get(),
                "one that this build can work on",
                "not checked yet, or not made yet",
            ));
        }
        if let Some(loaded) = &self.catalogue_loaded {
            checks.push(check("catalogue", loaded.get(), "loaded", "not loaded yet"));
        }
        if let Some(consumer) = &self.consumer {
            checks.push(check("consumer", consumer.has_joined(), "assigned or standing by", "not in the group yet"));
        }
        if let Some(relay) = &self.relay {
            checks.push(check("relay", relay.has_session(), "leading or standing by", "no session yet"));
        }
        if let Some(auditor) = &self.auditor {
            checks.push(check("auditor", auditor.has_session(), "leading or standing by", "no session yet"));
        }
        checks
    }
}

fn check(name: &'static str, ok: bool, good: &str, bad: &str) -> CheckView {
    CheckView { name, ok, detail: if ok { good } else { bad }.to_owned() }
}

fn answer(checks: Vec<CheckView>) -> Response {
    let is_fine = checks.iter().all(|c| c.ok);
    let (status, word) =
        if is_fine { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    (status, Json(HealthView { status: word, checks })).into_response()
}

/// State of the operations routes.
#[derive(Clone)]
pub struct Operations {
    /// For the probes.
    pub health: Health,
    /// For `/metrics`.
    pub metrics: PrometheusHandle,
}

/// Is the process alive? Asks nobody.
#[utoipa::path(get, path = "/livez", tag = "operations", responses((status = 200, description = "Alive", body = HealthView)))]
pub(super) async fn livez() -> Response {
    answer(Vec::new())
}

/// Can it do its work?
#[utoipa::path(get, path = "/readyz", tag = "operations", responses(
    (status = 200, description = "Ready", body = HealthView), (status = 503, description = "Not ready", body = HealthView)))]
pub(super) async fn readyz(State(operations): State<Operations>) -> Response {
    answer(operations.health.readiness())
}

/// Has it started?
#[utoipa::path(get, path = "/startupz", tag = "operations", responses(
    (status = 200, description = "Started", body = HealthView), (status = 503, description = "Not yet", body = HealthView)))]
pub(super) async fn startupz(State(operations): State<Operations>) -> Response {
    answer(operations.health.start())
}

/// Metrics in the Prometheus text format.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses(
    (status = 200, description = "Metrics", body = String, content_type = "text/plain"), super::openapi::OperatorProblems))]
pub(super) async fn metrics(State(operations): State<Operations>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], operations.metrics.render()).into_response()
}

/// What runs.
#[utoipa::path(get, path = "/version", tag = "operations", responses(
    (status = 200, description = "What runs", body = VersionView), super::openapi::OperatorProblems))]
pub(super) async fn version() -> Json<VersionView> {
    let schema = Store::schema_version_of_build();
    Json(VersionView { version: telemetry::VERSION, commit: telemetry::REVISION, schema })
}
