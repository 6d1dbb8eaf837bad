//! The auditor on real tables: what adds up, every contradiction by hand, one leader; and through the binary, the sale that it stops.

use std::sync::Arc;
use std::time::Instant;

use flashsale::auditor::{self, Config, Health, look_once};
use flashsale::clock::SystemClock;
use flashsale::store::{AuditSession, Halt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::commands::reserve;
use crate::support::consumer::SOON;
use crate::support::database::Database;
use crate::support::ledger::Ledger;
use crate::support::life::{cancel, confirm, create_with_hold, tick};
use crate::support::site::Site;
use crate::support::wait::wait_for;

fn config(db: &Database) -> Config {
    Config { database_url: db.url.as_str().into(), topic: db.topic.clone() }
}

/// What a look from nothing finds: `subject check`.
async fn found(db: &Database) -> Vec<String> {
    let report = look_once(&config(db)).await.expect("Postgres answers");
    let mut found: Vec<String> = report.findings.iter().map(|f| format!("{} {}", f.subject, f.check.name())).collect();
    found.sort();
    found
}

/// A sale of ten units with holds in every state, some ended and not settled, and a second sale.
async fn history(db: &Database) {
    let mut ledger = Ledger::of(db, 0).await;
    let buys: Vec<_> = (0..8).map(|n| reserve("s", &format!("u-{n}"), 1)).collect();
    ledger.commit(1_000, &[create_with_hold("s", 10, 2, 60), create_with_hold("t", 5, 2, 60)]).await;
    ledger.commit(2_000, &buys[..4]).await;
    ledger.commit(3_000, &[confirm("s", &buys[0], "pay-0"), cancel("s", &buys[1]), reserve("t", "u-1", 2)]).await;
    ledger.commit(30_000, &buys[4..]).await;
    ledger.commit(62_500, &[tick("s")]).await;
}

#[tokio::test]
async fn a_sound_history_adds_up_settled_or_not() {
    let db = Database::fresh("t", 2).await;
    assert_eq!(found(&db).await, Vec::<String>::new(), "nothing is there");
    history(&db).await;
    assert_eq!(db.number("SELECT count(*) FROM reservation_now WHERE status = 5").await, 2, "ended holds are in it");
    assert_eq!(db.number("SELECT count(*) FROM reservation WHERE status = 5").await, 0, "and not settled");
    let report = look_once(&config(&db)).await.expect("Postgres answers");
    assert_eq!((report.skus, report.findings), (vec!["s".to_owned(), "t".to_owned()], Vec::new()));
    Ledger::of(&db, 0).await.settle().await;
    assert_eq!(found(&db).await, Vec::<String>::new());
    db.drop().await;
}

#[tokio::test]
async fn every_contradiction_is_found_and_only_there() {
    let plants: &[(&str, &[&str])] = &[
        ("UPDATE sku SET sold = 11 WHERE sku_id = 's'", &["s counters", "s oversell", "s reservations"]),
        ("UPDATE sku SET on_hand = 4 WHERE sku_id = 's'", &["s counters", "s oversell", "s oversell"]),
        ("UPDATE sku SET reserved = reserved - 1 WHERE sku_id = 's'", &["s counters", "s reservations"]),
        ("UPDATE stock_movement SET reserved = reserved + 1 WHERE sku_id = 's' AND number = 2", &["s movements"]),
        ("UPDATE stock_movement SET d_sold = d_sold + 1 WHERE sku_id = 't' AND number = 2", &["t movements"]),
        ("DELETE FROM stock_movement WHERE sku_id = 's' AND number = 2", &["s movements"]),
        ("DELETE FROM stock_movement WHERE sku_id = 't' AND number = 2", &["t movements"]),
        ("UPDATE reservation SET quantity = 2 WHERE sku_id = 's' AND status = 3", &["s reservations"]),
        ("DELETE FROM reservation WHERE sku_id = 't'", &["t reservations"]),
        ("DELETE FROM sku WHERE sku_id = 't'", &["t counters", "t reservations"]),
        ("DELETE FROM sku WHERE sku_id = 't'; DELETE FROM sku_pin WHERE sku_id = 't'", &["t reservations"]),
        (
            "INSERT INTO reservation SELECT (jsonb_populate_record(r, jsonb_build_object('reservation_id', gen_random_uuid(), 'quantity', 9))).*
             FROM reservation r WHERE sku_id = 't'",
            &["t oversell", "t reservations"],
        ),
        ("UPDATE batch SET first_offset = first_offset + 1 WHERE first_offset = 2", &["partition 0 batches"]),
        ("UPDATE batch SET epoch = 0 WHERE first_offset = 6", &["partition 0 batches"]),
        ("DELETE FROM batch WHERE first_offset = 2", &["partition 0 batches"]),
        ("UPDATE partition_state SET position = position + 1 WHERE partition = 0", &["partition 0 batches"]),
    ];
    for (plant, expected) in plants {
        let db = Database::fresh("t", 1).await;
        history(&db).await;
        db.run("ALTER TABLE sku DROP CONSTRAINT sku_no_oversell").await;
        db.run(plant).await;
        assert_eq!(found(&db).await, *expected, "{plant}");
        db.drop().await;
    }
}

#[tokio::test]
async fn the_runbook_closes_a_gap_that_somebody_made_by_hand() {
    let page = crate::support::watching::read("docs/runbooks/stock-drift.md");
    let from = page.find("INSERT INTO batch").expect("it is there");
    let closing = page[from..].split("\n```").next().expect("a split has a first part");
    let closing = closing.replace("partition = 3", "partition = 0");
    let db = Database::fresh("reservation-requests", 1).await;
    history(&db).await;
    db.run(&closing).await;
    let batches = "SELECT count(*) FROM batch";
    let before = db.number(batches).await;
    for is_last in [true, false] {
        db.run("UPDATE partition_state SET position = position + 2, last_digest = NULL").await;
        if !is_last {
            Ledger::of(&db, 0).await.commit(90_000, &[tick("t")]).await;
        }
        assert_eq!(found(&db).await, ["partition 0 batches"]);
        db.run(&closing).await;
        assert_eq!(found(&db).await, Vec::<String>::new());
    }
    assert_eq!(db.number(batches).await, before + 3, "two gaps and a batch; a log without one is left alone");
    db.drop().await;
}

#[tokio::test]
async fn one_sku_is_recounted_on_demand_whole_and_alone() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    for sku in ["good", "bad", "halts"] {
        site.put_sku(sku, 10, 5).await;
    }
    for sku in ["good", "bad"] {
        assert_eq!(site.post(&all, "u-0", sku, None, Some(10)).await.status, 200);
    }
    assert!(all.stop().await.success());
    // What only the first movements, or only the reservations, show.
    site.db.run("UPDATE reservation SET quantity = 3 WHERE sku_id = 'bad'").await;
    let audited = async |args: &[&str]| {
        let output = site.run(&[&["--json", "audit"], args].concat()).await;
        let books: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), books, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (exit, books, _) = audited(&["good"]).await;
    let good = json!({
        "sku_id": "good", "counters": {"on_hand": 10, "reserved": 1, "sold": 0, "movements": 2},
        "movements": {"on_hand": 10, "reserved": 1, "sold": 0, "movements": 2}, "reservations": {"reserved": 1, "sold": 0}, "findings": [],
    });
    assert_eq!((exit, books), (Some(0), json!([good])));
    let (exit, books, told) = audited(&["bad", "good", "bad"]).await;
    assert_eq!((exit, books.as_array().map(Vec::len)), (Some(1), Some(2)), "{books}");
    assert_eq!(books[0]["findings"][0]["check"], "reservations", "{books}");
    assert_eq!((&books[0]["reservations"]["reserved"], &books[1]), (&json!(3), &good));
    assert!(told.contains("the books of bad do not add up") && !told.contains("good"), "{told}");
    let text = site.run(&["audit", "bad"]).await;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.lines().any(|line| line.split_whitespace().eq(["reservations", "-", "3", "0"])), "{text}");

    let (exit, books, told) = audited(&["good", "nowhere"]).await;
    assert_eq!((exit, books), (Some(1), json!([good])), "{told}");
    assert!(told.contains("there is no SKU nowhere"), "{told}");
    assert_eq!(audited(&["--", "halts"]).await.0, Some(0), "a SKU that is called like a subcommand");
    assert_eq!(audited(&["--watch", "good"]).await.0, Some(64));
    assert_eq!(audited(&["no/sku"]).await.0, Some(64));
    let away = ["--database-url", "postgres://nobody@127.0.0.1:1/none", "audit", "good"];
    assert_eq!(site.run(&away).await.status.code(), Some(2), "nobody knows");

    // Its row is gone: that is no unknown SKU.
    site.db.run("DELETE FROM sku WHERE sku_id = 'bad'").await;
    let (exit, books, _) = audited(&["bad"]).await;
    assert_eq!((exit, &books[0]["counters"]), (Some(1), &json!(null)), "{books}");
    site.db.drop().await;
}

