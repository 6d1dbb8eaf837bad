//! The consumer: for each partition that the group gives this process, one worker, the partition's **single writer**.
//!
//! ```text
//! poll thread (poll)       blocking client; turns messages and rebalances into a closed set of events, and does nothing else
//!   -> partition worker    claim -> check the log -> gather up to 250 commands -> snapshot, decide, commit -> effects
//! ```
//! The group only spreads partitions; it protects nothing. A worker first **claims** its partition in Postgres and starts at the position
//! stored there; every batch passes the fence. So a late, doubled or forgotten worker can read whatever it likes and writes nothing.
//! Kafka's committed offsets are written for lag tools and never read.

mod buffer;
mod depth;
mod gather;
mod load;
mod partition;
mod poll;
mod progress;
mod publish_dead_letters;
mod watch;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rdkafka::error::KafkaError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::admission::Catalogue;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::inventory::{self, Logged, Outcome, Snapshot};
use crate::kafka::producer::Link;
use crate::kafka::{LogEnds, Producer};
use crate::limits;
use crate::store::{Store, WriterConfig};
use crate::waiters::Waiters;

pub use worker::Decide;

use load::Load;
use partition::PartitionEnd;
use poll::{Event, PollThread};
use progress::{Beat, Watched};
use watch::Watch;

/// How this process consumes.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port,...`
    pub kafka_brokers: String,
    /// The request topic.
    pub topic: String,
    /// The dead-letter topic.
    pub dead_letter_topic: String,
    /// The consumer group.
    pub group: String,
    /// Commands in one batch, at most; a single record may hold more.
    pub batch_size_max: usize,
    /// What workers need to write.
    pub writer: WriterConfig,
}

/// What workers share.
#[derive(Clone)]
pub struct Deps {
    /// Reads: halts, dead letters.
    pub store: Store,
    /// Hints go here after COMMIT.
    pub cache: Cache,
    /// Who waits in this process (`all`: clients; else nobody).
    pub waiters: Waiters,
    /// The catalogue of an API in the same process.
    pub catalogue: Option<Catalogue>,
    /// The log's ends, and its records by offset.
    pub log_ends: LogEnds,
    /// Wall time, for guards and metrics; no decision reads it.
    pub clock: Arc<dyn Clock>,
    /// The decision function; tests pass one that fails.
    pub decide: Decide,
}

/// The decision function of the service.
pub fn decide(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    inventory::decide(snapshot, commands)
}

/// Whether this process takes part.
#[derive(Clone, Debug, Default)]
pub struct Health {
    has_joined: Arc<AtomicBool>,
    stalled: Arc<AtomicUsize>,
}

impl Health {
    /// True while the group has given this process its share, even an empty one (standby).
    pub fn has_joined(&self) -> bool {
        self.has_joined.load(Ordering::Relaxed)
    }

    /// True while something stands still that should not: a partition with records that wait (halts apart), or the poll thread.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed) > 0
    }

    fn set_stalled(&self, count: usize) {
        self.stalled.store(count, Ordering::Relaxed);
    }
}

/// Why the consumer ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ConsumerError {
    /// The client library refused its configuration or broke for good.
    #[error("the Kafka consumer failed")]
    Kafka(#[source] KafkaError),
    /// The producer of ticks could not be made.
    #[error("the Kafka producer failed")]
    Producer(#[source] crate::kafka::KafkaError),
    /// The producer of ticks broke for good.
    #[error("the Kafka producer can't go on")]
    NoTicks,
    /// The same partition was taken away several times while the group said it is ours: something else writes. Better to leave.
    #[error("partition {0} was fenced again and again while assigned")]
    FencedOut(i32),
    /// The system gave no thread to watch the workers.
    #[error("could not start the watch")]
    Watch(#[source] std::io::Error),
    /// The poll thread is gone.
    #[error("the poll thread ended")]
    PollThread,
}

/// Consumes until `stop`, then finishes the running batches and leaves the group, within [`limits::CONSUMER_DRAIN_DEADLINE`].
///
/// # Errors
/// [`ConsumerError`]; the caller ends the process.
pub async fn run(config: Config, deps: Deps, health: Health, stop: CancellationToken) -> Result<(), ConsumerError> {
    let (events, mut event_queue) = mpsc::channel(limits::EVENT_QUEUE_MAX);
    let (watched, beat) = (Watched::default(), Beat::new());
    let poll = PollThread::start(&config, events, beat.clone()).map_err(ConsumerError::Kafka)?;
    let (owned, owned_now) = tokio::sync::watch::channel(Vec::new());
    // Also ends when the consumer ends by itself, or is dropped.
    let stop_beside = stop.child_token();
    let _guard = stop_beside.clone().drop_guard();
    let dead_letters = publish_dead_letters::start(&config, deps.store.clone(), owned_now, stop_beside.clone());
    let watch = Watch { watched: watched.clone(), log_ends: deps.log_ends.clone(), beat, health: health.clone() };
    let watching = watch.start(stop_beside.clone()).map_err(ConsumerError::Watch)?;
    let producer = Producer::start(&config.kafka_brokers, &config.topic).map_err(ConsumerError::Producer)?;
    let broken = broken(producer.link());
    tokio::pin!(broken);
    let mut workers = Workers::new(config, deps, poll.controls(), producer, owned, watched);
    let ended = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            Some((partition, end)) = workers.next_end() => {
                if end == PartitionEnd::FencedOut {
                    break Err(ConsumerError::FencedOut(partition));
                }
            }
            // Without ticks no hold would end by itself: better to leave, and let another process own the partitions.
            () = &mut broken => break Err(ConsumerError::NoTicks),
            event = event_queue.recv() => match event {
                None => break Err(ConsumerError::PollThread),
                Some(Event::Assigned { generation, partitions }) => {
                    tracing::info!(partition.count = partitions.len(), partitions = ?partitions, "partitions assigned");
                    health.has_joined.store(true, Ordering::Relaxed);
                    workers.start(generation, &partitions);
                }
                Some(Event::Revoked { partitions, done }) => {
                    tracing::info!(partition.count = partitions.len(), "partitions revoked");
                    workers.stop(limits::REVOKE_DEADLINE).await;
                    health.has_joined.store(false, Ordering::Relaxed);
                    // The poll thread may have given up waiting; the fence covers what we still do.
                    let _ = done.send(());
                }
                Some(Event::LogChanged) => workers.restart().await,
                Some(Event::Failed(error)) => break Err(ConsumerError::Kafka(error)),
            },
        }
    };
    workers.stop(limits::REVOKE_DEADLINE).await;
    // Nobody answers events from here on: the revocation that leaving brings must not wait for one.
    drop(event_queue);
    poll.close().await;
    stop_beside.cancel();
    if dead_letters.await.is_err() {
        tracing::warn!("the dead-letter task ended badly");
    }
    if watching.await.is_err() {
        tracing::warn!("the watch ended badly");
    }
    ended
}

