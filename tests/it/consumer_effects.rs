//! What a claim tells about the batch before it, and that nobody waits for that.

use std::time::Instant;

use flashsale::limits;
use flashsale::store::Store;
use flashsale::waiters::Waiters;
use tokio::net::TcpListener;

use crate::support::commands::{create, reserve};
use crate::support::consumer::{SOON, World};

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
