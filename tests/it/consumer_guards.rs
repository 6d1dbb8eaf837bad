//! What a consumer refuses to go on with, and what holds it back without stopping it: clocks, retention, fences, a slow database.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use flashsale::clock::{Clock, Millis, SystemClock};
use flashsale::consumer::{self, ConsumerError};
use flashsale::ids::Metadata;
use flashsale::inventory::{Command, Logged, Outcome, Reserve, Snapshot};
use flashsale::kafka::{client, topics};
use flashsale::limits;
use flashsale::store::{Writer, WriterConfig};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::{Offset, TopicPartitionList};

use crate::support::commands::{create, record, reserve};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::{brokers, fresh_name, publish_raw};
use crate::support::wait::wait_for;

// ---- time -------------------------------------------------------------------------------------------------------------------

/// A clock that is behind, and counts how often it was read.
#[derive(Default)]
struct SlowClock {
    behind_ms: AtomicI64,
    looks: AtomicU32,
}

impl SlowClock {
    fn behind(ms: i64) -> Arc<Self> {
        Arc::new(Self { behind_ms: AtomicI64::new(ms), looks: AtomicU32::new(0) })
    }

    fn set(&self, behind_ms: i64) {
        self.behind_ms.store(behind_ms, Ordering::Relaxed);
    }
}

impl Clock for SlowClock {
    fn now(&self) -> Millis {
        self.looks.fetch_add(1, Ordering::Relaxed);
        SystemClock.now() - self.behind_ms.load(Ordering::Relaxed)
    }
}

const AN_HOUR_MS: i64 = 3_600_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_from_the_future_waits_until_the_clock_gets_there() {
    let world = World::fresh(1).await;
    let command = reserve("s", "a", 1);
    world.publish(0, &[create("s", 0, 9, 5), command.clone()]);
    let clock = SlowClock::behind(AN_HOUR_MS);
    let consumer = world.consume_with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    wait_for("the clock is looked at again and again", SOON, async || clock.looks.load(Ordering::Relaxed) >= 5).await;
    assert_eq!(world.db.number("SELECT position FROM partition_state").await, 0, "not decided before its time");
    // Three seconds ahead is what clocks do.
    clock.set(3_000);
    world.wait_for_position(0, 2).await;
    assert_eq!(world.status(&command).await, "RESERVED");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_stays_in_the_future_halts() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let clock = SlowClock::behind(AN_HOUR_MS);
    let consumer = world.consume_with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    let reason = world.wait_for_halt(0).await;
    assert!(reason.contains("is ahead of this clock"), "{reason}");
    assert_eq!(world.db.number("SELECT position FROM partition_state").await, 0);
    clock.set(0);
    assert!(world.db.store().resume_partition(0, "clock set").await.unwrap());
    world.wait_for_position(0, 1).await;
    consumer.stop().await;
    world.finish().await;
}

// ---- the log ----------------------------------------------------------------------------------------------------------------

fn admin() -> AdminClient<DefaultClientContext> {
    client::config(&brokers()).create().expect("legal settings")
}

/// What retention does: the log of partition 0 begins at `low` afterwards.
async fn delete_records_below(topic: &str, low: i64) {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, Offset::Offset(low)).expect("legal");
    let deleted = admin().delete_records(&offsets, &AdminOptions::new()).await.expect("the broker deletes");
    deleted.elements()[0].error().expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_may_take_everything_that_is_decided() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1), reserve("s", "b", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 3).await;
    consumer.stop().await;
    delete_records_below(&world.topic, 3).await;
    let consumer = world.consume();
    world.publish(0, &[reserve("s", "c", 1)]);
    world.wait_for_position(0, 4).await;
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 3);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_that_took_undecided_records_halts() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    world.publish(0, &[reserve("s", "b", 1), reserve("s", "c", 1)]);
    delete_records_below(&world.topic, 3).await;
    let consumer = world.consume();
    assert_eq!(world.wait_for_halt(0).await, "the log starts at 3: undecided records from 2 on are gone");
    assert_eq!(world.db.number("SELECT position FROM partition_state").await, 2);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_log_time_halts() {
    let topic = fresh_name("create-time");
    let dead_letters = topics::dead_letter_topic(&topic);
    let topics = [&topic, &dead_letters]
        .map(|name| NewTopic::new(name, 1, TopicReplication::Fixed(1)).set("message.timestamp.type", "CreateTime"));
    let made = admin().create_topics(&topics, &AdminOptions::new()).await.expect("the broker makes topics");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let world = World::on_topic(topic, 1).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let consumer = world.consume();
    assert_eq!(
        world.wait_for_halt(0).await,
        "the record at 0 has no log time: set the topic's message.timestamp.type to LogAppendTime"
    );
    assert_eq!(world.db.number("SELECT count(*) FROM sku").await, 0);
    consumer.stop().await;
    world.finish().await;
}