/// An auditor in this process.
struct Watch {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Watch {
    fn start(db: &Database) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(auditor::run(config(db), Arc::new(SystemClock), Health::default(), stop.clone()));
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("it does not panic");
    }
}

/// Advisory locks of the schema's auditors.
async fn leaders(db: &Database) -> i64 {
    db.number(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
         AND ((classid::bigint << 32) | objid::bigint) = 'sku_halt'::regclass::oid::bigint",
    )
    .await
}

async fn wait_for_halts(db: &Database, expected: &[&str]) {
    wait_for(&format!("{expected:?} are halted"), SOON, async || {
        let halted = db.text("SELECT string_agg(sku_id, ' ' ORDER BY sku_id) FROM sku_halt").await;
        halted.unwrap_or_default() == expected.join(" ")
    })
    .await;
}

#[tokio::test]
async fn a_running_auditor_finds_what_comes_later_and_believes_a_restored_database() {
    let db = Database::fresh("t", 1).await;
    let watch = Watch::start(&db);
    history(&db).await;
    // What is found last shows that everything before was read.
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 's'").await;
    wait_for_halts(&db, &["s"]).await;
    // The whole of its tables goes back to before the last buys, as a backup would be: nothing in it is wrong.
    db.run(
        "BEGIN;
         CREATE TEMP TABLE cut AS SELECT first_offset FROM batch ORDER BY first_offset DESC LIMIT 2;
         DELETE FROM reservation WHERE log_offset >= (SELECT min(first_offset) FROM cut);
         DELETE FROM stock_movement WHERE first_offset >= (SELECT min(first_offset) FROM cut);
         UPDATE sku s SET (on_hand, reserved, sold, movement_count) = (m.on_hand, m.reserved, m.sold, m.number)
           FROM (SELECT DISTINCT ON (sku_id) * FROM stock_movement ORDER BY sku_id, number DESC) m WHERE m.sku_id = s.sku_id;
         UPDATE sku SET expired_through = to_timestamp(3);
         UPDATE partition_state SET position = (SELECT min(first_offset) FROM cut);
         DELETE FROM batch WHERE first_offset IN (SELECT first_offset FROM cut);
         COMMIT",
    )
    .await;
    assert_eq!(found(&db).await, Vec::<String>::new());
    // What is planted now is found, and is the first thing that is found of it; so the restored tables were looked at, and believed.
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 't'").await;
    wait_for_halts(&db, &["s", "t"]).await;
    let reason = db.text("SELECT reason FROM sku_halt WHERE sku_id = 't'").await.unwrap_or_default();
    assert!(reason.starts_with("counters: "), "{reason}");
    watch.end().await;
    db.drop().await;
}

