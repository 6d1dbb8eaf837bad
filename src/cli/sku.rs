//! `flashsale sku`: the same administration as on the admin listener, without a running API.

use clap::{Args, Subcommand};

use super::asking::{self, Asking};
use super::{Failure, pretty, print};
use crate::admin::{ChangeSku, ChangeSkuError, SkuAdmin, SkuChange, SkuChanged};
use crate::clock::{Clock, Millis, SystemClock};
use crate::config::{Config, Needs};
use crate::http::views::{AdminSkuView, LagView, StockView, parse_late_payment};
use crate::http::{self, parse_time};
use crate::ids::{self, Note, Reference, SkuId};
use crate::inventory::{LatePayment, Settings, StockChange};
use crate::limits;
use crate::store::{CatalogueEntry, Store};

#[derive(Subcommand)]
pub(super) enum Sku {
    /// Create a SKU, or replace all its settings; may be run again
    Put(PutArgs),
    /// Refuse new requests for now; confirm, cancel and extend go on
    Pause(PauseArgs),
    /// Take requests again
    Resume(PauseArgs),
    /// Change the stock: by a delta, or to what was counted
    Adjust(AdjustArgs),
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
    /// Leave a SKU that exists as it is
    #[arg(long)]
    unless_exists: bool,
}

#[derive(Args)]
pub(super) struct PauseArgs {
    /// Which
    #[arg(value_parser = parse_sku)]
    sku: SkuId,
    /// Why, 1 to 200 characters
    #[arg(long, value_parser = Note::parse)]
    note: Option<Note>,
}

#[derive(Args)]
pub(super) struct AdjustArgs {
    /// Which
    #[arg(value_parser = parse_sku)]
    sku: SkuId,
    /// So many units more, or fewer
    #[arg(long, value_name = "UNITS", allow_negative_numbers = true, value_parser = parse_delta,
        required_unless_present = "on_hand", conflicts_with_all = ["on_hand", "compare_on_hand"])]
    delta: Option<i64>,
    /// The stock as it was counted
    #[arg(long, value_name = "UNITS", requires = "compare_on_hand", value_parser = clap::value_parser!(i64).range(0..=limits::ON_HAND_MAX))]
    on_hand: Option<i64>,
    /// The stock as it is believed to be: if it is another one, nothing changes
    #[arg(long, value_name = "UNITS", requires = "on_hand", value_parser = clap::value_parser!(i64).range(0..=limits::ON_HAND_MAX))]
    compare_on_hand: Option<i64>,
    /// Why, 1 to 200 characters
    #[arg(long, value_parser = Note::parse)]
    note: Note,
    /// What it belongs to: the same reference again changes nothing more
    #[arg(long, value_parser = Reference::parse)]
    reference: Option<Reference>,
}

fn parse_delta(text: &str) -> Result<i64, &'static str> {
    let is_good = |delta: &i64| *delta != 0 && (-limits::ON_HAND_MAX..=limits::ON_HAND_MAX).contains(delta);
    text.parse().ok().filter(is_good).ok_or("must be a number of units, not 0")
}

pub(super) fn parse_sku(text: &str) -> Result<SkuId, ids::MalformedId> {
    SkuId::parse(text)
}

/// Whole seconds, minutes or hours: `120`, `120s`, `2m`, `1h`.
pub(super) fn parse_seconds(text: &str) -> Result<u32, &'static str> {
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
            Self::Put(_) | Self::Pause(_) | Self::Resume(_) | Self::Adjust(_) => &[Needs::Database, Needs::Kafka],
            Self::Show { .. } | Self::List => &[Needs::Database],
        }
    }

    pub(super) async fn run(self, config: Config, is_json: bool) -> Result<(), Failure> {
        let store = Store::new(config.database(), &config.topic).map_err(|error| Failure::unavailable(&error))?;
        match self {
            Self::Put(args) => {
                if args.unless_exists
                    && let Some(entry) = find(&store, &args.sku).await?
                {
                    return show(&store, &[entry], is_json, true).await;
                }
                change(args.sku.clone(), put_of(args)?, &config, store, is_json).await
            }
            Self::Pause(PauseArgs { sku, note }) => {
                change(sku, SkuChange::Pause { pauses: true, note }, &config, store, is_json).await
            }
            Self::Resume(PauseArgs { sku, note }) => {
                change(sku, SkuChange::Pause { pauses: false, note }, &config, store, is_json).await
            }
            Self::Adjust(args) => change(args.sku.clone(), adjust_of(args), &config, store, is_json).await,
            Self::Show { sku } => match find(&store, &sku).await? {
                Some(entry) => show(&store, &[entry], is_json, true).await,
                None => Err(unknown_sku(&sku)),
            },
            Self::List => {
                let entries = store.load_catalogue().await.map_err(|error| Failure::unavailable(&error))?;
                show(&store, &entries, is_json, false).await
            }
        }
    }
}

