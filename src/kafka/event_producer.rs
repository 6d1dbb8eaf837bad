//! The producer of events: many records fired at once, **one** wait, then a report for each.
//!
//! Waiting for each record costs a round trip each; `docs/benchmarks.md` has the difference. What keeps a partition's records in order,
//! through the library's own retries too:
//! - idempotent, `acks=all`, and records never time out in the library: a record that gave up while the next one did not would come after it;
//! - `enable.gapless.guarantee`: a pack that is refused for good ends this producer instead of letting later packs pass. [`EventProducer::is_over`]
//!   says so; what it did not confirm is sent by the next one, in order.
//!
//! Partitions are explicit: the SKU's own, as in the log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as LibraryError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use tokio::sync::oneshot;

use super::polled::PolledProducer;
use super::producer::report::{self, Report};
use super::topics::{self, TopicFacts};
use super::{KafkaError, client};
use crate::ids::SkuId;
use crate::limits;
use crate::outbox::round::Sent;

/// A record to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The SKU.
    pub key: SkuId,
    /// The event's JSON.
    pub value: Vec<u8>,
}

/// Handle to a producer; the records of one partition must come from one caller at a time.
pub struct EventProducer {
    library: PolledProducer<Events>,
    topic: String,
    content_type: &'static str,
    facts: TopicFacts,
}

impl EventProducer {
    /// A producer for a topic that exists. Records wait `linger` for company; whole milliseconds.
    ///
    /// # Errors
    /// If no broker can be asked about the topic, or the client library refuses its settings.
    pub async fn connect(
        brokers: &str,
        topic: &str,
        content_type: &'static str,
        linger: Duration,
    ) -> Result<Self, KafkaError> {
        let facts = topics::facts(brokers, topic).await?;
        let library = PolledProducer::start(&config(brokers, &facts, linger), Events)
            .map_err(KafkaError::because("make a producer of events"))?;
        Ok(Self { library, topic: topic.to_owned(), content_type, facts })
    }

    /// Sends records to the partition that belongs to a partition of the log, waits once, and reports on each.
    ///
    /// What can't be handed over is [`Sent::Open`], and so is all that follows it: order. A record that is larger than the topic takes is
    /// [`Sent::Impossible`] and not sent.
    pub async fn publish_all(&self, log_partition: i32, records: Vec<EventRecord>) -> Vec<Sent> {
        let (flight, landed) = Flight::of(records.len());
        let partition = log_partition.rem_euclid(self.facts.partitions);
        let mut is_broken = false;
        for (n, record) in records.iter().enumerate() {
            let size = record.key.as_str().len() + record.value.len() + limits::EVENT_OVERHEAD_BYTES;
            if is_broken {
                flight.land(n, Sent::Open);
            } else if size > self.facts.message_bytes_max {
                let max = self.facts.message_bytes_max;
                flight.land(n, Sent::Impossible(format!("its record takes {size} bytes, the topic takes {max}")));
            } else {
                is_broken = !self.fire(partition, record, &flight, n);
            }
        }
        flight.start();
        // Dropped only with the producer: then nobody knows.
        let _ = landed.await;
        flight.collect()
    }

    /// Hands a record over; `false` if the library does not take it.
    fn fire(&self, partition: i32, record: &EventRecord, flight: &Arc<Flight>, n: usize) -> bool {
        let headers =
            OwnedHeaders::new().insert(Header { key: "content-type", value: Some(self.content_type.as_bytes()) });
        let seat = Box::new(Seat { flight: Arc::clone(flight), n });
        let record = BaseRecord::with_opaque_to(&self.topic, seat)
            .partition(partition)
            .key(record.key.as_str())
            .payload(&record.value)
            .headers(headers);
        match self.library.send(record) {
            Ok(()) => true,
            Err((error, record)) => {
                tracing::debug!(%error, "could not hand an event over");
                record.delivery_opaque.flight.land(n, Sent::Open);
                false
            }
        }
    }

