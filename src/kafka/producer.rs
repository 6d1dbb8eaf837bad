//! The producer: publishes records and says of each what became of it.
//!
//! Idempotent, acks=all, explicit partitions. [`Producer::send`] never blocks; its report comes later, on the client library's thread, exactly
//! once. `flush()` of the library is never called: it takes 100 ms when anything is outstanding. [`Link`] says whether a broker can be
//! reached at all, so that ingress can refuse honestly (`outcome: none`) what it has not handed over yet.

mod link;
pub(super) mod report;

use std::sync::Arc;

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError as LibraryError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::{oneshot, watch};

use super::polled::PolledProducer;
use super::trace_headers::{self, Traced};
use super::{Compression, KafkaError, client};
use crate::limits;

pub use link::Link;
pub use report::Report;

/// Takes the report of one record. Runs on the client library's thread: must be short and must not panic.
pub type OnReport = Box<dyn FnOnce(Report) + Send + Sync>;

/// Handle to the producer of one topic; cheap to clone. Dropping the last one gives up what is still on its way.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

struct Shared {
    topic: Arc<str>,
    library: PolledProducer<Events>,
    link: watch::Receiver<Link>,
}

impl Producer {
    /// A producer for `topic`. Brokers that are away are no error here; [`Producer::link`] tells.
    ///
    /// # Errors
    /// If the settings are refused by the client library, or the system gives no thread.
    pub fn start(brokers: &str, topic: &str) -> Result<Self, KafkaError> {
        Self::start_with(brokers, topic, Compression::default())
    }

    /// The same, with records compressed.
    ///
    /// # Errors
    /// As [`Producer::start`].
    pub fn start_with(brokers: &str, topic: &str, compression: Compression) -> Result<Self, KafkaError> {
        let (link, watched) = watch::channel(Link::Doubted);
        let (doubts, doubted) = link::doubts();
        let events = Events { link: link.clone(), doubts };
        let library = PolledProducer::start(&config(brokers, compression), events)
            .map_err(KafkaError::because("make a producer"))?;
        let shared = Arc::new(Shared { topic: topic.into(), library, link: watched });
        link::start_probe(Arc::downgrade(&shared), link, doubted)?;
        Ok(Self { shared })
    }

    /// Hands a record over. `on_report` is called once: at once if the record is refused here, else when the broker answered, or when
    /// the library gave up after [`limits::MESSAGE_TIMEOUT`].
    ///
    /// `traced` are the record's commands that belong to a trace; it says so in its headers.
    pub fn send(&self, partition: i32, key: &[u8], payload: &[u8], traced: &[Traced], on_report: OnReport) {
        let mut record = BaseRecord::with_opaque_to(&self.shared.topic, Box::new(on_report))
            .partition(partition)
            .key(key)
            .payload(payload);
        record.headers = trace_headers::write(traced);
        if let Err((error, record)) = self.shared.library.send(record) {
            (*record.delivery_opaque)(report::of_refused_send(&error));
        }
    }

    /// The topic that it publishes to.
    pub fn topic(&self) -> &str {
        &self.shared.topic
    }

    /// Hands one record over and waits for its report, as long as the library takes. For records that are no client's request.
    pub async fn publish(&self, partition: i32, key: &[u8], payload: &[u8]) -> Report {
        let (reported, report) = oneshot::channel();
        let on_report = move |report| {
            let _ = reported.send(report); // nobody waits any more
        };
        self.send(partition, key, payload, &[], Box::new(on_report));
        report.await.unwrap_or(Report::Open)
    }

    /// Whether a broker can be reached, and changes of it.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.clone()
    }

    /// Why this producer can't go on; a process with such an error must end and be started anew.
    pub fn fatal_error(&self) -> Option<String> {
        self.shared.library.client().fatal_error().map(|(_, reason)| reason)
    }

    /// Gives up all records on their way: each gets its report soon. Only at shutdown.
    pub fn give_up(&self) {
        self.shared.library.purge(PurgeConfig::default().queue().inflight());
    }
}

fn config(brokers: &str, compression: Compression) -> rdkafka::ClientConfig {
    let mut config = client::config(brokers);
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("compression.codec", compression.word())
        .set("batch.size", limits::RECORD_PACK_BYTES_MAX.to_string())
        .set("message.timeout.ms", limits::MESSAGE_TIMEOUT.as_millis().to_string())
        .set("request.timeout.ms", limits::PUBLISH_REQUEST_TIMEOUT.as_millis().to_string())
        .set("queue.buffering.max.messages", limits::PRODUCER_QUEUE_RECORDS_MAX.to_string())
        .set("queue.buffering.max.kbytes", limits::PRODUCER_QUEUE_KIB_MAX.to_string());
    config
}

/// Takes the client library's events, on its thread.
struct Events {
    link: watch::Sender<Link>,
    doubts: link::Doubts,
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        client::log_line(level, facility, line);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: LibraryError, reason: &str) {
        client::log_event(&error, reason);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                link::change(&self.link, Link::Doubted);
                self.doubts.raise();
            }
            Some(RDKafkaErrorCode::Fatal) => link::change(&self.link, Link::Fatal),
            _ => {}
        }
    }
}

impl ProducerContext for Events {
    type DeliveryOpaque = Box<OnReport>;

    fn delivery(&self, result: &DeliveryResult<'_>, on_report: Self::DeliveryOpaque) {
        let report = match result {
            Ok(message) => report::of_delivery(message.offset()),
            Err((error, _)) => {
                let report = report::of_failed_delivery(error);
                tracing::debug!(%error, ?report, "record was not delivered");
                report
            }
        };
        if matches!(report, Report::At(_)) {
            link::change(&self.link, Link::Up);
        }
        on_report(report);
    }
}
