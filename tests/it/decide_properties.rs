//! `decide` on random logs: what must hold for every log, at every prefix, in every cut into batches, whenever rows are settled.

use std::collections::BTreeSet;

use flashsale::clock;
use flashsale::ids::Place;
use flashsale::inventory::{Command, Decision, Event, Logged, Origin, PoisonReason, Status, Unfit, Verdict};
use flashsale::{limits, wire};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::laws::{
    assert_conserved, assert_lawful_step, assert_stored_as_told, assert_told, assert_true_reason,
};
use crate::support::logs::{PARTITION, logs, tick};
use crate::support::memory::MemoryStore;
use crate::support::second_model;

// ---- the same decisions, whatever surrounds them ------------------------------------------------------------------------------

proptest! {
    #[test]
    fn decide_says_what_the_second_model_says(log in logs(), weather in weather()) {
        let (mut store, decisions) = run(&log, &weather);
        let told = second_model::predict_all(PARTITION, &log);
        for (decision, (logged, at, verdict)) in decisions.iter().zip(&told) {
            prop_assert_eq!(decision, &Decision { place: logged.place, at: *at, verdict: verdict.clone() }, "about {:?}", logged.command);
        }
        store.settle(|_| true);
        assert_stored_as_told(&store, &told)?;
    }

    #[test]
    fn decide_says_the_same_in_any_cut_into_batches(log in logs(), weather in weather()) {
        let (mut whole, expected) = run(&log, &Weather::default());
        let (mut cut, said) = run(&log, &weather);
        prop_assert_eq!(said, expected);
        whole.settle(|_| true);
        cut.settle(|_| true);
        prop_assert_eq!(without_movements(&cut), without_movements(&whole));
    }

    #[test]
    fn decide_tells_every_change_once_and_in_order_in_any_cut(log in logs(), weather in weather()) {
        let (mut whole, _) = run(&log, &Weather::default());
        let (mut cut, _) = run(&log, &weather);
        whole.settle(|_| true);
        cut.settle(|_| true);
        assert_told(&cut)?;
        let (expected, told) = (by_origin(&whole), by_origin(&cut));
        prop_assert_eq!(told, expected);
    }

    #[test]
    fn decide_does_not_look_ahead(log in logs(), cut in any::<Index>()) {
        // FIFO: what is said about a command depends on the commands before it alone.
        let prefix = &log[..cut.index(log.len())];
        let expected = new_store().run(&log);
        prop_assert_eq!(&new_store().run(prefix)[..], &expected[..prefix.len()]);
    }

    #[test]
    fn decide_says_the_same_with_more_ticks(log in logs(), places in prop::collection::vec(any::<Index>(), 1..12), weather in weather()) {
        let skus = skus_of(&log);
        let mut ticked: Vec<Logged> = Vec::new();
        for (number, logged) in log.iter().enumerate() {
            for place in places.iter().filter(|place| place.index(log.len()) == number) {
                ticked.extend(skus.get(place.index(skus.len().max(1))).map(|sku| tick(sku, logged.at)));
            }
            ticked.push(logged.clone());
        }
        // Of the ticks themselves another one may take the work; a tick for a SKU that is not here is poison of its own.
        let without_ticks = |log: &[Logged], decisions: Vec<Decision>| -> Vec<Decision> {
            log.iter().zip(decisions).filter(|(logged, _)| !is_tick(logged)).map(|(_, decision)| decision).collect()
        };
        let expected = without_ticks(&log, new_store().run(&log));
        let said = without_ticks(&ticked, run(&ticked, &weather).1);
        prop_assert_eq!(said, expected);
    }

    #[test]
    fn decide_again_changes_nothing(log in logs(), from in any::<Index>(), weather in weather()) {
        let (mut store, decisions) = run(&log, &weather);
        // A repeat is a command too, and ends what is due: let that be over before.
        let due: Vec<Logged> = store.skus.keys().map(|sku| tick(sku, store.log_time)).collect();
        store.run(&due);
        let after = store.clone();
        // A refusal that occupies no id: sent again it is a new try, so it is no part of this. Nor is a poisoned command that is no reserve.
        let is_final = |(logged, decision): &(&Logged, &Decision)| match (&decision.verdict, &logged.command) {
            (Verdict::Refused(refusal), _) => refusal.is_remembered(),
            (Verdict::Poison(_), Ok(command)) => matches!(command, Command::Reserve(_) | Command::Tick(_)),
            _ => true,
        };
        let finals: Vec<Logged> = log.iter().zip(&decisions).filter(is_final).map(|(logged, _)| logged.clone()).collect();
        let suffix = &finals[from.index(finals.len() + 1)..];
        for (batch, _) in weather.batches(suffix) {
            for (logged, decision) in batch.iter().zip(store.run(batch)) {
                let is_repeat = match &decision.verdict {
                    Verdict::Duplicate | Verdict::Poison(PoisonReason::Malformed) | Verdict::Ticked { released: 0 } => true,
                    Verdict::Poison(PoisonReason::NotHere) => is_tick(logged),
                    _ => false,
                };
                prop_assert!(is_repeat, "{:?}", decision);
            }
        }
        prop_assert_eq!(store, after);
    }
}

