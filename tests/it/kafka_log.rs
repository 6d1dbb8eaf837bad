//! Topics and log reads on a real broker.

use std::time::{Duration, Instant};

use flashsale::clock::{Clock, SystemClock};
use flashsale::kafka::log_ends::{LogReader, LogStart};
use flashsale::kafka::topics::{self, TopicError};
use flashsale::kafka::{KafkaError, LogEnds};
use flashsale::limits;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};

use crate::support::kafka::{brokers, fresh_name, fresh_topic, publish_raw};

#[tokio::test]
async fn topics_are_made_once_and_checked_afterwards() {
    let topic = fresh_topic(3).await;
    topics::ensure(&brokers(), &topic, 3, 1).await.expect("a second run changes nothing");
    let refused = topics::ensure(&brokers(), &topic, 4, 1).await;
    let Err(TopicError::Unfit { what, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(what, "it has 3 partitions, 4 are asked for; raise or lower the setting, or use another topic");
    let ends = LogEnds::start(&brokers(), &topics::dead_letter_topic(&topic)).expect("starts");
    assert_eq!(ends.watermarks(0).await.expect("the dead-letter topic is there"), (0, 0));
}

#[tokio::test]
async fn a_topic_that_takes_the_producers_time_is_refused() {
    let topic = fresh_name("foreign");
    let admin: AdminClient<_> = flashsale::kafka::client::config(&brokers()).create().expect("legal settings");
    let foreign = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "compact");
    admin.create_topics([&foreign], &AdminOptions::new()).await.expect("asked")[0].as_ref().expect("made");
    let refused = topics::ensure(&brokers(), &topic, 1, 1).await.expect_err("it does not fit");
    let said = refused.to_string();
    assert!(said.contains("message.timestamp.type is CreateTime, it must be LogAppendTime"), "{said}");
    assert!(said.contains("cleanup.policy is compact, it must be delete"), "{said}");
}

#[tokio::test]
async fn a_dead_letter_topic_must_take_the_largest_record() {
    let topic = fresh_name("small-letters");
    let admin: AdminClient<_> = flashsale::kafka::client::config(&brokers()).create().expect("legal settings");
    let requests = NewTopic::new(&topic, 1, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime")
        .set("max.message.bytes", "2000000");
    let dead_letters = topics::dead_letter_topic(&topic);
    let letters = NewTopic::new(&dead_letters, 1, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime")
        .set("max.message.bytes", "2000000");
    let made = admin.create_topics([&requests, &letters], &AdminOptions::new()).await.expect("asked");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let Err(TopicError::Unfit { topic: refused, what }) = topics::ensure(&brokers(), &topic, 1, 1).await else {
        panic!("it does not fit")
    };
    assert_eq!(refused, dead_letters);
    let least = 2_000_000 + limits::DEAD_LETTER_OVERHEAD_BYTES;
    assert!(what.contains(&format!("max.message.bytes is 2000000, it must be {least} or more")), "{what}");
}

#[tokio::test]
async fn log_ends_and_records_are_those_of_the_leader() {
    let topic = fresh_topic(2).await;
    let ends = LogEnds::start(&brokers(), &topic).expect("starts");
    assert_eq!(ends.watermarks(0).await.expect("asked"), (0, 0));
    publish_raw(&topic, 0, "A", &[b"zero", b"one", b"two"]);
    assert_eq!(ends.watermarks(0).await.expect("asked"), (0, 3));
    assert_eq!(ends.watermarks(1).await.expect("asked"), (0, 0));
    // Backwards, so that each read starts anew.
    for (offset, payload) in [(2, &b"two"[..]), (1, b"one"), (0, b"zero")] {
        let record = ends.read_record(0, offset).await.expect("asked").expect("it is there");
        assert_eq!((record.partition, record.offset, &*record.key, &*record.payload), (0, offset, &b"A"[..], payload));
        assert!((record.at - SystemClock.now()).abs() < 60_000, "a log time: {}", record.at);
    }
    assert_eq!(ends.read_record(0, 3).await.expect("asked"), None);
    assert_eq!(ends.read_record(1, 0).await.expect("asked"), None);
    assert!(matches!(ends.watermarks(7).await, Err(KafkaError::Client { .. })), "no such partition");
}

#[tokio::test]
async fn many_callers_share_one_question() {
    let topic = fresh_topic(1).await;
    publish_raw(&topic, 0, "A", &[b"x"]);
    let ends = LogEnds::start(&brokers(), &topic).expect("starts");
    ends.watermarks(0).await.expect("asked");
    let started = Instant::now();
    let asking: Vec<_> = (0..2_000)
        .map(|_| {
            let ends = ends.clone();
            tokio::spawn(async move { ends.watermarks(0).await })
        })
        .collect();
    for asked in asking {
        assert_eq!(asked.await.expect("no panic").expect("asked"), (0, 1));
    }
    assert!(started.elapsed() < limits::LOG_PROBE_DEADLINE, "one broker request each would take longer");
}

#[tokio::test]
async fn a_broker_that_is_away_costs_the_deadline_and_no_more() {
    let ends = LogEnds::start("127.0.0.1:1", "nowhere").expect("brokers are not needed to start");
    let started = Instant::now();
    let (one, other) = tokio::join!(ends.watermarks(0), ends.read_record(1, 0));
    assert!(one.is_err() && other.is_err());
    assert!(started.elapsed() < limits::LOG_PROBE_DEADLINE + Duration::from_millis(500));
}

#[tokio::test]
async fn a_log_reader_goes_on_record_by_record() {
    let topic = fresh_topic(2).await;
    publish_raw(&topic, 0, "A", &[b"a0", b"a1"]);
    publish_raw(&topic, 1, "B", &[b"b0"]);
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = LogReader::open(&brokers(), &topic, &[], LogStart::Beginning).expect("opens");
        let mut seen = Vec::new();
        while seen.len() < 3 {
            let record = reader.next(Duration::from_secs(10)).expect("reads").expect("three records are there");
            seen.push((record.partition, record.offset, String::from_utf8(record.payload).expect("text")));
        }
        assert_eq!(reader.next(Duration::from_millis(50)).expect("reads"), None);
        let mut tail = LogReader::open(&brokers(), &topic, &[1], LogStart::Offset(0)).expect("opens");
        assert_eq!(tail.next(Duration::from_secs(10)).expect("reads").map(|r| r.payload), Some(b"b0".to_vec()));
        seen.sort();
        seen
    });
    let expected = [(0, 0, "a0"), (0, 1, "a1"), (1, 0, "b0")].map(|(p, o, t)| (p, o, t.to_owned()));
    assert_eq!(read.await.expect("no panic"), expected);
}
