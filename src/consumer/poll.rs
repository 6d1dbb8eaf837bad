//! The poll thread: owns the blocking client, polls, and does nothing else.
//!
//! Messages go straight into their partition's [`buffer`](super::buffer); assignments, revocations and failures become [`Event`]s. When a
//! partition's buffer is full, the partition is paused in the client and its one waiting record is kept here; nothing is dropped.
//!
//! `rebalance` itself is overridden (the library's default assigns and ignores the result). On assignment nothing is assigned yet: the
//! workers claim first, and each tells this thread where to start ([`Control::Fetch`]); so an assignment never begins at a position that
//! was not claimed, and a database that is away delays the start instead of costing the membership. `auto.offset.reset=error`: a
//! position outside the log is reported, never moved.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, Timestamp};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientContext, Offset};
use tokio::sync::{mpsc, oneshot};

use super::Config;
use super::buffer::Filler;
use super::progress::Beat;
use crate::clock::Millis;
use crate::kafka::{client, trace_headers};
use crate::limits;
use crate::telemetry::trace_context::TraceContext;

/// A record as it came from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub offset: i64,
    /// The broker's time at append; `None` if the topic is not `LogAppendTime`.
    pub at: Option<Millis>,
    pub payload: Vec<u8>,
    /// The traces of its commands, by their number.
    pub traces: Vec<(u16, TraceContext)>,
}

/// What the poll thread reports, besides messages.
#[derive(Debug)]
pub(super) enum Event {
    /// These partitions are ours; nothing is fetched until each is claimed.
    Assigned { generation: u64, partitions: Vec<i32> },
    /// They are not ours any more; the thread waits (bounded) for `done`.
    Revoked { partitions: Vec<i32>, done: std::sync::mpsc::SyncSender<()> },
    /// A position is outside its partition's log: nothing is fetched from there until it is claimed again.
    LogChanged,
    /// The client can't go on.
    Failed(KafkaError),
}

/// What the poll thread is told.
#[derive(Debug)]
pub(super) enum Control {
    /// Fetch a claimed partition from `position` into `records`.
    Fetch { generation: u64, partition: i32, position: i64, records: Filler, decided: Arc<AtomicI64> },
    /// Stop fetching a partition (it is halted, or this build can't go on with it).
    Park { partition: i32 },
}

/// Handle to the thread.
pub(super) struct PollThread {
    controls: mpsc::Sender<Control>,
    closing: oneshot::Sender<()>,
    closed: oneshot::Receiver<()>,
}

impl PollThread {
    /// Subscribes, in a thread of its own.
    pub fn start(config: &Config, events: mpsc::Sender<Event>, beat: Beat) -> Result<Self, KafkaError> {
        let group = Group { events, shared: Mutex::default() };
        let consumer: BaseConsumer<Group> = client_config(config).create_with_context(group)?;
        consumer.subscribe(&[&config.topic])?;
        let (controls, control_queue) = mpsc::channel(limits::EVENT_QUEUE_MAX);
        let (closing, is_closing) = oneshot::channel();
        let (has_closed, closed) = oneshot::channel();
        let topic = config.topic.clone();
        let thread = std::thread::Builder::new().name("kafka-poll".to_owned());
        let started = thread.spawn(move || {
            Poller { consumer, topic, controls: control_queue, last_ack: Instant::now(), beat }.run(is_closing);
            // Nobody listens after the close deadline.
            let _ = has_closed.send(());
        });
        started.map_err(|_| KafkaError::ClientCreation("could not start the poll thread".to_owned()))?;
        Ok(Self { controls, closing, closed })
    }

    /// Where workers speak to the thread.
    pub fn controls(&self) -> mpsc::Sender<Control> {
        self.controls.clone()
    }

    /// Leaves the group. Closing can hang inside the client library; the process then goes on without it.
    pub async fn close(self) {
        if self.closing.send(()).is_err() {
            return;
        }
        if tokio::time::timeout(limits::CONSUMER_CLOSE_DEADLINE, self.closed).await.is_err() {
            tracing::warn!("leaving the consumer group takes too long, going on without it");
        }
    }
}

fn client_config(config: &Config) -> ClientConfig {
    let millis = |d: Duration| d.as_millis().to_string();
    let mut client = client::config(&config.kafka_brokers);
    client
        .set("group.id", &config.group)
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        // Whatever is in the log is decided. A foreign transaction that never ends must not stop a partition.
        .set("isolation.level", "read_uncommitted")
        .set("session.timeout.ms", millis(limits::SESSION_TIMEOUT))
        .set("heartbeat.interval.ms", millis(limits::SESSION_TIMEOUT / 6))
        .set("max.poll.interval.ms", millis(limits::MAX_POLL_INTERVAL))
        .set("queued.max.messages.kbytes", limits::FETCH_AHEAD_KIB_MAX.to_string())
        .set("fetch.min.bytes", "1")
        // The library has one fetch of a broker in the air, for all partitions: one that is resumed waits for its end.
        .set("fetch.wait.max.ms", millis(limits::FETCH_WAIT))
        // The default of a second would stall a partition whose queue was just emptied.
        .set("fetch.queue.backoff.ms", millis(limits::FETCH_BACKOFF))
        .set("fetch.error.backoff.ms", millis(limits::FETCH_ERROR_BACKOFF));
    client
}

