//! A Redis that stops, freezes and comes back: nobody waits for it, and it is used again.

use std::time::{Duration, Instant};

use flashsale::admission::{Catalogue, Unheard};
use flashsale::cache::{AdmissionItem, Cache, CacheError};
use flashsale::effects::{BatchEffects, DecidedId, Effects, SkuHint};
use flashsale::ids::{self, Quantity};
use flashsale::waiters::Waiters;
use flashsale::{limits, subscription};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::commands::{sku, user};
use crate::support::database::Database;
use crate::support::services::Services;
use crate::support::wait::{wait_for, wait_for_value};

const PATIENCE: Duration = Duration::from_secs(20);

fn items() -> Vec<AdmissionItem> {
    let quantity = Quantity::new(1).expect("legal");
    vec![AdmissionItem {
        user: user("u"),
        sku: sku("s"),
        quantity,
        limit: 1000,
        minute: 1,
        key: None,
        refused_already: false,
    }]
}

async fn calls_until_spared(cache: &Cache) -> Vec<(CacheError, Duration)> {
    let mut failures = Vec::new();
    loop {
        let started = Instant::now();
        let error = cache.admit(&items(), false).await.expect_err("redis is away");
        if matches!(error, CacheError::Spared) {
            return failures;
        }
        failures.push((error, started.elapsed()));
        assert!(failures.len() <= limits::BREAKER_FAILURES as usize, "the breaker never opens: {failures:?}");
    }
}

#[tokio::test]
async fn a_stopped_redis_is_spared_and_used_again() {
    let services = Services::start(&["redis"]).await;
    let cache = Cache::new(&services.address("REDIS_URL"), "t:").expect("a legal URL");
    cache.connect().await;
    wait_for("redis is used", PATIENCE, async || cache.admit(&items(), false).await.is_ok()).await;
    services.run("stop", &["redis"]).await;
    assert!(!calls_until_spared(&cache).await.is_empty());
    // Spared calls cost nothing.
    let started = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(cache.admit(&items(), false).await, Err(CacheError::Spared)));
    }
    assert!(started.elapsed() < limits::BREAKER_OPEN_FOR, "{:?}", started.elapsed());
    services.run("start", &["redis"]).await;
    wait_for("redis is used again", PATIENCE, async || cache.admit(&items(), false).await.is_ok()).await;
    assert!(cache.admit(&items(), false).await.is_ok(), "closed: every call goes");
}

#[tokio::test]
async fn a_frozen_redis_costs_its_deadline_and_no_more() {
    let services = Services::start(&["redis"]).await;
    let cache = Cache::new(&services.address("REDIS_URL"), "t:").expect("a legal URL");
    cache.connect().await;
    wait_for("redis is used", PATIENCE, async || cache.admit(&items(), false).await.is_ok()).await;
    services.run("pause", &["redis"]).await;
    for (error, took) in calls_until_spared(&cache).await {
        assert!(matches!(error, CacheError::Deadline { .. }), "{error:?}");
        assert!(took >= limits::REDIS_DEADLINE, "{took:?}");
        // A machine that is busy with other tests is late too, but not by much more.
        assert!(took < limits::REDIS_BACKGROUND_DEADLINE, "{took:?}");
    }
    let effects = BatchEffects { epoch: 1, position: 1, ..BatchEffects::default() };
    assert!(matches!(cache.apply_effects(&effects).await, Err(CacheError::Deadline { .. })));
    services.run("resume", &["redis"]).await;
    wait_for("redis is used again", PATIENCE, async || cache.admit(&items(), false).await.is_ok()).await;
}

