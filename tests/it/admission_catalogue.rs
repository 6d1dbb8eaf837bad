//! The catalogue on the real Postgres: look-ups, absence, refresh, and sold-out flags.

use std::time::{Duration, Instant};

use flashsale::admission::{Catalogue, Found};
use flashsale::effects::SkuHint;
use flashsale::limits;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::support::commands::sku;
use crate::support::database::Database;
use crate::support::wait::wait_for;

const PATIENCE: Duration = Duration::from_secs(20);

async fn insert(db: &Database, name: &str, on_hand: i64, reserved: i64) {
    let values = format!("'{name}', 0, {on_hand}, {reserved}, 0, 'epoch', false, 2, 120, NULL, NULL, 0, 3, 600, 1, 1");
    db.run(&format!("INSERT INTO sku VALUES ({values})")).await;
}

fn hint(name: &str, available: i64, is_configured: bool) -> SkuHint {
    SkuHint { sku: sku(name), available, holds_pending: false, is_configured }
}

fn limit_of(catalogue: &Catalogue, name: &str) -> Option<u32> {
    catalogue.get(&sku(name)).map(|entry| entry.sku.settings.user_limit)
}

#[tokio::test]
async fn absence_is_believed_for_under_a_second() {
    let db = Database::fresh("t", 1).await;
    let catalogue = Catalogue::new(db.store());
    let ghost = sku("ghost");
    let found = join_all((0..500).map(|_| catalogue.find(&ghost))).await;
    assert!(found.iter().all(|found| *found == Found::Unknown));
    let started = Instant::now();
    insert(&db, "ghost", 5, 0).await;
    wait_for("the new SKU is found", PATIENCE, async || matches!(catalogue.find(&ghost).await, Found::Entry(_))).await;
    assert!(started.elapsed() < limits::ABSENCE_BELIEVED_FOR + Duration::from_secs(1), "{:?}", started.elapsed());
    db.drop().await;
}

#[tokio::test]
async fn a_hint_ends_the_belief_in_absence_at_once() {
    let db = Database::fresh("t", 1).await;
    let catalogue = Catalogue::new(db.store());
    assert_eq!(catalogue.find(&sku("s")).await, Found::Unknown);
    insert(&db, "s", 5, 0).await;
    catalogue.apply(0, 1, 1, &[hint("s", 5, true)]);
    assert!(matches!(catalogue.find(&sku("s")).await, Found::Entry(_)));
    db.drop().await;
}

#[tokio::test]
async fn one_query_serves_all_who_ask_and_many_unknown_skus_are_refused() {
    let db = Database::fresh("t", 1).await;
    let catalogue = Catalogue::new(db.store());
    insert(&db, "s", 5, 0).await;
    // Nobody can read the table: look-ups stay open, and the same SKU adds none.
    let mut locker = db.connect().await;
    sqlx::raw_sql("BEGIN; LOCK TABLE sku").execute(&mut locker).await.expect("locked");
    let same: Vec<_> = (0..2 * limits::SKU_LOOKUPS_MAX)
        .map(|_| {
            let catalogue = catalogue.clone();
            tokio::spawn(async move { catalogue.find(&sku("s")).await })
        })
        .collect();
    let others: Vec<_> = (0..limits::SKU_LOOKUPS_MAX)
        .map(|n| {
            let catalogue = catalogue.clone();
            tokio::spawn(async move { catalogue.find(&sku(&format!("scan-{n}"))).await })
        })
        .collect();
    wait_for("a scan is refused", PATIENCE, async || others.iter().any(|other| other.is_finished())).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut locker).await.expect("unlocked");
    for found in join_all(same).await {
        assert!(matches!(found.expect("no panic"), Found::Entry(_)));
    }
    let others: Vec<_> = join_all(others).await.into_iter().map(|other| other.expect("no panic")).collect();
    assert_eq!(others.iter().filter(|found| **found == Found::Busy).count(), 1, "one place is taken by `s`");
    db.drop().await;
}

#[tokio::test]
async fn changed_settings_are_read_by_hint_and_by_refresh() {
    let db = Database::fresh("t", 1).await;
    insert(&db, "hinted", 5, 0).await;
    insert(&db, "missed", 5, 0).await;
    let (catalogue, stop) = (Catalogue::new(db.store()), CancellationToken::new());
    catalogue.refresh().await.expect("postgres answers");
    assert_eq!(limit_of(&catalogue, "hinted"), Some(2));
    let running = tokio::spawn(catalogue.clone().run(stop.clone()));
    db.run("UPDATE sku SET user_limit = 7, settings_version = 2").await;
    let started = Instant::now();
    catalogue.apply(0, 1, 1, &[hint("hinted", 5, true)]);
    wait_for("the hint is followed", PATIENCE, async || limit_of(&catalogue, "hinted") == Some(7)).await;
    assert!(started.elapsed() < limits::CATALOGUE_REFRESH_EVERY, "{:?}", started.elapsed());
    wait_for("a lost hint is repaired", PATIENCE, async || limit_of(&catalogue, "missed") == Some(7)).await;
    stop.cancel();
    running.await.expect("it ends when told");
    db.drop().await;
}

#[tokio::test]
async fn a_sold_out_flag_is_a_lease_that_postgres_renews() {
    let db = Database::fresh("t", 1).await;
    insert(&db, "s", 5, 5).await;
    let (catalogue, stop) = (Catalogue::new(db.store()), CancellationToken::new());
    let is_sold_out = || catalogue.sold_out(&sku("s")).is_some();
    // Without renewal it runs out.
    catalogue.apply(0, 1, 1, &[hint("s", 0, false)]);
    assert!(is_sold_out());
    wait_for("the lease ends", PATIENCE, async || !is_sold_out()).await;
    // With it, it stays, and the row says that holds are pending.
    let running = tokio::spawn(catalogue.clone().run(stop.clone()));
    wait_for("a read finds it sold out", PATIENCE, async || is_sold_out()).await;
    let started = Instant::now();
    wait_for("three leases have passed", PATIENCE, async || {
        assert!(is_sold_out(), "after {:?}", started.elapsed());
        started.elapsed() > 3 * limits::SOLD_OUT_LEASE
    })
    .await;
    assert!(catalogue.sold_out(&sku("s")).is_some_and(|flag| flag.holds_pending));
    // A restock whose hint is lost shows within the lease.
    db.run("UPDATE sku SET on_hand = 9").await;
    wait_for("the restock shows", PATIENCE, async || !is_sold_out()).await;
    stop.cancel();
    running.await.expect("it ends when told");
    db.drop().await;
}
