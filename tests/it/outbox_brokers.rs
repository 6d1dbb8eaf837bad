//! The relay and brokers that fail in part: one partition without a leader, and answers that refuse. The brokers are the client library's
//! own mock, which a real producer speaks to over TCP.
//!
//! It knows no settings of topics, so the largest pack is the one that topics must take. And it does not check sequence numbers: where a
//! broker refuses packs that overtook one that it had refused, the mock takes them. So what is refused here is alone in the air; that
//! nothing overtakes on a broker is shown by `outbox_relay`.

use std::collections::BTreeMap;

use flashsale::inventory::Command;
use futures_util::future::join_all;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

use crate::support::commands::{create, reserve};
use crate::support::database::Database;
use crate::support::events::{Relaying, first_told, read_all};
use crate::support::ledger::Ledger;
use crate::support::site::SOON;
use crate::support::wait::wait_for;

const TOPIC: &str = "events";

/// A mock broker with a topic of events, tables, and a writer per partition.
struct World {
    cluster: MockCluster<'static, DefaultProducerContext>,
    db: Database,
    ledgers: Vec<Ledger>,
}

impl World {
    async fn fresh(partitions: i32) -> Self {
        let cluster = MockCluster::new(1).expect("a mock broker");
        cluster.create_topic(TOPIC, partitions, 1).expect("a topic");
        // From version 10 on the mock's answer names the leader, and crashes if there is none.
        cluster.apiversion(RDKafkaApiKey::Produce, Some(0), Some(9)).expect("versions that it has");
        let db = Database::fresh("t", partitions).await;
        let mut ledgers = Vec::new();
        for partition in 0..partitions {
            let mut ledger = Ledger::of(&db, partition).await;
            let skus = ["a", "b"].map(|name| create(&format!("{name}{partition}"), partition, 1_000_000, 1));
            ledger.commit(1_000, &skus).await;
            ledgers.push(ledger);
        }
        Self { cluster, db, ledgers }
    }

    fn relay(&self) -> Relaying {
        Relaying::start(&self.db, &self.cluster.bootstrap_servers(), TOPIC)
    }

    /// The next publishes fail, one by one.
    fn fail(&self, codes: &[Code]) {
        self.cluster.request_errors(RDKafkaApiKey::Produce, codes);
    }

    /// `count` buyers of both SKUs of a partition, SKU by SKU, in one batch.
    async fn sell(&mut self, partition: usize, who: &str, count: usize) {
        let buy = |name: &str, n: usize| reserve(&format!("{name}{partition}"), &format!("{who}-{n}"), 1);
        let crowd: Vec<Command> = ["a", "b"].iter().flat_map(|name| (0..count).map(move |n| buy(name, n))).collect();
        self.ledgers[partition].commit(2_000, &crowd).await;
    }

    async fn rows(&self, partition: usize) -> i64 {
        self.db.number(&format!("SELECT count(*) FROM outbox WHERE partition = {partition}")).await
    }

    async fn wait_until_published(&self, partition: usize) {
        wait_for("everything is published", SOON, async || self.rows(partition).await == 0).await;
    }

    fn told(&self) -> BTreeMap<String, Vec<String>> {
        self.ledgers.iter().flat_map(|ledger| ledger.told.clone()).collect()
    }

    /// What is in the topic: first tellings by SKU, and repeats.
    async fn published(&self) -> (BTreeMap<String, Vec<String>>, usize) {
        first_told(&read_all(&self.cluster.bootstrap_servers(), TOPIC).await)
    }
}