/// One partition that is being fetched.
struct Route {
    records: Filler,
    /// The worker's position after its last COMMIT; -1 = none yet.
    decided: Arc<AtomicI64>,
    acked: i64,
    /// The next offset that the worker has not got.
    next: i64,
    /// The record that found the buffer full, and whatever the library still had after the pause (rarely anything).
    waiting: VecDeque<Record>,
    /// The library fetches no more, until nothing waits and the buffer is half empty: a resumed partition is fetched only when the broker's
    /// answer about the others is there, so its worker must have something to do meanwhile.
    is_paused: bool,
}

#[derive(Default)]
struct Shared {
    /// Counts assignments and revocations: a `Fetch` of an older one is void.
    generation: u64,
    /// Assigned partitions whose worker has not said yet where to start, or that it has to wait.
    awaited: HashSet<i32>,
    routes: HashMap<i32, Route>,
}

/// The client's callbacks; they run on the poll thread.
struct Group {
    events: mpsc::Sender<Event>,
    shared: Mutex<Shared>,
}

impl Group {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, event: Event) {
        // The receiver is gone only when the process stops.
        let _ = self.events.blocking_send(event);
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        client::log_event(&error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let numbers: Vec<i32> = partitions.elements().iter().map(|p| p.partition()).collect();
        if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            let generation = {
                let mut shared = self.shared();
                shared.generation += 1;
                shared.awaited = numbers.iter().copied().collect();
                shared.routes.clear();
                shared.generation
            };
            // An empty assignment now, so that the group goes on; the real one follows, partition by partition, after the claims.
            if let Err(error) = consumer.assign(&TopicPartitionList::new()) {
                return self.send(Event::Failed(error));
            }
            return self.send(Event::Assigned { generation, partitions: numbers });
        }
        // Revoked, lost, or an error: whatever it is, the partitions are not ours until the next assignment.
        commit_positions(consumer, &mut self.shared());
        {
            let mut shared = self.shared();
            shared.generation += 1;
            shared.awaited.clear();
            shared.routes.clear();
        }
        let (done, is_done) = std::sync::mpsc::sync_channel(limits::REVOKE_ANSWERS);
        self.send(Event::Revoked { partitions: numbers, done });
        // Late is allowed: the fence decides. The group must not wait for us for ever.
        let _ = is_done.recv_timeout(limits::REVOKE_DEADLINE);
        if let Err(error) = consumer.unassign() {
            self.send(Event::Failed(error));
        }
    }
}

/// Tells Kafka the positions that moved: asynchronously, for lag tools, never read back.
fn commit_positions(consumer: &BaseConsumer<Group>, shared: &mut Shared) {
    let topic = consumer.subscription().ok().and_then(|s| s.elements().first().map(|e| e.topic().to_owned()));
    let Some(topic) = topic else { return };
    let mut positions = TopicPartitionList::new();
    for (partition, route) in &mut shared.routes {
        let decided = route.decided.load(Ordering::Relaxed);
        let moved = decided > route.acked
            && positions.add_partition_offset(&topic, *partition, Offset::Offset(decided)).is_ok();
        if moved {
            route.acked = decided;
        }
    }
    if positions.count() > 0
        && let Err(error) = consumer.commit(&positions, CommitMode::Async)
    {
        tracing::debug!(error = %error, "could not tell kafka the positions");
    }
}

struct Poller {
    consumer: BaseConsumer<Group>,
    topic: String,
    controls: mpsc::Receiver<Control>,
    last_ack: Instant,
    beat: Beat,
}

