//! Ingress against real brokers, and against the client library's mock cluster where an error code must be steered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flashsale::ids::Ticket;
use flashsale::ingress::{Delivery, Ingress, NotSent};
use flashsale::inventory::Command;
use flashsale::kafka::log_ends::{LogReader, LogStart};
use flashsale::kafka::{LogEnds, Producer, topics};
use flashsale::wire::{self, Sent};
use flashsale::{ids, limits};
use rdkafka::bindings::rd_kafka_resp_err_t as Code;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::RDKafkaApiKey;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::support::commands::reserve_as;
use crate::support::kafka::{brokers, fresh_name, fresh_topic};
use crate::support::services::Services;
use crate::support::wait::{wait_for, wait_for_value};

const UNAVAILABLE: Delivery = Delivery::NotSent(NotSent::Unavailable);
/// An answer is promised within [`limits::DELIVERY_WAIT`]; a busy machine may be a little late.
const ANSWERED_WITHIN: Duration = Duration::from_millis(2_500);
const SOON: Duration = Duration::from_secs(20);

/// A request on its way.
struct Submitted {
    id: Uuid,
    answer: JoinHandle<(Delivery, Duration)>,
}

fn submit(ingress: &Ingress, partition: i32, sku: &str, user: usize) -> Submitted {
    let id = ids::fresh_id();
    let sent = sent(reserve_as(id, sku, &format!("u-{user}"), 1));
    let ingress = ingress.clone();
    let answer = tokio::spawn(async move {
        let started = Instant::now();
        let delivery = ingress.submit(partition, sent).await;
        (delivery, started.elapsed())
    });
    Submitted { id, answer }
}

fn sent(command: Command) -> Sent {
    Sent { received_at_us: 0, request_id: "test".to_owned(), command }
}

async fn submit_one(ingress: &Ingress) -> Delivery {
    submit(ingress, 0, "A", 0).answer.await.expect("no panic").0
}

async fn await_delivery(ingress: &Ingress) {
    wait_for("a request is delivered", SOON, async || matches!(submit_one(ingress).await, Delivery::Delivered(_)))
        .await;
}

/// Every command in the log by its id, with all the places where it stands.
async fn read_log(brokers: String, topic: String, partitions: i32) -> HashMap<Uuid, Vec<Ticket>> {
    let ends = LogEnds::start(&brokers, &topic).expect("starts");
    let mut missing = 0;
    for partition in 0..partitions {
        missing += ends.watermarks(partition).await.expect("the broker answers").1;
    }
    let read = move || {
        let mut found: HashMap<Uuid, Vec<Ticket>> = HashMap::new();
        let mut reader = LogReader::open(&brokers, &topic, &[], LogStart::Beginning).expect("opens");
        for _ in 0..missing {
            let record = reader.next(SOON).expect("reads").expect("the ends say that it is there");
            for (index, envelope) in (0..).zip(wire::decode(&record.payload).expect("a record of ours").commands) {
                let place = ids::Place { offset: record.offset, index };
                let id = envelope.command.expect("a good command").id();
                found.entry(id).or_default().push(Ticket { partition: record.partition, place });
            }
        }
        found
    };
    tokio::task::spawn_blocking(read).await.expect("no panic")
}

/// What was answered must agree with what is in the log: delivered = there, exactly once, at the ticket; not sent = not there; unknown =
/// at most once.
async fn check_against_log(answers: &[(Uuid, Delivery)], log: &HashMap<Uuid, Vec<Ticket>>) {
    for (id, delivery) in answers {
        let places = log.get(id).map_or(&[][..], Vec::as_slice);
        match delivery {
            Delivery::Delivered(ticket) => assert_eq!(places, [*ticket], "{id}"),
            Delivery::NotSent(_) => assert_eq!(places, [], "{id} was refused for good"),
            Delivery::Unknown => assert!(places.len() <= 1, "{id} stands at {places:?}"),
        }
    }
}

// ---- the real broker --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn many_are_submitted_together_and_answered_in_their_order() {
    let topic = fresh_topic(2).await;
    let ingress = Ingress::start(Producer::start(&brokers(), &topic).expect("starts"));
    let command = |n: usize| sent(reserve_as(ids::fresh_id(), ["A", "B", "C"][n % 3], &format!("u-{n}"), 1));
    // Whoever is of no partition fails nobody else.
    let commands: Vec<_> = (0..250).map(|n| (if n == 7 { -1 } else { (n % 2) as i32 }, command(n))).collect();
    let ids: Vec<Uuid> = commands.iter().map(|(_, sent)| sent.command.id()).collect();
    let deliveries = ingress.submit_many(commands, None).await;
    assert_eq!(deliveries[7], UNAVAILABLE);
    assert_eq!(deliveries.iter().filter(|delivery| matches!(delivery, Delivery::Delivered(_))).count(), 249);
    let answers: Vec<_> = ids.into_iter().zip(deliveries).collect();
    let log = read_log(brokers(), topic, 2).await;
    assert_eq!(log.len(), 249);
    check_against_log(&answers, &log).await;
    assert_eq!(ingress.submit_many(Vec::new(), None).await, []);
    ingress.shutdown().await;
    assert_eq!(ingress.submit_many(vec![(0, command(0))], None).await, [UNAVAILABLE]);
}

