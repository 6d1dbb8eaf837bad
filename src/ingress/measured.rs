//! A lane's metrics.

use std::time::{Duration, Instant};

use metrics::{Gauge, Histogram};

use super::levels::Governor;
use crate::telemetry::metrics::{
    INGRESS_ARRIVALS, INGRESS_LEVEL, INGRESS_QUEUE, INGRESS_RECORDS, INGRESS_TARGET, PUBLISH_LATENCY, PUBLISH_SIZE,
};

/// Handles of them.
pub(super) struct Measured {
    size: Histogram,
    latency: Histogram,
    queue: Gauge,
    records: Gauge,
    level: Gauge,
    target: Gauge,
    arrivals: Gauge,
}

impl Measured {
    /// Those of `partition`'s lane.
    pub(super) fn new(partition: i32) -> Self {
        let gauge = |name: &'static str| metrics::gauge!(name, "partition" => partition.to_string());
        Self {
            size: metrics::histogram!(PUBLISH_SIZE),
            latency: metrics::histogram!(PUBLISH_LATENCY),
            queue: gauge(INGRESS_QUEUE),
            records: gauge(INGRESS_RECORDS),
            level: gauge(INGRESS_LEVEL),
            target: gauge(INGRESS_TARGET),
            arrivals: gauge(INGRESS_ARRIVALS),
        }
    }

    /// So many commands went.
    pub(super) fn published(&self, commands: usize) {
        self.size.record(count(commands));
    }

    /// What is left and what is on its way, after a publish.
    pub(super) fn look(&self, governor: &Governor, (commands, records): (usize, usize), flying: usize, now: Instant) {
        self.queue.set(count(commands));
        self.records.set(count(records + flying));
        self.level.set(count(governor.level()));
        self.target.set(count(governor.setting().commands_max));
        self.arrivals.set(governor.per_second_at(now));
    }

    /// A publish has all its reports.
    pub(super) fn landed(&self, after: Duration) {
        self.latency.record(after.as_secs_f64());
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
