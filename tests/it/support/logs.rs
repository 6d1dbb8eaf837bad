//! Random logs for `decide`: small worlds on purpose (four users, four SKUs, few units, few seconds), so that limits, the last unit and
//! the very end of a hold are reached all the time.

use flashsale::ids::{self, IdempotencyKey, Metadata, Note, PaymentRef, Place, Quantity, Reference, SkuId, UserId};
use flashsale::inventory::{
    Adjust, Cancel, Command, Configure, Confirm, Extend, LatePayment, Logged, Pause, PoisonReason, Reserve, Settings,
    StockChange, Tick, Unfit,
};
use flashsale::limits;
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

/// The partition that the logs are of.
pub const PARTITION: i32 = 3;
const LOG_LEN_MAX: usize = 90;

/// One command of a log to be made; what it refers to is found when the log is put together.
#[derive(Clone, Debug)]
enum Step {
    Reserve {
        user: u8,
        sku: u8,
        quantity: u32,
    },
    /// About an earlier request, or about none.
    Change {
        of: Option<Index>,
        how: Change,
        /// Named as its front door names it; else with a key of its own.
        is_named: bool,
        /// A wrong SKU, if any.
        sku: Option<u8>,
        /// The key of a confirm, one of few.
        key: Option<u8>,
    },
    Adjust {
        sku: u8,
        change: StockChange,
        /// One of few, so that it comes again.
        reference: Option<u8>,
        /// Likewise.
        key: Option<u8>,
    },
    Configure {
        sku: u8,
        seen: i64,
        on_hand: Option<i64>,
        settings: Settings,
        is_pinned_here: bool,
    },
    Pause {
        sku: u8,
        seen: i64,
        pauses: bool,
    },
    Tick {
        sku: u8,
    },
    /// The same bytes again.
    Repeat(Index),
    /// Another body under an id that was used.
    Reuse {
        of: Index,
        user: u8,
        sku: u8,
        quantity: u32,
    },
    /// Bytes that are no command; their id, if any, is another command's.
    Garbage(Option<Index>),
}

#[derive(Clone, Debug)]
enum Change {
    Confirm { payment: u8 },
    Cancel { has_note: bool },
    Extend { seconds: u32 },
}

/// A log that starts in an empty partition: first a few SKUs, then anything.
pub fn logs() -> impl Strategy<Value = Vec<Logged>> {
    let creations = prop::collection::vec((0..3u8, 0..12i64, settings(), passing_time()), 0..5).prop_map(|skus| {
        skus.into_iter().map(|(sku, on_hand, settings, passed)| (creation(sku, on_hand, settings), passed))
    });
    let steps = prop::collection::vec((steps(), passing_time()), 1..LOG_LEN_MAX);
    (creations, steps).prop_map(|(creations, steps)| log_of(creations.chain(steps).collect()))
}

fn creation(sku: u8, on_hand: i64, settings: Settings) -> Step {
    Step::Configure { sku, seen: 0, on_hand: Some(on_hand), settings, is_pinned_here: true }
}

fn steps() -> impl Strategy<Value = Step> {
    // SKU 3 is never created by the first steps: it is of another partition, or comes late.
    let skus = || prop_oneof![8 => 0..3u8, 1 => Just(3u8)];
    let request = move || (0..4u8, skus(), quantities());
    let target = (prop::option::weighted(0.95, any::<Index>()), prop::option::weighted(0.03, 0..4u8));
    let keys = || prop::option::weighted(0.5, 0..2u8);
    let change = (target, changes(), prop::bool::weighted(0.7), keys());
    prop_oneof![
        50 => request().prop_map(|(user, sku, quantity)| Step::Reserve { user, sku, quantity }),
        45 => change.prop_map(|((of, sku), how, is_named, key)| Step::Change { of, how, is_named, sku, key }),
        10 => any::<Index>().prop_map(Step::Repeat),
        3 => (any::<Index>(), request()).prop_map(|(of, (user, sku, quantity))| Step::Reuse { of, user, sku, quantity }),
        4 => prop::option::of(any::<Index>()).prop_map(Step::Garbage),
        8 => (skus(), stock_changes(), prop::option::of(0..3u8), keys()).prop_map(|(sku, change, reference, key)| {
            Step::Adjust { sku, change, reference, key }
        }),
        7 => (skus(), 1..4i64, any::<bool>()).prop_map(|(sku, seen, pauses)| Step::Pause { sku, seen, pauses }),
        6 => skus().prop_map(|sku| Step::Tick { sku }),
        9 => (0..4u8, 0..4i64, prop::option::weighted(0.4, 0..12i64), settings(), prop::bool::weighted(0.9)).prop_map(
            |(sku, seen, on_hand, settings, is_pinned_here)| Step::Configure {
                sku, seen, on_hand: if seen == 0 { on_hand.or(Some(7)) } else { on_hand }, settings, is_pinned_here,
            }
        ),
    ]
}

