//! Publishing events: one by one, each awaited, against fire-and-collect, on the real broker with acks=all (`make bench ARGS=relay`).
//!
//! Two baselines, because a library's defaults decide how bad waiting for each one is: those of the client library (it waits 5 ms for company
//! that never comes), and the relay's own settings. `BENCH_SECONDS` is the time of each row.

use std::time::{Duration, Instant};

use flashsale::ids::{self, Place, Quantity, SkuId, UserId};
use flashsale::inventory::{Event, Happening, LifeChange, Origin, ReservationEvent};
use flashsale::kafka::event_producer::EventRecord;
use flashsale::kafka::{EventProducer, client, topics};
use flashsale::limits;
use flashsale::outbox::cloud_event;
use flashsale::outbox::round::Sent;
use rdkafka::producer::{FutureProducer, FutureRecord};

const SKU: &str = "bench";

fn seconds() -> Duration {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    Duration::from_secs_f64(seconds)
}

fn event(n: i64) -> Event {
    let what = Happening::Reservation(ReservationEvent {
        reservation: ids::fresh_id(),
        user: UserId::parse(&format!("user-{n}")).expect("legal"),
        quantity: Quantity::new(1).expect("legal"),
        version: 1,
        change: LifeChange::Reserved { expires_at: 1_795_255_320_000, metadata: None },
    });
    let origin = Origin::Command { place: Place { offset: n, index: 0 }, n: 0 };
    Event { origin, at: 1_795_255_200_000, sku: SkuId::parse(SKU).expect("legal"), what }
}

fn records(count: usize) -> Vec<EventRecord> {
    let record = |n: usize| EventRecord {
        key: SkuId::parse(SKU).expect("legal"),
        value: cloud_event::to_json("/flashsale/bench", 0, &event(n as i64)),
    };
    (0..count).map(record).collect()
}

/// Events a second, by publishing batch after batch; the JSON is made within the time, as the relay does.
async fn fire_and_collect(producer: &EventProducer, size: usize) -> f64 {
    for _ in 0..20 {
        producer.publish_all(0, records(size)).await;
    }
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < seconds() {
        let sent = producer.publish_all(0, records(size)).await;
        assert!(sent.iter().all(|sent| *sent == Sent::Confirmed), "the broker takes all");
        count += sent.len();
    }
    count as f64 / began.elapsed().as_secs_f64()
}

async fn one_by_one_by_default(brokers: &str, topic: &str) -> f64 {
    let producer: FutureProducer = client::config(brokers).set("acks", "all").create().unwrap();
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < seconds() {
        let record = records(1).remove(0);
        let record = FutureRecord::to(topic).partition(0).key(record.key.as_str()).payload(&record.value);
        producer.send(record, Duration::ZERO).await.map_err(|(error, _)| error).unwrap();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

#[tokio::main]
async fn main() {
    let brokers = std::env::var("KAFKA_BROKERS").expect("KAFKA_BROKERS names a broker; `make bench` starts one");
    let topic = format!("bench-events-{}", ids::fresh_token().simple());
    topics::ensure_events(&brokers, &topic, 1, 1).await.unwrap();
    let producer =
        EventProducer::connect(&brokers, &topic, cloud_event::CONTENT_TYPE, limits::RELAY_LINGER).await.unwrap();
    println!("events of {} bytes, one partition, acks=all, idempotent", records(1)[0].value.len());
    println!("{:<44} {:>10} {:>12} {:>12}", "", "events/s", "x defaults", "x ours");
    let by_default = one_by_one_by_default(&brokers, &topic).await;
    let ours = fire_and_collect(&producer, 1).await;
    let show = |what: &str, rate: f64| {
        println!("{what:<44} {rate:>10.0} {:>12.1} {:>12.1}", rate / by_default, rate / ours);
    };
    show("one by one, the client library's defaults", by_default);
    show("one by one, the relay's settings", ours);
    for size in [10, 50, 100, 1000] {
        let rate = fire_and_collect(&producer, size).await;
        show(&format!("fire {size}, one wait, collect"), rate);
    }
}
