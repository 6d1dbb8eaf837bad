//! Ingress: requests in flight are collected per partition and published by natural batching.
//!
//! In the flow: admission > **ingress** > kafka. Whoever submits a command writes it into the open record of its SKU (`collector`); one lane
//! per partition (`lane`) publishes whatever gathered while its last publish was in flight, paced by the pressure ([`levels`]). A full lane
//! refuses at once. Nothing is lost and nothing is said twice: every command gets exactly one [`Delivery`], one failing record never fails its
//! neighbours, and one report answers all commands of its record.
//!
//! Who answers first wins, and only the lane answers: it says "not sent" of a record that it has not published, and then never does. So that
//! is only ever said of what no publish can contain.

pub mod calibration;
pub mod collector;
mod counted;
mod lane;
pub mod levels;
mod measured;
#[cfg(test)]
#[path = "ingress/model/tests.rs"]
mod model;
mod span;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ids::Ticket;
use crate::kafka::Producer;
use crate::kafka::producer::Link;
use crate::telemetry::trace_context::TraceContext;
use crate::telemetry::traces::Span;
use crate::wire::Sent;
use crate::{limits, wire};

pub use collector::{OnDelivery, Submitted};

use collector::{Collector, Door};
use counted::Counted;
use lane::{Lane, Message, Publisher};
use levels::{Policy, Table};

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
    policy: Policy,
    tables: watch::Sender<Option<Table>>,
    /// One slot per partition that could exist; a lane starts with its first request.
    lanes: Box<[OnceLock<Arc<Collector>>]>,
    tasks: TaskTracker,
    closing: CancellationToken,
    abandoned: CancellationToken,
    counted: Counted,
}

impl Ingress {
    /// Lanes that publish by `producer`, at any level. Needs a tokio runtime; nothing runs before the first request.
    pub fn start(producer: Producer) -> Self {
        Self::start_with(producer, Policy::default())
    }