fn changes() -> impl Strategy<Value = Change> {
    prop_oneof![
        6 => (0..2u8).prop_map(|payment| Change::Confirm { payment }),
        3 => any::<bool>().prop_map(|has_note| Change::Cancel { has_note }),
        4 => prop::sample::select(vec![1u32, 5, 10, 20, 30]).prop_map(|seconds| Change::Extend { seconds }),
    ]
}

fn stock_changes() -> impl Strategy<Value = StockChange> {
    prop_oneof![
        4 => (1..6i64).prop_map(StockChange::By),
        4 => (-6..0i64).prop_map(StockChange::By),
        1 => Just(StockChange::By(limits::ON_HAND_MAX)),
        4 => (0..12i64, 0..12i64)
            .prop_map(|(compare_on_hand, on_hand)| StockChange::To { compare_on_hand, on_hand }),
    ]
}

fn quantities() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1..4u32, 2 => 4..13u32, 1 => Just(limits::QUANTITY_MAX)]
}

/// Milliseconds from one record to the next by the brokers' clocks: often none, sometimes backwards, sometimes a jump to where holds end.
/// Times are multiples of half a second, so that a record often stands exactly at the end of a hold, or at the start or the end of a sale.
fn passing_time() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => Just(0i64),
        8 => (1..4i64).prop_map(half_seconds),
        2 => (-8..0i64).prop_map(half_seconds),
        1 => prop::sample::select(vec![19i64, 20, 21, 40, 240]).prop_map(half_seconds),
    ]
}

fn half_seconds(count: i64) -> i64 {
    count * 500
}

fn settings() -> impl Strategy<Value = Settings> {
    let limit = prop_oneof![8 => 1..6u32, 1 => Just(limits::USER_LIMIT_MAX)];
    let hold = prop_oneof![6 => Just(limits::HOLD_SECONDS_MIN), 1 => Just(limits::HOLD_SECONDS_MAX), 2 => Just(30u32)];
    let start = prop::option::weighted(0.3, (-2..40i64).prop_map(half_seconds));
    let open_for = prop::option::weighted(0.3, (1..160i64).prop_map(half_seconds));
    let extensions = (0..4u32, prop::sample::select(vec![0u32, 30, 50, 600]));
    (limit, hold, start, open_for, prop::bool::weighted(0.3), extensions).prop_map(
        |(user_limit, hold_seconds, starts_at, open_for, is_strict, (extensions_max, extension_seconds_max))| {
            let late_payment = if is_strict { LatePayment::Reject } else { LatePayment::Rereserve };
            let ends_at = open_for.map(|open_for| starts_at.unwrap_or(0) + open_for);
            Settings {
                user_limit,
                hold_seconds,
                starts_at,
                ends_at,
                late_payment,
                extensions_max,
                extension_seconds_max,
            }
        },
    )
}

// ---- from steps to commands ---------------------------------------------------------------------------------------------------

fn log_of(steps: Vec<(Step, i64)>) -> Vec<Logged> {
    let mut log: Vec<Logged> = Vec::new();
    let mut at = 0;
    for (number, (step, passed)) in steps.into_iter().enumerate() {
        at += passed;
        let fresh_id = Uuid::from_u128(1 + number as u128);
        let command = command_of(step, fresh_id, &log);
        // Two commands a record: places have an index too.
        let place = Place { offset: i64::try_from(number / 2).expect("short"), index: u16::from(number % 2 == 1) };
        log.push(Logged { place, at, command });
    }
    log
}