/// Ends when the producer can't go on.
async fn broken(mut link: tokio::sync::watch::Receiver<Link>) {
    while *link.borrow_and_update() != Link::Fatal {
        if link.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

type OwnedSender = tokio::sync::watch::Sender<Vec<i32>>;

/// The workers of the partitions assigned now.
struct Workers {
    config: Arc<Config>,
    deps: Deps,
    controls: mpsc::Sender<poll::Control>,
    producer: Producer,
    running: JoinSet<(i32, PartitionEnd)>,
    stops: HashMap<i32, CancellationToken>,
    /// The assignment that they belong to.
    generation: u64,
    /// The partitions assigned now, for whoever works on them beside the workers.
    owned: OwnedSender,
    watched: Watched,
    /// What arrives at all of them.
    load: Load,
}

impl Workers {
    fn new(
        config: Config,
        deps: Deps,
        controls: mpsc::Sender<poll::Control>,
        producer: Producer,
        owned: OwnedSender,
        watched: Watched,
    ) -> Self {
        Self {
            config: Arc::new(config),
            deps,
            controls,
            producer,
            running: JoinSet::new(),
            stops: HashMap::new(),
            generation: 0,
            owned,
            watched,
            load: Load::new(std::time::Instant::now()),
        }
    }

    fn start(&mut self, generation: u64, partitions: &[i32]) {
        self.generation = generation;
        for &partition in partitions {
            let stop = CancellationToken::new();
            if let Some(old) = self.stops.insert(partition, stop.clone()) {
                old.cancel(); // The fence makes an overlap harmless.
            }
            let partition = partition::Partition {
                partition,
                generation,
                config: Arc::clone(&self.config),
                deps: self.deps.clone(),
                controls: self.controls.clone(),
                producer: self.producer.clone(),
                stop,
                load: self.load.clone(),
                progress: self.watched.add(partition),
            };
            self.running.spawn(partition.run());
        }
        self.owned.send_replace(self.stops.keys().copied().collect());
    }

    /// Ends every worker and lets each claim again, which checks its log.
    async fn restart(&mut self) {
        let partitions: Vec<i32> = self.stops.keys().copied().collect();
        self.stop(limits::REVOKE_DEADLINE).await;
        self.start(self.generation, &partitions);
    }

    /// The next worker that ended; pends for ever while none runs.
    async fn next_end(&mut self) -> Option<(i32, PartitionEnd)> {
        match self.running.join_next().await {
            Some(Ok(ended)) => Some(ended),
            // A worker that panics decided nothing more; the process must not go on without it.
            Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            None => std::future::pending().await,
        }
    }

    /// Lets every worker finish its running transaction, at most until the deadline.
    async fn stop(&mut self, deadline: std::time::Duration) {
        self.owned.send_replace(Vec::new());
        self.watched.clear();
        for (_, stop) in self.stops.drain() {
            stop.cancel();
        }
        let deadline = Instant::now() + deadline;
        while let Ok(Some(_)) = timeout_at(deadline, self.running.join_next()).await {}
        self.running.abort_all();
        while self.running.join_next().await.is_some() {}
    }
}
