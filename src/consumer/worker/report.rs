//! What a committed batch tells: effects for Redis and waiters, metrics, one line of log.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{counter, gauge, histogram};

use super::super::gather::Batch;
use super::Decided;
use crate::clock::Clock;
use crate::effects::{BatchEffects, DecidedId, FirstDecision, FirstVerdict, SkuHint};
use crate::inventory::{Changes, Command, Decision, Logged, Outcome, Verdict};
use crate::store::{BatchHead, SettledHold};
use crate::telemetry::metrics as names;

/// The hints that follow from a batch.
pub(super) fn effects_of(partition: i32, epoch: i64, position: i64, batch: &Batch, decided: &Decided) -> BatchEffects {
    let Decided { outcome, settled: ended, .. } = decided;
    // A try and its retry took their units once: they are settled once, by the one that was decided.
    let decisions = batch.commands.iter().zip(&outcome.decisions).zip(&batch.received_at_us);
    let settled = decisions.filter_map(|((logged, decision), received_at_us)| {
        let Ok(Command::Reserve(reserve)) = &logged.command else { return None };
        if decision.verdict == Verdict::Duplicate {
            return None;
        }
        let minute = received_at_us.div_euclid(60_000_000);
        Some((reserve.sku.clone(), reserve.user.clone(), reserve.quantity.get(), minute))
    });
    let skus = outcome.changes.skus.iter().map(|(sku, change)| SkuHint {
        sku: sku.clone(),
        available: change.after.available(),
        holds_pending: change.after.reserved > 0,
        is_configured: change.before.as_ref().map(|b| b.settings_version) != Some(change.after.settings_version),
    });
    // A user of the batch has the batch's word.
    let mut units = outcome.changes.units.clone();
    for hold in ended {
        units.entry((hold.sku.clone(), hold.user.clone())).or_insert(hold.units_left);
    }
    let told = batch.commands.iter().zip(&outcome.decisions);
    let told = told.filter_map(|(logged, decision)| decided_id(logged, decision, &outcome.changes));
    let changed = outcome.changes.reservations.iter().filter(|(_, change)| change.before.is_some());
    let changed = changed.map(|(id, _)| *id).chain(ended.iter().map(|hold| hold.reservation));
    BatchEffects {
        partition,
        epoch,
        position,
        forgotten: Vec::new(),
        decided: told.chain(changed.map(DecidedId::changed)).collect(),
        units: units.into_iter().map(|((sku, user), units)| (sku, user, units)).collect(),
        settled: settled.collect(),
        skus: skus.collect(),
    }
}

/// What whoever waits for a command is told; `None` for one without an id.
fn decided_id(logged: &Logged, decision: &Decision, changes: &Changes) -> Option<DecidedId> {
    let command = match &logged.command {
        Ok(command) => command,
        Err(unfit) => return unfit.id.map(DecidedId::changed),
    };
    let id = command.id();
    let Command::Reserve(reserve) = command else { return Some(DecidedId::changed(id)) };
    // Of the SKU as the batch leaves it; a batch that reserved has changed it.
    let sku = || changes.skus.get(&reserve.sku).map(|change| &change.after);
    let verdict = match decision.verdict {
        // Not if a later command of the batch confirmed or cancelled it, or the batch reached the end of its hold.
        Verdict::Reserved { expires_at }
            if changes.reservations.get(&id).is_some_and(|made| made.after.version == 1) =>
        {
            sku()
                .filter(|sku| expires_at > sku.expired_through)
                .map(|sku| FirstVerdict::Reserved { expires_at, extensions_left: sku.settings.extensions_max })
        }
        Verdict::Rejected(rejection) => Some(FirstVerdict::Rejected(rejection)),
        _ => None,
    };
    let Decision { place, at, .. } = *decision;
    Some(DecidedId { id, first: verdict.map(|verdict| FirstDecision { place, at, verdict }) })
}

/// The hints that follow from ended holds that were settled between batches.
pub(super) fn effects_of_ended(partition: i32, epoch: i64, position: i64, ended: &[SettledHold]) -> BatchEffects {
    BatchEffects {
        partition,
        epoch,
        position,
        decided: ended.iter().map(|hold| DecidedId::changed(hold.reservation)).collect(),
        units: ended.iter().map(|hold| (hold.sku.clone(), hold.user.clone(), hold.units_left)).collect(),
        ..BatchEffects::default()
    }
}

/// Counts holds that ended, as their rows come to say so.
pub(super) fn count_ended(ended: &[SettledHold]) {
    if !ended.is_empty() {
        counter!(names::COMMANDS_DECIDED, "kind" => "expire", "outcome" => "done").increment(ended.len() as u64);
    }
}

