//! Every metric of the service: name, kind, unit, meaning and buckets, in one table.
//!
//! Names are dotted in the code; the exporter turns them into Prometheus spelling (`flashsale.batch.latency` becomes
//! `flashsale_batch_latency_seconds`, counters end in `_total`). No label is ever unbounded: no user, and routes are templates.
//! Hot paths keep the handles that `counter!`, `gauge!` and `histogram!` return.

use std::time::Duration;

use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tokio_util::sync::CancellationToken;

use crate::limits;

/// What a metric counts or measures, with the buckets of a histogram.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// A present value.
    Gauge,
    /// A distribution; a histogram without buckets would be exported as a summary, which can't be added up over processes.
    Histogram(&'static [f64]),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Dotted name, as in the code.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its unit.
    pub unit: Unit,
    /// Its meaning, for people.
    pub description: &'static str,
}

const BATCH_SIZES: &[f64] = &[1.0, 10.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 500.0, 1000.0];
/// The alarm on slow batches is at 10 and 15 ms: both are edges.
const BATCH_SECONDS: &[f64] = &[0.001, 0.002, 0.003, 0.005, 0.0075, 0.010, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0];
/// The promise is 60 ms, the alarm 120 ms: both are edges.
const DECISION_SECONDS: &[f64] = &[0.005, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.25, 0.5, 1.0, 2.5, 5.0];
/// Long polls last up to 30 s.
const HTTP_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.06, 0.12, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const PUBLISH_SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 4096.0];
/// A look takes milliseconds, a recount of millions of reservations seconds.
const AUDIT_LOOK_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
const PUBLISH_SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.0];

/// Counters without labels, which begin at 0: a panel shows 0 and not nothing, and `increase` sees their first event.
const FROM_ZERO: &[&str] = &[FENCED, PRECHECK_BYPASSED, TICKS_SENT, DEAD_LETTERS, STATUS_NOT_FOUND_AFTER_TICKET];