    /// Whether this producer can send nothing any more; another one must take over.
    pub fn is_over(&self) -> bool {
        self.library.client().fatal_error().is_some()
    }

    /// Gives up everything on its way: each record gets its report soon.
    pub fn give_up(&self) {
        self.library.purge(PurgeConfig::default().queue().inflight());
    }
}

fn config(brokers: &str, facts: &TopicFacts, linger: Duration) -> rdkafka::ClientConfig {
    // A pack may not be larger than the topic takes, or events would be refused for the company they are in.
    let pack_bytes = limits::EVENT_PACK_BYTES_MAX.min(facts.message_bytes_max);
    let mut config = client::config(brokers);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("enable.gapless.guarantee", "true")
        .set("message.timeout.ms", "0") // 0 = never
        // Records are handed over one by one, faster than the library's thread would take them to send each handful in a request of its own.
        // It has one request of a partition in the air; while the next one is ready, that thread polls without pause. So a whole slice
        // fills a request exactly and goes at once; only the rest of a round lingers.
        .set("linger.ms", linger.as_millis().to_string())
        .set("batch.num.messages", limits::RELAY_SLICE_EVENTS.to_string())
        .set("batch.size", pack_bytes.to_string())
        .set("message.max.bytes", facts.message_bytes_max.max(limits::TOPIC_MESSAGE_BYTES_MIN).to_string())
        .set("request.timeout.ms", limits::PUBLISH_REQUEST_TIMEOUT.as_millis().to_string())
        .set("queue.buffering.max.messages", limits::EVENT_QUEUE_RECORDS_MAX.to_string())
        .set("queue.buffering.max.kbytes", limits::EVENT_QUEUE_KIB_MAX.to_string());
    config
}

/// Records that were fired together.
struct Flight(Mutex<Landings>);

struct Landings {
    reports: Vec<Option<Sent>>,
    /// Records in the air, and one more until all are fired.
    open: usize,
    landed: Option<oneshot::Sender<()>>,
}

/// One record of a flight.
struct Seat {
    flight: Arc<Flight>,
    n: usize,
}

impl Flight {
    fn of(count: usize) -> (Arc<Self>, oneshot::Receiver<()>) {
        let (landed, wait) = oneshot::channel();
        let landings = Landings { reports: vec![None; count], open: count + 1, landed: Some(landed) };
        (Arc::new(Self(Mutex::new(landings))), wait)
    }

    /// All are fired.
    fn start(&self) {
        self.change(|_| {});
    }

    fn land(&self, n: usize, sent: Sent) {
        self.change(|landings| landings.reports[n] = Some(sent));
    }

    fn change(&self, change: impl FnOnce(&mut Landings)) {
        let mut landings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut landings);
        landings.open -= 1;
        if landings.open == 0
            && let Some(landed) = landings.landed.take()
        {
            let _ = landed.send(()); // nobody waits any more
        }
    }

    fn collect(&self) -> Vec<Sent> {
        let mut landings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut landings.reports).into_iter().map(|report| report.unwrap_or(Sent::Open)).collect()
    }
}

/// Takes the client library's events, on its thread.
struct Events;

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: LibraryError, reason: &str) {
        client::log_event(&error, reason);
    }
}

impl ProducerContext for Events {
    type DeliveryOpaque = Box<Seat>;

    fn delivery(&self, result: &DeliveryResult<'_>, seat: Self::DeliveryOpaque) {
        let sent = match result {
            Ok(_) => Sent::Confirmed,
            Err((error, _)) => {
                tracing::debug!(%error, "an event was not delivered");
                match report::of_failed_delivery(error) {
                    Report::Refused => Sent::Refused,
                    Report::At(_) | Report::Full | Report::Open => Sent::Open,
                }
            }
        };
        seat.flight.land(seat.n, sent);
    }
}
