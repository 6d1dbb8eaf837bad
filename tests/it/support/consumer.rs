//! A consumer in this process, on a fresh topic and a fresh schema.

use std::sync::Arc;
use std::time::Duration;

use flashsale::cache::Cache;
use flashsale::clock::{Clock, SystemClock};
use flashsale::consumer::{self, Config, Decide, Deps, Health};
use flashsale::ids::{Place, Ticket};
use flashsale::inventory::Command;
use flashsale::kafka::{LogEnds, topics};
use flashsale::store::{StatusRead, WriterConfig};
use flashsale::waiters::Waiters;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::commands::record;
use super::database::Database;
use super::kafka::{brokers, fresh_name, fresh_topic, publish_raw};
use super::wait::wait_for;

/// How long anything may take here; far beyond what it takes.
pub const SOON: Duration = Duration::from_secs(20);

/// Topic and tables of one test.
pub struct World {
    pub db: Database,
    pub topic: String,
    group: String,
}

/// `RUST_LOG=debug` shows what the service says during a test.
pub(super) fn log_if_asked() {
    if std::env::var_os("RUST_LOG").is_some() {
        let log = tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env());
        // Another test of this process was first.
        let _ = log.with_test_writer().try_init();
    }
}

/// A running consumer.
pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), consumer::ConsumerError>>,
    pub health: Health,
}

impl World {
    pub async fn fresh(partitions: i32) -> Self {
        Self::on_topic(fresh_topic(partitions).await, partitions).await
    }

    /// Fresh tables for a topic that exists.
    pub async fn on_topic(topic: String, partitions: i32) -> Self {
        log_if_asked();
        let db = Database::fresh(&topic, partitions).await;
        Self { db, topic, group: fresh_name("group") }
    }

    /// Starts a consumer as the service does.
    pub fn consume(&self) -> Running {
        self.consume_with(&self.db.url, consumer::decide)
    }

    /// Starts one with another way to Postgres, or another decision function.
    pub fn consume_with(&self, database_url: &str, decide: Decide) -> Running {
        self.start(database_url, |deps| deps.decide = decide)
    }

    /// Starts one that reads another clock.
    pub fn consume_with_clock(&self, clock: Arc<dyn Clock>) -> Running {
        self.consume_changed(|deps| deps.clock = clock)
    }

    /// Starts one with other parts around it.
    pub fn consume_changed(&self, change: impl FnOnce(&mut Deps)) -> Running {
        self.start(&self.db.url, change)
    }

    fn start(&self, database_url: &str, change: impl FnOnce(&mut Deps)) -> Running {
        let redis = std::env::var("REDIS_URL").expect("REDIS_URL names the server; `make test` sets it");
        let config = Config {
            kafka_brokers: brokers(),
            topic: self.topic.clone(),
            dead_letter_topic: topics::dead_letter_topic(&self.topic),
            group: self.group.clone(),
            batch_size_max: 250,
            writer: WriterConfig {
                database_url: database_url.into(),
                topic: self.topic.as_str().into(),
                owner: "test".into(),
                build: "test".into(),
            },
        };
        let mut deps = Deps {
            store: self.db.store(),
            cache: Cache::new(&redis, &fresh_name("prefix")).expect("a legal URL"),
            waiters: Waiters::default(),
            catalogue: None,
            log_ends: LogEnds::start(&brokers(), &self.topic).expect("legal settings"),
            clock: Arc::new(SystemClock),
            decide: consumer::decide,
        };
        change(&mut deps);
        let (stop, health) = (CancellationToken::new(), Health::default());
        let task = tokio::spawn(consumer::run(config, deps, health.clone(), stop.clone()));
        Running { stop, task, health }
    }

    /// Publishes commands, one record each.
    pub fn publish(&self, partition: i32, commands: &[Command]) {
        let records: Vec<Vec<u8>> = commands.iter().map(|command| record(std::slice::from_ref(command))).collect();
        let payloads: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        publish_raw(&self.topic, partition, commands[0].sku().as_str(), &payloads);
    }

    /// Waits until a partition is decided up to `position`.
    pub async fn wait_for_position(&self, partition: i32, position: i64) {
        let what = format!("partition {partition} decided up to {position}");
        let sql =
            format!("SELECT position FROM partition_state WHERE partition = {partition} AND topic = '{}'", self.topic);
        wait_for(&what, SOON, async || self.db.number(&sql).await >= position).await;
    }

    /// Waits until a partition is halted, and returns why.
    pub async fn wait_for_halt(&self, partition: i32) -> String {
        let sql = format!("SELECT max(halted_reason) FROM partition_state WHERE partition = {partition}");
        super::wait::wait_for_value("a stored halt", SOON, async || self.db.text(&sql).await).await
    }

    /// The status of a command's reservation.
    pub async fn read(&self, command: &Command) -> StatusRead {
        self.db.store().load_statuses(&[command.id()]).await.expect("readable")
    }

    /// The stored status word of a command's reservation, `-` if it has none.
    pub async fn status(&self, command: &Command) -> &'static str {
        self.read(command).await.reservations.get(&command.id()).map_or("-", |row| row.status.word())
    }

    /// The first record's ticket of partition 0.
    pub fn ticket(offset: i64) -> Ticket {
        Ticket { partition: 0, place: Place { offset, index: 0 } }
    }

    /// The consumer group of this test.
    pub fn group(&self) -> &str {
        &self.group
    }

    pub async fn finish(self) {
        self.db.assert_invariants().await;
        self.db.drop().await;
    }
}

impl Running {
    /// Stops it in good order.
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("a clean end");
    }

    /// Whether it ended by itself.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Why it ended by itself; waits for that end.
    pub async fn end(self) -> Result<(), consumer::ConsumerError> {
        self.task.await.expect("no panic")
    }

    /// Ends it in the middle of whatever it does, as a crash does: nothing is said to the group or to Postgres.
    pub fn crash(self) {
        self.task.abort();
    }
}
