//! `cargo bench --bench publish`: ingress to real Kafka, acks=all, idempotent, as the API runs it. Needs `KAFKA_BROKERS` (`make bench`
//! starts a broker).
//!
//! 1. **packed**: as many unique commands of 64 bytes as go, from one thread that keeps a full lane, into one partition; the clock stops
//!    with the last delivery report; then the whole log is read back, and each command must stand once, at the place that its ticket named.
//!    Ids are random bytes, users 31 random letters and digits: nothing to compress.
//! 2. **policies**: a steady rate, by each rule, in turns: P95 from submission to report, records and broker CPU per command. "fixed" is
//!    that long between two publishes, or a full one.
//!
//! `BENCH_SECONDS` (5) is the time of each row. JSON: `load-tests/results/publish.json`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flashsale::ids::{self, Place, Quantity, SkuId, Ticket, UserId};
use flashsale::ingress::levels::{Policy, Pressure, Setting, Table};
use flashsale::ingress::{Delivery, Ingress, NotSent, Outgoing};
use flashsale::inventory::{Command, Reserve};
use flashsale::kafka::log_ends::{LogReader, LogStart};
use flashsale::kafka::{Producer, topics};
use flashsale::wire::{self, Sent};
use uuid::Uuid;

#[path = "support/machine.rs"]
mod machine;

/// What one call puts in, as the batch endpoint does.
const CALL: usize = 250;
/// Calls that are on their way at once: a little less than a lane takes.
const CALLS_OPEN: usize = 30;

fn seconds() -> Duration {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    Duration::from_secs_f64(seconds)
}

fn brokers() -> String {
    std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names a broker; `make bench` starts one")
}

fn broker_cpu_us(brokers: &str) -> Option<u64> {
    let port = brokers.split(',').next()?.rsplit(':').next()?.parse().ok()?;
    machine::listener_on(port).map(machine::cpu_us_of)
}

/// A command of 64 bytes, its size of two included.
fn command(sku: &SkuId) -> (Uuid, Sent) {
    let id = ids::fresh_token();
    let user: String = ids::fresh_token().simple().to_string()[..31].to_owned();
    let user = UserId::parse(&user).expect("legal");
    let quantity = Quantity::new(1).expect("legal");
    let command = Command::Reserve(Reserve { id, user, sku: sku.clone(), quantity, metadata: None });
    (id, Sent { received_at_us: 0, request_id: String::new(), command })
}

async fn fresh_topic() -> String {
    let topic = format!("bench-publish-{}", ids::fresh_token().simple());
    topics::ensure_scratch(&brokers(), &topic, 1).await.expect("the broker makes it");
    topic
}

fn ingress(topic: &str, policy: Policy) -> Ingress {
    Ingress::start_with(Producer::start(&brokers(), topic).expect("starts"), policy)
}