/// Makes a constant per metric and the table of them all; the doc comment is the description.
macro_rules! metrics_table {
    ($(#[doc = $description:literal] $constant:ident = $name:literal, $unit:ident, $kind:expr;)+) => {
        $(#[doc = $description] pub const $constant: &str = $name;)+

        /// All metrics.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, kind: $kind, unit: Unit::$unit, description: $description.trim_ascii() },)+
        ];
    };
}

metrics_table! {
    /// Batches, by `outcome` (committed, failed).
    BATCH_PROCESSED = "flashsale.batch.processed", Count, Kind::Counter;
    /// Commands in one batch.
    BATCH_SIZE = "flashsale.batch.size", Count, Kind::Histogram(BATCH_SIZES);
    /// Time of one batch, by `phase` (total = from snapshot to COMMIT, db, commit).
    BATCH_LATENCY = "flashsale.batch.latency", Seconds, Kind::Histogram(BATCH_SECONDS);
    /// Share (0 to 1) of the reserve commands that got their units, in the last batch of this process that had any.
    BATCH_ALLOCATION_RATE = "flashsale.batch.allocation.rate", Count, Kind::Gauge;
    /// Log end minus position in records, by `topic` and `partition`, of every partition, as this process last saw both.
    CONSUMER_LAG = "flashsale.kafka.consumer.lag", Count, Kind::Gauge;
    /// Age of the oldest undecided record over all partitions, by `topic`, as this process last saw it.
    KAFKA_LAG = "flashsale.kafka.lag", Seconds, Kind::Gauge;
    /// Time from acceptance to COMMIT of one reservation.
    RESERVATION_DECISION = "flashsale.reservation.decision", Seconds, Kind::Histogram(DECISION_SECONDS);
    /// Decided reserve commands, by `outcome` (reserved, rejected, duplicate) and `reason`.
    RESERVATIONS_DECIDED = "flashsale.reservations.decided", Count, Kind::Counter;
    /// Other decided commands, by `kind` and `outcome` (done, rejected, duplicate).
    COMMANDS_DECIDED = "flashsale.commands.decided", Count, Kind::Counter;
    /// Batches refused because another writer owns the partition or moved its position.
    FENCED = "flashsale.fenced", Count, Kind::Counter;
    /// 1 while a `partition` is halted: nobody decides until an operator resumes it.
    HALTED = "flashsale.halted", Count, Kind::Gauge;
    /// 1 while records of a `partition` wait and its position has not moved for 5 s, though it is not halted.
    STALLED = "flashsale.consumer.stalled", Count, Kind::Gauge;
    /// 1 while the poll thread has been silent for half of what the group allows.
    POLL_STALLED = "flashsale.consumer.poll.stalled", Count, Kind::Gauge;
    /// Holds that the writer of a `partition` remembers, about 75 bytes each: those that run, and ended ones whose rows do not say so yet.
    CONSUMER_HOLDS = "flashsale.consumer.holds", Count, Kind::Gauge;
    /// Commands that wait to be decided, by `sku`. An estimate: records that wait, times the SKU's commands per record in the last batches.
    QUEUE_DEPTH = "flashsale.queue.depth", Count, Kind::Gauge;
    /// Requests admitted without asking Redis, because it was away or late; the writer checks every limit again.
    PRECHECK_BYPASSED = "flashsale.precheck.bypassed", Count, Kind::Counter;
    /// Look-ups of users whom Redis' decided units would refuse, by `outcome` (confirmed; healed: the units were too high and are forgotten; failed).
    USER_LIMIT_CHECKED = "flashsale.user.limit.checked", Count, Kind::Counter;
    /// Commands that could not be decided, by `reason`.
    POISON = "flashsale.poison", Count, Kind::Counter;
    /// COMMITs whose answer was lost, by `outcome` found afterwards (committed, not_committed, fenced).
    COMMIT_AMBIGUOUS = "flashsale.commit.ambiguous", Count, Kind::Counter;
    /// Time of one HTTP request, long polls included, by `method`, `route` and `status`.
    HTTP_DURATION = "http.server.request.duration", Seconds, Kind::Histogram(HTTP_SECONDS);
    /// HTTP requests being answered now, by `listener` (public, admin).
    HTTP_IN_FLIGHT = "http.server.active.requests", Count, Kind::Gauge;
    /// Commands in one publish.
    PUBLISH_SIZE = "flashsale.ingress.publish.size", Count, Kind::Histogram(PUBLISH_SIZES);
    /// Time from publish to delivery report.
    PUBLISH_LATENCY = "flashsale.ingress.publish.latency", Seconds, Kind::Histogram(PUBLISH_SECONDS);
    /// Requests waiting in the lane of a `partition` when its last publish started.
    INGRESS_QUEUE = "flashsale.ingress.queue.depth", Count, Kind::Gauge;
    /// Records of a `partition` that wait or are on their way, after its last publish.
    INGRESS_RECORDS = "flashsale.ingress.records.pending", Count, Kind::Gauge;
    /// Pressure level of the lane of a `partition` at its last publish, 1 to 10; 0 = a fixed setting.
    INGRESS_LEVEL = "flashsale.ingress.level", Count, Kind::Gauge;
    /// Commands that a publish of a `partition` may take at that level.
    INGRESS_TARGET = "flashsale.ingress.target.size", Count, Kind::Gauge;
    /// Requests that arrive per second in the lane of a `partition`, averaged over 100 ms before its last publish.
    INGRESS_ARRIVALS = "flashsale.ingress.arrivals.per.second", Count, Kind::Gauge;
    /// Requests that were told what became of them on their way into the log, by `result` (delivered, full, unavailable, unknown).
    DELIVERIES = "flashsale.ingress.deliveries", Count, Kind::Counter;
    /// Batches whose hints Redis did not take, by `reason` (behind: too many waited; failed; fenced: newer ones were there before).
    EFFECTS_DROPPED = "flashsale.effects.dropped", Count, Kind::Counter;
    /// Ticks published, because holds were due.
    TICKS_SENT = "flashsale.ticks.sent", Count, Kind::Counter;
    /// Dead letters published.
    DEAD_LETTERS = "flashsale.dead.letters", Count, Kind::Counter;
    /// Events published, by `type`.
    EVENTS_PUBLISHED = "flashsale.events.published", Count, Kind::Counter;
    /// Age of the oldest event that is committed and not published, over all partitions.
    EVENTS_LAG = "flashsale.events.lag", Seconds, Kind::Gauge;
    /// SKUs whose events this process holds back, because one of them failed.
    EVENTS_HELD = "flashsale.events.held.skus", Count, Kind::Gauge;
    /// Events that can't be published and wait for a person (`flashsale relay parked`).
    EVENTS_PARKED = "flashsale.events.parked", Count, Kind::Gauge;
    /// Partitions of the outbox that this process leads.
    RELAY_LEADS = "flashsale.relay.leads", Count, Kind::Gauge;
    /// Units promised beyond the stock, by `sku`, as the auditor adds them up: 0 when fine.
    INVENTORY_OVERSELL = "flashsale.inventory.oversell", Count, Kind::Gauge;
    /// Units by which counters, movements and reservations disagree, by `sku`, as the auditor adds them up: 0 when fine.
    INVENTORY_DRIFT = "flashsale.inventory.drift", Count, Kind::Gauge;
    /// Contradictions that the auditor has found, by `check` (oversell, counters, movements, reservations, batches).
    AUDIT_FINDINGS = "flashsale.audit.findings", Count, Kind::Counter;
    /// Time of one look of the auditor, by `phase` (fold = what is new; recount = and all reservations).
    AUDIT_DURATION = "flashsale.audit.duration", Seconds, Kind::Histogram(AUDIT_LOOK_SECONDS);
    /// When the auditor ended its last look, since 1970.
    AUDIT_LAST_LOOK = "flashsale.audit.last.look.timestamp", Seconds, Kind::Gauge;
    /// When its last recount of all reservations ended, since 1970.
    AUDIT_LAST_RECOUNT = "flashsale.audit.last.recount.timestamp", Seconds, Kind::Gauge;
    /// 1 in the process whose auditor leads.
    AUDIT_LEADS = "flashsale.audit.leads", Count, Kind::Gauge;
    /// Tickets below the position without a decision: lost, or made up by a client.
    STATUS_NOT_FOUND_AFTER_TICKET = "flashsale.status.not.found.after.ticket", Count, Kind::Counter;
    /// Spans of traces, by `outcome` (exported, failed: the collector did not take them).
    TRACE_SPANS = "flashsale.trace.spans", Count, Kind::Counter;
    /// Always 1; `version` and `commit` say what runs.
    BUILD_INFO = "flashsale.build.info", Count, Kind::Gauge;
}

/// Installs the process's recorder, describes every metric and says what runs. The handle renders `/metrics`.
///
/// # Errors
/// If another recorder is installed already.
pub fn install() -> Result<PrometheusHandle, metrics::SetRecorderError<PrometheusRecorder>> {
    let recorder = recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe_all();
    FROM_ZERO.iter().for_each(|name| metrics::counter!(*name).increment(0));
    metrics::gauge!(BUILD_INFO, "version" => super::VERSION, "commit" => super::REVISION).set(1.0);
    Ok(handle)
}

/// A recorder that knows the buckets of every histogram; installed by [`install`], or locally by a test.
pub fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new().with_recommended_naming(true);
    for metric in ALL {
        if let Kind::Histogram(buckets) = metric.kind {
            // A prefix, because the exporter compares with the name after it appended the unit.
            let matcher = Matcher::Prefix(metric.name.to_owned());
            builder =
                builder.set_buckets_for_metric(matcher, buckets).expect("no histogram has an empty list of buckets");
        }
    }
    builder.build_recorder()
}

