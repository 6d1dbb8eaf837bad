//! The relay when processes and servers fail: repeats are allowed, gaps and another order are not.

use std::time::{Duration, Instant};

use flashsale::inventory::Command;
use flashsale::limits;
use tokio::time::interval;

use crate::support::commands::{create, reserve};
use crate::support::database::Database;
use crate::support::events::{Relaying, first_told, make_topic, read_all};
use crate::support::kafka::{brokers, fresh_name};
use crate::support::ledger::Ledger;
use crate::support::services::Services;
use crate::support::site::{SOON, Site};
use crate::support::wait::wait_for;

const SKUS: [&str; 3] = ["a", "b", "c"];

async fn rows_left(db: &Database) -> i64 {
    db.number("SELECT count(*) FROM outbox").await
}

async fn wait_until_published(db: &Database) {
    wait_for("the outbox is empty", SOON, async || rows_left(db).await == 0).await;
}

async fn ledger_of(db: &Database) -> Ledger {
    let mut ledger = Ledger::of(db, 0).await;
    ledger.commit(1_000, &SKUS.map(|sku| create(sku, 0, 1_000_000, 1))).await;
    ledger
}

/// Batches of reservations of all SKUs in turns.
async fn sell(ledger: &mut Ledger, who: &str, batches: usize, size: usize) {
    for batch in 0..batches {
        let crowd: Vec<Command> =
            (0..size).map(|n| reserve(SKUS[n % SKUS.len()], &format!("{who}-{batch}-{n}"), 1)).collect();
        ledger.commit(2_000, &crowd).await;
    }
}

#[tokio::test]
async fn a_relay_that_is_killed_while_it_publishes_loses_and_reorders_nothing() {
    let site = Site::shared().await;
    let mut ledger = ledger_of(&site.db).await;
    sell(&mut ledger, "u", 120, 240).await;
    for kill in 0..3 {
        let before = rows_left(&site.db).await;
        let relay = site.spawn(&["relay"]);
        wait_for("it publishes", SOON, async || rows_left(&site.db).await < before).await;
        relay.kill();
        assert!(rows_left(&site.db).await > 0, "kill {kill} came too late to tell anything");
    }
    let relay = site.start("relay").await;
    wait_until_published(&site.db).await;
    let metrics = site.client.get(format!("{}/metrics", relay.admin)).send().await.expect("it answers");
    let metrics = metrics.text().await.expect("a text");
    assert!(metrics.contains("flashsale_events_published_total{type=\"reservation.reserved\"}"), "{metrics}");
    let (told, repeats) = first_told(&read_all(&brokers(), &format!("{}-events", site.db.topic)).await);
    assert_eq!(told, ledger.told);
    let in_the_air = limits::RELAY_ROWS_PER_ROUND as usize * 240;
    assert!(repeats <= 3 * in_the_air, "{repeats} repeats are more than what was in the air");
    site.finish([relay]).await;
}

#[tokio::test]
async fn a_relay_that_is_frozen_loses_its_lead_and_finds_another_one_when_it_wakes() {
    let site = Site::shared().await;
    let mut ledger = ledger_of(&site.db).await;
    let frozen = site.start("relay").await;
    wait_until_published(&site.db).await;
    frozen.signal("STOP");
    sell(&mut ledger, "u", 3, 60).await;
    let other = site.start("relay").await;
    wait_until_published(&site.db).await;
    frozen.signal("CONT");
    sell(&mut ledger, "v", 3, 60).await;
    wait_until_published(&site.db).await;
    wait_for("it stands by", SOON, async || site.is_ready(&frozen).await).await;
    let events_topic = format!("{}-events", site.db.topic);
    assert_eq!(first_told(&read_all(&brokers(), &events_topic).await), (ledger.told, 0));
    site.finish([frozen, other]).await;
}

#[tokio::test]
async fn while_the_broker_is_away_the_outbox_fills_and_then_drains_in_order() {
    const LAG: &str = "flashsale_events_lag_seconds";
    let site = Site::with_private(&["kafka"]).await;
    let services = site.services.as_ref().expect("private");
    let kafka = services.address("KAFKA_BROKERS");
    let mut ledger = ledger_of(&site.db).await;
    let relay = site.start("relay").await;
    wait_until_published(&site.db).await;
    for (way, outage) in [("stop", Duration::from_secs(30)), ("kill", Duration::from_secs(2))] {
        services.run(way, &["kafka"]).await;
        let (began, mut sales, mut turns) = (Instant::now(), 0, interval(Duration::from_millis(500)));
        while began.elapsed() < outage {
            turns.tick().await;
            sales += 1;
            sell(&mut ledger, &format!("{way}-{sales}"), 1, 60).await;
        }
        assert_eq!(rows_left(&site.db).await, sales, "one for each batch");
        let least = (outage / 2).as_secs_f64();
        wait_for("the lag shows it", SOON, async || site.metric(&relay, LAG).await > Some(least)).await;
        services.run("start", &["kafka"]).await;
        wait_until_published(&site.db).await;
        let (told, _) = first_told(&read_all(&kafka, &format!("{}-events", site.db.topic)).await);
        assert_eq!(told, ledger.told, "after {way}");
        wait_for("the lag is gone", SOON, async || site.metric(&relay, LAG).await == Some(0.0)).await;
    }
    site.finish([relay]).await;
}

#[tokio::test]
async fn a_relay_that_is_told_to_stop_gives_a_silent_broker_up_in_time() {
    let services = Services::start(&["kafka"]).await;
    let kafka = services.address("KAFKA_BROKERS");
    let (db, topic) = (Database::fresh("t", 1).await, fresh_name("events"));
    make_topic(&kafka, &topic, 1, 1024 * 1024).await;
    let mut ledger = ledger_of(&db).await;
    let relay = Relaying::start(&db, &kafka, &topic);
    wait_until_published(&db).await;
    services.run("pause", &["kafka"]).await;
    sell(&mut ledger, "u", 3, 60).await;
    let looked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flashsale relay' AND state_change >
                  (SELECT max(written_at) FROM outbox)";
    wait_for("they are in the air", SOON, async || db.number(looked).await > 0).await;
    let began = Instant::now();
    relay.stop().await;
    let bound = limits::RELAY_DRAIN_DEADLINE + limits::RELAY_SETTLE_DEADLINE + limits::STATEMENT_DEADLINE;
    assert!(began.elapsed() < bound, "it took {:?}", began.elapsed());
    assert_eq!(rows_left(&db).await, 3, "what was not confirmed is still there");
    services.run("resume", &["kafka"]).await;
    let relay = Relaying::start(&db, &kafka, &topic);
    wait_until_published(&db).await;
    relay.stop().await;
    assert_eq!(first_told(&read_all(&kafka, &topic).await).0, ledger.told);
    db.drop().await;
}