#[tokio::test]
async fn a_sku_whose_row_is_gone_is_halted_and_can_be_resumed() {
    let db = Database::fresh("t", 1).await;
    history(&db).await;
    let watch = Watch::start(&db);
    db.run("CREATE TABLE kept AS SELECT * FROM sku WHERE sku_id = 't'; DELETE FROM sku WHERE sku_id = 't'").await;
    wait_for_halts(&db, &["t"]).await;
    watch.end().await;
    assert!(db.store().resume_sku("t", "nobody knows where it went").await.expect("Postgres answers"), "it was halted");
    assert_eq!(db.number("SELECT count(*) FROM sku_resume").await, 1, "it is written down");
    let watch = Watch::start(&db);
    wait_for_halts(&db, &["t"]).await;
    db.run("INSERT INTO sku SELECT * FROM kept").await;
    assert!(db.store().resume_sku("t", "its row is back").await.expect("Postgres answers"));
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 's'").await;
    wait_for_halts(&db, &["s"]).await;
    watch.end().await;
    db.drop().await;
}

/// A third sale, so that something can be planted that shows that a look has passed.
async fn history_of_three(db: &Database) {
    history(db).await;
    Ledger::of(db, 0).await.commit(70_000, &[create_with_hold("u", 5, 2, 60)]).await;
}

