//! No wake-up is lost, no waiter is left behind.

use std::time::Duration;

use futures_util::FutureExt;

use super::*;
use crate::effects::FirstVerdict;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

#[tokio::test]
async fn a_wake_up_before_the_look_is_not_lost() {
    let waiters = Waiters::default();
    let mut waiter = waiters.register(id(1));
    waiters.wake([id(7), id(1)].map(DecidedId::changed));
    waiter.woken().await;
    assert!(waiter.woken().now_or_never().is_none(), "one wake-up is taken once");
}

#[tokio::test]
async fn a_wake_up_during_a_cancelled_look_is_not_lost() {
    let waiters = Waiters::default();
    let mut waiter = waiters.register(id(1));
    {
        let mut look = Box::pin(waiter.woken());
        assert!(look.as_mut().now_or_never().is_none());
        waiters.wake([DecidedId::changed(id(1))]);
        // Dropped after the wake-up and before it was taken.
    }
    waiter.woken().await;
}

#[tokio::test]
async fn everybody_who_waits_for_an_id_is_woken() {
    let waiters = Waiters::default();
    let mut all: Vec<_> = (0..3).map(|_| waiters.register(id(5))).collect();
    let mut other = waiters.register(id(6));
    waiters.wake([DecidedId::changed(id(5))]);
    for waiter in &mut all {
        waiter.woken().await;
    }
    assert!(other.woken().now_or_never().is_none());
}

#[tokio::test]
async fn a_wake_up_from_another_thread_ends_the_wait() {
    let waiters = Waiters::default();
    for n in 0..200 {
        let mut waiter = waiters.register(id(n));
        let waker = waiters.clone();
        let thread = std::thread::spawn(move || waker.wake([DecidedId::changed(id(n))]));
        tokio::time::timeout(Duration::from_secs(10), waiter.woken()).await.expect("woken");
        thread.join().expect("the thread only wakes");
    }
}

#[test]
fn dropping_ends_the_registration_and_only_that() {
    let waiters = Waiters::default();
    let first = waiters.register(id(1));
    let second = waiters.register(id(1));
    drop(first);
    assert_eq!(waiters.open_ids(), [id(1)]);
    drop(second);
    assert_eq!(waiters.open_ids(), Vec::<Uuid>::new());
    assert!(waiters.shards.iter().all(|shard| lock(shard).is_empty()));
}

#[test]
fn unknown_ids_leave_nothing_behind() {
    let waiters = Waiters::default();
    waiters.wake((0..1000).map(id).map(DecidedId::changed));
    assert_eq!(waiters.open_ids(), Vec::<Uuid>::new());
}

#[test]
fn the_sweep_sees_only_those_who_wait_long() {
    let waiters = Waiters::default();
    let _waiter = waiters.register(id(1));
    assert_eq!(waiters.ids_older_than(Duration::ZERO), [id(1)]);
    assert_eq!(waiters.ids_older_than(Duration::from_secs(3600)), Vec::<Uuid>::new());
}

#[tokio::test]
async fn a_group_is_told_of_each_of_its_ids_and_leaves_nothing_behind() {
    let waiters = Waiters::default();
    let group = waiters.group();
    group.add(&[id(1), id(2)]);
    group.add(&[id(2), id(4)]);
    let mut alone = waiters.register(id(2));
    waiters.wake([DecidedId::changed(id(3))]);
    assert!(group.woken().now_or_never().is_none(), "nobody waits for that one");
    let place = crate::ids::Place { offset: 7, index: 1 };
    let verdict = FirstVerdict::Reserved { expires_at: 5, extensions_left: 3 };
    let first = Some(FirstDecision { place, at: 4, verdict });
    waiters.wake([DecidedId { id: id(2), first }, DecidedId::changed(id(1))]);
    waiters.wake([DecidedId::changed(id(2))]);
    assert_eq!(group.woken().await, HashMap::from([(id(1), None), (id(2), first)]), "a decision is not forgotten");
    assert!(group.woken().now_or_never().is_none(), "it is told once");
    assert_eq!(alone.woken().await, first);
    // Told while nobody looks.
    waiters.wake([DecidedId::changed(id(4))]);
    assert_eq!(group.woken().await, HashMap::from([(id(4), None)]));
    drop(group);
    assert_eq!(waiters.open_ids(), [id(2)], "of who waits alone");
    drop(alone);
    assert!(waiters.open_ids().is_empty());
}
