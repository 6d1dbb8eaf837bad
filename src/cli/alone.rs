//! A process with one component and an admin listener: the relay, or the auditor, by itself.

use super::process::{Group, Supervisor};
use super::{Failure, serve};
use crate::config::Config;
use crate::http::{self, Flag, Health, Operations};
use crate::limits;
use crate::shutdown;
use crate::store::Store;
use crate::telemetry::{self, logs, metrics};

/// Runs what `start` puts into its group until a signal, or until something ends by itself. `start` adds its own probe to those that every
/// such process has. `name` is the component's in the log.
pub(super) async fn run(
    name: &'static str,
    store: Store,
    config: &Config,
    start: impl FnOnce(&Group, Health) -> Health,
) -> Result<(), Failure> {
    logs::install(config.log_format);
    let recorder = metrics::install().map_err(|error| Failure::bug(error.to_string()))?;
    let stop = shutdown::on_signal()
        .map_err(|e| Failure::unavailable_because(format!("could not listen for signals: {e}")))?;
    tracing::info!(role = name, version = telemetry::VERSION, commit = telemetry::REVISION, config = ?config, "starting");
    let (listener, address) = serve::bind("ADMIN_ADDR", config.admin_addr).await?;

    let mut supervisor = Supervisor::new();
    let background = supervisor.group();
    background.spawn_infallible("metrics upkeep", metrics::run_upkeep(recorder.clone(), background.stop()));
    let schema_checked = Flag::default();
    background.spawn("schema check", serve::check_schema(store, schema_checked.clone(), background.stop()));
    let component = supervisor.group();
    let probes = Health {
        stop: stop.clone(),
        schema_checked: Some(schema_checked),
        ingress: None,
        catalogue_loaded: None,
        consumer: None,
        relay: None,
        auditor: None,
    };
    let health = start(&component, probes);
    let admin = supervisor.group();
    let router = http::admin_router(Operations { health, metrics: recorder }, None, config.admin_token.clone());
    admin.spawn_infallible("admin listener", http::serve(listener, router, admin.stop(), limits::ADMIN_DRAIN_DEADLINE));
    tracing::info!(admin.addr = %address, "serving operators");

    let ended = supervisor.watch(&stop).await;
    stop.cancel();
    component.end(name, limits::CONSUMER_DRAIN_DEADLINE).await;
    admin.end("admin listener", 2 * limits::ADMIN_DRAIN_DEADLINE).await;
    background.end("background", limits::ADMIN_DRAIN_DEADLINE).await;
    tracing::info!("stopped");
    ended
}