impl Poller {
    fn run(mut self, mut is_closing: oneshot::Receiver<()>) {
        while is_closing.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
            self.beat.tell();
            self.obey_controls();
            let is_busy = self.hand_over_waiting();
            if self.last_ack.elapsed() >= limits::ACK_EVERY {
                commit_positions(&self.consumer, &mut self.consumer.context().shared());
                self.last_ack = Instant::now();
            }
            let timeout = if is_busy { limits::POLL_TIMEOUT_BUSY } else { limits::POLL_TIMEOUT };
            match self.consumer.poll(timeout) {
                None => {}
                Some(Ok(message)) => self.route(&message),
                Some(Err(error)) => self.report(error),
            }
        }
        self.leave();
    }

    fn obey_controls(&mut self) {
        let mut is_changed = false;
        while let Ok(control) = self.controls.try_recv() {
            let mut shared = self.consumer.context().shared();
            match control {
                Control::Fetch { generation, partition, position, records, decided }
                    if generation == shared.generation =>
                {
                    let route = Route {
                        records,
                        decided,
                        acked: -1,
                        next: position,
                        waiting: VecDeque::new(),
                        is_paused: false,
                    };
                    shared.routes.insert(partition, route);
                    shared.awaited.remove(&partition);
                    is_changed = true;
                }
                Control::Fetch { .. } => {} // Of an assignment that is over: its worker is being stopped.
                Control::Park { partition } => {
                    shared.awaited.remove(&partition);
                    is_changed |= shared.routes.remove(&partition).is_some();
                }
            }
        }
        if is_changed {
            self.assign_routes();
        }
    }

    /// Assigns what is claimed, each partition at the next offset that its worker has not got. The library drops what it had fetched.
    fn assign_routes(&self) {
        let shared = self.consumer.context().shared();
        let (mut positions, mut resumed) = (TopicPartitionList::new(), TopicPartitionList::new());
        let added = shared.routes.iter().try_for_each(|(partition, route)| {
            if !route.is_paused {
                resumed.add_partition(&self.topic, *partition);
            }
            positions.add_partition_offset(&self.topic, *partition, Offset::Offset(route.next))
        });
        drop(shared);
        // A pause outlives an assignment: what was paused when its route ended would never be fetched again.
        let assigned =
            added.and_then(|()| self.consumer.assign(&positions)).and_then(|()| self.consumer.resume(&resumed));
        if let Err(error) = assigned {
            self.consumer.context().send(Event::Failed(error));
        }
    }

    /// Offers waiting records again, and resumes the partitions whose worker took theirs. True while some still wait, or while a claim
    /// may come at any moment.
    fn hand_over_waiting(&self) -> bool {
        let mut resumed = TopicPartitionList::new();
        let mut shared = self.consumer.context().shared();
        let mut is_busy = !shared.awaited.is_empty();
        for (partition, route) in &mut shared.routes {
            while let Some(record) = route.waiting.pop_front() {
                if let Err(record) = route.records.push(record) {
                    route.waiting.push_front(record);
                    break;
                }
            }
            if route.is_paused && route.waiting.is_empty() && route.records.is_half_empty() {
                route.is_paused = false;
                resumed.add_partition(&self.topic, *partition);
            }
            is_busy |= route.is_paused;
        }
        drop(shared);
        if resumed.count() > 0
            && let Err(error) = self.consumer.resume(&resumed)
        {
            self.consumer.context().send(Event::Failed(error));
        }
        is_busy
    }

    fn route(&self, message: &BorrowedMessage<'_>) {
        let mut shared = self.consumer.context().shared();
        // Messages of a partition that was revoked or parked may still come; nobody waits for them.
        let Some(route) = shared.routes.get_mut(&message.partition()) else { return };
        let record = record_of(message);
        route.next = record.offset + 1;
        if !route.waiting.is_empty() {
            route.waiting.push_back(record);
            return;
        }
        let Err(record) = route.records.push(record) else { return };
        route.waiting.push_back(record);
        route.is_paused = true;
        drop(shared);
        let mut paused = TopicPartitionList::new();
        paused.add_partition(&self.topic, message.partition());
        if let Err(error) = self.consumer.pause(&paused) {
            tracing::warn!(error = %error, "could not pause a partition");
        }
    }

    fn report(&self, error: KafkaError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => self.consumer.context().send(Event::Failed(error)),
            // The library stops fetching and does not say which partition: every worker looks at its log again, and halts if it must.
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                tracing::warn!(error = %error, "a position is outside the log");
                self.consumer.context().send(Event::LogChanged);
            }
            _ => tracing::warn!(error = %error, "kafka poll reports an error"),
        }
    }

    /// Leaves the group: acks what is decided, then lets the library close.
    fn leave(self) {
        commit_positions(&self.consumer, &mut self.consumer.context().shared());
        self.consumer.context().shared().routes.clear();
        self.consumer.unsubscribe();
        let deadline = Instant::now() + limits::CONSUMER_CLOSE_DEADLINE / 2;
        while Instant::now() < deadline && self.consumer.assignment().is_ok_and(|a| a.count() > 0) {
            self.consumer.poll(limits::POLL_TIMEOUT_BUSY);
        }
    }
}

fn record_of(message: &BorrowedMessage<'_>) -> Record {
    let at = match message.timestamp() {
        Timestamp::LogAppendTime(at) => Some(at),
        Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
    };
    let traces = message.headers().map(trace_headers::read).unwrap_or_default();
    Record { offset: message.offset(), at, payload: message.payload().unwrap_or_default().to_vec(), traces }
}