/// Reserve commands of a batch, by outcome and reason.
type Reserves = BTreeMap<(&'static str, &'static str), u64>;

/// The share of reserve commands that got their units; `None` without any, so that an operator's batch does not look like a sold-out sale.
fn reserved_share(reserves: &Reserves) -> Option<f64> {
    let all: u64 = reserves.values().sum();
    let reserved = reserves.get(&("reserved", "")).copied().unwrap_or(0);
    (all > 0).then(|| reserved as f64 / all as f64)
}

/// Counts decisions once per batch and label, not once per request.
pub(super) fn measure(clock: &dyn Clock, batch: &Batch, outcome: &Outcome, took: Duration) {
    counter!(names::BATCH_PROCESSED, "outcome" => "committed").increment(1);
    histogram!(names::BATCH_SIZE).record(batch.commands.len() as f64);
    histogram!(names::BATCH_LATENCY, "phase" => "total").record(took);
    let (mut reserves, mut reserved) = (Reserves::new(), 0);
    let mut commands: BTreeMap<(&'static str, &'static str), u64> = BTreeMap::new();
    for (logged, decision) in batch.commands.iter().zip(&outcome.decisions) {
        if let Verdict::Poison(reason) = decision.verdict {
            counter!(names::POISON, "reason" => reason.code()).increment(1);
            continue;
        }
        let Ok(command) = &logged.command else { continue };
        let is_reserve = matches!(command, Command::Reserve(_));
        let outcome = match &decision.verdict {
            Verdict::Reserved { .. } => {
                reserved += 1;
                continue;
            }
            Verdict::Rejected(rejection) => {
                *reserves.entry(("rejected", rejection.code())).or_default() += 1;
                continue;
            }
            Verdict::Duplicate if is_reserve => {
                *reserves.entry(("duplicate", "")).or_default() += 1;
                continue;
            }
            Verdict::Duplicate => "duplicate",
            Verdict::Refused(_) => "rejected",
            _ => "done",
        };
        *commands.entry((command.kind(), outcome)).or_default() += 1;
    }
    if reserved > 0 {
        reserves.insert(("reserved", ""), reserved);
    }
    if let Some(rate) = reserved_share(&reserves) {
        gauge!(names::BATCH_ALLOCATION_RATE).set(rate);
    }
    for ((outcome, reason), count) in reserves {
        counter!(names::RESERVATIONS_DECIDED, "outcome" => outcome, "reason" => reason).increment(count);
    }
    for ((kind, outcome), count) in commands {
        counter!(names::COMMANDS_DECIDED, "kind" => kind, "outcome" => outcome).increment(count);
    }
    let decision_seconds = histogram!(names::RESERVATION_DECISION);
    let now_us = clock.now() * 1000;
    for received_at_us in batch.received_at_us.iter().filter(|at| **at > 0) {
        decision_seconds.record((now_us - received_at_us).max(0) as f64 / 1e6);
    }
}

/// One line per batch.
pub(super) fn log_line(partition: i32, head: &BatchHead, batch: &Batch, decided: &Decided, took: Duration) {
    let outcome = &decided.outcome;
    let count = |wanted: fn(&Verdict) -> bool| outcome.decisions.iter().filter(|d| wanted(&d.verdict)).count();
    tracing::info!(
        kafka.partition = partition,
        position = head.position,
        batch.size = batch.commands.len(),
        batch.records = batch.records.len(),
        reserved = count(|v| matches!(v, Verdict::Reserved { .. })),
        rejected = count(|v| matches!(v, Verdict::Rejected(_))),
        duplicate = count(|v| matches!(v, Verdict::Duplicate)),
        poison = count(|v| matches!(v, Verdict::Poison(_))),
        ended = decided.settled.len(),
        duration_ms = took.as_secs_f64() * 1e3,
        "committed batch"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_reserved_is_of_all_reserve_commands() {
        let reserves = |counts: &[((&'static str, &'static str), u64)]| counts.iter().copied().collect::<Reserves>();
        let rate = |counts| reserved_share(&reserves(counts));
        assert_eq!(rate(&[]), None, "nothing was asked for");
        assert_eq!(rate(&[(("reserved", ""), 250)]), Some(1.0));
        assert_eq!(rate(&[(("rejected", "SOLD_OUT"), 250)]), Some(0.0));
        let mixed = [
            (("duplicate", ""), 1),
            (("rejected", "SOLD_OUT"), 1),
            (("rejected", "USER_LIMIT"), 1),
            (("reserved", ""), 1),
        ];
        assert_eq!(rate(&mixed), Some(0.25));
    }
}