#[tokio::test]
async fn effects_never_wait_for_a_frozen_redis() {
    let services = Services::start(&["redis"]).await;
    let cache = Cache::new(&services.address("REDIS_URL"), "t:").expect("a legal URL");
    let waiters = Waiters::default();
    services.run("pause", &["redis"]).await;
    let effects = Effects::start(Some(cache.clone()), waiters.clone(), None);
    let ids: Vec<_> = (0..100).map(|_| ids::fresh_id()).collect();
    let mut open: Vec<_> = ids.iter().map(|id| waiters.register(*id)).collect();
    let started = Instant::now();
    for (position, id) in (1..).zip(&ids) {
        effects.submit(BatchEffects {
            epoch: 1,
            position,
            decided: vec![DecidedId::changed(*id)],
            ..BatchEffects::default()
        });
    }
    assert!(started.elapsed() < limits::REDIS_BACKGROUND_DEADLINE, "{:?}", started.elapsed());
    for waiter in &mut open {
        waiter.woken().await;
    }
    let started = Instant::now();
    effects.stop().await;
    assert!(started.elapsed() < 2 * limits::EFFECTS_DRAIN_DEADLINE, "{:?}", started.elapsed());
}

fn decided(epoch: i64, position: i64, ids: &[Uuid], available: i64) -> BatchEffects {
    let hint = SkuHint { sku: sku("s"), available, holds_pending: true, is_configured: false };
    BatchEffects {
        partition: 0,
        epoch,
        position,
        decided: ids.iter().map(|id| DecidedId::changed(*id)).collect(),
        skus: vec![hint],
        ..BatchEffects::default()
    }
}

#[tokio::test]
async fn a_batch_of_another_process_wakes_and_flags_here() {
    let services = Services::start(&["redis"]).await;
    let db = Database::fresh("t", 1).await;
    let url = services.address("REDIS_URL");
    let (here, there) = (Cache::new(&url, "t:").expect("legal"), Cache::new(&url, "t:").expect("legal"));
    let (waiters, catalogue, stop) = (Waiters::default(), Catalogue::new(db.store()), CancellationToken::new());
    let listening =
        tokio::spawn(subscription::run(here, waiters.clone(), catalogue.clone(), Unheard::default(), stop.clone()));
    let effects = Effects::start(Some(there.clone()), Waiters::default(), None);

    // Until the subscription stands, messages go nowhere: so tell it until somebody hears.
    let (first, mut position) = (ids::fresh_id(), 0);
    let mut waiter = waiters.register(first);
    wait_for("the first message", PATIENCE, async || {
        position += 1;
        effects.submit(decided(1, position, &[first], 0));
        tokio::time::timeout(limits::RESUBSCRIBE_EVERY, waiter.woken()).await.is_ok()
    })
    .await;
    assert!(catalogue.sold_out(&sku("s")).is_some_and(|flag| flag.holds_pending));

    // A stale writer's hints do not turn it back; newer ones do.
    catalogue.apply(0, 0, 1_000_000, &decided(0, 1_000_000, &[], 5).skus);
    assert!(catalogue.sold_out(&sku("s")).is_some());
    effects.submit(decided(1, position + 1, &[], 5));
    wait_for("the flag is cleared", PATIENCE, async || catalogue.sold_out(&sku("s")).is_none()).await;

    // After an outage: a new subscription, and flags that may have been missed are gone.
    catalogue.apply(0, 2, 0, &decided(2, 0, &[], 0).skus);
    services.run("stop", &["redis"]).await;
    services.run("start", &["redis"]).await;
    let last = ids::fresh_id();
    let mut waiter = waiters.register(last);
    let mut position = 0;
    wait_for_value("a message after the outage", PATIENCE, async || {
        position += 1;
        effects.submit(BatchEffects { skus: Vec::new(), ..decided(3, position, &[last], 0) });
        tokio::time::timeout(limits::RESUBSCRIBE_EVERY, waiter.woken()).await.ok()
    })
    .await;
    assert_eq!(catalogue.sold_out(&sku("s")), None);
    effects.stop().await;
    stop.cancel();
    listening.await.expect("it ends when told");
    db.drop().await;
}
