//! How fast partitions are decided, and how far their log is known to reach: for queue positions and expected times.
//!
//! Everything here is an estimate or a lower bound. A known end only ever says "this offset is inside the log", never that one is not.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Queued;
use crate::ids::Ticket;
use crate::limits;
use crate::store::PartitionRow;

/// What is known of all partitions.
#[derive(Debug, Default)]
pub(super) struct Progress {
    partitions: Mutex<BTreeMap<i32, Seen>>,
}

/// What is known of one partition.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// The log reaches at least to here.
    end: i64,
    position: i64,
    position_at: Option<Instant>,
    is_halted: bool,
    /// Highest rate of late, slowly forgotten: an average would count the idle time between requests as slowness.
    records_per_second: f64,
    /// Commands per record, averaged over the tickets that were asked for.
    commands_per_record: f64,
}

impl Progress {
    /// Notes that the partition's log reaches to `end`.
    pub(super) fn observe_end(&self, partition: i32, end: i64) {
        let mut partitions = self.lock();
        let seen = partitions.entry(partition).or_default();
        seen.end = seen.end.max(end);
    }

    /// Notes positions as they were at `now`.
    pub(super) fn observe_positions(&self, rows: &[PartitionRow], now: Instant) {
        let mut partitions = self.lock();
        for row in rows {
            partitions.entry(row.partition).or_default().observe_position(row, now);
        }
    }

    /// Whether the ticket's offset is known to be inside the log.
    pub(super) fn is_inside(&self, ticket: Ticket) -> bool {
        self.lock().get(&ticket.partition).is_some_and(|seen| ticket.place.offset < seen.end)
    }

    /// A request that stands at `ticket`, seen from its partition's position.
    pub(super) fn queued(&self, ticket: Ticket, partition: &PartitionRow) -> Queued {
        let mut partitions = self.lock();
        let seen = partitions.entry(ticket.partition).or_default();
        seen.observe_ticket(ticket);
        let records_ahead = u64::try_from(ticket.place.offset - partition.position).unwrap_or(0);
        Queued {
            ticket,
            queue_position: Some(seen.commands_in(records_ahead) + u64::from(ticket.place.index)),
            eta: partition.halted_reason.is_none().then(|| seen.eta(records_ahead)),
        }
    }

    /// Commands in so many records of the partition.
    pub(super) fn commands_in(&self, partition: i32, records: u64) -> u64 {
        self.lock().get(&partition).map_or(records, |seen| seen.commands_in(records))
    }

    /// The time to expect for a ticket that was delivered just now, by the last position seen.
    pub(super) fn eta_of_delivered(&self, ticket: Ticket) -> Option<Duration> {
        let partitions = self.lock();
        let Some(seen) = partitions.get(&ticket.partition).filter(|seen| seen.position_at.is_some()) else {
            return Some(limits::ETA_MIN);
        };
        // Nobody may have asked for a while: a position without a recent look would make an idle partition look far behind.
        let is_recent = seen.position_at.is_some_and(|at| at.elapsed() < limits::DECISION_RATE_SPAN_MIN * 2);
        let records_ahead = if is_recent { u64::try_from(ticket.place.offset - seen.position).unwrap_or(0) } else { 0 };
        (!seen.is_halted).then(|| seen.eta(records_ahead))
    }

    /// Nothing here panics while it holds the lock, and estimates would be whole even then.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<i32, Seen>> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn observe_position(&mut self, row: &PartitionRow, now: Instant) {
        self.is_halted = row.halted_reason.is_some();
        // Answers of queries that ran side by side may come in the wrong order.
        self.end = self.end.max(row.position);
        let Some(before) = self.position_at else {
            (self.position, self.position_at) = (row.position, Some(now));
            return;
        };
        let span = now.saturating_duration_since(before);
        if span < limits::DECISION_RATE_SPAN_MIN {
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let rate = (row.position - self.position).max(0) as f64 / span.as_secs_f64();
        let kept = (-span.as_secs_f64() / limits::DECISION_RATE_WINDOW.as_secs_f64()).exp();
        self.records_per_second = rate.max(self.records_per_second * kept);
        (self.position, self.position_at) = (row.position.max(self.position), Some(now));
    }

