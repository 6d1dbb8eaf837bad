//! `decide` on random logs: what must hold for every log, at every prefix, in every cut into batches.
//!
//! The logs are small worlds on purpose (four users, four SKUs, few units), so that limits and the last unit are reached all the time.

use std::collections::BTreeSet;

use flashsale::ids::{Place, Quantity, SkuId, UserId};
use flashsale::inventory::{
    Command, Configure, Decision, LatePayment, Logged, PoisonReason, Rejection, Reserve, Settings, Status, Unfit,
    Verdict,
};
use flashsale::{limits, wire};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::support::memory::MemoryStore;
use crate::support::second_model;

const PARTITION: i32 = 3;
const LOG_LEN_MAX: usize = 90;

// ---- the properties -----------------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn decide_says_what_the_naive_model_says(log in logs()) {
        let mut store = new_store();
        let decisions = store.run(&log);
        for (decision, (logged, at, verdict)) in decisions.iter().zip(second_model::predict_all(PARTITION, &log)) {
            prop_assert_eq!(decision, &Decision { place: logged.place, at, verdict }, "about {:?}", logged.command);
        }
    }

    #[test]
    fn decide_says_the_same_in_any_cut_into_batches(log in logs(), cuts in prop::collection::vec(any::<Index>(), 0..12)) {
        let mut whole = new_store();
        let expected = whole.run(&log);
        let mut cut = new_store();
        let mut said = Vec::new();
        for batch in cut_at(&log, &cuts) {
            said.extend(cut.run(batch));
        }
        prop_assert_eq!(said, expected);
        prop_assert_eq!(without_movements(&cut), without_movements(&whole));
    }

    #[test]
    fn decide_does_not_look_ahead(log in logs(), cut in any::<Index>()) {
        // FIFO: what is said about a command depends on the commands before it alone.
        let prefix = &log[..cut.index(log.len())];
        let expected = new_store().run(&log);
        prop_assert_eq!(&new_store().run(prefix)[..], &expected[..prefix.len()]);
    }

    #[test]
    fn decide_never_promises_more_than_exists_at_any_prefix(log in logs()) {
        let mut store = new_store();
        for logged in &log {
            store.run(std::slice::from_ref(logged));
            for (id, sku) in &store.skus {
                let promised = store.units_in(id, Status::Reserved) + store.units_in(id, Status::Confirmed);
                prop_assert!(promised <= sku.on_hand, "{} of {} units of {} promised", promised, sku.on_hand, id);
            }
        }
    }

    #[test]
    fn decide_conserves_units_at_any_prefix(log in logs(), cuts in prop::collection::vec(any::<Index>(), 0..12)) {
        let mut store = new_store();
        for batch in cut_at(&log, &cuts) {
            store.run(batch);
            assert_conserved(&store)?;
        }
    }

    #[test]
    fn decide_keeps_every_user_within_the_limit_in_force(log in logs()) {
        let mut store = new_store();
        for logged in &log {
            let decisions = store.run(std::slice::from_ref(logged));
            if let (Verdict::Reserved { .. }, Ok(Command::Reserve(reserve))) = (&decisions[0].verdict, &logged.command) {
                let limit = store.skus[&reserve.sku].settings.user_limit;
                let units = store.units(&reserve.sku, &reserve.user);
                prop_assert!(units <= i64::from(limit), "{units} units under a limit of {limit}");
            }
        }
    }

    #[test]
    fn decide_refuses_for_a_true_reason_only(log in logs()) {
        let mut store = new_store();
        for logged in &log {
            let before = store.clone();
            let decision = store.run(std::slice::from_ref(logged)).remove(0);
            if let (Verdict::Rejected(rejection), Ok(Command::Reserve(reserve))) = (&decision.verdict, &logged.command) {
                assert_true_reason(&before, reserve, decision.at, rejection)?;
            }
        }
    }

    #[test]
    fn decide_gives_one_effect_per_id(log in logs()) {
        let decisions = new_store().run(&log);
        let mut effective = BTreeSet::new();
        for (logged, decision) in log.iter().zip(&decisions) {
            let has_effect = matches!(decision.verdict, Verdict::Reserved { .. } | Verdict::Rejected(_) | Verdict::Configured { .. });
            if let (true, Ok(command)) = (has_effect, &logged.command) {
                let is_reserve = matches!(command, Command::Reserve(_));
                prop_assert!(effective.insert((is_reserve, command.id())), "a second effect of {}", command.id());
            }
        }
    }

    #[test]
    fn decide_again_changes_nothing(log in logs(), from in any::<Index>(), cuts in prop::collection::vec(any::<Index>(), 0..4)) {
        let mut store = new_store();
        let decisions = store.run(&log);
        let after = store.clone();
        // A refused configure occupies no id: sent again it is a new try, so it is no part of this.
        let is_settled = |(_, decision): &(&Logged, &Decision)| !matches!(decision.verdict, Verdict::Refused(_));
        let settled: Vec<Logged> = log.iter().zip(&decisions).filter(is_settled).map(|(logged, _)| logged.clone()).collect();
        let suffix = &settled[from.index(settled.len() + 1)..];
        for batch in cut_at(suffix, &cuts) {
            for decision in store.run(batch) {
                let is_repeat = matches!(decision.verdict, Verdict::Duplicate | Verdict::Poison(PoisonReason::Malformed));
                prop_assert!(is_repeat, "{:?}", decision);
            }
        }
        prop_assert_eq!(store, after);
    }

    #[test]
    fn decide_moves_log_time_forwards_only(log in logs()) {
        let decisions = new_store().run(&log);
        prop_assert!(decisions.is_sorted_by_key(|decision| decision.at));
        for (logged, decision) in log.iter().zip(&decisions) {
            prop_assert!(decision.at >= logged.at);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn decide_panics_on_no_record_that_can_be_decoded(
        log in logs(),
        damages in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        times in prop::collection::vec(prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), 0..100_000i64], 1..8),
    ) {
        let mut store = new_store();
        for (offset, mut bytes) in records_of(&log).into_iter().enumerate() {
            for (index, byte) in &damages {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            store.run(&logged_from(&bytes, offset, times[offset % times.len()]));
        }
        assert_conserved(&store)?;
    }
}

