//! The relay on real servers: every event once and in order, one lead per partition, and what can't be published.

use std::collections::BTreeSet;

use flashsale::ids::{self, Metadata, Note};
use flashsale::inventory::{Adjust, Command, Configure, Pause, Reserve, Settings, StockChange};
use serde_json::{Value, json};

use crate::support::commands::{create, reserve, sku};
use crate::support::consumer::SOON;
use crate::support::database::Database;
use crate::support::events::{Relaying, Told, first_told, make_topic, read_all, resize_topic};
use crate::support::kafka::{brokers, fresh_name};
use crate::support::ledger::Ledger;
use crate::support::life::{cancel, confirm, create_with_hold, extend, tick};
use crate::support::site::Site;
use crate::support::wait::wait_for;

/// Room for every event.
const ROOM: usize = 1024 * 1024;

/// Fresh tables and a fresh topic of events.
async fn world(partitions: i32, bytes_max: usize) -> (Database, String) {
    let db = Database::fresh("t", partitions).await;
    let topic = fresh_name("events");
    make_topic(&brokers(), &topic, partitions, bytes_max).await;
    (db, topic)
}

async fn is_empty(db: &Database) -> bool {
    db.number("SELECT count(*) FROM outbox").await == 0
}

async fn wait_until_published(db: &Database) {
    wait_for("the outbox is empty", SOON, async || is_empty(db).await).await;
}

fn kinds(told: &[Told]) -> Vec<&str> {
    told.iter().map(Told::kind).collect()
}

fn adjust(delta: i64) -> Command {
    let (note, change) = (Note::parse("found some").expect("legal"), StockChange::By(delta));
    Command::Adjust(Adjust { id: ids::fresh_id(), sku: sku("s"), change, note, reference: None, key_id: None })
}

fn pause(seen_version: i64, pauses: bool) -> Command {
    Command::Pause(Pause { id: ids::fresh_id(), sku: sku("s"), seen_version, pauses, note: None })
}

fn configure(seen_version: i64, settings: Settings) -> Command {
    let id = ids::fresh_id();
    Command::Configure(Configure { id, sku: sku("s"), pin: 0, seen_version, on_hand: None, settings, patch_hash: None })
}

