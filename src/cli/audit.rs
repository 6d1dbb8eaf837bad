//! `flashsale audit`: adds the stock up by another way than the writers; once, or as a service that stops what does not add up.

use clap::{Args, Subcommand};
use serde_json::json;

use super::partition::parse_note;
use super::process::Group;
use super::{Failure, alone, pretty, print};
use crate::auditor::{self, Report};
use crate::clock::SystemClock;
use crate::config::{Config, Needs};
use crate::http::Health;
use crate::store::Store;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Look every second, export metrics, and stop the sale of a SKU that does not add up
    #[arg(long)]
    watch: bool,
}

#[derive(Subcommand)]
enum AuditCommand {
    /// Show SKUs whose sale was stopped, and why; exits 1 if there are any
    Halts,
    /// Let a stopped SKU go on, with its stock as it is now; say why, it is kept
    Resume {
        /// Which
        sku: String,
        /// What was found and done, 1 to 200 characters
        #[arg(long, value_parser = parse_note)]
        note: String,
    },
}

impl Audit {
    pub(super) const NEEDS: &[Needs] = &[Needs::Database];

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store =
            || Store::new(config.database(), &config.topic).map_err(|error| Failure::usage(super::chain(&error)));
        match self.command {
            None if self.watch => watch(store()?, &config).await,
            None => look(&config, is_json).await,
            Some(AuditCommand::Halts) => show_halts(&store()?, is_json).await,
            Some(AuditCommand::Resume { sku, note }) => resume(&store()?, &sku, &note).await,
        }
    }
}

/// Exits 0 if all adds up, 1 if not, 2 if nobody can say.
async fn look(config: &Config, is_json: bool) -> Result<(), Failure> {
    let report = auditor::look_once(&settings_of(config)).await;
    let Report { skus, findings } = report.map_err(|error| Failure::unknown(super::chain(&error)))?;
    if is_json {
        let found = findings.iter().map(|f| {
            json!({"subject": f.subject.to_string(), "check": f.check.name(), "units": f.units, "detail": f.detail})
        });
        print(pretty(&json!({"skus": skus.len(), "findings": found.collect::<Vec<_>>()})))?;
    } else {
        for finding in &findings {
            print(format!("{}  {}  {}", finding.subject, finding.check.name(), finding.detail))?;
        }
        print(format!("{} SKUs, {} findings", skus.len(), findings.len()))?;
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::refused("the books do not add up")) }
}

/// A process that only audits. Any number of them may run: one leads, the others stand by.
async fn watch(store: Store, config: &Config) -> Result<(), Failure> {
    let start = |group: &Group, probes| {
        let auditor = auditor::Health::default();
        start(config, auditor.clone(), group);
        Health { auditor: Some(auditor), ..probes }
    };
    alone::run("auditor", store, config, start).await
}

/// Starts the auditor; it ends with its group.
pub(super) fn start(config: &Config, health: auditor::Health, group: &Group) {
    let auditing = auditor::run(settings_of(config), std::sync::Arc::new(SystemClock), health, group.stop());
    group.spawn_infallible("auditor", auditing);
}

fn settings_of(config: &Config) -> auditor::Config {
    auditor::Config { database_url: config.database().into(), topic: config.topic.clone() }
}

async fn show_halts(store: &Store, is_json: bool) -> Result<(), Failure> {
    let halts = store.load_halted_skus().await.map_err(|error| Failure::unavailable(&error))?;
    if is_json {
        let shown = halts.iter().map(|h| json!({"sku_id": h.sku_id, "reason": h.reason, "halted_at": h.halted_at}));
        print(pretty(&shown.collect::<Vec<_>>()))?;
    } else {
        for halt in &halts {
            print(format!("{}  {}  {}", halt.halted_at, halt.sku_id, halt.reason))?;
        }
    }
    if halts.is_empty() { Ok(()) } else { Err(Failure::refused(format!("{} halted", halts.len()))) }
}

async fn resume(store: &Store, sku: &str, note: &str) -> Result<(), Failure> {
    match store.resume_sku(sku, note).await {
        Ok(true) => print(format!("{sku} goes on")),
        Ok(false) => Err(Failure::refused(format!("{sku} is not halted"))),
        Err(error) => Err(Failure::unavailable(&error)),
    }
}