    /// The same under a policy.
    pub fn start_with(producer: Producer, policy: Policy) -> Self {
        let partitions = usize::try_from(limits::PARTITIONS_MAX).expect("a positive bound");
        let lanes = (0..partitions).map(|_| OnceLock::new()).collect();
        let (closing, abandoned) = (CancellationToken::new(), CancellationToken::new());
        let shared = Shared {
            producer,
            policy,
            tables: watch::Sender::default(),
            lanes,
            tasks: TaskTracker::new(),
            closing,
            abandoned,
            counted: Counted::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// What levels mean from now on, in lanes that there are and that come.
    pub fn set_table(&self, table: Table) {
        self.shared.tables.send_replace(Some(table));
    }

    /// Publishes one command to its SKU's pinned partition, together with whatever else is on its way there. The future is its delivery: the
    /// report, or after at most [`limits::DELIVERY_WAIT`] that there is none.
    ///
    /// When this returns, the command is on its way: dropping the future does not take it back. Whoever must know what became of it, gone
    /// or not, uses [`Ingress::submit_with`].
    pub fn submit(&self, partition: i32, sent: Sent) -> Submitted {
        self.submit_traced(partition, sent, None)
    }

    /// The same for a command of a call that belongs to a trace: the record says so, and the publish has a span if the trace is sampled.
    pub fn submit_traced(&self, partition: i32, sent: Sent, trace: Option<TraceContext>) -> Submitted {
        self.submit_one(Outgoing { partition, sent, on_delivery: None }, trace)
    }

    /// The same, and `on_delivery` is told what became of the command exactly once, whatever happens to the future, and before that is
    /// ready: by the lane, or right here where the command is refused at once. It must be short and must not panic: others wait behind it.
    pub fn submit_with(
        &self,
        partition: i32,
        sent: Sent,
        trace: Option<TraceContext>,
        on_delivery: impl FnOnce(Delivery) + Send + 'static,
    ) -> Submitted {
        self.submit_one(Outgoing { partition, sent, on_delivery: Some(Box::new(on_delivery)) }, trace)
    }

    /// Publishes many commands at once and waits for all of them: their deliveries, in their order. Neighbours of one partition share a lock.
    pub fn submit_many(
        &self,
        commands: Vec<(i32, Sent)>,
        trace: Option<TraceContext>,
    ) -> impl Future<Output = Vec<Delivery>> + Send + use<> {
        let outgoing = commands.into_iter().map(|(partition, sent)| Outgoing { partition, sent, on_delivery: None });
        let submitted = self.submit_all(outgoing.collect(), trace);
        async move {
            let mut deliveries = Vec::with_capacity(submitted.len());
            for one in submitted {
                deliveries.push(one.await);
            }
            deliveries
        }
    }

    /// As [`Ingress::submit_with`] for each: their futures, in their order. Those of one partition enter together, under one lock, so that a lane
    /// that is woken by the first of them takes them all.
    pub fn submit_all(&self, commands: Vec<Outgoing>, trace: Option<TraceContext>) -> Vec<Submitted> {
        let topic = self.shared.producer.topic();
        let mut commands: Vec<(usize, Entering)> =
            commands.into_iter().map(|one| Entering::begin(topic, one, trace)).enumerate().collect();
        commands.sort_by_key(|(_, one)| one.partition); // stable: the order within a partition is that of the caller
        let mut submitted = Vec::with_capacity(commands.len());
        for together in commands.chunk_by_mut(|(_, a), (_, b)| a.partition == b.partition) {
            let entered: Vec<_> = match self.collector(together[0].1.partition) {
                Some(collector) => {
                    collector.enter(|door| together.iter_mut().map(|(_, one)| one.enter(door)).collect())
                }
                None => together.iter().map(|_| Err(NotSent::Unavailable)).collect(),
            };
            for ((at, command), entered) in together.iter_mut().zip(entered) {
                submitted.push((*at, entered.unwrap_or_else(|why| self.refuse(command, why))));
            }
        }
        submitted.sort_unstable_by_key(|(at, _)| *at);
        submitted.into_iter().map(|(_, one)| one).collect()
    }

    fn submit_one(&self, outgoing: Outgoing, trace: Option<TraceContext>) -> Submitted {
        let mut command = Entering::begin(self.shared.producer.topic(), outgoing, trace);
        let entered = match self.collector(command.partition) {
            Some(collector) => collector.enter(|door| command.enter(door)),
            None => Err(NotSent::Unavailable),
        };
        entered.unwrap_or_else(|why| self.refuse(&mut command, why))
    }

    fn refuse(&self, command: &mut Entering, why: NotSent) -> Submitted {
        self.shared.counted.refused(why);
        let delivery = Delivery::NotSent(why);
        if let Some(on_delivery) = command.on_delivery.take() {
            on_delivery(delivery);
        }
        Submitted::now(delivery)
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

    fn collector(&self, partition: i32) -> Option<&Arc<Collector>> {
        let slot = self.shared.lanes.get(usize::try_from(partition).ok()?)?;
        if self.shared.closing.is_cancelled() {
            return None;
        }
        Some(slot.get_or_init(|| {
            let collector = Arc::new(Collector::new(partition, limits::LANE_QUEUE_MAX));
            let Shared { producer, policy, tables, closing, abandoned, tasks, counted, .. } = &*self.shared;
            let publisher: Publisher = {
                let producer = producer.clone();
                Box::new(move |Message { sku, payload, traced }, on_report| {
                    producer.send(partition, sku.as_str().as_bytes(), payload, traced, on_report);
                })
            };
            let governed = (policy.clone(), tables.subscribe());
            let lane = Lane::new(Arc::clone(&collector), publisher, producer.link(), governed, counted.clone());
            tasks.spawn(lane.run(closing.clone(), abandoned.clone()));
            collector
        }))
    }
}

/// A command to publish.
pub struct Outgoing {
    /// Its SKU's pin.
    pub partition: i32,
    /// The command.
    pub sent: Sent,
    /// See [`Ingress::submit_with`].
    pub on_delivery: Option<OnDelivery>,
}

/// A command on its way into a record.
struct Entering {
    partition: i32,
    sent: Sent,
    /// Taken by the record, or told that there was no room.
    on_delivery: Option<OnDelivery>,
    trace: Option<TraceContext>,
}

impl Entering {
    /// Begins the command's span, if its call is sampled; whoever is told of the delivery ends it.
    fn begin(topic: &str, outgoing: Outgoing, call: Option<TraceContext>) -> Self {
        let Outgoing { partition, sent, mut on_delivery } = outgoing;
        let span = call.and_then(|call| span::begin(topic, partition, &sent, call));
        let trace = span.as_ref().map(Span::context).or(call);
        if let Some(span) = span {
            let then = on_delivery.take();
            on_delivery = Some(Box::new(move |delivery| {
                span::end(span, delivery);
                if let Some(then) = then {
                    then(delivery);
                }
            }));
        }
        Self { partition, sent, on_delivery, trace }
    }

    /// Puts the command into a record, if there is room.
    fn enter(&mut self, door: &mut Door) -> Result<Submitted, NotSent> {
        door.room()?;
        let mut appended = door.append(self.sent.command.sku(), |bytes| wire::put(bytes, &self.sent));
        if let Some(on_delivery) = self.on_delivery.take() {
            appended.tell(on_delivery);
        }
        if let Some(trace) = self.trace {
            appended.trace(trace, &self.sent.request_id);
        }
        Ok(appended.watch())
    }
}