    /// A record of n commands shows indexes 0 to n-1, on average (n-1)/2: so tickets tell how packed records are.
    fn observe_ticket(&mut self, ticket: Ticket) {
        const WEIGHT: f64 = 1.0 / 64.0;
        let index = usize::from(ticket.place.index);
        if index < limits::RECORD_COMMANDS_MAX {
            #[expect(clippy::cast_precision_loss, reason = "below 50")]
            let shown = 2.0 * index as f64 + 1.0;
            let before = self.commands_per_record.max(1.0);
            self.commands_per_record = before + WEIGHT * (shown - before);
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of a positive number; the cast saturates"
    )]
    fn commands_in(&self, records: u64) -> u64 {
        (records as f64 * self.commands_per_record.max(1.0)).round() as u64
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn eta(&self, records_ahead: u64) -> Duration {
        // Below one a second nothing was measured but silence.
        if self.records_per_second < 1.0 {
            return limits::ETA_MIN;
        }
        let seconds = records_ahead as f64 / self.records_per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).max(limits::ETA_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Place;

    fn row(position: i64) -> PartitionRow {
        PartitionRow { partition: 0, epoch: 1, position, halted_reason: None }
    }
    fn ticket(offset: i64, index: u16) -> Ticket {
        Ticket { partition: 0, place: Place { offset, index } }
    }

    #[test]
    fn a_ticket_is_inside_once_an_end_beyond_it_was_seen() {
        let progress = Progress::default();
        assert!(!progress.is_inside(ticket(4, 0)));
        progress.observe_end(0, 5);
        assert!(progress.is_inside(ticket(4, 0)));
        assert!(!progress.is_inside(ticket(5, 0)));
        progress.observe_end(0, 3);
        assert!(progress.is_inside(ticket(4, 0)), "an older look changes nothing");
    }

    #[test]
    fn the_queue_position_is_the_number_of_requests_ahead() {
        let progress = Progress::default();
        assert_eq!(progress.queued(ticket(7, 0), &row(7)).queue_position, Some(0));
        assert_eq!(progress.queued(ticket(17, 0), &row(7)).queue_position, Some(10));
        // Records of 21 commands, seen often enough.
        for index in (0..21).cycle().take(2_100) {
            progress.queued(ticket(7, index), &row(7));
        }
        let ahead = progress.queued(ticket(107, 5), &row(7)).queue_position.expect("known");
        assert!((1_600..2_600).contains(&ahead), "100 records of about 21: {ahead}");
    }

    #[test]
    fn the_expected_time_follows_the_measured_rate_with_a_floor() {
        let progress = Progress::default();
        let t0 = Instant::now();
        assert_eq!(progress.queued(ticket(100, 0), &row(0)).eta, Some(limits::ETA_MIN), "nothing measured");
        progress.observe_positions(&[row(0)], t0);
        progress.observe_positions(&[row(100)], t0 + Duration::from_millis(100));
        let eta = progress.queued(ticket(600, 0), &row(100)).eta.expect("known");
        assert!((0.45..0.55).contains(&eta.as_secs_f64()), "500 ahead at 1,000 a second: {eta:?}");
        assert_eq!(progress.queued(ticket(100, 0), &row(100)).eta, Some(limits::ETA_MIN));
        // A second of silence is forgotten slowly, a minute wholly.
        progress.observe_positions(&[row(100)], t0 + Duration::from_secs(1));
        let eta = progress.queued(ticket(600, 0), &row(100)).eta.expect("known");
        assert!(eta < Duration::from_millis(600), "{eta:?}");
    }

    #[test]
    fn a_halted_partition_promises_no_time() {
        let halted = PartitionRow { halted_reason: Some("offset gap".to_owned()), ..row(0) };
        let queued = Progress::default().queued(ticket(3, 0), &halted);
        assert_eq!((queued.queue_position, queued.eta), (Some(3), None));
    }
}
