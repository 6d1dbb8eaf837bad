//! No wake-up is lost, no waiter is left behind.

use std::time::Duration;

use futures_util::FutureExt;

use super::*;

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
