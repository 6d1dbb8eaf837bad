//! `flashsale audit`: adds the stock up by another way than the writers; once, or as a service that stops what does not add up.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::partition::parse_note;
use super::process::Group;
use super::sku::parse_sku;
use super::{Failure, alone, pretty, print};
use crate::auditor::books::{Balance, Counters, Finding};
use crate::auditor::{self, Report, SkuAudit};
use crate::clock::SystemClock;
use crate::config::{Config, Needs};
use crate::http::Health;
use crate::ids::SkuId;
use crate::store::Store;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Audit {
    #[command(subcommand)]
    command: Option<AuditCommand>,
    /// Look every second, export metrics, and stop the sale of a SKU that does not add up
    #[arg(long, conflicts_with = "skus")]
    watch: bool,
    /// Recount only these SKUs, all that was ever written of them, and print their books [default: everything; one that is called like a
    /// subcommand goes behind --]
    #[arg(value_name = "SKU", value_parser = parse_sku)]
    skus: Vec<SkuId>,
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
            None if self.skus.is_empty() => look(&config, is_json).await,
            None => look_at(&config, self.skus, is_json).await,
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
        let found: Vec<Value> = findings.iter().map(json_of_finding).collect();
        print(pretty(&json!({"skus": skus.len(), "findings": found})))?;
    } else {
        for finding in &findings {
            print(format!("{}  {}  {}", finding.subject, finding.check.name(), finding.detail))?;
        }
        print(format!("{} SKUs, {} findings", skus.len(), findings.len()))?;
    }
    if findings.is_empty() { Ok(()) } else { Err(Failure::refused("the books do not add up")) }
}

/// Exits as [`look`] does; also 1 if there is nothing of one of them.
async fn look_at(config: &Config, skus: Vec<SkuId>, is_json: bool) -> Result<(), Failure> {
    let names: BTreeSet<String> = skus.into_iter().map(|sku| sku.as_str().to_owned()).collect();
    let names = Vec::from_iter(names);
    let audits = auditor::look_at(&settings_of(config), &names).await;
    let audits = audits.map_err(|error| Failure::unknown(super::chain(&error)))?;
    if is_json {
        print(pretty(&audits.iter().map(json_of).collect::<Vec<_>>()))?;
    } else {
        for audit in &audits {
            print(books_of(audit))?;
        }
    }
    let is_found = |name: &String| audits.iter().any(|audit| audit.sku_id == *name);
    let unknown = names.iter().filter(|name| !is_found(name)).map(|name| format!("there is no SKU {name}"));
    let wrong = audits.iter().filter(|audit| !audit.findings.is_empty());
    let wrong = wrong.map(|audit| format!("the books of {} do not add up", audit.sku_id));
    let told: Vec<String> = unknown.chain(wrong).collect();
    if told.is_empty() { Ok(()) } else { Err(Failure::refused(told.join("\n"))) }
}

/// The three tellings, one below the other, and what contradicts itself in them.
fn books_of(audit: &SkuAudit) -> String {
    let SkuAudit { sku_id, counters, movements: (number, folded), reservations, findings } = audit;
    let row = |name: &str, on_hand: Option<i64>, reserved: i64, sold: i64| {
        let on_hand = on_hand.map_or("-".to_owned(), |units| units.to_string());
        format!("{name:<16} {on_hand:>12} {reserved:>12} {sold:>12}")
    };
    let mut lines = vec![sku_id.clone(), format!("{:<16} {:>12} {:>12} {:>12}", "", "ON HAND", "RESERVED", "SOLD")];
    lines.push(match counters {
        Some(Counters { balance, .. }) => row("counters", Some(balance.on_hand), balance.reserved, balance.sold),
        None => format!("{:<16} {:>12}", "counters", "missing"),
    });
    lines.push(row(&format!("{number} movements"), Some(folded.on_hand), folded.reserved, folded.sold));
    lines.push(row("reservations", None, reservations.reserved, reservations.sold));
    lines.extend(findings.iter().map(|finding| format!("{}  {}", finding.check.name(), finding.detail)));
    lines.join("\n")
}

fn json_of(audit: &SkuAudit) -> Value {
    let SkuAudit { sku_id, counters, movements: (number, folded), reservations, findings } = audit;
    let told = |balance: &Balance, movements: i64| json!({"on_hand": balance.on_hand, "reserved": balance.reserved, "sold": balance.sold, "movements": movements});
    json!({
        "sku_id": sku_id, "counters": counters.as_ref().map(|row| told(&row.balance, row.movement_count)),
        "movements": told(folded, *number),
        "reservations": {"reserved": reservations.reserved, "sold": reservations.sold},
        "findings": findings.iter().map(json_of_finding).collect::<Vec<_>>(),
    })
}

fn json_of_finding(finding: &Finding) -> Value {
    let Finding { subject, check, units, detail } = finding;
    json!({"subject": subject.to_string(), "check": check.name(), "units": units, "detail": detail})
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
