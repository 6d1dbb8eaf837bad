//! What the failures of a batch come to: what is tried for ever, what only so often, and what a search for poison makes of them.

use std::time::Duration;

use flashsale::ids;
use flashsale::kafka::{LogEnds, client, topics};
use flashsale::limits;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use uuid::Uuid;

use crate::support::commands::{create, record, reserve, reserve_as};
use crate::support::consumer::{SOON, World};
use crate::support::kafka::{brokers, publish_raw};
use crate::support::wait::{wait_for, wait_for_value};

/// Makes Postgres run this PL/pgSQL before each row of a reservation is written; `tries` counts, also what is rolled back.
async fn plant(world: &World, body: &str) {
    let planted = format!(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$;
         CREATE TRIGGER planted BEFORE INSERT ON reservation FOR EACH ROW EXECUTE FUNCTION planted()"
    );
    world.db.run(&planted).await;
}

/// How often the planted code ran.
async fn tries(world: &World) -> i64 {
    world.db.number("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_never_ends_halts_while_the_server_answers() {
    let world = World::fresh(1).await;
    plant(&world, "PERFORM nextval('tries'), pg_sleep(3600);").await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    world.publish(0, &[reserve("s", "a", 1)]);
    let patience = limits::STATEMENT_DEADLINE * limits::BATCH_ATTEMPTS_MAX + SOON;
    let sql = "SELECT halted_reason FROM partition_state";
    let reason = wait_for_value("a stored halt", patience, async || world.db.text(sql).await).await;
    // Our deadline and the server's are equally long: whichever came first.
    let expected = format!("a batch failed {} times: ", limits::BATCH_ATTEMPTS_MAX);
    assert!(reason.starts_with(&expected) && reason.contains("write a batch"), "{reason}");
    assert_eq!(tries(&world).await, i64::from(limits::BATCH_ATTEMPTS_MAX));
    // The cause is removed, an operator resumes: the same batch is decided.
    world.db.run("DROP TRIGGER planted ON reservation").await;
    assert!(world.db.store().resume_partition(0, "trigger removed").await.unwrap());
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeouts_of_the_server_are_counted() {
    for code in ["57014", "55P03"] {
        let world = World::fresh(1).await;
        plant(&world, &format!("PERFORM nextval('tries'); RAISE EXCEPTION 'planted' USING ERRCODE = '{code}';")).await;
        world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1)]);
        let consumer = world.consume();
        let reason = world.wait_for_halt(0).await;
        assert!(reason.contains(code) && reason.starts_with("a batch failed"), "{reason}");
        assert_eq!(tries(&world).await, i64::from(limits::BATCH_ATTEMPTS_MAX));
        consumer.stop().await;
        world.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_of_the_server_is_not_counted() {
    let world = World::fresh(1).await;
    let troubled = limits::BATCH_ATTEMPTS_MAX + 2;
    let raise = format!(
        "IF nextval('tries') <= {troubled} THEN RAISE EXCEPTION 'planted' USING ERRCODE = 'admin_shutdown'; END IF;"
    );
    plant(&world, &raise).await;
    world.publish(0, &[create("s", 0, 9, 5), reserve("s", "a", 1)]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    assert_eq!(tries(&world).await, i64::from(troubled) + 1);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contradiction_met_by_a_poison_trial_halts() {
    let world = World::fresh(1).await;
    plant(&world, "IF NEW.user_id = 'bad' THEN RAISE EXCEPTION 'planted' USING ERRCODE = '22023'; END IF;").await;
    // Met by the trial of the first two alone: the whole batch ends by the poison before, and reserves four without it (three, if the trial
    // found somebody else guilty).
    world.db.run("ALTER TABLE sku ADD CONSTRAINT planted_check CHECK (reserved <> 2)").await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    let commands = ["a", "b", "bad", "c", "d"].map(|user| reserve("s", user, 1));
    publish_raw(&world.topic, 0, "s", &[&record(&commands)]);
    let reason = world.wait_for_halt(0).await;
    assert!(reason.contains("23514") && reason.contains("planted_check"), "{reason}");
    assert_eq!(world.db.number("SELECT count(*) FROM poison").await, 0, "nobody was found guilty");
    world.db.run("ALTER TABLE sku DROP CONSTRAINT planted_check").await;
    assert!(world.db.store().resume_partition(0, "constraint removed").await.unwrap());
    world.wait_for_position(0, 2).await;
    assert_eq!(world.status(&commands[2]).await, "REJECTED");
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 4);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_trial_that_fails_in_passing_is_repeated() {
    let world = World::fresh(1).await;
    // The whole batch ends by the poison in it; the trial of its first two is refused once.
    let passing = "IF NEW.user_id = 'bad' THEN RAISE EXCEPTION 'planted' USING ERRCODE = '22023'; END IF;
                   IF NEW.user_id = 'b' AND nextval('tries') = 2 THEN RAISE EXCEPTION 'planted' USING ERRCODE = '40001'; END IF;";
    plant(&world, passing).await;
    world.publish(0, &[create("s", 0, 9, 5)]);
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    let epoch = world.db.number("SELECT epoch FROM partition_state").await;
    let commands = ["a", "b", "bad", "c"].map(|user| reserve("s", user, 1));
    publish_raw(&world.topic, 0, "s", &[&record(&commands)]);
    world.wait_for_position(0, 2).await;
    assert_eq!(world.status(&commands[2]).await, "REJECTED");
    assert_eq!(world.db.number("SELECT reserved FROM sku").await, 3);
    assert_eq!(world.db.number("SELECT epoch FROM partition_state").await, epoch, "no claim was needed");
    assert!(tries(&world).await > 2, "the trial was refused");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_partitions_with_the_same_ids_wait_one_for_the_other_and_never_both() {
    let world = World::fresh(2).await;
    // So slow that both batches are written at once.
    plant(&world, "PERFORM nextval('tries'), pg_sleep(0.3);").await;
    for (partition, name) in [(0, "s"), (1, "t")] {
        world.publish(partition, &[create(name, partition, 9, 5)]);
    }
    let consumer = world.consume();
    for partition in [0, 1] {
        world.wait_for_position(partition, 1).await;
    }
    let ids = [ids::fresh_id(), ids::fresh_id()];
    let of = |name: &str, ids: [Uuid; 2]| record(&ids.map(|id| reserve_as(id, name, "u", 1)));
    publish_raw(&world.topic, 0, "s", &[&of("s", ids)]);
    publish_raw(&world.topic, 1, "t", &[&of("t", [ids[1], ids[0]])]);
    for partition in [0, 1] {
        world.wait_for_position(partition, 2).await;
    }
    assert_eq!(world.db.number("SELECT sum(reserved)::bigint FROM sku").await, 2, "each is decided once");
    // The first writes both; the second is refused by its first, and looks up. After a deadlock somebody would write again.
    let tries = tries(&world).await;
    assert!(tries <= 4, "{tries} rows were tried");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_record_that_a_broker_takes_becomes_a_dead_letter() {
    let world = World::fresh(1).await;
    // A broker takes packs of 1 MiB and 12 bytes by default; the frame of a pack of one takes 75 of them.
    let largest = vec![b'x'; 1024 * 1024 + 12 - 80];
    let producer: BaseProducer =
        client::config(&brokers()).set("message.max.bytes", "2000000").create().expect("legal settings");
    let record = BaseRecord::to(&world.topic).partition(0).key("s").payload(&largest);
    producer.send(record).map_err(|(error, _)| error).expect("the queue has room");
    producer.flush(SOON).expect("the broker answers");
    let consumer = world.consume();
    world.wait_for_position(0, 1).await;
    wait_for("the letter is published", SOON, async || {
        world.db.number("SELECT count(*) FROM poison WHERE published_at IS NOT NULL").await == 1
    })
    .await;
    let letters = LogEnds::start(&brokers(), &topics::dead_letter_topic(&world.topic)).expect("legal settings");
    let letter = letters.read_record(0, 0).await.expect("asked").expect("it is there");
    assert!((letter.key.as_slice(), letter.payload == largest) == (b"0.0.0".as_slice(), true), "the whole record");
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_its_topic_does_not_take_becomes_a_stub_once() {
    let world = World::fresh(1).await;
    let letters = topics::dead_letter_topic(&world.topic);
    let admin: AdminClient<DefaultClientContext> = client::config(&brokers()).create().expect("legal settings");
    let smaller = AlterConfig::new(ResourceSpecifier::Topic(&letters)).set("max.message.bytes", "2000");
    admin.alter_configs([&smaller], &AdminOptions::new()).await.expect("asked")[0].as_ref().expect("altered");
    let large = vec![b'x'; 5000];
    publish_raw(&world.topic, 0, "s", &[&large, b"nonsense"]);
    let consumer = world.consume();
    wait_for("both are published", SOON, async || {
        world.db.number("SELECT count(*) FROM poison WHERE published_at IS NOT NULL").await == 2
    })
    .await;
    assert_eq!(world.db.number("SELECT max(length(raw))::bigint FROM poison").await, 5000, "its bytes are kept");
    let log = LogEnds::start(&brokers(), &letters).expect("legal settings");
    assert_eq!(log.watermarks(0).await.expect("asked"), (0, 2), "each once");
    let reader: BaseConsumer =
        client::config(&brokers()).set("group.id", &world.topic).create().expect("legal settings");
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(&letters, 0, Offset::Beginning).expect("legal");
    reader.assign(&from).expect("assigned");
    let mut read = Vec::new();
    wait_for("both are read", SOON, async || {
        if let Some(Ok(letter)) = reader.poll(Duration::from_millis(10)) {
            let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
            let headers = letter.headers().expect("headers").iter();
            let headers: Vec<_> = headers.map(|h| format!("{}={}", h.key, text(h.value).unwrap_or_default())).collect();
            read.push((text(letter.key()).unwrap_or_default(), text(letter.payload()), headers.join(" ")));
        }
        read.len() == 2
    })
    .await;
    let stub = ("0.0.0".to_owned(), None, "reason=MALFORMED place=0.0.0 size=5000".to_owned());
    assert_eq!(read, [stub, ("0.1.0".to_owned(), Some("nonsense".to_owned()), "reason=MALFORMED".to_owned())]);
    consumer.stop().await;
    world.finish().await;
}
