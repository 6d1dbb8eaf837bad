//! What a run has shown, for people and programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::{Plan, Seen, stock};
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::telemetry;

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// For people and programs.
    pub value: Value,
    /// What must never be; empty = none.
    pub violations: Vec<String>,
}

impl Report {
    pub(super) fn of(plan: &Plan, seen: &Seen) -> Self {
        let Seen { tally, rush, took, stocks, .. } = seen;
        let judged = stock::Seen { seconds: took.as_secs(), is_alone: plan.is_alone };
        let violations = stock::violations(&plan.skus, stocks, tally, judged);
        let value = json!({
            "at": rfc3339(SystemClock.now()),
            "generator": { "version": telemetry::VERSION, "commit": telemetry::REVISION },
            "machine": machine(),
            "settings": plan.settings.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect::<Map<_, _>>(),
            "target": plan.target, "profile": plan.schedule.profile.word(), "rate": plan.schedule.rate,
            "connections": plan.connections, "wait_seconds": plan.wait.map(|wait| wait.as_secs()), "keyed": plan.is_keyed,
            "batch": plan.batch,
            "skus": plan.skus.len(), "zipf": plan.zipf,
            "seconds": seconds(*rush), "seconds_in_all": seconds(*took),
            "offered": tally.offered, "answered_per_second": per_second(tally.offered, *rush),
            "accepted": tally.accepted, "failed": tally.failed, "refused": tally.refused,
            "reserved": tally.reserved_in_all(), "rejected": tally.rejected,
            "undecided": tally.undecided, "lost": tally.lost,
            "decided_in_the_answer": tally.decisions.len(),
            "decided_per_second": per_second(tally.decisions.len(), *rush),
            "sent_again": tally.sent_again, "connections_broken": tally.connections_broken, "not_now": tally.not_now,
            "latency_ms": millis(&tally.answers), "decision_ms": millis(&tally.decisions), "start_lag_ms": millis(&tally.starts),
            "cpu_us_per_request": cpu(plan, seen),
            "stock": plan.skus.iter().zip(stocks).filter_map(|(sku, (_, after))| {
                let after = after.as_ref()?;
                Some((sku.clone(), json!({"on_hand": after.on_hand, "reserved": after.reserved, "sold": after.sold})))
            }).collect::<Map<_, _>>(),
            "violations": violations,
        });
        Self { value, violations }
    }
}

/// Microseconds of CPU for each request that was offered, by process.
fn cpu(plan: &Plan, seen: &Seen) -> Map<String, Value> {
    let each = |us: u64| (us as f64 / seen.tally.offered.max(1) as f64 * 10.0).round() / 10.0;
    let mut processes: Map<String, Value> = plan
        .watched
        .iter()
        .zip(&seen.watched_us)
        .map(|(watched, us)| (watched.name.clone(), each(*us).into()))
        .collect();
    let all: u64 = seen.watched_us.iter().sum();
    processes.insert("generator".to_owned(), each(seen.generator_us).into());
    processes.insert("all".to_owned(), each(all + seen.generator_us).into());
    processes
}

/// Percentiles in milliseconds; a histogram of microseconds.
fn millis(histogram: &Histogram<u64>) -> Value {
    let at = |us: u64| (us as f64 / 10.0).round() / 100.0;
    if histogram.is_empty() {
        return Value::Null;
    }
    let percentile = |share| at(histogram.value_at_quantile(share));
    json!({"p50": percentile(0.5), "p90": percentile(0.9), "p95": percentile(0.95), "p99": percentile(0.99),
        "p999": percentile(0.999), "max": at(histogram.max())})
}

fn seconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

fn per_second(number: u64, took: Duration) -> u64 {
    (number as f64 / took.as_secs_f64().max(0.001)) as u64
}

/// Where it ran, as Linux tells.
fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':').map(|v| v.trim().to_owned()))
    };
    json!({
        "cpu": after(&read("/proc/cpuinfo"), "model name"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": after(&read("/proc/meminfo"), "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}