// ---- at every prefix ----------------------------------------------------------------------------------------------------------

proptest! {
    #[test]
    fn decide_never_promises_more_than_exists_at_any_prefix(log in logs(), settles in settles()) {
        let mut store = new_store();
        for (number, logged) in log.iter().enumerate() {
            step(&mut store, logged, number, &settles);
            for (id, sku) in &store.skus {
                let promised = store.units_in(id, Status::Reserved) + store.units_in(id, Status::Confirmed);
                prop_assert!(promised <= sku.on_hand, "{} of {} units of {} promised", promised, sku.on_hand, id);
            }
        }
    }

    #[test]
    fn decide_conserves_units_at_any_prefix(log in logs(), weather in weather()) {
        let mut store = new_store();
        for (batch, settle) in weather.batches(&log) {
            store.run(batch);
            assert_conserved(&store)?;
            store.settle(settle);
            assert_conserved(&store)?;
        }
    }

    #[test]
    fn decide_keeps_every_user_within_the_limit_in_force(log in logs(), settles in settles()) {
        let mut store = new_store();
        for (number, logged) in log.iter().enumerate() {
            let before = store.clone();
            let decision = step(&mut store, logged, number, &settles);
            let taken = match (&decision.verdict, &logged.command) {
                (Verdict::Reserved { .. }, Ok(Command::Reserve(reserve))) => store.now(&reserve.id),
                (Verdict::Confirmed { is_late: true }, Ok(Command::Confirm(confirm))) => store
                    .now(&confirm.reservation)
                    .filter(|after| before.now(&confirm.reservation).is_some_and(|before| before.version < after.version)),
                _ => None,
            };
            if let Some(taken) = taken {
                let limit = store.skus[&taken.sku].settings.user_limit;
                let units = store.units(&taken.sku, &taken.user);
                prop_assert!(units <= i64::from(limit), "{units} units under a limit of {limit}");
            }
        }
    }

    #[test]
    fn decide_refuses_for_a_true_reason_only(log in logs(), settles in settles()) {
        let mut store = new_store();
        for (number, logged) in log.iter().enumerate() {
            let before = store.clone();
            let decision = step(&mut store, logged, number, &settles);
            if let (Verdict::Rejected(rejection), Ok(Command::Reserve(reserve))) = (&decision.verdict, &logged.command) {
                assert_true_reason(&before, reserve, decision.at, rejection)?;
            }
        }
    }

    #[test]
    fn decide_resolves_every_reservation_once(log in logs(), settles in settles()) {
        let mut store = new_store();
        for (number, logged) in log.iter().enumerate() {
            let before = store.clone();
            step(&mut store, logged, number, &settles);
            for id in store.reservations.keys() {
                assert_lawful_step(before.now(id).as_ref(), &store.now(id).expect("a row"))?;
            }
        }
    }

    #[test]
    fn decide_ends_holds_at_their_end_by_the_next_command_of_their_sku(log in logs(), settles in settles()) {
        let mut store = new_store();
        for (number, logged) in log.iter().enumerate() {
            let before = store.clone();
            let at = step(&mut store, logged, number, &settles).at;
            let sku = logged.command.as_ref().ok().map(Command::sku);
            for id in store.reservations.keys() {
                let after = store.now(id).expect("a row");
                let has_ended = after.expires_at.is_some_and(|ends| ends <= at);
                match after.status {
                    Status::Expired => prop_assert!(has_ended, "{id} ended before its end"),
                    Status::Reserved if Some(&after.sku) == sku => prop_assert!(!has_ended, "{id} should have ended"),
                    _ => {}
                }
                if Some(&after.sku) != sku {
                    prop_assert_eq!(Some(after), before.now(id), "a command of another SKU changed it");
                }
            }
        }
    }

    #[test]
    fn decide_gives_one_effect_per_id(log in logs(), weather in weather()) {
        let (_, decisions) = run(&log, &weather);
        let mut effective = BTreeSet::new();
        for (logged, decision) in log.iter().zip(&decisions) {
            let is_without = matches!(decision.verdict, Verdict::Duplicate | Verdict::Poison(_) | Verdict::Ticked { .. })
                || matches!(&decision.verdict, Verdict::Refused(refusal) if !refusal.is_remembered());
            if let (false, Ok(command)) = (is_without, &logged.command) {
                let is_reserve = matches!(command, Command::Reserve(_));
                prop_assert!(effective.insert((is_reserve, command.id())), "a second effect of {}", command.id());
            }
        }
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

// ---- anything that can be decoded ---------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn decide_panics_on_no_record_that_can_be_decoded(
        log in logs(),
        damages in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        times in prop::collection::vec(prop_oneof![any::<i64>(), Just(i64::MIN), Just(i64::MAX), 0..100_000i64], 1..8),
        sane_times in any::<bool>(),
    ) {
        let mut store = new_store();
        for (offset, mut bytes) in records_of(&log).into_iter().enumerate() {
            for (index, byte) in &damages {
                let index = index.index(bytes.len());
                bytes[index] = *byte;
            }
            let at = times[offset % times.len()];
            store.run(&logged_from(&bytes, offset, if sane_times { at.clamp(0, clock::LATEST) } else { at }));
        }
        // Beyond the years that can be stored the consumer decides nothing; there only panics are looked for.
        if sane_times {
            assert_conserved(&store)?;
        }
    }
}

