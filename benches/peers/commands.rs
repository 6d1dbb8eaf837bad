//! Commands and records of the service's own format, of unique users, and the sums by which they are found again.

use flashsale::clock::{Clock, SystemClock};
use flashsale::ids::{self, Quantity, SkuId, UserId};
use flashsale::inventory::{Command, Configure, Reserve, Settings};
use flashsale::kafka::{client, topics};
use flashsale::limits;
use flashsale::wire::{self, Sent};
use rdkafka::TopicPartitionList;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;
use std::time::Duration;
use uuid::Uuid;

pub const SKU: &str = "hot";

pub fn sku() -> SkuId {
    SkuId::parse(SKU).expect("legal")
}

/// Where the commands of one run come from: ids that nothing compresses, and users whose names are as long.
pub struct Demand {
    state: u64,
    received_at_us: i64,
}

impl Demand {
    pub fn new() -> Self {
        Self { state: ids::random_u64(), received_at_us: SystemClock.now() * 1000 }
    }

    /// Splitmix64 (Steele and others, 2014): a generator in the clock must cost next to nothing.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One more buyer of one unit.
    pub fn reserve(&mut self, sku: &SkuId) -> Sent {
        let id = uuid::Builder::from_random_bytes(Uuid::from_u64_pair(self.random(), self.random()).into_bytes())
            .into_uuid();
        let user = UserId::parse(&format!("{:016x}{:016x}", self.random(), self.random())).expect("legal");
        let quantity = Quantity::new(1).expect("legal");
        let command = Command::Reserve(Reserve { id, user, sku: sku.clone(), quantity, metadata: None });
        Sent { received_at_us: self.received_at_us, request_id: format!("{:016x}", self.random()), command }
    }
}

/// How many commands, and the sum of their ids: whatever comes back must add up to the same, in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub count: u64,
    ids: u128,
}

impl Sum {
    pub fn add(&mut self, id: Uuid) {
        self.count += 1;
        self.ids = self.ids.wrapping_add(id.as_u128());
    }

    pub fn join(&mut self, other: Self) {
        self.count += other.count;
        self.ids = self.ids.wrapping_add(other.ids);
    }
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:032x}", self.count, self.ids)
    }
}

/// A record of commands, and its part of the sum.
pub fn record(commands: &[Sent], sum: &mut Sum) -> Vec<u8> {
    commands.iter().for_each(|sent| sum.add(sent.command.id()));
    wire::encode(&sku(), commands.iter()).expect("1 to 50 commands of one SKU")
}

/// The record that every SKU's log begins with.
pub fn creation() -> Vec<u8> {
    let settings = Settings { hold_seconds: limits::HOLD_SECONDS_MAX, ..Settings::default() };
    let (id, on_hand) = (ids::fresh_id(), Some(limits::ON_HAND_MAX));
    let create = Configure { id, sku: sku(), pin: 0, seen_version: 0, on_hand, settings, patch_hash: None };
    let sent = Sent { received_at_us: 0, request_id: String::new(), command: Command::Configure(create) };
    wire::encode(&sku(), std::iter::once(&sent)).expect("one command")
}

/// A topic of one partition.
pub async fn make_topic(brokers: &str) -> String {
    let topic = format!("bench-{}", ids::fresh_token().simple());
    topics::ensure(brokers, &topic, 1, 1).await.expect("made");
    topic
}

/// Disks are small, and runs many.
pub async fn remove_topic(brokers: &str, topic: &str) {
    let admin: AdminClient<DefaultClientContext> = client::config(brokers).create().expect("legal settings");
    let dead_letters = topics::dead_letter_topic(topic);
    admin.delete_topics(&[topic, &dead_letters], &AdminOptions::new()).await.expect("the broker answers");
}

/// A reader of partition 0 that belongs to no group and begins at `offset`.
pub fn reader(brokers: &str, topic: &str, group: &str, offset: i64) -> BaseConsumer {
    let mut config = client::config(brokers);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "false")
        .set("fetch.queue.backoff.ms", "2")
        .set("queued.min.messages", "100000");
    let consumer: BaseConsumer = config.create().expect("legal settings");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Offset(offset)).expect("a legal offset");
    consumer.assign(&from).expect("a legal assignment");
    consumer
}

/// Reads a topic from its beginning until `count` commands came, or nothing for ten seconds.
pub fn read_back(brokers: &str, topic: &str, count: u64) -> Sum {
    let consumer = reader(brokers, topic, "bench-read-back", 0);
    let mut sum = Sum::default();
    while sum.count < count {
        let Some(message) = consumer.poll(Duration::from_secs(10)) else { break };
        let message = message.expect("a record");
        let record = wire::decode(message.payload().expect("a payload")).expect("one of ours");
        record.commands.iter().for_each(|envelope| sum.add(envelope.command.as_ref().expect("good").id()));
    }
    // One too many would be as wrong.
    if consumer.poll(Duration::from_millis(300)).is_some() {
        sum.count += 1;
    }
    sum
}
