//! Arms that read a log which is there already, and arms that write one.
//!
//! The same records for every consumer: one command each. The service's own consumer also reads them as it publishes them under load, 50
//! commands a record; and, for what batches are worth, as batches of one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use flashsale::store::migrate;
use flashsale::{ids, limits};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::json;

use super::bench::{Arm, CpuClock, Process, Run, Schema, Servers, check, flashsale, log_field, role, seconds, setting};
use super::commands::{self, Demand, SKU, Sum};
use super::{readers, writers};

// ---- consumers ----

struct Topics {
    singles: String,
    packed: String,
    commands: u64,
}

/// Two logs of as many commands, each behind the creation of its SKU.
async fn fill(servers: &Servers) -> Topics {
    let commands = setting("BENCH_COMMANDS", 300_000) as u64;
    let topics = Topics {
        singles: commands::make_topic(&servers.brokers).await,
        packed: commands::make_topic(&servers.brokers).await,
        commands,
    };
    let mut config = flashsale::kafka::client::config(&servers.brokers);
    let config = config.set("acks", "all").set("enable.idempotence", "true");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("legal settings");
    let mut demand = Demand::new();
    let (sku, mut sum) = (commands::sku(), Sum::default());
    for (topic, size) in [(&topics.singles, 1), (&topics.packed, limits::RECORD_COMMANDS_MAX)] {
        let put = |payload: Vec<u8>| {
            let mut record = BaseRecord::to(topic).partition(0).key(SKU).payload(&payload);
            while let Err((_, back)) = producer.send(record) {
                std::thread::sleep(Duration::from_millis(1));
                record = back;
            }
        };
        put(commands::creation());
        for _ in 0..commands / size as u64 {
            let reserves: Vec<_> = (0..size).map(|_| demand.reserve(&sku)).collect();
            put(commands::record(&reserves, &mut sum));
        }
    }
    producer.flush(Duration::from_secs(30)).expect("all delivered");
    topics
}

async fn measure_reader(servers: &Servers, way: readers::Way, topics: &Topics) -> Result<Run, String> {
    let mut schema = servers.schema().await;
    schema.run(&way.tables()).await;
    let number = readers::Way::ALL.iter().position(|other| *other == way).expect("one of all").to_string();
    let mut command = role(&["read", &number, &topics.singles]);
    let cpu = CpuClock::begin(servers.watched(way.servers(), &[("peer", std::process::id())]));
    let mut process = Process::start(command.env("DATABASE_URL", &schema.url));
    let told = process.told(|line| line.strip_prefix("read ").map(str::to_owned));
    process.end();
    let (took, count) = told.split_once(' ').ok_or("the peer told nothing")?;
    let (took, count): (f64, i64) = (took.parse().unwrap_or(0.0), count.parse().unwrap_or(0));
    let cpu_us = cpu.per(count as u64);
    verify_reader(&mut schema, way, count).await?;
    schema.drop_all().await;
    Ok(Run { per_second: count as f64 / took, cpu_us, details: json!({"commands": count, "seconds": took}) })
}

async fn verify_reader(schema: &mut Schema, way: readers::Way, count: i64) -> Result<(), String> {
    let (rows, users, units) = match way {
        readers::Way::Port => ("reservations", "reservations", "SELECT reserved_count::bigint FROM inventory"),
        _ => ("reservation", "reservation", "SELECT reserved FROM sku"),
    };
    let rows = schema.number(&format!("SELECT count(*) FROM {rows}")).await;
    let users = schema.number(&format!("SELECT count(DISTINCT user_id) FROM {users}")).await;
    let units = schema.number(units).await;
    check(count > 0 && [rows, users, units] == [count; 3], || {
        format!("{count} decided, but {rows} rows, {users} users, counters say {units}")
    })
}

