//! `flashsale relay`: publishes events; and looks after those that can't be published.

use clap::{Args, Subcommand};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::process::Supervisor;
use super::{Failure, pretty, print, serve};
use crate::config::{Config, Needs};
use crate::http::{self, Flag, Health, Operations};
use crate::limits;
use crate::outbox::relay;
use crate::shutdown;
use crate::store::{ParkedRow, Store};
use crate::telemetry::{self, logs, metrics};

#[derive(Args)]
pub(super) struct Relay {
    #[command(subcommand)]
    command: Option<RelayCommand>,
}

#[derive(Subcommand)]
enum RelayCommand {
    /// Show events that can't be published, and why; exits 1 if there are any
    Parked,
    /// Put a parked event back, behind the events that wait: its SKU's later events were published without it
    Retry {
        /// Its number in the list
        id: i64,
    },
}

impl Relay {
    /// Publishing needs Kafka, too.
    pub(super) fn needs(&self) -> &'static [Needs] {
        match self.command {
            None => &[Needs::Database, Needs::Kafka],
            Some(_) => &[Needs::Database],
        }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store =
            || Store::new(config.database(), &config.topic).map_err(|error| Failure::usage(super::chain(&error)));
        match self.command {
            None => run_relay(store()?, &config).await,
            Some(RelayCommand::Parked) => show_parked(&store()?, is_json).await,
            Some(RelayCommand::Retry { id }) => retry(&store()?, id).await,
        }
    }
}

/// A process that only relays. Any number of them may run: one leads a partition, the others stand by.
async fn run_relay(store: Store, config: &Config) -> Result<(), Failure> {
    logs::install(config.log_format);
    let recorder = metrics::install().map_err(|error| Failure::bug(error.to_string()))?;
    let stop = shutdown::on_signal()
        .map_err(|e| Failure::unavailable_because(format!("could not listen for signals: {e}")))?;
    tracing::info!(role = "Relay", version = telemetry::VERSION, commit = telemetry::REVISION, config = ?config, "starting");
    let (listener, address) = serve::bind("ADMIN_ADDR", config.admin_addr).await?;

    let mut supervisor = Supervisor::new();
    let background = supervisor.group();
    background.spawn_infallible("metrics upkeep", metrics::run_upkeep(recorder.clone(), background.stop()));
    let schema_checked = Flag::default();
    background.spawn("schema check", serve::check_schema(store, schema_checked.clone(), background.stop()));
    let (relaying, health) = (supervisor.group(), relay::Health::default());
    serve::start_relay(config, health.clone(), &relaying);
    let admin = supervisor.group();
    let operations = Operations { health: probes(stop.clone(), schema_checked, health), metrics: recorder };
    let router = http::admin_router(operations, None, config.admin_token.clone());
    admin.spawn_infallible("admin listener", http::serve(listener, router, admin.stop(), limits::ADMIN_DRAIN_DEADLINE));
    tracing::info!(admin.addr = %address, "serving operators");

    let ended = supervisor.watch(&stop).await;
    stop.cancel();
    relaying.end("relay", limits::CONSUMER_DRAIN_DEADLINE).await;
    admin.end("admin listener", 2 * limits::ADMIN_DRAIN_DEADLINE).await;
    background.end("background", limits::ADMIN_DRAIN_DEADLINE).await;
    tracing::info!("stopped");
    ended
}

fn probes(stop: CancellationToken, schema_checked: Flag, relay: relay::Health) -> Health {
    Health {
        stop,
        schema_checked: Some(schema_checked),
        ingress: None,
        catalogue_loaded: None,
        consumer: None,
        relay: Some(relay),
        auditor: None,
    }
}

async fn show_parked(store: &Store, is_json: bool) -> Result<(), Failure> {
    let rows = store.load_parked().await.map_err(|error| Failure::unavailable(&error))?;
    if is_json {
        print(pretty(&rows.iter().map(json_of).collect::<Vec<_>>()))?;
    } else {
        print("NUMBER  PARKED AT                 EVENT  TYPE  SKU  REASON")?;
        for row in &rows {
            let (event, kind) = (row.event_id.as_deref().unwrap_or("-"), row.kind.as_deref().unwrap_or("-"));
            print(format!(
                "{:>6}  {}  {event}  {kind}  {}  {}",
                row.id,
                row.parked_at,
                row.skus.join(","),
                row.reason
            ))?;
        }
    }
    if rows.is_empty() { Ok(()) } else { Err(Failure::refused(format!("{} parked", rows.len()))) }
}

fn json_of(row: &ParkedRow) -> serde_json::Value {
    json!({
        "id": row.id, "partition": row.partition, "event_id": row.event_id, "type": row.kind, "skus": row.skus,
        "reason": row.reason, "parked_at": row.parked_at,
    })
}

async fn retry(store: &Store, id: i64) -> Result<(), Failure> {
    match store.retry_parked(id).await {
        Ok(true) => print(format!("event {id} is tried again")),
        Ok(false) => Err(Failure::refused(format!("there is no parked event {id}"))),
        Err(error) => Err(Failure::unavailable(&error)),
    }
}
