//! The watch beside the workers: a stall is told by metric, log and readiness, once, and taken back.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use flashsale::clock::{Clock, Millis, SystemClock};

use crate::support::commands::{create, record, reserve};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::publish_raw_on;
use crate::support::site::Site;
use crate::support::wait::wait_for;

/// A clock that is wrong by so many milliseconds.
#[derive(Default)]
struct WrongClock(AtomicI64);

impl Clock for WrongClock {
    fn now(&self) -> Millis {
        SystemClock.now() - self.0.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_waits_too_long_is_told_until_it_goes_on() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let clock = Arc::new(WrongClock::default());
    let consumer = world.consume_with_clock(Arc::clone(&clock) as Arc<dyn Clock>);
    world.wait_for_position(0, 1).await;
    assert!(!consumer.health.is_stalled());
    // It waits for its clock for a while before it halts.
    clock.0.store(3_600_000, Ordering::Relaxed);
    world.publish(0, &[reserve("s", "a", 1)]);
    wait_for("the stall is told", SOON, async || consumer.health.is_stalled()).await;
    assert!(consumer.health.has_joined(), "the process lives and keeps its partition");
    clock.0.store(0, Ordering::Relaxed);
    world.wait_for_position(0, 2).await;
    wait_for("the stall is over", SOON, async || !consumer.health.is_stalled()).await;
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_postgres_is_told_and_waited_for() {
    const STALLED: &str = "flashsale_consumer_stalled{partition=\"3\"}";
    const DEPTH: &str = "flashsale_queue_depth{sku=\"s\"}";
    let site = Site::private().await;
    let services = site.services.as_ref().expect("private");
    let brokers = services.address("KAFKA_BROKERS");
    let publish = |records: &[Vec<u8>]| {
        let payloads: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
        publish_raw_on(&brokers, &site.db.topic, 3, "s", &payloads);
    };
    // Two commands in each record.
    let pair = |n: i32| record(&[reserve("s", &format!("a{n}"), 1), reserve("s", &format!("b{n}"), 1)]);
    publish(&[record(&[create("s", 3, 1000, 5), reserve("s", "first", 1)])]);
    let consumer = site.start("consumer").await;
    wait_for("the mix is known", SOON, async || site.metric(&consumer, DEPTH).await == Some(0.0)).await;
    assert_eq!(site.metric(&consumer, STALLED).await, Some(0.0));

    services.run("pause", &["postgres"]).await;
    publish(&(0..7).map(pair).collect::<Vec<_>>());
    wait_for("the stall is shown", SOON, async || site.metric(&consumer, STALLED).await == Some(1.0)).await;
    assert_eq!(site.metric(&consumer, DEPTH).await, Some(14.0), "seven records of two commands");
    assert_eq!(site.metric(&consumer, "flashsale_consumer_stalled{partition=\"2\"}").await, Some(0.0));
    wait_for("it is not ready", SOON, async || !site.is_ready(&consumer).await).await;

    services.run("resume", &["postgres"]).await;
    wait_for("the stall is over", SOON, async || site.metric(&consumer, STALLED).await == Some(0.0)).await;
    wait_for("nothing waits", SOON, async || site.metric(&consumer, DEPTH).await == Some(0.0)).await;
    wait_for("it is ready", SOON, async || site.is_ready(&consumer).await).await;
    let errors: Vec<_> = consumer.lines().into_iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(errors.len(), 1, "once per stall: {errors:?}");
    assert!(errors[0].to_string().contains("postgres"), "{errors:?}");
    assert_eq!(site.db.number("SELECT position FROM partition_state WHERE partition = 3").await, 8);
    assert!(consumer.stop().await.success());
    site.finish([]).await;
}