/// A reserve command with so much metadata that its event is large.
fn large(sku_name: &str, user: &str) -> Command {
    let Command::Reserve(plain) = reserve(sku_name, user, 1) else { unreachable!("that is what it makes") };
    let metadata = Metadata::parse(&format!(r#"{{"m":"{}"}}"#, "x".repeat(480))).expect("legal");
    Command::Reserve(Reserve { metadata: Some(metadata), ..plain })
}

#[tokio::test]
async fn every_kind_of_event_is_published_once_and_in_order() {
    let (db, topic) = world(1, ROOM).await;
    let mut ledger = Ledger::of(&db, 0).await;
    let [a, b, c, late] = ["a", "b", "c", "late"].map(|user| reserve("s", user, 1));
    ledger.commit(1_000, &[create_with_hold("s", 3, 4, 10), a.clone(), b.clone(), c.clone()]).await;
    ledger.commit(2_000, &[confirm("s", &a, "pay-a"), cancel("s", &b), late.clone(), extend("s", &c, 5)]).await;
    let reject_nothing = Settings { user_limit: 4, hold_seconds: 10, ..Settings::default() };
    ledger.commit(3_000, &[pause(1, true), pause(2, false), configure(3, reject_nothing), adjust(1)]).await;
    // `c` and `late` have ended; `late` is paid before its row says so.
    ledger.commit(30_000, &[tick("s"), confirm("s", &late, "pay-late")]).await;
    assert_eq!(ledger.settle().await.len(), 1, "that of c");
    ledger.commit(31_000, &[reserve("s", "e", 2), confirm("s", &c, "pay-c"), cancel("s", &c)]).await;

    let relay = Relaying::start(&db, &brokers(), &topic);
    wait_until_published(&db).await;
    relay.stop().await;
    let told = read_all(&brokers(), &topic).await;
    assert_eq!(
        kinds(&told),
        [
            "sku.created",
            "reservation.reserved",
            "reservation.reserved",
            "reservation.reserved",
            "sku.sold_out",
            "reservation.confirmed",
            "reservation.cancelled",
            "sku.back_in_stock",
            "reservation.reserved",
            "sku.sold_out",
            "reservation.extended",
            "sku.paused",
            "sku.resumed",
            "sku.configured",
            "sku.adjusted",
            "sku.back_in_stock",
            "reservation.expired", // of `late`
            "reservation.confirmed",
            "reservation.expired", // of `c`
            "reservation.reserved",
            "sku.sold_out",
            "reservation.paid_unfulfilled",
        ]
    );
    assert_eq!(first_told(&told), (ledger.told, 0));
    for told in &told {
        assert_eq!((told.key.as_str(), told.partition), ("s", 0));
        assert_eq!(told.content_type, "application/cloudevents+json; charset=UTF-8");
        assert_eq!(told.event["source"], "/flashsale/t");
    }
    let sequences: Vec<&str> = told.iter().filter_map(|told| told.event["sequence"].as_str()).collect();
    assert!(sequences.is_sorted() && sequences.len() == told.len() - 2, "{sequences:?}");
    db.drop().await;
}

#[tokio::test]
async fn a_sold_out_crowd_makes_no_events() {
    let (db, _) = world(1, ROOM).await;
    let mut ledger = Ledger::of(&db, 0).await;
    ledger.commit(1_000, &[create("s", 0, 0, 1)]).await;
    let rows = db.number("SELECT count(*) FROM outbox").await;
    let crowd: Vec<Command> = (0..50).map(|n| reserve("s", &format!("u{n}"), 1)).collect();
    ledger.commit(2_000, &crowd).await;
    assert_eq!((rows, db.number("SELECT count(*) FROM outbox").await), (1, 1));
    db.drop().await;
}

#[tokio::test]
async fn of_two_relays_each_partition_has_one_and_the_other_takes_over() {
    let partitions = 4;
    let (db, topic) = world(partitions, ROOM).await;
    let mut ledgers = Vec::new();
    for partition in 0..partitions {
        let mut ledger = Ledger::of(&db, partition).await;
        ledger.commit(1_000, &[create(&format!("s{partition}"), partition, 1_000_000, 1)]).await;
        ledgers.push(ledger);
    }
    let relays = [(); 2].map(|()| Relaying::start(&db, &brokers(), &topic));
    for round in 0..20 {
        for (partition, ledger) in ledgers.iter_mut().enumerate() {
            let sku = format!("s{partition}");
            let crowd: Vec<Command> = (0..20).map(|n| reserve(&sku, &format!("u{round}-{n}"), 1)).collect();
            ledger.commit(2_000, &crowd).await;
        }
    }
    wait_until_published(&db).await;
    let expected = |ledgers: &[Ledger]| ledgers.iter().flat_map(|ledger| ledger.told.clone()).collect();
    assert_eq!(first_told(&read_all(&brokers(), &topic).await), (expected(&ledgers), 0), "nothing came twice");
    let leads =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 'outbox'::regclass::oid AND granted";
    assert_eq!(db.number(leads).await, i64::from(partitions));
    // The one that leads loses its session; each partition finds a relay again, and goes on where it was.
    let lost = "SELECT count(pg_terminate_backend(pid)) FROM (SELECT DISTINCT pid FROM pg_locks
                WHERE locktype = 'advisory' AND classid = 'outbox'::regclass::oid) AS leaders";
    assert!(db.number(lost).await > 0);
    for (partition, ledger) in ledgers.iter_mut().enumerate() {
        ledger.commit(3_000, &[reserve(&format!("s{partition}"), "one-more", 1)]).await;
    }
    wait_until_published(&db).await;
    assert_eq!(first_told(&read_all(&brokers(), &topic).await), (expected(&ledgers), 0));
    // And when one stops in good order, the other has everything.
    let [first, second] = relays;
    first.stop().await;
    wait_for("one leads all", SOON, async || db.number(leads).await == i64::from(partitions)).await;
    second.stop().await;
    db.drop().await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_parked_and_stops_nobody() {
    let (db, topic) = world(1, 1_400).await;
    let mut ledger = Ledger::of(&db, 0).await;
    let big = large("s", "big");
    ledger.commit(1_000, &[create("s", 0, 100, 1), create("other", 0, 100, 1)]).await;
    ledger.commit(2_000, &[reserve("s", "a", 1), big.clone(), reserve("other", "a", 1)]).await;
    ledger.commit(3_000, &[reserve("s", "b", 1), cancel("s", &big), reserve("other", "b", 1)]).await;
    let relay = Relaying::start(&db, &brokers(), &topic);
    wait_until_published(&db).await;
    let parked = db.store().load_parked().await.expect("readable");
    assert_eq!(parked.len(), 1);
    assert_eq!(
        (parked[0].event_id.as_deref(), parked[0].kind.as_deref()),
        (Some("0.3.0.0"), Some("reservation.reserved"))
    );
    assert_eq!(parked[0].skus, ["s"]);
    assert!(parked[0].reason.contains("1400"), "{}", parked[0].reason);
    let (told, repeats) = first_told(&read_all(&brokers(), &topic).await);
    let mut expected = ledger.told.clone();
    expected.get_mut("s").expect("has events").retain(|id| id != "0.3.0.0");
    assert_eq!((told, repeats), (expected, 0), "all others, in order");
    // A topic that takes it now, and an operator who says so: a relay asks again when it starts.
    relay.stop().await;
    resize_topic(&brokers(), &topic, ROOM).await;
    assert!(db.store().retry_parked(parked[0].id).await.expect("done"));
    assert!(!db.store().retry_parked(parked[0].id).await.expect("done"), "it is not parked any more");
    let relay = Relaying::start(&db, &brokers(), &topic);
    wait_until_published(&db).await;
    relay.stop().await;
    let told = read_all(&brokers(), &topic).await;
    assert_eq!(told.last().map(Told::id), Some("0.3.0.0"));
    assert_eq!(db.number("SELECT count(*) FROM outbox_parked").await, 0);
    db.drop().await;
}

/// The broker refuses a pack of events because the topic was made smaller meanwhile: nobody passes those before them, and in the end only
/// the event that really is too large is parked.
#[tokio::test]
async fn a_topic_that_takes_less_than_it_did_loses_and_reorders_nothing() {
    let (db, topic) = world(1, ROOM).await;
    let mut ledger = Ledger::of(&db, 0).await;
    ledger.commit(1_000, &[create("s", 0, 10_000, 1), create("other", 0, 10_000, 1)]).await;
    let relay = Relaying::start(&db, &brokers(), &topic);
    wait_until_published(&db).await;
    // Of a thousand events the first pack is refused and the second would be taken.
    resize_topic(&brokers(), &topic, 200_000).await;
    let many = |n: usize| reserve(["s", "other"][n % 2], &format!("m{n}"), 1);
    ledger.commit(2_000, &(0..1_000).map(many).collect::<Vec<_>>()).await;
    wait_until_published(&db).await;
    let (told, _) = first_told(&read_all(&brokers(), &topic).await);
    assert_eq!(told, ledger.told);
    resize_topic(&brokers(), &topic, 1_400).await;
    for round in 0..5 {
        let crowd = (0..20).flat_map(|n| ["s", "other"].map(|sku| reserve(sku, &format!("u{round}-{n}"), 1)));
        let mut crowd: Vec<Command> = crowd.collect();
        if round == 2 {
            crowd.insert(7, large("s", "big"));
        }
        ledger.commit(2_000, &crowd).await;
    }
    wait_until_published(&db).await;
    relay.stop().await;
    let (told, _) = first_told(&read_all(&brokers(), &topic).await);
    let parked = db.store().load_parked().await.expect("readable");
    let parked: BTreeSet<String> = parked.into_iter().filter_map(|row| row.event_id).collect();
    assert_eq!(parked.len(), 1, "only the large one: {parked:?}");
    for (sku, ids) in ledger.told {
        let expected: Vec<String> = ids.into_iter().filter(|id| !parked.contains(id)).collect();
        assert_eq!(told[&sku], expected, "{sku}");
    }
    db.drop().await;
}

#[tokio::test]
async fn a_row_of_a_newer_build_waits_and_rubbish_is_parked() {
    let (db, topic) = world(1, ROOM).await;
    let mut ledger = Ledger::of(&db, 0).await;
    ledger.commit(1_000, &[create("s", 0, 10, 1)]).await;
    db.run("INSERT INTO outbox (partition, skus, events) VALUES (0, '{newer}', '\\x464502'), (0, '{s}', '\\x00')")
        .await;
    ledger.commit(2_000, &[reserve("s", "a", 1), create("newer", 0, 10, 1)]).await;
    let relay = Relaying::start(&db, &brokers(), &topic);
    let left = "SELECT count(*) FROM outbox WHERE skus = '{newer}'";
    wait_for("only what must wait is left", SOON, async || {
        db.number("SELECT count(*) FROM outbox").await == 2 && db.number(left).await == 2
    })
    .await;
    let (told, _) = first_told(&read_all(&brokers(), &topic).await);
    assert_eq!(told["s"], ledger.told["s"]);
    assert!(!told.contains_key("newer"), "what came later waits behind it");
    let parked = db.store().load_parked().await.expect("readable");
    assert_eq!(
        parked.iter().map(|row| (row.event_id.clone(), row.skus.clone())).collect::<Vec<_>>(),
        [(None, vec!["s".to_owned()])]
    );
    // A newer build would publish it.
    db.run("DELETE FROM outbox WHERE events = '\\x464502'").await;
    wait_until_published(&db).await;
    relay.stop().await;
    assert_eq!(first_told(&read_all(&brokers(), &topic).await), (ledger.told, 0));
    db.drop().await;
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_waited_for() {
    let db = Database::fresh("t", 1).await;
    let topic = fresh_name("events");
    let mut ledger = Ledger::of(&db, 0).await;
    ledger.commit(1_000, &[create("s", 0, 10, 1)]).await;
    let relay = Relaying::start(&db, &brokers(), &topic);
    wait_for("it has a session", SOON, async || relay.health.has_session()).await;
    make_topic(&brokers(), &topic, 1, ROOM).await;
    wait_until_published(&db).await;
    relay.stop().await;
    assert_eq!(first_told(&read_all(&brokers(), &topic).await), (ledger.told, 0));
    db.drop().await;
}

#[tokio::test]
async fn operators_see_parked_events_and_put_them_back() {
    let site = Site::shared().await;
    let parked = async || {
        let output = site.run(&["relay", "parked", "--json"]).await;
        let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), rows)
    };
    assert_eq!(parked().await, (Some(0), json!([])));
    site.db
        .run("INSERT INTO outbox_parked (partition, event_id, kind, skus, reason, events) VALUES (1, '1.2.3.0', 'sku.created', '{s}', 'large', 'x')")
        .await;
    let (code, rows) = parked().await;
    assert_eq!(
        (code, rows[0]["event_id"].as_str(), rows[0]["reason"].as_str()),
        (Some(1), Some("1.2.3.0"), Some("large"))
    );
    let text = site.run(&["relay", "parked"]).await;
    assert!(String::from_utf8_lossy(&text.stdout).contains("1.2.3.0  sku.created  s  large"));
    let number = rows[0]["id"].to_string();
    assert_eq!(site.run(&["relay", "retry", &number]).await.status.code(), Some(0));
    assert_eq!(site.run(&["relay", "retry", &number]).await.status.code(), Some(1));
    assert_eq!(site.db.number("SELECT count(*) FROM outbox WHERE partition = 1 AND skus = '{s}'").await, 1);
    assert_eq!(parked().await.0, Some(0));
    site.finish([]).await;
}