#[test]
fn decide_properties_meet_every_verdict() {
    // Else the properties above would prove less than they say.
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeSet::new();
    for _ in 0..100 {
        let log = logs().new_tree(&mut runner).expect("the strategy rejects nothing").current();
        met.extend(new_store().run(&log).iter().map(|decision| verdict_name(&decision.verdict)));
    }
    let all = [
        "CHANGED",
        "CREATED",
        "DUPLICATE",
        "MALFORMED",
        "NOT_HERE",
        "RESERVED",
        "SALE_ENDED",
        "SALE_NOT_STARTED",
        "SETTINGS_CHANGED",
        "SOLD_OUT",
        "STOCK_CHANGED",
        "USER_LIMIT",
    ];
    assert_eq!(met.into_iter().collect::<Vec<_>>(), all);
}

// ---- what the properties compare ----------------------------------------------------------------------------------------------

fn new_store() -> MemoryStore {
    MemoryStore { partition: PARTITION, ..MemoryStore::default() }
}

/// Cuts a log into batches, some of them empty.
fn cut_at<'a>(log: &'a [Logged], cuts: &[Index]) -> Vec<&'a [Logged]> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(log.len() + 1)).collect();
    places.sort_unstable();
    places.push(log.len());
    let mut from = 0;
    places.into_iter().map(|to| &log[std::mem::replace(&mut from, to)..to]).collect()
}

/// Movements are cut by batch: only their fold is the same in every cut.
fn without_movements(store: &MemoryStore) -> MemoryStore {
    let mut store = store.clone();
    store.movements.clear();
    store.skus.values_mut().for_each(|sku| sku.movement_count = 0);
    store
}

/// Counters = sums of reservations = fold of movements.
fn assert_conserved(store: &MemoryStore) -> Result<(), TestCaseError> {
    for (id, sku) in &store.skus {
        prop_assert_eq!(sku.reserved, store.units_in(id, Status::Reserved));
        prop_assert_eq!(sku.sold, store.units_in(id, Status::Confirmed));
        let mut balance = [0; 3];
        let mut count = 0;
        for movement in store.movements.iter().filter(|movement| movement.sku == *id) {
            count += 1;
            prop_assert_eq!(movement.number, count, "movements are numbered without gaps");
            for (sum, delta) in balance.iter_mut().zip(movement.deltas) {
                *sum += delta;
            }
            prop_assert_eq!(movement.balance, balance, "the balance is the sum so far");
        }
        prop_assert_eq!(balance, [sku.on_hand, sku.reserved, sku.sold]);
        prop_assert_eq!(sku.movement_count, count);
    }
    Ok(())
}

