//! What a claim tells about the batch before it, and that nobody waits for that.

use std::time::Instant;

use flashsale::limits;
use flashsale::store::Store;
use flashsale::waiters::Waiters;
use tokio::net::TcpListener;

use crate::support::commands::{create, reserve};
use crate::support::consumer::{SOON, World};
use crate::support::redis::Space;
use crate::support::wait::wait_for;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_repeats_the_effects_of_the_last_batch() {
    let world = World::fresh(1).await;
    let command = reserve("s", "a", 1);
    world.publish(0, &[create("s", 0, 9, 5), command.clone()]);
    let consumer = world.consume();
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    // Its predecessor may have died between COMMIT and telling anyone; here, whoever waits came later.
    let waiters = Waiters::default();
    let mut waiter = waiters.register(command.id());
    let consumer = world.consume_changed(|deps| deps.waiters = waiters.clone());
    tokio::time::timeout(SOON, waiter.woken()).await.expect("woken without a new batch");
    consumer.stop().await;
    world.finish().await;
}

/// Its predecessor may have failed to tell Redis that units came back: what Redis believes of the partition's SKUs goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_makes_redis_forget_what_it_believes_of_its_skus() {
    let world = World::fresh(1).await;
    let consumer = world.consume();
    world.publish(0, &[create("s", 0, 9, 5)]);
    world.wait_for_position(0, 1).await;
    // A second movement: of a SKU with one, nothing can have come back.
    world.publish(0, &[reserve("s", "a", 1)]);
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    let space = Space::fresh().await;
    let _: i64 = space.ask("HSET {}u:s ghost 5").await;
    let consumer = world.consume_changed(|deps| deps.cache = space.cache.clone());
    let units = async |user: &str| space.ask::<Option<i64>>(&format!("HGET {{}}u:s {user}")).await;
    wait_for("the last batch is told again", SOON, async || units("a").await == Some(1)).await;
    assert_eq!(units("ghost").await, None);
    consumer.stop().await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_decision_does_not_wait_for_the_repeated_effects() {
    let world = World::fresh(1).await;
    let late = reserve("s", "late", 1);
    world.publish(0, &[create("s", 0, 9, 5), late.clone()]);
    // Reads go to a server that takes connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("postgres://silent@{}/none", silent.local_addr().expect("bound"));
    let waiters = Waiters::default();
    let mut waiter = waiters.register(late.id());
    let consumer = world.consume_changed(|deps| {
        deps.store = Store::new(&url, &world.topic).expect("a legal URL");
        deps.waiters = waiters.clone();
    });
    let (_letters, _) = silent.accept().await.expect("dead letters are looked for");
    let (_effects, _) = silent.accept().await.expect("the last effects are asked for");
    let asked_at = Instant::now();
    tokio::time::timeout(SOON, waiter.woken()).await.expect("decided");
    assert!(asked_at.elapsed() < limits::READ_DEADLINE, "decided after {:?}", asked_at.elapsed());
    world.wait_for_position(0, 2).await;
    consumer.stop().await;
    world.finish().await;
}
