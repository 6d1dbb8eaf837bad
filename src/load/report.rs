//! What was seen from outside, and whether it can be true.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Plan;

/// What became of one buyer.
#[derive(Clone, Debug, Default)]
pub(super) struct Fate {
    pub is_accepted: bool,
    pub status_url: Option<String>,
    pub decision: Option<Decision>,
    /// Code of a final refusal.
    pub refusal: Option<String>,
    /// Why it was told to come again, last.
    pub not_now: Option<String>,
    pub retries: u32,
    /// Of which connections that broke.
    pub broken: u32,
    /// From when it was due to the last answer.
    pub latency: Duration,
}

/// What became of an accepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Reserved,
    Rejected(String),
    /// Not in the buyer's patience.
    Undecided,
    /// 404, though it was accepted.
    Lost,
}

/// The SKU at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stock {
    pub on_hand: i64,
    pub reserved: i64,
    pub sold: i64,
    pub hold_seconds: i64,
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// For people and programs.
    pub value: Value,
    /// What must never be; empty = none.
    pub violations: Vec<String>,
}

impl Report {
    pub(super) fn of(plan: &Plan, took: Duration, fates: &[Fate], stock: Option<Stock>) -> Self {
        let count = |is: &dyn Fn(&Fate) -> bool| fates.iter().filter(|fate| is(fate)).count();
        let reserved = count(&|f| f.decision == Some(Decision::Reserved));
        let lost = count(&|f| f.decision == Some(Decision::Lost));
        let undecided = count(&|f| f.decision == Some(Decision::Undecided));
        let accepted = count(&|f| f.is_accepted);
        let failed = count(&|f| !f.is_accepted && f.refusal.is_none());
        let rejected = tally(fates.iter().filter_map(|fate| match &fate.decision {
            Some(Decision::Rejected(reason)) => Some(reason.clone()),
            _ => None,
        }));
        let mut latencies: Vec<Duration> = fates.iter().filter(|f| f.is_accepted).map(|f| f.latency).collect();
        latencies.sort_unstable();
        let violations = violations(took, reserved, lost, undecided, stock);
        let value = json!({
            "target": plan.target, "sku_id": plan.sku, "rate": plan.rate, "seconds": took.as_secs_f64(),
            "offered": fates.len(), "accepted": accepted, "failed": failed,
            "refused": tally(fates.iter().filter_map(|f| f.refusal.clone())),
            "reserved": reserved, "rejected": rejected, "undecided": undecided, "lost": lost,
            "sent_again": fates.iter().map(|f| f.retries).sum::<u32>(),
            "connections_broken": fates.iter().map(|f| f.broken).sum::<u32>(),
            "not_now": tally(fates.iter().filter_map(|f| f.not_now.clone())),
            "latency_ms": {"p50": at(&latencies, 0.5), "p95": at(&latencies, 0.95), "p99": at(&latencies, 0.99), "max": at(&latencies, 1.0)},
            "stock": stock.map(|s| json!({"on_hand": s.on_hand, "reserved": s.reserved, "sold": s.sold})),
            "violations": violations,
        });
        Self { value, violations }
    }
}

/// What can't be, if every answer was honest.
fn violations(took: Duration, reserved: usize, lost: usize, undecided: usize, stock: Option<Stock>) -> Vec<String> {
    let mut violations = Vec::new();
    if lost > 0 {
        violations.push(format!("{lost} accepted requests are unknown afterwards"));
    }
    if undecided > 0 {
        violations.push(format!("{undecided} accepted requests have no decision"));
    }
    match stock {
        None => violations.push("the stock could not be read at the end".to_owned()),
        Some(Stock { on_hand, reserved: held, sold, hold_seconds }) => {
            if held + sold > on_hand {
                violations.push(format!("{held} held and {sold} sold of {on_hand}"));
            }
            // A longer run may see units again whose holds have ended.
            let is_first_sale = i64::try_from(took.as_secs()).is_ok_and(|seconds| seconds < hold_seconds);
            if is_first_sale && i64::try_from(reserved).is_ok_and(|reserved| reserved > on_hand) {
                violations.push(format!("{reserved} buyers were told that they have one of {on_hand}"));
            }
        }
    }
    violations
}

fn tally(names: impl Iterator<Item = String>) -> BTreeMap<String, u64> {
    let mut tally = BTreeMap::new();
    names.for_each(|name| *tally.entry(name).or_default() += 1);
    tally
}

/// Milliseconds at a share of sorted durations.
fn at(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).map_or(0.0, |d| (d.as_secs_f64() * 1e4).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let second = Duration::from_secs(1);
        Plan { target: "t".into(), sku: "s".into(), rate: 4, duration: second, connections: 1, patience: second }
    }

    fn stock(on_hand: i64, reserved: i64, sold: i64) -> Option<Stock> {
        Some(Stock { on_hand, reserved, sold, hold_seconds: 60 })
    }

    fn accepted(decision: Decision, millis: u64) -> Fate {
        Fate { is_accepted: true, decision: Some(decision), latency: Duration::from_millis(millis), ..Fate::default() }
    }

    #[test]
    fn a_run_is_added_up() {
        let fates = [
            accepted(Decision::Reserved, 10),
            accepted(Decision::Rejected("SOLD_OUT".into()), 30),
            Fate { refusal: Some("SOLD_OUT".into()), ..Fate::default() },
            Fate { retries: 3, broken: 1, not_now: Some("HALTED".into()), ..Fate::default() },
        ];
        let report = Report::of(&plan(), Duration::from_secs(1), &fates, stock(1, 1, 0));
        assert_eq!(report.violations, Vec::<String>::new());
        let value = report.value;
        for (member, expected) in [
            ("offered", 4),
            ("accepted", 2),
            ("failed", 1),
            ("reserved", 1),
            ("sent_again", 3),
            ("connections_broken", 1),
        ] {
            assert_eq!(value[member], expected, "{member}");
        }
        assert_eq!(value["rejected"]["SOLD_OUT"], 1);
        assert_eq!(value["refused"]["SOLD_OUT"], 1);
        assert_eq!((&value["latency_ms"]["p50"], &value["latency_ms"]["max"]), (&json!(30.0), &json!(30.0)));
    }

    #[test]
    fn what_cannot_be_is_a_violation() {
        for (fates, stock) in [
            (vec![accepted(Decision::Lost, 1)], stock(5, 0, 0)),
            (vec![accepted(Decision::Undecided, 1)], stock(5, 0, 0)),
            (vec![accepted(Decision::Reserved, 1), accepted(Decision::Reserved, 1)], stock(1, 1, 0)),
            (vec![], stock(5, 3, 3)),
            (vec![], None),
        ] {
            assert_eq!(Report::of(&plan(), Duration::ZERO, &fates, stock).violations.len(), 1, "{fates:?} {stock:?}");
        }
        let twice = [accepted(Decision::Reserved, 1), accepted(Decision::Reserved, 1)];
        let later = Report::of(&plan(), Duration::from_secs(60), &twice, stock(1, 1, 0));
        assert_eq!(later.violations, Vec::<String>::new(), "the first hold may have ended");
    }
}
