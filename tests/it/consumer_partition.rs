//! The consumer on a real broker and a real Postgres: what it decides, what it refuses to decide, and how it goes on after faults.

use flashsale::consumer;
use flashsale::inventory::{Command, Logged, Outcome, Snapshot};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::commands::{create, record, reserve, reserve_as};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::{brokers, publish_raw};
use crate::support::proxy::{Lose, Proxy};
use crate::support::wait::{wait_for, wait_for_value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_decided_in_log_order() {
    let world = World::fresh(1).await;
    let commands =
        [create("s", 0, 3, 2), reserve("s", "a", 2), reserve("s", "a", 1), reserve("s", "b", 2), reserve("s", "c", 1)];
    world.publish(0, &commands);
    let consumer = world.consume();
    world.wait_for_position(0, 5).await;
    let mut words = Vec::new();
    for command in &commands[1..] {
        words.push(world.status(command).await);
    }
    assert_eq!(
        words,
        ["RESERVED", "REJECTED", "REJECTED", "RESERVED"],
        "a smaller request wins after a larger one did not fit"
    );
    let read = world.read(&commands[3]).await;
    let rejection = read.reservations[&commands[3].id()].rejection.clone().expect("rejected");
    assert_eq!(
        (rejection.reason.as_str(), rejection.available, rejection.holds_pending),
        ("SOLD_OUT", Some(1), Some(true))
    );
    // One command more, while it runs.
    let late = reserve("s", "d", 1);
    world.publish(0, std::slice::from_ref(&late));
    world.wait_for_position(0, 6).await;
    assert_eq!(world.status(&late).await, "REJECTED");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_id_is_decided_once() {
    let world = World::fresh(1).await;
    let id = flashsale::ids::fresh_id();
    world.publish(0, &[create("s", 0, 10, 5), reserve_as(id, "s", "a", 1), reserve_as(id, "s", "a", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 3).await;
    world.publish(0, &[reserve_as(id, "s", "a", 3)]);
    world.wait_for_position(0, 4).await;
    assert_eq!(
        world.db.number("SELECT reserved FROM sku").await,
        1,
        "within a batch, in another batch, with another body"
    );
    assert_eq!(world.db.number("SELECT sum(duplicate_count) FROM batch").await, 2);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_is_kept_answered_and_sent_to_the_dead_letters() {
    let world = World::fresh(2).await;
    world.publish(0, &[create("s", 0, 10, 5)]);
    let (good, elsewhere) = (reserve("s", "a", 1), reserve("other", "a", 1));
    // The middle command of three names a user of 65 characters; its bytes are patched, its neighbours are whole.
    let (first, bad, last) = (reserve("s", "b", 1), reserve("s", &"x".repeat(64), 1), reserve("s", "c", 1));
    let mut patched = record(&[first.clone(), bad.clone(), last.clone()]);
    let at = patched.windows(64).position(|w| w == [b'x'; 64]).expect("the long user");
    patched[at] = b'/';
    publish_raw(
        &world.topic,
        0,
        "s",
        &[b"nonsense", &record(std::slice::from_ref(&elsewhere)), &patched, &record(std::slice::from_ref(&good))],
    );
    let consumer = world.consume();
    world.wait_for_position(0, 5).await;
    for command in [&good, &first, &last] {
        assert_eq!(world.status(command).await, "RESERVED", "a bad neighbour costs nothing");
    }
    for (command, reason) in [(&bad, "INVALID"), (&elsewhere, "UNKNOWN_SKU")] {
        let row = world.read(command).await.reservations[&command.id()].clone();
        assert_eq!((row.status.word(), row.rejection.expect("rejected").reason.as_str()), ("REJECTED", reason));
    }
    // The same id again stays rejected: poison occupies it.
    world.publish(0, &[reserve_as(bad.id(), "s", "d", 1)]);
    world.wait_for_position(0, 6).await;
    assert_eq!(world.status(&bad).await, "REJECTED");
    let keys = dead_letters(&world, 3).await;
    assert_eq!(
        keys,
        [("0.1.0", "MALFORMED"), ("0.2.0", "NOT_HERE"), ("0.3.1", "MALFORMED")]
            .map(|(k, r)| (k.to_owned(), r.to_owned()))
    );
    wait_for("the letters are marked", SOON, async || {
        world.db.number("SELECT count(*) FROM poison WHERE published_at IS NULL").await == 0
    })
    .await;
    consumer.stop().await;
    world.finish().await;
}

/// The first letters of the dead-letter topic: key and reason, in order.
async fn dead_letters(world: &World, count: usize) -> Vec<(String, String)> {
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", &world.topic)
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("legal settings");
    let topic = format!("{}-dlq", world.topic);
    let mut all = rdkafka::TopicPartitionList::new();
    all.add_partition_offset(&topic, 0, rdkafka::Offset::Beginning).expect("legal");
    reader.assign(&all).expect("assigned");
    let mut letters = Vec::new();
    wait_for("dead letters", SOON, async || {
        if let Some(Ok(message)) = reader.poll(std::time::Duration::from_millis(10)) {
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            let reason = message.headers().and_then(|h| h.iter().next().and_then(|h| h.value.map(<[u8]>::to_vec)));
            letters.push((key, String::from_utf8(reason.unwrap_or_default()).expect("a code")));
        }
        letters.len() >= count
    })
    .await;
    letters
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_the_database_refuses_is_found_and_poisoned() {
    let world = World::fresh(1).await;
    // Class 22 (data exception) for two of the commands, however they are batched.
    world
        .db
        .run(
            "CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF NEW.user_id LIKE 'bad%' THEN RAISE EXCEPTION 'planted' USING ERRCODE = '22023'; END IF; RETURN NEW; END $$;
             CREATE TRIGGER planted BEFORE INSERT ON reservation FOR EACH ROW EXECUTE FUNCTION planted()",
        )
        .await;
    let mut commands = vec![create("s", 0, 100, 5)];
    for n in 0..40 {
        commands.push(reserve("s", &if n % 17 == 5 { format!("bad{n}") } else { format!("u{n}") }, 1));
    }
    world.publish(0, &commands);
    let consumer = world.consume();
    world.wait_for_position(0, 41).await;
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 37);
    assert_eq!(world.db.number("SELECT count(*) FROM poison WHERE reason = 'PROCESSING_ERROR'").await, 3);
    assert_eq!(world.status(&commands[6]).await, "REJECTED");
    consumer.stop().await;
    world.finish().await;
}

/// A decision function with a bug: it panics on one user.
fn panicking_decide(snapshot: &Snapshot, commands: &[Logged]) -> Outcome {
    for logged in commands {
        if let Ok(Command::Reserve(reserve)) = &logged.command {
            assert_ne!(reserve.user.as_str(), "bad", "planted");
        }
    }
    consumer::decide(snapshot, commands)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_makes_decide_panic_is_poisoned_not_a_crash_loop() {
    let world = World::fresh(1).await;
    let commands = [create("s", 0, 9, 5), reserve("s", "a", 1), reserve("s", "bad", 1), reserve("s", "c", 1)];
    world.publish(0, &commands);
    let consumer = world.consume_with(&world.db.url, panicking_decide);
    world.wait_for_position(0, 4).await;
    assert_eq!(world.status(&commands[2]).await, "REJECTED");
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 2);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_builds_record_parks_the_partition_without_a_stored_halt() {
    let world = World::fresh(2).await;
    let before = reserve("s", "a", 1);
    world.publish(0, &[create("s", 0, 9, 5), before.clone()]);
    let newer = [b'F', b'S', 2, 1, 0, 1, b's'];
    publish_raw(&world.topic, 0, "s", &[&newer, &record(&[reserve("s", "b", 1)])]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    assert_eq!(world.status(&before).await, "RESERVED", "everything before it is decided");
    // The other partition goes on meanwhile, which also shows that time has passed.
    world.publish(1, &[create("t", 1, 9, 5), reserve("t", "a", 1)]);
    world.wait_for_position(1, 2).await;
    assert_eq!(world.db.number("SELECT position FROM partition_state WHERE partition = 0").await, 2);
    assert_eq!(world.db.number("SELECT count(*) FROM partition_state WHERE halted_reason IS NOT NULL").await, 0);
    consumer.stop().await;
    // A newer build takes over where this one stopped.
    let config = flashsale::store::WriterConfig {
        database_url: world.db.url.as_str().into(),
        topic: world.topic.as_str().into(),
        owner: "newer".into(),
        build: "newer".into(),
    };
    let (_, claim) = flashsale::store::Writer::claim(&config, 0).await.expect("claimed");
    assert_eq!((claim.position, claim.halted_reason), (2, None));
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_in_the_log_halts_the_partition_until_it_is_resumed() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    // A transaction's commit marker takes an offset that no consumer ever sees.
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("transactional.id", &world.topic)
        .create()
        .expect("legal settings");
    producer.init_transactions(SOON).expect("the broker has transactions");
    producer.begin_transaction().expect("begun");
    let inside = record(&[reserve("s", "a", 1)]);
    producer
        .send(BaseRecord::to(&world.topic).partition(0).key("s").payload(&inside))
        .map_err(|(e, _)| e)
        .expect("room");
    producer.commit_transaction(SOON).expect("committed");
    // The broker writes the marker after it has said so: the next record must come behind it.
    let log = flashsale::kafka::LogEnds::start(&brokers(), &world.topic).expect("legal settings");
    wait_for("the marker is in the log", SOON, async || log.watermarks(0).await.is_ok_and(|(_, end)| end == 3)).await;
    world.publish(0, &[reserve("s", "b", 1)]);
    let consumer = world.consume();
    assert_eq!(world.wait_for_halt(0).await, "offsets 2 to 2 are missing from the log");
    assert_eq!(world.db.number("SELECT position FROM partition_state").await, 2, "what came before is decided");
    // Resumed without a cure, it halts again: nothing is repaired silently.
    assert!(world.db.store().resume_partition(0, "try again").await.unwrap());
    world.wait_for_halt(0).await;
    consumer.stop().await;
    world.finish().await;
}

/// A log of another topic in the place of the one that was decided, as if it had been cut and refilled.
async fn swap_log(records: i64) -> String {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1), reserve("s", "b", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 3).await;
    consumer.stop().await;
    let mut other = World::fresh(1).await;
    for n in 0..records {
        other.publish(0, &[reserve("s", &format!("other{n}"), 1)]);
    }
    other.db.drop().await;
    other.db = world.db;
    other.db.run(&format!("UPDATE partition_state SET topic = '{}'", other.topic)).await;
    let consumer = other.consume();
    let reason = other.wait_for_halt(0).await;
    assert_eq!(other.db.number("SELECT count(*) FROM reservation WHERE user_id LIKE 'other%'").await, 0);
    consumer.stop().await;
    other.finish().await;
    reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_rewritten_below_the_position_halts() {
    assert_eq!(swap_log(5).await, "the log was rewritten: the record at 2 is not the one that was decided");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_below_the_position_halts() {
    assert_eq!(swap_log(1).await, "the log ends at 1, below the position 3: it was cut or replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_violated_check_halts_with_its_name() {
    let world = World::fresh(1).await;
    world.db.run("ALTER TABLE reservation ADD CONSTRAINT planted_check CHECK (user_id <> 'bad')").await;
    // One record: its commands are always decided together.
    publish_raw(&world.topic, 0, "s", &[&record(&[create("s", 0, 9, 5), reserve("s", "bad", 1)])]);
    let consumer = world.consume();
    let reason = world.wait_for_halt(0).await;
    assert!(reason.contains("23514") && reason.contains("planted_check"), "{reason}");
    assert_eq!(world.db.number("SELECT position FROM partition_state").await, 0, "nothing of the batch is kept");
    // The cause is removed, an operator resumes: the same batch is decided.
    world.db.run("ALTER TABLE reservation DROP CONSTRAINT planted_check").await;
    assert!(world.db.store().resume_partition(0, "constraint removed").await.unwrap());
    world.wait_for_position(0, 1).await;
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unique_violation_halts_and_is_not_tried_again() {
    let world = World::fresh(1).await;
    world.db.run("CREATE UNIQUE INDEX planted_unique ON reservation (user_id)").await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1), reserve("s", "a", 1)]);
    let consumer = world.consume();
    let reason = world.wait_for_halt(0).await;
    assert!(reason.contains("23505") && reason.contains("planted_unique"), "{reason}");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_state_that_contradicts_itself_halts() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 5)]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    world.db.run("ALTER TABLE sku DROP CONSTRAINT sku_no_oversell; UPDATE sku SET on_hand = 4").await;
    let consumer = world.consume();
    world.publish(0, &[reserve("s", "b", 1)]);
    assert!(world.wait_for_halt(0).await.contains("contradicts itself"));
    consumer.stop().await;
    world.db.drop().await;
}

/// 300 commands while something happens every few batches; all are decided once, whatever happened.
async fn decide_all_while(world: &World, database_url: &str, mut disturb: impl AsyncFnMut(i64)) {
    world.publish(0, &[create("s", 0, 120, 5)]);
    let consumer = world.consume_with(database_url, consumer::decide);
    world.wait_for_position(0, 1).await;
    for round in 0..10 {
        disturb(round).await;
        let commands: Vec<Command> = (0..30).map(|n| reserve("s", &format!("u{round}-{n}"), 1)).collect();
        world.publish(0, &commands);
        world.wait_for_position(0, 1 + (round + 1) * 30).await;
    }
    assert_eq!(world.db.number("SELECT count(*) FROM reservation").await, 300);
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 120);
    consumer.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_commits_and_lost_answers_change_no_decision() {
    let world = World::fresh(1).await;
    let server =
        world.db.url.split('@').nth(1).and_then(|rest| rest.split('/').next()).expect("host and port").to_owned();
    let proxy = Proxy::start(server.clone()).await;
    let url = world.db.url.replace(&server, &format!("127.0.0.1:{}", proxy.port));
    decide_all_while(&world, &url, async |round| {
        proxy.lose_once([Lose::Answer, Lose::Commit, Lose::Nothing][(round % 3) as usize]);
    })
    .await;
    assert_eq!(proxy.lost_count(), 7, "every fault happened");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_backends_change_no_decision() {
    let world = World::fresh(1).await;
    decide_all_while(&world, &world.db.url, async |_| {
        world.db.number("SELECT count(pg_terminate_backend(backend_pid)) FROM partition_state").await;
    })
    .await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rival_that_claims_again_and_again_changes_no_decision() {
    let world = World::fresh(1).await;
    let config = flashsale::store::WriterConfig {
        database_url: world.db.url.as_str().into(),
        topic: world.topic.as_str().into(),
        owner: "rival".into(),
        build: "test".into(),
    };
    decide_all_while(&world, &world.db.url, async |_| {
        flashsale::store::Writer::claim(&config, 0).await.expect("the rival claims");
    })
    .await;
    assert!(world.db.number("SELECT epoch FROM partition_state").await >= 20, "each claim was answered by another");
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_consumers_share_the_partitions_and_one_takes_over() {
    const PARTITIONS: i32 = 10;
    let world = World::fresh(PARTITIONS).await;
    for p in 0..PARTITIONS {
        world.publish(p, &[create(&format!("s{p}"), p, 100, 5)]);
    }
    let (first, second) = (world.consume(), world.consume());
    wait_for("both have a share", SOON, async || first.health.has_joined() && second.health.has_joined()).await;
    let publish_all = |round: usize| {
        for p in 0..PARTITIONS {
            let commands: Vec<Command> =
                (0..20).map(|n| reserve(&format!("s{p}"), &format!("u{round}-{n}"), 1)).collect();
            world.publish(p, &commands);
        }
    };
    publish_all(0);
    for p in 0..PARTITIONS {
        world.wait_for_position(p, 21).await;
    }
    publish_all(1);
    first.stop().await; // In the middle of the second round.
    for p in 0..PARTITIONS {
        world.wait_for_position(p, 41).await;
    }
    assert_eq!(world.db.number("SELECT sum(reserved)::bigint FROM sku").await, i64::from(PARTITIONS) * 40);
    second.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_told_to_kafka_for_lag_tools() {
    let world = World::fresh(1).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    let reader: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers())
        .set("group.id", world.group())
        .create()
        .expect("legal settings");
    let mut asked = rdkafka::TopicPartitionList::new();
    asked.add_partition(&world.topic, 0);
    let offset = wait_for_value("an acked position", SOON, async || {
        let committed = reader.committed_offsets(asked.clone(), std::time::Duration::from_secs(2)).ok()?;
        committed.elements()[0].offset().to_raw().filter(|offset| *offset > 0)
    })
    .await;
    assert_eq!(offset, 2);
    consumer.stop().await;
    world.finish().await;
}