#[tokio::test]
async fn while_a_partition_has_no_leader_the_others_go_on() {
    let mut world = World::fresh(2).await;
    let relay = world.relay();
    world.wait_until_published(0).await;
    world.wait_until_published(1).await;
    world.cluster.partition_leader(TOPIC, 1, None).expect("a mock partition");
    for round in 0..10 {
        for partition in [0, 1] {
            world.sell(partition, &format!("u{round}"), 10).await;
        }
        world.wait_until_published(0).await;
    }
    assert_eq!(world.rows(1).await, 10, "nothing of the other one is settled");
    // One event of the partition that is well ends the producer: what is in the air for the other one is fired by the next.
    world.fail(&[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE]);
    world.sell(0, "refused", 1).await;
    world.wait_until_published(0).await;
    world.sell(1, "later", 10).await;
    world.sell(0, "later", 10).await;
    world.wait_until_published(0).await;
    assert_eq!(world.rows(1).await, 11);
    world.cluster.partition_leader(TOPIC, 1, Some(1)).expect("a mock partition");
    world.wait_until_published(1).await;
    relay.stop().await;
    assert_eq!(world.published().await, (world.told(), 0));
    assert_eq!(world.db.number("SELECT count(*) FROM outbox_parked").await, 0);
    world.db.drop().await;
}

/// An event's publishes fail one after the other; it arrives before later ones, and nothing is parked.
#[tokio::test]
async fn what_a_broker_refuses_for_a_while_arrives_in_order() {
    use Code::*;
    let cases = [
        // The library tries again by itself.
        &[RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS, RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND][..],
        &[RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT],
        &[RD_KAFKA_RESP_ERR__TRANSPORT, RD_KAFKA_RESP_ERR__TRANSPORT],
        // It gives up; the relay does not.
        &[RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED],
        &[RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER],
        // Refused once, for the company that it was in.
        &[RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE],
        &[RD_KAFKA_RESP_ERR_INVALID_RECORD],
    ];
    join_all(cases.map(arrives_in_order)).await;
}

async fn arrives_in_order(failures: &[Code]) {
    let mut world = World::fresh(1).await;
    let relay = world.relay();
    world.wait_until_published(0).await;
    world.fail(failures);
    world.ledgers[0].commit(2_000, &[reserve("a0", "first", 1)]).await;
    world.wait_until_published(0).await;
    world.sell(0, "later", 50).await;
    world.wait_until_published(0).await;
    relay.stop().await;
    assert_eq!(world.published().await.0, world.told(), "{failures:?}");
    assert_eq!(world.db.number("SELECT count(*) FROM outbox_parked").await, 0, "{failures:?}");
    world.db.drop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_alone_is_parked_and_its_sku_goes_on() {
    let mut world = World::fresh(1).await;
    let relay = world.relay();
    world.wait_until_published(0).await;
    world.fail(&[Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE; 2]);
    world.ledgers[0].commit(2_000, &[reserve("a0", "refused", 1)]).await;
    world.wait_until_published(0).await;
    world.sell(0, "later", 10).await;
    world.wait_until_published(0).await;
    relay.stop().await;
    let parked = world.db.store().load_parked().await.expect("readable");
    assert_eq!(parked.len(), 1);
    let id = parked[0].event_id.clone().expect("readable");
    let mut expected = world.told();
    assert_eq!(expected["a0"][1], id, "the one that was refused");
    expected.get_mut("a0").expect("has events").remove(1);
    assert_eq!(world.published().await, (expected, 0));
    world.db.drop().await;
}

/// The first pack of a row is taken, the others are refused again and again: only what is left is kept, and it comes in order.
#[tokio::test]
async fn of_a_row_that_is_published_in_part_the_rest_is_kept() {
    let mut world = World::fresh(1).await;
    let relay = world.relay();
    world.wait_until_published(0).await;
    world.fail(&[Code::RD_KAFKA_RESP_ERR_NO_ERROR]);
    world.fail(&[Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 200]);
    // About 600 KB of JSON: more than two packs.
    world.sell(0, "u", 500).await;
    let left = "SELECT max(length(events))::bigint FROM outbox";
    let whole = world.db.number(left).await;
    wait_for("a part of it is done", SOON, async || (1..whole).contains(&world.db.number(left).await)).await;
    world.sell(0, "later", 10).await;
    // Nothing is in the air when the refusals end.
    relay.stop().await;
    world.cluster.clear_request_errors(RDKafkaApiKey::Produce);
    let relay = world.relay();
    world.wait_until_published(0).await;
    relay.stop().await;
    assert_eq!(world.published().await, (world.told(), 0), "what was taken is not sent again");
    world.db.drop().await;
}
