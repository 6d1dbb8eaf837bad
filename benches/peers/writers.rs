//! Ways to publish commands, each as a process of its own: acks=all and idempotent, reports counted, the last report inside the clock.
//!
//! Nobody calls `flush()`: it takes 100 ms if anything is on its way, so counting reports is kinder to every arm.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flashsale::ingress::{Delivery, Ingress};
use flashsale::kafka::producer::Report;
use flashsale::kafka::{Producer, client};
use flashsale::limits;
use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, FutureProducer, FutureRecord, ProducerContext, ThreadedProducer};
use tokio::task::JoinSet;

use super::bench::{address, seconds};
use super::commands::{Demand, SKU, Sum, record, sku};

/// Commands of an arm that is not bounded by time: what is read back must fit a small disk.
const COMMANDS_MAX: u64 = 1_500_000;
/// Commands of one record that are asked for at once by [`Way::Ingress`]: the crowd that is connected.
const CALLERS: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    AwaitedLinger5,
    AwaitedLinger0,
    Threaded,
    Packed,
    Ingress,
}

impl Way {
    pub const ALL: [Self; 5] =
        [Self::AwaitedLinger5, Self::AwaitedLinger0, Self::Threaded, Self::Packed, Self::Ingress];

    pub fn name(self) -> &'static str {
        match self {
            Self::AwaitedLinger5 => "FutureProducer, linger 5",
            Self::AwaitedLinger0 => "FutureProducer, linger 0",
            Self::Threaded => "ThreadedProducer",
            Self::Packed => "flashsale, packed",
            Self::Ingress => "flashsale, ingress",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::AwaitedLinger5 => "each send awaited before the next; the library lingers 5 ms, its default",
            Self::AwaitedLinger0 => "each send awaited before the next, no linger",
            Self::Threaded => "fired, one command a record, linger 5 ms",
            Self::Packed => "50 commands a record, fired",
            Self::Ingress => "512 callers, each waits for its own command's report; records as they come",
        }
    }
}

/// Publishes for the time of a run and tells `seconds count sum`.
pub async fn write(way: Way, topic: &str) {
    let brokers = address("KAFKA_BROKERS");
    let mut sum = Sum::default();
    let took = match way {
        Way::AwaitedLinger5 => awaited(&brokers, topic, "5", &mut sum).await,
        Way::AwaitedLinger0 => awaited(&brokers, topic, "0", &mut sum).await,
        Way::Threaded => threaded(&brokers, topic, &mut sum),
        Way::Packed => packed(&brokers, topic, &mut sum).await,
        Way::Ingress => ingress(&brokers, topic, &mut sum).await,
    };
    println!("wrote {} {sum}", took.as_secs_f64());
}

fn config(brokers: &str, linger_ms: &str) -> rdkafka::ClientConfig {
    let mut config = client::config(brokers);
    config.set("acks", "all").set("enable.idempotence", "true").set("linger.ms", linger_ms);
    config
}

fn is_over(began: Instant, sum: &Sum) -> bool {
    began.elapsed().as_secs_f64() >= seconds() || sum.count >= COMMANDS_MAX
}

async fn awaited(brokers: &str, topic: &str, linger_ms: &str, sum: &mut Sum) -> Duration {
    let producer: FutureProducer = config(brokers, linger_ms).create().expect("legal settings");
    let (mut demand, sku) = (Demand::new(), sku());
    // Connected, and the topic known: not in the clock, here and below.
    let first = record(&[demand.reserve(&sku)], sum);
    send(&producer, topic, &first).await;
    let (began, before) = (Instant::now(), sum.count);
    while !is_over(began, sum) {
        send(&producer, topic, &record(&[demand.reserve(&sku)], sum)).await;
    }
    per_counted(began, before, sum)
}

async fn send(producer: &FutureProducer, topic: &str, payload: &[u8]) {
    let record = FutureRecord::to(topic).partition(0).key(SKU).payload(payload);
    producer.send(record, Duration::from_secs(1)).await.map_err(|(error, _)| error).expect("delivered");
}

/// The time that all would have taken at the rate of those after the first: the parent divides by all.
fn per_counted(began: Instant, before: u64, sum: &Sum) -> Duration {
    began.elapsed().mul_f64(sum.count as f64 / (sum.count - before).max(1) as f64)
}