#[tokio::test]
async fn tickets_are_the_places_of_their_commands() {
    let topic = fresh_topic(2).await;
    let ingress = Ingress::start(Producer::start(&brokers(), &topic).expect("starts"));
    let submitted: Vec<_> = (0..900).map(|n| submit(&ingress, (n % 2) as i32, ["A", "B", "C"][n % 3], n)).collect();
    let mut answers = Vec::new();
    for one in submitted {
        let (delivery, _) = one.answer.await.expect("no panic");
        assert!(matches!(delivery, Delivery::Delivered(_)), "{delivery:?}");
        answers.push((one.id, delivery));
    }
    assert!(ingress.is_available());
    let log = read_log(brokers(), topic.clone(), 2).await;
    assert_eq!(log.len(), answers.len());
    check_against_log(&answers, &log).await;
    let ends = LogEnds::start(&brokers(), &topic).expect("starts");
    let records: i64 = ends.watermarks(0).await.expect("asked").1 + ends.watermarks(1).await.expect("asked").1;
    assert!(records <= 60, "900 requests that come at once share records: {records}");
}

#[tokio::test]
async fn many_at_once_are_answered_in_their_order_and_callbacks_told_once_each() {
    let topic = fresh_topic(2).await;
    let ingress = Ingress::start(Producer::start(&brokers(), &topic).expect("starts"));
    await_delivery(&ingress).await;
    let ids: Vec<Uuid> = (0..250).map(|_| ids::fresh_id()).collect();
    let partition = |n: usize| [0, 0, 1, -1][n % 4];
    let command = |n: usize| sent(reserve_as(ids[n], ["A", "B"][n % 2], &format!("u-{n}"), 1));
    let deliveries = ingress.submit_many((0..200).map(|n| (partition(n), command(n))).collect(), None).await;
    assert_eq!(deliveries.len(), 200);
    for (n, delivery) in deliveries.iter().enumerate() {
        match delivery {
            Delivery::Delivered(ticket) => assert_eq!(ticket.partition, partition(n), "{n}"),
            refused => assert_eq!((*refused, partition(n)), (UNAVAILABLE, -1), "{n}"),
        }
    }
    let told: Arc<Mutex<Vec<(usize, Delivery)>>> = Arc::default();
    for n in 200..250 {
        let told = Arc::clone(&told);
        // Nobody waits for the future.
        drop(ingress.submit_with(partition(n), command(n), None, move |delivery| {
            told.lock().expect("no panic").push((n, delivery));
        }));
    }
    wait_for("all are told", SOON, async || told.lock().expect("no panic").len() == 50).await;
    ingress.shutdown().await;
    let mut told = std::mem::take(&mut *told.lock().expect("no panic"));
    told.sort_by_key(|(n, _)| *n);
    assert_eq!(told.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (200..250).collect::<Vec<_>>(), "once each");
    let mut answers: Vec<_> = ids.iter().copied().zip(deliveries).collect();
    answers.extend(told.into_iter().map(|(n, delivery)| (ids[n], delivery)));
    check_against_log(&answers, &read_log(brokers(), topic, 2).await).await;
}

#[tokio::test]
async fn a_missing_topic_or_partition_is_refused_and_definite() {
    let topic = fresh_name("missing");
    let ingress = Ingress::start(Producer::start(&brokers(), &topic).expect("starts"));
    assert_eq!(submit_one(&ingress).await, UNAVAILABLE);
    assert!(!ingress.is_available());
    for impossible in [-1, limits::PARTITIONS_MAX, i32::MAX] {
        assert_eq!(submit(&ingress, impossible, "A", 0).answer.await.expect("no panic").0, UNAVAILABLE);
    }
    topics::ensure(&brokers(), &topic, 1, 1).await.expect("made");
    await_delivery(&ingress).await;
    assert!(ingress.is_available(), "a topic made later is found");
}

#[tokio::test]
async fn a_broker_that_dies_and_comes_back_loses_and_doubles_nothing() {
    let services = Services::start(&["kafka"]).await;
    let brokers = services.address("KAFKA_BROKERS");
    let topic = fresh_name("requests");
    topics::ensure(&brokers, &topic, 1, 1).await.expect("made");
    let ingress = Ingress::start(Producer::start(&brokers, &topic).expect("starts"));
    await_delivery(&ingress).await;

    let mut answers = Vec::new();
    for (harm, repair) in [("pause", "resume"), ("kill", "start"), ("stop", "start")] {
        // Requests keep coming while the broker goes away.
        let during: Vec<_> = (0..50).map(|n| submit(&ingress, 0, "A", n)).collect();
        services.run(harm, &["kafka"]).await;
        let after: Vec<_> = (0..50).map(|n| submit(&ingress, 0, "A", n)).collect();
        for one in during.into_iter().chain(after) {
            let (delivery, took) = one.answer.await.expect("no panic");
            assert!(took < ANSWERED_WITHIN, "{harm}: {delivery:?} after {took:?}");
            answers.push((one.id, delivery));
        }
        wait_for("the API is not ready", SOON, async || !ingress.is_available()).await;
        let (delivery, took) = submit(&ingress, 0, "A", 0).answer.await.expect("no panic");
        assert_eq!(delivery, UNAVAILABLE, "{harm}: nothing is handed over to a broker that is away");
        assert!(took < Duration::from_millis(500), "{harm}: refused at once, not after {took:?}");

        services.run(repair, &["kafka"]).await;
        await_delivery(&ingress).await;
        wait_for("the API is ready", SOON, async || ingress.is_available()).await;
    }
    ingress.shutdown().await;
    let log = read_log(brokers, topic, 1).await;
    check_against_log(&answers, &log).await;
    let count = |wanted: fn(&Delivery) -> bool| answers.iter().filter(|(_, delivery)| wanted(delivery)).count();
    assert!(count(|d| matches!(d, Delivery::NotSent(_))) > 0, "requests behind the last publish are refused for good");
}