#[tokio::test]
async fn a_running_auditor_believes_a_restored_past_that_went_on_before_it_looked() {
    let db = Database::fresh("t", 1).await;
    let watch = Watch::start(&db);
    history_of_three(&db).await;
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 's'").await;
    wait_for_halts(&db, &["s"]).await;
    // As many movements as it remembers, of another past.
    db.run(
        "BEGIN;
         UPDATE stock_movement SET on_hand = on_hand + 1, d_on_hand = d_on_hand + CASE number WHEN 1 THEN 1 ELSE 0 END WHERE sku_id = 't';
         UPDATE sku SET on_hand = on_hand + 1 WHERE sku_id = 't';
         COMMIT",
    )
    .await;
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 'u'").await;
    wait_for_halts(&db, &["s", "u"]).await;
    watch.end().await;
    db.drop().await;
}

#[tokio::test]
async fn what_an_operator_accepted_is_where_the_books_begin() {
    let db = Database::fresh("t", 1).await;
    let watch = Watch::start(&db);
    history_of_three(&db).await;
    // A movement that does not follow from the one before: it stays in the books for as long as they are kept.
    db.run(
        "BEGIN;
         INSERT INTO stock_movement SELECT (jsonb_populate_record(m, jsonb_build_object('number', s.movement_count + 1, 'd_on_hand', 0,
           'd_reserved', 0, 'd_sold', 0, 'on_hand', s.on_hand + 3, 'reserved', s.reserved, 'sold', s.sold))).*
           FROM stock_movement m JOIN sku s USING (sku_id) WHERE m.sku_id = 't' AND m.number = s.movement_count;
         UPDATE sku SET on_hand = on_hand + 3, movement_count = movement_count + 1 WHERE sku_id = 't';
         COMMIT",
    )
    .await;
    assert_eq!(found(&db).await, ["t movements"]);
    wait_for_halts(&db, &["t"]).await;
    assert!(db.store().resume_sku("t", "three more were found in the shop").await.expect("Postgres answers"));
    assert_eq!(found(&db).await, Vec::<String>::new());
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 'u'").await;
    wait_for_halts(&db, &["u"]).await;
    watch.end().await;
    db.drop().await;
}

#[tokio::test]
async fn a_halt_for_what_was_seen_before_a_resume_comes_too_late() {
    let db = Database::fresh("t", 1).await;
    history(&db).await;
    let mut session = AuditSession::open(&db.url, &db.topic).await.expect("Postgres answers");
    let halt = |seen_resume| [Halt { sku_id: "s".into(), reason: "counters: seen".into(), seen_resume }];
    let halts = "SELECT count(*) FROM sku_halt";
    session.halt(&halt(0)).await.expect("halted");
    assert_eq!(db.number(halts).await, 1);
    assert!(db.store().resume_sku("s", "mended").await.expect("Postgres answers"));
    session.halt(&halt(0)).await.expect("asked");
    assert_eq!(db.number(halts).await, 0, "it was seen before");
    let resume = db.number("SELECT max(id) FROM sku_resume").await;
    session.halt(&halt(resume)).await.expect("halted");
    assert_eq!(db.number(halts).await, 1, "it was seen after");
    db.drop().await;
}

#[tokio::test]
async fn of_two_auditors_one_leads_and_the_other_takes_over() {
    let db = Database::fresh("t", 1).await;
    history(&db).await;
    let (first, second) = (Watch::start(&db), Watch::start(&db));
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flashsale auditor'";
    wait_for("both have a session", SOON, async || db.number(sessions).await >= 2 && leaders(&db).await == 1).await;
    first.end().await;
    wait_for("one leads", SOON, async || leaders(&db).await == 1).await;
    db.run("UPDATE sku SET reserved = reserved + 1 WHERE sku_id = 's'").await;
    wait_for_halts(&db, &["s"]).await;
    second.end().await;
    wait_for("nobody leads", SOON, async || leaders(&db).await == 0).await;
    db.drop().await;
}