fn describe_all() {
    for metric in ALL {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.description),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.description),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.unit, metric.description),
        }
    }
}

/// Tidies the recorder's histograms until `stop`; without it the memory of the process grows.
pub async fn run_upkeep(handle: PrometheusHandle, stop: CancellationToken) {
    let mut every = tokio::time::interval(limits::METRICS_UPKEEP_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        handle.run_upkeep();
    }
}

/// Seconds of a duration, as histograms take them.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records every metric once and renders.
    fn rendered() -> String {
        let recorder = recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            describe_all();
            for metric in ALL {
                match metric.kind {
                    Kind::Counter => metrics::counter!(metric.name).increment(1),
                    Kind::Gauge => metrics::gauge!(metric.name).set(1.0),
                    Kind::Histogram(_) => metrics::histogram!(metric.name).record(0.012),
                }
            }
        });
        handle.render()
    }

    #[test]
    fn names_are_spelled_as_operators_know_them() {
        let text = rendered();
        for series in [
            "flashsale_batch_processed_total 1",
            "flashsale_batch_size_bucket{le=\"250\"} 1",
            "flashsale_batch_latency_seconds_bucket{le=\"0.01\"} 0",
            "flashsale_batch_latency_seconds_bucket{le=\"0.015\"} 1",
            "flashsale_batch_allocation_rate 1",
            "flashsale_kafka_consumer_lag 1",
            "flashsale_kafka_lag_seconds 1",
            "flashsale_reservation_decision_seconds_bucket{le=\"0.06\"} 1",
            "flashsale_reservation_decision_seconds_bucket{le=\"0.12\"} 1",
            "flashsale_reservations_decided_total 1",
            "flashsale_commands_decided_total 1",
            "flashsale_fenced_total 1",
            "flashsale_halted 1",
            "flashsale_consumer_stalled 1",
            "flashsale_consumer_poll_stalled 1",
            "flashsale_consumer_holds 1",
            "flashsale_queue_depth 1",
            "flashsale_precheck_bypassed_total 1",
            "flashsale_user_limit_checked_total 1",
            "flashsale_poison_total 1",
            "flashsale_commit_ambiguous_total 1",
            "http_server_request_duration_seconds_count 1",
            "http_server_active_requests 1",
            "flashsale_ingress_publish_size_count 1",
            "flashsale_ingress_publish_latency_seconds_count 1",
            "flashsale_ingress_queue_depth 1",
            "flashsale_ingress_records_pending 1",
            "flashsale_ingress_level 1",
            "flashsale_ingress_target_size 1",
            "flashsale_ingress_arrivals_per_second 1",
            "flashsale_ingress_deliveries_total 1",
            "flashsale_effects_dropped_total 1",
            "flashsale_dead_letters_total 1",
            "flashsale_events_published_total 1",
            "flashsale_events_lag_seconds 1",
            "flashsale_events_held_skus 1",
            "flashsale_events_parked 1",
            "flashsale_relay_leads 1",
            "flashsale_inventory_oversell 1",
            "flashsale_inventory_drift 1",
            "flashsale_audit_findings_total 1",
            "flashsale_audit_duration_seconds_bucket{le=\"1\"} 1",
            "flashsale_audit_last_look_timestamp_seconds 1",
            "flashsale_audit_last_recount_timestamp_seconds 1",
            "flashsale_audit_leads 1",
            "flashsale_status_not_found_after_ticket_total 1",
            "flashsale_build_info 1",
        ] {
            assert!(text.lines().any(|line| line == series), "missing: {series}\n{text}");
        }
        assert!(!text.contains("quantile="), "a summary: some histogram has no buckets\n{text}");
        assert!(ALL.iter().all(|m| text.contains(m.description)), "every metric says what it means");
    }

    #[test]
    fn names_are_unique_and_dotted() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|n| n.bytes().all(|b| b.is_ascii_lowercase() || b == b'.')), "{names:?}");
    }
}
