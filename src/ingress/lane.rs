//! One partition's lane: gathers, publishes, waits for all reports, and so on. What comes meanwhile makes the next publish.

use std::sync::Arc;

use metrics::{Gauge, Histogram};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::record::{self, Record};
use super::request::Request;
use super::{Delivery, NotSent};
use crate::kafka::producer::{Link, OnReport};
use crate::limits;
use crate::pace::Pace;
use crate::telemetry::metrics::{INGRESS_QUEUE, PUBLISH_LATENCY, PUBLISH_SIZE};

/// Hands a record over; must call the second argument once, sooner or later, or drop it.
pub(super) type Publisher = Box<dyn Fn(Record, OnReport) + Send>;

/// The state of one lane.
pub(super) struct Lane {
    partition: i32,
    waiting: mpsc::Receiver<Request>,
    publisher: Publisher,
    link: watch::Receiver<Link>,
    pace: Pace,
    measured: Measured,
}

/// The reports of one publish: done when the last record has its report.
struct Flight {
    started: Instant,
    done: oneshot::Receiver<()>,
}

/// Handles of the lane's metrics.
struct Measured {
    size: Histogram,
    latency: Histogram,
    queue: Gauge,
}

impl Lane {
    /// A lane that takes its requests from `waiting`.
    pub(super) fn new(
        partition: i32,
        waiting: mpsc::Receiver<Request>,
        publisher: Publisher,
        link: watch::Receiver<Link>,
    ) -> Self {
        let measured = Measured {
            size: metrics::histogram!(PUBLISH_SIZE),
            latency: metrics::histogram!(PUBLISH_LATENCY),
            queue: metrics::gauge!(INGRESS_QUEUE, "partition" => partition.to_string()),
        };
        let pace = Pace::new(limits::PUBLISH_PACE, Instant::now().into_std());
        Self { partition, waiting, publisher, link, pace, measured }
    }

    /// Works until `closing`, then publishes what is there and ends; ends at once when `abandoned`.
    pub(super) async fn run(mut self, closing: CancellationToken, abandoned: CancellationToken) {
        let work = async {
            let mut gathered = Vec::with_capacity(limits::PUBLISH_COMMANDS_MAX);
            while self.gather(&mut gathered, &closing).await {
                self.measured.queue.set(count(self.waiting.len()));
                if self.may_publish().await {
                    let flight = self.publish(gathered.drain(..));
                    self.land(flight).await;
                } else {
                    gathered.drain(..).for_each(refuse);
                }
            }
        };
        // What is dropped here unanswered is taken back by its submitters, or unknown to them if it was published.
        let _ = abandoned.run_until_cancelled(work).await;
    }

    /// Takes what is there, at least one request, and goes on while the pace says so. False = the lane is closed and empty.
    async fn gather(&mut self, gathered: &mut Vec<Request>, closing: &CancellationToken) -> bool {
        assert!(gathered.is_empty(), "a publish takes all that was gathered");
        tokio::select! {
            biased;
            () = closing.cancelled(), if !self.waiting.is_closed() => self.waiting.close(),
            _ = self.waiting.recv_many(gathered, limits::PUBLISH_COMMANDS_MAX) => {}
        }
        if gathered.is_empty() {
            // Just closed (what is left is still handed out), or closed and empty.
            self.waiting.recv_many(gathered, limits::PUBLISH_COMMANDS_MAX).await;
        }
        let mut taken = gathered.len();
        while taken > 0 {
            let now = Instant::now().into_std();
            self.pace.arrived(taken, now);
            let room = limits::PUBLISH_COMMANDS_MAX - gathered.len();
            let wait = self.pace.wait(room == 0, now);
            if wait.is_zero() {
                break;
            }
            // Cancel-safe: nothing is taken unless it ends up in `gathered`. Zero = out of time, or closed.
            taken = tokio::time::timeout(wait, self.waiting.recv_many(gathered, room)).await.unwrap_or(0);
        }
        !gathered.is_empty()
    }

    /// Whether a publish has a chance; waits while that is being found out.
    async fn may_publish(&mut self) -> bool {
        match self.link.wait_for(|link| *link != Link::Doubted).await {
            Ok(link) => *link == Link::Up,
            Err(_) => false, // the producer is gone
        }
    }

    /// Fires all records at once; each request that was taken back meanwhile is left out.
    fn publish(&mut self, gathered: impl Iterator<Item = Request>) -> Flight {
        let started = Instant::now();
        self.pace.started(started.into_std());
        let (landed, done) = oneshot::channel();
        // Held by every report to come: when the last one is gone, the flight is over.
        let landed = Arc::new(landed);
        let mut size = 0;
        for group in record::group(gathered.filter(Request::is_taken_for_publishing)) {
            size += group.len();
            let (record, waiting) = record::encode(group);
            let (partition, landed) = (self.partition, Arc::clone(&landed));
            let on_report = move |report| {
                waiting.answer(partition, report);
                drop(landed);
            };
            (self.publisher)(record, Box::new(on_report));
        }
        if size > 0 {
            self.measured.size.record(count(size));
        }
        Flight { started, done }
    }

    /// Waits until every record of the flight has its report. While it is overdue or no broker answers, requests that come are refused:
    /// they could only wait in vain behind it.
    async fn land(&mut self, flight: Flight) {
        let Flight { started, mut done } = flight;
        let overdue = tokio::time::sleep_until(started + limits::DELIVERY_WAIT);
        tokio::pin!(overdue);
        loop {
            let is_cut_off = matches!(*self.link.borrow_and_update(), Link::Down | Link::Fatal);
            let refuses = is_cut_off || overdue.is_elapsed();
            tokio::select! {
                _ = &mut done => break,
                () = &mut overdue, if !overdue.is_elapsed() => {}
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break; // the producer is gone and took the flight with it
                    }
                }
                request = self.waiting.recv(), if refuses && !self.waiting.is_closed() => {
                    request.into_iter().for_each(refuse);
                }
            }
        }
        self.measured.latency.record(started.elapsed().as_secs_f64());
    }
}

fn refuse(request: Request) {
    request.refuse(Delivery::NotSent(NotSent::Unavailable));
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^52")]
fn count(number: usize) -> f64 {
    number as f64
}
