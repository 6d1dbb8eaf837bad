//! `flashsale sku`: the same administration as on the admin listener, without a running API.

use std::sync::Arc;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::{Failure, pretty, print};
use crate::admin::{CommandRefusal, Put, PutError, PutSku, SkuAdmin};
use crate::clock::{Clock, Millis, SystemClock};
use crate::config::{Config, Needs};
use crate::http::parse_time;
use crate::http::views::{AdminSkuView, LagView, parse_late_payment};
use crate::ids::{self, SkuId};
use crate::ingress::Ingress;
use crate::inventory::{LatePayment, Settings};
use crate::kafka::{LogEnds, Producer};
use crate::limits;
use crate::store::{CatalogueEntry, Store};
use crate::waiters::Waiters;

#[derive(Subcommand)]
pub(super) enum Sku {
    /// Create a SKU, or replace all its settings; may be run again
    Put(PutArgs),
    /// Show one SKU
    Show {
        /// Which
        #[arg(value_parser = parse_sku)]
        sku: SkuId,
    },
    /// List all SKUs
    List,
}

/// What is left out gets its default.
#[derive(Args)]
pub(super) struct PutArgs {
    /// The SKU: 1 to 64 characters of A-Z a-z 0-9 . _ : -
    #[arg(value_parser = parse_sku)]
    sku: SkuId,
    /// Units in the sale: required on creation, afterwards only compared
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(i64).range(0..=limits::ON_HAND_MAX))]
    on_hand: Option<i64>,
    /// Units that one user may hold or own
    #[arg(long, value_name = "UNITS", default_value_t = Settings::default().user_limit)]
    user_limit: u32,
    /// How long a hold lasts, e.g. 120s, 2m
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = parse_seconds)]
    hold: u32,
    /// Start of the sale, RFC 3339 [default: open at once]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    starts_at: Option<Millis>,
    /// End of the sale, RFC 3339 [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    ends_at: Option<Millis>,
    /// What happens to a payment after the end of its hold: rereserve or reject
    #[arg(long, value_name = "POLICY", default_value = "rereserve", value_parser = parse_late_payment)]
    late_payment: LatePayment,
    /// Extensions that one hold may have
    #[arg(long, value_name = "N", default_value_t = Settings::default().extensions_max)]
    extensions_max: u32,
    /// What all extensions of one hold may add, e.g. 10m
    #[arg(long, value_name = "TIME", default_value = "600s", value_parser = parse_seconds)]
    extension_max: u32,
}

fn parse_sku(text: &str) -> Result<SkuId, ids::MalformedId> {
    SkuId::parse(text)
}

/// Whole seconds, minutes or hours: `120`, `120s`, `2m`, `1h`.
fn parse_seconds(text: &str) -> Result<u32, &'static str> {
    const MUST: &str = "must be a time like 120s, 2m or 1h";
    let (digits, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (
            digits,
            match text.as_bytes()[text.len() - 1] {
                b'm' => 60,
                b'h' => 3600,
                _ => 1,
            },
        ),
        None => (text, 1),
    };
    digits.parse::<u32>().ok().and_then(|n| n.checked_mul(unit)).ok_or(MUST)
}

impl Sku {
    /// Only a change is published.
    pub(super) fn needs(&self) -> &'static [Needs] {
        match self {
            Self::Put(_) => &[Needs::Database, Needs::Kafka],
            Self::Show { .. } | Self::List => &[Needs::Database],
        }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
        match self {
            Self::Put(args) => put(args, &config, store, is_json).await,
            Self::Show { sku } => {
                let found = store.load_skus(std::slice::from_ref(&sku)).await;
                match found.map_err(|error| Failure::unavailable(&error))?.pop() {
                    Some(entry) => show(&store, &[entry], is_json, true).await,
                    None => Err(Failure::refused(format!("UNKNOWN_SKU: there is no SKU {sku}"))),
                }
            }
            Self::List => {
                let entries = store.load_catalogue().await.map_err(|error| Failure::unavailable(&error))?;
                show(&store, &entries, is_json, false).await
            }
        }
    }
}

