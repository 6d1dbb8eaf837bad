//! Topics and records of a test on the real broker.

use std::sync::atomic::{AtomicU32, Ordering};

use flashsale::kafka::{client, topics};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

/// The brokers of this test run.
pub fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names the brokers; `make test` sets it")
}

/// A name that no other test uses, also not one of an earlier run on the same broker.
pub fn fresh_name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let run = flashsale::ids::fresh_token().simple().to_string();
    format!("test-{what}-{}-{}", &run[..8], NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A request topic of its own for one test, with its dead-letter topic.
pub async fn fresh_topic(partitions: i32) -> String {
    let topic = fresh_name("requests");
    topics::ensure(&brokers(), &topic, partitions, 1).await.expect("the broker makes topics");
    topic
}

/// Publishes payloads to one partition, past the service's own producer, and waits until they are in the log.
pub fn publish_raw(topic: &str, partition: i32, key: &str, payloads: &[&[u8]]) {
    publish_raw_on(&brokers(), topic, partition, key, payloads);
}

/// The same on other brokers.
pub fn publish_raw_on(brokers: &str, topic: &str, partition: i32, key: &str, payloads: &[&[u8]]) {
    let producer: BaseProducer = client::config(brokers).set("acks", "all").create().expect("the settings are legal");
    for payload in payloads {
        let record = BaseRecord::to(topic).partition(partition).key(key).payload(*payload);
        producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    }
    producer.flush(std::time::Duration::from_secs(10)).expect("the broker takes the records");
}