/// The reason holds in the state before, and its numbers are the ones of that state, counted from the rows.
fn assert_true_reason(
    before: &MemoryStore,
    reserve: &Reserve,
    at: i64,
    rejection: &Rejection,
) -> Result<(), TestCaseError> {
    let sku = &before.skus[&reserve.sku];
    let wanted = i64::from(reserve.quantity.get());
    let mine = before.units(&reserve.sku, &reserve.user);
    let held = before.units_in(&reserve.sku, Status::Reserved);
    match *rejection {
        Rejection::SalePaused => prop_assert!(sku.is_paused),
        Rejection::SaleNotStarted { starts_at } => {
            prop_assert_eq!(sku.settings.starts_at, Some(starts_at));
            prop_assert!(at < starts_at);
        }
        Rejection::SaleEnded { ends_at } => {
            prop_assert_eq!(sku.settings.ends_at, Some(ends_at));
            prop_assert!(at >= ends_at);
        }
        Rejection::UserLimit { limit, remaining } => {
            prop_assert_eq!(limit, sku.settings.user_limit);
            prop_assert!(wanted > i64::from(remaining));
            prop_assert_eq!(i64::from(remaining), (i64::from(limit) - mine).max(0));
        }
        Rejection::SoldOut { available, holds_pending } => {
            let promised = held + before.units_in(&reserve.sku, Status::Confirmed);
            prop_assert_eq!(available, sku.on_hand - promised);
            prop_assert!(wanted > available, "no false sold-out");
            prop_assert_eq!(holds_pending, held > 0);
        }
    }
    Ok(())
}

fn verdict_name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Reserved { .. } => "RESERVED",
        Verdict::Rejected(rejection) => rejection.code(),
        Verdict::Configured { created: true, .. } => "CREATED",
        Verdict::Configured { created: false, .. } => "CHANGED",
        Verdict::Refused(refusal) => refusal.code(),
        Verdict::Confirmed { is_late: true } => "CONFIRMED late",
        Verdict::Confirmed { is_late: false } => "CONFIRMED",
        Verdict::Cancelled => "CANCELLED",
        Verdict::Extended { .. } => "EXTENDED",
        Verdict::Adjusted { .. } => "ADJUSTED",
        Verdict::Ticked { released: 0 } => "TICKED for nothing",
        Verdict::Ticked { .. } => "TICKED",
        Verdict::Duplicate => "DUPLICATE",
        Verdict::Poison(reason) => reason.code(),
    }
}

// ---- random logs --------------------------------------------------------------------------------------------------------------