async fn put(args: PutArgs, config: &Config, store: Store, is_json: bool) -> Result<(), Failure> {
    let put = put_of(args)?;
    let waiters = Waiters::default();
    let unavailable = |error: crate::kafka::KafkaError| Failure::unavailable(&error);
    let producer = Producer::start(config.brokers(), &config.topic).map_err(unavailable)?;
    let log_ends = LogEnds::start(config.brokers(), &config.topic).map_err(unavailable)?;
    let ingress = Ingress::start(producer);
    // Ctrl-C ends this process at once: nobody has to be told to stop waiting.
    let never = CancellationToken::new();
    let admin = SkuAdmin::new(store.clone(), ingress.clone(), waiters, log_ends, Arc::new(SystemClock), never);
    let outcome = admin.put(put).await;
    ingress.shutdown().await;
    match outcome {
        Ok(Put::Created(entry) | Put::Changed(entry)) => show(&store, &[entry], is_json, true).await,
        Ok(Put::Refused(refusal)) => Err(refused(&refusal)),
        Ok(Put::Undecided { id, ticket }) => Err(Failure::unknown(format!(
            "command {id} is in the log at {ticket}, but not decided yet: is a consumer running?"
        ))),
        Err(PutError::OnHandRequired) => Err(Failure::refused("INVALID_FIELD: --on-hand is required to create a SKU")),
        Err(error @ PutError::NotSent(_)) => Err(Failure::unavailable(&error)),
        Err(error @ PutError::Unknown) => Err(Failure::unknown(error.to_string())),
        Err(PutError::Store(error)) => Err(Failure::unavailable(&error)),
    }
}

fn put_of(args: PutArgs) -> Result<PutSku, Failure> {
    let settings = Settings {
        user_limit: args.user_limit,
        hold_seconds: args.hold,
        starts_at: args.starts_at,
        ends_at: args.ends_at,
        late_payment: args.late_payment,
        extensions_max: args.extensions_max,
        extension_seconds_max: args.extension_max,
    };
    let wrong = settings.check();
    if !wrong.is_empty() {
        let lines: Vec<String> = wrong.iter().map(|(field, detail)| format!("{field} {detail}")).collect();
        return Err(Failure::usage(lines.join("\n")));
    }
    let request_id = format!("cli-{}", ids::fresh_id());
    Ok(PutSku { sku: args.sku, on_hand: args.on_hand, settings, key: None, request_id })
}

fn refused(refusal: &CommandRefusal) -> Failure {
    match refusal {
        CommandRefusal::StockChanged { on_hand } => Failure::refused(format!("STOCK_CHANGED: on hand are {on_hand}")),
        CommandRefusal::SettingsChanged => {
            Failure::refused("SETTINGS_CHANGED: somebody else changed the settings at the same time")
        }
        CommandRefusal::KeyReused => Failure::refused("IDEMPOTENCY_KEY_REUSED: the key named another change"),
        CommandRefusal::Poisoned(reason) => Failure::bug(format!("the change is among the dead letters: {reason}")),
    }
}

/// Prints SKUs, one as an object or several as a list, or as a table for people.
async fn show(store: &Store, entries: &[CatalogueEntry], is_json: bool, is_single: bool) -> Result<(), Failure> {
    let partitions = store.load_partitions().await.map_err(|error| Failure::unavailable(&error))?;
    let now = SystemClock.now();
    let view = |entry: &CatalogueEntry| {
        let partition = partitions.iter().find(|p| p.partition == entry.partition);
        AdminSkuView::of(entry, partition, LagView::default(), now)
    };
    let views: Vec<AdminSkuView> = entries.iter().map(view).collect();
    if is_json {
        return match views.as_slice() {
            [single] if is_single => print(pretty(single)),
            several => print(pretty(&several)),
        };
    }
    print(format!(
        "{:<24} {:<10} {:>10} {:>10} {:>10} {:>10} {:>6} {:>6}",
        "SKU", "STATUS", "ON HAND", "RESERVED", "SOLD", "AVAILABLE", "LIMIT", "HOLD"
    ))?;
    for AdminSkuView { sku, .. } in &views {
        print(format!(
            "{:<24} {:<10} {:>10} {:>10} {:>10} {:>10} {:>6} {:>5}s",
            sku.sku_id,
            sku.status,
            sku.on_hand,
            sku.reserved,
            sku.sold,
            sku.available,
            sku.user_limit,
            sku.hold_seconds
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_minutes_or_hours() {
        for (text, seconds) in [("120", 120), ("120s", 120), ("2m", 120), ("1h", 3600)] {
            assert_eq!(parse_seconds(text), Ok(seconds), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5m", "2d", "é", "9999999999h"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