async fn find(store: &Store, sku: &SkuId) -> Result<Option<CatalogueEntry>, Failure> {
    let mut found = store.load_skus(std::slice::from_ref(sku)).await.map_err(|error| Failure::unavailable(&error))?;
    Ok(found.pop())
}

/// Asks, and prints what came of it.
async fn change(sku: SkuId, change: SkuChange, config: &Config, store: Store, is_json: bool) -> Result<(), Failure> {
    let asking = Asking::start(config, &store)?;
    let admin = SkuAdmin::new(store.clone(), asking.commands.clone());
    let asked = ChangeSku { sku: sku.clone(), change, key: None, origin: asking::request_id().into() };
    let outcome = admin.change(asked).await;
    asking.end().await;
    match outcome {
        Ok(SkuChanged::Created(entry) | SkuChanged::Changed(entry)) => show(&store, &[entry], is_json, true).await,
        Ok(SkuChanged::Adjusted(stock)) => print_stock(&http::stock_view(&sku, stock), is_json),
        Ok(SkuChanged::Refused(refusal)) => Err(asking::refused(&refusal)),
        Ok(SkuChanged::Undecided { id, ticket }) => Err(asking::undecided(id, ticket)),
        Err(ChangeSkuError::OnHandRequired) => {
            Err(Failure::refused("INVALID_FIELD: --on-hand is required to create a SKU"))
        }
        Err(ChangeSkuError::UnknownSku) => Err(unknown_sku(&sku)),
        Err(ChangeSkuError::OutOfBounds(wrong)) => Err(out_of_bounds(&wrong)),
        Err(ChangeSkuError::Ask(error)) => Err(asking::not_asked(error)),
        Err(ChangeSkuError::Store(error)) => Err(Failure::unavailable(&error)),
        Err(error @ ChangeSkuError::Unshown) => Err(Failure::unknown(error.to_string())),
    }
}

fn unknown_sku(sku: &SkuId) -> Failure {
    Failure::refused(format!("UNKNOWN_SKU: there is no SKU {sku}"))
}

fn out_of_bounds(wrong: &[(&str, &str)]) -> Failure {
    let lines: Vec<String> = wrong.iter().map(|(field, detail)| format!("{field} {detail}")).collect();
    Failure::usage(lines.join("\n"))
}

fn put_of(args: PutArgs) -> Result<SkuChange, Failure> {
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
    if wrong.is_empty() { Ok(SkuChange::Put { on_hand: args.on_hand, settings }) } else { Err(out_of_bounds(&wrong)) }
}

fn adjust_of(args: AdjustArgs) -> SkuChange {
    let change = match (args.delta, args.compare_on_hand, args.on_hand) {
        (Some(delta), ..) => StockChange::By(delta),
        (None, Some(compare_on_hand), Some(on_hand)) => StockChange::To { compare_on_hand, on_hand },
        _ => unreachable!("the command line asks for one of them, and for both of the recount"),
    };
    SkuChange::Adjust { change, note: args.note, reference: args.reference }
}

fn print_stock(stock: &StockView, is_json: bool) -> Result<(), Failure> {
    if is_json {
        return print(pretty(stock));
    }
    let StockView { sku_id, on_hand, reserved, sold, available } = stock;
    print(format!("{sku_id}: on hand {on_hand}, reserved {reserved}, sold {sold}, available {available}"))
}

/// Prints SKUs, one as an object or several as a list, or as a table for people.
async fn show(store: &Store, entries: &[CatalogueEntry], is_json: bool, is_single: bool) -> Result<(), Failure> {
    let partitions = store.load_partitions().await.map_err(|error| Failure::unavailable(&error))?;
    let halts = store.load_halted_skus().await.map_err(|error| Failure::unavailable(&error))?;
    let now = SystemClock.now();
    let view = |entry: &CatalogueEntry| {
        let partition = partitions.iter().find(|p| p.partition == entry.partition);
        let of_sku = || halts.iter().find(|halt| halt.sku_id == entry.sku_id.as_str()).map(|halt| halt.reason.clone());
        let halted_reason = partition.and_then(|p| p.halted_reason.clone()).or_else(of_sku);
        AdminSkuView::of(entry, partition, halted_reason, LagView::default(), now)
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
