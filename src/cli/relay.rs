//! `flashsale relay`: publishes events; and looks after those that can't be published.

use clap::{Args, Subcommand};
use serde_json::json;

use super::process::Group;
use super::{Failure, alone, pretty, print, serve};
use crate::config::{Config, Needs};
use crate::http::Health;
use crate::outbox::relay;
use crate::store::{ParkedRow, Store};

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
    let start = |group: &Group, probes| {
        let relay = relay::Health::default();
        serve::start_relay(config, relay.clone(), group);
        Health { relay: Some(relay), ..probes }
    };
    alone::run("relay", store, config, start).await
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