// ---- the catalogue ----------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configure_restores_a_lost_pin() {
    let world = World::fresh(2).await;
    // Published past the API, as after a restore of a database that is older than the SKU: nobody has pinned it.
    world.publish(1, &[create("s", 1, 9, 5)]);
    assert_eq!(world.db.number("SELECT count(*) FROM sku_pin").await, 0);
    let consumer = world.consume();
    world.wait_for_position(1, 1).await;
    assert_eq!(world.db.text("SELECT sku_id || ' ' || partition FROM sku_pin").await.as_deref(), Some("s 1"));
    consumer.stop().await;
    world.finish().await;
}

// ---- the fence --------------------------------------------------------------------------------------------------------------

fn rival(world: &World) -> WriterConfig {
    WriterConfig {
        database_url: world.db.url.as_str().into(),
        topic: world.topic.as_str().into(),
        owner: "rival".into(),
        build: "test".into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_fenced_again_and_again_leaves() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 1_000_000, 5)]);
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    let rival = rival(&world);
    let claiming = tokio::spawn(async move {
        loop {
            Writer::claim(&rival, 0).await.expect("the rival claims");
        }
    });
    // There is always something to decide: a worker notices a fence when it writes.
    wait_for("the consumer leaves", SOON, async || {
        world.publish(0, &[reserve("s", "a", 1)]);
        consumer.has_ended()
    })
    .await;
    claiming.abort();
    let ended = consumer.end().await;
    assert!(matches!(ended, Err(ConsumerError::FencedOut(0))), "{ended:?}");
    world.finish().await;
}

// ---- a broken build ---------------------------------------------------------------------------------------------------------

/// A decision function that can't decide a single reservation.
fn decide_no_reserve(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    let is_reserve = |logged: &Logged| matches!(logged.command, Ok(Command::Reserve(_)));
    assert!(!commands.iter().any(is_reserve), "planted");
    consumer::decide(snapshot, commands)
}

/// A decision function that can't decide anything, not even poison.
fn decide_nothing(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    assert!(commands.is_empty(), "planted");
    consumer::decide(snapshot, commands)
}

