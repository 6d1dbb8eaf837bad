//! One partition's lane: takes what its collector has gathered, publishes it, and tells everybody what the reports say.
//!
//! Natural batching: what comes while a publish is in flight makes the next one, paced. All of it is one loop that looks at everything there
//! is to do ([`Lane::step`]) and then sleeps until there is news; no command wakes it while others are in flight.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, Pending, Record};
use super::counted::Counted;
use super::levels::{Governor, Policy, Table};
use super::measured::Measured;
use crate::ids::SkuId;
use crate::kafka::producer::{Link, OnReport, Report};
use crate::kafka::trace_headers::Traced;
use crate::limits;

/// What is handed over of a record.
pub(super) struct Message<'r> {
    /// Its key.
    pub(super) sku: &'r SkuId,
    /// Its bytes.
    pub(super) payload: &'r [u8],
    /// Its commands that belong to a trace.
    pub(super) traced: &'r [Traced],
}

/// Hands a record over; must call the second argument once, sooner or later, or drop it.
pub(super) type Publisher = Box<dyn Fn(Message<'_>, OnReport) + Send>;

/// The state of one lane. Dropped, it answers everybody: what was published is unknown, what was not is not sent.
pub(super) struct Lane {
    collector: Arc<Collector>,
    publisher: Publisher,
    link: watch::Receiver<Link>,
    governor: Governor,
    tables: watch::Receiver<Option<Table>>,
    flights: VecDeque<Flight>,
    measured: Measured,
    counted: Counted,
}

/// The records of one publish; over when the last of them has its report.
struct Flight {
    started: Instant,
    /// When those who still wait are told that nobody knows: one deadline for all.
    deadline: Instant,
    /// Number of the first record; the others follow without gaps.
    first: u64,
    /// Taken when told.
    records: Vec<Option<Pending>>,
    missing: usize,
}

/// Until when a lane has nothing to do.
struct Sleep {
    until: Option<Instant>,
    /// Unless so many commands wait.
    wake_at: usize,
}

impl Lane {
    /// A lane that publishes what gathers in `collector`, under a policy whose table is replaced by whatever `tables` brings.
    pub(super) fn new(
        collector: Arc<Collector>,
        publisher: Publisher,
        link: watch::Receiver<Link>,
        (policy, mut tables): (Policy, watch::Receiver<Option<Table>>),
        counted: Counted,
    ) -> Self {
        tables.mark_changed(); // there may have been one before this lane
        let governor = Governor::new(policy, Instant::now());
        let measured = Measured::new(collector.partition());
        Self { collector, publisher, link, governor, tables, flights: VecDeque::new(), measured, counted }
    }

    /// Works until `closing`, then publishes what is there and ends; ends at once when `abandoned`.
    pub(super) async fn run(mut self, closing: CancellationToken, abandoned: CancellationToken) {
        let work = async {
            let mut is_closing = false;
            while let Some(sleep) = self.step(is_closing, Instant::now()) {
                // All arms may be dropped half-way: they only watch.
                tokio::select! {
                    biased;
                    () = closing.cancelled(), if !is_closing => {
                        self.collector.close();
                        is_closing = true;
                    }
                    () = poll_fn(|context| self.collector.poll_news(sleep.wake_at, context)) => {}
                    changed = self.link.changed() => {
                        if changed.is_err() {
                            return; // the producer is gone and took the flights with it
                        }
                    }
                    () = at(sleep.until) => {}
                }
            }
        };
        let _ = abandoned.run_until_cancelled(work).await; // either way everybody is answered when the lane is dropped
    }

    /// Does all that there is to do at `now`. `None` = the lane is closed and empty.
    fn step(&mut self, is_closing: bool, now: Instant) -> Option<Sleep> {
        for (number, report) in self.collector.take_reports() {
            self.land(number, report, now);
        }
        self.expire(now);
        if self.tables.has_changed().unwrap_or(false)
            && let Some(table) = &*self.tables.borrow_and_update()
        {
            self.governor.set_table(table.clone());
        }
        let link = *self.link.borrow_and_update();
        if matches!(link, Link::Down | Link::Fatal) || self.is_overdue(now) {
            // They could only wait in vain.
            let refused = self.collector.refuse();
            self.refuse(refused);
        } else {
            self.collector.accept();
        }
        let sleep = self.publish_what_may(link == Link::Up, now);
        let is_empty = self.flights.is_empty() && is_closing && self.collector.look().commands == 0;
        (!is_empty).then_some(sleep)
    }

    /// Publishes as much as link, flights and pace allow.
    fn publish_what_may(&mut self, is_up: bool, now: Instant) -> Sleep {
        loop {
            let look = self.collector.look();
            self.governor.arrived(look.arrived, now);
            let setting = self.governor.setting();
            let expires = look.opened_at.map(|opened_at| opened_at + limits::DELIVERY_WAIT);
            let overdue = self.flights.iter().map(|flight| flight.deadline).filter(|deadline| *deadline > now);
            let until = overdue.chain(expires).min();
            if look.commands == 0 {
                return Sleep { until, wake_at: 1 };
            }
            if !is_up || self.flights.len() >= setting.in_flight_max {
                return Sleep { until, wake_at: usize::MAX };
            }
            let wait = self.governor.wait(look.commands, look.bytes, now);
            if !wait.is_zero() {
                return Sleep { until: Some(now + wait), wake_at: setting.commands_max };
            }
            self.publish(setting.commands_max, now);
            self.measured.look(&self.governor, self.collector.waiting(), self.in_flight(), now);
        }
    }

    /// Fires the next records at once.
    fn publish(&mut self, commands_max: usize, now: Instant) {
        let records = self.collector.take(commands_max, self.governor.bytes_max());
        let Some(first) = records.first() else { return };
        let (first, deadline) = (first.pending.number, first.pending.opened_at + limits::DELIVERY_WAIT);
        self.governor.started(now);
        self.measured.published(records.iter().map(|record| record.pending.commands()).sum());
        let mut flight = Flight { started: now, deadline, first, records: Vec::new(), missing: records.len() };
        let mut payloads = Vec::with_capacity(records.len());
        for Record { sku, payload, traced, pending, .. } in records {
            let reporter = self.collector.reporter(pending.number);
            let message = Message { sku: &sku, payload: &payload, traced: &traced };
            (self.publisher)(message, Box::new(move |report| reporter.report(report)));
            flight.records.push(Some(pending));
            payloads.push(payload);
        }
        self.flights.push_back(flight);
        self.collector.recycle(payloads.into_iter());
    }

    /// Records that are on their way.
    fn in_flight(&self) -> usize {
        self.flights.iter().map(|flight| flight.missing).sum()
    }

    /// Tells those who wait for a record what its report says.
    fn land(&mut self, number: u64, report: Report, now: Instant) {
        let place = |flight: &Flight| number >= flight.first && number - flight.first < flight.records.len() as u64;
        let at = self.flights.iter().position(place).expect("only records in flight have reports");
        let flight = &mut self.flights[at];
        let index = usize::try_from(number - flight.first).expect("a flight has few records");
        let pending = flight.records[index].take();
        flight.missing -= 1;
        if flight.missing == 0 {
            self.measured.landed(now.saturating_duration_since(flight.started));
            self.flights.remove(at);
        }
        // None: they were told at the deadline.
        if let Some(pending) = pending {
            self.counted.count(report, pending.commands());
            pending.settle(report);
        }
    }

    /// Whose time is over is told so: what was published is unknown, what was not never will be.
    fn expire(&mut self, now: Instant) {
        for flight in self.flights.iter_mut().filter(|flight| flight.deadline <= now) {
            for pending in flight.records.iter_mut().filter_map(Option::take) {
                self.counted.count(Report::Open, pending.commands());
                pending.settle(Report::Open);
            }
        }
        if let Some(opened_at_max) = now.checked_sub(limits::DELIVERY_WAIT) {
            let expired = self.collector.take_older(opened_at_max);
            self.refuse(expired);
        }
    }

    fn refuse(&self, records: Vec<Record>) {
        for record in records {
            self.counted.count(Report::Refused, record.pending.commands());
            record.pending.settle(Report::Refused);
        }
    }

    /// Whether reports are missing for so long that nothing behind them has a chance.
    fn is_overdue(&self, now: Instant) -> bool {
        self.flights.iter().any(|flight| flight.deadline <= now)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.collector.close();
        for pending in self.flights.drain(..).flat_map(|flight| flight.records).flatten() {
            self.counted.count(Report::Open, pending.commands());
            pending.settle(Report::Open);
        }
        let refused = self.collector.refuse();
        self.refuse(refused);
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}