#[test]
fn decide_properties_meet_every_kind_and_every_verdict() {
    // Else the properties above would prove less than they say.
    let mut runner = TestRunner::deterministic();
    let (mut kinds, mut verdicts) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..400 {
        let log = logs().new_tree(&mut runner).expect("the strategy rejects nothing").current();
        kinds.extend(log.iter().filter_map(|logged| logged.command.as_ref().ok()).map(Command::kind));
        verdicts.extend(new_store().run(&log).iter().map(|decision| verdict_name(&decision.verdict)));
    }
    assert_eq!(kinds, Command::KINDS.into_iter().collect());
    let all = [
        "ABOVE_MAXIMUM",
        "ADJUSTED",
        "ALREADY_CANCELLED",
        "ALREADY_CONFIRMED",
        "BELOW_COMMITTED",
        "CANCELLED",
        "CHANGED",
        "CONFIRMED",
        "CONFIRMED late",
        "CREATED",
        "DUPLICATE",
        "EXTENDED",
        "EXTENSION_LIMIT",
        "HOLD_EXPIRED",
        "IDEMPOTENCY_KEY_REUSED",
        "MALFORMED",
        "NOT_HERE",
        "NOT_RESERVED_YET",
        "PAID_UNFULFILLED",
        "RESERVATION_REJECTED",
        "RESERVED",
        "SALE_ENDED",
        "SALE_NOT_STARTED",
        "SALE_PAUSED",
        "SETTINGS_CHANGED",
        "SOLD_OUT",
        "STOCK_CHANGED",
        "TICKED",
        "TICKED for nothing",
        "USER_LIMIT",
    ];
    assert_eq!(verdicts.into_iter().collect::<Vec<_>>(), all);
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

// ---- what surrounds a log -----------------------------------------------------------------------------------------------------

/// How a log is cut into batches, and which ended holds are settled after each: nothing that a decision may depend on.
#[derive(Clone, Debug, Default)]
struct Weather {
    cuts: Vec<Index>,
    /// One bit per row; used in turn.
    settles: Vec<u64>,
}

fn weather() -> impl Strategy<Value = Weather> {
    (prop::collection::vec(any::<Index>(), 0..24), settles()).prop_map(|(cuts, settles)| Weather { cuts, settles })
}

fn settles() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..8)
}