fn command_of(step: Step, fresh_id: Uuid, log: &[Logged]) -> Result<Command, Unfit> {
    let earlier = |of: Index| if log.is_empty() { None } else { log[of.index(log.len())].command.clone().ok() };
    Ok(match step {
        Step::Reserve { user, sku, quantity } => reserve(fresh_id, user, sku, quantity),
        Step::Reuse { of, user, sku, quantity } => {
            reserve(earlier(of).map_or(fresh_id, |command| command.id()), user, sku, quantity)
        }
        Step::Repeat(of) => earlier(of).unwrap_or_else(|| reserve(fresh_id, 0, 0, 1)),
        Step::Garbage(of) => {
            let id = of.and_then(earlier).map(|command| command.id());
            return Err(Unfit { id, reason: PoisonReason::Malformed });
        }
        Step::Change { of, how, is_named, sku, key } => {
            with_key(change(of, &how, sku, is_named, fresh_id, log), key.map(key_named))
        }
        Step::Adjust { sku, change, reference, key } => {
            let reference = reference.map(|n| Reference::parse(&format!("po-{n}")).expect("legal"));
            let named = reference.as_ref().map(|r| ids::named_sku_command_id("adjust", &sku_id(sku), r.as_str()));
            let note = Note::parse("counted").expect("legal");
            let keyed = key.map(|key| ids::keyed_sku_command_id("adjust", &sku_id(sku), &key_named(key)));
            // A key without a reference is the name.
            let (id, key_id) = match named {
                Some(named) => (named, keyed),
                None => (keyed.unwrap_or(fresh_id), None),
            };
            Command::Adjust(Adjust { id, sku: sku_id(sku), change, note, reference, key_id })
        }
        Step::Configure { sku, seen, on_hand, settings, is_pinned_here } => Command::Configure(Configure {
            id: fresh_id,
            sku: sku_id(sku),
            pin: if is_pinned_here { PARTITION } else { PARTITION + 1 },
            seen_version: seen,
            on_hand,
            settings,
            patch_hash: None,
        }),
        Step::Pause { sku, seen, pauses } => {
            Command::Pause(Pause { id: fresh_id, sku: sku_id(sku), seen_version: seen, pauses, note: None })
        }
        Step::Tick { sku } => Command::Tick(Tick { id: fresh_id, sku: sku_id(sku) }),
    })
}

/// A command about one of the requests so far.
fn change(
    of: Option<Index>,
    how: &Change,
    wrong_sku: Option<u8>,
    is_named: bool,
    fresh_id: Uuid,
    log: &[Logged],
) -> Command {
    let requests: Vec<&Reserve> = log
        .iter()
        .filter_map(|logged| match &logged.command {
            Ok(Command::Reserve(reserve)) => Some(reserve),
            _ => None,
        })
        .collect();
    // A recent one, so that several commands meet at the same reservation.
    let recent = &requests[requests.len().saturating_sub(8)..];
    let target = of.filter(|_| !recent.is_empty()).map(|of| recent[of.index(recent.len())]);
    let reservation = target.map_or(Uuid::from_u128(u128::MAX), |reserve| reserve.id);
    let sku = wrong_sku.map(sku_id).or(target.map(|reserve| reserve.sku.clone())).unwrap_or_else(|| sku_id(0));
    let named = |kind, name: &str| {
        if is_named { ids::named_reservation_command_id(kind, reservation, name) } else { fresh_id }
    };
    match how {
        Change::Confirm { payment } => {
            let payment_ref = PaymentRef::parse(&format!("pay-{payment}")).expect("legal");
            let id = named("confirm", payment_ref.as_str());
            Command::Confirm(Confirm { id, reservation, sku, payment_ref, key_id: None })
        }
        Change::Cancel { has_note } => {
            let id = named("cancel", "");
            let note = has_note.then(|| Note::parse("changed my mind").expect("legal"));
            Command::Cancel(Cancel { id, reservation, sku, note })
        }
        Change::Extend { seconds } => Command::Extend(Extend { id: fresh_id, reservation, sku, seconds: *seconds }),
    }
}

/// A confirm with a key beside its payment.
fn with_key(command: Command, key: Option<IdempotencyKey>) -> Command {
    match command {
        Command::Confirm(confirm) => {
            let key_id = key.map(|key| ids::confirm_key_id(confirm.reservation, &key));
            Command::Confirm(Confirm { key_id, ..confirm })
        }
        other => other,
    }
}

fn key_named(number: u8) -> IdempotencyKey {
    IdempotencyKey::parse(&format!("key-{number}")).expect("legal")
}

fn reserve(id: Uuid, user: u8, sku: u8, quantity: u32) -> Command {
    let user = UserId::parse(&format!("u{user}")).expect("a legal id");
    let metadata = (quantity % 3 == 2).then(|| Metadata::parse(r#"{"cart":"7"}"#).expect("legal"));
    let quantity = Quantity::new(quantity).expect("1 to 1000");
    Command::Reserve(Reserve { id, user, sku: sku_id(sku), quantity, metadata })
}

/// One of the four SKUs of the logs.
pub fn sku_id(number: u8) -> SkuId {
    SkuId::parse(&format!("sku-{number}")).expect("a legal id")
}

/// Time passes for a SKU.
pub fn tick(sku: &SkuId, at: i64) -> Logged {
    let place = Place { offset: i64::MAX, index: 0 };
    Logged { place, at, command: Ok(Command::Tick(Tick { id: Uuid::max(), sku: sku.clone() })) }
}
