//! Dead letters: poison that is stored but not yet in the dead-letter topic is published and marked, again and again until it is.
//!
//! After COMMIT, beside the batches: between the two nothing can be lost, because the row says what is still to do. Each process does it for
//! its own partitions; a letter may still be published twice (a crash before the mark), and readers know it by its key, the place in the
//! request log. A letter that is too large for its topic is published as a stub, once.

use std::time::Duration;

use metrics::counter;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Config;
use crate::kafka::client::{self, LibraryLog};
use crate::limits;
use crate::store::{DeadLetter, Store};
use crate::telemetry::metrics as names;

/// Starts the task; it ends with `stop`.
pub(super) fn start(
    config: &Config,
    store: Store,
    owned: watch::Receiver<Vec<i32>>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let (brokers, topic) = (config.kafka_brokers.clone(), config.dead_letter_topic.clone());
    tokio::spawn(async move {
        // Made when the first letter comes, which is never, as a rule: an idle producer has three threads that look around.
        let mut producer = None;
        loop {
            let partitions = owned.borrow().clone();
            // Cut off at a stop: what was not marked is published again by whoever owns the partition next.
            stop.run_until_cancelled(publish_all(&store, &partitions, &brokers, &mut producer, &topic)).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(limits::DEAD_LETTER_EVERY) => {}
            }
        }
    })
}

fn connect(brokers: &str) -> Result<FutureProducer<LibraryLog>, KafkaError> {
    client::config(brokers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", limits::MESSAGE_TIMEOUT.as_millis().to_string())
        // What brokers take into the log by default fits many times over; poison can be any size.
        .set("message.max.bytes", limits::DEAD_LETTER_BYTES_MAX.to_string())
        .create_with_context(LibraryLog)
}

/// Publishes what is there, oldest first. A letter that fails is left for the next round and holds nobody back; a round that failed
/// throughout is the last for now.
async fn publish_all(
    store: &Store,
    partitions: &[i32],
    brokers: &str,
    producer: &mut Option<FutureProducer<LibraryLog>>,
    topic: &str,
) {
    loop {
        let letters = match store.load_dead_letters(partitions).await {
            Ok(letters) if letters.is_empty() => return,
            Ok(letters) => letters,
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not read dead letters");
                return;
            }
        };
        let producer = match producer {
            Some(producer) => &*producer,
            None => match connect(brokers) {
                Ok(connected) => &*producer.insert(connected),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "can't publish dead letters yet");
                    return;
                }
            },
        };
        let mut published = 0;
        for letter in &letters {
            if let Err(error) = publish(producer, topic, letter).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    kafka.partition = letter.partition,
                    offset = letter.offset,
                    "could not publish a dead letter yet"
                );
                continue;
            }
            if let Err(error) = store.mark_dead_letter_published(letter).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "could not mark a dead letter");
                return;
            }
            counter!(names::DEAD_LETTERS).increment(1);
            published += 1;
        }
        if published == 0 {
            return;
        }
    }
}

/// Publishes a letter, or a stub of one that is too large for its topic: without its bytes, which stay in the table `poison`.
async fn publish(producer: &FutureProducer<LibraryLog>, topic: &str, letter: &DeadLetter) -> Result<(), KafkaError> {
    if let Some(raw) = &letter.raw {
        match send(producer, topic, letter, Some(raw)).await {
            // It never will be taken: tried again, it would be tried for ever.
            Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) => {}
            sent => return sent,
        }
    }
    tracing::warn!(
        kafka.partition = letter.partition,
        offset = letter.offset,
        size = letter.size,
        "a dead letter is too large for its topic; its bytes are only in the table poison"
    );
    send(producer, topic, letter, None).await
}

/// A stub has no payload, and the size of what is left out as a header.
async fn send(
    producer: &FutureProducer<LibraryLog>,
    topic: &str,
    letter: &DeadLetter,
    raw: Option<&Vec<u8>>,
) -> Result<(), KafkaError> {
    let place = format!("{}.{}.{}", letter.partition, letter.offset, letter.index);
    let mut headers = OwnedHeaders::new().insert(Header { key: "reason", value: Some(letter.reason.as_bytes()) });
    let mut record = FutureRecord::to(topic).key(&place);
    match raw {
        Some(raw) => record = record.payload(raw),
        None => {
            headers = headers.insert(Header { key: "place", value: Some(&place) });
            headers = headers.insert(Header { key: "size", value: Some(&letter.size.to_string()) });
        }
    }
    // Zero: a full queue is an error at once, not a sleep inside the library.
    producer.send(record.headers(headers), Duration::ZERO).await.map(drop).map_err(|(error, _)| error)
}