#[derive(Default)]
struct Reports {
    good: AtomicU64,
}

struct Counting(Arc<Reports>);

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok(), "a record was not delivered");
        self.0.good.fetch_add(1, Ordering::Relaxed);
    }
}

fn threaded(brokers: &str, topic: &str, sum: &mut Sum) -> Duration {
    let reports = Arc::new(Reports::default());
    let producer: ThreadedProducer<Counting> =
        config(brokers, "5").create_with_context(Counting(Arc::clone(&reports))).expect("legal settings");
    let (mut demand, sku) = (Demand::new(), sku());
    let mut fire = |sum: &mut Sum| {
        let payload = record(&[demand.reserve(&sku)], sum);
        let mut record = BaseRecord::to(topic).partition(0).key(SKU).payload(&payload);
        while let Err((error, back)) = producer.send(record) {
            assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), "not taken");
            std::thread::sleep(Duration::from_micros(200));
            record = back;
        }
    };
    fire(sum);
    all_reported(&reports.good, sum.count);
    let (began, before) = (Instant::now(), sum.count);
    while !is_over(began, sum) {
        fire(sum);
    }
    all_reported(&reports.good, sum.count);
    per_counted(began, before, sum)
}

fn all_reported(good: &AtomicU64, count: u64) {
    let since = Instant::now();
    while good.load(Ordering::Relaxed) < count {
        assert!(since.elapsed() < Duration::from_secs(30), "reports are missing");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// The service's own producer with full records, 64 of them on their way at most.
async fn packed(brokers: &str, topic: &str, sum: &mut Sum) -> Duration {
    const IN_FLIGHT: u64 = 64;
    let producer = Producer::start(brokers, topic).expect("legal settings");
    let (mut demand, sku) = (Demand::new(), sku());
    let good = Arc::new(AtomicU64::new(0));
    let mut commands = Vec::with_capacity(limits::RECORD_COMMANDS_MAX);
    let mut fire = |sum: &mut Sum| {
        commands.clear();
        commands.extend((0..limits::RECORD_COMMANDS_MAX).map(|_| demand.reserve(&sku)));
        let payload = record(&commands, sum);
        let good = Arc::clone(&good);
        let on_report = move |report| {
            assert!(matches!(report, Report::At(_)), "a record was not delivered");
            good.fetch_add(1, Ordering::Relaxed);
        };
        producer.send(0, SKU.as_bytes(), &payload, &[], Box::new(on_report));
    };
    fire(sum);
    all_reported(&good, 1);
    let (began, before, mut fired) = (Instant::now(), sum.count, 1);
    while !is_over(began, sum) {
        while fired - good.load(Ordering::Relaxed) >= IN_FLIGHT {
            std::thread::sleep(Duration::from_micros(50));
        }
        fire(sum);
        fired += 1;
    }
    all_reported(&good, fired);
    per_counted(began, before, sum)
}

/// The way of a real request: one command handed over, one report awaited, by as many callers as a crowd has connections.
async fn ingress(brokers: &str, topic: &str, sum: &mut Sum) -> Duration {
    let ingress = Ingress::start(Producer::start(brokers, topic).expect("legal settings"));
    let mut demand = Demand::new();
    let first = demand.reserve(&sku());
    sum.add(first.command.id());
    submit(&ingress, first).await;
    let (began, before) = (Instant::now(), sum.count);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let ingress = ingress.clone();
        let mut demand = Demand::new();
        callers.spawn(async move {
            let (mut sum, sku) = (Sum::default(), sku());
            while began.elapsed().as_secs_f64() < seconds() && sum.count < COMMANDS_MAX / CALLERS {
                let sent = demand.reserve(&sku);
                sum.add(sent.command.id());
                submit(&ingress, sent).await;
            }
            sum
        });
    }
    while let Some(theirs) = callers.join_next().await {
        sum.join(theirs.expect("no caller failed"));
    }
    per_counted(began, before, sum)
}

async fn submit(ingress: &Ingress, sent: flashsale::wire::Sent) {
    let delivery = ingress.submit(0, sent).await;
    assert!(matches!(delivery, Delivery::Delivered(_)), "a command was not delivered: {delivery:?}");
}