/// One command of a log to be made; what it refers to is found when the log is put together.
#[derive(Clone, Debug)]
enum Step {
    Reserve {
        user: u8,
        sku: u8,
        quantity: u32,
    },
    Configure {
        sku: u8,
        seen: i64,
        on_hand: Option<i64>,
        settings: Settings,
        is_pinned_here: bool,
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

/// A log that starts in an empty partition: first a few SKUs, then anything.
fn logs() -> impl Strategy<Value = Vec<Logged>> {
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
    let request = || (0..4u8, prop_oneof![8 => 0..3u8, 1 => Just(3u8)], quantities());
    prop_oneof![
        70 => request().prop_map(|(user, sku, quantity)| Step::Reserve { user, sku, quantity }),
        10 => any::<Index>().prop_map(Step::Repeat),
        3 => (any::<Index>(), request()).prop_map(|(of, (user, sku, quantity))| Step::Reuse { of, user, sku, quantity }),
        5 => prop::option::of(any::<Index>()).prop_map(Step::Garbage),
        12 => (0..4u8, 0..4i64, prop::option::weighted(0.4, 0..12i64), settings(), prop::bool::weighted(0.9)).prop_map(
            |(sku, seen, on_hand, settings, is_pinned_here)| Step::Configure {
                sku, seen, on_hand: if seen == 0 { on_hand.or(Some(7)) } else { on_hand }, settings, is_pinned_here,
            }
        ),
    ]
}

fn quantities() -> impl Strategy<Value = u32> {
    prop_oneof![12 => 1..4u32, 2 => 4..13u32, 1 => Just(limits::QUANTITY_MAX)]
}

/// Milliseconds from one record to the next by the brokers' clocks: often none, sometimes backwards. Times are multiples of a coarse
/// tick, so that a record often stands exactly at the start or the end of a sale.
fn passing_time() -> impl Strategy<Value = i64> {
    prop_oneof![4 => Just(0i64), 8 => (1..4i64).prop_map(ticks), 2 => (-8..0i64).prop_map(ticks)]
}

fn ticks(count: i64) -> i64 {
    count * 500
}

fn settings() -> impl Strategy<Value = Settings> {
    let limit = prop_oneof![8 => 1..6u32, 1 => Just(limits::USER_LIMIT_MAX)];
    let hold = prop_oneof![Just(limits::HOLD_SECONDS_MIN), Just(limits::HOLD_SECONDS_MAX), Just(120u32)];
    let start = prop::option::weighted(0.3, (-2..40i64).prop_map(ticks));
    let open_for = prop::option::weighted(0.3, (1..80i64).prop_map(ticks));
    (limit, hold, start, open_for, any::<bool>()).prop_map(
        |(user_limit, hold_seconds, starts_at, open_for, is_strict)| {
            let late_payment = if is_strict { LatePayment::Reject } else { LatePayment::Rereserve };
            let ends_at = open_for.map(|open_for| starts_at.unwrap_or(0) + open_for);
            Settings { user_limit, hold_seconds, starts_at, ends_at, late_payment, ..Settings::default() }
        },
    )
}

fn log_of(steps: Vec<(Step, i64)>) -> Vec<Logged> {
    let mut log: Vec<Logged> = Vec::new();
    let mut at = 0;
    for (number, (step, passed)) in steps.into_iter().enumerate() {
        at += passed;
        let fresh_id = Uuid::from_u128(1 + number as u128);
        let earlier = |of: Index| if log.is_empty() { None } else { log[of.index(log.len())].command.clone().ok() };
        let command = match step {
            Step::Reserve { user, sku, quantity } => Ok(reserve(fresh_id, user, sku, quantity)),
            Step::Reuse { of, user, sku, quantity } => {
                Ok(reserve(earlier(of).map_or(fresh_id, |command| command.id()), user, sku, quantity))
            }
            Step::Repeat(of) => Ok(earlier(of).unwrap_or_else(|| reserve(fresh_id, 0, 0, 1))),
            Step::Garbage(of) => {
                Err(Unfit { id: of.and_then(earlier).map(|command| command.id()), reason: PoisonReason::Malformed })
            }
            Step::Configure { sku, seen, on_hand, settings, is_pinned_here } => Ok(Command::Configure(Configure {
                id: fresh_id,
                sku: sku_id(sku),
                pin: if is_pinned_here { PARTITION } else { PARTITION + 1 },
                seen_version: seen,
                on_hand,
                settings,
            })),
        };
        // Two commands a record: places have an index too.
        let place = Place { offset: i64::try_from(number / 2).expect("short"), index: u16::from(number % 2 == 1) };
        log.push(Logged { place, at, command });
    }
    log
}

fn reserve(id: Uuid, user: u8, sku: u8, quantity: u32) -> Command {
    let user = UserId::parse(&format!("u{user}")).expect("a legal id");
    Command::Reserve(Reserve {
        id,
        user,
        sku: sku_id(sku),
        quantity: Quantity::new(quantity).expect("1 to 1000"),
        metadata: None,
    })
}

fn sku_id(number: u8) -> SkuId {
    SkuId::parse(&format!("sku-{number}")).expect("a legal id")
}

// ---- the same logs as bytes ---------------------------------------------------------------------------------------------------

/// The good commands of a log, packed into records while the SKU stays the same.
fn records_of(log: &[Logged]) -> Vec<Vec<u8>> {
    let commands: Vec<&Command> = log.iter().filter_map(|logged| logged.command.as_ref().ok()).collect();
    let same_sku = commands.chunk_by(|a, b| a.sku() == b.sku());
    same_sku
        .map(|chunk| {
            let sent: Vec<wire::Sent> = chunk
                .iter()
                .take(limits::RECORD_COMMANDS_MAX)
                .map(|command| wire::Sent { received_at_us: 0, request_id: String::new(), command: (*command).clone() })
                .collect();
            wire::encode(chunk[0].sku(), sent.iter()).expect("1 to 50 commands of one SKU")
        })
        .collect()
}

fn logged_from(bytes: &[u8], offset: usize, at: i64) -> Vec<Logged> {
    let offset = i64::try_from(offset).expect("short");
    let commands = match wire::decode(bytes) {
        Ok(record) => record.commands.into_iter().map(|envelope| envelope.command).collect(),
        Err(wire::DecodeError::Undecodable(_)) => vec![Err(Unfit { id: None, reason: PoisonReason::Malformed })],
        Err(wire::DecodeError::UnknownVersion(_)) => Vec::new(),
    };
    let place = |index: usize| Place { offset, index: u16::try_from(index).expect("at most 50") };
    commands.into_iter().enumerate().map(|(index, command)| Logged { place: place(index), at, command }).collect()
}