/// A full record of reservations by `user`.
fn full_record(user: &str) -> Vec<u8> {
    let commands: Vec<Command> = (0..limits::RECORD_COMMANDS_MAX).map(|_| reserve("s", user, 1)).collect();
    record(&commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_poisons_whole_batches_halts() {
    let world = World::fresh(1).await;
    let records: Vec<Vec<u8>> = ["a", "b", "c", "d"].map(full_record).to_vec();
    let payloads: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    world.publish(0, &[create("s", 0, 1000, 5)]);
    publish_raw(&world.topic, 0, "s", &payloads);
    let consumer = world.consume_with(&world.db.url, decide_no_reserve);
    let reason = world.wait_for_halt(0).await;
    assert_eq!(reason, "too many poisoned commands in one batch: this build is broken");
    // One record alone is just within the bound; whatever was poisoned belongs to a batch that was committed.
    let most = limits::POISON_PER_BATCH_MAX as i64;
    assert!(world.db.number("SELECT max(poison_count)::bigint FROM batch").await <= most);
    assert!(world.db.number("SELECT position FROM partition_state").await <= 2, "the batch that halted is not kept");
    consumer.stop().await;
    // A build that works goes on from there.
    assert!(world.db.store().resume_partition(0, "repaired build").await.unwrap());
    let consumer = world.consume();
    world.wait_for_position(0, 5).await;
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_that_decides_nothing_halts() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let consumer = world.consume_with(&world.db.url, decide_nothing);
    let reason = world.wait_for_halt(0).await;
    assert!(reason.contains("(at 0.0): this build is broken"), "{reason}");
    assert_eq!(world.db.number("SELECT count(*) FROM batch").await, 0);
    consumer.stop().await;
    world.finish().await;
}

// ---- back-pressure ----------------------------------------------------------------------------------------------------------

/// Holds decisions back while it is closed; opens by itself before a failed test would hang.
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    const fn open() -> Self {
        Self { is_closed: Mutex::new(false), changed: Condvar::new() }
    }

    fn set(&self, is_closed: bool) {
        *self.is_closed.lock().unwrap_or_else(PoisonError::into_inner) = is_closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        // Said to the runtime: a thread of it that blocks unannounced may hold up every timer and socket of the test.
        tokio::task::block_in_place(|| {
            let is_closed = self.is_closed.lock().unwrap_or_else(PoisonError::into_inner);
            drop(self.changed.wait_timeout_while(is_closed, SOON, |is_closed| *is_closed));
        });
    }
}

/// More records than the worker's buffer, a batch and the record that found the buffer full, however they are fetched: each brings as much as
/// a client may attach.
const CROWD: i64 = 9000;
const _: () = assert!(
    (CROWD as usize - limits::BATCH_SIZE_MAX - 1) * limits::METADATA_BYTES_MAX > limits::PARTITION_BUFFER_BYTES_MAX
);

/// A unit for each of the crowd, whose users are named after `prefix`.
fn crowd(prefix: &str) -> Vec<Command> {
    let text = format!(r#"{{"note":"{}"}}"#, "x".repeat(limits::METADATA_BYTES_MAX - 11));
    let metadata = Metadata::parse(&text).expect("as long as it may be");
    let request = |n| match reserve("s", &format!("{prefix}{n}"), 1) {
        Command::Reserve(reserve) => Command::Reserve(Reserve { metadata: Some(metadata.clone()), ..reserve }),
        other => other,
    };
    (0..CROWD).map(request).collect()
}

/// Publishes a crowd to partition 0, whose worker is held back, and waits until the client must have paused it: what came after the
/// crowd is decided in partition 1, and both partitions' records take the same way.
async fn fill_beyond_the_buffer(world: &World) {
    world.publish(0, &crowd("u"));
    for position in 2..=3 {
        world.publish(1, &[reserve("t", &format!("u{position}"), 1)]);
        world.wait_for_position(1, position).await;
    }
}

/// Two partitions, each with a SKU; what is in partition 0 is decided up to here, the rest waits behind the gate.
async fn two_skus(gate: &Gate, decide: consumer::Decide) -> (World, crate::support::consumer::Running) {
    let world = World::fresh(2).await;
    world.publish(0, &[create("s", 0, 1000, 5)]);
    world.publish(1, &[create("t", 1, 1000, 5)]);
    let consumer = world.consume_with(&world.db.url, decide);
    world.wait_for_position(0, 1).await;
    world.wait_for_position(1, 1).await;
    gate.set(true);
    (world, consumer)
}

/// The first thousand of the crowd have their unit, nobody else: decided once, in log order.
async fn assert_decided_in_order(world: &World) {
    world.wait_for_position(0, 1 + CROWD).await;
    let winners = "SELECT count(*) FROM reservation WHERE sku_id = 's' AND status = 1";
    assert_eq!(world.db.number(winners).await, 1000);
    assert_eq!(world.db.number(&format!("{winners} AND log_offset <= 1000")).await, 1000, "first come, first served");
    assert_eq!(world.db.number("SELECT count(*) FROM reservation WHERE sku_id = 's'").await, CROWD);
}

static SLOW_GATE: Gate = Gate::open();

fn decide_behind_slow_gate(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    if snapshot.partition == 0 {
        SLOW_GATE.pass();
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_that_falls_behind_is_paused_and_goes_on() {
    let (world, consumer) = two_skus(&SLOW_GATE, decide_behind_slow_gate).await;
    fill_beyond_the_buffer(&world).await;
    SLOW_GATE.set(false);
    assert_decided_in_order(&world).await;
    // And again: what was paused once can be paused twice.
    SLOW_GATE.set(true);
    world.publish(0, &crowd("v"));
    SLOW_GATE.set(false);
    world.wait_for_position(0, 1 + 2 * CROWD).await;
    consumer.stop().await;
    world.finish().await;
}

static FENCED_GATE: Gate = Gate::open();

fn decide_behind_fenced_gate(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    if snapshot.partition == 0 {
        FENCED_GATE.pass();
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_that_is_fenced_while_paused_goes_on() {
    let (world, consumer) = two_skus(&FENCED_GATE, decide_behind_fenced_gate).await;
    fill_beyond_the_buffer(&world).await;
    Writer::claim(&rival(&world), 0).await.expect("the rival ends the transaction that is open, and claims");
    FENCED_GATE.set(false);
    assert_decided_in_order(&world).await;
    consumer.stop().await;
    world.finish().await;
}

static REBALANCED_GATE: Gate = Gate::open();

fn decide_behind_rebalanced_gate(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    if snapshot.partition == 0 {
        REBALANCED_GATE.pass();
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_partition_that_moves_while_paused_goes_on() {
    let (world, first) = two_skus(&REBALANCED_GATE, decide_behind_rebalanced_gate).await;
    fill_beyond_the_buffer(&world).await;
    let second = world.consume_with(&world.db.url, decide_behind_rebalanced_gate);
    wait_for("the second has its share", SOON, async || second.health.has_joined()).await;
    REBALANCED_GATE.set(false);
    assert_decided_in_order(&world).await;
    // Whoever had partition 0 meanwhile: it is the first consumer's again, and what comes now is decided.
    second.stop().await;
    world.publish(0, &[reserve("s", "late", 1)]);
    world.wait_for_position(0, 2 + CROWD).await;
    world.publish(1, &[reserve("t", "late", 1)]);
    world.wait_for_position(1, 4).await;
    first.stop().await;
    world.finish().await;
}

static CUT_GATE: Gate = Gate::open();

fn decide_behind_cut_gate(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    if snapshot.partition == 0 {
        CUT_GATE.pass();
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn undecided_records_that_vanish_before_they_are_fetched_halt_at_a_new_claim() {
    let (world, consumer) = two_skus(&CUT_GATE, decide_behind_cut_gate).await;
    fill_beyond_the_buffer(&world).await;
    // While the partition is paused, retention takes nearly all that was not fetched.
    let low = CROWD - 10;
    delete_records_below(&world.topic, low).await;
    CUT_GATE.set(false);
    let reason = world.wait_for_halt(0).await;
    assert!(reason.starts_with(&format!("the log starts at {low}: undecided records from ")), "{reason}");
    // The client's error made the worker claim again, at once; its own look at the log comes every ten seconds.
    assert!(world.db.number("SELECT epoch FROM partition_state WHERE partition = 0").await >= 2);
    consumer.stop().await;
    world.finish().await;
}

/// Holds the first batch until the log is in the worker's buffer.
static FIRST_GATE: Gate = Gate::open();
/// Holds full batches until the test has asked for the end.
static FULL_GATE: Gate = Gate::open();
static FULL_BATCHES: AtomicU32 = AtomicU32::new(0);

fn decide_behind_two_gates(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    if snapshot.partition == 0 && commands.len() < 200 {
        FIRST_GATE.pass();
    } else if snapshot.partition == 0 {
        FULL_BATCHES.fetch_add(1, Ordering::Relaxed);
        FULL_GATE.pass();
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stop_is_seen_between_full_batches() {
    let world = World::fresh(2).await;
    FIRST_GATE.set(true);
    FULL_GATE.set(true);
    world.publish(0, &[create("s", 0, 9, 5)]);
    // Forty commands each: six make a batch, and the seventh is carried over to the next.
    let commands: Vec<Command> = (0..40).map(|_| reserve("s", "a", 1)).collect();
    let records: Vec<Vec<u8>> = (0..60).map(|_| record(&commands)).collect();
    let payloads: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    publish_raw(&world.topic, 0, "s", &payloads);
    let consumer = world.consume_with(&world.db.url, decide_behind_two_gates);
    for position in 1..=2 {
        world.publish(1, &[reserve("t", "a", 1)]);
        world.wait_for_position(1, position).await;
    }
    FIRST_GATE.set(false);
    wait_for("a full batch is being decided", SOON, async || FULL_BATCHES.load(Ordering::Relaxed) > 0).await;
    tokio::join!(consumer.stop(), async { FULL_GATE.set(false) });
    let position = world.db.number("SELECT position FROM partition_state WHERE partition = 0").await;
    assert!((1..=20).contains(&position), "stopped within a batch or two, not at the end: {position}");
    world.finish().await;
}