impl Weather {
    /// The batches, some of them empty, and what is settled after each.
    fn batches<'a>(&'a self, log: &'a [Logged]) -> Vec<(&'a [Logged], impl Fn(usize) -> bool + 'a)> {
        let mut places: Vec<usize> = self.cuts.iter().map(|cut| cut.index(log.len() + 1)).collect();
        places.sort_unstable();
        places.push(log.len());
        let mut from = 0;
        let batches = places.into_iter().map(|to| &log[std::mem::replace(&mut from, to)..to]).enumerate();
        batches.map(|(number, batch)| (batch, chosen(&self.settles, number))).collect()
    }
}

fn chosen(settles: &[u64], number: usize) -> impl Fn(usize) -> bool + 'static {
    let bits = if settles.is_empty() { 0 } else { settles[number % settles.len()] };
    move |row| bits >> (row % 64) & 1 == 1
}

fn run(log: &[Logged], weather: &Weather) -> (MemoryStore, Vec<Decision>) {
    let mut store = new_store();
    let mut decisions = Vec::new();
    for (batch, settle) in weather.batches(log) {
        decisions.extend(store.run(batch));
        store.settle(settle);
    }
    (store, decisions)
}

/// One command in a batch of its own, and what is settled after it.
fn step(store: &mut MemoryStore, logged: &Logged, number: usize, settles: &[u64]) -> Decision {
    let decision = store.run(std::slice::from_ref(logged)).remove(0);
    store.settle(chosen(settles, number));
    decision
}

fn new_store() -> MemoryStore {
    MemoryStore { partition: PARTITION, ..MemoryStore::default() }
}

fn is_tick(logged: &Logged) -> bool {
    matches!(logged.command, Ok(Command::Tick(_)))
}

fn skus_of(log: &[Logged]) -> Vec<flashsale::ids::SkuId> {
    let skus: BTreeSet<_> = log.iter().filter_map(|logged| Some(logged.command.as_ref().ok()?.sku().clone())).collect();
    skus.into_iter().collect()
}

// ---- what the properties compare ----------------------------------------------------------------------------------------------

/// Movements are cut by batch: only their fold is the same in every cut.
/// The events of commands, in order; and the ends of holds, whose place among them is free.
fn by_origin(store: &MemoryStore) -> (Vec<Event>, Vec<String>) {
    let (ends, commands): (Vec<Event>, Vec<Event>) =
        store.events.iter().cloned().partition(|event| event.origin == Origin::EndOfHold);
    let mut ends: Vec<String> = ends.iter().map(|event| format!("{event:?}")).collect();
    ends.sort();
    (commands, ends)
}

fn without_movements(store: &MemoryStore) -> MemoryStore {
    let mut store = store.clone();
    store.movements.clear();
    store.events.clear();
    store.skus.values_mut().for_each(|sku| sku.movement_count = 0);
    store
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
