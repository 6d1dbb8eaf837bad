//! What requests were told, counted: by record, not by request.

use metrics::Counter;

use super::NotSent;
use crate::kafka::producer::Report;
use crate::telemetry::metrics::DELIVERIES;

/// Handles of the counters; cheap to clone.
#[derive(Clone)]
pub(super) struct Counted {
    delivered: Counter,
    full: Counter,
    unavailable: Counter,
    unknown: Counter,
}

impl Default for Counted {
    fn default() -> Self {
        let counter = |result: &'static str| metrics::counter!(DELIVERIES, "result" => result);
        Self {
            delivered: counter("delivered"),
            full: counter("full"),
            unavailable: counter("unavailable"),
            unknown: counter("unknown"),
        }
    }
}

impl Counted {
    /// So many commands were told what this report says.
    pub(super) fn count(&self, report: Report, commands: usize) {
        let counter = match report {
            Report::At(_) => &self.delivered,
            Report::Full => &self.full,
            Report::Refused => &self.unavailable,
            Report::Open => &self.unknown,
        };
        counter.increment(commands as u64);
    }

    /// One command was refused at the door.
    pub(super) fn refused(&self, why: NotSent) {
        let report = match why {
            NotSent::Full => Report::Full,
            NotSent::Unavailable => Report::Refused,
        };
        self.count(report, 1);
    }
}