#[tokio::test]
async fn what_does_not_add_up_is_not_sold_until_an_operator_says_so() {
    let site = Site::shared().await;
    let all = site.start("all").await;
    let sound = site.run(&["audit"]).await;
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    site.put_sku("good", 10, 1).await;
    site.put_sku("bad", 10, 1).await;
    let held = site.post(&all, "u-0", "bad", None, Some(10)).await;
    assert_eq!(held.status, 200, "{}", held.body);

    let mend = site
        .db
        .text("SELECT 'UPDATE sku SET sold = ' || sold || ' WHERE sku_id = ''bad'''  FROM sku WHERE sku_id = 'bad'")
        .await;
    site.db.run("ALTER TABLE sku DROP CONSTRAINT sku_no_oversell").await;
    let planted = Instant::now();
    site.db.run("UPDATE sku SET sold = 12 WHERE sku_id = 'bad'").await;
    // No request until then: the writer would meet the changed row, and halt the whole partition.
    let status = async || site.get(&all, "/v1/skus/bad").await.body["status"].clone();
    wait_for("the sale is halted", SOON, async || status().await == "HALTED").await;
    println!("refused {} ms after the contradiction", planted.elapsed().as_millis());
    let refused = site.post(&all, "u-1", "bad", None, None).await;
    assert_eq!((refused.status, &refused.body["code"]), (503, &json!("HALTED")));
    assert_eq!(site.get(&all, "/v1/skus/good").await.body["status"], "OPEN");
    assert_eq!(site.post(&all, "u-1", "good", None, Some(10)).await.status, 200, "others go on");
    let looked = site.run(&["--json", "audit"]).await;
    assert_eq!(looked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&looked.stdout).contains("\"check\": \"oversell\""), "{looked:?}");
    let shown = site.run(&["audit", "halts"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains("bad  "), "{shown:?}");
    let metrics = site.client.get(format!("{}/metrics", all.admin)).send().await.expect("answers");
    let metrics = metrics.text().await.expect("a text");
    for line in ["flashsale_inventory_oversell{sku=\"bad\"} 3", "flashsale_inventory_oversell{sku=\"good\"} 0"] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }

    // Not mended: it is halted again. Mended: it goes on.
    assert_eq!(site.run(&["audit", "resume", "bad", "--note", "looks fine to me"]).await.status.code(), Some(0));
    wait_for("it is halted again", SOON, async || site.db.number("SELECT count(*) FROM sku_halt").await == 1).await;
    site.db.run(&mend.expect("the SKU is there")).await;
    assert_eq!(site.run(&["audit", "resume", "bad", "--note", "the counter was wrong"]).await.status.code(), Some(0));
    assert_eq!(site.run(&["audit", "resume", "bad", "--note", "again"]).await.status.code(), Some(1));
    // While the counter was wrong the SKU looked sold out, too: that passes with its lease.
    let buys = async || site.post(&all, "u-2", "bad", None, Some(10)).await.status == 200;
    wait_for("it is sold again", SOON, buys).await;
    assert_eq!(site.run(&["audit"]).await.status.code(), Some(0));
    // It stays so, over looks and recounts that began after it.
    let last_recount = async || {
        let metrics = site.client.get(format!("{}/metrics", all.admin)).send().await.expect("answers");
        let metrics = metrics.text().await.expect("a text");
        let line = metrics.lines().find(|line| line.starts_with("flashsale_audit_last_recount_timestamp_seconds"));
        line.and_then(|line| line.split(' ').next_back()?.parse::<f64>().ok()).unwrap_or_default()
    };
    for _ in 0..2 {
        let before = last_recount().await;
        wait_for("another recount has ended", SOON, async || last_recount().await > before).await;
    }
    assert_eq!(site.db.number("SELECT count(*) FROM sku_halt").await, 0);
    assert_eq!(site.db.number("SELECT count(*) FROM sku_resume").await, 2);
    let told = all.lines().iter().filter(|line| line["level"] == "ERROR").count();
    assert!(told > 0, "a person is told");
    assert!(all.stop().await.success());
    site.db.assert_invariants().await;
    site.db.drop().await;
}

#[tokio::test]
async fn an_auditor_may_run_alone_and_nobody_knows_without_postgres() {
    let site = Site::shared().await;
    let mut watch = site.spawn(&["audit", "--watch"]);
    watch.admin = watch.wait_for_address("admin.addr").await;
    wait_for("it is ready", SOON, async || site.is_ready(&watch).await).await;
    let away = site.run(&["--database-url", "postgres://nobody@127.0.0.1:1/none", "audit"]).await;
    assert_eq!(away.status.code(), Some(2), "{away:?}");
    site.finish([watch]).await;
}