/// The service's consumer on one of the logs, from an empty database, until its end or for the time of a run.
async fn measure_consumer(servers: &Servers, topic: &str, commands: u64, batch_size: usize) -> Result<Run, String> {
    let mut schema = servers.schema().await;
    migrate(&schema.url, topic, 1).await.map_err(|error| error.to_string())?;
    schema.run(&format!("INSERT INTO sku_pin (sku_id, partition) VALUES ('{SKU}', 0)")).await;
    let group = format!("bench-{}", ids::fresh_token().simple());
    let environment = BTreeMap::from([
        ("DATABASE_URL", schema.url.clone()),
        ("REDIS_URL", servers.redis.clone()),
        ("KAFKA_BROKERS", servers.brokers.clone()),
        ("TOPIC", topic.to_owned()),
        ("GROUP", group.clone()),
        ("REDIS_PREFIX", format!("{group}:")),
        ("ADMIN_ADDR", "127.0.0.1:0".to_owned()),
        ("BATCH_SIZE_MAX", batch_size.to_string()),
    ]);
    let cpu = CpuClock::begin(servers.watched(&["postgres", "redis", "kafka"], &[("consumer", std::process::id())]));
    let mut process = Process::start(&mut flashsale(&environment, &["consumer"]));
    process.told(|line| log_field(line, "admin.addr"));
    process.forget_lines();
    let decided = "SELECT coalesce(sum(decided_count), 0)::bigint FROM batch";
    let (mut since, joining) = (None, Instant::now());
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let decided = schema.number(decided).await;
        if decided > 0 && since.is_none() {
            since = Some(Instant::now());
        }
        check(since.is_some() || joining.elapsed() < Duration::from_secs(20), || "it got no partition".into())?;
        // The creation is one of them.
        let is_over = since.is_some_and(|since: Instant| since.elapsed().as_secs_f64() >= seconds());
        if is_over || decided as u64 > commands {
            break;
        }
    }
    process.end();
    let decided = schema.number(decided).await - 1;
    let cpu_us = cpu.per(decided as u64);
    let first = schema.number("SELECT command_count::bigint FROM batch ORDER BY first_offset LIMIT 1").await;
    let span = "SELECT (extract(epoch FROM max(committed_at) - min(committed_at)) * 1000000)::bigint FROM batch";
    let took = schema.number(span).await as f64 / 1e6;
    let batches = schema.number("SELECT count(*) FROM batch").await;
    verify_consumer(&mut schema, decided).await?;
    schema.drop_all().await;
    let per_second = (decided + 1 - first) as f64 / took;
    Ok(Run { per_second, cpu_us, details: json!({"commands": decided, "seconds": took, "batches": batches}) })
}

async fn verify_consumer(schema: &mut Schema, count: i64) -> Result<(), String> {
    let rows = schema.number("SELECT count(*) FROM reservation WHERE status = 1").await;
    let users = schema.number("SELECT count(DISTINCT user_id) FROM reservation").await;
    let units = schema.number("SELECT reserved FROM sku").await;
    let others = schema.number("SELECT sum(duplicate_count + poison_count)::bigint FROM batch").await;
    check(count > 0 && [rows, users, units, others] == [count, count, count, 0], || {
        format!("{count} decided, but {rows} rows, {users} users, counters say {units}, {others} duplicates or poison")
    })
}

/// Each consumer in turns.
pub async fn measure_consumers(servers: &Servers, rounds: usize) -> Vec<Arm> {
    let topics = fill(servers).await;
    let mut packed = Arm::new(
        "flashsale consumer, packed",
        "batches of 250, 50 commands a record: what the API publishes under load",
    );
    let mut singles =
        Arm::new("flashsale consumer, singles", "batches of 250, one command a record: the log of the peers");
    let mut ones = Arm::new("flashsale consumer, batches of one", "BATCH_SIZE_MAX=1, one command a record");
    let mut peers = readers::Way::ALL.map(|way| (way, Arm::new(way.name(), way.what())));
    for round in 0..rounds {
        packed.take(measure_consumer(servers, &topics.packed, topics.commands, limits::BATCH_SIZE_MAX).await);
        for (way, arm) in &mut peers {
            arm.take(measure_reader(servers, *way, &topics).await);
        }
        singles.take(measure_consumer(servers, &topics.singles, topics.commands, limits::BATCH_SIZE_MAX).await);
        ones.take(measure_consumer(servers, &topics.singles, topics.commands, 1).await);
        eprintln!("consumers: round {round} is over");
    }
    for topic in [&topics.singles, &topics.packed] {
        commands::remove_topic(&servers.brokers, topic).await;
    }
    [packed, singles, ones].into_iter().chain(peers.map(|(_, arm)| arm)).collect()
}

// ---- producers ----

async fn measure_writer(servers: &Servers, way: writers::Way) -> Result<Run, String> {
    let topic = commands::make_topic(&servers.brokers).await;
    let number = writers::Way::ALL.iter().position(|other| *other == way).expect("one of all").to_string();
    let cpu = CpuClock::begin(servers.watched(&["kafka"], &[("peer", std::process::id())]));
    let mut process = Process::start(&mut role(&["write", &number, &topic]));
    let told = process.told(|line| line.strip_prefix("wrote ").map(str::to_owned));
    process.end();
    let (took, sum) = told.split_once(' ').ok_or("the writer told nothing")?;
    let count: u64 = sum.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
    let cpu_us = cpu.per(count);
    let read = commands::read_back(&servers.brokers, &topic, count).to_string();
    commands::remove_topic(&servers.brokers, &topic).await;
    check(count > 0 && read == sum, || format!("written {sum}, read back {read}"))?;
    let took: f64 = took.parse().unwrap_or(0.0);
    Ok(Run { per_second: count as f64 / took, cpu_us, details: json!({"commands": count, "seconds": took}) })
}

/// Each producer in turns.
pub async fn measure_producers(servers: &Servers, rounds: usize) -> Vec<Arm> {
    let mut arms = writers::Way::ALL.map(|way| (way, Arm::new(way.name(), way.what())));
    for round in 0..rounds {
        for (way, arm) in &mut arms {
            arm.take(measure_writer(servers, *way).await);
        }
        eprintln!("producers: round {round} is over");
    }
    arms.map(|(_, arm)| arm).into()
}
