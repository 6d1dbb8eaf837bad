//! Ingress: requests in flight are collected per partition and published by natural batching.
//!
//! In the flow: admission > **ingress** > kafka. One lane per partition (`lane`): whatever gathered while its last publish was in flight
//! makes the next one, paced ([`crate::pace`]), grouped into records of one SKU (`record`). A full lane refuses at once. Nothing is lost and
//! nothing is said twice: every request gets exactly one [`Delivery`], and one failing record never fails its neighbours.
//!
//! Who answers first wins (`request::Claim`): the lane takes a request when it publishes it, the submitter takes it back when its time is
//! over. So "not sent" is only ever said of a request that no publish can contain.

mod lane;
mod record;
mod request;
mod span;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use metrics::Counter;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::Ticket;
use crate::kafka::Producer;
use crate::kafka::producer::Link;
use crate::limits;
use crate::telemetry::metrics::DELIVERIES;
use crate::telemetry::trace_context::TraceContext;
use crate::telemetry::traces::Span;
use crate::wire::Sent;

use lane::{Lane, Publisher};
use request::{Claim, Request};

/// What became of one request on its way into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The broker's delivery report says that it is in the log.
    Delivered(Ticket),
    /// It is definitely not in the log and never will be.
    NotSent(NotSent),
    /// It may be in the log, now or soon: no report within [`crate::limits::DELIVERY_WAIT`], or a report that leaves it open.
    Unknown,
}

/// Why a request was definitely not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// The lane or the client library's queue is full: 503 `OVERLOADED`.
    Full,
    /// The broker can't be reached or refuses, or the process stops: 503 `QUEUE_UNAVAILABLE`.
    Unavailable,
}

/// Why ingress can't go on; the process must end and be started anew.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not go on publishing: {reason}")]
pub struct IngressFailed {
    reason: String,
}

/// Handle to the lanes; cheap to clone.
#[derive(Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

struct Shared {
    producer: Producer,
    /// One slot per partition that could exist; a lane starts with its first request.
    lanes: Box<[OnceLock<mpsc::Sender<Request>>]>,
    tasks: TaskTracker,
    closing: CancellationToken,
    abandoned: CancellationToken,
    counted: Counted,
}

impl Ingress {
    /// Lanes that publish by `producer`. Needs a tokio runtime; nothing runs before the first request.
    pub fn start(producer: Producer) -> Self {
        let partitions = usize::try_from(limits::PARTITIONS_MAX).expect("a positive bound");
        let lanes = (0..partitions).map(|_| OnceLock::new()).collect();
        let (closing, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let shared =
            Shared { producer, lanes, tasks: TaskTracker::new(), closing, abandoned, counted: Counted::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Publishes one command to its SKU's pinned partition, together with whatever else is on its way there, and waits for the report,
    /// at most [`limits::DELIVERY_WAIT`].
    ///
    /// Dropping the future does not take the command back: whoever needs the outcome runs this in a task of its own.
    pub async fn submit(&self, partition: i32, sent: Sent) -> Delivery {
        self.submit_traced(partition, sent, None).await
    }

    /// The same for a command of a call that belongs to a trace: the record says so, and the publish has a span if the trace is sampled.
    pub async fn submit_traced(&self, partition: i32, sent: Sent, trace: Option<TraceContext>) -> Delivery {
        let span = trace.and_then(|trace| span::begin(self.shared.producer.topic(), partition, &sent, trace));
        let trace = span.as_ref().map(Span::context).or(trace);
        let delivery = match self.lane(partition) {
            Some(lane) => deliver(lane, sent, trace).await,
            None => Delivery::NotSent(NotSent::Unavailable),
        };
        self.shared.counted.count(delivery);
        if let Some(span) = span {
            span::end(span, delivery);
        }
        delivery
    }

    /// Whether a publish would have a chance: the producer has no fatal error and has lately reached a broker. For readiness.
    pub fn is_available(&self) -> bool {
        !self.shared.closing.is_cancelled() && *self.shared.producer.link().borrow() == Link::Up
    }

    /// Returns when nothing can be published any more whatever the brokers do, with the reason. Cancel-safe.
    pub async fn failed(&self) -> IngressFailed {
        let mut link = self.shared.producer.link();
        // An error means that the probe's thread is gone: then nobody would ever see the link come back.
        let _ = link.wait_for(|link| *link == Link::Fatal).await;
        let reason = self.shared.producer.fatal_error();
        IngressFailed { reason: reason.unwrap_or_else(|| "the producer's probe has ended".to_owned()) }
    }

    /// Stops accepting, publishes what the lanes hold and waits for the reports, at most [`limits::PRODUCER_DRAIN_DEADLINE`]. Whoever
    /// still waits then is answered: nobody hangs.
    pub async fn shutdown(&self) {
        let Shared { closing, tasks, abandoned, producer, .. } = &*self.shared;
        closing.cancel();
        tasks.close();
        if tokio::time::timeout(limits::PRODUCER_DRAIN_DEADLINE, tasks.wait()).await.is_err() {
            tracing::warn!("gave up publishing what the lanes held");
            abandoned.cancel();
            producer.give_up();
            tasks.wait().await;
        }
    }

    fn lane(&self, partition: i32) -> Option<&mpsc::Sender<Request>> {
        let slot = self.shared.lanes.get(usize::try_from(partition).ok()?)?;
        if self.shared.closing.is_cancelled() {
            return None;
        }
        Some(slot.get_or_init(|| {
            let (requests, waiting) = mpsc::channel(limits::LANE_QUEUE_MAX);
            let Shared { producer, closing, abandoned, tasks, .. } = &*self.shared;
            let publisher: Publisher = {
                let producer = producer.clone();
                Box::new(move |record, on_report| {
                    producer.send(
                        partition,
                        record.sku.as_str().as_bytes(),
                        &record.payload,
                        &record.traced,
                        on_report,
                    );
                })
            };
            let lane = Lane::new(partition, waiting, publisher, producer.link());
            tasks.spawn(lane.run(closing.clone(), abandoned.clone()));
            requests
        }))
    }
}

/// Puts one request into its lane and waits for its answer or the end of its time.
async fn deliver(lane: &mpsc::Sender<Request>, sent: Sent, trace: Option<TraceContext>) -> Delivery {
    let claim = Claim::default();
    let (request, answered) = Request::new(sent, trace, claim.clone());
    match lane.try_send(request) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => return Delivery::NotSent(NotSent::Full),
        Err(TrySendError::Closed(_)) => return Delivery::NotSent(NotSent::Unavailable),
    }
    match tokio::time::timeout(limits::DELIVERY_WAIT, answered).await {
        Ok(Ok(delivery)) => delivery,
        // Out of time, or the lane ended without a word: it is ours to take back, unless the lane has published it.
        Ok(Err(_)) | Err(_) if claim.take() => Delivery::NotSent(NotSent::Unavailable),
        Ok(Err(_)) | Err(_) => Delivery::Unknown,
    }
}

/// What requests were told, counted.
struct Counted {
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
    fn count(&self, delivery: Delivery) {
        let counter = match delivery {
            Delivery::Delivered(_) => &self.delivered,
            Delivery::NotSent(NotSent::Full) => &self.full,
            Delivery::NotSent(NotSent::Unavailable) => &self.unavailable,
            Delivery::Unknown => &self.unknown,
        };
        counter.increment(1);
    }
}
