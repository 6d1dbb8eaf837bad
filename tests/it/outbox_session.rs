//! A relay's session when it is left alone half-way, and rows that are put back while a writer writes.

use std::future::Future;

use flashsale::inventory::Event;
use flashsale::outbox::packed;
use flashsale::outbox::round::{Parked, Settlement};
use flashsale::store::{OutboxSession, Store};
use sqlx::PgConnection;

use crate::support::commands::{create, reserve};
use crate::support::database::Database;
use crate::support::ledger::Ledger;
use crate::support::site::SOON;
use crate::support::wait::wait_for;

/// How many statements of relays wait for a lock.
const BLOCKED: &str = "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND application_name = 'flashsale relay' AND relation = 'outbox_parked'::regclass";

async fn execute(conn: &mut PgConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(conn).await.expect("a statement of this test");
}

/// Polls something until `is_so`, and drops it there.
async fn give_up_when(what: &str, doing: impl Future, is_so: impl AsyncFnMut() -> bool) {
    tokio::select! {
        _ = doing => panic!("it ended before it could be given up: {what}"),
        () = wait_for(what, SOON, is_so) => {}
    }
}

/// A partition with one row, whose two events can't be published.
async fn world() -> (Database, Vec<Event>, i64) {
    let db = Database::fresh("t", 1).await;
    let mut ledger = Ledger::of(&db, 0).await;
    let events = ledger.commit(1_000, &[create("s", 0, 10, 5), reserve("s", "a", 1)]).await.events;
    assert_eq!(events.len(), 2);
    let id = db.number("SELECT id FROM outbox").await;
    (db, events, id)
}

fn park_all(id: i64, events: &[Event]) -> Settlement {
    let park = |event: &Event| Parked { event: event.clone(), reason: "a test says so".to_owned() };
    Settlement { done: vec![id], rest: Vec::new(), parked: events.iter().map(park).collect() }
}

/// Leads the partition and is cut off while it settles the row: the table of parked events is locked. The lock is gone when this returns.
async fn cut_off_while_it_settles(db: &Database, events: &[Event], id: i64) -> OutboxSession {
    let mut session = OutboxSession::open(&db.url, "t").await.expect("a session");
    assert_eq!(session.take_leads(&[]).await.expect("taken"), [0]);
    let mut locker = db.connect().await;
    execute(&mut locker, "BEGIN; LOCK TABLE outbox_parked IN SHARE ROW EXCLUSIVE MODE").await;
    let settlement = park_all(id, events);
    let settling = session.settle(0, &settlement);
    give_up_when("it is blocked", settling, async || db.number(BLOCKED).await > 0).await;
    execute(&mut locker, "ROLLBACK").await;
    session
}

/// A stopping relay gives up what takes too long, and then writes down what else landed.
#[tokio::test]
async fn a_settlement_that_was_given_up_half_way_loses_nothing() {
    let (db, events, id) = world().await;
    let mut session = cut_off_while_it_settles(&db, &events, id).await;
    // The next one has parts, too, and commits.
    let next = Settlement { done: vec![id + 1_000], ..park_all(id + 1_000, &events[..1]) };
    session.settle(0, &next).await.expect("settled");
    let waiting = db.number("SELECT count(*) FROM outbox").await;
    let parked = db.number("SELECT count(DISTINCT event_id) FROM outbox_parked").await;
    assert!(waiting == 1 || parked == 2, "{waiting} rows wait and {parked} of 2 events are parked");
    db.drop().await;
}

#[tokio::test]
async fn a_relay_that_is_frozen_while_it_settles_loses_its_lead() {
    let (db, events, id) = world().await;
    let _frozen = cut_off_while_it_settles(&db, &events, id).await;
    let mut other = OutboxSession::open(&db.url, "t").await.expect("a session");
    wait_for("another relay leads", SOON, async || other.take_leads(&[]).await.expect("asked") == [0]).await;
    db.drop().await;
}

/// A relay looks at a partition's rows by their numbers. One that is put back must not show a higher number while a writer still holds
/// a lower one: the relay would be past it when it is committed, and later events of its SKUs would go first.
#[tokio::test]
async fn a_parked_event_is_put_back_behind_the_batch_that_is_being_written() {
    let (db, events, id) = world().await;
    let mut session = OutboxSession::open(&db.url, "t").await.expect("a session");
    session.settle(0, &park_all(id, &events)).await.expect("settled");
    let parked = db.store().load_parked().await.expect("readable");
    // As a batch does: the fence, then its row.
    let mut writer = db.connect().await;
    execute(&mut writer, "BEGIN; UPDATE partition_state SET position = position + 1 WHERE partition = 0").await;
    execute(&mut writer, "INSERT INTO outbox (partition, skus, events) VALUES (0, '{other}', '\\x00')").await;
    let store: Store = db.store();
    let mut retrying = tokio::spawn(async move { store.retry_parked(parked[0].id).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '/* retry_parked%'
                 AND pg_blocking_pids(pid) <> '{}'";
    tokio::select! {
        _ = &mut retrying => panic!("it was put back in front of the writer"),
        () = wait_for("it waits for the writer", SOON, async || db.number(waits).await > 0) => {}
    }
    execute(&mut writer, "COMMIT").await;
    assert!(retrying.await.expect("no panic").expect("done"));
    let rows = session.load(&[(0, 0)], &[]).await.expect("readable");
    assert_eq!(rows.iter().map(|row| row.skus[0].as_str()).collect::<Vec<_>>(), ["other", "s"]);
    assert_eq!(packed::unpack(&rows[1].events).expect("readable").events, events[..1]);
    db.drop().await;
}