#[tokio::test]
async fn shutdown_publishes_what_was_accepted_and_refuses_the_rest() {
    let topic = fresh_topic(1).await;
    let ingress = Ingress::start(Producer::start(&brokers(), &topic).expect("starts"));
    await_delivery(&ingress).await;
    let submitted: Vec<_> = (0..2_000).map(|n| submit(&ingress, 0, "A", n)).collect();
    tokio::task::yield_now().await;
    ingress.shutdown().await;
    assert!(!ingress.is_available());
    assert_eq!(submit_one(&ingress).await, UNAVAILABLE);
    let mut answers = Vec::new();
    for one in submitted {
        answers.push((one.id, one.answer.await.expect("no panic").0));
    }
    assert!(answers.iter().all(|(_, delivery)| *delivery != Delivery::Unknown), "reports were awaited");
    assert!(answers.iter().any(|(_, delivery)| matches!(delivery, Delivery::Delivered(_))));
    check_against_log(&answers, &read_log(brokers(), topic, 1).await).await;
}

// ---- the mock cluster: error codes ----------------------------------------------------------------------------------------

const TOPIC: &str = "requests";

/// A mock cluster with the topic, and ingress on it.
async fn mock() -> (MockCluster<'static, DefaultProducerContext>, Ingress) {
    let cluster = MockCluster::new(1).expect("the mock starts");
    cluster.create_topic(TOPIC, 1, 1).expect("made");
    let ingress = Ingress::start(Producer::start(&cluster.bootstrap_servers(), TOPIC).expect("starts"));
    await_delivery(&ingress).await;
    (cluster, ingress)
}

#[tokio::test]
async fn a_refusal_by_the_broker_is_definite_only_if_it_is_about_the_bytes() {
    let (cluster, ingress) = mock().await;
    for (code, delivery) in [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, UNAVAILABLE),
        (Code::RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE, UNAVAILABLE),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, Delivery::Unknown),
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[code]);
        assert_eq!(submit_one(&ingress).await, delivery, "{code:?}");
        await_delivery(&ingress).await;
    }
}

#[tokio::test]
async fn passing_errors_are_tried_again_until_the_record_is_in_the_log() {
    let (cluster, ingress) = mock().await;
    for code in [
        Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Code::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Code::RD_KAFKA_RESP_ERR__TRANSPORT,
    ] {
        cluster.request_errors(RDKafkaApiKey::Produce, &[code]);
        let delivery = submit_one(&ingress).await;
        assert!(matches!(delivery, Delivery::Delivered(_)), "{code:?}: {delivery:?}");
    }
}

#[tokio::test]
async fn shutdown_without_a_broker_is_bounded_and_answers_everybody() {
    let (cluster, ingress) = mock().await;
    cluster.broker_round_trip_time(1, Duration::from_secs(30)).expect("slowed down");
    let submitted: Vec<_> = (0..10).map(|n| submit(&ingress, 0, "A", n)).collect();
    tokio::task::yield_now().await;
    let started = Instant::now();
    ingress.shutdown().await;
    assert!(started.elapsed() < limits::PRODUCER_DRAIN_DEADLINE + Duration::from_secs(1));
    for one in submitted {
        let (delivery, took) = one.answer.await.expect("no panic");
        assert!(!matches!(delivery, Delivery::Delivered(_)) && took < ANSWERED_WITHIN, "{delivery:?} {took:?}");
    }
}

#[tokio::test]
async fn a_fatal_producer_ends_the_component() {
    let cluster = MockCluster::new(1).expect("the mock starts");
    cluster.create_topic(TOPIC, 1, 1).expect("made");
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED]);
    let ingress = Ingress::start(Producer::start(&cluster.bootstrap_servers(), TOPIC).expect("starts"));
    let failed = tokio::time::timeout(SOON, ingress.failed()).await.expect("it is noticed");
    assert!(failed.to_string().starts_with("could not go on publishing: "), "{failed}");
    assert!(!ingress.is_available());
    let refused = wait_for_value("requests are refused", SOON, async || Some(submit_one(&ingress).await)).await;
    assert_eq!(refused, UNAVAILABLE);
}