/// Waits until the lane has a link.
async fn warm_up(ingress: &Ingress) {
    let sku = SkuId::parse("warm").expect("legal");
    while !matches!(ingress.submit(0, command(&sku).1).await, Delivery::Delivered(_)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn packed(policy: Policy) -> serde_json::Value {
    let topic = fresh_topic().await;
    let ingress = ingress(&topic, policy);
    warm_up(&ingress).await;
    let sku = SkuId::parse("sneaker-42").expect("legal");
    let mut delivered: HashMap<Uuid, Ticket> = HashMap::new();
    let mut open = std::collections::VecDeque::new();
    let (began, cpu, broker) = (Instant::now(), machine::cpu_ns(), broker_cpu_us(&brokers()));
    loop {
        if began.elapsed() < seconds() && open.len() < CALLS_OPEN {
            let (ids, outgoing): (Vec<Uuid>, Vec<Outgoing>) = (0..CALL)
                .map(|_| {
                    let (id, sent) = command(&sku);
                    (id, Outgoing { partition: 0, sent, on_delivery: None })
                })
                .unzip();
            open.push_back((ids, ingress.submit_all(outgoing, None)));
            continue;
        }
        let Some((ids, submitted)) = open.pop_front() else { break };
        for (id, one) in ids.into_iter().zip(submitted) {
            match one.await {
                Delivery::Delivered(ticket) => assert!(delivered.insert(id, ticket).is_none()),
                other => panic!("{id}: {other:?}"),
            }
        }
    }
    let took = began.elapsed();
    let (cpu, broker) = (machine::cpu_ns() - cpu, broker_cpu_us(&brokers()).zip(broker).map(|(now, then)| now - then));
    ingress.shutdown().await;
    let count = delivered.len();
    let records = tokio::task::spawn_blocking({
        let topic = topic.clone();
        move || read_back(&topic, delivered)
    });
    let records = records.await.expect("the log is what was told");
    topics::remove(&brokers(), &topic).await.expect("removed");
    let each = |total: f64| total / count as f64;
    let (rate, us) = (count as f64 / took.as_secs_f64(), each(cpu as f64 / 1e3));
    let broker_us = broker.map(|us| each(us as f64));
    println!(
        "| {count} | {rate:.0} | {:.1} | {:.1} | {us:.2} | {} |",
        rate * 64.0 / 1e6,
        count as f64 / records as f64,
        broker_us.map_or("-".to_owned(), |us| format!("{us:.2}"))
    );
    serde_json::json!({"commands": count, "commands_per_second": rate, "records": records, "cpu_us_per_command": us,
        "broker_cpu_us_per_command": broker_us, "read_back": count})
}

/// Every command once, at its ticket's place, and nothing else but the first one that warmed up. How many records there are.
fn read_back(topic: &str, mut delivered: HashMap<Uuid, Ticket>) -> usize {
    let mut reader = LogReader::open(&brokers(), topic, &[], LogStart::Beginning).expect("opens");
    let (mut records, mut others) = (0, 0);
    while !delivered.is_empty() {
        let record = reader.next(Duration::from_secs(10)).expect("reads").expect("reports said that it is there");
        records += 1;
        for (index, envelope) in (0..).zip(wire::decode(&record.payload).expect("a record of ours").commands) {
            let place = Place { offset: record.offset, index };
            match delivered.remove(&envelope.command.expect("a good command").id()) {
                Some(ticket) => assert_eq!(ticket, Ticket { partition: 0, place }),
                None => others += 1,
            }
        }
    }
    assert!(others <= 2, "{others} commands that nobody was told of");
    records
}

fn fixed(linger_us: u64, commands_max: usize) -> Policy {
    let setting = Setting { linger: Duration::from_micros(linger_us), commands_max, in_flight_max: 1 };
    Policy { pressure: Pressure::Fixed(setting), ..Policy::default() }
}

fn level(level: usize) -> Policy {
    Policy { pressure: Pressure::Levels { table: Table::default(), min: level, max: level }, ..Policy::default() }
}

/// A steady rate for a while; what came back.
async fn offered(policy: Policy, rate: f64) -> serde_json::Value {
    let topic = fresh_topic().await;
    let ingress = ingress(&topic, policy);
    warm_up(&ingress).await;
    let seen: Arc<Mutex<Vec<(Delivery, f64)>>> = Arc::default();
    let broker = broker_cpu_us(&brokers());
    let offering = {
        let (ingress, seen, runtime) = (ingress.clone(), Arc::clone(&seen), tokio::runtime::Handle::current());
        tokio::task::spawn_blocking(move || {
            let _entered = runtime.enter();
            let sku = SkuId::parse("sneaker-42").expect("legal");
            let (began, mut sent) = (Instant::now(), 0.0);
            while began.elapsed() < seconds() {
                while sent < began.elapsed().as_secs_f64() * rate {
                    let (at, seen) = (Instant::now(), Arc::clone(&seen));
                    let note = move |delivery| {
                        seen.lock().expect("no panic").push((delivery, at.elapsed().as_secs_f64() * 1e3));
                    };
                    drop(ingress.submit_with(0, command(&sku).1, None, note));
                    sent += 1.0;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        })
    };
    offering.await.expect("no panic");
    ingress.shutdown().await;
    let broker = broker_cpu_us(&brokers()).zip(broker).map(|(now, then)| now - then);
    topics::remove(&brokers(), &topic).await.expect("removed");
    let seen = std::mem::take(&mut *seen.lock().expect("no panic"));
    let refused = seen.iter().filter(|(delivery, _)| matches!(delivery, Delivery::NotSent(NotSent::Full))).count();
    let places: Vec<(i64, f64)> = seen
        .iter()
        .filter_map(|(delivery, ms)| match delivery {
            Delivery::Delivered(ticket) => Some((ticket.place.offset, *ms)),
            _ => None,
        })
        .collect();
    assert_eq!(places.len() + refused, seen.len(), "the broker takes all");
    let mut latencies: Vec<f64> = places.iter().map(|(_, ms)| *ms).collect();
    latencies.sort_by(f64::total_cmp);
    let records = places.iter().map(|(offset, _)| *offset).collect::<std::collections::HashSet<_>>().len();
    serde_json::json!({
        "p50_ms": machine::quantile(&latencies, 0.5), "p95_ms": machine::quantile(&latencies, 0.95),
        "commands_per_record": places.len() as f64 / records as f64, "refused": refused,
        "broker_cpu_us_per_command": broker.map(|us| us as f64 / places.len() as f64),
    })
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    runtime.block_on(async {
        println!(
            "| commands | commands/s | MB/s | a record | CPU-us a command | broker CPU-us |\n|---|---|---|---|---|---|"
        );
        let mut rows = Vec::new();
        for (name, policy) in [("levels", Policy::default()), ("level 9", level(9)), ("natural", fixed(0, 4096))] {
            let mut row = packed(policy).await;
            row["arm"] = name.into();
            rows.push(row);
        }
        println!(
            "\n| offered/s | arm | P50 ms | P95 ms | a record | broker CPU-us a command |\n|---|---|---|---|---|---|"
        );
        let mut steady = Vec::new();
        for rate in [100.0, 1e3, 5e3, 25e3] {
            for (arm, policy) in [
                ("fixed 250, 10 ms", fixed(10_000, 250)),
                ("fixed 50, 1 ms", fixed(1_000, 50)),
                ("natural", fixed(0, 4096)),
                ("levels", Policy::default()),
            ] {
                let mut row = offered(policy, rate).await;
                println!(
                    "| {rate} | {arm} | {:.2} | {:.2} | {:.1} | {:.1} |",
                    row["p50_ms"].as_f64().unwrap_or(f64::NAN),
                    row["p95_ms"].as_f64().unwrap_or(f64::NAN),
                    row["commands_per_record"].as_f64().unwrap_or(f64::NAN),
                    row["broker_cpu_us_per_command"].as_f64().unwrap_or(f64::NAN)
                );
                row["arm"] = arm.into();
                row["offered_per_second"] = rate.into();
                steady.push(row);
            }
        }
        let report = serde_json::json!({"command": "make bench ARGS=publish", "machine": machine::describe(),
            "settings": {"acks": "all", "idempotent": true, "replication": 1, "command_bytes": 64, "partitions": 1},
            "seconds": seconds().as_secs_f64(), "packed": rows, "policies": steady});
        machine::write_report("publish.json", &report);
    });
}
