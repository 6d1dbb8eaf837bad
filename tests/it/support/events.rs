//! Events as other services read them: a topic of their own, and everything in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flashsale::kafka::client;
use flashsale::outbox::relay::{self, Config, Health};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::database::Database;

/// A record of the topic.
#[derive(Clone, Debug)]
pub struct Told {
    pub partition: i32,
    pub key: String,
    pub content_type: String,
    pub event: Value,
}

impl Told {
    pub fn id(&self) -> &str {
        self.event["id"].as_str().expect("an id")
    }

    pub fn kind(&self) -> &str {
        self.event["type"].as_str().expect("a type")
    }
}

fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    client::config(brokers).create().expect("legal settings")
}

/// A topic of events that takes packs of so many bytes.
pub async fn make_topic(brokers: &str, topic: &str, partitions: i32, bytes_max: usize) {
    let bytes_max = bytes_max.to_string();
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", &bytes_max);
    let made = admin(brokers).create_topics([&new], &AdminOptions::new()).await.expect("the broker answers");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// Changes how large a pack the topic takes.
pub async fn resize_topic(brokers: &str, topic: &str, bytes_max: usize) {
    let bytes_max = bytes_max.to_string();
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("max.message.bytes", &bytes_max);
    let changed = admin(brokers).alter_configs([&change], &AdminOptions::new()).await.expect("the broker answers");
    assert!(changed.iter().all(Result::is_ok), "{changed:?}");
}

/// Everything in a topic, up to the ends that it has now, partition by partition.
pub async fn read_all(brokers: &str, topic: &str) -> Vec<Told> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    tokio::task::spawn_blocking(move || read_all_blocking(&brokers, &topic)).await.expect("no panic")
}

fn read_all_blocking(brokers: &str, topic: &str) -> Vec<Told> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let consumer: BaseConsumer = client::config(brokers)
        .set("group.id", "test-reader")
        .set("enable.auto.commit", "false")
        .create()
        .expect("legal settings");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the broker answers");
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in partitions {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the broker answers");
        if high > low {
            ends.insert(partition, high);
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("a place");
        }
    }
    consumer.assign(&list).expect("assigned");
    let mut told = Vec::new();
    while !ends.is_empty() {
        let message = consumer.poll(PATIENCE).expect("records come").expect("no error");
        let content_type = message.headers().and_then(|headers| headers.iter().find(|h| h.key == "content-type"));
        let content_type = content_type.and_then(|h| h.value).unwrap_or_default();
        told.push(Told {
            partition: message.partition(),
            key: String::from_utf8(message.key().unwrap_or_default().to_vec()).expect("text"),
            content_type: String::from_utf8(content_type.to_vec()).expect("text"),
            event: serde_json::from_slice(message.payload().unwrap_or_default()).expect("JSON"),
        });
        if ends.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
            ends.remove(&message.partition());
        }
    }
    told.sort_by_key(|told| told.partition); // Stable: each partition keeps its order.
    told
}

/// The ids of each SKU's events in the order in which they came first, and how many came again.
pub fn first_told(told: &[Told]) -> (BTreeMap<String, Vec<String>>, usize) {
    let mut seen = BTreeSet::new();
    let mut by_sku: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for told in told {
        if seen.insert(told.id().to_owned()) {
            by_sku.entry(told.key.clone()).or_default().push(told.id().to_owned());
        }
    }
    (by_sku, told.len() - seen.len())
}

/// A relay in this process.
pub struct Relaying {
    stop: CancellationToken,
    task: JoinHandle<()>,
    pub health: Health,
}

impl Relaying {
    pub fn start(db: &Database, brokers: &str, events_topic: &str) -> Self {
        Self::start_by(&db.url, &db.topic, brokers, events_topic)
    }

    /// Starts one with another way to Postgres.
    pub fn start_by(database_url: &str, topic: &str, brokers: &str, events_topic: &str) -> Self {
        super::consumer::log_if_asked();
        let config = Config {
            database_url: database_url.into(),
            brokers: brokers.to_owned(),
            topic: topic.to_owned(),
            events_topic: events_topic.to_owned(),
        };
        let (stop, health) = (CancellationToken::new(), Health::default());
        let task = tokio::spawn(relay::run(config, health.clone(), stop.clone()));
        Self { stop, task, health }
    }

    /// Stops it in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic");
    }
}
